import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from themis_ray.data import LabelledPairs, Query, Segment
from themis_ray.reward import unlabelled_pairs
from themis_ray.reward.labels import FLIP_ABOVE, held_out, pseudo_labels, trust_labels

START = np.array([0.0, 1.0, 0.0])


def make_pairs(num_pairs: int, seed: int = 0) -> LabelledPairs:
    rng = np.random.default_rng(seed)
    rows = rng.permutation(2 * num_pairs)
    return LabelledPairs(
        rng.standard_normal((2 * num_pairs, 3, 2)).astype(np.float32),
        rng.standard_normal((2 * num_pairs, 3, 1)).astype(np.float32),
        rows[:num_pairs],
        rows[num_pairs:],
        rng.integers(0, 2, num_pairs).astype(np.float32),
    )


def take(pairs: LabelledPairs, chosen: np.ndarray, *, is_mirrored: bool = False) -> LabelledPairs:
    left, right = pairs.left[chosen], pairs.right[chosen]
    if is_mirrored:
        left, right = right, left
    return LabelledPairs(pairs.observations, pairs.actions, left, right, pairs.labels[chosen])


# ---------------------------------------------------------------- pseudo-labels


@given(st.lists(st.floats(0, 1), max_size=30), st.floats(0.51, 0.999))
def test_pseudo_labels_are_only_given_beyond_the_threshold(probabilities: list[float], threshold: float) -> None:
    is_sure, labels = pseudo_labels(np.array(probabilities, np.float64), threshold)
    expected = [1.0 if p > threshold else 0.0 for p in probabilities if p > threshold or 1.0 - p > threshold]
    assert labels.tolist() == expected
    assert is_sure.tolist() == [p > threshold or 1.0 - p > threshold for p in probabilities]


def test_unlabelled_pairs_keeps_a_shared_segment_once() -> None:
    segments = [
        Segment.create(
            env_id="a",
            episode_id="b",
            start_step=5 * number,
            observations=np.full((4, 2), number, np.float32),
            actions=np.full((4, 1), number, np.float32),
            true_rewards=np.zeros(4, np.float32),
        )
        for number in range(3)
    ]
    pairs = unlabelled_pairs([Query(segments[2], segments[0]), Query(segments[0], segments[1])])
    assert len(pairs.observations) == len(pairs.actions) == 3
    assert pairs.observations[pairs.left][:, 0, 0].tolist() == pairs.actions[pairs.left][:, 0, 0].tolist() == [2, 0]
    assert pairs.observations[pairs.right][:, 0, 0].tolist() == [0, 1]


# ---------------------------------------------------------------- held-out preferences


def test_about_the_share_is_held_out() -> None:
    shares = [held_out(make_pairs(500, seed), 0.2).mean() for seed in range(20)]
    assert np.mean(shares) == pytest.approx(0.2, abs=0.02)


@given(st.integers(0, 12), st.floats(0, 0.99), st.integers(0, 100))
def test_at_least_one_is_held_out_and_one_fitted(num_pairs: int, share: float, seed: int) -> None:
    is_held_out = held_out(make_pairs(num_pairs, seed), share)
    assert is_held_out.shape == (num_pairs,)
    if share == 0 or num_pairs < 2:
        assert not is_held_out.any()
    else:
        assert 1 <= is_held_out.sum() < num_pairs


@given(st.integers(0, 50))
def test_the_split_depends_on_neither_order_nor_sides(seed: int) -> None:
    pairs = make_pairs(30, seed)
    order = np.random.default_rng(seed).permutation(30)
    expected = held_out(pairs, 0.3)
    np.testing.assert_array_equal(held_out(take(pairs, order, is_mirrored=True), 0.3), expected[order])


def test_a_pair_that_was_learnt_is_not_held_out_later() -> None:
    for seed in range(20):
        pairs = make_pairs(60, seed)
        learnt = np.zeros(60, bool)
        for num_pairs in (10, 11, 20, 40, 60):
            is_held_out = held_out(take(pairs, np.arange(num_pairs)), 0.2)
            assert not (learnt[:num_pairs] & is_held_out).any()
            learnt[:num_pairs] |= ~is_held_out


# ---------------------------------------------------------------- the filter of wrong labels


def slow_trust(
    probabilities: list[float], labels: list[float], rho: float, spread: float, num_passes: float
) -> tuple[list[str], float, float]:
    """RIME's rule, one label after the other."""
    beta = 3 - num_passes / 30 if num_passes < 60 else 1.0
    lower = -math.log(rho + 1e-8) + 0.5 * rho + min(beta * spread, 3.0)
    verdicts, counted = [], []
    for probability, label in zip(probabilities, labels, strict=True):
        if label == 0.5:
            verdicts.append("trusted")
            continue
        divergence = -math.log(max(probability if label > 0.5 else 1 - probability, 1e-300))
        if divergence > 3 * math.log(10):
            verdicts.append("flipped")
        elif divergence < lower:
            verdicts.append("trusted")
            counted.append(divergence)
        else:
            verdicts.append("left out")
    if counted:
        rho = 0.9 * rho + 0.1 * max(counted)
        spread = 0.9 * spread + 0.1 * float(np.std(counted))
    return verdicts, rho, spread


@given(
    st.lists(st.tuples(st.floats(0.0001, 0.9999), st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0])), max_size=20),
    st.floats(0, 6),
    st.floats(0, 2),
    st.integers(0, 90),
)
def test_the_filter_equals_the_rule_applied_label_by_label(
    rows: list[tuple[float, float]], rho: float, spread: float, num_passes: int
) -> None:
    probabilities, labels = [p for p, _ in rows], [y for _, y in rows]
    trust, statistics = trust_labels(
        np.array(probabilities), np.array(labels, np.float32), np.array([rho, spread, num_passes])
    )
    verdicts, next_rho, next_spread = slow_trust(probabilities, labels, rho, spread, num_passes)
    assert trust.is_trusted.tolist() == [verdict == "trusted" for verdict in verdicts]
    assert trust.is_flipped.tolist() == [verdict == "flipped" for verdict in verdicts]
    np.testing.assert_allclose(statistics, [next_rho, next_spread, num_passes + 1], atol=1e-9)


def test_a_fresh_filter_trusts_all_that_a_fresh_ensemble_says() -> None:
    trust, _ = trust_labels(np.linspace(0.2, 0.8, 20), np.ones(20, np.float32), START)
    assert trust.is_trusted.all()


def test_the_filter_reads_the_side_and_not_the_margin() -> None:
    probabilities = np.array([0.9999, 0.0001, 0.5, 0.3])
    hard, _ = trust_labels(probabilities, np.array([0, 0, 1, 1], np.float32), START)
    soft, _ = trust_labels(probabilities, np.array([0.1, 0.1, 0.9, 0.9], np.float32), START)
    for ours, theirs in zip(hard, soft, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert hard.is_flipped.tolist() == [True, False, False, False]
    assert pytest.approx(1e-3) == math.exp(-FLIP_ABOVE)
