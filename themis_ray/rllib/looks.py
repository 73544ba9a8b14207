"""What the reward model predicts for segments, and how right it is about pairs that nobody was asked about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from themis_ray.data import EpisodePool, Segment
from themis_ray.envs import EnvSpec
from themis_ray.feedback import disagreement
from themis_ray.loop_settings import LoopSettings
from themis_ray.reward import RewardWatch, WatchPoint, left_probabilities
from themis_ray.reward_actor import RewardModel

__all__ = ["PolicyLooks", "compare_with_true_reward", "member_returns"]

SEGMENT_CHUNK_BYTES = 2**26
NUM_LOOKS = 20
MIN_MARGIN = 1e-6
NUM_HELDOUT_PAIRS = {"vector": 100, "grid": 100, "image": 20, "mixed": 20}
NUM_LOOK_PAIRS = {"vector": 50, "grid": 50, "image": 10, "mixed": 10}
# Of a look's segments, how many are kept to be predicted again at later looks.
NUM_LOOK_SEGMENTS = {"vector": 40, "grid": 40, "image": 10, "mixed": 10}


def member_returns(model: RewardModel, segments: Sequence[Segment]) -> NDArray[np.float32]:
    """Return (K, S) predicted returns of S segments under every member; many frames are sent in parts."""
    return np.concatenate(_in_parts(segments, model.segment_returns), axis=1)


def _member_rewards(model: RewardModel, segments: Sequence[Segment]) -> NDArray[np.float32]:
    """Return (K, S, L) predicted rewards of the steps of S segments of L steps, as segments of one step each."""

    def predict(*arrays: NDArray[Any]) -> NDArray[np.float32]:
        return model.segment_returns(*(array.reshape(-1, 1, *array.shape[2:]) for array in arrays))

    rewards = np.concatenate(_in_parts(segments, predict), axis=1)
    return rewards.reshape(-1, len(segments), len(segments[0]))


def _in_parts(
    segments: Sequence[Segment], predict: Callable[[NDArray[Any], NDArray[Any]], NDArray[np.float32]]
) -> list[NDArray[np.float32]]:
    size = max(1, SEGMENT_CHUNK_BYTES // segments[0].observations.nbytes)
    parts = [segments[start : start + size] for start in range(0, len(segments), size)]
    return [
        predict(np.stack([segment.observations for segment in part]), np.stack([segment.actions for segment in part]))
        for part in parts
    ]


def _share_in_order(margins: NDArray[Any], predicted_margins: NDArray[Any]) -> float:
    """Return the share of pairs predicted in the order of their true returns; NaN where all of these are tied.

    A tie of predictions is half right.
    """
    is_told_apart = np.abs(margins) > MIN_MARGIN
    agrees = (1 + np.sign(margins) * np.sign(predicted_margins)) / 2
    return float(agrees[is_told_apart].mean()) if is_told_apart.any() else float("nan")


def compare_with_true_reward(
    model: RewardModel, pool: EpisodePool, spec: EnvSpec, segment_length: int, rng: np.random.Generator
) -> dict[str, float]:
    """Compare the reward model with the true reward on fresh pairs that no teacher was asked about.

    Returns:
        heldout_accuracy: share of pairs with different true returns that the ensemble orders the same way;
        reward_correlation: Pearson correlation of predicted and true reward over the steps of these pairs.
        NaN where the true reward leaves nothing to compare.
    """
    num_pairs = NUM_HELDOUT_PAIRS[spec.observation_kind]
    queries = pool.sample_queries(num_pairs, segment_length, rng)
    segments = [segment for query in queries for segment in (query.left, query.right)]
    predicted = model.predict(
        np.concatenate([segment.observations for segment in segments]),
        np.concatenate([segment.actions for segment in segments]),
    )
    true = np.concatenate([segment.true_rewards for segment in segments])
    predicted_returns, true_returns = (x.reshape(num_pairs, 2, -1).sum(-1) for x in (predicted, true))
    can_correlate = true.std() > 1e-8 and predicted.std() > 1e-8
    return {
        "heldout_accuracy": _share_in_order(
            true_returns[:, 0] - true_returns[:, 1], predicted_returns[:, 0] - predicted_returns[:, 1]
        ),
        "reward_correlation": float(np.corrcoef(predicted, true)[0, 1]) if can_correlate else float("nan"),
    }


class PolicyLooks:
    """Looks at the current policy through the reward model, twenty times a run.

    Args:
        settings: Resolved settings of the experiment.
        spec: What the environment is like.
    """

    def __init__(self, settings: LoopSettings, spec: EnvSpec) -> None:
        self._settings = settings
        self._kind = spec.observation_kind
        self._num_looks = 0
        self.watch = RewardWatch()

    def is_due(self, env_step: int) -> bool:
        """Tell whether a twentieth of the run has passed since the last look."""
        return NUM_LOOKS * env_step // self._settings.num_env_steps > self._num_looks

    def look(
        self, model: RewardModel, pool: EpisodePool, env_step: int, rng: np.random.Generator
    ) -> tuple[dict[str, float], str | None]:
        """Put fresh queries about the newest episodes to nobody, and compare predictions with their true returns.

        Returns:
            The metrics fresh_accuracy, policy_disagreement, policy_reward_std and growth_ratio, and one line of
            evidence when the reward model begins to be exploited, else None.
        """
        self._num_looks = NUM_LOOKS * env_step // self._settings.num_env_steps
        feedback = self._settings.feedback
        assert feedback.segment_length is not None
        queries = pool.sample_queries(
            NUM_LOOK_PAIRS[self._kind], feedback.segment_length, rng, feedback.newest_num_episodes
        )
        segments = [segment for query in queries for segment in (query.left, query.right)]
        step_rewards = _member_rewards(model, segments)
        returns = step_rewards.sum(axis=2)
        left, right = returns[:, 0::2], returns[:, 1::2]
        margins = np.array([query.left.true_return - query.right.true_return for query in queries])
        true_returns, _ = pool.recent_returns()
        point = WatchPoint(
            num_env_steps=env_step,
            true_return=float(true_returns.mean()) if len(true_returns) else float("nan"),
            fresh_accuracy=_share_in_order(margins, left.mean(axis=0) - right.mean(axis=0)),
            disagreement=float(disagreement(left_probabilities(left, right)).mean()),
            segments=tuple(_copy(segment) for segment in segments[: NUM_LOOK_SEGMENTS[self._kind]]),
        )
        evidence = self.watch.add(point, lambda kept: member_returns(model, kept))
        metrics = {
            "fresh_accuracy": point.fresh_accuracy,
            "policy_disagreement": point.disagreement,
            "policy_reward_std": float(step_rewards.std(axis=0).mean()),
            "growth_ratio": self.watch.growth_ratio,
        }
        return metrics, evidence

    def get_state(self) -> tuple[dict[str, Any], int]:
        """Return all that `set_state` needs."""
        return self.watch.get_state(), self._num_looks

    def set_state(self, state: tuple[dict[str, Any], int]) -> None:
        """Go on from `get_state`."""
        watch, self._num_looks = state
        self.watch.set_state(watch)


def _copy(segment: Segment) -> Segment:
    """Return the segment with arrays of its own, so that it does not keep those of its episode."""
    arrays = {name: getattr(segment, name).copy() for name in ("observations", "actions", "true_rewards")}
    return replace(segment, **arrays, origin=None)
