"""Synthetic answers about single segments, made of the true rewards, and which segments are shown."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from themis_ray.data import PreferenceDataset, Segment
from themis_ray.envs import EnvConfig, EnvSpec, differing_meanings, num_choices, read_env_config
from themis_ray.errors import DataError

__all__ = ["check_choices", "judge_steps", "open_demonstrations", "rate_segments"]


def rate_segments(
    segments: Sequence[Segment],
    recent: Sequence[Segment],
    num_levels: int,
    eps_mistake: float,
    rng: np.random.Generator,
) -> list[int]:
    """Returns a level for each segment: in which of `num_levels` equal parts of recent true returns its own lies.

    level = floor(num_levels * q), at most num_levels - 1, with q the share of recent returns that are smaller plus half
    the share of equal ones. With probability `eps_mistake` it is one of the other levels, each as likely.

    Args:
        segments: What is rated.
        recent: Segments of the learner that give the scale, at least one.
        num_levels: From 2.
        eps_mistake: Probability of a wrong level.
        rng: Draws the mistakes; two numbers a segment whatever `eps_mistake` is.
    """
    returns = np.array([segment.true_return for segment in segments])[:, None]
    scale = np.array([segment.true_return for segment in recent])[None]
    # In whole numbers: as floats, 5 times the mean of 140 ones, 40 halves and 20 zeros is less than 4.
    twice_below = 2 * (scale < returns).sum(axis=1) + (scale == returns).sum(axis=1)
    levels = np.minimum(num_levels * twice_below // (2 * scale.size), num_levels - 1)
    is_mistake = rng.random(len(segments)) < eps_mistake
    shifts = rng.integers(1, num_levels, size=len(segments))
    chosen: list[int] = np.where(is_mistake, (levels + shifts) % num_levels, levels).tolist()
    return chosen


def judge_steps(
    segments: Sequence[Segment],
    recent: Sequence[Segment],
    eps_equal: float,
    eps_mistake: float,
    rng: np.random.Generator,
) -> list[tuple[int, ...]]:
    """Returns for every step of each segment: 1 good, -1 bad, 0 no opinion.

    The sign of true reward - median of the rewards of recent segments; 0 where that difference is at most eps_equal
    times its mean size over recent steps, or not finite. With probability `eps_mistake` good and bad are mixed up.

    Args:
        segments: What is judged, of one length.
        recent: Segments of the learner that say what is usual, at least one.
        eps_equal: Largest difference that goes unnoticed.
        eps_mistake: Probability of the wrong sign, for every step by itself.
        rng: Draws the mistakes.
    """
    rewards: NDArray[np.float64] = np.stack([segment.true_rewards for segment in segments], dtype=np.float64)
    usual = np.concatenate([segment.true_rewards for segment in recent]).astype(np.float64)
    usual = usual[np.isfinite(usual)]
    median = np.median(usual) if usual.size else np.nan
    margins = rewards - median
    size = np.abs(usual - median).mean() if usual.size else np.nan
    values = np.where(np.isfinite(margins) & (np.abs(margins) > eps_equal * size), np.sign(margins), 0)
    values = np.where(rng.random(values.shape) < eps_mistake, -values, values).astype(np.int64)
    return [tuple(row) for row in values.tolist()]


def open_demonstrations(
    path: Path, count: int, env_config: EnvConfig, spec: EnvSpec, segment_length: int
) -> list[Segment]:
    """Returns the demonstrations of a dataset, or where it has none its segments of the best true return.

    Imported datasets may know no true rewards, and then have to hold demonstrations.

    Args:
        path: Folder of a run or dataset.
        count: Most segments returned; of demonstrations the first ones.
        env_config: The environment they have to be of.
        spec: What it is like.
        segment_length: The number of steps they have to have.

    Raises:
        DataError: There are no segments, they cannot be read, they are of another environment, length or shape, their
            observations mean something else by the config.yaml beside them, an action is none of the environment's, or
            nothing tells which are good.
    """
    dataset = PreferenceDataset(path)
    shown = list(dict.fromkeys(dataset.segment(row.segment_id) for row in dataset.demonstrations))
    if not dataset.segments:
        raise DataError(f"feedback.demonstrations={path} holds no segments. Give the folder of a run or dataset.")
    if not (shown or np.isfinite([segment.true_return for segment in dataset.segments]).all()):
        raise DataError(
            f"feedback.demonstrations={path} holds no demonstrations, and segments whose true rewards nobody knows, so "
            "that the best cannot be told. Give the folder of a run, or a dataset with demonstrations."
        )
    there = read_env_config(path)
    for name, pair in ({} if there is None else differing_meanings(env_config, there, spec)).items():
        raise DataError(
            f"feedback.demonstrations={path} does not fit this run: {name} is {pair[1]} there and {pair[0]} here. "
            "Change it or give another."
        )
    segments = (shown or sorted(dataset.segments, key=lambda segment: -segment.true_return))[:count]
    observations = spec.observation_space
    spaces = (observations.shape, str(observations.dtype)), (spec.action_space.shape, str(spec.action_dtype))
    wanted = spec.id, segment_length, *spaces
    for segment in segments:
        arrays = ((array.shape[1:], str(array.dtype)) for array in (segment.observations, segment.actions))
        found = segment.env_id, len(segment), *arrays
        if found != wanted:
            raise DataError(
                f"feedback.demonstrations={path} does not fit this run: (environment, segment length, observations, "
                f"actions) are {found} there and {wanted} here. Change env or feedback.segment_length, or give another."
            )
    check_choices(f"feedback.demonstrations={path}", segments, spec.action_space)
    return segments


def check_choices(source: str, segments: Iterable[Segment], action_space: gym.Space[Any]) -> None:
    """Refuses choices that the environment does not have. Actions of a Box may be any.

    Args:
        source: The setting that names where the segments come from, with its value.
        segments: At least one, whose actions have the shape of the space.
        action_space: Box, or Discrete or MultiDiscrete that start at 0.

    Raises:
        DataError: An action of a Discrete or MultiDiscrete space is no whole number from 0 to n - 1.
    """
    if isinstance(action_space, gym.spaces.Box):
        return
    sizes = num_choices(action_space)
    columns = np.concatenate([segment.actions for segment in segments]).reshape(-1, len(sizes)).T
    for i, (column, size) in enumerate(zip(columns, sizes, strict=True)):
        wrong = column[~np.isin(column, np.arange(size))]
        if wrong.size:
            place = f" at place {i}" if len(sizes) > 1 else ""
            raise DataError(
                f"{source} does not fit this run: an action{place} is {wrong[0].item():g} there, and allowed are whole "
                f"numbers from 0 to {size - 1}. Count actions from 0 in the dataset, or give another."
            )
