"""Networks of a reward ensemble: all members in one batched module, never a Python loop over members."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (torch's own convention)

# (filters, kernel, stride) per layer. Images: the Atari torso of Mnih et al. 2015 with fewer filters.
IMAGE_LAYERS = ((16, 8, 4), (32, 4, 2), (32, 3, 1))
GRID_LAYERS = ((16, 2, 1), (32, 2, 1))


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


class EnsembleCNN(nn.Module):
    """K independent convolutional networks as grouped convolutions (groups = K) under an `EnsembleMLP` head.

    Pixels stay in their stored type until they are inside `forward`.
    """

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
            pixel_shape: (height, width, channels) of one observation.
            layers: (filters, kernel, stride) of each convolution; a kernel is cut to the side it meets.
            pixel_scale: Factor that every pixel is multiplied by.
            extra_features: Values that join the convolutional features before the head (the encoded action).
            hidden_sizes: Units of each hidden layer of the head.
            ensemble_size: K, number of members.
            generator: Where the initial weights come from; advanced in place.
        """
        super().__init__()
        height, width, channels = pixel_shape
        self.ensemble_size = ensemble_size
        self.pixel_scale = pixel_scale
        self.strides = tuple(stride for _, _, stride in layers)
        self.filters = nn.ParameterList()
        self.biases = nn.ParameterList()
        num_values = height * width * channels
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
        self.head = EnsembleMLP(height * width * channels + extra_features, hidden_sizes, ensemble_size, generator)
        self.values_per_row = num_values + self.head.values_per_row
        """Floats one row of one member holds alive during a forward pass; sizes the micro-batches."""

    def forward(self, pixels: Tensor, features: Tensor) -> Tensor:
        """Returns rewards (K, N).

        Args:
            pixels: (N, H, W, C) shared by the members or (K, N, H, W, C) one set per member, any type.
            features: (N, D) or (K, N, D), with the leading shape of `pixels`.
        """
        is_shared = pixels.ndim == 4
        if not is_shared:  # members side by side as channels, while the pixels are still small
            pixels = torch.cat(pixels.unbind(0), dim=-1)
        hidden = pixels.float().permute(0, 3, 1, 2)  # seen by torch as channels-last, no copy
        for index, (weight, bias, stride) in enumerate(zip(self.filters, self.biases, self.strides, strict=True)):
            groups = 1 if is_shared and index == 0 else self.ensemble_size
            if index == 0:  # scaling the filters equals scaling the pixels and saves a pass over them
                weight = weight * self.pixel_scale
            hidden = F.leaky_relu_(F.conv2d(hidden, weight, bias, stride, groups=groups))
        convolved = hidden.reshape(len(hidden), self.ensemble_size, -1).transpose(0, 1)
        extra = features.expand(self.ensemble_size, *features.shape[-2:])
        return self.head(torch.cat([convolved, extra], dim=2))  # type: ignore[no-any-return]
