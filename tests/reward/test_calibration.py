import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from themis_ray.reward import expected_calibration_error, reliability_curve

PAIRS = st.lists(st.tuples(st.floats(0, 1, width=32), st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=40)


def slow_curve(probabilities: list[float], labels: list[float], num_bins: int) -> list[tuple[float, float, int]]:
    bins: list[list[tuple[float, float]]] = [[] for _ in range(num_bins)]
    for probability, label in zip(probabilities, labels, strict=True):
        number = 0
        while number + 1 < num_bins and probability >= (number + 1) / num_bins:
            number += 1
        bins[number].append((probability, label))
    return [
        (sum(p for p, _ in rows) / len(rows), sum(y for _, y in rows) / len(rows), len(rows)) if rows else (0, 0, 0)
        for rows in bins
    ]


@given(PAIRS, st.integers(1, 12))
def test_curve_and_error_equal_a_loop_over_pairs(pairs: list[tuple[float, float]], num_bins: int) -> None:
    probabilities, labels = [p for p, _ in pairs], [y for _, y in pairs]
    expected = slow_curve(probabilities, labels, num_bins)
    curve = reliability_curve(np.array(probabilities), np.array(labels), num_bins)
    assert curve.counts.tolist() == [count for *_, count in expected]
    for number, (predicted, observed, count) in enumerate(expected):
        if count:
            assert curve.predicted[number] == pytest.approx(predicted)
            assert curve.observed[number] == pytest.approx(observed)
        else:
            assert np.isnan(curve.predicted[number])
            assert np.isnan(curve.observed[number])
    error = sum(count * abs(observed - predicted) for predicted, observed, count in expected) / len(pairs)
    assert expected_calibration_error(np.array(probabilities), np.array(labels), num_bins) == pytest.approx(error)


def test_a_calibrated_predictor_has_no_error_and_an_overconfident_one_has_its_gap() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.random(200_000)
    answers = (rng.random(200_000) < probabilities).astype(np.float32)
    assert expected_calibration_error(probabilities, answers) < 0.01
    # Says 0.95 or 0.05 and is right four times in five: the gap is 0.15.
    confident = np.where(rng.random(200_000) < 0.5, 0.95, 0.05)
    answers = (rng.random(200_000) < np.where(confident > 0.5, 0.8, 0.2)).astype(np.float32)
    assert expected_calibration_error(confident, answers) == pytest.approx(0.15, abs=0.005)


def test_equal_labels_are_half_an_answer_for_each_side() -> None:
    assert expected_calibration_error(np.full(4, 0.5), np.full(4, 0.5)) == 0
    assert reliability_curve(np.array([0.72, 0.78]), np.array([1.0, 0.5])).observed[7] == 0.75


@pytest.mark.parametrize("num_bins", [10, 29, 100])
def test_a_probability_on_an_edge_is_in_the_bin_above(num_bins: int) -> None:
    for i in range(num_bins):
        counts = reliability_curve(np.array([i / num_bins]), np.array([1.0]), num_bins).counts
        assert counts.argmax() == i


def test_no_pairs_give_no_error_and_wrong_values_are_refused() -> None:
    assert np.isnan(expected_calibration_error(np.zeros(0), np.zeros(0)))
    for probabilities, labels in ((1.1, 1.0), (0.5, -0.1), (np.nan, 1.0)):
        with pytest.raises(ValueError, match="from 0 to 1"):
            reliability_curve(np.array([probabilities]), np.array([labels]))
    with pytest.raises(ValueError, match="one shape"):
        reliability_curve(np.zeros(3), np.zeros(2))
    with pytest.raises(ValueError, match="at least 1"):
        reliability_curve(np.zeros(3), np.zeros(3), 0)
