"""Which options make labels go further? `python -m benchmarks.options`, or `make bench-options`.

Options of the reward model and samplers are tried on the two tasks of `benchmarks.labels` whose runs take about half a
minute, and with `--tasks` on any of them:

    few_labels    three tenths of the task's labels, all right
    half_labels   half of them
    wrong10       all labels, a tenth of the answers wrong
    wrong30       all labels, three tenths of the answers wrong

Seeds begin at 100: those of `benchmarks.labels`, 0 to 9, take no part, so that what is picked here is not flattered
there. Scores are those of `benchmarks.labels`, against the mean of its runs on true reward of the same task. Runs are
made, stored and never repeated as `benchmarks.runs` says.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from benchmarks.labels import CONDITIONS, NUM_SEEDS
from benchmarks.runs import (
    GOOD_SCORE,
    OUT,
    ROOT,
    Results,
    Run,
    iqm,
    make_missing,
    scores,
    seeds_in_turn,
    share_of_labels,
)
from themis_ray.errors import ConfigError

TASKS = tuple(NUM_SEEDS)
QUICK_TASKS = ("pendulum", "cartpole")
FIRST_SEED = 100
# Name of the table -> overrides that make it, for a task.
SETTINGS: dict[str, Callable[[str], list[str]]] = {
    "few_labels": lambda task: [share_of_labels(task, 0.3)],
    "half_labels": lambda task: [share_of_labels(task, 0.5)],
    "wrong10": lambda _: ["teacher.name=mistake"],
    "wrong30": lambda _: ["teacher.name=mistake", "teacher.eps_mistake=0.3"],
}
# What most options are added to, one at a time: hard labels and queries by disagreement.
PLAIN = ["reward.label_margin=0", "feedback.sampler=disagreement"]
ALONE: dict[str, list[str]] = {
    "plain": [],
    "mistake_rate": ["reward.mistake_rate=0.1"],
    "temporal_crop": ["reward.temporal_crop=10"],
    "pseudo_labels": ["reward.pseudo_label_threshold=0.99"],
    "filter_wrong_labels": ["reward.filter_wrong_labels=true"],
    "held_out": ["reward.heldout_share=0.1", "reward.early_stop_patience=5"],
    "disagreement_bonus": ["reward.disagreement_bonus=0.05"],
    "normalize_predictions": ["reward.normalize_predictions=true"],
    "going_on": ["reward.from_scratch=false"],
    "7_members": ["reward.ensemble_size=7"],
    "7_members_20_passes": ["reward.ensemble_size=7", "reward.num_epochs=20"],
    **{name: [f"feedback.sampler={name}"] for name in ("uniform", "newest", "kcenter", "kcenter_disagreement")},
}
# Name in the table -> settings beside those of the task.
OPTIONS: dict[str, list[str]] = {
    **{name: [*PLAIN, *settings] for name, settings in ALONE.items()},
    "defaults": [],  # plain with a label margin
    "margin_and_kcenter": ["feedback.sampler=kcenter_disagreement"],  # k-center with disagreement
    "margin_and_uniform": ["feedback.sampler=uniform"],
    "margin_and_weight_decay": ["reward.weight_decay=1"],
    "margin_and_7_members_20_passes": ["reward.ensemble_size=7", "reward.num_epochs=20"],
    "robust": ["preset=robust"],
    "robust_early": ["preset=robust", "feedback.until_share=0.4"],
    "robust_decreasing": ["preset=robust", "feedback.schedule=decreasing"],
}


def rows(task: str, settings: Sequence[str], options: Sequence[str]) -> dict[str, list[str]]:
    """The overrides of each setting and option of a task, by SETTING/OPTION."""
    return {
        f"{setting}/{option}": [*SETTINGS[setting](task), *OPTIONS[option]]
        for setting in settings
        for option in options
    }


def true_reward_returns() -> dict[str, list[float]]:
    """The true returns of the runs on true reward that `benchmarks.labels` has stored for today's tasks, by task."""
    name, stored = "true_reward", Results("labels")
    runs = seeds_in_turn(NUM_SEEDS, lambda task: {name: CONDITIONS[name](task)})
    lines = stored.of({run: stored.fingerprint(run.settings()) for run in runs})
    return {task: [line["true_return_mean"] for line in lines if line["task"] == task] for task in TASKS}


def scores_by_task(
    results: Sequence[Mapping[str, Any]], condition: str, true_returns: Mapping[str, Sequence[float]]
) -> dict[str, NDArray[np.float64]]:
    """Scores of the stored runs of a condition, by task, against true returns of runs on true reward."""
    by_task = {}
    for task, true in true_returns.items():
        of_task = [line for line in results if (line["task"], line["condition"]) == (task, condition)]
        if true and of_task:
            random = float(np.mean([line["random_return_mean"] for line in results if line["task"] == task]))
            by_task[task] = scores([line["true_return_mean"] for line in of_task], true, random)
    return by_task


def summarise(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """IQM with its interval, seeds above 0.95 and IQM by task, for every condition that has runs."""
    report = {}
    true_returns = true_reward_returns()
    for condition in dict.fromkeys(line["condition"] for line in results):
        by_task = scores_by_task(results, condition, true_returns)
        everything = np.concatenate(list(by_task.values()))
        mean = iqm(by_task.values())
        report[condition] = {
            **{"iqm": mean.value, "iqm_low": mean.low, "iqm_high": mean.high},
            **{"num_runs": len(everything), "num_above_095": int((everything > GOOD_SCORE).sum())},
            "by_task": {task: iqm([of_task]).value for task, of_task in by_task.items()},
        }
    return report


def tables(report: Mapping[str, Mapping[str, Any]]) -> Iterator[Table]:
    """A table for each setting, best option first."""
    for setting in SETTINGS:
        found = {name.split("/")[1]: values for name, values in report.items() if name.startswith(f"{setting}/")}
        if not found:
            continue
        tasks = [task for task in TASKS if any(task in values["by_task"] for values in found.values())]
        table = Table(title=setting, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
        for column in ("option", "IQM", "95 %", *tasks, "above 0.95"):
            table.add_column(column, justify="left" if column == "option" else "right", no_wrap=True)
        for option, values in sorted(found.items(), key=lambda item: -item[1]["iqm"]):
            table.add_row(
                option,
                f"{values['iqm']:.2f}",
                "-" if values["iqm_low"] is None else f"{values['iqm_low']:.2f} to {values['iqm_high']:.2f}",
                *(f"{values['by_task'][task]:.2f}" if task in values["by_task"] else "-" for task in tasks),
                f"{values['num_above_095']} of {values['num_runs']}",
            )
        yield table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=",".join(QUICK_TASKS), help="some of the tasks (default the quick ones)")
    parser.add_argument("--settings", default=",".join(SETTINGS), help="some of the settings (default all)")
    parser.add_argument("--options", default=",".join(OPTIONS), help="some of the options (default all)")
    parser.add_argument("--seeds", type=int, default=10, help="seeds per task (default 10)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (default 2)")
    parser.add_argument("--report-only", action="store_true", help="train nothing, report everything that is stored")
    arguments = parser.parse_args()
    tasks, settings, options = (given.split(",") for given in (arguments.tasks, arguments.settings, arguments.options))
    for kind, given, known in (("task", tasks, TASKS), ("setting", settings, SETTINGS), ("option", options, OPTIONS)):
        if unknown := set(given) - set(known):
            parser.error(f"no {kind} {', '.join(sorted(unknown))}. Known: {', '.join(known)}")
    num_seeds = dict.fromkeys(tasks, arguments.seeds)
    console = Console()
    stored = Results("options")
    runs: list[Run] = list(seeds_in_turn(num_seeds, lambda task: rows(task, settings, options), FIRST_SEED))
    try:
        fingerprints = {run: stored.fingerprint(run.settings()) for run in runs}
    except ConfigError as error:  # such as a crop longer than the segments of a task
        parser.error(f"an option does not go with a task, leave it out of --options: {error}")
    failures = [] if arguments.report_only else make_missing(stored, fingerprints, arguments.jobs, console)
    results = stored.of(fingerprints)
    report = summarise(results)
    OUT.mkdir(exist_ok=True)
    path = OUT / "options.json"
    path.write_text(json.dumps({"conditions": report, "runs": results, "failures": failures}, indent=2) + "\n")
    for table in tables(report):
        console.print(table)
    console.print(f"{len(results)} of {len(fingerprints)} runs are stored. Wrote {path.relative_to(ROOT)}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
