"""A run that is over, opened without Ray: its episodes, its preferences and its reward ensemble, to ask more."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ray import cloudpickle
from ray.rllib.core.rl_module import RLModule

from themis_ray.data import EpisodePool, PreferenceDataset, Query
from themis_ray.envs import EnvSpec, get_env_spec, image_parts
from themis_ray.errors import CheckpointError, ConfigError, DataError, lookup
from themis_ray.feedback import SAMPLERS, choose_queries, without_repeats
from themis_ray.loop_settings import LoopSettings
from themis_ray.reward import RewardEnsemble, load_ensemble_state, make_optimizer
from themis_ray.rllib.loop import COMPONENT_PREFERENCE_LOOP, POOL_NUM_ENV_STEPS
from themis_ray.rllib.reference import MODULE_PATH

__all__ = ["FinishedRun", "draw_queries", "open_finished_run", "open_networks", "open_reward_history"]


@dataclass(frozen=True)
class FinishedRun:
    """What a run leaves behind.

    Attributes:
        path: Its folder.
        checkpoint: Name of the checkpoint that was read.
        settings: Its resolved settings.
        spec: What its environment is like.
        pool: Its newest episodes.
        dataset: Its preferences.
        ensemble: Its reward ensemble; None where none was fitted.
        reward_version: How often the ensemble was fitted.
    """

    path: Path
    checkpoint: str
    settings: LoopSettings
    spec: EnvSpec
    pool: EpisodePool
    dataset: PreferenceDataset
    ensemble: RewardEnsemble | None
    reward_version: int


def open_finished_run(path: Path, settings: LoopSettings) -> FinishedRun:
    """Return the run at `path` as its newest checkpoint has it.

    Like every checkpoint it is unpickled: a run folder is to be trusted like a program.

    Args:
        path: The run folder.
        settings: Its settings.

    Raises:
        CheckpointError: There is no checkpoint, or it cannot be read.
        DataError: The preferences cannot be read.
    """
    checkpoint = _checkpoints(path)[-1]
    spec, dataset = get_env_spec(settings.env), PreferenceDataset(path)
    pool = EpisodePool(settings.env.id, POOL_NUM_ENV_STEPS)
    state = _read_state(checkpoint)
    try:
        pool.set_state(state["pool"])
        reward = state["reward_model"]
        version = 0 if reward is None else int(reward["version"])
        ensemble = _build_ensemble(settings, spec, reward["ensemble"]) if version else None
    except Exception as error:  # What was pickled may be anything at all.
        raise _unreadable(checkpoint, error) from error
    return FinishedRun(path, checkpoint.name, settings, spec, pool, dataset, ensemble, version)


def _checkpoints(path: Path) -> list[Path]:
    checkpoints = sorted((path / "checkpoints").glob("checkpoint_*"))
    if not checkpoints:
        raise CheckpointError(f"{path} has no checkpoint, in which episodes are kept. Let the run go on to its first.")
    return checkpoints


def _read_state(checkpoint: Path) -> dict[str, Any]:
    file = checkpoint / COMPONENT_PREFERENCE_LOOP / "state.pkl"
    try:
        with file.open("rb") as stream:
            state: dict[str, Any] = cloudpickle.load(stream)
    except Exception as error:  # An unpickler raises anything at all.
        raise _unreadable(file, error) from error
    return state


def _unreadable(file: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{file} cannot be read ({type(error).__name__}: {error}). Delete its checkpoint to use the one before."
    )


def _build_ensemble(settings: LoopSettings, spec: EnvSpec, state: dict[str, Any]) -> RewardEnsemble:
    config = settings.reward
    ensemble = RewardEnsemble(spec.observation_space, spec.action_space, spec.observation_kind, config, settings.seed)
    load_ensemble_state(ensemble, make_optimizer(ensemble, config), state)
    return ensemble


def open_reward_history(run: FinishedRun) -> list[tuple[RewardEnsemble, int]]:
    """Return the reward ensemble of every checkpoint that the run kept and had fitted one by, oldest first.

    Args:
        run: From `open_finished_run`.

    Returns:
        Each ensemble, and how many env steps the run had done.

    Raises:
        CheckpointError: A checkpoint cannot be read.
    """
    history = []
    for checkpoint in _checkpoints(run.path):
        state = _read_state(checkpoint)["reward_model"]
        if state is not None and state["version"]:
            ensemble = _build_ensemble(run.settings, run.spec, state["ensemble"])
            history.append((ensemble, int(checkpoint.name.rpartition("_")[2])))
    return history


def open_networks(run: FinishedRun) -> list[RLModule]:
    """Return the learner's networks of every checkpoint that the run kept, oldest first.

    Args:
        run: From `open_finished_run`.

    Raises:
        CheckpointError: They cannot be read.
    """
    networks = []
    for checkpoint in _checkpoints(run.path):
        try:
            with _quiet(logging.getLogger("ray._common.deprecation")):
                networks.append(RLModule.from_checkpoint(str((checkpoint / MODULE_PATH).resolve())))
        except Exception as error:  # An unpickler raises anything at all.
            raise _unreadable(checkpoint / MODULE_PATH, error) from error
    return networks


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """RLlib warns of its own way to open what it saved."""
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def draw_queries(run: FinishedRun, sampler_name: str, num_queries: int, rng: np.random.Generator) -> list[Query]:
    """Return queries about a run's newest episodes, as a sampler picks them with the run's reward ensemble.

    Queries that the run has asked are left out, so there may be fewer than asked for.

    Args:
        run: From `open_finished_run`.
        sampler_name: A key of `SAMPLERS`.
        num_queries: How many are wanted.
        rng: Draws them.

    Raises:
        ConfigError: The sampler needs a fitted ensemble and there is none, nothing is asked for, or the run learned
            from the answers of another one.
        DataError: The run's episodes hold fewer than two segments.
        UnknownNameError: There is no such sampler.
    """
    sampler = lookup("sampler", sampler_name, SAMPLERS)
    if num_queries < 1:
        raise ConfigError(f"{num_queries} queries ask nothing. Give 1 or more.")
    ensemble = run.ensemble
    if sampler.needs_model and ensemble is None:
        raise ConfigError(
            f"the sampler {sampler_name} reads a reward ensemble, but {run.path} has fitted none. Use uniform."
        )
    feedback = run.settings.feedback
    if feedback.segment_length is None:
        raise ConfigError(
            f"{run.path} asked nothing: it learned from the answers in {feedback.dataset}. Give the run of that folder."
        )
    length = feedback.segment_length
    if run.pool.num_starts(length) < 2:
        raise DataError(f"{run.path} holds fewer than two segments of {length} steps. Train for longer.")
    num_drawn = num_queries * feedback.candidates_per_query
    newest = feedback.newest_num_episodes if sampler.newest_only else None
    drawn = run.pool.sample_queries(num_drawn, length, rng, newest)
    known = {*run.dataset.asked, *(row.query_id for row in run.dataset.preferences)}
    fresh = list({query.id: query for query in drawn if query.id not in known}.values())
    if not (sampler.needs_model or sampler.needs_embeddings):
        return without_repeats(fresh, num_queries)[:num_queries]

    def predict_returns(segments: Any) -> Any:
        assert ensemble is not None
        return ensemble.segment_returns(
            np.stack([segment.observations for segment in segments]),
            np.stack([segment.actions for segment in segments]),
        )

    labelled = {
        row.query_id: Query(run.dataset.segment(row.left_id), run.dataset.segment(row.right_id))
        for row in run.dataset.preferences
    }
    chosen = choose_queries(
        sampler,
        fresh,
        num_queries,
        rng,
        labelled=list(labelled.values()),
        observation_kind=run.spec.observation_kind,
        layout=image_parts(run.spec.observation_space),
        predict_returns=predict_returns,
    )
    return list({query.id: query for query in chosen if query.id not in known}.values())
