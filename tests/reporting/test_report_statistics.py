"""Statistics of scores: known numbers, the numbers of rliable, and what must hold whatever the scores are."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import mannwhitneyu, trim_mean

from themis_ray.reporting.statistics import (
    Estimate,
    bootstrap,
    difference,
    estimate,
    improvement,
    interquartile_mean,
    interval,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
)

SCORES = arrays(np.float64, st.integers(1, 30), elements=st.floats(-5, 5, width=32))


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


# ---------------------------------------------------------------- known numbers


def test_the_middle_half_is_averaged() -> None:
    assert interquartile_mean(np.array([0.0, 1.0, 2.0, 100.0])) == 1.5
    assert interquartile_mean(np.array([3.0])) == 3.0
    assert interquartile_mean(np.array([0.0, 6.0, 3.0])) == 3.0


@given(SCORES)
def test_the_interquartile_mean_is_scipys_trimmed_mean(scores: np.ndarray) -> None:
    assert interquartile_mean(scores) == pytest.approx(trim_mean(scores, 0.25), abs=1e-12)


def test_what_is_above_the_target_does_not_close_the_gap() -> None:
    assert optimality_gap(np.array([0.5, 3.0])) == 0.25
    assert optimality_gap(np.array([0.5, 1.0]), target=2.0) == 1.25


def test_a_profile_is_the_share_above_each_threshold() -> None:
    shares = performance_profile(np.array([0.0, 0.5, 1.0, 1.0]), np.array([-1.0, 0.0, 0.5, 1.0]))
    np.testing.assert_array_equal(shares, [1.0, 0.75, 0.5, 0.0])


def test_a_tie_is_half_an_improvement() -> None:
    assert probability_of_improvement([np.array([1.0, 2.0])], [np.array([1.0])]) == 0.75


@given(SCORES, SCORES)
def test_the_probability_of_improvement_is_mann_whitneys_u(x: np.ndarray, y: np.ndarray) -> None:
    u = mannwhitneyu(x, y, alternative="greater").statistic / (len(x) * len(y))
    assert probability_of_improvement([x], [y]) == pytest.approx(u, abs=1e-12)


# ---------------------------------------------------------------- rliable

# Runs in rows, tasks in columns.
X = np.array(
    [
        *([0.8002, 0.8597, 0.7452], [0.6219, 0.7091, 0.6017], [0.8120, 1.0680, 0.7016], [0.6759, 0.8980, 0.8714]),
        *([0.8211, 0.6139, 0.7941], [0.9391, 0.5312, 0.7085], [0.4198, 0.5421, 0.4317]),
    ]
)
Y = np.array(
    [
        *([0.1785, 0.2990, 0.2917], [0.5945, 0.0062, 0.6433], [0.4128, 0.9681, 0.9871]),
        *([1.1177, 0.9302, 0.6841], [0.9579, 1.1516, 0.5039]),
    ]
)
THRESHOLDS = np.array([0.4, 0.6, 0.8, 1.0])


def ends(found: Estimate) -> tuple[float | None, float | None]:
    return found.low, found.high


def test_the_numbers_are_those_of_rliable() -> None:
    """Of rliable 1.2.0 with arch 7.2.0; intervals of 50 000 and 5000 samples."""
    x, y = list(X.T), list(Y.T)
    middle, gap = (estimate(x, statistic, rng()) for statistic in (interquartile_mean, optimality_gap))
    assert middle.value == pytest.approx(0.7275909090909092, abs=1e-12)
    assert gap.value == pytest.approx(0.2810380952380952, abs=1e-12)
    assert ends(middle) == pytest.approx((0.6472, 0.8018), abs=0.015)
    assert ends(gap) == pytest.approx((0.2167, 0.3482), abs=0.015)
    middle, gap = (estimate(y, statistic, rng()) for statistic in (interquartile_mean, optimality_gap))
    assert middle.value == pytest.approx(0.6659777777777778, abs=1e-12)
    assert gap.value == pytest.approx(0.36951333333333336, abs=1e-12)
    assert ends(middle) == pytest.approx((0.4299, 0.8833), abs=0.02)
    assert ends(gap) == pytest.approx((0.2090, 0.5376), abs=0.02)
    better = improvement(x, y, rng())
    assert better.value == pytest.approx(0.5619047619047618, abs=1e-12)
    assert ends(better) == pytest.approx((0.3238, 0.7810), abs=0.02)


def test_profiles_are_those_of_rliable() -> None:
    shares = performance_profile(X.ravel(), THRESHOLDS)
    np.testing.assert_allclose(shares, [1.0, 0.8095238095238095, 0.38095238095238093, 0.047619047619047616], atol=1e-12)
    samples = np.concatenate(bootstrap(list(X.T), rng()), axis=-1)
    low, high = interval(performance_profile(samples, THRESHOLDS))
    # Shares move in steps of one run of 21.
    np.testing.assert_allclose(low, [1.0, 0.6190, 0.1905, 0.0], atol=0.048)
    np.testing.assert_allclose(high, [1.0, 0.9524, 0.5714, 0.1429], atol=0.048)


# ---------------------------------------------------------------- what must hold


@given(st.floats(-5, 5), st.integers(1, 30))
def test_statistics_of_a_constant_are_the_constant(value: float, num: int) -> None:
    scores = np.full(num, value)
    assert interquartile_mean(scores) == pytest.approx(value, abs=1e-9)
    assert optimality_gap(scores) == pytest.approx(max(0.0, 1 - value), abs=1e-9)
    assert probability_of_improvement([scores], [scores]) == 0.5


@given(SCORES, st.randoms(use_true_random=False))
def test_the_order_of_runs_does_not_matter(scores: np.ndarray, random) -> None:
    order = list(range(len(scores)))
    random.shuffle(order)
    assert interquartile_mean(scores[order]) == pytest.approx(float(interquartile_mean(scores)), abs=1e-9)
    assert optimality_gap(scores[order]) == pytest.approx(float(optimality_gap(scores)), abs=1e-9)
    other = np.array([0.0, 0.5, 1.0])
    assert probability_of_improvement([scores[order]], [other]) == probability_of_improvement([scores], [other])


@given(SCORES, SCORES)
def test_one_side_improves_as_probably_as_the_other_does_not(x: np.ndarray, y: np.ndarray) -> None:
    both = probability_of_improvement([x, y], [y, x]), probability_of_improvement([x], [y])
    assert both[0] == pytest.approx(0.5)
    assert both[1] + probability_of_improvement([y], [x]) == pytest.approx(1.0)


@given(SCORES)
def test_a_profile_falls(scores: np.ndarray) -> None:
    shares = performance_profile(scores, np.linspace(-6, 6, 25))
    assert (np.diff(shares) <= 0).all()
    assert shares[0] == 1.0
    assert shares[-1] == 0.0


# ---------------------------------------------------------------- intervals


def test_samples_are_drawn_within_their_stratum() -> None:
    first, second = bootstrap([np.array([1.0, 2.0]), np.array([10.0, 20.0, 30.0])], rng(), num_samples=200)
    assert first.shape == (200, 2)
    assert second.shape == (200, 3)
    assert set(np.unique(first)) == {1.0, 2.0}
    assert set(np.unique(second)) == {10.0, 20.0, 30.0}


@pytest.mark.parametrize("statistic", [interquartile_mean, optimality_gap])
def test_the_interval_holds_the_estimate_and_shrinks_with_runs(statistic) -> None:
    few, many = (
        estimate([np.random.default_rng(n).normal(0.7, 0.2, n) for _ in range(2)], statistic, rng()) for n in (6, 60)
    )
    for found in (few, many):
        assert found.low is not None
        assert found.high is not None
        assert found.low <= found.value <= found.high
    assert many.high - many.low < few.high - few.low


def test_the_interval_of_the_mean_is_as_wide_as_it_should_be() -> None:
    scores = np.random.default_rng(3).normal(0, 1, 400)
    found = estimate([scores], lambda s: s.mean(axis=-1), rng())
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * scores.std() / 20, rel=0.1)


def test_a_single_run_has_no_interval() -> None:
    one, two = np.array([0.5]), np.array([0.4, 0.6])
    assert estimate([one, two], interquartile_mean, rng()).low is None
    assert improvement([two], [one], rng()).high is None
    assert difference([one], [two], interquartile_mean, rng()).low is None


def test_the_same_scores_give_the_same_interval() -> None:
    scores = [np.random.default_rng(1).normal(size=9)]
    assert estimate(scores, interquartile_mean, rng()) == estimate(scores, interquartile_mean, rng())


def test_a_clear_difference_is_seen_and_none_is_not() -> None:
    low, high = (np.random.default_rng(seed).normal(mean, 0.1, 10) for seed, mean in ((1, 0.2), (2, 0.9)))
    gap = difference([high], [low], interquartile_mean, rng())
    assert gap.low > 0.5
    assert gap.high < 0.9
    assert improvement([high], [low], rng()).low == 1.0
    same = improvement([high], [np.random.default_rng(4).normal(0.9, 0.1, 10)], rng())
    assert same.low < 0.5 < same.high


def test_an_interval_is_taken_over_the_first_axis() -> None:
    low, high = interval(np.stack([np.arange(101.0), np.arange(101.0) * 2], axis=1))
    np.testing.assert_allclose(low, [2.5, 5.0])
    np.testing.assert_allclose(high, [97.5, 195.0])
