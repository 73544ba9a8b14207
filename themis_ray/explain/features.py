"""Which inputs belong together: methods that leave inputs out leave a whole group out."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor

from themis_ray.envs import image_parts
from themis_ray.explain.subject import Rows, Subject

__all__ = ["feature_groups", "spread_over_groups"]

# Blocks per side of a picture: a person sees an eighth of a frame, and least squares need few unknowns.
MAX_BLOCKS = 8


def feature_groups(subject: Subject, rows: Rows) -> tuple[Tensor, ...]:
    """Returns the number of each input's group, one tensor (1, *shape) per input, counted from 0 over all of them.

    An image is cut into at most 8 x 8 blocks, all channels together; a grid of at most 8 x 8 cells into its cells.
    Every other number of an observation, and every dimension of a Box action, is a group of its own; a one-hot action
    is one group for each number that it encodes.

    Args:
        subject: Says of what kind its observations are.
        rows: Of the subject.
    """
    observations = _observation_groups(subject)
    groups = [observations]
    if len(rows.inputs) > 1:
        groups.append(_action_groups(subject.action_space, rows.inputs[1].shape[1]) + int(observations.max()) + 1)
    return tuple(part.unsqueeze(0) for part in groups)


def spread_over_groups(shares: Tensor, groups: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Returns attributions of the shape of the inputs: what a group is due, divided equally among its inputs.

    Args:
        shares: (N, G).
        groups: From `feature_groups`.
    """
    sizes = torch.bincount(torch.cat([part.reshape(-1) for part in groups]))
    each = shares / sizes
    return tuple(each[:, part[0]] for part in groups)


def _observation_groups(subject: Subject) -> Tensor:
    space = subject.observation_space
    if subject.observation_kind in ("image", "grid"):
        return _blocks(space.shape)
    if subject.observation_kind == "vector":
        return torch.arange(math.prod(space.shape)).reshape(space.shape)
    parts, first = [], 0
    layout = image_parts(space)
    for part in layout:
        blocks = _blocks(part.shape).reshape(-1) + first
        first = int(blocks.max()) + 1
        parts.append(blocks)
    return torch.cat([*parts, torch.arange(space.shape[0] - layout[-1].stop) + first])


def _blocks(shape: tuple[int, ...]) -> Tensor:
    """Returns the block of each number of a picture (height, width, channels)."""
    height, width, channels = shape
    row_side, column_side = (max(1, math.ceil(side / MAX_BLOCKS)) for side in (height, width))
    rows, columns = torch.arange(height) // row_side, torch.arange(width) // column_side
    blocks = rows[:, None] * (int(columns[-1]) + 1) + columns
    return blocks[..., None].expand(height, width, channels).clone()


def _action_groups(space: gym.Space[Any], num_values: int) -> Tensor:
    match space:
        case gym.spaces.Discrete():
            return torch.zeros(num_values, dtype=torch.long)
        case gym.spaces.MultiDiscrete():
            counts = torch.as_tensor(space.nvec.reshape(-1).astype(int))
            return torch.repeat_interleave(torch.arange(len(counts)), counts)
    return torch.arange(num_values)
