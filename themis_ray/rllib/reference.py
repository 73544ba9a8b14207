"""The policy of an earlier run, read from its checkpoint, that a learner starts from and stays near."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
from ray import cloudpickle

from themis_ray.envs import EnvConfig, EnvSpec, differing_meanings, read_env_config
from themis_ray.errors import CheckpointError, ConfigError
from themis_ray.loop_settings import LoopSettings, required

__all__ = ["ReferencePolicy", "open_reference"]

MODULE_PATH = Path("learner_group") / "learner" / "rl_module" / "default_policy"
MODULE_LEARNERS = {"PPOModule": "ppo", "SACModule": "sac", "DQNModule": "dqn"}


@dataclass(frozen=True)
class ReferencePolicy:
    """The networks of a finished or interrupted run.

    Attributes:
        path: The checkpoint it was read from.
        learner: Name of the learner that trained it.
        observation_space: What it observes.
        action_space: How it acts.
        hidden_sizes: Width of each hidden layer.
        weights: Arrays by parameter name.
        env: What it was trained in; None where the run of the checkpoint is not there.
    """

    path: Path
    learner: str
    observation_space: gym.Space[Any]
    action_space: gym.Space[Any]
    hidden_sizes: tuple[int, ...]
    weights: Mapping[str, Any]
    env: EnvConfig | None


def open_reference(settings: LoopSettings, spec: EnvSpec) -> ReferencePolicy:
    """Return the policy that `algorithm.reference` names, which fits the run that starts from it.

    Like every RLlib checkpoint it is unpickled: a reference is to be trusted like a program.

    Args:
        settings: Resolved settings of the run, with a reference.
        spec: What the run's environment is like.

    Raises:
        CheckpointError: There is no checkpoint, or it cannot be read.
        DataError: The config.yaml of its run cannot be read.
        ConfigError: It is of another learner, of other spaces, of observations that mean something else, or of other
            hidden sizes.
    """
    reference = _read(Path(required(settings.algorithm.reference)))
    wanted: dict[str, tuple[Any, Any]] = {
        "the learner": (settings.algorithm.name, reference.learner),
        "observations": (spec.observation_space, reference.observation_space),
        "actions": (spec.action_space, reference.action_space),
        "algorithm.hidden_sizes": (list(required(settings.algorithm.hidden_sizes)), list(reference.hidden_sizes)),
    }
    if reference.env is not None:
        wanted |= differing_meanings(settings.env, reference.env, spec)
    for what, (here, there) in wanted.items():
        if here != there:
            raise ConfigError(
                f"algorithm.reference={settings.algorithm.reference} does not fit this run: {what} must be the same, "
                f"{here} here and {there} in the reference. Change the setting or give another reference."
            )
    return reference


def _read(path: Path) -> ReferencePolicy:
    checkpoint = _find_checkpoint(path)
    folder = checkpoint / MODULE_PATH
    # Of the run or snapshot that the checkpoint lies in.
    env = read_env_config(checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent)
    try:
        with (folder / "class_and_ctor_args.pkl").open("rb") as file:
            made = cloudpickle.load(file)
        with (folder / "module_state.pkl").open("rb") as file:
            weights = cloudpickle.load(file)
        arguments = made["ctor_args_and_kwargs"][1]
        return ReferencePolicy(
            path=checkpoint,
            learner=MODULE_LEARNERS[made["class"].__name__],
            observation_space=arguments["observation_space"],
            action_space=arguments["action_space"],
            hidden_sizes=tuple(arguments["model_config"]["hidden_sizes"]),
            weights=dict(weights),
            env=env,
        )
    except Exception as error:  # An unpickler raises anything at all.
        raise CheckpointError(
            f"the policy in {checkpoint} cannot be read ({type(error).__name__}: {error}). Give another "
            "algorithm.reference."
        ) from None


def _find_checkpoint(path: Path) -> Path:
    """Return the checkpoint at `path`, or the newest one of the run at `path`."""
    candidates = [path, *sorted((path / "checkpoints").glob("checkpoint_*"), reverse=True)]
    for candidate in candidates:
        if (candidate / MODULE_PATH).is_dir():
            return candidate
    raise CheckpointError(
        f"algorithm.reference={path} holds no policy. Give the folder of a run that has a checkpoint, or one of its "
        "checkpoints."
    )
