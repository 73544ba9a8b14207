"""The settings of runs as text, so that they can be compared, and which of them tell runs apart."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from pydantic import ValidationError

from themis_ray.config import flatten, load_config, nest
from themis_ray.envs import EnvConfig, get_env_spec, resolve_env
from themis_ray.errors import ThemisError
from themis_ray.loop_settings import LEARNER_DEFAULTS
from themis_ray.reporting.runs import Run

__all__ = [
    "BOOKKEEPING",
    "FEEDBACK_ONLY",
    "IN_TEACHER_NAME",
    "UNUSED",
    "comparable_settings",
    "differing_settings",
    "fill_env_choices",
    "finer_settings",
    "learner_settings",
    "setting_order",
    "short_key",
    "short_values",
    "teacher_names",
    "text_of",
]

# In place of a setting that did nothing in a run, such as the teacher's where stored answers were learned from.
UNUSED = "(unused)"
# What a run cannot tell itself apart by: where it ran, what it kept, how it reached its teacher.
BOOKKEEPING = re.compile(
    r"seed$|learn_reward$|tracking\.|resources\.|num_checkpoints_kept$|checkpoint_interval$"
    r"|teacher\.(url|api_key_env|token_env|timeout_s|max_retries|max_concurrency|poll_s|wait_timeout_s)$"
)
# What the name of a teacher says already.
IN_TEACHER_NAME = re.compile(r"teacher\.(kind|name|function|model|study)$|feedback\.dataset$")
FEEDBACK_ONLY = re.compile(r"teacher\.|feedback\.|reward\.|preset$")
# What pictures and tables have room for.
MAX_VALUE_LENGTH = 40
ONLY_SEED = re.compile(r"s(eed)?[-_]?\*")
# What an environment decides where nothing is said.
ENV_CHOICES = ("env.fixed_horizon", "env.horizon", "env.frame_stack")
PATHS = ("snapshot", "algorithm.reference", "feedback.demonstrations", "feedback.dataset")
ORDER = ("teacher.", "preset", "feedback.", "reward.", "algorithm.", "")


def comparable_settings(run: Run, teacher: str) -> dict[str, str]:
    """Return the settings that may tell runs apart, as text; what the run's version did not know has its default."""
    learner = LEARNER_DEFAULTS.get(str(run.settings.get("algorithm.name")), {})
    defaults = {**_defaults(), **{f"algorithm.{name}": value for name, value in learner.items()}}
    settings = {key: _plain(value) for key, value in defaults.items()} | {
        key: _plain(value) for key, value in run.settings.items()
    }
    for key in PATHS:
        if settings.get(key) is not None:
            settings[key] = _without_seed(str(settings[key]), run.seed)
    if "/.snapshots/" in str(settings.get("snapshot")):
        # Exploration that trials of a sweep share, in place of the same of their own.
        settings["snapshot"] = None
    if not run.asks:
        of_answers = re.compile(r"teacher\.|feedback\.sampler$") if run.learns_reward else FEEDBACK_ONLY
        settings |= {key: UNUSED for key in settings if of_answers.match(key)}
    if run.learns_reward:
        settings["teacher.name"] = teacher
    return {key: text_of(value) for key, value in settings.items() if not BOOKKEEPING.match(key)}


def fill_env_choices(table: Mapping[Run, Mapping[str, str]]) -> dict[Run, Mapping[str, str]]:
    """Return the settings of runs with what the environment decides, where it was given in some of its runs only.

    Where the environment cannot be made here, they stay as they are.
    """
    filled = dict(table)
    for env_id in {run.env_id for run in table}:
        same = [run for run in table if run.env_id == env_id]
        given = [{table[run].get(key, "null") for run in same} for key in ENV_CHOICES]
        if any(len(values) > 1 and "null" in values for values in given):
            filled |= {run: {**table[run], **_env_choices(run)} for run in same}
    return filled


def _env_choices(run: Run) -> dict[str, str]:
    given = nest({key: value for key, value in run.settings.items() if key.startswith("env.")})["env"]
    try:
        chosen = _resolved_env(EnvConfig.model_validate(given).model_dump_json())
    except (ThemisError, ValidationError):
        return {}
    return {key: text_of(getattr(chosen, key.removeprefix("env."))) for key in ENV_CHOICES}


@functools.cache
def _resolved_env(given: str) -> EnvConfig:
    config = EnvConfig.model_validate_json(given)
    return resolve_env(config, get_env_spec(config))


def _without_seed(path: str, seed: int) -> str:
    """Return a path with * for the run's seed: every seed may start from a snapshot or from answers of its own."""
    return re.sub(rf"(?<![a-z0-9])s(eed)?([-_]?){seed}(?!\d)", r"s\1\2*", path)


def teacher_names(runs: Iterable[Run]) -> dict[Run, str]:
    """Return who taught each run; stored answers are named by as much of their path's end as tells them apart."""
    answers = {
        run: _without_seed(str(run.settings["feedback.dataset"]), run.seed)
        for run in runs
        if run.learns_reward and not run.asks
    }
    ends = {path: _own_end(path, set(answers.values())) for path in answers.values()}
    return {run: f"answers of {ends[answers[run]]}" if run in answers else run.teacher for run in runs}


def _own_end(path: str, paths: Iterable[str]) -> str:
    """Return the shortest end of a path that no other path has and that is more than a seed."""
    parts = PurePosixPath(path).parts
    others = [PurePosixPath(other).parts for other in paths if other != path]
    for number in range(1, len(parts)):
        end = parts[-number:]
        is_more = any(not ONLY_SEED.fullmatch(part) for part in end)
        if is_more and all(other[-number:] != end for other in others):
            return "/".join(end)
    return path


@functools.cache
def _defaults() -> dict[str, Any]:
    config = load_config(None, ["env.id=none"])
    return flatten(config.model_dump(mode="json"))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def text_of(value: Any) -> str:
    """Return a value of a setting as one would write it."""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


def setting_order(key: str) -> int:
    """Return the place of a setting among those that tell methods apart."""
    return next(place for place, prefix in enumerate(ORDER) if key.startswith(prefix))


def finer_settings(
    marks: Sequence[tuple[str, ...]], settings: Sequence[Mapping[str, str]], candidates: Iterable[str]
) -> tuple[list[str], list[str]]:
    """Return the candidates that tell apart what the marks and those before them do not, and the others.

    Args:
        marks: What tells things apart already, for each of them.
        settings: Of each of them.
        candidates: Keys of settings, in the order in which they are tried.
    """
    finer, silent = [], []
    for key in candidates:
        parts = [(*mark, one.get(key, "null")) for mark, one in zip(marks, settings, strict=True)]
        if len(set(parts)) > len(set(marks)):
            marks = parts
            finer.append(key)
        else:
            silent.append(key)
    return finer, silent


def short_key(key: str, settings: Iterable[str]) -> str:
    """Return the last word of a setting's key where it says enough, else the key."""
    word = key.rpartition(".")[2]
    return key if any(other != key and other.rpartition(".")[2] == word for other in settings) else word


def short_values(values: Iterable[str]) -> dict[str, str]:
    """Return what each value is called in a name: itself, or its two ends, numbered where another is called so."""
    called: dict[str, str] = {}
    for value in sorted(set(values), key=lambda value: (len(value) > MAX_VALUE_LENGTH, value)):
        # Paths differ at their ends, prompts anywhere.
        ends = f"{value[: MAX_VALUE_LENGTH // 2]}…{value[-MAX_VALUE_LENGTH // 2 + 1 :]}"
        name = short = value if len(value) <= MAX_VALUE_LENGTH else ends
        number = 1
        while name in called.values():
            number += 1
            name = f"{short} ({number})"
        called[value] = name
    return called


def learner_settings(settings: Mapping[str, str]) -> dict[str, str]:
    """Return the settings that concern a run that is paid the true reward, too."""
    return {key: value for key, value in settings.items() if not FEEDBACK_ONLY.match(key)}


def differing_settings(left: Mapping[str, str], right: Mapping[str, str]) -> list[str]:
    """Return the keys of the settings that differ, in the order of the alphabet."""
    keys = sorted({*left, *right})
    return [key for key in keys if left.get(key, "null") != right.get(key, "null")]
