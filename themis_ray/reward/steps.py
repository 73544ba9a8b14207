"""The env steps of segments as a fit reads them: each distinct step once."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from themis_ray.reward.ensemble import Inputs, RewardEnsemble

# Bytes of a step up to which equal ones are looked for: frames are rarely equal, and sorting them costs seconds.
_MAX_COMPARED_BYTES = 4096


@dataclass(frozen=True, eq=False)
class SegmentSteps:
    """Encoded steps of S segments of length L.

    Steps repeat where a world is small: a grid has a few hundred pairs of view and action, and everything that follows
    an early end of an episode is one absorbing state. Members then evaluate the distinct steps, each once, instead of
    every step of every segment.

    Attributes:
        inputs: The R distinct steps, (R, ...).
        index: (S, L) int64, the row in `inputs` of each step.
    """

    inputs: Inputs
    index: Tensor

    @classmethod
    def of(cls, ensemble: RewardEnsemble, observations: NDArray[Any], actions: NDArray[Any]) -> "SegmentSteps":
        """Encodes segments for an ensemble.

        Args:
            ensemble: Whose encoding, and whose device unless the steps are frames, which may not fit there.
            observations: (S, L, *observation_shape).
            actions: (S, L, *action_shape).
        """
        num_segments, length = observations.shape[:2]
        num_steps = num_segments * length
        flat_observations = observations.reshape(num_steps, *observations.shape[2:])
        flat_actions = actions.reshape(num_steps, *actions.shape[2:])
        rows, index = _distinct(flat_observations, flat_actions)
        inputs = ensemble.encode(flat_observations[rows], flat_actions[rows])
        if inputs.pixels is None:
            inputs = inputs.to(ensemble.device)
        return cls(inputs, torch.from_numpy(index.reshape(num_segments, length)).to(inputs.features.device))

    @property
    def num_distinct(self) -> int:
        """R, distinct steps."""
        return len(self.inputs.features)

    @property
    def segment_length(self) -> int:
        """L, env steps per segment."""
        return self.index.shape[1]

    def are_few_for(self, num_segments: int) -> bool:
        """Whether evaluating all distinct steps costs at most half as much as every step of so many segments."""
        return 2 * self.num_distinct <= num_segments * self.segment_length

    def rewards(self, ensemble: RewardEnsemble, segments: Tensor) -> Tensor:
        """Returns each member's rewards (K, M, L) for its own segments (K, M), or for shared ones (1, M)."""
        index = self.index[segments.to(self.index.device)].flatten(1)
        shape = (ensemble.ensemble_size, segments.shape[1], self.segment_length)
        if self.are_few_for(segments.shape[1]):
            rewards = ensemble.evaluate(self.inputs.to(ensemble.device))
            return rewards.gather(1, index.to(rewards.device).expand(len(rewards), -1)).view(shape)
        rows = index[0] if len(index) == 1 else index
        return ensemble.evaluate(self.inputs.gather(rows).to(ensemble.device)).view(shape)


def _distinct(observations: NDArray[Any], actions: NDArray[Any]) -> tuple[NDArray[np.int64] | slice, NDArray[np.int64]]:
    """Returns where each distinct step (N, ...) is found first, and which of these each step equals, bit for bit."""
    num_steps = len(observations)
    columns = [np.ascontiguousarray(values).reshape(num_steps, -1).view(np.uint8) for values in (observations, actions)]
    width = sum(column.shape[1] for column in columns)
    if num_steps == 0 or width > _MAX_COMPARED_BYTES:
        return slice(None), np.arange(num_steps)
    keys = np.concatenate(columns, axis=1).view(np.dtype((np.void, width))).ravel()
    _, rows, index = np.unique(keys, return_index=True, return_inverse=True)
    return rows, index
