"""The RLlib Learners.

That of SAC and DQN runs all updates that a sampling round owes in one call; that of PPO can keep the policy near a
reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.policy.sample_batch import MultiAgentBatch
from torch.optim import Adam

from themis_ray.rllib.modules import DQNModule, SACModule
from themis_ray.rllib.updates import ReplayBatch, dqn_update, policy_kl, sac_update

__all__ = ["PolicyLearner", "ReplayLearner"]


def target_entropy(action_space: gym.Space[Any]) -> float:
    """Return SAC's target entropy in nats: minus the action's size for Box, 0.89 log n for Discrete (as CleanRL)."""
    if isinstance(action_space, gym.spaces.Discrete):
        return 0.89 * float(np.log(action_space.n))
    return -float(np.prod(action_space.shape or (1,)))


class PolicyLearner(PPOTorchLearner):
    """PPO's learner, which keeps the policy near a reference where the module has one.

    loss = PPO's loss + c mean over the batch of KL(pi(.|s) || pi_ref(.|s))
    """

    def get_parameters(self, module: Any) -> Sequence[torch.nn.Parameter]:
        """Return what the optimiser steps: everything but the frozen reference."""
        return [parameter for parameter in module.parameters() if parameter.requires_grad]

    def reset_critics(self) -> None:
        """Draw a new value function and forget the moments that Adam kept of the old one; the policy stays."""
        self._weights_seq_no += 1  # An env runner takes weights only when they are newer than its own.
        parameters = self.module[DEFAULT_MODULE_ID].unwrapped().reset_values()
        for _, optimizer in self.get_optimizers_for_module(DEFAULT_MODULE_ID):
            for parameter in parameters:
                optimizer.state.pop(parameter, None)

    def compute_loss_for_module(self, *, module_id: str, config: Any, batch: Any, fwd_out: Any) -> torch.Tensor:
        """Return PPO's loss, with the divergence from the reference added."""
        loss: torch.Tensor = super().compute_loss_for_module(
            module_id=module_id, config=config, batch=batch, fwd_out=fwd_out
        )
        module = self.module[module_id].unwrapped()
        if module.reference is None:
            return loss
        inputs, reference_inputs = fwd_out[Columns.ACTION_DIST_INPUTS], module.reference(batch[Columns.OBS])
        divergence = policy_kl(inputs, reference_inputs, module.action_space)
        if Columns.LOSS_MASK in batch:
            divergence = divergence[batch[Columns.LOSS_MASK]]
        self.metrics.log_value((module_id, "kl_to_reference"), divergence.detach().mean(), window=1)
        total: torch.Tensor = loss + config.kl_coefficient * divergence.mean()
        return total


class ReplayLearner(TorchLearner):
    """Runs `sac_update` or `dqn_update` on consecutive minibatches of one large batch.

    One call per sampling round keeps RLlib's per-call cost (metrics, batch checks, weight sequence numbers) out of
    the per-update cost. A single learner at most: the updates bypass DDP.
    """

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """Register one Adam per group of parameters, so that RLlib saves and restores their state."""
        module = self._module[module_id]
        if isinstance(module, SACModule):
            groups = {
                "critic": (list(module.critics.parameters()), config.critic_lr),
                "policy": ([*module.pi_encoder.parameters(), *module.pi.parameters()], config.actor_lr),
                "alpha": ([module.log_alpha], config.alpha_lr),
            }
        else:
            groups = {"critic": (list(module.q_network.parameters()), config.lr)}
        for name, (parameters, rate_or_schedule) in groups.items():
            self.register_optimizer(
                module_id=module_id,
                optimizer_name=name,
                optimizer=Adam(parameters, fused=True),  # its step size comes from RLlib
                params=parameters,
                lr_or_lr_schedule=rate_or_schedule,
            )

    def _optimizers(self) -> dict[str, Any]:
        prefix = DEFAULT_MODULE_ID + "_"
        return {
            name.removeprefix(prefix): optimizer
            for name, optimizer in self.get_optimizers_for_module(DEFAULT_MODULE_ID)
        }

    def reset_critics(self) -> None:
        """Draw new critics and forget the moments that Adam kept of the old ones; the policy stays."""
        self._weights_seq_no += 1  # An env runner takes weights only when they are newer than its own.
        self.module[DEFAULT_MODULE_ID].reset_critics()
        self._optimizers()["critic"].state.clear()

    def update(
        self,
        batch: MultiAgentBatch | None = None,
        *,
        training_data: Any = None,
        timesteps: dict[str, Any] | None = None,
        minibatch_size: int | None = None,
        **_: Any,
    ) -> Any:
        """Run len(batch) / minibatch_size updates and return the last one's losses as RLlib metrics."""
        self.before_gradient_based_update(timesteps=timesteps or {})
        if training_data is not None:
            training_data.solve_refs()
            batch = training_data.batch
        assert batch is not None
        self._weights_seq_no += 1
        columns = batch.policy_batches[DEFAULT_MODULE_ID]
        rows = ReplayBatch(
            *(
                torch.as_tensor(columns[name], device=self._device)
                for name in (Columns.OBS, Columns.NEXT_OBS, Columns.ACTIONS, Columns.REWARDS, Columns.TERMINATEDS)
            )
        )
        num_rows = len(rows.rewards)
        size = minibatch_size or num_rows
        module, optimizers = self.module[DEFAULT_MODULE_ID].unwrapped(), self._optimizers()
        gamma, tau = self.config.gamma, self.config.tau
        losses: dict[str, torch.Tensor] = {}
        for start in range(0, num_rows - size + 1, size):
            minibatch = rows.rows(start, start + size)
            if isinstance(module, DQNModule):
                losses = dqn_update(module, optimizers, minibatch, gamma, tau)
            else:
                entropy = target_entropy(module.action_space)
                losses = sac_update(module, optimizers, minibatch, gamma, tau, entropy, self.config.kl_coefficient)
        for name, value in losses.items():
            self.metrics.log_value((DEFAULT_MODULE_ID, name), float(value), window=1)
        self.metrics.log_value((DEFAULT_MODULE_ID, "num_updates_lifetime"), num_rows // size, reduce="lifetime_sum")
        self.after_gradient_based_update(timesteps=timesteps or {})
        return self.metrics.reduce()

    def compute_loss_for_module(self, **_: Any) -> Any:
        """Refuse: the losses are computed in `themis_ray.rllib.updates`, several per update."""
        raise RuntimeError("ReplayLearner has no single loss; its updates are in themis_ray.rllib.updates.")
