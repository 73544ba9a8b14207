"""Contrastive preference learning: a policy straight from stored preferences, without a reward model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.metrics import LEARNER_RESULTS, LEARNER_UPDATE_TIMER, TIMERS
from torch import Tensor
from torch.nn.functional import log_softmax, logsigmoid

from themis_ray.data import Choice, LabelledPairs, Preference, PreferenceDataset
from themis_ray.envs import EnvSpec, differing_meanings, read_env_config
from themis_ray.errors import DataError
from themis_ray.feedback import check_choices
from themis_ray.loop_settings import LoopSettings, required
from themis_ray.rllib.base import PreferenceAlgorithm, PreferenceConfig
from themis_ray.rllib.loop import PreferenceLoop
from themis_ray.rllib.modules import PPOModule

__all__ = [
    "PreferenceCPL",
    "PreferenceCPLConfig",
    "action_log_probabilities",
    "cpl_loss",
    "discounted_sums",
    "open_preferences",
]

PREFERENCE_LABELS = "preference_labels"
IS_CLONING = "is_cloning"


def action_log_probabilities(inputs: Tensor, actions: Tensor, action_space: gym.Space[Any]) -> Tensor:
    """Return log pi(a|s) of N steps, shape (N,), for Discrete, MultiDiscrete or Box actions.

    For Box actions pi is a Gaussian of standard deviation 1 and the constant of its density is left out, so that
    log pi = -|a - mean|^2 / 2 is at most 0, as it is for the others. The constant would shift the margins of a
    conservative loss. Hejna et al. 2024 train without the half: their alpha is half of ours.

    Args:
        inputs: (N, *) what the policy's distribution is made of, as in `policy_kl`.
        actions: (N, *action_shape).
        action_space: Tells which of the three they are.
    """
    if isinstance(action_space, gym.spaces.Discrete):
        return log_softmax(inputs, -1).gather(-1, actions.long().reshape(-1, 1)).squeeze(-1)
    if isinstance(action_space, gym.spaces.MultiDiscrete):
        parts = torch.split(inputs, action_space.nvec.tolist(), -1)
        columns = actions.long().reshape(len(actions), -1, 1).unbind(1)
        chosen = [log_softmax(part, -1).gather(-1, column) for part, column in zip(parts, columns, strict=True)]
        return torch.cat(chosen, -1).sum(-1)
    mean = inputs.chunk(2, -1)[0]
    return -0.5 * (actions.reshape(mean.shape) - mean).square().sum(-1)


def discounted_sums(log_probabilities: Tensor, gamma: float) -> Tensor:
    """Return sum_t gamma^t log pi(a_t|s_t) of segments, (..., L) to (...)."""
    powers = torch.arange(log_probabilities.shape[-1], device=log_probabilities.device)
    return (log_probabilities * gamma**powers).sum(-1)


def cpl_loss(left: Tensor, right: Tensor, labels: Tensor, alpha: float, conservative_bias: float) -> Tensor:
    """Return the contrastive preference loss of N pairs, a scalar.

    l(a, b) = -log sigma(alpha (S_a - lambda S_b)), and the loss is the mean of p l(left, right) + (1 - p)
    l(right, left), where p is the label: an equal answer counts half each way. Without the bias, lambda = 1, it is the
    cross-entropy of p. Hejna et al. 2024, "Contrastive Preference Learning" (arXiv 2310.13639).

    Args:
        left: (N,) discounted sums S of log pi over the left segments, each at most 0.
        right: (N,) the same of the right segments.
        labels: (N,) p(left preferred).
        alpha: Scale of the sums.
        conservative_bias: lambda from 0 to 1; below 1 the preferred segment is to be likely too, not only likelier.
    """
    left_wins = -logsigmoid(alpha * (left - conservative_bias * right))
    right_wins = -logsigmoid(alpha * (right - conservative_bias * left))
    return (labels * left_wins + (1 - labels) * right_wins).mean()


def open_preferences(settings: LoopSettings, spec: EnvSpec) -> PreferenceDataset:
    """Return the preferences that `feedback.dataset` names, which fit the environment.

    Raises:
        DataError: There are none, they cannot be read, or they are of another environment, of other shapes, of actions
            that it does not have or, where they lie in a run's folder, of observations that mean something else.
    """
    path = Path(required(settings.feedback.dataset))
    dataset = PreferenceDataset(path)
    if dataset.num_preferences == 0:
        raise DataError(
            f"feedback.dataset={path} holds no answered preferences. Give the folder of a run that learned from "
            "preferences, or one that themis data import wrote."
        )
    segment = dataset.segment(dataset.preferences[0].left_id)
    observations, actions = spec.observation_space, spec.action_space
    wanted = {
        "environment": (spec.id, segment.env_id),
        "observations": (
            (observations.shape, str(observations.dtype)),
            (segment.observations.shape[1:], str(segment.observations.dtype)),
        ),
        "shape of an action": (actions.shape, segment.actions.shape[1:]),
    }
    env = read_env_config(path)
    if env is not None:
        wanted |= differing_meanings(settings.env, env, spec)
    for what, (here, there) in wanted.items():
        if here != there:
            raise DataError(
                f"feedback.dataset={path} does not fit this run: {what} {here} here, {there} in the dataset. "
                "Change env or give another dataset."
            )
    used = {id_ for row in dataset.labelled_preferences() for id_ in (row.left_id, row.right_id)}
    check_choices(f"feedback.dataset={path}", map(dataset.segment, used), actions)
    return dataset


class StoredPreferenceLoop(PreferenceLoop):
    """The loop of a learner that asks nobody: its preferences are another run's, which it only reads.

    A checkpoint holds no copy of them but how many there were and a hash, so that a resumed run learns from the same
    ones, also when the dataset has grown meanwhile.
    """

    def __init__(self, settings: LoopSettings, spec: EnvSpec, *arguments: Any) -> None:
        open_preferences(settings, spec)
        super().__init__(settings, spec, *arguments)
        self._num_queries = self.dataset.num_queries
        self._num_questions = self.dataset.num_questions

    @property
    def num_questions(self) -> int:
        """Questions that the dataset held when the run began."""
        return self._num_questions

    @property
    def num_preferences(self) -> int:
        """Preferences that are learned from."""
        return sum(row.choice is not Choice.SKIP for row in self.dataset.preferences[: self._num_queries])

    @cached_property
    def pairs(self) -> LabelledPairs:
        """The preferences that are learned from."""
        pairs = self.dataset.labelled_pairs(required(self.settings.reward.label_margin), upto=self._num_queries)
        space = self.spec.action_space
        if isinstance(space, gym.spaces.Box) and space.is_bounded():
            # An unsquashed policy may have chosen more than the environment takes.
            return replace(pairs, actions=pairs.actions.clip(-1.0, 1.0))
        return pairs

    def get_state(self, components: Any = None, *, not_components: Any = None, **_: Any) -> dict[str, Any]:
        """Return what the loop needs to go on, with a reference to the preferences in place of a copy."""
        del components, not_components
        preferences = self.dataset.preferences[: self._num_queries]
        reference = (len(preferences), _fingerprint(preferences))
        return {
            **super().get_state(),
            "queries": [],
            "preferences": [],
            "asked": ([], []),
            "evaluations": ([], []),
            "stored_preferences": reference,
            "num_stored_questions": self._num_questions,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore `get_state`.

        Raises:
            DataError: The dataset no longer begins with the preferences that were learned from.
        """
        num_queries, fingerprint = state["stored_preferences"]
        if _fingerprint(self.dataset.preferences[:num_queries]) != fingerprint:
            raise DataError(
                f"{self.dataset.root} has changed: the run learned from its first {num_queries} answers, which are "
                "others now. Bring them back from a copy, or start a new run."
            )
        super().set_state(state)
        self._num_queries = num_queries
        self._num_questions = state.get("num_stored_questions", self._num_questions)
        self.__dict__.pop("pairs", None)

    def _restore_dataset(self, queries: list[Any], preferences: list[Preference]) -> None:
        """Write nothing: the preferences are not this run's."""


def _fingerprint(preferences: Sequence[Preference]) -> str:
    lines = "".join(f"{preference.query_id} {preference.choice.value}\n" for preference in preferences)
    return hashlib.blake2b(lines.encode(), digest_size=16).hexdigest()


class CPLLearner(TorchLearner):
    """Learns from batches of N pairs, whose rows are ordered by pair, side (left, right) and step."""

    def get_parameters(self, module: Any) -> Sequence[torch.nn.Parameter]:
        """Return what the optimiser steps: the policy without its standard deviation, and no values."""
        return [*module.pi_encoder.parameters(), *module.pi.parameters()]

    def compute_loss_for_module(self, *, module_id: str, config: Any, batch: Any, fwd_out: Any) -> Tensor:
        """Return the contrastive loss, or in the warm-up the negative mean log probability of all stored actions."""
        module = self.module[module_id].unwrapped()
        log_probabilities = action_log_probabilities(
            fwd_out[Columns.ACTION_DIST_INPUTS], batch[Columns.ACTIONS], module.action_space
        )
        num_pairs = config.train_batch_size_per_learner
        by_side = log_probabilities.reshape(num_pairs, 2, -1)
        labels = batch[PREFERENCE_LABELS].reshape(num_pairs, -1)[:, 0]
        left, right = discounted_sums(by_side, config.gamma).unbind(1)
        contrastive = cpl_loss(left, right, labels, config.contrastive_alpha, config.conservative_bias)
        loss = -log_probabilities.mean() if bool(batch[IS_CLONING][0]) else contrastive
        values = {"policy_loss": loss.detach(), "cpl_loss": contrastive.detach()}
        is_ordered = labels != 0.5
        if is_ordered.any():
            values["cpl_accuracy"] = ((left > right) == (labels > 0.5))[is_ordered].float().mean()
        for name, value in values.items():
            self.metrics.log_value((module_id, name), value, window=1)
        return loss


class PreferenceCPL(PreferenceAlgorithm, Algorithm):
    """Contrastive preference learning from a stored dataset. Env steps only measure the policy."""

    loop_class = StoredPreferenceLoop

    @classmethod
    def get_default_config(cls) -> AlgorithmConfig:
        """Return the configuration class that this algorithm understands."""
        return PreferenceCPLConfig()

    @property
    def loop(self) -> StoredPreferenceLoop:
        """The loop, once `setup` has built it."""
        assert isinstance(self._loop, StoredPreferenceLoop)
        return self._loop

    def training_step(self) -> None:
        """Measure the policy on a round of env steps, then make the updates that they owe."""
        loop, algorithm = self.loop, self.loop.settings.algorithm
        is_cloning = self.env_steps < required(algorithm.cloning_share) * loop.settings.num_env_steps
        num_new_steps = sum(len(episode) for episode in self._sample_round())
        loop.num_updates_owed += num_new_steps * required(algorithm.updates_per_env_step)
        num_updates, loop.num_updates_owed = divmod(loop.num_updates_owed, 1)
        for _ in range(int(num_updates)):
            with self.metrics.log_time((TIMERS, LEARNER_UPDATE_TIMER)):
                results = self.learner_group.update(batch=self._draw_batch(is_cloning), timesteps=self._timesteps())
            self.metrics.aggregate(results, key=LEARNER_RESULTS)
        if num_updates:
            self._sync_weights()

    def _draw_batch(self, is_cloning: bool) -> MultiAgentBatch:
        """Draw pairs with replacement and lay their steps out as `CPLLearner` reads them."""
        pairs = self.loop.pairs
        drawn = self.loop.streams["pairs"].integers(len(pairs), size=self.config.train_batch_size_per_learner)
        segments = np.stack([pairs.left[drawn], pairs.right[drawn]], axis=1).reshape(-1)
        observations, actions = pairs.observations[segments], pairs.actions[segments]
        num_rows = observations.shape[0] * observations.shape[1]
        columns = {
            Columns.OBS: observations.reshape(num_rows, *observations.shape[2:]),
            Columns.ACTIONS: actions.reshape(num_rows, *actions.shape[2:]),
            PREFERENCE_LABELS: pairs.labels[drawn].repeat(num_rows // len(drawn)),
            IS_CLONING: np.full(num_rows, is_cloning),
        }
        return MultiAgentBatch({DEFAULT_MODULE_ID: SampleBatch(columns)}, env_steps=num_rows)


class PreferenceCPLConfig(PreferenceConfig, AlgorithmConfig):
    """AlgorithmConfig with the loop's settings and the loss's."""

    def __init__(self, algo_class: type[Algorithm] | None = None) -> None:
        super().__init__(algo_class or PreferenceCPL)
        self.contrastive_alpha = 0.1
        self.conservative_bias = 0.5

    def get_default_learner_class(self) -> Any:
        """Return the learner with the contrastive loss."""
        return CPLLearner

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """Return PPO's module, of which only the policy is used."""
        return RLModuleSpec(module_class=PPOModule)
