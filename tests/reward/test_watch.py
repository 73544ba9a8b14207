"""The watch reports exploitation once, and nothing else."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from themis_ray.reward.watch import RewardWatch, WatchPoint


def look(step: int, predicted: float, accuracy: float, true: float = 0.0) -> WatchPoint:
    return WatchPoint(step, predicted, true, accuracy, 0.1)


def reports(predicted: list[float], accuracies: list[float]) -> list[tuple[int, str]]:
    watch = RewardWatch()
    found = []
    for step, (p, a) in enumerate(zip(predicted, accuracies, strict=True)):
        evidence = watch.add(look(step, p, a))
        if evidence is not None:
            found.append((step, evidence))
    return found


def test_rising_prediction_with_falling_accuracy_is_reported_once_with_its_evidence() -> None:
    (report,) = reports([0, 1, 2, 3, 4, 5, 6, 7, 8, 9], [0.9, 0.9, 0.9, 0.9, 0.85, 0.8, 0.7, 0.6, 0.6, 0.6])
    step, evidence = report
    assert 5 <= step <= 8
    assert "fell from 0.90 to" in evidence
    assert "predicted return rose from 1.00 to" in evidence


def test_rising_prediction_with_steady_accuracy_is_not_reported() -> None:
    assert reports(list(range(20)), [0.9, 0.88] * 10) == []


def test_falling_accuracy_with_steady_prediction_is_not_reported() -> None:
    assert reports([5.0, 5.1] * 5, [0.9, 0.9, 0.9, 0.9, 0.8, 0.7, 0.6, 0.6, 0.6, 0.6]) == []


def test_a_policy_that_really_gets_better_is_not_reported_while_the_model_is_still_right() -> None:
    watch = RewardWatch()
    accuracies = [0.95] * 4 + [0.85, 0.8, 0.75, 0.75, 0.75]
    assert [watch.add(look(i, float(i), a, true=float(i))) for i, a in enumerate(accuracies)] == [None] * 9


def test_falling_prediction_is_not_reported() -> None:
    assert reports(list(range(20, 0, -1)), list(np.linspace(0.95, 0.5, 20))) == []


def test_it_is_reported_again_after_the_accuracy_has_come_back() -> None:
    fall = [0.9, 0.9, 0.9, 0.9, 0.7, 0.6, 0.6]
    found = reports(list(range(14)), [*fall, *fall])
    assert len(found) == 2


def test_looks_without_a_figure_are_left_out() -> None:
    watch = RewardWatch()
    for step in range(10):
        assert watch.add(look(step, math.nan, 0.9)) is None
        assert watch.add(look(step, 1.0, math.nan)) is None
    assert watch.get_state()["points"] == []


@given(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=20))
def test_growth_ratio_is_one_when_prediction_is_the_truth_on_any_scale(returns: list[float]) -> None:
    watch = RewardWatch()
    for step, value in enumerate(returns):
        watch.add(look(step, 3 * value + 1, 0.9, true=value))
    if returns[-1] != returns[0] and np.std(returns) > 1e-3 and abs(returns[-1] - returns[0]) > 1e-3:
        assert watch.growth_ratio == pytest.approx(1.0, rel=1e-3)


def test_growth_ratio_is_negative_when_the_truth_falls() -> None:
    watch = RewardWatch()
    for step in range(5):
        watch.add(look(step, float(step), 0.9, true=-float(step)))
    assert watch.growth_ratio == pytest.approx(-1.0)


def test_a_restored_watch_goes_on_alike() -> None:
    predicted, accuracies = [float(i) for i in range(10)], [0.9] * 4 + [0.8, 0.7, 0.6, 0.6, 0.6, 0.6]
    first, whole = RewardWatch(), reports(predicted, accuracies)
    found = []
    for step, (p, a) in enumerate(zip(predicted, accuracies, strict=True)):
        restored = RewardWatch()
        restored.set_state(first.get_state())
        evidence = restored.add(look(step, p, a))
        if evidence:
            found.append((step, evidence))
        first = restored
    assert found == whole
