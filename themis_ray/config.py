"""One experiment, written once: YAML file plus dotted overrides, checked, and resolved against the environment."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from themis_ray.envs import EnvSpec, get_env_spec
from themis_ray.errors import ConfigError, lookup
from themis_ray.feedback import check_teacher
from themis_ray.loop_settings import AlgorithmSettings, LoopSettings, check_cpl, required, resolve_algorithm
from themis_ray.reward import DEFAULT_FROM_SCRATCH, DEFAULT_LABEL_MARGIN, DEFAULT_NUM_EPOCHS, RewardConfig

__all__ = [
    "PRESETS",
    "PRESET_DESCRIPTIONS",
    "ExperimentConfig",
    "TrackingSettings",
    "apply_override",
    "dump_config",
    "dump_yaml",
    "flatten",
    "load_config",
    "make_config",
    "nest",
    "read_yaml",
    "resolve",
]

DEFAULT_SEGMENT_LENGTH = {"vector": 50, "grid": 100, "image": 25, "mixed": 25}
MAX_SEED_STEPS = 1000
MAX_EXPLORATION_STEPS = 9000
MIN_PPO_ITERATIONS = 10
IMAGE_PPO_LEARNING_RATE = 2.5e-4
# An address with a user before its host, or with a password or token after ?.
_WITH_PASSWORD = re.compile(r"(?<!/)//(?!/)[^/\s]*@|[?&][^=&]*(password|token)[^=&]*=", re.IGNORECASE)


class _Loader(yaml.SafeLoader):
    """Reads 1e-4 and 1e6 as numbers, as YAML 1.2 does and YAML 1.1 does not; quoted text stays text."""


class _Dumper(yaml.SafeDumper):
    """Quotes text that `_Loader` would read as a number."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )


class TrackingSettings(BaseModel):
    """Where metrics go besides metrics.jsonl."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tensorboard: bool = Field(False, description="Write event files into the run folder.")
    wandb: bool = Field(False, description="Log to Weights & Biases; offline when there is no key.")
    mlflow: bool = Field(False, description="Log to MLflow; needs `pip install 'themis-ray[mlflow]'`.")
    run_name: str | None = Field(
        None, description="Name of the run in trackers. None: its path below its sweep, or its folder's name."
    )
    log_clips: bool = Field(True, description="A run with a tracker ends with a clip of its trained policy.")
    wandb_project: str = Field("themis", description="W&B project. WANDB_ENTITY names whose it is.")
    wandb_group: str | None = Field(
        None, description="Group of runs that are compared. None: the path below the sweep without the seed."
    )
    wandb_tags: tuple[str, ...] = Field((), description="Tags besides environment, learner, teacher, sampler, sweep.")
    mlflow_tracking_uri: str | None = Field(
        None, description="MLflow's address. None: MLFLOW_TRACKING_URI, or a SQLite file in the run folder."
    )
    mlflow_experiment: str = Field("themis", description="MLflow experiment.")

    @field_validator("mlflow_tracking_uri")
    @classmethod
    def _refuse_password(cls, uri: str | None) -> str | None:
        # The address is not shown: it holds what is not to be seen.
        if uri is not None and _WITH_PASSWORD.search(uri):
            raise ConfigError(
                "tracking.mlflow_tracking_uri holds a user name or a password, and settings are stored with every run. "
                "Put the address into the environment variable MLFLOW_TRACKING_URI and leave this setting out."
            )
        return uri

    @property
    def trackers(self) -> tuple[str, ...]:
        """Names of the trackers that are on."""
        return tuple(name for name in ("tensorboard", "wandb", "mlflow") if getattr(self, name))


PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "default": {},
    "robust": {
        "feedback": {"sampler": "uniform"},
        "reward": {"ensemble_size": 7, "num_epochs": 20, "from_scratch": True, "weight_decay": 1.0},
    },
}
"""Settings by the name of the preset; one that is given wins over its preset."""

PRESET_DESCRIPTIONS = {
    "default": "the default of every setting",
    "robust": "for teachers who are often wrong: seven members, short fits with weight decay, uniform queries",
}


class ExperimentConfig(LoopSettings):
    """Everything that decides what a run does."""

    preset: str = Field(
        "default", description="Values for settings that are not given: default, or robust for wrong answers."
    )
    num_evaluation_episodes: int = Field(10, ge=1, description="Episodes of the final evaluation, on fresh seeds.")
    checkpoint_interval: int | None = Field(
        None, ge=1, description="Env steps between checkpoints. None: a tenth of the run."
    )
    snapshot: str | None = Field(
        None, description="Folder that `themis pretrain` wrote, from which the run starts; `--from` sets it."
    )
    num_checkpoints_kept: int = Field(2, ge=1, description="Newest checkpoints that stay in the run folder.")
    tracking: TrackingSettings = Field(TrackingSettings(), description="Where metrics go.")

    @model_validator(mode="before")
    @classmethod
    def _fill_in_preset(cls, values: Any) -> Any:
        """Put the preset's values where none is given.

        Raises:
            UnknownNameError: There is no such preset.
        """
        if not isinstance(values, dict) or not isinstance(values.get("preset", "default"), str):
            return values
        filled = dict(values)
        for group, preset in lookup("preset", values.get("preset", "default"), PRESETS).items():
            given = filled.get(group, {})
            if isinstance(given, dict):
                filled[group] = {**preset, **given}
        return filled


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Read a YAML file, apply `key=value` overrides with dotted keys, and check the result.

    Raises:
        ConfigError: The file cannot be read, an override is no `key=value`, a key is unknown or a value not allowed.
    """
    values: dict[str, Any] = {}
    if path is not None:
        values = read_yaml(path)
    for override in overrides:
        apply_override(values, override)
    return _check(values)


def make_config(values: Mapping[str, Any]) -> ExperimentConfig:
    """Check settings, some of whose keys may be dotted; of two about the same, the later one counts.

    Raises:
        ConfigError: A key is unknown or a value not allowed.
    """
    return _check(nest(values))


def _check(values: dict[str, Any]) -> ExperimentConfig:
    try:
        return ExperimentConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None


def dump_config(config: ExperimentConfig) -> str:
    """Return the configuration as YAML that `load_config` reads back to the same configuration."""
    return dump_yaml(config.model_dump(mode="json"))


def dump_yaml(values: Mapping[str, Any]) -> str:
    """Return YAML that `read_yaml` reads back to the same values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False)


def resolve(config: ExperimentConfig) -> tuple[ExperimentConfig, EnvSpec]:
    """Fill in everything that depends on the environment, and refuse what does not fit it.

    Returns:
        The configuration with no choice left open, and what the environment is like.

    Raises:
        ConfigError: The learner does not fit the actions, a segment is longer than an episode, or settings do not go
            together.
        UnknownNameError: There is no such environment.
    """
    spec = get_env_spec(config.env)
    if config.learn_reward:
        check_teacher(config.teacher, config.env)
    if config.feedback.kind != "preference" and config.teacher.kind != "synthetic":
        raise ConfigError(
            f"feedback.kind={config.feedback.kind} was given, but teacher.kind={config.teacher.kind} compares segments "
            "only. Use feedback.kind=preference or teacher.kind=synthetic."
        )
    if config.reward.reliability_weights and config.teacher.kind != "human":
        raise ConfigError(
            f"reward.reliability_weights=true was given, but teacher.kind={config.teacher.kind} has no annotators to "
            "trust more or less. Leave it out or use teacher.kind=human."
        )
    name = _choose_learner(config.algorithm.name, spec)
    if name == "cpl":
        return _resolve_cpl(config), spec
    if config.feedback.dataset is not None:
        raise ConfigError(
            f"feedback.dataset={config.feedback.dataset} was given, but {name} learns from the answers of its own run. "
            "Leave it out, or use algorithm.name=cpl."
        )
    algorithm = resolve_algorithm(config.algorithm, name)
    if algorithm.reference is not None and config.snapshot is not None:
        raise ConfigError(
            f"algorithm.reference={algorithm.reference} and snapshot={config.snapshot} were given, but a run starts "
            "from one policy. Leave one of them out."
        )
    if algorithm.reference is not None:
        algorithm = algorithm.model_copy(update={"reference": str(Path(algorithm.reference).resolve())})
    exploration = config.exploration
    if name == "ppo":
        if config.exploration.num_seed_steps:
            raise ConfigError(
                f"exploration.num_seed_steps={exploration.num_seed_steps} was given, but ppo takes no random steps. "
                "Leave it out, or use sac or dqn."
            )
        exploration = exploration.model_copy(
            update={"num_seed_steps": 0, "num_env_steps": exploration.num_env_steps or 0}
        )
        algorithm = _fit_batch(config, spec, algorithm)
    else:
        # A policy that is to be refined fills the replay itself; exploration would lead it away.
        share = config.num_env_steps // 20 if algorithm.reference is None else 0
        defaults = {
            "num_seed_steps": min(MAX_SEED_STEPS, share),
            "num_env_steps": min(MAX_EXPLORATION_STEPS, share),
        }
        given = {key: getattr(exploration, key) for key in defaults if getattr(exploration, key) is not None}
        exploration = exploration.model_copy(update={**defaults, **given})
        _check_replay(algorithm, config.resources.num_env_runners)
    num_before = (exploration.num_seed_steps or 0) + (exploration.num_env_steps or 0)
    if num_before >= config.num_env_steps:
        raise ConfigError(
            f"exploration takes {num_before} env steps, but the run has num_env_steps={config.num_env_steps}. "
            "Train longer, or lower exploration.num_seed_steps and exploration.num_env_steps."
        )
    segment_length = _segment_length(config, spec)
    if config.reward.temporal_crop >= segment_length:
        raise ConfigError(
            f"reward.temporal_crop={config.reward.temporal_crop} leaves nothing of segments of {segment_length} steps. "
            f"Give at most {segment_length - 1}."
        )
    demonstrations = config.feedback.demonstrations
    update = {
        "algorithm": algorithm,
        "exploration": exploration,
        "feedback": config.feedback.model_copy(
            update={
                "segment_length": segment_length,
                "demonstrations": demonstrations and str(Path(demonstrations).resolve()),
            }
        ),
        "reward": _resolve_reward(config.reward, spec),
        "checkpoint_interval": config.checkpoint_interval or max(1, config.num_env_steps // 10),
    }
    return config.model_copy(update=update), spec


def _resolve_reward(reward: RewardConfig, spec: EnvSpec) -> RewardConfig:
    kind = spec.observation_kind
    from_scratch = DEFAULT_FROM_SCRATCH[kind] if reward.from_scratch is None else reward.from_scratch
    label_margin = reward.label_margin
    if label_margin is None:  # the bounds of the filter are about hard labels
        label_margin = 0.0 if reward.filter_wrong_labels else DEFAULT_LABEL_MARGIN
    num_epochs = reward.num_epochs or DEFAULT_NUM_EPOCHS[kind]
    update = {"num_epochs": num_epochs, "from_scratch": from_scratch, "label_margin": label_margin}
    return reward.model_copy(update=update)


def _resolve_cpl(config: ExperimentConfig) -> ExperimentConfig:
    """Fill in what learning from stored preferences needs: no budget, no exploration, the dataset's own segments."""
    if config.snapshot is not None:
        raise ConfigError(
            f"snapshot={config.snapshot} was given, but cpl learns from feedback.dataset alone. Leave it out."
        )
    check_cpl(config, config.preset)
    path = str(Path(config.feedback.dataset or "").resolve())
    exploration = {"num_seed_steps": 0, "num_env_steps": 0}
    update = {
        "algorithm": resolve_algorithm(config.algorithm, "cpl"),
        "exploration": config.exploration.model_copy(update=exploration),
        "feedback": config.feedback.model_copy(update={"budget": 0, "dataset": path}),
        "reward": config.reward.model_copy(update={"label_margin": config.reward.label_margin or 0.0}),
        "checkpoint_interval": config.checkpoint_interval or max(1, config.num_env_steps // 10),
    }
    return config.model_copy(update=update)


def _choose_learner(name: str, spec: EnvSpec) -> str:
    is_box = isinstance(spec.action_space, gym.spaces.Box)
    is_discrete = isinstance(spec.action_space, gym.spaces.Discrete)
    if name == "auto":
        return "sac" if is_box else "ppo"
    allowed = ["ppo"] + (["sac"] if is_box or is_discrete else []) + (["dqn"] if is_discrete else []) + ["cpl"]
    if name not in allowed:
        raise ConfigError(
            f"algorithm.name={name} does not fit the actions of {spec.id}, {spec.action_space}. "
            f"These work: {', '.join(allowed)}."
        )
    return name


def _fit_batch(config: ExperimentConfig, spec: EnvSpec, algorithm: AlgorithmSettings) -> AlgorithmSettings:
    """Choose what was left open of PPO's batch: whole episodes where they are short, ten batches in a short run.

    With a fixed horizon an early failure is followed by absorbing steps. A batch of whole episodes holds the same mix
    of both each time; a batch of half episodes would hold next to nothing to learn from every second time.
    """
    given = config.algorithm
    batch_size, num_envs, learning_rate = algorithm.batch_size, algorithm.num_envs, algorithm.learning_rate
    assert batch_size is not None
    assert num_envs is not None
    if given.batch_size is None:
        batch_size = max(num_envs, min(batch_size, config.num_env_steps // MIN_PPO_ITERATIONS))
    if given.num_envs is None and spec.is_fixed_horizon and spec.horizon and spec.horizon * 2 <= batch_size:
        num_envs = min(num_envs, batch_size // spec.horizon)
    if given.batch_size is None and spec.is_fixed_horizon and spec.horizon:
        whole_episodes = num_envs * spec.horizon
        batch_size = (
            max(1, batch_size // whole_episodes) * whole_episodes if whole_episodes <= batch_size else batch_size
        )
    if given.learning_rate is None and spec.observation_kind in ("image", "mixed"):
        learning_rate = IMAGE_PPO_LEARNING_RATE
    return algorithm.model_copy(update={"batch_size": batch_size, "num_envs": num_envs, "learning_rate": learning_rate})


def _check_replay(algorithm: AlgorithmSettings, num_env_runners: int) -> None:
    num_envs = required(algorithm.num_envs) * max(1, num_env_runners)
    least = 2 * max(num_envs, required(algorithm.round_num_env_steps))
    if required(algorithm.replay_capacity) < least:
        raise ConfigError(
            f"algorithm.replay_capacity={algorithm.replay_capacity} does not hold two rounds of sampling, {least} "
            "transitions. Give at least these."
        )


def _segment_length(config: ExperimentConfig, spec: EnvSpec) -> int:
    given, horizon = config.feedback.segment_length, spec.horizon
    if given is not None:
        if horizon is not None and given > horizon:
            raise ConfigError(
                f"feedback.segment_length={given} is longer than an episode of {spec.id}, {horizon} env steps. "
                f"Give at most {horizon}."
            )
        return given
    length = DEFAULT_SEGMENT_LENGTH[spec.observation_kind]
    return length if horizon is None else min(length, horizon)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file, in which 1e6 is a number.

    Raises:
        ConfigError: The file cannot be read or holds something else.
    """
    try:
        values = yaml.load(path.read_text(), _Loader)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}). Give a YAML file or key=value pairs.") from None
    except (yaml.YAMLError, ValueError) as error:  # A date such as 2024-13-45 is a ValueError.
        raise ConfigError(f"{path} is no valid YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__}, not a mapping of settings such as env: ...")
    return values


def apply_override(values: dict[str, Any], override: str) -> None:
    """Put `key=value`, whose key may be dotted, into nested `values`.

    Raises:
        ConfigError: It is no `key=value`, or the key leads through something that is no group of settings.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r} is no setting. Write key=value, for example seed=3 or env.id=Pendulum-v1.")
    try:
        value = yaml.load(text, _Loader) if text else None
    except (yaml.YAMLError, ValueError):
        value = text
    *parents, last = key.split(".")
    for parent in parents:
        child = values.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"{override!r}: {parent} is a value, not a group of settings.")
        values = child
    values[last] = value


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings with dotted keys; a mapping that is empty says nothing."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings, some of whose keys may be dotted, as nested groups.

    Raises:
        ConfigError: A key leads through a value.
    """
    nested: dict[str, Any] = {}
    for key, value in flatten(values).items():
        *parents, last = key.split(".")
        group = nested
        for parent in parents:
            group = group.setdefault(parent, {})
            if not isinstance(group, dict):
                raise ConfigError(f"{key} was given, but {parent} is a value and no group of settings here. Give one.")
        group[last] = value
    return nested


def _explain(error: ValidationError) -> str:
    """Say in one line what the first complaint is about, what was given and what is allowed."""
    first = error.errors()[0]
    location = [str(part) for part in first["loc"]]
    key = ".".join(location)
    if first["type"] == "extra_forbidden":
        known = _fields_at(location[:-1])
        close = difflib.get_close_matches(location[-1], known, n=1)
        suggestion = f" Did you mean {close[0]!r}?" if close else ""
        return f"unknown setting {key!r}.{suggestion} Known here: {', '.join(known)}."
    if first["type"] == "missing":
        return (
            f"{key} is missing. Give it, for example {'env.id=Pendulum-v1' if key.startswith('env') else key + '=...'}."
        )
    message = first["msg"][0].lower() + first["msg"][1:]
    return f"{key}={first['input']!r} is not allowed: {message}."


def _fields_at(location: Sequence[str]) -> list[str]:
    model: type[BaseModel] = ExperimentConfig
    for part in location:
        annotation = typing.get_type_hints(model)[part]
        if isinstance(annotation, types.UnionType):
            annotation = annotation.__args__[0]
        model = annotation
    return list(model.model_fields)
