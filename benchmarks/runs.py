"""Whole training runs for a table of results: made in processes beside each other, stored as they end, never twice.

Hundreds of runs take hours, so every finished one is a line in `benchmarks/results/NAME.jsonl`, which is kept in the
repository; a later call goes on where the last one stopped, and repeats runs whose settings have changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import numpy as np
import yaml
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from themis_ray.config import ExperimentConfig, dump_config, flatten, load_config, resolve
from themis_ray.experiment import run_experiment
from themis_ray.loop_settings import LEARNER_DEFAULTS
from themis_ray.reporting.statistics import Estimate, estimate, interquartile_mean
from themis_ray.sessions import ray_session
from themis_ray.tracking import RunFolder

ROOT = Path(__file__).resolve().parent.parent
TASKS = ROOT / "tune_configs" / "tasks"
RESULTS = ROOT / "benchmarks" / "results"
OUT = ROOT / "benchmarks" / "out"

GOOD_SCORE = 0.95


@dataclass(frozen=True)
class Run:
    """One training run of a table: a task of `tune_configs/tasks/` with some settings changed.

    Args:
        task: Name of the task's file.
        condition: Row of the table.
        seed: Of the whole run.
        overrides: Settings of the condition, as `themis train` takes them.
        system: What trains, where it is not this project; then the settings are not this project's either.
    """

    task: str
    condition: str
    seed: int
    overrides: tuple[str, ...] = ()
    system: str | None = None

    @property
    def name(self) -> str:
        """Names the run in lines, folders and messages."""
        return f"{self.task}/{self.condition}/s{self.seed}"

    def config(self) -> ExperimentConfig:
        """The settings of the run, not resolved. Runs are made beside each other, so each computes with one thread."""
        own = (f"seed={self.seed}", "num_checkpoints_kept=1", "resources.num_fit_threads=1")
        return load_config(task_path(self.task), [*self.overrides, *own])

    def settings(self) -> dict[str, Any]:
        """The resolved settings by dotted name, without the seed."""
        return _settings(replace(self, condition="", seed=0))


@lru_cache
def _settings(run: Run) -> dict[str, Any]:
    config, _ = resolve(run.config())
    if run.system is not None:
        return {"system": run.system, "env.id": config.env.id, "num_env_steps": config.num_env_steps}
    settings = flatten(yaml.safe_load(dump_config(config)))
    del settings["seed"]
    return _that_matter(settings)


def _that_matter(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves out threads, and what a run on true reward, and one without pseudo-labels, does not look at."""
    unused: tuple[str, ...] = ("resources.num_fit_threads",)
    if not settings.get("learn_reward", True):
        unused += ("reward.", "feedback.", "teacher.")
    if settings.get("reward.pseudo_label_threshold") is None:
        unused += ("reward.pseudo_label_weight", "reward.pseudo_labels_per_label")
    return {name: value for name, value in settings.items() if not name.startswith(unused)}


def task_path(task: str) -> Path:
    """The file of a task."""
    return TASKS / f"{task}.yaml"


def share_of_labels(task: str, share: float) -> str:
    """The override that leaves this share of a task's labels."""
    return f"feedback.budget={round(share * load_config(task_path(task)).feedback.budget)}"


class Results:
    """What is stored of a benchmark: a line per run in NAME.jsonl, and in NAME_settings.json what they were made with.

    A stored result counts for a run whose settings are the same in everything that existed when it was made, and the
    defaults in what has been added since: a new option that is off repeats no run, a changed default does. What has
    been added is written down with the result as it was then, so that its default may change later.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = RESULTS / f"{name}.jsonl"
        self._settings_path = RESULTS / f"{name}_settings.json"
        stored = self._settings_path.read_text() if self._settings_path.exists() else "{}"
        self._settings: dict[str, dict[str, Any]] = json.loads(stored)
        self._defaults = flatten(yaml.safe_load(dump_config(load_config(None, ["env.id=Pendulum-v1"]))))

    def fingerprint(self, settings: Mapping[str, Any]) -> str:
        """The fingerprint of the known settings that these go with, else a new one."""
        defaults = LEARNER_DEFAULTS.get(settings.get("algorithm.name", ""), {})
        learner = {f"algorithm.{name}": value for name, value in defaults.items()}
        for fingerprint, everything in self._settings.items():
            stored = _that_matter(everything)
            added = {name: value for name, value in settings.items() if name not in stored}
            if all(name in settings and settings[name] == value for name, value in stored.items()) and all(
                value == learner.get(name, self._defaults.get(name)) for name, value in added.items()
            ):
                everything |= added
                return fingerprint
        text = json.dumps(settings, sort_keys=True)
        fingerprint = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
        self._settings[fingerprint] = dict(settings)
        return fingerprint

    def lines(self) -> list[dict[str, Any]]:
        """Everything that earlier calls have stored; an unfinished last line is left out."""
        if not self.path.exists():
            return []
        lines = []
        for line in self.path.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                lines.append(json.loads(line))
        return lines

    def of(self, fingerprints: Mapping[Run, str]) -> list[dict[str, Any]]:
        """The stored results of these runs."""
        wanted = {(run.task, run.condition, run.seed, mark) for run, mark in fingerprints.items()}
        return [line for line in self.lines() if _key(line) in wanted]

    def append(self, result: Mapping[str, Any]) -> None:
        """Stores a result, and the settings that it was made with."""
        with self.path.open("a") as file:
            file.write(json.dumps(result) + "\n")
        used = {line["fingerprint"] for line in self.lines()}
        others = json.loads(self._settings_path.read_text()) if self._settings_path.exists() else {}  # of a call beside
        settings = {mark: values for mark, values in (others | self._settings).items() if mark in used}
        self._settings_path.write_text(json.dumps(settings, indent=1) + "\n")


def _key(line: Mapping[str, Any]) -> tuple[str, str, int, str]:
    return line["task"], line["condition"], line["seed"], line["fingerprint"]


def make_run(run: Run, folder: Path) -> dict[str, Any]:
    """`themis train` with the settings of a run, in this process, which keeps one Ray session for all its runs."""
    config, spec = resolve(run.config())
    run_folder = RunFolder.create(folder, config, overwrite=True)
    summary: Mapping[str, Any] = {}
    for iteration in run_experiment(config, spec, run_folder):
        summary = iteration.summary or summary
    shutil.rmtree(run_folder.checkpoints_path, ignore_errors=True)
    kept = (
        *("true_return_mean", "true_return_std", "random_return_mean", "num_env_steps", "queries_asked"),
        *("num_preferences", "heldout_accuracy", "reward_correlation", "wall_s"),
    )
    return {key: summary[key] for key in kept}


_session: contextlib.AbstractContextManager[None] | None = None


def _start_worker() -> None:
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


def make_missing(
    results: Results,
    fingerprints: Mapping[Run, str],
    num_jobs: int,
    console: Console,
    train: Callable[[Run, Path], dict[str, Any]] = make_run,
) -> list[str]:
    """Makes the runs that are not stored yet, `num_jobs` at a time, and returns what failed.

    Args:
        results: Where finished runs are stored.
        fingerprints: The wanted runs, in the order in which they are made, with `Results.fingerprint` of each.
        num_jobs: Processes beside each other.
        console: Where progress is shown.
        train: A function of a module that makes a run, with a folder for its files, and returns what is stored of it.
    """
    done = {_key(line) for line in results.lines()}
    to_run = [run for run, mark in fingerprints.items() if (run.task, run.condition, run.seed, mark) not in done]
    num_done = len(fingerprints) - len(to_run)
    console.print(f"{num_done} of {len(fingerprints)} runs are in {results.path.relative_to(ROOT)} already")
    if not to_run:
        return []
    commit = subprocess.check_output(["git", "describe", "--always", "--dirty"], cwd=ROOT, text=True).strip()
    failures: list[str] = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_jobs, context, _start_worker) as executor:
        futures = {executor.submit(train, run, OUT / results.name / run.name): run for run in to_run}
        for future in track(as_completed(futures), "training", len(futures), console=console):
            run = futures[future]
            try:
                result = future.result()
            except Exception as error:
                failures.append(f"{run.name}: {type(error).__name__}: {error}")
                console.print(f"[red]failed[/red] {failures[-1]}", highlight=False)
                continue
            about = {"task": run.task, "condition": run.condition, "seed": run.seed}
            results.append({**about, **result, "fingerprint": fingerprints[run], "commit": commit})
            console.print(f"{run.name}: {result['true_return_mean']:.2f} in {result['wall_s']:.0f} s", highlight=False)
    return failures


def scores(returns: Sequence[float], true_reward_returns: Sequence[float], random_return: float) -> NDArray[np.float64]:
    """True returns as scores: 1 is the mean of the runs on true reward, 0 a random policy."""
    return (np.array(returns) - random_return) / (np.mean(true_reward_returns) - random_return)


def iqm(values: Iterable[NDArray[np.float64]]) -> Estimate:
    """Mean of the middle half of all scores, given by task, with a 95 % interval where every task has two runs.

    The interval is a bootstrap: runs are drawn with replacement within each task (Agarwal et al. 2021).
    """
    return estimate(list(values), interquartile_mean, np.random.default_rng(0))


def seeds_in_turn(
    num_seeds: Mapping[str, int], rows: Callable[[str], Mapping[str, Sequence[str]]], first: int = 0
) -> Iterator[Run]:
    """Runs of all tasks and rows, seed by seed, so that a benchmark that is stopped has some of everything.

    Args:
        num_seeds: How many seeds, by task.
        rows: Overrides by condition, of a task.
        first: The first seed.
    """
    for i in range(max(num_seeds.values())):
        for task, number in num_seeds.items():
            for condition, overrides in rows(task).items():
                if i < number:
                    yield Run(task, condition, first + i, tuple(overrides))
