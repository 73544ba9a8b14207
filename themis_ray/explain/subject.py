"""What is explained: a function of observations and actions that gives one number per row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium as gym
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from themis_ray.envs import EnvSpec, ObservationKind
from themis_ray.explain.plain import plain_ensemble
from themis_ray.reward import EnsembleCNN, RewardEnsemble

__all__ = ["Rows", "Split", "Subject", "as_floats", "reward_subject"]


class Rows(NamedTuple):
    """N rows of what a subject reads."""

    inputs: tuple[Tensor, ...]
    """float32, what is explained: observations (N, *observation_shape), then encoded actions (N, A) where it reads
    them."""
    context: tuple[Tensor, ...] = ()
    """What else it reads and nothing is asked about, such as which action was chosen, (N, *)."""

    def __len__(self) -> int:
        return len(self.inputs[0])

    def take(self, rows: slice | Tensor) -> Rows:
        """Returns some of the rows."""
        return Rows(tuple(part[rows] for part in self.inputs), tuple(part[rows] for part in self.context))

    def followed_by(self, others: Rows) -> Rows:
        """Returns these rows and then others of the same subject."""
        return Rows(
            tuple(map(torch.cat, zip(self.inputs, others.inputs, strict=True))),
            tuple(map(torch.cat, zip(self.context, others.context, strict=True))),
        )


class Split(NamedTuple):
    """A subject cut in two behind its first layer."""

    stem: Callable[..., tuple[Tensor, ...]]
    """Inputs to hidden tensors; affine, each row by itself."""
    tail: nn.Module
    """Hidden tensors and context to (N,)."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A function of inputs and context, and what methods need to know about it.

    Attributes:
        name: "action", "value" or "reward".
        meaning: What the number is, for people, such as "predicted reward".
        function: Inputs and context to (N,).
        plain: The same function, of torch's own layers, for methods that hook them; `function` itself where it is.
        observation_space: Of the observations.
        observation_kind: Their kind.
        action_space: Of the actions of rows.
        read: Stored observations (N, *observation_shape) and actions (N, *action_shape) to rows.
        split: For integrated gradients; None where there is no gain.
        is_network_output: Whether the number is one of the outputs of the last layer, or a mean of such, with nothing
            but an elementwise function behind.
    """

    name: str
    meaning: str
    function: nn.Module
    plain: nn.Module
    observation_space: gym.spaces.Box
    observation_kind: ObservationKind
    action_space: gym.Space[Any]
    read: Callable[[NDArray[Any], NDArray[Any]], Rows]
    split: Split | None = None
    is_network_output: bool = True

    @torch.no_grad()
    def evaluate(self, rows: Rows, chunk_size: int = 256) -> Tensor:
        """Returns the numbers (N,) without gradients."""
        parts = [
            self.function(*part.inputs, *part.context)
            for part in (rows.take(slice(start, start + chunk_size)) for start in range(0, len(rows), chunk_size))
        ]
        return torch.cat(parts)


def as_floats(observations: NDArray[Any]) -> Tensor:
    """Returns stored observations as float32, in their own units."""
    return torch.tensor(observations, dtype=torch.float32)


class _PredictedReward(nn.Module):
    """The mean over members in the unit that the learner is paid in.

    The exploration bonus is left out: it is no opinion about the step.
    """

    def __init__(self, ensemble: RewardEnsemble) -> None:
        super().__init__()
        self.ensemble = ensemble

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        return self.scale(self.ensemble.evaluate(self.ensemble.join(observations, actions)))

    def scale(self, rewards: Tensor) -> Tensor:
        _, shift, scale = self.ensemble.prediction_terms
        scaled: Tensor = (rewards.mean(dim=0) - shift) / scale
        return scaled


class _FromFirstLayer(nn.Module):
    def __init__(self, reward: _PredictedReward, network: EnsembleCNN) -> None:
        super().__init__()
        self.reward, self.network = reward, network

    def forward(self, hidden: Tensor, actions: Tensor) -> Tensor:
        return self.reward.scale(self.network.forward_from_first_layer(hidden, actions))


def reward_subject(ensemble: RewardEnsemble, spec: EnvSpec) -> Subject:
    """Returns the predicted reward of a step: (mean over members - shift) / scale, see `RewardEnsemble.predict`.

    The rewards of the steps of a segment add up to its predicted return, and the log-odds of a pair are the predicted
    return of left minus that of right times the scale, so this is all that is needed to explain those too.

    Args:
        ensemble: Fitted; it is not changed.
        spec: What its environment is like.
    """

    def read(observations: NDArray[Any], actions: NDArray[Any]) -> Rows:
        encoded = ensemble.encode_actions(torch.tensor(actions).reshape(len(actions), -1))
        return Rows((as_floats(observations), encoded))

    reward, network = _PredictedReward(ensemble), ensemble.network
    split = None
    if isinstance(network, EnsembleCNN):

        def stem(observations: Tensor, actions: Tensor) -> tuple[Tensor, ...]:
            return network.first_layer(observations), actions

        split = Split(stem, _FromFirstLayer(reward, network))
    return Subject(
        name="reward",
        meaning="predicted reward",
        function=reward,
        plain=plain_ensemble(ensemble),
        observation_space=spec.observation_space,
        observation_kind=spec.observation_kind,
        action_space=spec.action_space,
        read=read,
        split=split,
    )
