"""Subjects for tests: small reward ensembles of every kind, and functions whose attributions are known."""

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor, nn

from themis_ray.envs import EnvSpec, ImagePart, MixedBox
from themis_ray.explain import Rows, Subject, reward_subject
from themis_ray.reward import RewardConfig, RewardEnsemble

STATE = Box(-np.inf, np.inf, (4,), np.float32)
FRAME = Box(0, 255, (40, 40, 2), np.uint8)
GRID = Box(0, 255, (7, 7, 3), np.uint8)
LAYOUT = (ImagePart(0, 3200, (40, 40, 2), "image"), ImagePart(3200, 3347, (7, 7, 3), "grid"))
MIXED = MixedBox(np.zeros(3350, np.float32), np.ones(3350, np.float32), LAYOUT)
SPACES: dict[str, tuple[Box, gym.Space]] = {
    "vector": (STATE, Box(-1.0, 1.0, (2,), np.float32)),
    "image": (FRAME, Discrete(3)),
    "grid": (GRID, Discrete(3)),
    "mixed": (MIXED, Discrete(3)),
}
KINDS = list(SPACES)


def make_spec(kind: str) -> EnvSpec:
    observation_space, action_space = SPACES[kind]
    return EnvSpec(
        id="Made-v0",
        family="test",
        observation_space=observation_space,
        action_space=action_space,
        observation_kind=kind,  # type: ignore[arg-type]
        horizon=None,
        is_fixed_horizon=False,
        reference_return=None,
        reference_source="",
    )


def draw_steps(kind: str, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    space, action_space = SPACES[kind]
    if kind == "vector":
        observations = rng.normal(size=(count, 4)).astype(np.float32)
        return observations, rng.uniform(-1, 1, (count, 2)).astype(np.float32)
    assert isinstance(action_space, Discrete)
    actions = rng.integers(0, action_space.n, count)
    if kind == "mixed":
        return rng.random((count, 3350), np.float32), actions
    return rng.integers(0, 10 if kind == "grid" else 256, (count, *space.shape)).astype(np.uint8), actions


def make_ensemble(kind: str, seed: int = 0) -> RewardEnsemble:
    spec = make_spec(kind)
    config = RewardConfig(hidden_sizes=(16, 16))
    ensemble = RewardEnsemble(spec.observation_space, spec.action_space, spec.observation_kind, config, seed)
    with torch.no_grad():  # outputs of fresh networks hardly differ; these do
        for parameter in ensemble.parameters():
            parameter.mul_(2.0)
    ensemble.prediction_terms[1:] = torch.tensor([0.1, 0.5])
    return ensemble


def make_subject(kind: str, seed: int = 0) -> Subject:
    return reward_subject(make_ensemble(kind, seed), make_spec(kind))


class _Network(nn.Module):
    def __init__(self, weights: list[float]) -> None:
        super().__init__()
        self.layer, self.squash = nn.Linear(len(weights), 1), nn.Tanh()
        self.layer.load_state_dict({"weight": torch.tensor([weights]), "bias": torch.zeros(1)})

    def forward(self, observations: Tensor) -> Tensor:
        return self.squash(self.layer(observations)).squeeze(1)  # type: ignore[no-any-return]


def network_subject(weights: list[float]) -> Subject:
    """A subject that reads a vector x and is tanh(weights . x)."""
    return function_subject(_Network(weights), len(weights))


def function_subject(module: nn.Module, num_inputs: int) -> Subject:
    """A subject that reads a vector and is `module`: (N, num_inputs) to (N,)."""
    return Subject(
        name="value",
        meaning="made-up value",
        function=module,
        plain=module,
        observation_space=Box(-np.inf, np.inf, (num_inputs,), np.float32),
        observation_kind="vector",
        action_space=Discrete(2),
        read=lambda observations, actions: Rows((torch.tensor(observations, dtype=torch.float32),)),
    )
