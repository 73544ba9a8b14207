"""What inputs are compared with: what an agent sees where there is nothing to see."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import torch
from torch import Tensor

from themis_ray.envs import image_parts
from themis_ray.explain.subject import Rows, Subject

__all__ = ["BASELINES", "baseline_inputs"]

BASELINES = {
    "mean": "What stored steps look like on average, and an action that says nothing.",
    "zero": "Zeros: black pixels, cells not seen, variables at 0.",
    "auto": "zero for grids, mean for images and vectors; in mixed observations zero for all pictures.",
}


def baseline_inputs(subject: Subject, references: Rows, name: str = "auto") -> tuple[Tensor, ...]:
    """Returns one row of inputs, each (1, *shape), that stands for "nothing".

    A grid of cells that are not seen holds nothing. A vector has no such value: 0 is upright for a pole and fast for a
    car that is usually faster, so its mean over stored steps is taken. Of an image the mean is what does not move, so
    that attributions lie on what does; against black they would lie on the ground of every scene. An action that says
    nothing is the mean of its bounds, or an equal share of each choice.

    Args:
        subject: Says of what kind its observations are.
        references: Stored steps of the same environment.
        name: A key of `BASELINES`.
    """
    observations = references.inputs[0].mean(dim=0, keepdim=True)
    if name == "zero" or (name == "auto" and subject.observation_kind == "grid"):
        observations = torch.zeros_like(observations)
    elif name == "auto" and subject.observation_kind == "mixed":
        observations[:, : image_parts(subject.observation_space)[-1].stop] = 0.0
    actions = tuple(_no_action(subject.action_space, part) for part in references.inputs[1:])
    return (observations, *actions)


def _no_action(space: gym.Space[Any], encoded: Tensor) -> Tensor:
    row = torch.zeros_like(encoded[:1])
    match space:
        case gym.spaces.Discrete():
            row += 1.0 / int(space.n)
        case gym.spaces.MultiDiscrete():
            counts = torch.as_tensor(space.nvec.reshape(-1).astype(int))
            row += torch.repeat_interleave(1.0 / counts, counts)
    return row
