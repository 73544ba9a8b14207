"""Groups beside a baseline: those that differ from it in one setting."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from themis_ray.config import apply_override, flatten
from themis_ray.errors import ConfigError
from themis_ray.reporting.groups import ALL_TASKS, Cell, Groups, Method
from themis_ray.reporting.settings import (
    BOOKKEEPING,
    FEEDBACK_ONLY,
    IN_TEACHER_NAME,
    UNUSED,
    finer_settings,
    setting_order,
    text_of,
)
from themis_ray.reporting.statistics import MIN_SEEDS, Estimate, difference, improvement, interquartile_mean

__all__ = ["Comparison", "compare_with_baseline"]

LEARN_REWARD = "learn_reward"
SHORT_KEYS = {"teacher": "teacher.name", "sampler": "feedback.sampler", "budget": "feedback.budget"}


@dataclass(frozen=True)
class Comparison:
    """A method beside its baseline on one task, or on all tasks that both have.

    Attributes:
        task: `ALL_TASKS` for all.
        method: The method.
        baseline: The method that has the value of the baseline, and all else the same where there is one.
        num_seeds: Runs of the cell with the fewest.
        num_stopped: Runs of both that were ended early.
        improvement: How probably a run of the method beats one of the baseline.
        difference: Interquartile mean of its scores minus the baseline's; None without scores.
    """

    task: str
    method: Method
    baseline: Method
    num_seeds: int
    num_stopped: int
    improvement: Estimate
    difference: Estimate | None

    @property
    def says(self) -> str:
        """What can be concluded."""
        low, high = self.improvement.low, self.improvement.high
        if low is None or high is None or self.num_seeds < MIN_SEEDS:
            return "too few seeds"
        if self.num_stopped:
            return "runs were stopped"
        if low > 0.5:
            return "better"
        return "worse" if high < 0.5 else "cannot be told apart"


def compare_with_baseline(groups: Groups, text: str, seed: int) -> tuple[tuple[Comparison, ...], list[Method]]:
    """Return every comparison with the groups of the baseline, and the methods that go with none of these.

    Args:
        groups: All of them.
        text: KEY=VALUE.
        seed: Of the bootstrap samples.

    Raises:
        ConfigError: It is no setting by which groups are told apart, none of them has the value, or all have.
    """
    key, value = _parse(text, groups)
    partners, alone = _find_partners(groups, text, key, value)
    rows = []
    for name in (*([ALL_TASKS] if len(groups.tasks) > 1 else []), *groups.tasks):
        for method, baseline in partners.items():
            left, right = groups.of(method), groups.of(baseline)
            shared = [task for task in groups.tasks if task in left and task in right and name in (ALL_TASKS, task)]
            if shared:
                rows.append(_compare(name, [left[task] for task in shared], [right[task] for task in shared], seed))
    return tuple(rows), alone


def _compare(name: str, left: Sequence[Cell], right: Sequence[Cell], seed: int) -> Comparison:
    scored = [(x.scores, y.scores) for x, y in zip(left, right, strict=True)]
    both = [(x, y) for x, y in scored if x is not None and y is not None]
    return Comparison(
        task=name,
        method=left[0].method,
        baseline=right[0].method,
        num_seeds=min(len(cell.runs) for cell in (*left, *right)),
        num_stopped=sum(cell.num_stopped for cell in (*left, *right)),
        improvement=improvement(
            [cell.returns for cell in left], [cell.returns for cell in right], np.random.default_rng(seed)
        ),
        difference=difference(
            [x for x, _ in both], [y for _, y in both], interquartile_mean, np.random.default_rng(seed)
        )
        if both
        else None,
    )


# ---------------------------------------------------------------- the setting


def _parse(text: str, groups: Groups) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key or not value:
        raise ConfigError(f"--baseline {text!r} is no setting. Write KEY=VALUE, for example teacher.name=oracle.")
    key = SHORT_KEYS.get(key, key)
    known = sorted({name for cell in groups.cells.values() for run in cell.runs for name in run.settings})
    if key not in known:
        close = difflib.get_close_matches(key, known, n=1)
        suggestion = f" Did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"--baseline {text}: the runs have no setting {key!r}.{suggestion}")
    if key.startswith("env."):
        raise ConfigError(
            f"--baseline {text}: groups are compared within an environment. Give a setting of another kind, for "
            "example teacher.name=oracle."
        )
    if key != LEARN_REWARD and BOOKKEEPING.match(key):
        raise ConfigError(
            f"--baseline {text}: {key} tells no groups apart. Give a setting that does, for example "
            "teacher.name=oracle."
        )
    values: dict[str, Any] = {}
    apply_override(values, f"{key}={value}")
    return key, flatten(values).get(key, value)


def _value(cell: Cell, key: str) -> str:
    """Return a setting of a cell as text; `UNUSED` where it did nothing."""
    return text_of(cell.method.is_learned) if key == LEARN_REWARD else cell.settings.get(key, "null")


def _is(text: str, value: Any) -> bool:
    """Tell whether a setting's text stands for a value; 1 is 1.0, and true is no number."""
    try:
        found = json.loads(text)
    except ValueError:
        found = text
    return text == text_of(value) or (found == value and isinstance(found, bool) == isinstance(value, bool))


# ---------------------------------------------------------------- partners


def _find_partners(groups: Groups, text: str, key: str, value: Any) -> tuple[dict[Method, Method], list[Method]]:
    """Return the baseline of each method that has one, and the methods that have none."""
    values = {m: [_value(cell, key) for cell in groups.of(m).values()] for m in groups.methods}
    those = [method for method, found in values.items() if any(_is(one, value) for one in found)]
    if not those:
        known = ", ".join(sorted({one for found in values.values() for one in found} - {UNUSED}))
        raise ConfigError(f"--baseline {text}: no group has it. The groups have: {known}.")
    shown = _told_apart(groups, key)
    partners, alone = {}, []
    for method in groups.methods:
        if method in those:
            continue
        best = _closest(groups, method, those, shown, _may_differ(key))
        if best is not None:
            partners[method] = best
        elif set(values[method]) != {UNUSED}:
            # Nobody expects the true reward beside a teacher.
            alone.append(method)
    if not partners and not alone:
        raise ConfigError(
            f"--baseline {text}: no group differs from it. Give a setting that differs between groups, or leave "
            "--baseline out."
        )
    return partners, alone


def _told_apart(groups: Groups, key: str) -> list[str]:
    """Return the settings that tell groups apart where the baseline's own does not.

    What only ever changes together with it, such as the defaults of a learner with the learner, is none of them.
    """
    cells = list(groups.cells.values())
    keys = {name: None for cell in cells for name in cell.settings}
    own = ["teacher.name", "feedback.sampler"]
    others = sorted((name for name in keys if not name.startswith("env.") and name not in own), key=setting_order)
    finer, _ = finer_settings(
        [(cell.task, _value(cell, key)) for cell in cells],
        [cell.settings for cell in cells],
        [name for name in (*own, *others) if name != key],
    )
    return finer


def _may_differ(key: str) -> re.Pattern[str] | None:
    """Return the settings that belong to the baseline's own: all of a teacher to its name, all feedback to learning."""
    if key == LEARN_REWARD:
        return FEEDBACK_ONLY
    return re.compile(r"teacher\.") if IN_TEACHER_NAME.match(key) else None


def _closest(
    groups: Groups,
    method: Method,
    those: Sequence[Method],
    shown: Sequence[str],
    may_differ: re.Pattern[str] | None,
) -> Method | None:
    """Return the baseline that is the same but for what may differ, or the only one there is."""
    mine = groups.of(method)
    there = [one for one in those if set(groups.of(one)) & set(mine)]
    distances: dict[Method, int] = {}
    for one in there:
        differing = _differing_settings(mine, groups.of(one), shown)
        if all(may_differ is not None and may_differ.match(name) for name in differing):
            distances[one] = len(differing)
    if not distances:
        return there[0] if len(those) == len(there) == 1 else None
    least = min(distances.values())
    best = [one for one, distance in distances.items() if distance == least]
    return best[0] if len(best) == 1 else None


def _differing_settings(left: Mapping[str, Cell], right: Mapping[str, Cell], names: Sequence[str]) -> set[str]:
    return {
        name
        for task in left.keys() & right.keys()
        for name in names
        if left[task].settings.get(name, "null") != right[task].settings.get(name, "null")
    }
