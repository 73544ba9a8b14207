"""Where the on-policy learner's reward is swapped: once, on the finished batch, before advantages are estimated."""

from __future__ import annotations

from typing import Any

from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core.columns import Columns

__all__ = ["PREDICTED_REWARDS", "PayPredictedRewards"]

PREDICTED_REWARDS = "predicted_rewards"


class PayPredictedRewards(ConnectorV2):
    """Overwrites the rewards column with the predicted rewards that the sampling side put beside it.

    rewards[t] = predicted_rewards[t] * loss_mask[t]

    The mask keeps 0 at the step that RLlib appends to each episode to bootstrap its value. The predictions were
    made by the reward actor while sampling went on, so this piece makes no remote call. Episodes keep their true
    rewards; `episode_return_mean` stays the true return.
    """

    def __call__(self, *, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Swap the column of every module in `batch`, if the episodes carried predictions."""
        for columns in batch.values():
            predicted = columns.pop(PREDICTED_REWARDS, None)
            if predicted is None:
                continue
            rewards = columns[Columns.REWARDS]
            predicted = predicted.to(rewards.dtype).reshape(rewards.shape)
            if Columns.LOSS_MASK in columns:
                predicted = predicted * columns[Columns.LOSS_MASK].to(rewards.dtype)
            columns[Columns.REWARDS] = predicted
        return batch
