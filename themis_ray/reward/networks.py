"""Networks of a reward ensemble: all members in one batched module, never a Python loop over members."""

import itertools
import math
from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (torch's own convention)

from themis_ray.envs import ImagePart
from themis_ray.reward.pixels import grid_stride, shrink, shrunk_sides

# (filters, kernel, stride) per layer. Images: the Atari torso of Mnih et al. 2015 with fewer filters.
IMAGE_LAYERS = ((16, 8, 4), (32, 4, 2), (32, 3, 1))
GRID_LAYERS = ((16, 2, 1), (32, 2, 1))


def picture_layers(kind: Literal["image", "grid"], shape: tuple[int, int, int]) -> tuple[tuple[int, int, int], ...]:
    """Returns (filters, kernel, stride) of each convolution of a picture of shape (height, width, channels)."""
    if kind == "image":
        return IMAGE_LAYERS
    first, *later = GRID_LAYERS
    stride = grid_stride(*shape[:2])
    return (first, *((filters, kernel, stride) for filters, kernel, _ in later))


def _uniform(shape: tuple[int, ...], fan_in: int, generator: torch.Generator) -> nn.Parameter:
    """Draws weights or biases as `torch.nn.Linear` and `Conv2d` do: kaiming uniform with a = sqrt(5)."""
    bound = 1.0 / math.sqrt(fan_in)
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound, generator=generator))


class EnsembleMLP(nn.Module):
    """K independent perceptrons evaluated by one `baddbmm` per layer.

    LeakyReLU between layers and tanh at the end, so that every reward lies in (-1, 1) (B-Pref, Lee et al. 2021).
    """

    def __init__(
        self, in_features: int, hidden_sizes: Sequence[int], ensemble_size: int, generator: torch.Generator
    ) -> None:
        """Draws every member's weights from `generator`.

        Args:
            in_features: D, values per row.
            hidden_sizes: Units of each hidden layer.
            ensemble_size: K, number of members.
            generator: Where the initial weights come from; advanced in place.
        """
        super().__init__()
        sizes = (in_features, *hidden_sizes, 1)
        layers = list(itertools.pairwise(sizes))
        self.ensemble_size = ensemble_size
        self.weights = nn.ParameterList(_uniform((ensemble_size, i, o), i, generator) for i, o in layers)
        self.biases = nn.ParameterList(_uniform((ensemble_size, 1, o), i, generator) for i, o in layers)
        self.values_per_row = sum(sizes)
        """Floats one row of one member holds alive during a forward pass; sizes the micro-batches."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns rewards (K, N) of rows `x`: (N, D) shared by the members or (K, N, D) one set per member."""
        hidden = x if x.ndim == 3 else x.expand(self.ensemble_size, *x.shape)
        *inner, (last_weight, last_bias) = zip(self.weights, self.biases, strict=True)
        for weight, bias in inner:
            hidden = F.leaky_relu_(torch.baddbmm(bias, hidden, weight))
        return torch.baddbmm(last_bias, hidden, last_weight).squeeze(2).tanh_()


class EnsembleConvolutions(nn.Module):
    """The convolutions of K independent networks as grouped convolutions (groups = K).

    Pixels stay in their stored type until they are inside `convolve`. Large pictures are shrunk first (`shrink`).
    """

    def __init__(
        self,
        pixel_shape: tuple[int, int, int],
        layers: Sequence[tuple[int, int, int]],
        pixel_scale: float,
        ensemble_size: int,
        generator: torch.Generator,
    ) -> None:
        """Draws every member's weights from `generator`.

        Args:
            pixel_shape: (height, width, channels) of one picture.
            layers: (filters, kernel, stride) of each convolution; a kernel is cut to the side it meets.
            pixel_scale: Factor that every pixel is multiplied by.
            ensemble_size: K, number of members.
            generator: Where the initial weights come from; advanced in place.
        """
        super().__init__()
        num_values = math.prod(pixel_shape)
        height, width = shrunk_sides(*pixel_shape[:2])
        channels = pixel_shape[2]
        if (height, width) != pixel_shape[:2]:
            num_values += height * width * channels
        self.ensemble_size = ensemble_size
        self.pixel_scale = pixel_scale
        self.strides = tuple(stride for _, _, stride in layers)
        self.filters = nn.ParameterList()
        self.biases = nn.ParameterList()
        for num_filters, kernel, stride in layers:
            kernel_shape = (min(kernel, height), min(kernel, width))
            fan_in = channels * math.prod(kernel_shape)
            self.filters.append(_uniform((ensemble_size * num_filters, channels, *kernel_shape), fan_in, generator))
            self.biases.append(_uniform((ensemble_size * num_filters,), fan_in, generator))
            height, width = (
                (side - cut) // stride + 1 for side, cut in zip((height, width), kernel_shape, strict=True)
            )
            channels = num_filters
            num_values += height * width * channels
        self.num_features = height * width * channels
        self.values_per_row = num_values
        """Floats one row of one member holds alive during a forward pass; sizes the micro-batches."""

    def convolve(self, pixels: Tensor) -> Tensor:
        """Returns features (K, N, F).

        Args:
            pixels: (N, H, W, C) shared by the members or (K, N, H, W, C) one set per member, any type.
        """
        return self.later_layers(F.leaky_relu_(self.first_layer(pixels)))

    def first_layer(self, pixels: Tensor) -> Tensor:
        """Returns what the first convolution makes of pixels, (N, K * filters, H, W): an affine map of them.

        Args:
            pixels: As for `convolve`.
        """
        is_shared = pixels.ndim == 4
        pixels = shrink(pixels)
        if not is_shared:  # members side by side as channels, while the pixels are still small
            pixels = torch.cat(pixels.unbind(0), dim=-1)
        hidden = pixels.float().permute(0, 3, 1, 2)  # seen by torch as channels-last, no copy
        # Scaling the filters equals scaling the pixels and saves a pass over them.
        weight = self.filters[0] * self.pixel_scale
        return F.conv2d(hidden, weight, self.biases[0], self.strides[0], groups=1 if is_shared else self.ensemble_size)

    def later_layers(self, hidden: Tensor) -> Tensor:
        """Returns features (K, N, F) for what the first nonlinearity makes of `first_layer`."""
        for weight, bias, stride in list(zip(self.filters, self.biases, self.strides, strict=True))[1:]:
            hidden = F.leaky_relu_(F.conv2d(hidden, weight, bias, stride, groups=self.ensemble_size))
        return hidden.reshape(len(hidden), self.ensemble_size, -1).transpose(0, 1)


class EnsembleCNN(EnsembleConvolutions):
    """K independent convolutional networks under an `EnsembleMLP` head."""

    def __init__(
        self,
        pixel_shape: tuple[int, int, int],
        layers: Sequence[tuple[int, int, int]],
        pixel_scale: float,
        extra_features: int,
        hidden_sizes: Sequence[int],
        ensemble_size: int,
        generator: torch.Generator,
    ) -> None:
        """Draws every member's weights from `generator`.

        Args:
            pixel_shape: As for `EnsembleConvolutions`.
            layers: As for `EnsembleConvolutions`.
            pixel_scale: As for `EnsembleConvolutions`.
            extra_features: Values that join the convolutional features before the head (the encoded action).
            hidden_sizes: Units of each hidden layer of the head.
            ensemble_size: K, number of members.
            generator: Where the initial weights come from; advanced in place.
        """
        super().__init__(pixel_shape, layers, pixel_scale, ensemble_size, generator)
        self.head = EnsembleMLP(self.num_features + extra_features, hidden_sizes, ensemble_size, generator)
        self.values_per_row += self.head.values_per_row

    def forward(self, pixels: Tensor, features: Tensor) -> Tensor:
        """Returns rewards (K, N).

        Args:
            pixels: (N, H, W, C) shared by the members or (K, N, H, W, C) one set per member, any type.
            features: (N, D) or (K, N, D), with the leading shape of `pixels`.
        """
        return self.head(_join([self.convolve(pixels)], features))  # type: ignore[no-any-return]

    def forward_from_first_layer(self, hidden: Tensor, features: Tensor) -> Tensor:
        """Returns the rewards (K, N) of rows for which `first_layer` returned `hidden`, which stays as it is."""
        convolved = self.later_layers(F.leaky_relu(hidden))
        return self.head(_join([convolved], features))  # type: ignore[no-any-return]


class EnsembleMixed(nn.Module):
    """K independent networks with convolutions for every image part of a mixed observation, under one head."""

    def __init__(
        self,
        layout: Sequence[ImagePart],
        extra_features: int,
        hidden_sizes: Sequence[int],
        ensemble_size: int,
        generator: torch.Generator,
    ) -> None:
        """Draws every member's weights from `generator`.

        Args:
            layout: The image parts, whose numbers are in the scale of the network.
            extra_features: Values that join the convolutional features before the head (vector part, encoded action).
            hidden_sizes: Units of each hidden layer of the head.
            ensemble_size: K, number of members.
            generator: Where the initial weights come from; advanced in place.
        """
        super().__init__()
        self.layout = tuple(layout)
        self.parts = nn.ModuleList(
            EnsembleConvolutions(part.shape, picture_layers(part.kind, part.shape), 1.0, ensemble_size, generator)
            for part in self.layout
        )
        num_features = sum(part.num_features for part in self._convolutions())
        self.head = EnsembleMLP(num_features + extra_features, hidden_sizes, ensemble_size, generator)
        self.values_per_row = sum(part.values_per_row for part in self._convolutions()) + self.head.values_per_row
        """Floats one row of one member holds alive during a forward pass; sizes the micro-batches."""

    def _convolutions(self) -> Sequence[EnsembleConvolutions]:
        return cast(Sequence[EnsembleConvolutions], self.parts)

    def forward(self, pixels: Tensor, features: Tensor) -> Tensor:
        """Returns rewards (K, N).

        Args:
            pixels: (N, P) or (K, N, P), the flattened image parts one after the other.
            features: (N, D) or (K, N, D), with the leading shape of `pixels`.
        """
        convolved = [
            convolutions.convolve(pixels[..., part.start : part.stop].reshape(*pixels.shape[:-1], *part.shape))
            for convolutions, part in zip(self._convolutions(), self.layout, strict=True)
        ]
        return self.head(_join(convolved, features))  # type: ignore[no-any-return]


def _join(convolved: Sequence[Tensor], features: Tensor) -> Tensor:
    """Returns (K, N, F + D) of (K, N, F) parts and features (N, D) or (K, N, D)."""
    return torch.cat([*convolved, features.expand(len(convolved[0]), *features.shape[-2:])], dim=2)
