"""A reward ensemble as torch's own layers: slower than the batched one, but methods can hook them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from themis_ray.envs import ImagePart
from themis_ray.reward import EnsembleCNN, EnsembleMixed, EnsembleMLP, RewardEnsemble, shrink
from themis_ray.reward.networks import EnsembleConvolutions

__all__ = ["PlainEnsemble", "plain_ensemble"]


class PlainMember(nn.Module):
    """One member: convolutions for every picture, and a perceptron behind them.

    Args:
        pictures: Where each picture is in flattened observations; a single one is not flattened.
        convolutions: One for each picture; none for vectors.
        layers: The perceptron up to its last activations.
        last_layer: To the reward before tanh.
    """

    def __init__(
        self, pictures: Sequence[ImagePart], convolutions: Sequence[nn.Module], layers: nn.Module, last_layer: nn.Linear
    ) -> None:
        super().__init__()
        self.pictures = tuple(pictures)
        self.convolutions = nn.ModuleList(convolutions) if convolutions else None  # LRP refuses an empty list
        self.layers = layers
        self.last_layer = last_layer
        self.squash = nn.Tanh()

    def forward(self, pixels: Tensor | None, features: Tensor) -> Tensor:
        """Returns rewards (N,) of what `RewardEnsemble.join` gives."""
        return self.reward(self.last_activations(pixels, features))

    def reward(self, activations: Tensor) -> Tensor:
        """Returns rewards (N,) of what `last_activations` gives."""
        return self.squash(self.last_layer(activations)).squeeze(1)  # type: ignore[no-any-return]

    def last_activations(self, pixels: Tensor | None, features: Tensor) -> Tensor:
        """Returns what the last layer reads, (N, F), of what `RewardEnsemble.join` gives."""
        if pixels is not None and self.convolutions is not None:
            parts = [
                convolve(shrink(picture).float().movedim(-1, 1))
                for convolve, picture in zip(self.convolutions, self._split(pixels), strict=True)
            ]
            features = torch.cat([*parts, features], dim=1)
        return self.layers(features)  # type: ignore[no-any-return]

    def _split(self, pixels: Tensor) -> list[Tensor]:
        if not self.pictures:
            return [pixels]
        return [pixels[:, part.start : part.stop].reshape(-1, *part.shape) for part in self.pictures]


class PlainEnsemble(nn.Module):
    """What `RewardEnsemble.predict` gives without bonus, of K networks of torch's own layers.

    Args:
        ensemble: Encodes rows, and says shift and scale.
        members: With its weights.
    """

    def __init__(self, ensemble: RewardEnsemble, members: Sequence[PlainMember]) -> None:
        super().__init__()
        self._join = ensemble.join
        self.members = nn.ModuleList(members)
        _, shift, scale = ensemble.prediction_terms.tolist()
        self._shift, self._scale = shift, scale

    def last_activations(self, observations: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what the members' last layers read, (K, N, F), and the rewards they give, (K, N)."""
        inputs = self._join(observations, actions)
        members = [member for member in self.members if isinstance(member, PlainMember)]
        activations = [member.last_activations(inputs.pixels, inputs.features) for member in members]
        rewards = [member.reward(hidden) for member, hidden in zip(members, activations, strict=True)]
        return torch.stack(activations), torch.stack(rewards)

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Returns predicted rewards (N,) of observations (N, *observation_shape) and encoded actions (N, A)."""
        inputs = self._join(observations, actions)
        members = torch.stack([member(inputs.pixels, inputs.features) for member in self.members])
        rewards: Tensor = (members.mean(dim=0) - self._shift) / self._scale
        return rewards


def plain_ensemble(ensemble: RewardEnsemble) -> PlainEnsemble:
    """Returns the same function as `ensemble` of torch's own layers, with copies of its weights."""
    members = []
    for index in range(ensemble.ensemble_size):
        network = ensemble.network
        pictures: Sequence[ImagePart] = ()
        convolutions: list[nn.Module] = []
        match network:
            case EnsembleCNN():
                convolutions, head = [_convolutions(network, index)], network.head
            case EnsembleMixed():
                pictures, head = network.layout, network.head
                convolutions = [
                    _convolutions(part, index) for part in network.parts if isinstance(part, EnsembleConvolutions)
                ]
            case EnsembleMLP():
                head = network
        *hidden, last_layer = _linear_layers(head, index)
        layers = nn.Sequential(*(layer for linear in hidden for layer in (linear, nn.LeakyReLU())))
        members.append(PlainMember(pictures, convolutions, layers, last_layer))
    return PlainEnsemble(ensemble, members).requires_grad_(False)


def _convolutions(network: EnsembleConvolutions, index: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for number, (filters, biases, stride) in enumerate(
        zip(network.filters, network.biases, network.strides, strict=True)
    ):
        count = len(filters) // network.ensemble_size
        own = slice(index * count, (index + 1) * count)
        weight = filters[own] * network.pixel_scale if number == 0 else filters[own]
        layer = nn.Conv2d(weight.shape[1], count, (weight.shape[2], weight.shape[3]), stride)
        layer.load_state_dict({"weight": weight.detach(), "bias": biases[own].detach()})
        layers += [layer, nn.LeakyReLU()]
    return nn.Sequential(*layers, nn.Flatten())


def _linear_layers(network: EnsembleMLP, index: int) -> list[nn.Linear]:
    layers = []
    for weights, biases in zip(network.weights, network.biases, strict=True):
        layer = nn.Linear(weights.shape[1], weights.shape[2])
        layer.load_state_dict({"weight": weights[index].detach().T, "bias": biases[index, 0].detach()})
        layers.append(layer)
    return layers
