from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from themis_ray.data import LabelledPairs
from themis_ray.envs import ImagePart, MixedBox
from themis_ray.reward import RewardConfig, RewardEnsemble, fit, make_optimizer, steps
from themis_ray.reward.steps import SegmentSteps

VIEW = Box(0, 255, (7, 7, 3), np.uint8)
LENGTH = 20


def make_ensemble(config: RewardConfig) -> RewardEnsemble:
    return RewardEnsemble(VIEW, Discrete(3), "grid", config, 0)


def grid_segments(num_segments: int, num_views: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Segments of a world that has few views."""
    views = rng.integers(0, 11, (num_views, 7, 7, 3), dtype=np.uint8)
    return views[rng.integers(num_views, size=(num_segments, LENGTH))], rng.integers(3, size=(num_segments, LENGTH))


def test_distinct_steps_are_kept_once_and_every_step_is_found_again() -> None:
    observations, actions = grid_segments(30, 8, np.random.default_rng(0))
    ensemble = make_ensemble(RewardConfig(hidden_sizes=(8,)))
    found = SegmentSteps.of(ensemble, observations, actions)
    by_step = zip(observations.reshape(-1, 147), actions.reshape(-1), strict=True)
    assert found.num_distinct == len({(view.tobytes(), int(action)) for view, action in by_step})
    assert found.num_distinct <= 24
    plain = ensemble.encode(observations, actions)
    gathered = found.inputs.gather(found.index)
    assert gathered.pixels is not None
    assert plain.pixels is not None
    assert torch.equal(gathered.pixels, plain.pixels)
    assert torch.equal(gathered.features, plain.features)


@pytest.mark.parametrize("num_views", [8, 10_000])
@pytest.mark.parametrize("is_shared", [False, True])
def test_rewards_are_those_of_every_step_whether_steps_repeat_or_not(num_views: int, is_shared: bool) -> None:
    rng = np.random.default_rng(0)
    observations, actions = grid_segments(12, num_views, rng)
    ensemble = make_ensemble(RewardConfig(hidden_sizes=(8,)))
    segments = rng.integers(12, size=(1 if is_shared else 3, 9))
    rewards = SegmentSteps.of(ensemble, observations, actions).rewards(ensemble, torch.from_numpy(segments))
    every = ensemble.predict_members(observations.reshape(-1, 7, 7, 3), actions.reshape(-1)).reshape(3, 12, LENGTH)
    expected = np.stack([every[k][segments[0 if is_shared else k]] for k in range(3)])
    np.testing.assert_allclose(rewards.detach().numpy(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("batch_size", [16, 128])
@pytest.mark.parametrize("temporal_crop", [0, 5])
def test_a_fit_to_repeated_steps_equals_one_that_evaluates_all_and_takes_fewer_rows(
    batch_size: int, temporal_crop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    observations, actions = grid_segments(80, 8, rng)
    labels = rng.integers(2, size=40).astype(np.float32)
    pairs = LabelledPairs(observations, actions, np.arange(40), np.arange(40, 80), labels)
    config = RewardConfig(
        hidden_sizes=(16,), num_epochs=4, target_accuracy=1.0, batch_size=batch_size, temporal_crop=temporal_crop
    )
    evaluate = RewardEnsemble.evaluate
    weights, num_rows = [], []
    for max_bytes in (0, steps._MAX_COMPARED_BYTES):
        monkeypatch.setattr(steps, "_MAX_COMPARED_BYTES", max_bytes)
        num_rows.append(0)

        def count(self: RewardEnsemble, inputs: Any) -> torch.Tensor:
            num_rows[-1] += inputs.features.shape[-2]
            return evaluate(self, inputs)

        monkeypatch.setattr(RewardEnsemble, "evaluate", count)
        ensemble = make_ensemble(config)
        fit(ensemble, make_optimizer(ensemble, config), pairs, config, np.random.default_rng(1))
        weights.append([parameter.detach().numpy().copy() for parameter in ensemble.parameters()])
    for plain, distinct in zip(*weights, strict=True):
        np.testing.assert_allclose(distinct, plain, rtol=1e-3, atol=1e-5)
    assert num_rows[0] == 4 * 2 * 40 * LENGTH
    assert num_rows[1] <= 4 * 24 * -(-40 // batch_size)


def test_frames_are_not_compared() -> None:
    ensemble = RewardEnsemble(Box(0, 255, (84, 84, 1), np.uint8), Discrete(3), "image", RewardConfig(), 0)
    observations = np.zeros((2, 3, 84, 84, 1), np.uint8)
    found = SegmentSteps.of(ensemble, observations, np.zeros((2, 3), np.int64))
    assert found.num_distinct == 6
    assert found.inputs.pixels is not None
    assert np.shares_memory(found.inputs.pixels.numpy(), observations)


@pytest.mark.parametrize(("height", "is_compared"), [(4, True), (36, False)])
def test_mixed_steps_are_compared_where_they_are_small(height: int, is_compared: bool) -> None:
    size = height * height * 3
    kind = "grid" if is_compared else "image"
    space = MixedBox(
        np.zeros(size + 2, np.float32), np.ones(size + 2, np.float32), [ImagePart(0, size, (height, height, 3), kind)]
    )
    ensemble = RewardEnsemble(space, Discrete(3), "mixed", RewardConfig(hidden_sizes=(8,)), 0)
    rng = np.random.default_rng(0)
    observations = rng.random((4, size + 2), np.float32)[rng.integers(4, size=(6, LENGTH))]
    actions = np.zeros((6, LENGTH), np.int64)
    found = SegmentSteps.of(ensemble, observations, actions)
    assert found.num_distinct == (4 if is_compared else 6 * LENGTH)
    rewards = found.rewards(ensemble, torch.arange(6)[None])
    expected = ensemble.predict_members(observations.reshape(-1, size + 2), actions.reshape(-1))
    np.testing.assert_allclose(rewards.detach().numpy().reshape(3, -1), expected, rtol=1e-4, atol=1e-6)
