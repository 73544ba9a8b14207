"""The reward ensemble: observations and actions in, one predicted reward per member out."""

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (torch's own convention)

from themis_ray.envs import ObservationKind, image_parts, observation_scale
from themis_ray.errors import ConfigError
from themis_ray.reward.config import DEFAULT_NUM_EPOCHS, RewardConfig
from themis_ray.reward.exploration import optimistic_rewards
from themis_ray.reward.networks import EnsembleCNN, EnsembleMixed, EnsembleMLP, picture_layers

# Rows per forward pass of `predict`. On a CPU the activations of a chunk then stay in the second-level cache.
_CHUNK_SIZES = {"vector": 1024, "grid": 512, "image": 128, "mixed": 128}
_CHUNK_FACTOR_GPU = 32
_MIN_STD = 1e-6


class Inputs(NamedTuple):
    """Encoded observations and actions with a common leading shape."""

    features: Tensor
    """(*leading, D) float32: the encoded action, behind what of the observation is not convolved."""
    pixels: Tensor | None
    """(*leading, H, W, C) in the stored type for images and grids, (*leading, P) for the image parts of a mixed one."""

    def gather(self, rows: Tensor) -> "Inputs":
        """Returns the inputs at `rows` (any shape) of the first axis."""
        return Inputs(self.features[rows], None if self.pixels is None else self.pixels[rows])

    def flatten(self, start: int, end: int) -> "Inputs":
        """Joins the leading axes from `start` to `end` into one."""
        return Inputs(
            self.features.flatten(start, end), None if self.pixels is None else self.pixels.flatten(start, end)
        )

    def to(self, device: torch.device) -> "Inputs":
        """Returns the inputs on `device`."""
        return Inputs(self.features.to(device), None if self.pixels is None else self.pixels.to(device))


class RewardEnsemble(nn.Module):
    """K reward networks over observation and action, evaluated together.

    Discrete actions are one-hot, MultiDiscrete actions are concatenated one-hots, Box actions are flattened and
    clipped to [-1, 1], the range in which learners hand them over. Byte observations (Box from 0 to 255) are divided
    by 255, grids of bytes by 10; anything else is used as it is. Each image part of a mixed observation has
    convolutions of its own.

    Its buffers are part of its state: `bonus`, what `normalize_on` found, and what the filter of wrong labels
    remembers from fit to fit.
    """

    prediction_terms: Tensor  # bonus, shift, scale; one tensor, so that a GPU is asked once
    filter_statistics: Tensor

    def __init__(
        self,
        observation_space: gym.spaces.Box,
        action_space: gym.Space[Any],
        observation_kind: ObservationKind,
        config: RewardConfig,
        seed: int,
    ) -> None:
        """Builds the networks; the same arguments give the same weights.

        Raises:
            ConfigError: The action space is not Box, Discrete or MultiDiscrete.
            ValueError: An image or grid observation does not have three axes, or a mixed one has no layout.
        """
        super().__init__()
        self.ensemble_size = config.ensemble_size
        self.observation_shape = observation_space.shape
        self.action_space = action_space
        self.num_epochs = config.num_epochs or DEFAULT_NUM_EPOCHS[observation_kind]
        self._chunk_size = _CHUNK_SIZES[observation_kind]
        self.register_buffer("prediction_terms", torch.tensor([0.0, 0.0, 1.0]))
        self.register_buffer("filter_statistics", torch.tensor([0.0, 1.0, 0.0]))
        num_action_values = _num_action_values(action_space)
        generator = torch.Generator().manual_seed(seed)
        scale = observation_scale(observation_space, observation_kind)
        self.network: EnsembleMLP | EnsembleCNN | EnsembleMixed
        if observation_kind == "vector":
            self._feature_scale = scale
            in_features = int(np.prod(self.observation_shape)) + num_action_values
            self.network = EnsembleMLP(in_features, config.hidden_sizes, config.ensemble_size, generator)
            return
        if observation_kind == "mixed":
            layout = image_parts(observation_space)
            if not layout:
                raise ValueError(
                    f"a mixed observation needs a MixedBox, which says where its images are, not {observation_space}"
                )
            self._num_pixels = layout[-1].stop
            in_features = self.observation_shape[0] - self._num_pixels + num_action_values
            self.network = EnsembleMixed(layout, in_features, config.hidden_sizes, config.ensemble_size, generator)
            return
        if len(self.observation_shape) != 3:
            raise ValueError(f"an {observation_kind} observation has three axes, not shape {self.observation_shape}")
        height, width, channels = self.observation_shape
        self.network = EnsembleCNN(
            (height, width, channels),
            picture_layers(observation_kind, (height, width, channels)),
            scale,
            num_action_values,
            config.hidden_sizes,
            config.ensemble_size,
            generator,
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def bonus(self) -> float:
        """How much of the std over members `predict` adds to their mean; 0 at first."""
        return float(self.prediction_terms[0])

    @bonus.setter
    def bonus(self, value: float) -> None:
        self.prediction_terms[0] = value

    @property
    def bytes_per_row(self) -> int:
        """Bytes of activations that one row costs in a forward pass, all members together."""
        return 4 * self.ensemble_size * self.network.values_per_row

    def encode(self, observations: NDArray[Any] | Tensor, actions: NDArray[Any] | Tensor) -> Inputs:
        """Returns network inputs for observations (*leading, *observation_shape) and actions of the same leading shape.

        Differentiable with respect to tensors. Images and grids, parts too, are not copied and keep their type.
        """
        observation = _as_tensor(observations)
        leading = observation.shape[: observation.ndim - len(self.observation_shape)]
        return self.join(observation, self.encode_actions(_as_tensor(actions).reshape(*leading, -1)))

    def encode_actions(self, actions: Tensor) -> Tensor:
        """Returns float32 (*leading, A) for raw actions (*leading, values): one-hot, or numbers from -1 to 1."""
        return _encode_actions(self.action_space, actions)

    def join(self, observation: Tensor, action: Tensor) -> Inputs:
        """Returns network inputs for observations (*leading, *observation_shape) and encoded actions (*leading, A)."""
        if isinstance(self.network, EnsembleCNN):
            return Inputs(action, observation)
        if isinstance(self.network, EnsembleMixed):
            vector = observation[..., self._num_pixels :].float()
            return Inputs(torch.cat([vector, action], dim=-1), observation[..., : self._num_pixels])
        flat = observation.reshape(*action.shape[:-1], -1).float()
        if self._feature_scale != 1.0:
            flat = flat * self._feature_scale
        return Inputs(torch.cat([flat, action], dim=-1), None)

    def evaluate(self, inputs: Inputs) -> Tensor:
        """Returns rewards (K, N) of encoded rows with leading shape (N,) or (K, N)."""
        rewards: Tensor
        if inputs.pixels is None:
            rewards = self.network(inputs.features)
        else:
            rewards = self.network(inputs.pixels, inputs.features)
        return rewards

    def forward(self, observations: NDArray[Any] | Tensor, actions: NDArray[Any] | Tensor) -> Tensor:
        """Returns rewards (K, N) for rows shared by the members (N, *) or one set of rows per member (K, N, *)."""
        return self.evaluate(self.encode(observations, actions).to(self.device))

    def predict(
        self, observations: NDArray[Any], actions: NDArray[Any], chunk_size: int | None = None
    ) -> NDArray[np.float32]:
        """Returns the predicted rewards (N,). Arguments as for `predict_members`.

        reward = (mean + bonus * std - shift) / scale, with mean and std over members (`optimistic_rewards`), and
        shift and scale from `normalize_on`. Without bonus and normalisation this is the mean.
        """
        bonus, shift, scale = self.prediction_terms.tolist()
        rewards = optimistic_rewards(self.predict_members(observations, actions, chunk_size), bonus)
        return rewards if (shift, scale) == (0.0, 1.0) else (rewards - shift) / scale

    def normalize_on(self, observations: NDArray[Any], actions: NDArray[Any]) -> None:
        """Makes the mean over members have mean 0 and std 1 over these steps, in `predict` and nowhere else.

        Rewards that do not differ by more than rounding are shifted and not scaled.

        Args:
            observations: (S, L, *observation_shape).
            actions: (S, L, *action_shape).
        """
        flat_observations = observations.reshape(-1, *observations.shape[2:])
        flat_actions = actions.reshape(-1, *actions.shape[2:])
        rewards = self.predict_members(flat_observations, flat_actions).mean(axis=0, dtype=np.float64)
        std = float(rewards.std())
        self.prediction_terms[1] = float(rewards.mean())
        self.prediction_terms[2] = std if std > _MIN_STD else 1.0

    @torch.inference_mode()
    def predict_members(
        self, observations: NDArray[Any], actions: NDArray[Any], chunk_size: int | None = None
    ) -> NDArray[np.float32]:
        """Returns every member's reward (K, N) without gradients.

        Args:
            observations: (N, *observation_shape).
            actions: (N, *action_shape).
            chunk_size: Rows per forward pass; None takes the size measured to be fastest for this observation kind.
        """
        num_rows = len(observations)
        if chunk_size is None:
            chunk_size = self._chunk_size * (_CHUNK_FACTOR_GPU if self.device.type == "cuda" else 1)
        rewards = np.empty((self.ensemble_size, num_rows), np.float32)
        for start in range(0, num_rows, chunk_size):
            rows = slice(start, start + chunk_size)
            rewards[:, rows] = self(observations[rows], actions[rows]).cpu().numpy()
        return rewards

    def segment_returns(
        self, observations: NDArray[Any], actions: NDArray[Any], chunk_size: int | None = None
    ) -> NDArray[np.float32]:
        """Returns the undiscounted predicted return of every segment under every member, (K, S).

        Args:
            observations: (S, L, *observation_shape).
            actions: (S, L, *action_shape).
            chunk_size: Rows (not segments) per forward pass, see `predict_members`.
        """
        num_segments, length = observations.shape[:2]
        rewards = self.predict_members(
            observations.reshape(num_segments * length, *observations.shape[2:]),
            actions.reshape(num_segments * length, *actions.shape[2:]),
            chunk_size,
        )
        returns: NDArray[np.float32] = rewards.reshape(self.ensemble_size, num_segments, length).sum(axis=2)
        return returns


def left_probabilities(left_returns: NDArray[Any], right_returns: NDArray[Any]) -> NDArray[np.float64]:
    """Returns p(left preferred) = 1 / (1 + exp(right - left)), without overflow (Bradley and Terry 1952).

    Args:
        left_returns: (K, N) predicted returns of the left segments.
        right_returns: (K, N) predicted returns of the right segments.
    """
    margin = np.asarray(left_returns, np.float64) - np.asarray(right_returns, np.float64)
    probabilities: NDArray[np.float64] = np.exp(-np.logaddexp(0.0, -margin))
    return probabilities


def _as_tensor(array: NDArray[Any] | Tensor) -> Tensor:
    """Wraps an array without a copy, unless torch could not (read-only or negative strides)."""
    if isinstance(array, Tensor):
        return array
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def _num_action_values(space: gym.Space[Any]) -> int:
    match space:
        case gym.spaces.Discrete():
            return int(space.n)
        case gym.spaces.MultiDiscrete():
            return int(space.nvec.sum())
        case gym.spaces.Box():
            return int(np.prod(space.shape))
    raise ConfigError(f"the reward ensemble takes Box, Discrete or MultiDiscrete actions, not {space}: wrap the env")


def _encode_actions(space: gym.Space[Any], actions: Tensor) -> Tensor:
    """Returns float32 (*leading, D) for raw actions (*leading, values)."""
    match space:
        case gym.spaces.Discrete():
            return F.one_hot(actions[..., 0].long() - int(space.start), int(space.n)).float()
        case gym.spaces.MultiDiscrete():
            shifted = actions.long() - torch.as_tensor(space.start.reshape(-1), device=actions.device)
            columns = [F.one_hot(shifted[..., i], int(n)) for i, n in enumerate(space.nvec.reshape(-1))]
            return torch.cat(columns, dim=-1).float()
    return actions.float().clamp(-1.0, 1.0)
