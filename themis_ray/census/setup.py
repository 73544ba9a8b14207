"""What is chosen for an environment when nothing is said, why, and what says otherwise."""

from __future__ import annotations

from dataclasses import dataclass

from gymnasium import spaces

from themis_ray.census.listing import describe_actions, describe_observations
from themis_ray.config import ExperimentConfig, resolve
from themis_ray.envs import FAMILIES, EnvSpec
from themis_ray.reward import REWARD_MODELS

__all__ = ["Choice", "explain_setup"]

LEARNER_REASONS = {
    "sac": "Box actions: off-policy, so that few env steps go far",
    "ppo": "Discrete or MultiDiscrete actions: works without tuning",
    "dqn": "asked for",
    "cpl": "asked for",
}
NETWORKS = {"vector": "mlp", "image": "cnn", "grid": "grid", "mixed": "mixed"}


@dataclass(frozen=True)
class Choice:
    """One thing that was chosen.

    Attributes:
        what: What was chosen about.
        chosen: What it is.
        reason: Why, in a few words.
        setting: What says otherwise.
    """

    what: str
    chosen: str
    reason: str
    setting: str


def explain_setup(config: ExperimentConfig) -> list[Choice]:
    """Returns every choice that depends on the environment, for settings as a user gives them.

    Raises:
        ConfigError: As in `themis_ray.config.resolve`.
        UnknownNameError: As in `themis_ray.config.resolve`.
    """
    resolved, spec = resolve(config)
    family = FAMILIES[spec.family]
    algorithm, feedback, env = resolved.algorithm, resolved.feedback, resolved.env
    wrappers = ", ".join([wrapper.__name__ for wrapper in family.wrappers] if env.family_wrappers else [])
    network = NETWORKS[spec.observation_kind]
    reward = f"{resolved.reward.ensemble_size} x {network}, {_sizes(resolved.reward.hidden_sizes)}"
    length = f"{feedback.segment_length} env steps", "by the observation, at most an episode"
    return [
        Choice("family", spec.family, family.description, "env.id"),
        Choice("preparation", wrappers or "none", f"what {spec.family} environments get", "env.family_wrappers"),
        Choice("frame stack", *_frame_stack(config, spec), "env.frame_stack"),
        Choice("own wrappers", ", ".join(env.wrappers) or "none", "as given", "env.wrappers"),
        Choice("observation", describe_observations(spec), "by the type of its space", "env.wrappers"),
        Choice("observation normalisation", *_normalisation(config, spec), "env.normalize_observations"),
        Choice("actions", describe_actions(spec.action_space), "by the type of its space", "env.wrappers"),
        Choice("action rescaling", *_rescaling(spec), "env.wrappers"),
        Choice("horizon", *_horizon(config, spec), "env.horizon"),
        Choice("fixed horizon", *_fixed_horizon(config, spec), "env.fixed_horizon"),
        Choice("learner", algorithm.name, LEARNER_REASONS[algorithm.name], "algorithm.name"),
        Choice(
            "learner's network",
            f"{network}, {_sizes(algorithm.hidden_sizes)}",
            "by the observation",
            "algorithm.hidden_sizes",
        ),
        Choice("reward network", reward, REWARD_MODELS[network], "reward.hidden_sizes"),
        Choice("segment length", *length, "feedback.segment_length"),
    ]


def _sizes(sizes: tuple[int, ...] | None) -> str:
    return "x".join(map(str, sizes or ()))


def _frame_stack(config: ExperimentConfig, spec: EnvSpec) -> tuple[str, str]:
    if config.env.frame_stack is not None:
        return str(config.env.frame_stack), "as given"
    if spec.family == "atari" and spec.observation_kind == "image":
        return "4", "one screen does not show which way things move"
    return "1", "an observation is taken to tell the state"


def _normalisation(config: ExperimentConfig, spec: EnvSpec) -> tuple[str, str]:
    if config.env.normalize_observations:
        return "mean 0, std 1 of random steps", "as given"
    if spec.observation_kind == "vector":
        return "none", "B-Pref and its peers learn these environments from plain numbers"
    return "by the range of a pixel", "inside the networks"


def _rescaling(spec: EnvSpec) -> tuple[str, str]:
    space = spec.action_space
    if not isinstance(space, spaces.Box):
        return "none", "actions are counted, not measured"
    if not (space.bounded_below.all() and space.bounded_above.all()):
        return "none", "the actions have no bounds"
    return "policy's [-1, 1] to the bounds", "so that one step size fits all environments"


def _horizon(config: ExperimentConfig, spec: EnvSpec) -> tuple[str, str]:
    if config.env.horizon is not None:
        return f"{spec.horizon} env steps", "as given"
    if spec.horizon is None:
        return "none", "the environment names no limit"
    return f"{spec.horizon} env steps", "the environment's own limit"


def _fixed_horizon(config: ExperimentConfig, spec: EnvSpec) -> tuple[str, str]:
    chosen = "yes" if spec.is_fixed_horizon else "no"
    if config.env.fixed_horizon is not None:
        return chosen, "as given"
    if spec.is_fixed_horizon:
        return chosen, "the length of an episode would tell how good it was"
    return chosen, f"{spec.family} episodes are compared as they come"
