"""How much of the true reward's return do labels buy? `python -m benchmarks.labels`, or `make bench-labels`.

Every task of `tune_configs/tasks/` is learned from the environment's own reward and, with the same learner and the same
number of env steps, from predicted reward: with all labels, with half of them, with 10 % and with 30 % of the answers
wrong. The score of a run is

    (its true return - random return) / (mean true return of the runs on true reward - random return)

by the final evaluation of 10 fresh episodes. Reported are the interquartile mean over all runs of all tasks with a
95 % bootstrap interval stratified by task (Agarwal et al. 2021, arXiv 2108.13264), and the share of runs above 0.95,
because outcomes are bimodal: a run learns or it does not.

A ratio against a weak learner proves nothing, so on HalfCheetah-v5 Stable-Baselines3's SAC with its own defaults learns
from true reward beside ours (`sb3_sac`), on the same machine, in the virtual environment of `benchmarks.peers`.

Hundreds of runs take hours, so every finished one is a line in `benchmarks/results/labels.jsonl`, which is kept in the
repository; a later call goes on where the last one stopped, and repeats runs whose settings have changed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import yaml
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import trim_mean

from benchmarks.peers import SCRIPTS, ensure_venv, run_logged
from themis_ray.config import dump_config, load_config, resolve
from themis_ray.experiment import ray_session, run_experiment
from themis_ray.rllib.settings import LEARNER_DEFAULTS
from themis_ray.tracking import RunFolder

ROOT = Path(__file__).resolve().parent.parent
TASKS = ROOT / "tune_configs" / "tasks"
RESULTS = ROOT / "benchmarks" / "results" / "labels.jsonl"
SETTINGS = RESULTS.with_name("labels_settings.json")
OUT = ROOT / "benchmarks" / "out"
PLOT = ROOT / "docs" / "images" / "labels.png"
PAGE = ROOT / "docs" / "results.md"

NUM_SEEDS = {"pendulum": 10, "cartpole": 10, "minigrid": 10, "reacher": 5, "halfcheetah": 5, "lunarlander": 5}
# Name in the table -> settings beside the task's own. The budget of `half_labels` is filled in from the task.
CONDITIONS: dict[str, list[str]] = {
    "true_reward": ["learn_reward=false"],
    "labels": [],
    "half_labels": [],
    "mistake10": ["teacher.name=mistake"],
    "mistake30": ["teacher.name=mistake", "teacher.eps_mistake=0.3"],
    "mistake30_robust": ["teacher.name=mistake", "teacher.eps_mistake=0.3", "preset=robust"],
}
SB3 = "sb3_sac"
TASKS_WITH_SB3 = ("halfcheetah",)
SB3_TIMEOUT_S = 3600.0
COLUMNS = ("task", "condition", "labels", "seeds", "true return", "score (IQM)", "above 0.95")
IQM_KEYS = {
    "labels": "iqm",
    "half_labels": "iqm_half_labels",
    "mistake10": "iqm_mistake10",
    "mistake30": "iqm_mistake30_default",
    "mistake30_robust": "iqm_mistake30",
}
NUM_BOOTSTRAP_SAMPLES = 5000
GOOD_SCORE = 0.95


@dataclass(frozen=True)
class Run:
    """One training run of the table."""

    task: str
    condition: str
    seed: int

    @property
    def name(self) -> str:
        """Names the run in lines, folders and messages."""
        return f"{self.task}/{self.condition}/s{self.seed}"

    def overrides(self) -> list[str]:
        """The settings beside those of the task's file."""
        settings = [*CONDITIONS.get(self.condition, []), f"seed={self.seed}", "num_checkpoints_kept=1"]
        if self.condition == "half_labels":
            settings.append(f"feedback.budget={load_config(self.path).feedback.budget // 2}")
        return settings

    @property
    def path(self) -> Path:
        """The task's file."""
        return TASKS / f"{self.task}.yaml"

    def settings(self) -> dict[str, Any]:
        """The resolved settings by dotted name, without the seed."""
        config, _ = resolve(load_config(self.path, self.overrides()))
        if self.condition == SB3:
            return {"system": SB3, "env.id": config.env.id, "num_env_steps": config.num_env_steps}
        settings = dict(_flatten(yaml.safe_load(dump_config(config))))
        del settings["seed"]
        return settings


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


class KnownSettings:
    """The settings that stored results were made with, by fingerprint.

    A stored result counts for a run whose settings are the same in everything that existed when it was made, and the
    defaults in what has been added since: a new option that is off repeats no run, a changed default does.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._settings: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
        self._defaults = dict(_flatten(yaml.safe_load(dump_config(load_config(None, ["env.id=Pendulum-v1"])))))

    def fingerprint(self, settings: Mapping[str, Any]) -> str:
        """The fingerprint of the known settings that these go with, else a new one."""
        defaults = LEARNER_DEFAULTS.get(settings.get("algorithm.name", ""), {})
        learner = {f"algorithm.{name}": value for name, value in defaults.items()}
        for fingerprint, stored in self._settings.items():
            if all(name in settings and settings[name] == value for name, value in stored.items()) and all(
                value in (self._defaults.get(name), learner.get(name))
                for name, value in settings.items()
                if name not in stored
            ):
                return fingerprint
        text = json.dumps(settings, sort_keys=True)
        fingerprint = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
        self._settings[fingerprint] = dict(settings)
        return fingerprint

    def store(self) -> None:
        """Writes the settings that belong to a stored result."""
        used = {result["fingerprint"] for result in stored_results()}
        others = json.loads(self._path.read_text()) if self._path.exists() else {}  # of a call beside this one
        settings = {mark: values for mark, values in (others | self._settings).items() if mark in used}
        self._path.write_text(json.dumps(settings, indent=1) + "\n")


def train(run: Run, fingerprint: str, commit: str) -> dict[str, Any]:
    """Trains in this process, which keeps one Ray session for all its runs, and returns the line to store."""
    measured = train_sb3(run) if run.condition == SB3 else train_ours(run)
    return {
        **{"task": run.task, "condition": run.condition, "seed": run.seed},
        **measured,
        **{"fingerprint": fingerprint, "commit": commit},
    }


def train_sb3(run: Run) -> dict[str, Any]:
    """Stable-Baselines3's SAC on true reward for as many env steps."""
    config = load_config(run.path)
    arguments = {
        "--system": SB3,
        "--env-id": config.env.id,
        "--seed": run.seed,
        "--num-env-steps": config.num_env_steps,
    }
    log = OUT / "labels" / f"{run.name}.log"
    command = [ensure_venv("sb3", SB3_TIMEOUT_S), SCRIPTS / "sb3_baseline.py"]
    run_logged([*command, *(str(part) for pair in arguments.items() for part in pair)], log, SB3_TIMEOUT_S)
    record = json.loads(log.read_text().strip().split("\n")[-1])
    return {"true_return_mean": record["true_return"], "queries_asked": 0} | {
        key: record[key] for key in ("num_env_steps", "wall_s")
    }


def train_ours(run: Run) -> dict[str, Any]:
    """`themis train` with the settings of a run."""
    config, spec = resolve(load_config(run.path, run.overrides()))
    folder = RunFolder.create(OUT / "labels" / run.name, config, overwrite=True)
    summary: Mapping[str, Any] = {}
    for iteration in run_experiment(config, spec, folder):
        summary = iteration.summary or summary
    shutil.rmtree(folder.checkpoints_path, ignore_errors=True)
    kept = (
        *("true_return_mean", "true_return_std", "random_return_mean", "num_env_steps", "queries_asked"),
        *("num_preferences", "heldout_accuracy", "reward_correlation", "wall_s"),
    )
    return {key: summary[key] for key in kept}


_session: contextlib.AbstractContextManager[None] | None = None


def start_worker() -> None:
    """Starts the Ray session that all runs of a worker process share; it ends with the process."""
    global _session
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115  (closed with the process)
    _session = ray_session()
    _session.__enter__()


def _end_with_parent() -> None:
    """Ends this process, and with it its Ray session, once the benchmark is killed; nothing else would."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def stored_results() -> list[dict[str, Any]]:
    """The lines that earlier calls have written; an unfinished last one is left out."""
    if not RESULTS.exists():
        return []
    results = []
    for line in RESULTS.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            results.append(json.loads(line))
    return results


def run_all(
    fingerprints: Mapping[Run, str], known_settings: KnownSettings, num_jobs: int, console: Console
) -> list[str]:
    """Trains what is not stored yet, `num_jobs` runs at a time, and returns what failed."""
    done = {(r["task"], r["condition"], r["seed"], r["fingerprint"]) for r in stored_results()}
    to_run = [run for run, mark in fingerprints.items() if (run.task, run.condition, run.seed, mark) not in done]
    num_done = len(fingerprints) - len(to_run)
    console.print(f"{num_done} of {len(fingerprints)} runs are in {RESULTS.relative_to(ROOT)} already")
    if not to_run:
        return []
    commit = subprocess.check_output(["git", "describe", "--always", "--dirty"], cwd=ROOT, text=True).strip()
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    if any(run.condition == SB3 for run in to_run):
        ensure_venv("sb3", SB3_TIMEOUT_S)  # before two workers want it at once
    failures: list[str] = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_jobs, context, start_worker) as executor:
        futures = {executor.submit(train, run, fingerprints[run], commit): run for run in to_run}
        for future in track(as_completed(futures), "training", len(futures), console=console):
            run = futures[future]
            try:
                result = future.result()
            except Exception as error:
                failures.append(f"{run.name}: {type(error).__name__}: {error}")
                console.print(f"[red]failed[/red] {failures[-1]}", highlight=False)
                continue
            with RESULTS.open("a") as file:
                file.write(json.dumps(result) + "\n")
            known_settings.store()
            console.print(f"{run.name}: {result['true_return_mean']:.2f} in {result['wall_s']:.0f} s", highlight=False)
    return failures


def scores_by_task(results: Sequence[Mapping[str, Any]], condition: str) -> dict[str, NDArray[np.float64]]:
    """Scores of a condition's runs, by task; tasks that lack runs of either kind are left out."""
    scores = {}
    for task in NUM_SEEDS:
        of_task = [result for result in results if result["task"] == task and result["condition"] != SB3]
        true = [result["true_return_mean"] for result in of_task if result["condition"] == "true_reward"]
        learned = [result["true_return_mean"] for result in of_task if result["condition"] == condition]
        if true and learned:
            random = np.mean([result["random_return_mean"] for result in of_task])
            scores[task] = (np.array(learned) - random) / (np.mean(true) - random)
    return scores


def iqm(scores: Mapping[str, NDArray[np.float64]]) -> float:
    """Mean of the middle half of all scores."""
    return float(trim_mean(np.concatenate(list(scores.values())), 0.25))


def iqm_interval(scores: Mapping[str, NDArray[np.float64]], rng: np.random.Generator) -> tuple[float, float]:
    """95 % interval of the IQM: runs are drawn with replacement within each task."""
    samples = [
        iqm({task: rng.choice(values, len(values)) for task, values in scores.items()})
        for _ in range(NUM_BOOTSTRAP_SAMPLES)
    ]
    low, high = np.quantile(samples, [0.025, 0.975])
    return float(low), float(high)


def summarise(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What `benchmarks/out/labels.json` holds."""
    rng = np.random.default_rng(0)
    report: dict[str, Any] = {}
    for condition, key in IQM_KEYS.items():
        scores = scores_by_task(results, condition)
        if not scores:
            continue
        everything = np.concatenate(list(scores.values()))
        low, high = iqm_interval(scores, rng)
        is_above = everything > GOOD_SCORE
        report |= {key: iqm(scores), f"{key}_low": low, f"{key}_high": high}
        report[f"seeds_above_095{key.removeprefix('iqm')}"] = f"{is_above.sum()} of {len(is_above)}"
        report.setdefault("by_task", {})[condition] = {task: iqm({task: x}) for task, x in scores.items()}
    return {**report, "runs": list(results)}


def rows(results: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    """Task, condition, number of seeds, mean return, and score with the seeds above 0.95."""
    for task in NUM_SEEDS:
        for condition in (SB3, *CONDITIONS):
            returns = [r["true_return_mean"] for r in results if (r["task"], r["condition"]) == (task, condition)]
            if not returns:
                continue
            digits = 1 if np.max(np.abs(returns)) > 10 else 3
            queries = [r["queries_asked"] for r in results if (r["task"], r["condition"]) == (task, condition)]
            score = scores_by_task(results, condition).get(task)
            yield (
                task,
                condition,
                f"{np.mean(queries):.0f}",
                f"{len(returns)}",
                f"{np.mean(returns):.{digits}f} ± {np.std(returns):.{digits}f}",
                "-" if score is None else f"{iqm({task: score}):.2f}",
                "-" if score is None else f"{(score > GOOD_SCORE).sum()} of {len(score)}",
            )


def plot(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Every run's score as a point, by task and condition, with the IQM as a bar."""
    conditions = [condition for condition in IQM_KEYS if scores_by_task(results, condition)]
    tasks = [task for task in NUM_SEEDS if any(task in scores_by_task(results, c) for c in conditions)]
    figure, axes = plt.subplots(figsize=(max(7.0, 1.5 + 1.7 * len(tasks)), 3.6), layout="constrained")
    width = 0.8 / max(1, len(conditions))
    for i, condition in enumerate(conditions):
        scores = scores_by_task(results, condition)
        for x, task in enumerate(tasks):
            if task not in scores:
                continue
            centre = x + (i - (len(conditions) - 1) / 2) * width
            label = condition.replace("_", " ") if x == 0 else None
            axes.bar(centre, iqm({task: scores[task]}), width * 0.9, color=f"C{i}", alpha=0.45, label=label)
            axes.scatter(np.full(len(scores[task]), centre), scores[task], s=9, color=f"C{i}")
    axes.axhline(1.0, color="black", linewidth=0.8, linestyle=":")
    axes.set_xticks(range(len(tasks)), tasks)
    axes.set_ylabel("score (1 = true reward, 0 = random)")
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.legend(frameon=False, fontsize=8, ncols=len(conditions), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def sentences(report: Mapping[str, Any]) -> Iterator[str]:
    """One line per condition: the IQM over all tasks with its interval, and the runs above 0.95."""
    for condition, key in IQM_KEYS.items():
        if key in report:
            above = report[f"seeds_above_095{key.removeprefix('iqm')}"]
            interval = f"[{report[f'{key}_low']:.3f}, {report[f'{key}_high']:.3f}]"
            yield f"{condition}: IQM {report[key]:.3f} {interval}, above 0.95: {above}"


def write_page(results: Sequence[Mapping[str, Any]], report: Mapping[str, Any], path: Path) -> None:
    """Writes everything that is stored as a page of the documentation."""
    num_missing = report["num_runs_missing"]
    lines = [
        "# Results: what labels buy",
        "",
        "`make bench-labels` writes this page from `benchmarks/results/labels.jsonl`, which holds every run with",
        "its commit and settings. Each task of `tune_configs/tasks/` is learned from true reward and, with the same",
        "learner and env steps, from labels: `labels` all of them, `half_labels`, `mistake10` and `mistake30` with",
        "10 % and 30 % of the answers wrong, `mistake30_robust` with `preset=robust` on top.",
        "",
        "A score is (true return - random) / (mean return on true reward - random), of the final evaluation of 10",
        "fresh episodes. The IQM is the mean of the middle half of all scores, with a 95 % bootstrap interval",
        "stratified by task (Agarwal et al. 2021, arXiv 2108.13264).",
        "",
        "Not everything here is untouched. `robust` was picked on Pendulum with seeds 0 to 10, which include those",
        "of its row ([reward models](reward-models.md)); Pendulum's settings, and the defaults that CartPole is",
        "learned with, were found while looking at seeds 0 to 2. The settings of the other tasks were tuned with",
        "seeds that are not used here ([how](design/task-settings.md)). Seeds go round, and a row has as many as",
        "there was time for, whatever came out.",
        "",
        "`sb3_sac` is Stable-Baselines3's SAC with its own defaults on true reward, to show that `true_reward` is",
        "not a weak learner.",
        "",
        *([f"{num_missing} of {num_missing + len(results)} runs have not been made yet.", ""] if num_missing else []),
        *(f"* {sentence}" for sentence in sentences(report)),
        "",
        f"![Scores of all runs]({PLOT.relative_to(PAGE.parent)})",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"| {' | '.join('---' for _ in COLUMNS)} |",
        *(f"| {' | '.join(row)} |" for row in rows(results)),
    ]
    path.write_text("\n".join(lines) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="Pendulum-v1 only")
    parser.add_argument("--tasks", default=",".join(NUM_SEEDS), help="some of the tasks (default all)")
    parser.add_argument("--conditions", default=",".join(CONDITIONS), help="some of the conditions (default all)")
    parser.add_argument("--seeds", type=int, help="seeds per task (default 10, and 5 for the slow tasks)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (default 2)")
    parser.add_argument("--report-only", action="store_true", help="train nothing, report everything that is stored")
    arguments = parser.parse_args()
    tasks = ["pendulum"] if arguments.quick else arguments.tasks.split(",")
    conditions = arguments.conditions.split(",")
    for kind, given, known in (("task", tasks, NUM_SEEDS), ("condition", conditions, CONDITIONS)):
        if unknown := set(given) - set(known):
            parser.error(f"no {kind} {', '.join(sorted(unknown))}. Known: {', '.join(known)}")
    num_seeds = {task: arguments.seeds or NUM_SEEDS[task] for task in tasks}
    # Seeds go round, so that a stopped benchmark has some of everything.
    runs = [
        Run(task, condition, seed)
        for seed in range(max(num_seeds.values()))
        for task in tasks
        for condition in (*([SB3] if task in TASKS_WITH_SB3 else []), *conditions)
        if seed < num_seeds[task]
    ]
    console = Console()
    known_settings = KnownSettings(SETTINGS)
    fingerprints = {run: known_settings.fingerprint(run.settings()) for run in runs}
    failures = [] if arguments.report_only else run_all(fingerprints, known_settings, arguments.jobs, console)
    wanted = {(run.task, run.condition, run.seed, mark) for run, mark in fingerprints.items()}
    results = [r for r in stored_results() if (r["task"], r["condition"], r["seed"], r["fingerprint"]) in wanted]
    report = summarise(results) | {"failures": failures, "num_runs_missing": len(wanted) - len(results)}
    OUT.mkdir(exist_ok=True)
    (OUT / "labels.json").write_text(json.dumps(report, indent=2) + "\n")
    if set(tasks) == set(NUM_SEEDS) and set(conditions) == set(CONDITIONS) and not arguments.seeds:
        plot(results, PLOT)
        write_page(results, report, PAGE)
    table = Table(title="Learned from labels against true reward", title_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in ("task", "condition") else "right")
    for row in rows(results):
        table.add_row(*row)
    console.print(table)
    for sentence in sentences(report):
        console.print(sentence, highlight=False)
    if report["num_runs_missing"]:
        console.print(f"{report['num_runs_missing']} of {len(wanted)} runs are still missing", highlight=False)
    console.print(f"Wrote {(OUT / 'labels.json').relative_to(ROOT)}", highlight=False)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
