"""One gradient step of each off-policy learner, as plain functions of a module, its optimisers and a batch.

RLlib's own path spends more time on bookkeeping than on the networks; these run inside an RLlib Learner (see
`learners.py`) and cost what the same step costs in bare torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor
from torch.nn.functional import log_softmax, mse_loss, smooth_l1_loss, softplus
from torch.optim import Optimizer

from themis_ray.rllib.modules import DQNModule, SACModule

__all__ = ["ReplayBatch", "categorical_kl", "dqn_update", "gaussian_kl", "policy_kl", "sac_update"]

Optimizers = Mapping[str, Optimizer]
HALF_LOG_2_PI = 0.9189385332046727
LOG_2 = 0.6931471805599453


@dataclass(frozen=True)
class ReplayBatch:
    """N transitions as tensors; `rewards` is what the learner is paid."""

    observations: Tensor
    next_observations: Tensor
    actions: Tensor
    rewards: Tensor
    terminated: Tensor

    def rows(self, start: int, stop: int) -> ReplayBatch:
        """Return rows start to stop as a batch of views."""
        return ReplayBatch(
            self.observations[start:stop],
            self.next_observations[start:stop],
            self.actions[start:stop],
            self.rewards[start:stop],
            self.terminated[start:stop],
        )


def categorical_kl(logits: Tensor, reference_logits: Tensor) -> Tensor:
    """Return KL(p || q) of the categorical distributions of two arrays of logits (N, A), shape (N,)."""
    log_p, log_q = log_softmax(logits, -1), log_softmax(reference_logits, -1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def gaussian_kl(mean: Tensor, log_std: Tensor, reference_mean: Tensor, reference_log_std: Tensor) -> Tensor:
    """Return KL(p || q) of two diagonal Gaussians given as (N, A) means and log standard deviations, shape (N,).

    Squashing both with the same tanh leaves it as it is, because tanh is invertible.
    """
    log_ratio = log_std - reference_log_std
    distance = (mean - reference_mean) * (-reference_log_std).exp()
    return (0.5 * ((2 * log_ratio).exp() + distance.square() - 1) - log_ratio).sum(-1)


def policy_kl(inputs: Tensor, reference_inputs: Tensor, action_space: gym.Space[Any]) -> Tensor:
    """Return KL(pi || pi_ref), shape (N,), of two policies for Discrete, MultiDiscrete or Box actions.

    Args:
        inputs: (N, *) what the policy's distribution is made of: logits, logits side by side, or means and log
            standard deviations side by side.
        reference_inputs: The same of the reference policy.
        action_space: Tells which of the three they are.
    """
    if isinstance(action_space, gym.spaces.Discrete):
        return categorical_kl(inputs, reference_inputs)
    if isinstance(action_space, gym.spaces.MultiDiscrete):
        sizes = action_space.nvec.tolist()
        pairs = zip(torch.split(inputs, sizes, -1), torch.split(reference_inputs, sizes, -1), strict=True)
        return torch.stack([categorical_kl(*pair) for pair in pairs]).sum(0)
    return gaussian_kl(*inputs.chunk(2, -1), *reference_inputs.chunk(2, -1))


def _sample_action(module: SACModule, observations: Tensor) -> tuple[Tensor, Tensor]:
    """Draw squashed actions (N, A) with their log probabilities (N,), differentiable in the policy."""
    return _draw(*module.policy(observations))


def _draw(mean: Tensor, log_std: Tensor) -> tuple[Tensor, Tensor]:
    """Draw from squashed Gaussians: actions (N, A) and log probabilities (N,).

    log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2 u)), which does not overflow.
    """
    noise = torch.randn_like(mean)
    unsquashed = mean + log_std.exp() * noise
    log_density = -0.5 * noise.square() - log_std - HALF_LOG_2_PI
    correction = 2 * (LOG_2 - unsquashed - softplus(-2 * unsquashed))
    return torch.tanh(unsquashed), (log_density - correction).sum(-1)


def _values(critic: torch.nn.Module, observations: Tensor, actions: Tensor | None) -> Tensor:
    return critic["head"](critic["encoder"](observations, actions))  # type: ignore[index, no-any-return]


def _step(optimizer: Optimizer, loss: Tensor) -> None:
    """Step along the gradient of `loss` in this optimiser's parameters only."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward(inputs=[p for group in optimizer.param_groups for p in group["params"]])  # type: ignore[no-untyped-call]
    optimizer.step()


def _blend(targets: torch.nn.Module, sources: torch.nn.Module, tau: float) -> None:
    """Move every target parameter a share `tau` of the way to its source."""
    torch._foreach_lerp_(list(targets.parameters()), list(sources.parameters()), tau)


def _policy_loss(
    module: SACModule, observations: Tensor, alpha: Tensor, kl_coefficient: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return SAC's policy loss, the policy's entropy, and its divergence from the reference; None without one.

    E[alpha log pi(a|s) - Q(s, a) + c KL(pi(.|s) || pi_ref(.|s))], where the divergence is the expectation of
    log pi - log pi_ref over the policy's actions, in closed form.
    """
    divergence = None
    if module.is_continuous:
        mean, log_std = module.policy(observations)
        actions, log_probabilities = _draw(mean, log_std)
        q = torch.minimum(*(_values(c, observations, actions) for c in module.critics)).squeeze(-1)
        loss = (alpha * log_probabilities - q).mean()
        entropy = -log_probabilities.detach().mean()
        if module.reference is not None:
            divergence = gaussian_kl(mean, log_std, *module.reference_policy(observations)).mean()
    else:
        logits = module.pi(module.pi_encoder(observations))
        log_probabilities = log_softmax(logits, -1)
        probabilities = log_probabilities.exp()
        with torch.no_grad():
            q = torch.minimum(*(_values(c, observations, None) for c in module.critics))
        loss = (probabilities * (alpha * log_probabilities - q)).sum(-1).mean()
        entropy = -(probabilities * log_probabilities).sum(-1).detach().mean()
        if module.reference is not None:
            divergence = categorical_kl(logits, module.reference(observations)).mean()
    if divergence is None:
        return loss, entropy, None
    return loss + kl_coefficient * divergence, entropy, divergence.detach()


def sac_update(
    module: SACModule,
    optimizers: Optimizers,
    batch: ReplayBatch,
    gamma: float,
    tau: float,
    target_entropy: float,
    kl_coefficient: float = 0.0,
) -> dict[str, Tensor]:
    """Run one soft actor-critic step: critics, policy, temperature, targets.

    Haarnoja et al. 2018 (arXiv 1812.05905) for Box actions, Christodoulou 2019 (arXiv 1910.07207) for Discrete. A
    reference policy regularises the policy and not the values, as in BRAC (Wu et al. 2019, arXiv 1911.11361).

    Args:
        module: Networks and temperature.
        optimizers: Adam for `critic`, `policy` and `alpha`.
        batch: N transitions.
        gamma: Discount factor.
        tau: Share of the targets replaced.
        target_entropy: Nats that the temperature steers the policy to.
        kl_coefficient: Weight of the divergence from the module's reference policy, where it has one.

    Returns:
        Scalar tensors: critic_loss, policy_loss, alpha, q_mean, entropy, and kl_to_reference where there is one.
    """
    alpha = module.log_alpha.detach().exp()
    observations, next_observations = batch.observations, batch.next_observations
    actions = batch.actions.reshape(len(batch.actions), -1) if module.is_continuous else None
    with torch.no_grad():
        if module.is_continuous:
            next_actions, next_log_probabilities = _sample_action(module, next_observations)
            q_next = torch.minimum(*(_values(c, next_observations, next_actions) for c in module.target_critics))
            next_values = q_next.squeeze(-1) - alpha * next_log_probabilities
        else:
            next_log_probabilities = log_softmax(module.pi(module.pi_encoder(next_observations)), -1)
            q_next = torch.minimum(*(_values(c, next_observations, None) for c in module.target_critics))
            next_values = (next_log_probabilities.exp() * (q_next - alpha * next_log_probabilities)).sum(-1)
        targets = batch.rewards + gamma * (1 - batch.terminated) * next_values
    q_first, q_second = (_values(c, observations, actions) for c in module.critics)
    if module.is_continuous:
        q_first, q_second = q_first.squeeze(-1), q_second.squeeze(-1)
    else:
        index = batch.actions.long().unsqueeze(-1)
        q_first, q_second = q_first.gather(1, index).squeeze(-1), q_second.gather(1, index).squeeze(-1)
    critic_loss = mse_loss(q_first, targets) + mse_loss(q_second, targets)
    _step(optimizers["critic"], critic_loss)

    policy_loss, entropy, divergence = _policy_loss(module, observations, alpha, kl_coefficient)
    _step(optimizers["policy"], policy_loss)
    _step(optimizers["alpha"], module.log_alpha * (entropy - target_entropy))
    _blend(module.target_critics, module.critics, tau)
    losses = {
        "critic_loss": critic_loss.detach(),
        "policy_loss": policy_loss.detach(),
        "alpha": alpha,
        "q_mean": q_first.detach().mean(),
        "entropy": entropy,
    }
    return losses if divergence is None else {**losses, "kl_to_reference": divergence}


def dqn_update(
    module: DQNModule, optimizers: Optimizers, batch: ReplayBatch, gamma: float, tau: float
) -> dict[str, Tensor]:
    """Run one double-DQN step (van Hasselt et al. 2016) with the Huber loss and a blended target.

    Returns:
        Scalar tensors: critic_loss, q_mean.
    """
    with torch.no_grad():
        best = module.q_network(batch.next_observations).argmax(-1, keepdim=True)
        next_values = module.target_q_network(batch.next_observations).gather(1, best).squeeze(-1)
        targets = batch.rewards + gamma * (1 - batch.terminated) * next_values
    values = module.q_network(batch.observations).gather(1, batch.actions.long().unsqueeze(-1)).squeeze(-1)
    loss = smooth_l1_loss(values, targets)
    _step(optimizers["critic"], loss)
    _blend(module.target_q_network, module.q_network, tau)
    return {"critic_loss": loss.detach(), "q_mean": values.detach().mean()}
