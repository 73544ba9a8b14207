"""What every line of metrics.jsonl holds; docs/metrics.md explains each name, and a test compares the two."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

__all__ = ["METRICS", "Row", "finite", "to_json"]

Row = Mapping[str, Any]

METRICS: Mapping[str, str] = {
    "iteration": "Number of this line, from 1.",
    "num_env_steps": "Env steps done so far.",
    "phase": "What the learner was paid for: seed, exploration or preference.",
    "true_return_mean": "Mean true return of the newest training episodes.",
    "episode_length_mean": "Mean env steps of the same episodes.",
    "num_episodes": "Training episodes finished so far.",
    "predicted_return_mean": "Mean predicted return of the newest finished training episodes.",
    "queries_asked": "Questions asked so far; these count against the budget.",
    "num_preferences": "Queries answered left, right or equal so far.",
    "reward_version": "How often the reward ensemble was fitted.",
    "fit_loss": "Cross-entropy of the last pass of the newest fit.",
    "fit_accuracy": "Training accuracy, mean over members, of the last pass of the newest fit.",
    "fit_num_epochs": "Passes of the newest fit.",
    "fit_trusted_share": "Share of answers that the filter let the last pass learn as they are.",
    "fit_flipped_share": "Share of answers that the filter turned round in the last pass.",
    "fit_num_pseudo_labels": "Unanswered queries that the last pass learnt.",
    "fit_heldout_loss": "Cross-entropy of the preferences kept out of the newest fit.",
    "fit_heldout_pair_accuracy": "Accuracy on the preferences kept out, mean over members.",
    "heldout_accuracy": "Share of fresh pairs that the ensemble orders like the true reward.",
    "reward_correlation": "Pearson correlation of predicted and true reward on fresh segments.",
    "fresh_accuracy": "The same for pairs of the newest episodes, measured twenty times a run.",
    "policy_disagreement": "Mean disagreement of the members about these pairs.",
    "policy_reward_std": "Mean over the steps of these pairs of the std over members of the predicted reward.",
    "growth_ratio": "Growth of the predicted return over growth of the true one, in stds of the first look's segments.",
    "policy_loss": "The learner's newest policy loss.",
    "critic_loss": "The learner's newest value or critic loss.",
    "entropy": "The policy's newest entropy in nats.",
    "alpha": "sac: entropy temperature.",
    "q_mean": "sac, dqn: mean Q-value of the newest minibatch.",
    "kl_to_reference": "ppo, sac: mean KL divergence of the newest policy from the reference policy.",
    "cpl_loss": "cpl: contrastive loss of the newest minibatch, in the warm-up too.",
    "cpl_accuracy": "cpl: share of its pairs whose preferred segment is the likelier one.",
    "env_steps_per_s": "Env steps per second of wall-clock time since the last line.",
    "wall_s": "Seconds of training so far, over all starts of this run.",
}


def to_json(value: Any) -> str:
    """Return one line of JSON in which numbers that are not finite are null."""
    return json.dumps(finite(value))


def finite(value: Any) -> Any:
    """Return a value, or everything in a mapping, with None for numbers that are not finite."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
