"""One sweep, written once: a base experiment, what varies, how it is searched, and when a trial ends early."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from themis_ray.config import apply_override, dump_yaml, flatten, nest, read_yaml
from themis_ray.errors import ConfigError, lookup
from themis_ray.storage import SCHEMES, is_uri
from themis_ray.tracking import METRICS

__all__ = ["SchedulerSettings", "SweepSettings", "dump_sweep", "is_distribution", "load_sweep"]

DISTRIBUTIONS = ("uniform", "loguniform", "randint", "choice")
FAMILY = "family"
# What is built once, or decides what a run is.
FIXED = ("env.", "resources.", "exploration.", "tracking.", "teacher.", "num_", "seed", "preset", "snapshot", "learn_")
FIXED_WORDS = ("hidden_sizes", "ensemble_size", "name", "num_envs", "replay_capacity", "dataset", "kind", "reference")


class SchedulerSettings(BaseModel):
    """Who may end or change a trial before its last env step."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["none", "asha", "pbt"] = Field(
        "none",
        description="asha ends trials that fall behind; pbt lets the worst go on from the best, with settings changed.",
    )
    grace_num_env_steps: int | None = Field(
        None, ge=1, description="asha: env steps that every trial may take. None: a tenth of the longest trial."
    )
    reduction_factor: float = Field(3.0, gt=1, description="asha: one in so many trials goes on at each rung.")
    interval_num_env_steps: int | None = Field(
        None, ge=1, description="pbt: env steps between two comparisons. None: a tenth of the longest trial."
    )
    quantile: float = Field(0.25, gt=0, le=0.5, description="pbt: share of the population that is replaced.")
    resample_probability: float = Field(
        0.25, ge=0, le=1, description="pbt: how often a setting is drawn anew, not multiplied by 0.8 or 1.2."
    )
    mutations: dict[str, Any] = Field(
        {}, description="pbt: dotted key -> list of values or a distribution, as in `space`."
    )


class SweepSettings(BaseModel):
    """A sweep: `variants` x `space` x `seeds`, each an experiment as `themis train` runs it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: dict[str, Any] = Field(
        {}, description="Settings of every trial, or a file of them, relative to the sweep's own."
    )
    variants: dict[str, dict[str, Any]] = Field(
        {}, description="Name -> settings that go together, such as a task with its budget; one trial for each name."
    )
    space: dict[str, Any] = Field(
        {},
        description="Dotted key -> list of values, or {uniform: [low, high]}, {loguniform: [low, high]}, "
        "{randint: [low, high]} with high left out, {choice: [...]}; env.id also {family: NAME}.",
    )
    search: Literal["grid", "random", "optuna"] = Field(
        "grid",
        description="grid: all combinations of the lists; random: distributions are drawn num_samples times, lists are "
        "crossed; optuna: each trial is chosen by what the ones before reached.",
    )
    num_samples: int = Field(10, ge=1, description="random, optuna: how many settings are drawn; random: no two alike.")
    search_seed: int = Field(0, ge=0, description="random, optuna, pbt: what is drawn depends on it and nothing else.")
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="Seeds of each setting; or a number, 3 for 0, 1, 2.")
    true_reward: bool = Field(
        False,
        description="Also run each task and seed with learn_reward=false, once for all trials that differ in labels "
        "only: what a report scales returns by.",
    )
    scheduler: SchedulerSettings = Field(SchedulerSettings(), description="Who ends or changes trials early.")
    metric: str = Field(
        "true_return_mean", description="What schedulers and optuna look at; a column of metrics.jsonl."
    )
    mode: Literal["max", "min"] = Field("max", description="Whether more of the metric is better.")
    stop: dict[str, float] = Field(
        {},
        description="Column of metrics.jsonl -> value at which a trial ends: as large, or with mode=min as small, but "
        "for what only grows, such as wall_s.",
    )
    max_concurrent: int | None = Field(None, ge=1, description="Most trials at a time. None: as many as there is room.")
    max_failures: int = Field(2, ge=0, description="How often a trial that failed goes on from its last checkpoint.")
    storage_path: str | None = Field(
        None,
        description="s3://..., gs://... or file:///... that every machine reaches: run folders are kept in it. None: "
        "in the sweep's own folder.",
    )
    share_pretrain: bool = Field(
        False, description="Trials that differ in labels only start from one snapshot of unsupervised exploration."
    )

    @model_validator(mode="before")
    @classmethod
    def _count_seeds(cls, values: Any) -> Any:
        if isinstance(values, dict) and type(values.get("seeds")) is int:
            return {**values, "seeds": tuple(range(values["seeds"]))}
        return values

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._check_keys()
        lookup("metric", self.metric, METRICS)
        for name in self.stop:
            lookup("metric", name, METRICS)
        for place, space in (("space", self.space), ("scheduler.mutations", self.scheduler.mutations)):
            for key, choices in space.items():
                _check_choices(place, key, choices)
        self._check_search()
        self._check_scheduler()
        if len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds={list(self.seeds)} names a seed twice. Give each once.")
        if self.storage_path is not None and not is_uri(self.storage_path):
            raise ConfigError(f"storage_path={self.storage_path} is not allowed (no scheme). Give {SCHEMES}.")
        return self

    def varied(self) -> Iterator[tuple[str, str]]:
        """Yield each dotted key that trials have for themselves, with the setting of the sweep that says so."""
        yield from (("variants", key) for given in self.variants.values() for key in flatten(given))
        yield from (("space", key) for key in self.space)
        yield from (("scheduler.mutations", key) for key in self.scheduler.mutations)

    def _check_keys(self) -> None:
        """Refuse what one part of the sweep says and another takes back."""
        if "seed" in {*self.base, *(key for _, key in self.varied())}:
            raise ConfigError("seed was given, but a sweep gives its trials their seeds. Write seeds=[0, 1, 2].")
        for key in self.space:
            for place, other in self.varied():
                if place != "space" and _is_about(key, other):
                    raise ConfigError(f"{key} is in space and in {place}. Leave it out of one of them.")

    def _check_search(self) -> None:
        drawn = [key for key, choices in self.space.items() if is_distribution(choices)]
        if self.search == "grid" and drawn:
            raise ConfigError(
                f"space.{drawn[0]} is a distribution, but search=grid takes lists. Use search=random or search=optuna."
            )
        if self.search == "random" and not drawn:
            raise ConfigError("search=random was given, but space holds no distribution to draw from. Use search=grid.")
        if self.search != "optuna":
            return
        if not self.space:
            raise ConfigError("search=optuna was given, but space is empty. Name what is to be searched.")
        if self.variants or len(self.seeds) > 1 or "env.id" in self.space:
            raise ConfigError(
                "search=optuna compares the trials of one task and one seed. Leave out variants and env.id, give one "
                "seed, and run what it finds with several seeds."
            )
        if self.share_pretrain or self.true_reward or self.scheduler.kind == "pbt":
            raise ConfigError(
                "search=optuna goes with none of share_pretrain, true_reward and scheduler.kind=pbt. Leave them out."
            )

    def _check_scheduler(self) -> None:
        scheduler = self.scheduler
        if scheduler.kind == "pbt" and not scheduler.mutations:
            raise ConfigError(
                "scheduler.kind=pbt was given without scheduler.mutations. Name what may change, for example "
                "scheduler.mutations={reward.learning_rate: {loguniform: [1e-4, 1e-3]}}."
            )
        if scheduler.kind != "pbt" and scheduler.mutations:
            raise ConfigError(
                f"scheduler.mutations was given, but scheduler.kind={scheduler.kind} changes nothing. Use pbt."
            )
        if scheduler.kind == "pbt" and self.true_reward:
            raise ConfigError("scheduler.kind=pbt goes with one kind of trials. Leave true_reward out.")
        for key in scheduler.mutations:
            if _is_fixed(key):
                raise ConfigError(
                    f"scheduler.mutations.{key} was given, but it cannot change while a run goes on. Settings of the "
                    "fit and step sizes can, for example reward.learning_rate."
                )
        if scheduler.kind == "pbt":
            for place, key in self.varied():
                if _is_fixed(key):
                    raise ConfigError(
                        f"{place} varies {key}, but scheduler.kind=pbt lets one trial go on from another, which has to "
                        "have the same. Run a sweep for each, or use scheduler.kind=asha."
                    )


def _is_fixed(key: str) -> bool:
    """Tell whether a setting is built once, or decides what a run is."""
    return key.startswith(FIXED) or key.rpartition(".")[2] in FIXED_WORDS


def _is_about(key: str, other: str) -> bool:
    """Tell whether two dotted keys name the same setting, or one a group that holds the other."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def is_distribution(choices: Any) -> bool:
    """Tell whether a value of `space` is to be drawn from; lists and families are crossed."""
    return isinstance(choices, Mapping) and FAMILY not in choices


def _check_choices(place: str, key: str, choices: Any) -> None:
    """Refuse what is neither a list nor one known distribution with sensible ends."""
    allowed = "a list, " + ", ".join(f"{{{name}: [...]}}" for name in DISTRIBUTIONS)
    try:
        json.dumps(choices)
    except TypeError:
        raise ConfigError(f"{place}.{key}={choices!r} is not allowed. Give numbers, words, lists of them.") from None
    if isinstance(choices, list):
        if not choices:
            raise ConfigError(f"{place}.{key} is an empty list. Give at least one value.")
        return
    if not isinstance(choices, Mapping) or len(choices) != 1:
        raise ConfigError(f"{place}.{key}={choices!r} is not allowed. Give {allowed}.")
    ((name, values),) = choices.items()
    if name == FAMILY and key == "env.id" and isinstance(values, str):
        return
    if name not in DISTRIBUTIONS or not isinstance(values, list) or not values:
        raise ConfigError(f"{place}.{key}={dict(choices)!r} is not allowed. Give {allowed}.")
    if name == "choice":
        return
    kinds = int if name == "randint" else int | float
    is_number = all(
        isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value) for value in values
    )
    if not is_number or len(values) != 2 or values[0] >= values[1] or (name == "loguniform" and values[0] <= 0):
        what = {"randint": "[low, high], whole numbers", "loguniform": "[low, high] above 0"}.get(name, "[low, high]")
        raise ConfigError(f"{place}.{key}: {name} takes {what} with low below high, not {values}.")


# ---------------------------------------------------------------- files


def load_sweep(path: Path, overrides: Sequence[str] = ()) -> SweepSettings:
    """Read a sweep's YAML file and apply `key=value` overrides.

    A key that begins with a setting of sweeps, such as `seeds` or `scheduler.kind`, changes the sweep; every other key,
    also with `base.` before it, changes the base experiment. `space.KEY=...` takes the whole dotted KEY.

    Raises:
        ConfigError: The file cannot be read, a key is unknown, a value not allowed, or a base setting varies anyway.
    """
    values = read_yaml(path)
    base = values.get("base", {})
    if isinstance(base, str):
        base = read_yaml(path.parent / base)
    if not isinstance(base, dict):
        raise ConfigError(
            f"base={base!r} is not allowed. Give settings of an experiment, or the name of a file of them."
        )
    values["base"] = nest(base)
    of_base = [
        override.removeprefix("base.")
        for override in overrides
        if override.startswith("base.") or not _override(values, override)
    ]
    try:
        settings = SweepSettings.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_explain(error)}") from None
    for override in of_base:
        key = override.partition("=")[0]
        for place, varied in settings.varied():
            if _is_about(key, varied):
                mend = f"Give space.{varied}=[...]" if place == "space" else f"Edit {place} in the file"
                raise ConfigError(f"{override!r}: {varied} varies in this sweep ({place}). {mend}.")
        apply_override(values["base"], override)
    return SweepSettings.model_validate(values) if of_base else settings


def _override(values: dict[str, Any], override: str) -> bool:
    """Apply an override that is about the sweep itself; tell whether it is."""
    key = override.partition("=")[0]
    group, _, rest = key.partition(".")
    if group == "space" and rest:
        holder: dict[str, Any] = {}
        apply_override(holder, f"value={override.partition('=')[2]}")
        space = values.setdefault("space", {})
        if isinstance(space, dict):
            space[rest] = holder["value"]
    elif group in SweepSettings.model_fields:
        apply_override(values, override)
    else:
        return False
    return True


def dump_sweep(settings: SweepSettings) -> str:
    """Return the settings as YAML that `load_sweep` reads back to the same."""
    return dump_yaml(settings.model_dump())


def _explain(error: ValidationError) -> str:
    """Say in one line what the first complaint is about, what was given and what is allowed."""
    first = error.errors()[0]
    location = [str(part) for part in first["loc"]]
    key = ".".join(location)
    if first["type"] == "extra_forbidden":
        model = SchedulerSettings if location[0] == "scheduler" else SweepSettings
        close = difflib.get_close_matches(location[-1], model.model_fields, n=1)
        suggestion = f" Did you mean {close[0]!r}?" if close else ""
        return f"unknown setting {key!r}.{suggestion} Known here: {', '.join(model.model_fields)}."
    message = first["msg"][0].lower() + first["msg"][1:]
    return f"{key}={first['input']!r} is not allowed: {message}."
