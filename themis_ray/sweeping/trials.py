"""From a sweep's settings to named experiments, each resolved as `themis train` resolves it."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from themis_ray.config import ExperimentConfig, TrackingSettings, flatten, make_config
from themis_ray.envs import list_envs
from themis_ray.errors import ConfigError, ThemisError
from themis_ray.experiment import resolve_new
from themis_ray.randomness import RandomStreams
from themis_ray.rllib import build_algorithm_config
from themis_ray.sweeping.settings import FAMILY, SweepSettings, is_distribution
from themis_ray.tracking import check_tracking

__all__ = ["MAX_REFUSED", "Trial", "draw", "examples", "expand", "make_trial", "name_of_env"]

ENV_ID = "env.id"
TRUE_REWARD = "true-reward"
LABELS_ONLY = ("teacher.", "feedback.", "reward.", "preset")
NUM_DIGITS = 3
# Draws for each setting that is wanted, until no more are likely to be new.
MAX_DRAWS = 100
# How many values in a row may make no experiment before the space is to blame.
MAX_REFUSED = 50


@dataclass(frozen=True)
class Trial:
    """One experiment of a sweep.

    Args:
        name: Readable and unique, `TASK/VALUE/.../sSEED`; also its folder below the sweep's.
        config: Resolved.
        bundles: What its placement group reserves: the trial's own process, then every actor that it starts.
        mutable: With pbt, the settings that may change and their first values.
    """

    name: str
    config: ExperimentConfig
    bundles: tuple[Mapping[str, float], ...]
    mutable: Mapping[str, Any]

    @property
    def reserved(self) -> Mapping[str, float]:
        """What it reserves of each kind of resource, CPU and GPU among them."""
        kinds = {kind for bundle in self.bundles for kind in bundle}
        return {kind: sum(bundle.get(kind, 0.0) for bundle in self.bundles) for kind in sorted(kinds)}

    @property
    def num_cpus(self) -> float:
        """CPUs that it reserves."""
        return self.reserved.get("CPU", 0.0)

    @property
    def num_gpus(self) -> float:
        """GPUs that it reserves."""
        return self.reserved.get("GPU", 0.0)


def expand(settings: SweepSettings) -> list[Trial]:
    """Return every trial of a grid or random search, in order: true reward, then variants, the space, and seeds.

    Optuna chooses its settings one after the other; for it, `make_trial` makes each, and `examples` shows some.

    Raises:
        ThemisError: An experiment is not allowed; the message names it. Or two trials would have one name, or the
            scheduler would compare what cannot be compared.
    """
    points = list(_points(settings))
    variants = {name: flatten(given) for name, given in (settings.variants or {"": {}}).items()}
    trials = list(_paid_true_reward(settings, variants, points)) if settings.true_reward else []
    for variant, given in variants.items():
        for point in points:
            for seed in settings.seeds:
                name = _name(settings, variant, point, seed)
                trials.append(make_trial(settings, name, {**given, **point}, seed, number=len(trials)))
    counts = Counter(trial.name for trial in trials)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise ConfigError(f"two trials would be called {twice[0]}. Take values that occur twice out of space.")
    _check_comparable(settings, trials)
    return trials


def examples(settings: SweepSettings) -> list[Trial]:
    """Return `num_samples` trials like those that Optuna begins with; values that make no experiment are left out.

    Raises:
        ThemisError: None of many makes one; the message is about the first. Or the scheduler would compare what cannot
            be compared.
    """
    space = {key: {"choice": value} if isinstance(value, list) else value for key, value in settings.space.items()}
    num_draws = max(settings.num_samples, MAX_REFUSED)
    trials: list[Trial] = []
    refusal: ThemisError | None = None
    for point in _points(settings.model_copy(update={"space": space, "num_samples": num_draws})):
        try:
            trials.append(make_trial(settings, _name(settings, "", point, settings.seeds[0]), point, settings.seeds[0]))
        except ThemisError as error:
            refusal = refusal or error
        if len(trials) == settings.num_samples:
            break
    if refusal is not None and not trials:
        raise refusal
    _check_comparable(settings, trials)
    return trials


def _check_comparable(settings: SweepSettings, trials: Sequence[Trial]) -> None:
    """Refuse a scheduler that would compare returns of different tasks, or none at all."""
    scheduler = settings.scheduler
    if scheduler.kind == "none":
        return
    env_ids = sorted({trial.config.env.id for trial in trials})
    if len(env_ids) > 1:
        raise ConfigError(
            f"scheduler.kind={scheduler.kind} compares returns, but those of {env_ids[0]} and {env_ids[1]} have no "
            "common scale. Run a sweep for each environment."
        )
    longest = max(trial.config.num_env_steps for trial in trials)
    if scheduler.kind == "asha" and (scheduler.grace_num_env_steps or 0) >= longest:
        raise ConfigError(
            f"scheduler.grace_num_env_steps={scheduler.grace_num_env_steps} was given, but no trial takes more than "
            f"{longest} env steps, so that none would ever be ended. Give fewer."
        )


def _paid_true_reward(
    settings: SweepSettings, variants: Mapping[str, Mapping[str, Any]], points: Sequence[Mapping[str, Any]]
) -> Iterator[Trial]:
    """Yield one trial with the true reward for all that differ in nothing that concerns the learner."""
    learners: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {}
    for variant, given in variants.items():
        of_learner = _without_labels(given)
        for point in points:
            kept = _without_labels(point)
            key = json.dumps({**of_learner, **kept}, sort_keys=True, default=str)
            learners.setdefault(key, (variant if of_learner else "", of_learner, kept))
    for variant, given, point in learners.values():
        for seed in settings.seeds:
            name = _name(settings, variant, point, seed, TRUE_REWARD)
            yield make_trial(settings, name, {**given, **point, "learn_reward": False}, seed)


def _without_labels(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if not f"{key}.".startswith(LABELS_ONLY)}


def make_trial(settings: SweepSettings, name: str, given: Mapping[str, Any], seed: int, number: int = 0) -> Trial:
    """Return the experiment of the base settings with `given` over them; keys may be dotted.

    Args:
        settings: The sweep.
        name: Of the trial.
        given: What this trial has for itself.
        seed: Of the experiment.
        number: Which of the sweep's trials it is; decides where its mutable settings start.

    Raises:
        ThemisError: The experiment is not allowed.
    """
    rng = RandomStreams(settings.search_seed + number)["population"]
    mutable = {key: draw(choices, rng) for key, choices in settings.scheduler.mutations.items()}
    values = {**settings.base, **flatten(given), **mutable, "seed": seed}
    try:
        config, _ = resolve_new(make_config(values))
        if config.tracking.trackers:
            check_tracking(config.tracking)
            config = config.model_copy(update={"tracking": _named(config.tracking, name)})
        return Trial(name, config, bundles_of(config), mutable)
    except ThemisError as error:
        raise type(error)(f"trial {name}: {error}") from None


def _named(tracking: TrackingSettings, name: str) -> TrackingSettings:
    """Return what trackers call a trial, wherever its folder is: its name, in a group with its other seeds."""
    update = {"run_name": name, "wandb_group": name.rpartition("/")[0] or None}
    return tracking.model_copy(update={key: value for key, value in update.items() if getattr(tracking, key) is None})


def bundles_of(config: ExperimentConfig) -> tuple[Mapping[str, float], ...]:
    """Return what RLlib and the reward actor ask of a placement group; without room there a child would hang."""
    algorithm = build_algorithm_config(config)
    request = algorithm.algo_class.default_resource_request(algorithm.to_dict())
    return tuple(dict(bundle) for bundle in request.bundles)


# ---------------------------------------------------------------- points of the space


def _points(settings: SweepSettings) -> Iterator[dict[str, Any]]:
    """Yield what each setting of the space is, lists crossed, with every draw of the distributions."""
    crossed = {key: _listed(choices) for key, choices in settings.space.items() if not is_distribution(choices)}
    drawn = {key: choices for key, choices in settings.space.items() if is_distribution(choices)}
    rng = RandomStreams(settings.search_seed)["search"]
    draws = _draw_distinct(drawn, settings.num_samples, rng)
    for values in itertools.product(*crossed.values()):
        point = dict(zip(crossed, values, strict=True))
        for sample in draws or [{}]:
            both = {**point, **sample}
            yield {key: both[key] for key in settings.space}


def _draw_distinct(drawn: Mapping[str, Any], num_samples: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Return so many draws of all distributions, no two alike; fewer where there are no more."""
    samples: dict[str, dict[str, Any]] = {}
    for _ in range(MAX_DRAWS * num_samples):
        if not drawn or len(samples) == num_samples:
            break
        sample = {key: draw(choices, rng) for key, choices in drawn.items()}
        samples.setdefault(json.dumps(sample), sample)
    return list(samples.values())


def _listed(choices: Any) -> Sequence[Any]:
    return list_envs(choices[FAMILY]) if isinstance(choices, Mapping) else list(choices)


def draw(choices: Any, rng: np.random.Generator) -> Any:
    """Return one value of a list or distribution; real numbers with few digits, so that a name can hold them.

    They have three, and more where the range begins to differ later: 0.99 to 0.9999 is drawn with five.
    """
    if not isinstance(choices, Mapping):
        return choices[int(rng.integers(len(choices)))]
    ((kind, values),) = choices.items()
    if kind == "choice":
        return values[int(rng.integers(len(values)))]
    low, high = values
    if kind == "randint":
        return int(rng.integers(low, high))
    value = rng.uniform(low, high) if kind == "uniform" else math.exp(rng.uniform(math.log(low), math.log(high)))
    num_shared = max(0, math.floor(math.log10(max(abs(low), abs(high)) / (high - low))))
    rounded = float(f"{value:.{NUM_DIGITS + num_shared}g}")
    return float(min(max(rounded, low), high))


# ---------------------------------------------------------------- names


def _name(settings: SweepSettings, variant: str, point: Mapping[str, Any], seed: int, word: str = "") -> str:
    parts = [slug(variant)] if variant else []
    env_id = point.get(ENV_ID, None if variant else _base_env_id(settings))
    if env_id is not None:
        short = name_of_env(str(env_id))
        is_ambiguous = sum(name_of_env(other) == short for other in _env_ids(settings)) > 1
        parts.append(slug(env_id) if is_ambiguous else short)
    return "/".join([*parts, *([word] if word else []), *name_point(point), f"s{seed}"])


def name_point(point: Mapping[str, Any]) -> list[str]:
    """Return one part of a name for each setting but env.id: words stand alone, other values after their key."""
    last = Counter(key.rpartition(".")[2] for key in point)
    parts = []
    for key, value in point.items():
        if key == ENV_ID:
            continue
        short = key.rpartition(".")[2]
        label = short if last[short] == 1 else key
        parts.append(slug(value) if isinstance(value, str) else f"{label}-{_word(value)}")
    return parts


def _base_env_id(settings: SweepSettings) -> str | None:
    env_id = flatten(settings.base).get(ENV_ID)
    return None if env_id is None else str(env_id)


def _env_ids(settings: SweepSettings) -> Sequence[str]:
    choices = settings.space.get(ENV_ID)
    return [] if choices is None or is_distribution(choices) else [str(env_id) for env_id in _listed(choices)]


def name_of_env(env_id: str) -> str:
    """Return an environment's id without namespace and version: ALE/Pong-v5 is pong."""
    return slug(re.sub(r"-v\d+$", "", env_id.rpartition("/")[2]))


def slug(text: object) -> str:
    """Return text as a lower-case part of a path."""
    return re.sub(r"[^\w.+-]+", "-", str(text)).strip("-.").lower() or "none"


def _word(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "x".join(_word(item) for item in value) or "none"
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else f"{value:.12g}"
    return slug(json.dumps(value)) if isinstance(value, bool | Mapping) else slug(value)
