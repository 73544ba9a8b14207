import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from themis_ray.envs import ImagePart, MixedBox
from themis_ray.errors import ConfigError
from themis_ray.reward import RewardConfig, RewardEnsemble, left_probabilities

torch.set_num_threads(1)

CONFIG = RewardConfig(hidden_sizes=(16, 16))
STATE = Box(-np.inf, np.inf, (4,), np.float32)
TORQUE = Box(-1.0, 1.0, (2,), np.float32)
FRAME = Box(0, 255, (36, 36, 2), np.uint8)
GRID = Box(0, 255, (7, 7, 3), np.uint8)
# An image, a grid, three numbers.
LAYOUT = (ImagePart(0, 2592, (36, 36, 2), "image"), ImagePart(2592, 2739, (7, 7, 3), "grid"))
MIXED = MixedBox(np.full(2742, -1, np.float32), np.ones(2742, np.float32), LAYOUT)


def make_vector(action_space: gym.Space = TORQUE, seed: int = 0) -> RewardEnsemble:
    return RewardEnsemble(STATE, action_space, "vector", CONFIG, seed)


def sample(space: gym.Space, *leading: int, seed: int = 0) -> np.ndarray:
    space.seed(seed)
    flat = np.stack([np.asarray(space.sample()) for _ in range(int(np.prod(leading)))])
    return flat.reshape(*leading, *flat.shape[1:])


def sample_of(kind: str) -> tuple[RewardEnsemble, np.ndarray, np.ndarray]:
    space = {"vector": STATE, "image": FRAME, "grid": GRID, "mixed": MIXED}[kind]
    action_space = TORQUE if kind == "vector" else Discrete(3)
    ensemble = RewardEnsemble(space, action_space, kind, CONFIG, 0)  # type: ignore[arg-type]
    return ensemble, sample(space, 10), sample(action_space, 10)


@pytest.mark.parametrize("kind", ["vector", "image", "grid", "mixed"])
@pytest.mark.parametrize("chunk_size", [1, 3, 10, 1000])
def test_predict_in_chunks_equals_one_forward_pass(kind: str, chunk_size: int) -> None:
    ensemble, observations, actions = sample_of(kind)
    members = ensemble(observations, actions).detach().numpy()
    assert members.shape == (3, 10)
    chunked = ensemble.predict_members(observations, actions, chunk_size)
    np.testing.assert_allclose(chunked, members, rtol=1e-5, atol=1e-6)
    mean = ensemble.predict(observations, actions, chunk_size)
    assert mean.dtype == np.float32
    np.testing.assert_allclose(mean, members.mean(axis=0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["vector", "image", "grid", "mixed"])
def test_rows_per_member_equal_shared_rows(kind: str) -> None:
    ensemble, observations, actions = sample_of(kind)
    shared = ensemble(observations, actions)
    repeated = ensemble(np.stack([observations] * 3), np.stack([actions] * 3))
    torch.testing.assert_close(repeated, shared, rtol=1e-5, atol=1e-6)


def test_predict_takes_no_rows_and_read_only_rows() -> None:
    ensemble, observations, actions = sample_of("vector")
    assert ensemble.predict(observations[:0], actions[:0]).shape == (0,)
    expected = ensemble.predict(observations, actions)
    observations.setflags(write=False)
    actions.setflags(write=False)
    np.testing.assert_array_equal(ensemble.predict(observations, actions), expected)
    np.testing.assert_allclose(ensemble.predict(observations[::-1], actions[::-1])[::-1], expected, atol=1e-6)


def test_segment_returns_are_sums_of_member_rewards() -> None:
    ensemble = make_vector()
    observations, actions = sample(STATE, 5, 6), sample(TORQUE, 5, 6)
    rewards = np.stack([ensemble.predict_members(observations[s], actions[s]) for s in range(5)], axis=1)
    np.testing.assert_allclose(ensemble.segment_returns(observations, actions, 7), rewards.sum(axis=2), rtol=1e-5)


def test_a_seed_fixes_the_ensemble() -> None:
    observations, actions = sample(STATE, 5), sample(TORQUE, 5)
    first, again, other = (make_vector(seed=seed).predict(observations, actions) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


def test_discrete_actions_are_one_hot_from_their_start() -> None:
    space = Discrete(3, start=5)
    features = make_vector(space).encode(np.zeros((3, 4), np.float32), np.array([5, 7, 6])).features
    np.testing.assert_array_equal(features[:, 4:], [[1, 0, 0], [0, 0, 1], [0, 1, 0]])


def test_multi_discrete_actions_are_concatenated_one_hots() -> None:
    features = make_vector(MultiDiscrete([2, 3])).encode(np.zeros((2, 4)), np.array([[1, 0], [0, 2]])).features
    np.testing.assert_array_equal(features[:, 4:], [[0, 1, 1, 0, 0], [1, 0, 0, 0, 1]])


def test_box_actions_are_flattened_and_clipped() -> None:
    ensemble = make_vector(Box(-5.0, 5.0, (2, 1), np.float32))
    features = ensemble.encode(np.zeros((1, 4), np.float32), np.array([[[3.0], [-0.5]]])).features
    np.testing.assert_array_equal(features[:, 4:], [[1.0, -0.5]])


def test_observations_in_bytes_are_scaled_by_kind() -> None:
    memory = RewardEnsemble(Box(0, 255, (2,), np.uint8), Discrete(2), "vector", CONFIG, 0)
    features = memory.encode(np.array([[0, 255]], np.uint8), np.array([1])).features
    np.testing.assert_array_equal(features, [[0, 1, 0, 1]])
    assert sample_of("image")[0].network.pixel_scale == pytest.approx(1 / 255)  # type: ignore[union-attr]
    assert sample_of("grid")[0].network.pixel_scale == pytest.approx(0.1)  # type: ignore[union-attr]


def test_frames_are_neither_copied_nor_cast_before_the_forward_pass() -> None:
    ensemble, frames, actions = sample_of("image")
    pixels = ensemble.encode(frames, actions).pixels
    assert pixels is not None
    assert pixels.dtype == torch.uint8
    assert pixels.data_ptr() == frames.ctypes.data


def test_image_parts_are_not_copied_and_all_else_is_behind_them() -> None:
    ensemble, observations, actions = sample_of("mixed")
    inputs = ensemble.encode(observations, actions)
    assert inputs.pixels is not None
    assert inputs.pixels.data_ptr() == observations.ctypes.data
    np.testing.assert_array_equal(inputs.pixels, observations[:, :2739])
    np.testing.assert_array_equal(inputs.features[:, :3], observations[:, 2739:])
    np.testing.assert_array_equal(inputs.features[:, 3:], np.eye(3)[actions])


@pytest.mark.parametrize("first", [0, 2592, 2739, 2741], ids=["image", "grid", "vector", "mark"])
def test_every_part_counts_under_every_member(first: int) -> None:
    ensemble, observations, actions = sample_of("mixed")
    stop = next(stop for stop in (2592, 2739, 2741, 2742) if stop > first)
    changed = observations.copy()
    changed[:, first:stop] = -changed[:, first:stop]
    before, after = ensemble.predict_members(observations, actions), ensemble.predict_members(changed, actions)
    assert (np.abs(before - after).max(axis=1) > 0).all()
    tensor = torch.from_numpy(observations).requires_grad_()
    ensemble(tensor, torch.from_numpy(actions)).sum().backward()
    assert tensor.grad is not None
    assert tensor.grad[:, first:stop].abs().sum() > 0


def test_gradients_reach_the_observations() -> None:
    observations = torch.randn(5, 4, requires_grad=True)
    make_vector()(observations, torch.zeros(5, 2)).sum().backward()
    assert observations.grad is not None
    assert (observations.grad.abs().sum(dim=1) > 0).all()


def test_a_duplicated_member_never_disagrees() -> None:
    ensemble = make_vector()
    with torch.no_grad():
        for parameter in ensemble.parameters():
            parameter[:] = parameter[:1].clone()
    returns = ensemble.segment_returns(sample(STATE, 8, 5), sample(TORQUE, 8, 5))
    probabilities = left_probabilities(returns[:, :4], returns[:, 4:])
    assert np.ptp(probabilities, axis=0).max() == pytest.approx(0.0, abs=1e-7)


def test_swapping_sides_turns_p_into_one_minus_p() -> None:
    returns = make_vector().segment_returns(sample(STATE, 8, 5), sample(TORQUE, 8, 5))
    left, right = returns[:, :4], returns[:, 4:]
    np.testing.assert_allclose(left_probabilities(left, right), 1 - left_probabilities(right, left), rtol=1e-12)


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_left_probabilities_are_stable_and_symmetric(left: float, right: float) -> None:
    forward, backward = (
        left_probabilities(np.array([[a]]), np.array([[b]])).item() for a, b in ((left, right), (right, left))
    )
    assert forward + backward == pytest.approx(1.0, abs=1e-12)
    assert (forward > 0.5) >= (left - right > 1e-9)


def test_left_probabilities_equal_the_sigmoid() -> None:
    np.testing.assert_allclose(
        left_probabilities(np.array([[1.0, 0.0, -800.0, 800.0]]), np.zeros((1, 4))),
        [[1 / (1 + np.exp(-1.0)), 0.5, 0.0, 1.0]],
        rtol=1e-12,
    )


def test_refuses_other_action_spaces() -> None:
    with pytest.raises(ConfigError, match="MultiBinary"):
        make_vector(MultiBinary(3))


def test_refuses_an_image_without_three_axes() -> None:
    with pytest.raises(ValueError, match="three axes"):
        RewardEnsemble(STATE, TORQUE, "image", CONFIG, 0)


def test_refuses_a_mixed_observation_without_a_layout() -> None:
    with pytest.raises(ValueError, match="needs a MixedBox"):
        RewardEnsemble(STATE, TORQUE, "mixed", CONFIG, 0)


@pytest.mark.parametrize(
    "setting",
    [{"ensemble_size": 0}, {"hidden_sizes": ()}, {"label_margin": 0.5}, {"target_accuracy": 0}, {"layers": 3}],
)
def test_config_refuses_impossible_settings(setting: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        RewardConfig(**setting)  # type: ignore[arg-type]
