"""From RLlib's episode objects to plain arrays."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import numpy as np
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.env.utils.infinite_lookback_buffer import InfiniteLookbackBuffer

from themis_ray.data import EpisodeChunk
from themis_ray.envs import RESET_SEED
from themis_ray.rllib.replay import Piece, Transitions

__all__ = ["attach_column", "to_chunk", "to_transitions"]


def to_chunk(episode: SingleAgentEpisode) -> EpisodeChunk:
    """Return the steps of an episode piece of T >= 1 steps; its true rewards are the environment's."""
    num_steps = len(episode)
    seed = episode.get_infos(0).get(RESET_SEED) if episode.t_started == 0 else None
    return EpisodeChunk(
        episode_id=episode.id_,
        start_step=episode.t_started,
        observations=np.asarray(episode.get_observations(slice(0, num_steps))),
        actions=np.asarray(episode.get_actions(slice(0, num_steps))),
        true_rewards=np.asarray(episode.get_rewards(slice(0, num_steps)), np.float32),
        is_done=episode.is_done,
        num_absorbing_steps=_num_absorbing_steps(episode),
        reset_seed=None if seed is None else int(seed),  # vectors of environments make it a number of numpy's
    )


def _num_absorbing_steps(episode: SingleAgentEpisode) -> int:
    """Count the steps at the end that `FixedHorizon` marked; the mark stays on once it is on, so halving finds it."""
    infos = episode.get_infos(slice(1, len(episode) + 1))
    return len(infos) - bisect_left(infos, True, key=lambda info: bool(info.get("is_absorbing", False)))


def to_transitions(episodes: Sequence[SingleAgentEpisode]) -> Transitions:
    """Return all steps of all episode pieces as rows, in order."""
    observations, next_observations, actions, rewards, terminated = [], [], [], [], []
    for episode in episodes:
        num_steps = len(episode)
        states = np.asarray(episode.get_observations(slice(0, num_steps + 1)))
        observations.append(states[:-1])
        next_observations.append(states[1:])
        actions.append(np.asarray(episode.get_actions(slice(0, num_steps))))
        rewards.append(np.asarray(episode.get_rewards(slice(0, num_steps)), np.float32))
        flags = np.zeros(num_steps, np.bool_)
        flags[-1] = episode.is_terminated
        terminated.append(flags)
    pieces = [Piece(episode.id_, len(episode), episode.is_done) for episode in episodes]
    return Transitions(
        np.concatenate(observations),
        np.concatenate(next_observations),
        np.concatenate(actions),
        np.concatenate(rewards),
        np.concatenate(terminated),
        pieces,
    )


def attach_column(episode: SingleAgentEpisode, name: str, values: Any) -> None:
    """Put a column of one value per step beside the model outputs, from where it travels into the train batch."""
    episode.extra_model_outputs[name] = InfiniteLookbackBuffer(np.asarray(values), lookback=0)
