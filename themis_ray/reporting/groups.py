"""Runs in cells of task and method, and their scores against the runs that were paid the true reward."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from themis_ray.reporting.runs import LeftOutRun, Run
from themis_ray.reporting.scales import Scale, Scales
from themis_ray.reporting.settings import (
    IN_TEACHER_NAME,
    UNUSED,
    comparable_settings,
    differing_settings,
    fill_env_choices,
    finer_settings,
    setting_order,
    short_key,
    short_values,
    teacher_names,
)

__all__ = ["ALL_TASKS", "TRUE_REWARD", "Cell", "Groups", "Method", "group_runs"]

ALL_TASKS = "all"
TRUE_REWARD = "true reward"


@dataclass(frozen=True)
class Method:
    """How runs learn, whatever the environment.

    Attributes:
        is_learned: False for the runs that are paid the true reward.
        teacher: Who answers, with the settings of the teacher that differ between runs.
        sampler: Who chooses the queries; empty where none are asked.
        others: Every other setting that differs between runs, as key=value; only the last word of the key where no
            other setting ends with it, and of a long value only its two ends.
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


@dataclass(frozen=True, eq=False)
class Cell:
    """The runs of one method on one task, a seed each, in the order of their seeds.

    Attributes:
        task: The environment, with the settings of it that differ between runs.
        method: How they learn.
        runs: At least one.
        scale: Turns returns into scores; None where there is nothing to compare with.
        settings: Of all its runs, what may tell them apart from others; `teacher.name` is the teacher's whole name.
        num_stopped: Seeds that are missing because their runs were ended early.
    """

    task: str
    method: Method
    runs: tuple[Run, ...]
    scale: Scale | None
    settings: Mapping[str, str] = field(default_factory=dict)
    num_stopped: int = 0

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


def group_runs(runs: Sequence[Run], stopped: Sequence[Run] = ()) -> Groups:
    """Put runs into cells.

    Runs are on one task where all settings of the environment are the same, and of one method where teacher, sampler
    and all that differs within some task are. A setting that says no more than those before it is not named again.
    A run of the true reward is told apart by what concerns the learner alone.

    Args:
        runs: Finished ones.
        stopped: Runs that were ended early; those they would stand beside are what such a choice has left.
    """
    teachers = teacher_names([*runs, *stopped])
    settings_of = fill_env_choices({run: comparable_settings(run, teachers[run]) for run in (*runs, *stopped)})
    table = {run: settings_of[run] for run in runs}
    tasks = _tasks(table)
    learned = [run for run in runs if run.learns_reward]
    true = [run for run in runs if not run.learns_reward]
    named, silent = _distinguishing(learned, table, tasks)
    named_true, _ = _distinguishing(true, table, tasks)
    called = {key: short_values(one.get(key, "null") for one in table.values()) for key in {*named, *named_true}}
    members: dict[tuple[str, Method], list[Run]] = {}
    for run in runs:
        method = _method(run, table[run], named if run.learns_reward else named_true, called)
        members.setdefault((tasks[run], method), []).append(run)
    ended = {run: settings_of[run] for run in stopped}
    left_out: list[LeftOutRun] = []
    notes: list[str] = []
    cells = {}
    scales = Scales(true, table, tasks)
    for (task, method), found in sorted(members.items(), key=lambda item: (item[0][0], _order(item[0][1]))):
        kept, again = _one_per_seed(found)
        left_out += again
        scale = scales.of(kept[0], [r for r in runs if tasks[r] == task])
        settings = table[kept[0]]
        cells[task, method] = Cell(task, method, kept, scale, settings, _num_stopped(kept, settings, ended))
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
    notes += _stopped_notes(cells.values(), len(stopped))
    return Groups(
        tasks=task_names,
        methods=methods,
        cells=cells,
        left_out=tuple(left_out),
        notes=tuple(notes),
    )


def _one_per_seed(runs: Iterable[Run]) -> tuple[tuple[Run, ...], list[LeftOutRun]]:
    """Return the last run of each seed, in the order of the seeds, and the others."""
    by_seed: dict[int, Run] = {}
    others = []
    for run in runs:
        if run.seed in by_seed:
            other = by_seed[run.seed]
            others.append(LeftOutRun(other.path, f"same settings and seed as {run.place}", other.place))
        by_seed[run.seed] = run
    return tuple(by_seed[seed] for seed in sorted(by_seed)), others


def _num_stopped(kept: Sequence[Run], settings: Mapping[str, str], ended: Mapping[Run, Mapping[str, str]]) -> int:
    """Return how many seeds are missing among those kept because their runs were ended early."""
    seeds = {
        run.seed
        for run, theirs in ended.items()
        if run.learns_reward == kept[0].learns_reward and not differing_settings(theirs, settings)
    }
    return len(seeds - {run.seed for run in kept})


# ---------------------------------------------------------------- tasks and methods


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
    runs: Sequence[Run], table: Mapping[Run, Mapping[str, str]], tasks: Mapping[Run, str]
) -> tuple[list[str], list[str]]:
    """Return the settings that tell methods apart, and those that differ but only along with them."""
    candidates = [
        key
        for key in {key: None for run in runs for key in table[run]}
        if not key.startswith("env.")
        and not IN_TEACHER_NAME.match(key)
        and key != "feedback.sampler"
        and _differs_within_a_task(key, runs, table, tasks)
    ]
    candidates.sort(key=setting_order)
    return finer_settings(
        [(tasks[run], table[run]["teacher.name"], run.sampler) for run in runs],
        [table[run] for run in runs],
        candidates,
    )


def _differs_within_a_task(
    key: str, runs: Sequence[Run], table: Mapping[Run, Mapping[str, str]], tasks: Mapping[Run, str]
) -> bool:
    values: dict[str, set[str]] = {}
    for run in runs:
        values.setdefault(tasks[run], set()).add(table[run].get(key, "null"))
    return any(len(found - {UNUSED}) > 1 for found in values.values())


def _order(method: Method) -> tuple[Any, ...]:
    """Sort as people do: true reward first, 50 before 100."""
    return (method.is_learned, *map(_natural, (method.teacher, method.sampler, "\n".join(method.others))))


def _natural(text: str) -> list[Any]:
    parts = re.split(r"(\d+(?:\.\d+)?)", text)
    return [float(part) if number % 2 else part for number, part in enumerate(parts)]


def _method(
    run: Run, settings: Mapping[str, str], named: Sequence[str], called: Mapping[str, Mapping[str, str]]
) -> Method:
    # Nothing is said of a setting that has no value, such as a number that is the preset's.
    parts = [(key, settings.get(key, "null")) for key in named]
    shown = [(key, called[key][value]) for key, value in parts if value not in ("null", UNUSED)]
    of_teacher = [f"{key.removeprefix('teacher.')}={value}" for key, value in shown if key.startswith("teacher.")]
    others = [f"{short_key(key, settings)}={value}" for key, value in shown if not key.startswith("teacher.")]
    teacher = " ".join((settings["teacher.name"], *of_teacher)) if run.learns_reward else TRUE_REWARD
    return Method(run.learns_reward, teacher, run.sampler, tuple(others))


# ---------------------------------------------------------------- notes


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
        elif num_without := sum(cell.scale is None for cell in of_task):
            whose = "it counts" if num_without == len(of_task) else f"{num_without} of its {len(of_task)} groups count"
            notes.append(
                f"On {task} the runs of the true reward are no better than random actions, or by so little that it may "
                f"be chance, so that there is no scale and {whose} in no score."
            )
        counts = Counter(cell.scale.differs for cell in of_task if cell.scale is not None and cell.scale.differs)
        for differs, count in counts.items():
            notes.append(
                f"{count} of {len(of_task)} groups on {task} are compared with runs of the true reward that differ in "
                f"{_join(differs)}: none match."
            )
    return notes


def _stopped_notes(cells: Iterable[Cell], num_stopped: int) -> list[str]:
    if not num_stopped:
        return []
    lost = [f"{cell.num_stopped} of {cell.method.name} on {cell.task}" for cell in cells if cell.num_stopped]
    whose = f"seeds that are missing by that: {'; '.join(lost)}" if lost else "no group misses a seed by that"
    return [
        f"{num_stopped} runs were stopped early and count for nothing; {whose}. If what they had reached decided it, "
        "the runs that are left are a selection."
    ]


def _join(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
