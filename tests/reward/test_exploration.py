import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from themis_ray.reward import (
    RewardConfig,
    RunningStd,
    disagreement_bonus,
    exploration,
    optimistic_rewards,
    state_entropy_rewards,
)

torch.set_num_threads(1)


def brute_force(observations: np.ndarray, reference: np.ndarray, rank: int) -> np.ndarray:
    flat = observations.reshape(len(observations), -1).astype(np.float64)
    flat_reference = reference.reshape(len(reference), -1).astype(np.float64)
    distances = np.linalg.norm(flat[:, None] - flat_reference[None], axis=2)
    return np.sort(distances, axis=1)[:, rank - 1]


@pytest.mark.parametrize("k", [1, 5])
def test_distance_to_the_kth_neighbour_equals_brute_force(k: int) -> None:
    rng = np.random.default_rng(0)
    reference = rng.standard_normal((200, 17))
    others = rng.standard_normal((30, 17)).astype(np.float32)
    np.testing.assert_allclose(
        state_entropy_rewards(others, reference, k, is_in_reference=False), brute_force(others, reference, k), rtol=1e-5
    )
    np.testing.assert_allclose(
        state_entropy_rewards(reference[:30], reference, k), brute_force(reference[:30], reference, k + 1), rtol=1e-5
    )


def test_golden_values_on_a_line() -> None:
    reference = np.array([[0.0], [1.0], [3.0], [7.0]])
    np.testing.assert_array_equal(state_entropy_rewards(reference, reference, k=1), [1, 1, 2, 4])
    np.testing.assert_array_equal(state_entropy_rewards(reference, reference, k=2), [3, 2, 3, 6])
    np.testing.assert_array_equal(state_entropy_rewards(np.array([[2.0]]), reference, k=3, is_in_reference=False), [2])


def test_chunks_do_not_change_the_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    reference = rng.standard_normal((100, 3))
    whole = state_entropy_rewards(reference, reference)
    monkeypatch.setattr(exploration, "_MAX_CHUNK_BYTES", 4 * 100 * 7)
    np.testing.assert_allclose(state_entropy_rewards(reference, reference), whole, rtol=1e-6)


def test_far_from_the_origin_the_distances_keep_their_digits() -> None:
    rng = np.random.default_rng(2)
    reference = rng.integers(0, 1000, (150, 4)) + 1_000_000.0
    np.testing.assert_allclose(
        state_entropy_rewards(reference, reference, 3), brute_force(reference, reference, 4), rtol=1e-5
    )


def test_frames_are_compared_pixel_by_pixel() -> None:
    frames = np.random.default_rng(3).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    before = frames.copy()
    np.testing.assert_allclose(state_entropy_rewards(frames, frames, 2), brute_force(frames, frames, 3), rtol=1e-5)
    np.testing.assert_array_equal(frames, before)


def test_a_small_reference_gives_the_farthest_neighbour() -> None:
    reference = np.array([[0.0, 0.0], [3.0, 4.0]], np.float32)
    np.testing.assert_array_equal(state_entropy_rewards(reference, reference, k=5), [5, 5])
    np.testing.assert_array_equal(state_entropy_rewards(reference[:1], reference[:1], k=5), [0])


def test_refuses_k_below_one_and_an_empty_reference() -> None:
    with pytest.raises(ValueError, match="k must be at least 1"):
        state_entropy_rewards(np.zeros((2, 1)), np.zeros((2, 1)), k=0)
    with pytest.raises(ValueError, match="must not be empty"):
        state_entropy_rewards(np.zeros((2, 1)), np.zeros((0, 1)))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.floats(-1e3, 1e3), max_size=20), min_size=1, max_size=8))
def test_running_std_equals_numpy(batches: list[list[float]]) -> None:
    running = RunningStd()
    for batch in batches:
        running.update(np.array(batch))
    values = np.concatenate([np.array(batch) for batch in batches])
    expected = values.std() if values.size else 1.0
    assert running.std == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_running_std_keeps_its_digits_on_a_large_mean() -> None:
    values = np.random.default_rng(0).standard_normal((10, 100)) + 1e8
    running = RunningStd()
    for batch in values:
        running.update(batch)
    assert running.std == pytest.approx(values.std(), rel=1e-6)


def test_running_std_continues_from_its_state() -> None:
    first, second = np.random.default_rng(0).standard_normal((2, 50))
    through, stopped, resumed = RunningStd(), RunningStd(), RunningStd()
    through.update(first)
    through.update(second)
    stopped.update(first)
    resumed.set_state(stopped.get_state())
    resumed.update(second)
    assert resumed.get_state() == through.get_state()


def test_optimism_pays_the_std_of_the_members() -> None:
    members = np.random.default_rng(0).standard_normal((3, 50)).astype(np.float32)
    rewards = optimistic_rewards(members, 0.5)
    for step in range(50):
        values = [float(value) for value in members[:, step]]
        mean = sum(values) / 3
        std = (sum((value - mean) ** 2 for value in values) / 3) ** 0.5
        assert rewards[step] == pytest.approx(mean + 0.5 * std, abs=1e-5)
    np.testing.assert_array_equal(optimistic_rewards(members, 0.0), members.mean(axis=0))
    assert rewards.dtype == np.float32


def test_the_bonus_decays_by_its_factor_per_env_step() -> None:
    config = RewardConfig(disagreement_bonus=0.05, disagreement_bonus_decay=0.999)
    assert disagreement_bonus(config, 0) == 0.05
    bonus = 0.05
    for _ in range(300):
        bonus *= 0.999
    assert disagreement_bonus(config, 300) == pytest.approx(bonus)
    assert disagreement_bonus(RewardConfig(), 300) == 0
