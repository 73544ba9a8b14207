"""The policy and the critic of a learner as subjects of explanations."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from themis_ray.envs import EnvSpec
from themis_ray.errors import ConfigError
from themis_ray.explain import Rows, Split, Subject, as_floats
from themis_ray.rllib.modules import DQNModule, Encoder, PPOModule, SACModule

__all__ = ["Traced", "policy_subject", "trace", "value_subject"]


Reader = Callable[..., Tensor]


def _chosen(outputs: Tensor, chosen: Tensor) -> Tensor:
    """Outputs (N, O) and places (N, k) to the sum of the outputs there, (N,)."""
    return outputs.gather(1, chosen).sum(dim=1)


def _largest(outputs: Tensor) -> Tensor:
    return outputs.amax(dim=1)


def _dimension(index: int) -> Reader:
    return lambda outputs: outputs[:, index]


def _length(count: int) -> Reader:
    return lambda outputs: outputs[:, :count].norm(dim=1)


class _Head(nn.Module):
    """An encoder, a last layer, and which number is read from it.

    Args:
        encoder: Copied.
        last_layer: Copied.
        read: Outputs and context to (N,).
        is_squashed: Whether outputs pass through tanh before they are read.
        is_logits: Whether outputs are logits of actions.
    """

    def __init__(
        self,
        encoder: nn.Module,
        last_layer: nn.Module,
        read: Reader,
        *,
        is_squashed: bool = False,
        is_logits: bool = False,
    ) -> None:
        super().__init__()
        assert isinstance(encoder, Encoder)
        assert isinstance(last_layer, nn.Linear)
        self.encoder, self.last_layer = copy.deepcopy(encoder), copy.deepcopy(last_layer)
        self.squash = nn.Tanh() if is_squashed else None
        self._read = read
        self.takes_context = read is _chosen
        self.is_logits = is_logits
        self.cpu().requires_grad_(False)

    def forward(self, observations: Tensor, *context: Tensor) -> Tensor:
        return self.read(self.last_layer(self.encoder(observations)), *context)

    def read(self, outputs: Tensor, *context: Tensor) -> Tensor:
        """Map outputs of the last layer to (N,)."""
        return self._read(outputs if self.squash is None else self.squash(outputs), *context)


class _Tail(nn.Module):
    """What follows the first convolution of a `_Head`."""

    def __init__(self, head: _Head) -> None:
        super().__init__()
        self.head = head

    def forward(self, hidden: Tensor, *context: Tensor) -> Tensor:
        return self.head.read(self.head.last_layer(self.head.encoder.later_layers(hidden)), *context)


class _Critics(nn.Module):
    """The mean of the values that twin critics give a Box action."""

    def __init__(self, critics: nn.ModuleList) -> None:
        super().__init__()
        self.critics = copy.deepcopy(critics).cpu().requires_grad_(False)

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        values = [critic["head"](critic["encoder"](observations, actions)) for critic in self.critics]  # type: ignore[index]
        return torch.stack(values).mean(dim=0).squeeze(1)


def policy_subject(module: Any, spec: EnvSpec, dimension: int | None = None) -> Subject:
    """Returns why the policy acts so: the logit, or the Q-value, of the action taken; for Box actions the mean action.

    Args:
        module: An RLModule of ours.
        spec: What its environment is like.
        dimension: Of a Box action; None takes the length of the whole action. Other actions have none.

    Raises:
        ConfigError: There is no such dimension, or the module is none of ours.
    """
    space = spec.action_space
    is_box = isinstance(space, gym.spaces.Box)
    num_dimensions = int(np.prod(space.shape or ())) if is_box else 0
    if dimension is not None and not 0 <= dimension < num_dimensions:
        allowed = f"0 to {num_dimensions - 1}" if is_box else "none: actions are chosen, not scaled"
        raise ConfigError(f"action dimension {dimension} does not exist. Allowed: {allowed}.")
    encoder: nn.Module
    last: nn.Module
    reading: Reader
    match module:
        case PPOModule() | SACModule():
            encoder, last = module.pi_encoder, module.pi
            what = "logit"
        case DQNModule():
            encoder, last = module.q_network
            what = "Q-value"
        case _:
            raise ConfigError(f"{type(module).__name__} is no policy network that can be explained. Give a run's own.")
    if not is_box:
        reading, meaning = _chosen, f"{what} of the action taken"
    elif dimension is None:
        reading, meaning = _length(num_dimensions), "length of the mean action"
    else:
        reading, meaning = _dimension(dimension), f"mean action, dimension {dimension}"
    head = _Head(
        encoder,
        last,
        reading,
        is_squashed=is_box and isinstance(module, SACModule),
        is_logits=not is_box and what == "logit",
    )
    offsets = _offsets(space)

    def read(observations: NDArray[Any], actions: NDArray[Any]) -> Rows:
        if is_box:
            return Rows((as_floats(observations),))
        chosen = torch.tensor(actions.reshape(len(actions), -1)).long() + offsets
        return Rows((as_floats(observations),), (chosen,))

    return _head_subject("action", meaning, head, spec, read, is_network_output=not is_box or dimension is not None)


def value_subject(module: Any, spec: EnvSpec) -> Subject:
    """Returns what the critic expects: V(s) of PPO, the mean of SAC's two Q(s, a), the largest Q(s, a) of DQN.

    Args:
        module: An RLModule of ours, with its critics.
        spec: What its environment is like.

    Raises:
        ConfigError: The module has no critic.
    """

    def read(observations: NDArray[Any], actions: NDArray[Any]) -> Rows:
        del actions
        return Rows((as_floats(observations),))

    match module:
        case PPOModule():
            own = module.pi_encoder if module.is_shared else module.vf_encoder
            return _head_subject("value", "value", _Head(own, module.vf, _dimension(0)), spec, read)
        case DQNModule():
            encoder, last = module.q_network
            return _largest_subject(_Head(encoder, last, _largest), spec, read)
        case SACModule() if module.is_continuous:
            function = _Critics(module.critics)

            def read_both(observations: NDArray[Any], actions: NDArray[Any]) -> Rows:
                return Rows((as_floats(observations), as_floats(actions.reshape(len(actions), -1)).clamp(-1, 1)))

            return Subject(
                name="value",
                meaning="Q-value",
                function=function,
                plain=function,
                observation_space=spec.observation_space,
                observation_kind=spec.observation_kind,
                action_space=spec.action_space,
                read=read_both,
            )
        case SACModule():
            critic: Any = module.critics[0]
            return _largest_subject(_Head(critic["encoder"], critic["head"], _largest), spec, read)
    raise ConfigError(f"{type(module).__name__} has no critic that can be explained. Explain its action.")


class Traced(NamedTuple):
    """What TracInCPFast takes of a subject."""

    network: nn.Module
    """Observations to the outputs of the last layer."""
    last_layer: nn.Linear
    loss: Callable[[Tensor, Tensor], Tensor]
    """Outputs and the subject's context, or anything where it has none, to a sum over rows: minus the log-probability
    of the action taken, of actions that are chosen by logits; minus the explained number of all others."""


def trace(subject: Subject) -> Traced:
    """Returns the network of a subject as TracInCPFast takes it.

    Args:
        subject: Of this module.

    Raises:
        ConfigError: Its number comes from several last layers.
    """
    head = subject.plain
    if not isinstance(head, _Head):
        raise ConfigError(
            f"influence reads one last layer, and the {subject.meaning} comes from several. Explain the action."
        )

    def loss(outputs: Tensor, context: Tensor) -> Tensor:
        if head.is_logits and context.shape[1] == 1:
            return nn.functional.cross_entropy(outputs, context[:, 0], reduction="sum")
        return -head.read(outputs, *((context,) if head.takes_context else ())).sum()

    return Traced(nn.Sequential(head.encoder, head.last_layer), head.last_layer, loss)


def _largest_subject(head: _Head, spec: EnvSpec, read: Callable[[NDArray[Any], NDArray[Any]], Rows]) -> Subject:
    # At the baseline another action may have the largest.
    return _head_subject("value", "largest Q-value", head, spec, read, is_network_output=False)


def _head_subject(
    name: str,
    meaning: str,
    head: _Head,
    spec: EnvSpec,
    read: Callable[[NDArray[Any], NDArray[Any]], Rows],
    is_network_output: bool = True,
) -> Subject:
    split = None
    if spec.observation_kind in ("image", "grid"):
        encoder = head.encoder
        split = Split(lambda observations: (encoder.first_layer(observations),), _Tail(head))
    return Subject(
        name=name,
        meaning=meaning,
        function=head,
        plain=head,
        observation_space=spec.observation_space,
        observation_kind=spec.observation_kind,
        action_space=spec.action_space,
        read=read,
        split=split,
        is_network_output=is_network_output,
    )


def _offsets(space: gym.Space[Any]) -> Tensor:
    """Returns what turns the numbers of an action into places among the outputs, (k,)."""
    if isinstance(space, gym.spaces.MultiDiscrete):
        counts = space.nvec.reshape(-1).astype(np.int64)
        return torch.from_numpy(np.cumsum(counts) - counts - space.start.reshape(-1).astype(np.int64))
    return torch.tensor([-int(space.start)]) if isinstance(space, gym.spaces.Discrete) else torch.zeros(0)
