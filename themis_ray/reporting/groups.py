"""Runs in cells of task and method, and their scores against the runs that were paid the true reward."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from themis_ray.config import flatten, load_config
from themis_ray.reporting.runs import LeftOutRun, Run
from themis_ray.rllib.settings import LEARNER_DEFAULTS

__all__ = ["TRUE_REWARD", "Cell", "Groups", "Method", "Scale", "group_runs"]

TRUE_REWARD = "true reward"
# What a run cannot tell itself apart by: where it ran, what it kept, how it reached its teacher.
BOOKKEEPING = re.compile(
    r"seed$|learn_reward$|tracking\.|resources\.|num_checkpoints_kept$|checkpoint_interval$"
    r"|teacher\.(url|api_key_env|token_env|timeout_s|max_retries|max_concurrency|poll_s|wait_timeout_s)$"
)
# What the name of a teacher says already.
IN_TEACHER_NAME = re.compile(r"teacher\.(kind|name|function|model|study)$|feedback\.dataset$")
FEEDBACK_ONLY = re.compile(r"teacher\.|feedback\.|reward\.|preset$")
PATHS = ("snapshot", "algorithm.reference", "feedback.demonstrations", "feedback.dataset")
ORDER = ("teacher.", "preset", "feedback.", "reward.", "algorithm.", "")


@dataclass(frozen=True)
class Method:
    """How runs learn, whatever the environment.

    Attributes:
        is_learned: False for the runs that are paid the true reward.
        teacher: Who answers, with the settings of the teacher that differ between runs.
        sampler: Who chooses the queries; empty where none are asked.
        others: Every other setting that differs between runs, as key=value; only the last word of the key where no
            other setting ends with it.
    """

    is_learned: bool
    teacher: str
    sampler: str
    others: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The method in a line."""
        return ", ".join(part for part in (self.teacher, self.sampler, *self.others) if part)

    @property
    def line(self) -> str:
        """What it is called beside others of its sampler."""
        return ", ".join((self.teacher, *self.others))


@dataclass(frozen=True)
class Scale:
    """What a score of 0 and one of 1 stand for.

    Attributes:
        random: Mean return of random actions.
        true: Mean return of the matching runs that were paid the true reward.
        num_true_runs: How many those are.
        differs: Settings in which these differ nevertheless; empty where they match.
    """

    random: float
    true: float
    num_true_runs: int
    differs: tuple[str, ...] = ()

    def score(self, returns: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (return - random) / (true - random)."""
        return (returns - self.random) / (self.true - self.random)


@dataclass(frozen=True, eq=False)
class Cell:
    """The runs of one method on one task, a seed each, in the order of their seeds.

    Attributes:
        task: The environment, with the settings of it that differ between runs.
        method: How they learn.
        runs: At least one.
        scale: Turns returns into scores; None where there is nothing to compare with.
    """

    task: str
    method: Method
    runs: tuple[Run, ...]
    scale: Scale | None

    @property
    def returns(self) -> NDArray[np.float64]:
        """True returns of the final evaluations."""
        return np.array([run.true_return for run in self.runs], np.float64)

    @property
    def scores(self) -> NDArray[np.float64] | None:
        """The same as scores."""
        return None if self.scale is None else self.scale.score(self.returns)


@dataclass(frozen=True, eq=False)
class Groups:
    """All cells.

    Attributes:
        tasks: In the order of their names.
        methods: True reward first, then by teacher and sampler.
        cells: By task and method; not every method has to be there for every task.
        left_out: Runs with the settings and seed of another one.
        notes: What a reader has to know to trust the scores.
    """

    tasks: tuple[str, ...]
    methods: tuple[Method, ...]
    cells: Mapping[tuple[str, Method], Cell]
    left_out: tuple[LeftOutRun, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def of(self, method: Method, *, scored: bool = False) -> dict[str, Cell]:
        """Return the cells of a method by task; with `scored` those that have scores."""
        found = {task: self.cells[task, method] for task in self.tasks if (task, method) in self.cells}
        return {task: cell for task, cell in found.items() if cell.scale is not None or not scored}


def group_runs(runs: Sequence[Run]) -> Groups:
    """Put runs into cells.

    Runs are on one task where all settings of the environment are the same, and of one method where teacher, sampler
    and all that differs within some task are. A setting that says no more than those before it is not named again.
    A run of the true reward is told apart by what concerns the learner alone.
    """
    table = {run: _comparable(run) for run in runs}
    tasks = _tasks(table)
    learned = [run for run in runs if run.learns_reward]
    true = [run for run in runs if not run.learns_reward]
    named, silent = _distinguishing(learned, table, tasks, None)
    named_true, _ = _distinguishing(true, table, tasks, FEEDBACK_ONLY)
    members: dict[tuple[str, Method], list[Run]] = {}
    for run in runs:
        method = _method(run, table[run], named if run.learns_reward else named_true)
        members.setdefault((tasks[run], method), []).append(run)
    left_out, notes = [], []
    cells = {}
    scales = _Scales(true, table, tasks)
    for (task, method), found in sorted(members.items(), key=lambda item: (item[0][0], _order(item[0][1]))):
        by_seed: dict[int, Run] = {}
        for run in found:
            if run.seed in by_seed:
                left_out.append(LeftOutRun(by_seed[run.seed].path, f"same settings and seed as {run.path}"))
            by_seed[run.seed] = run
        kept = tuple(by_seed[seed] for seed in sorted(by_seed))
        cells[task, method] = Cell(task, method, kept, scales.of(kept[0], [r for r in runs if tasks[r] == task]))
    if silent:
        notes.append(f"Settings that differ along with those named, and are not told apart from them: {_join(silent)}.")
    notes += _scale_notes(cells.values())
    task_names = tuple(dict.fromkeys(task for task, _ in cells))
    methods = tuple(sorted({method for _, method in cells}, key=_order))
    num_partial = sum(any((task, method) not in cells for task in task_names) for method in methods)
    if num_partial:
        notes.append(
            f"{num_partial} of {len(methods)} groups are not on all {len(task_names)} environments. What is said of "
            "all environments is about those that a group is on: compare such groups on each environment."
        )
    return Groups(
        tasks=task_names,
        methods=methods,
        cells=cells,
        left_out=tuple(left_out),
        notes=tuple(notes),
    )


# ---------------------------------------------------------------- settings


def _comparable(run: Run) -> dict[str, str]:
    """Return the settings that may tell runs apart, as text; what the run's version did not know has its default."""
    learner = LEARNER_DEFAULTS.get(str(run.settings.get("algorithm.name")), {})
    defaults = {**_defaults(), **{f"algorithm.{name}": value for name, value in learner.items()}}
    settings = {key: _plain(value) for key, value in defaults.items()} | {
        key: _plain(value) for key, value in run.settings.items()
    }
    for key in PATHS:
        if settings.get(key) is not None:
            # Every seed may start from a snapshot of its own.
            settings[key] = re.sub(rf"(?<![a-z0-9])s(eed)?([-_]?){run.seed}(?!\d)", r"s\1\2*", str(settings[key]))
    if "/.snapshots/" in str(settings.get("snapshot")):
        # Exploration that trials of a sweep share, in place of the same of their own.
        settings["snapshot"] = None
    return {key: text_of(value) for key, value in settings.items() if not BOOKKEEPING.match(key)}


def _defaults() -> dict[str, Any]:
    config = load_config(None, ["env.id=none"])
    return flatten(config.model_dump(mode="json"))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def text_of(value: Any) -> str:
    """Return a value of a setting as one would write it."""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


def _tasks(table: Mapping[Run, Mapping[str, str]]) -> dict[Run, str]:
    """Return the name of each run's task: its environment, and what else of it differs between runs of that id."""
    keys = sorted({key for settings in table.values() for key in settings if key.startswith("env.")})
    names = {}
    for run, settings in table.items():
        same = [other for other in table if other.env_id == run.env_id]
        differing = [key for key in keys if len({table[other].get(key, "null") for other in same}) > 1]
        parts = [f"{key.removeprefix('env.')}={settings.get(key, 'null')}" for key in differing]
        names[run] = ", ".join((run.env_id, *parts))
    return names


def _distinguishing(
    runs: Sequence[Run],
    table: Mapping[Run, Mapping[str, str]],
    tasks: Mapping[Run, str],
    ignored: re.Pattern[str] | None,
) -> tuple[list[str], list[str]]:
    """Return the settings that tell methods apart, and those that differ but only along with them."""
    keys = {key: None for run in runs for key in table[run]}
    candidates = [
        key
        for key in keys
        if not (ignored and ignored.match(key))
        and not key.startswith("env.")
        and not IN_TEACHER_NAME.match(key)
        and key != "feedback.sampler"
        and _differs_within_a_task(key, runs, table, tasks)
    ]
    candidates.sort(key=lambda key: next(place for place, prefix in enumerate(ORDER) if key.startswith(prefix)))
    marks: list[tuple[str, ...]] = [(tasks[run], run.teacher, run.sampler) for run in runs]
    named, silent = [], []
    for key in candidates:
        finer = [(*mark, table[run].get(key, "null")) for mark, run in zip(marks, runs, strict=True)]
        if len(set(finer)) > len(set(marks)):
            marks = finer
            named.append(key)
        else:
            silent.append(key)
    return named, silent


def _differs_within_a_task(
    key: str, runs: Sequence[Run], table: Mapping[Run, Mapping[str, str]], tasks: Mapping[Run, str]
) -> bool:
    values: dict[str, set[str]] = {}
    for run in runs:
        values.setdefault(tasks[run], set()).add(table[run].get(key, "null"))
    return any(len(found) > 1 for found in values.values())


def _order(method: Method) -> tuple[Any, ...]:
    """Sort as people do: true reward first, 50 before 100."""
    return (method.is_learned, *map(_natural, (method.teacher, method.sampler, "\n".join(method.others))))


def _natural(text: str) -> list[Any]:
    parts = re.split(r"(\d+(?:\.\d+)?)", text)
    return [float(part) if number % 2 else part for number, part in enumerate(parts)]


def _method(run: Run, settings: Mapping[str, str], named: Sequence[str]) -> Method:
    # Nothing is said of a setting that has no value, such as a number that is the preset's.
    parts = [(key, settings.get(key, "null")) for key in named]
    shown = [(key, value) for key, value in parts if value != "null"]
    of_teacher = [f"{key.removeprefix('teacher.')}={value}" for key, value in shown if key.startswith("teacher.")]
    others = [f"{short_key(key, settings)}={value}" for key, value in shown if not key.startswith("teacher.")]
    teacher = " ".join((run.teacher, *of_teacher)) if run.learns_reward else TRUE_REWARD
    return Method(run.learns_reward, teacher, run.sampler, tuple(others))


def short_key(key: str, settings: Iterable[str]) -> str:
    """Return the last word of a setting's key where it says enough, else the key."""
    word = key.rpartition(".")[2]
    return key if any(other != key and other.rpartition(".")[2] == word for other in settings) else word


# ---------------------------------------------------------------- scales


class _Scales:
    """Finds the runs of the true reward that a run is compared with."""

    def __init__(self, true: Sequence[Run], table: Mapping[Run, Mapping[str, str]], tasks: Mapping[Run, str]) -> None:
        self._table = table
        self._tasks = tasks
        self._true: dict[str, dict[tuple[tuple[str, str], ...], list[Run]]] = {}
        for run in true:
            learner = tuple(sorted(_learner_settings(table[run]).items()))
            self._true.setdefault(tasks[run], {}).setdefault(learner, []).append(run)

    def of(self, run: Run, same_task: Sequence[Run]) -> Scale | None:
        """Return the scale by the true-reward runs with the fewest other settings, of these by the most runs."""
        candidates = self._true.get(self._tasks[run], {})
        if not candidates:
            return None
        mine = _learner_settings(self._table[run])
        best = min(candidates, key=lambda theirs: (len(_differing(mine, dict(theirs))), -len(candidates[theirs])))
        runs = {other.seed: other for other in candidates[best]}.values()
        random = float(np.mean([other.random_return for other in same_task]))
        true = float(np.mean([other.true_return for other in runs]))
        if true - random <= 1e-9 * max(1.0, abs(true), abs(random)):
            return None
        return Scale(random, true, len(runs), tuple(_differing(mine, dict(best))))


def _learner_settings(settings: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in settings.items() if not FEEDBACK_ONLY.match(key)}


def _differing(left: Mapping[str, str], right: Mapping[str, str]) -> list[str]:
    keys = sorted({*left, *right})
    return [key for key in keys if left.get(key, "null") != right.get(key, "null")]


def _scale_notes(cells: Iterable[Cell]) -> list[str]:
    notes = []
    cells = list(cells)
    has_true = {cell.task for cell in cells if not cell.method.is_learned}
    for task in dict.fromkeys(cell.task for cell in cells):
        of_task = [cell for cell in cells if cell.task == task]
        if task not in has_true:
            notes.append(
                f"{task} has no runs with learn_reward=false, so that its returns have no scale and it counts in no "
                "score."
            )
        elif any(cell.scale is None for cell in of_task):
            notes.append(
                f"On {task} the runs of the true reward are no better than random actions, so that its returns have no "
                "scale and it counts in no score."
            )
        counts = Counter(cell.scale.differs for cell in of_task if cell.scale is not None and cell.scale.differs)
        for differs, count in counts.items():
            notes.append(
                f"{count} of {len(of_task)} groups on {task} are compared with runs of the true reward that differ in "
                f"{_join(differs)}: none match."
            )
    return notes


def _join(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
