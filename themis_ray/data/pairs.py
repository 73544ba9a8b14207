"""Preferences as training data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["LabelledPairs"]


@dataclass(frozen=True, eq=False)
class LabelledPairs:
    """Preferences as training data: each segment once, pairs as rows into them.

    Attributes:
        observations: (S, L, *observation_shape).
        actions: (S, L, *action_shape).
        left: (N,) int64, row of the left segment.
        right: (N,) int64, row of the right segment.
        labels: (N,) float32, p(left preferred), anything from 0 to 1.
        weights: (N,) float32, how much each pair counts in a fit; 0 equals leaving it out. Empty stands for ones.

    Raises:
        ValueError: The arrays do not fit together, or a label or weight is not allowed.
    """

    observations: NDArray[Any]
    actions: NDArray[Any]
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    labels: NDArray[np.float32]
    weights: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))

    def __post_init__(self) -> None:
        if self.weights.size == 0:
            object.__setattr__(self, "weights", np.ones(len(self.labels), np.float32))
        if self.observations.shape[:2] != self.actions.shape[:2]:
            shapes = f"{self.observations.shape} and {self.actions.shape}"
            raise ValueError(f"observations and actions must start with the same (S, L), not {shapes}")
        if not self.left.shape == self.right.shape == self.labels.shape == (len(self.labels),):
            shapes = f"{self.left.shape}, {self.right.shape} and {self.labels.shape}"
            raise ValueError(f"left, right and labels must have the same shape (N,), not {shapes}")
        for rows in (self.left, self.right):
            if len(rows) and not 0 <= rows.min() <= rows.max() < len(self.observations):
                raise ValueError(f"left and right must be rows of {len(self.observations)} segments")
        if self.weights.shape != self.labels.shape:
            raise ValueError(f"weights must have the shape of labels, {self.labels.shape}, not {self.weights.shape}")
        if not ((self.labels >= 0) & (self.labels <= 1)).all():
            raise ValueError("labels must be probabilities from 0 to 1")
        if not ((self.weights >= 0) & (self.weights < np.inf)).all():
            raise ValueError("weights must be at least 0 and finite")

    def __len__(self) -> int:
        return len(self.labels)
