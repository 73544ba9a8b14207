"""Policy and value networks: one light RLModule per learner, with the encoder that fits the observation.

uint8 observations stay uint8 in episodes, replay and transfers and become float32 only inside the encoder.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import TorchMultiCategorical
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI, ValueFunctionAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor, nn

from themis_ray.envs import MixedBox, infer_observation_kind, observation_scale
from themis_ray.reward import grid_stride, shrink, shrunk_sides

__all__ = ["DQNModule", "Encoder", "FrozenPolicy", "PPOModule", "SACModule", "start_from_reference"]

LOG_STD_RANGE = (-20.0, 2.0)
POLICY_PARTS = ("pi_encoder.", "pi.", "log_std")


def _conv_layers(kind: str, shape: Sequence[int]) -> tuple[nn.Sequential, int]:
    """Nature-DQN filters for images; small 2x2 filters for grids such as MiniGrid's 7x7 view.

    A filter is cut to the side it meets.

    Args:
        kind: "image" or "grid".
        shape: (height, width, channels) before the picture is shrunk.

    Returns:
        Layers from (N, channels, shrunk height, shrunk width) to (N, F), and F.
    """
    height, width = shrunk_sides(shape[0], shape[1])
    channels = shape[2]
    if kind == "image":
        filters = [(32, 8, 4), (64, 4, 2), (64, 3, 1)]
    else:
        stride = grid_stride(height, width)
        filters = [(16, 2, 1), (32, 2, stride), (64, 2, stride)]
    layers: list[nn.Module] = []
    for outputs, size, stride in filters:
        cut = (min(size, height), min(size, width))
        layers += [nn.Conv2d(channels, outputs, cut, stride), nn.ReLU()]
        height, width, channels = (height - cut[0]) // stride + 1, (width - cut[1]) // stride + 1, outputs
    return nn.Sequential(*layers, nn.Flatten()), height * width * channels


class MixedFeatures(nn.Module):
    """Convolves every image part of mixed observations and puts the vector part behind.

    Args:
        space: Says where the images are.
    """

    def __init__(self, space: MixedBox) -> None:
        super().__init__()
        self.layout = space.layout
        parts = [_conv_layers(part.kind, part.shape) for part in self.layout]
        self.parts = nn.ModuleList(layers for layers, _ in parts)
        self.num_pixels = space.num_pixels
        self.output_size = sum(size for _, size in parts) + len(space.low) - self.num_pixels

    def forward(self, observations: Tensor) -> Tensor:
        """Map (N, D) to (N, output_size)."""
        features = [
            layers(shrink(observations[:, part.start : part.stop].reshape(-1, *part.shape)).movedim(-1, 1))
            for layers, part in zip(self.parts, self.layout, strict=True)
        ]
        return torch.cat([*features, observations[:, self.num_pixels :]], dim=1)


class Encoder(nn.Module):
    """Observation, and optionally an action beside it, to a feature vector.

    Args:
        space: A Box; (D,) vectors of any rank are flattened, (H, W, C) images and grids are convolved, and so are the
            image parts of a MixedBox.
        hidden_sizes: Widths of the fully connected layers.
        action_size: Numbers that are appended to the flattened observation features; 0 for none.
        activation: Layer class between the fully connected layers.
    """

    def __init__(
        self,
        space: gym.spaces.Box,
        hidden_sizes: Sequence[int],
        action_size: int = 0,
        activation: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        self.kind = infer_observation_kind(space)
        self.scale = observation_scale(space, self.kind)
        self.features: nn.Module
        if isinstance(space, MixedBox):
            self.features = MixedFeatures(space)
            size = self.features.output_size
        elif self.kind == "vector":
            self.features = nn.Flatten()
            size = int(np.prod(space.shape))
        else:
            self.features, size = _conv_layers(self.kind, space.shape)
        layers: list[nn.Module] = []
        size += action_size
        for hidden in hidden_sizes:
            layers += [nn.Linear(size, hidden), activation()]
            size = hidden
        self.layers = nn.Sequential(*layers)
        self.output_size = size

    def forward(self, observations: Tensor, actions: Tensor | None = None) -> Tensor:
        """Map (N, *observation_shape) and (N, action_size) to (N, output_size)."""
        if self.kind in ("image", "grid"):
            x = self.features(self._channels_first(observations))
        else:
            x = self.features(observations.float())
        if actions is not None:
            x = torch.cat([x, actions], dim=1)
        return self.layers(x)  # type: ignore[no-any-return]

    def _channels_first(self, pixels: Tensor) -> Tensor:
        return shrink(pixels).float().mul(self.scale).movedim(-1, 1)

    def first_layer(self, pixels: Tensor) -> Tensor:
        """Map images or grids (N, H, W, C) to what the first convolution makes of them: an affine map."""
        return self.features[0](self._channels_first(pixels))  # type: ignore[index,no-any-return]

    def later_layers(self, hidden: Tensor) -> Tensor:
        """Map what `first_layer` gives to (N, output_size)."""
        return self.layers(self.features[1:](hidden))  # type: ignore[index,no-any-return]


class FrozenPolicy(nn.Module):
    """A copy of a policy's layers that is saved with its module and never trained.

    Args:
        encoder: Observations to features.
        head: Features to the numbers that a distribution is made of.
        log_std: (A,) log standard deviations that do not depend on the observation; None where the head gives them.
    """

    log_std: Tensor | None

    def __init__(self, encoder: nn.Module, head: nn.Module, log_std: Tensor | None = None) -> None:
        super().__init__()
        self.encoder, self.head = copy.deepcopy(encoder), copy.deepcopy(head)
        self.register_buffer("log_std", None if log_std is None else log_std.detach().clone())
        self.requires_grad_(False)

    def take(self, encoder: nn.Module, head: nn.Module, log_std: Tensor | None = None) -> None:
        """Become a copy of other layers of the same shapes."""
        self.encoder.load_state_dict(encoder.state_dict())
        self.head.load_state_dict(head.state_dict())
        if self.log_std is not None and log_std is not None:
            self.log_std.copy_(log_std.detach())

    def forward(self, observations: Tensor) -> Tensor:
        """Map (N, *observation_shape) to the inputs of a distribution, as the policy itself does."""
        return _with_log_std(self.head(self.encoder(observations)), self.log_std)


def _with_log_std(outputs: Tensor, log_std: Tensor | None) -> Tensor:
    return outputs if log_std is None else torch.cat([outputs, log_std.expand_as(outputs)], dim=-1)


def _orthogonal(layer: nn.Linear, gain: float) -> nn.Linear:
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


class PPOModule(TorchRLModule, ValueFunctionAPI):
    """Policy and value function for Discrete, MultiDiscrete and Box actions.

    They have an encoder each, or one together for images and mixed observations.
    """

    def setup(self) -> None:
        """Build the networks from `model_config`: hidden_sizes, and has_reference for a frozen policy to stay near."""
        hidden_sizes = self.model_config["hidden_sizes"]
        self.pi_encoder = Encoder(self.observation_space, hidden_sizes, activation=nn.Tanh)
        self.is_shared = self.pi_encoder.kind in ("image", "mixed")
        if not self.is_shared:
            self.vf_encoder = Encoder(self.observation_space, hidden_sizes, activation=nn.Tanh)
        self.log_std: nn.Parameter | None = None
        self.reference: FrozenPolicy | None = None
        space = self.action_space
        if isinstance(space, gym.spaces.Discrete):
            num_outputs = int(space.n)
        elif isinstance(space, gym.spaces.MultiDiscrete):
            num_outputs = int(space.nvec.sum())
            self.action_dist_cls = TorchMultiCategorical.get_partial_dist_cls(
                space=space, input_lens=[int(n) for n in space.nvec]
            )
        else:
            num_outputs = int(np.prod(space.shape))
            self.log_std = nn.Parameter(torch.zeros(num_outputs))
        self.pi = _orthogonal(nn.Linear(self.pi_encoder.output_size, num_outputs), 0.01)
        self.vf = _orthogonal(nn.Linear(self.pi_encoder.output_size, 1), 1.0)
        if self.model_config.get("has_reference"):
            self.reference = FrozenPolicy(self.pi_encoder, self.pi, self.log_std)

    def _forward(self, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        outputs = self.pi(self.pi_encoder(batch[Columns.OBS]))
        return {Columns.ACTION_DIST_INPUTS: _with_log_std(outputs, self.log_std)}

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> Tensor:
        """Return V(s), shape (N,)."""
        del embeddings
        encoder = self.pi_encoder if self.is_shared else self.vf_encoder
        return self.vf(encoder(batch[Columns.OBS])).squeeze(-1)  # type: ignore[no-any-return]

    def reset_values(self) -> list[nn.Parameter]:
        """Draw a new value function and return its parameters; an encoder that the policy uses too stays (B-Pref)."""
        _orthogonal(self.vf, 1.0)
        parameters = list(self.vf.parameters())
        if not self.is_shared:
            fresh = Encoder(self.observation_space, self.model_config["hidden_sizes"], activation=nn.Tanh)
            self.vf_encoder.load_state_dict(fresh.state_dict())
            parameters += self.vf_encoder.parameters()
        return parameters


class SACModule(TorchRLModule, InferenceOnlyAPI):
    """Squashed-Gaussian or categorical policy and twin critics (Haarnoja et al. 2018; Christodoulou 2019).

    For Box actions the critics map (observation, action) to one value; for Discrete actions they map an observation
    to one value per action. The entropy temperature lives here, so that it is saved with the weights.
    """

    def setup(self) -> None:
        """Build the networks from `model_config`: hidden_sizes, num_seed_steps, initial_alpha, has_reference."""
        hidden_sizes = self.model_config["hidden_sizes"]
        self.is_continuous = isinstance(self.action_space, gym.spaces.Box)
        if self.is_continuous:
            self.action_size = int(np.prod(self.action_space.shape))
        else:
            self.action_size = int(self.action_space.n)
        num_outputs = 2 * self.action_size if self.is_continuous else self.action_size
        self.pi_encoder = Encoder(self.observation_space, hidden_sizes)
        self.pi = nn.Linear(self.pi_encoder.output_size, num_outputs)
        self.reference: FrozenPolicy | None = None
        if not self.inference_only:
            self.critics = nn.ModuleList(self._critic() for _ in range(2))
            self.target_critics = nn.ModuleList(self._critic() for _ in range(2))
            self.target_critics.load_state_dict(self.critics.state_dict())
            self.target_critics.requires_grad_(False)
            self.log_alpha = nn.Parameter(torch.tensor(float(np.log(self.model_config["initial_alpha"]))))
            if self.model_config.get("has_reference"):
                self.reference = FrozenPolicy(self.pi_encoder, self.pi)

    def _critic(self) -> nn.Module:
        encoder = Encoder(
            self.observation_space, self.model_config["hidden_sizes"], self.action_size if self.is_continuous else 0
        )
        head = nn.Linear(encoder.output_size, 1 if self.is_continuous else self.action_size)
        return nn.ModuleDict({"encoder": encoder, "head": head})

    def get_non_inference_attributes(self) -> list[str]:
        """Name what an env runner does not need."""
        return ["critics", "target_critics", "log_alpha", "reference"]

    def reset_critics(self) -> None:
        """Draw new critics and copy them to the targets; the policy stays (PEBBLE, Lee et al. 2021)."""
        for layer in self.critics.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                layer.reset_parameters()
        self.target_critics.load_state_dict(self.critics.state_dict())

    def policy(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log standard deviation before squashing, each (N, action_size). Box actions only."""
        return self._split(self.pi(self.pi_encoder(observations)))

    def reference_policy(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `policy` returns, of the frozen reference. Box actions only."""
        assert self.reference is not None
        return self._split(self.reference(observations))

    @staticmethod
    def _split(outputs: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = outputs.chunk(2, dim=-1)
        return mean, log_std.clamp(*LOG_STD_RANGE)

    def _forward_inference(self, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        with torch.no_grad():
            if self.is_continuous:
                actions = torch.tanh(self.policy(batch[Columns.OBS])[0]).reshape(-1, *self.action_space.shape)
            else:
                actions = self.pi(self.pi_encoder(batch[Columns.OBS])).argmax(-1)
        return {Columns.ACTIONS: actions}

    def _forward_exploration(self, batch: dict[str, Any], t: int = 0, **_: Any) -> dict[str, Any]:
        num_rows = len(batch[Columns.OBS])
        is_random = t < self.model_config["num_seed_steps"]
        with torch.no_grad():
            if not self.is_continuous:
                if is_random:
                    actions = torch.randint(self.action_size, (num_rows,))
                else:
                    logits = self.pi(self.pi_encoder(batch[Columns.OBS]))
                    actions = torch.multinomial(logits.softmax(-1), 1).squeeze(-1)
                return {Columns.ACTIONS: actions}
            if is_random:
                actions = torch.rand(num_rows, self.action_size).mul_(2).sub_(1)
            else:
                mean, log_std = self.policy(batch[Columns.OBS])
                actions = torch.tanh(mean + log_std.exp() * torch.randn_like(mean))
        return {Columns.ACTIONS: actions.reshape(-1, *self.action_space.shape)}

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return self._forward_inference(batch, **kwargs)


class DQNModule(TorchRLModule, InferenceOnlyAPI):
    """One Q-network for Discrete actions and its target, with epsilon-greedy exploration (Mnih et al. 2015)."""

    def setup(self) -> None:
        """Build the networks from `model_config`: hidden_sizes, num_seed_steps, final_epsilon, epsilon_steps."""
        self.q_network = self._q_network()
        if not self.inference_only:
            self.target_q_network = self._q_network()
            self.target_q_network.load_state_dict(self.q_network.state_dict())
            self.target_q_network.requires_grad_(False)

    def _q_network(self) -> nn.Sequential:
        encoder = Encoder(self.observation_space, self.model_config["hidden_sizes"])
        return nn.Sequential(encoder, nn.Linear(encoder.output_size, int(self.action_space.n)))

    def get_non_inference_attributes(self) -> list[str]:
        """Name what an env runner does not need."""
        return ["target_q_network"]

    def reset_critics(self) -> None:
        """Draw a new Q-network and copy it to the target."""
        for layer in self.q_network.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                layer.reset_parameters()
        self.target_q_network.load_state_dict(self.q_network.state_dict())

    def epsilon(self, t: int) -> float:
        """Return the share of random actions at env step `t`: 1 during the seed steps, then linear annealing."""
        config = self.model_config
        progress = (t - config["num_seed_steps"]) / max(1, config["epsilon_steps"])
        return float(1 + min(1.0, max(0.0, progress)) * (config["final_epsilon"] - 1))

    def _forward_inference(self, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        with torch.no_grad():
            return {Columns.ACTIONS: self.q_network(batch[Columns.OBS]).argmax(-1)}

    def _forward_exploration(self, batch: dict[str, Any], t: int = 0, **_: Any) -> dict[str, Any]:
        greedy = self._forward_inference(batch)[Columns.ACTIONS]
        random = torch.randint_like(greedy, int(self.action_space.n))
        is_random = torch.rand(len(greedy), device=greedy.device) < self.epsilon(t)
        return {Columns.ACTIONS: torch.where(is_random, random, greedy)}

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return self._forward_inference(batch, **kwargs)


def start_from_reference(module: PPOModule | SACModule, weights: Mapping[str, Any]) -> None:
    """Copy a policy's weights into a module's policy and into its frozen reference; values and critics stay.

    Args:
        module: Built with has_reference.
        weights: Arrays by parameter name, of a module of the same class and sizes.
    """
    assert module.reference is not None
    policy = {name: torch.as_tensor(array) for name, array in weights.items() if name.startswith(POLICY_PARTS)}
    module.load_state_dict({**module.state_dict(), **policy})
    log_std = module.log_std if isinstance(module, PPOModule) else None
    module.reference.take(module.pi_encoder, module.pi, log_std)
