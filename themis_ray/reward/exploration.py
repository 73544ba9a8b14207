"""Rewards for exploring: for states far from all seen (PEBBLE) and for steps that members disagree about (RUNE)."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from themis_ray.reward.config import RewardConfig

_MAX_CHUNK_BYTES = 2**25


@torch.inference_mode()
def state_entropy_rewards(
    observations: NDArray[Any], reference: NDArray[Any], k: int = 5, *, is_in_reference: bool = True
) -> NDArray[np.float32]:
    """Returns the distance of each observation to its k-th nearest neighbour in `reference`, (N,).

    r(s) = ||s - s_k||, a particle estimate of the state entropy (PEBBLE equation 4, as B-Pref computes it: without the
    logarithm). With `is_in_reference` s_k is the (k + 1)-th nearest in the reference. Neighbours are found through one
    matrix product per chunk; the distance to the one found is exact.

    Args:
        observations: (N, *observation_shape), any type.
        reference: (M, *observation_shape), M >= 1, the states seen so far.
        k: Which neighbour. With fewer in the reference it is the farthest.
        is_in_reference: The nearest of the reference is taken to be the observation itself and does not count. Nobody
            looks whether it is: for an observation that is not there, its nearest neighbour does not count.

    Raises:
        ValueError: k is below 1 or the reference is empty.
    """
    if k < 1 or len(reference) == 0:
        raise ValueError(f"k must be at least 1 (is {k}) and the reference must not be empty (has {len(reference)})")
    targets = torch.from_numpy(_flat(reference))
    centre = targets.mean(dim=0)
    targets -= centre  # distances stay; the matrix product loses fewer digits near the origin
    half_squares = targets.square().sum(dim=1) / 2
    rank = min(k + int(is_in_reference), len(targets))
    rewards = np.empty(len(observations), np.float32)
    chunk_size = max(1, _MAX_CHUNK_BYTES // (4 * max(targets.shape)))
    for start in range(0, len(observations), chunk_size):
        rows = slice(start, start + chunk_size)
        points = torch.from_numpy(_flat(observations[rows])) - centre
        closeness = torch.addmm(half_squares, points, targets.T, beta=-1)  # (|s|^2 - |s - t|^2) / 2
        neighbour = closeness.topk(rank, dim=1).indices[:, -1]
        rewards[rows] = (points - targets[neighbour]).norm(dim=1).numpy()
    return rewards


def optimistic_rewards(member_rewards: NDArray[np.float32], bonus: float) -> NDArray[np.float32]:
    """Returns mean + bonus * std over members, (N,) (RUNE, Liang et al. 2022, equation 3).

    Args:
        member_rewards: (K, N) predicted rewards.
        bonus: beta_t, see `disagreement_bonus`. With 0 the std is not computed.
    """
    rewards: NDArray[np.float32] = member_rewards.mean(axis=0)
    return rewards + bonus * member_rewards.std(axis=0) if bonus else rewards


def disagreement_bonus(config: RewardConfig, num_env_steps: int) -> float:
    """Returns beta_t = beta_0 * decay^t, t in env steps of the run (RUNE, with decay for its 1 - rho)."""
    return float(config.disagreement_bonus * config.disagreement_bonus_decay**num_env_steps)


class RunningStd:
    """Standard deviation over all values ever seen (Welford 1962, merged in batches as Chan et al. 1979)."""

    def __init__(self) -> None:
        self._count = 0
        self._mean = 0.0
        self._sum_squares = 0.0

    def update(self, values: NDArray[Any]) -> None:
        """Takes in all elements of `values` (any shape, may be empty)."""
        if values.size == 0:
            return
        values = np.asarray(values, np.float64)
        mean = float(values.mean())
        count = self._count + values.size
        delta = mean - self._mean
        self._sum_squares += float(np.square(values - mean).sum()) + delta**2 * self._count * values.size / count
        self._mean += delta * values.size / count
        self._count = count

    @property
    def std(self) -> float:
        """Population standard deviation, as `numpy.std`; 1.0 before the first value. May be 0."""
        return float(np.sqrt(self._sum_squares / self._count)) if self._count else 1.0

    def get_state(self) -> dict[str, float]:
        """Returns what `set_state` needs, plain numbers."""
        return {"count": self._count, "mean": self._mean, "sum_squares": self._sum_squares}

    def set_state(self, state: dict[str, float]) -> None:
        """Restores `get_state`, bit for bit."""
        self._count = int(state["count"])
        self._mean = float(state["mean"])
        self._sum_squares = float(state["sum_squares"])


def _flat(observations: NDArray[Any]) -> NDArray[np.float32]:
    """Returns a float32 copy (N, D)."""
    return np.array(observations, np.float32).reshape(len(observations), -1)
