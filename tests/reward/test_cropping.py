import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from hypothesis import given
from hypothesis import strategies as st

from themis_ray.errors import ConfigError
from themis_ray.reward import RewardConfig, RewardEnsemble
from themis_ray.reward.cropping import Windows, random_windows, window_mask
from themis_ray.reward.steps import SegmentSteps
from themis_ray.reward.training import _pair_margins


@given(st.integers(1, 12), st.data(), st.integers(0, 2**32))
def test_windows_stay_inside_and_are_as_long_on_both_sides(length: int, data: st.DataObject, seed: int) -> None:
    most_cut = data.draw(st.integers(0, length - 1))
    windows = random_windows((3, 5), length, most_cut, np.random.default_rng(seed))
    assert windows.starts.shape == (2, 3, 5)
    assert windows.lengths.shape == (3, 5)
    assert (windows.starts >= 0).all()
    assert (windows.starts + windows.lengths <= length).all()
    assert ((length - most_cut <= windows.lengths) & (windows.lengths <= length)).all()
    mask = window_mask(windows, length)
    assert mask.shape == (2, 3, 5, length)
    assert (mask.sum(axis=-1) == windows.lengths).all()
    for side, member, pair in np.ndindex(2, 3, 5):
        start, steps = windows.starts[side, member, pair], windows.lengths[member, pair]
        assert mask[side, member, pair].tolist() == [float(start <= step < start + steps) for step in range(length)]


def test_lengths_and_starts_are_uniform_and_the_starts_of_both_sides_independent() -> None:
    windows = random_windows((60_000,), 5, 2, np.random.default_rng(0))
    for cut in (0, 1, 2):
        chosen = windows.lengths == 5 - cut
        assert chosen.mean() == pytest.approx(1 / 3, abs=0.01)
        starts, counts = np.unique(windows.starts[:, chosen], axis=1, return_counts=True)
        assert starts.shape[1] == (cut + 1) ** 2  # every pair of starts is reached
        np.testing.assert_allclose(counts / chosen.sum(), 1 / (cut + 1) ** 2, atol=0.012)


def test_a_crop_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"temporal_crop=5 leaves nothing of segments of 5 steps. Give at most 4"):
        random_windows((1,), 5, 5, np.random.default_rng(0))


def test_only_the_steps_of_the_windows_count_in_a_margin() -> None:
    config, rng = RewardConfig(hidden_sizes=(8,)), np.random.default_rng(0)
    ensemble = RewardEnsemble(Box(-1, 1, (4,)), Box(-1, 1, (2,)), "vector", config, 0)
    observations, actions = rng.uniform(-1, 1, (6, 7, 4)), rng.uniform(-1, 1, (6, 7, 2))
    observations, actions = observations.astype(np.float32), actions.astype(np.float32)
    sides = rng.integers(0, 6, (2, 3, 5))
    windows = random_windows((3, 5), 7, 6, rng)
    steps = SegmentSteps.of(ensemble, observations, actions)
    margins = _pair_margins(ensemble, steps, torch.from_numpy(sides), windows).detach().numpy()
    rewards = ensemble.predict_members(observations.reshape(-1, 4), actions.reshape(-1, 2)).reshape(3, 6, 7)
    for member, pair in np.ndindex(3, 5):
        returns = []
        for side in (0, 1):
            start = windows.starts[side, member, pair]
            returns.append(rewards[member, sides[side, member, pair]][start : start + windows.lengths[member, pair]])
        assert margins[member, pair] == pytest.approx(returns[0].sum() - returns[1].sum(), abs=1e-5)


def test_take_cuts_out_a_minibatch() -> None:
    windows = random_windows((2, 10), 8, 4, np.random.default_rng(0))
    part = windows.take(slice(3, 6))
    assert isinstance(part, Windows)
    np.testing.assert_array_equal(part.starts, windows.starts[:, :, 3:6])
    np.testing.assert_array_equal(part.lengths, windows.lengths[:, 3:6])
