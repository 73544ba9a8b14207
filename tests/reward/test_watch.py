"""The watch reports exploitation once, and nothing else."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from themis_ray.data import Segment
from themis_ray.reward.watch import RewardWatch, WatchPoint

OFFSETS = np.array([-1.0, 1.0, -1.0, 1.0])


def look(step: int, predicted: float, accuracy: float, true: float = 0.0, scale: float = 1.0) -> WatchPoint:
    """A look at segments whose mean returns are given; an observation holds what is predicted of it."""
    segments = [
        Segment.create("env", f"episode {step}", i, np.array([[p]]), np.zeros((1, 1)), np.array([t]))
        for i, (p, t) in enumerate(zip(predicted + scale * OFFSETS, true + OFFSETS, strict=True))
    ]
    return WatchPoint(step, true, accuracy, 0.1, tuple(segments))


def predict(segments: Sequence[Segment]) -> Any:
    returns = np.array([segment.observations.sum() for segment in segments])
    return np.stack([returns - 0.5, returns + 0.5])


def reports(
    predicted: list[float], accuracies: list[float], fitted: Callable[[int, Any], Any] = lambda _, returns: returns
) -> list[tuple[int, str]]:
    """Steps and evidence of what is reported; `fitted` says what the ensemble of a step makes of the predictions."""
    watch = RewardWatch()
    found = []
    for step, (p, a) in enumerate(zip(predicted, accuracies, strict=True)):
        evidence = watch.add(look(step, p, a), lambda segments, step=step: fitted(step, predict(segments)))
        if evidence is not None:
            found.append((step, evidence))
    return found


def test_rising_prediction_with_falling_accuracy_is_reported_once_with_its_evidence() -> None:
    (report,) = reports([0, 1, 2, 3, 4, 5, 6, 7, 8, 9], [0.9, 0.9, 0.9, 0.9, 0.85, 0.8, 0.7, 0.6, 0.6, 0.6])
    step, evidence = report
    assert 5 <= step <= 8
    assert "fell from 0.90 to" in evidence
    assert "predicted return of a segment rose from 1.00 to" in evidence


def test_what_a_fit_adds_to_every_reward_neither_raises_the_prediction_nor_hides_its_rise() -> None:
    accuracies = [0.9, 0.9, 0.9, 0.9, 0.85, 0.8, 0.7, 0.6, 0.6, 0.6]
    rising = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert reports([5.0] * 10, accuracies, lambda step, returns: returns + 10 * step) == []
    ((step, _),) = reports(rising, accuracies)
    ((shifted, _),) = reports(rising, accuracies, lambda step, returns: returns - 10 * step)
    assert shifted == step


def test_a_look_predicts_once_and_keeps_the_segments_of_a_few_looks() -> None:
    watch = RewardWatch()
    calls: list[Sequence[Segment]] = []

    def predict_and_note(segments: Sequence[Segment]) -> Any:
        calls.append(segments)
        return predict(segments)

    for step in range(20):
        watch.add(look(step, float(step), 0.9 - 0.02 * step), predict_and_note)
    assert len(calls) == 18
    assert max(len(segments) for segments in calls) <= 7 * len(OFFSETS)
    kept = [point["num_env_steps"] for point in watch.get_state()["points"] if point["segments"]]
    assert kept == [0, 1, 2, 15, 16, 17, 18, 19]


def test_rising_prediction_with_steady_accuracy_is_not_reported() -> None:
    assert reports(list(range(20)), [0.9, 0.88] * 10) == []


def test_falling_accuracy_with_steady_prediction_is_not_reported() -> None:
    assert reports([5.0, 5.1] * 5, [0.9, 0.9, 0.9, 0.9, 0.8, 0.7, 0.6, 0.6, 0.6, 0.6]) == []


def test_a_policy_that_really_gets_better_is_not_reported_while_the_model_is_still_right() -> None:
    watch = RewardWatch()
    accuracies = [0.95] * 4 + [0.85, 0.8, 0.75, 0.75, 0.75]
    assert [watch.add(look(i, float(i), a, true=float(i)), predict) for i, a in enumerate(accuracies)] == [None] * 9


def test_falling_prediction_is_not_reported() -> None:
    assert reports(list(range(20, 0, -1)), list(np.linspace(0.95, 0.5, 20))) == []


def test_it_is_reported_again_after_the_accuracy_has_come_back() -> None:
    fall = [0.9, 0.9, 0.9, 0.9, 0.7, 0.6, 0.6]
    found = reports(list(range(14)), [*fall, *fall])
    assert len(found) == 2


def test_looks_without_a_figure_are_left_out() -> None:
    watch = RewardWatch()
    for step in range(10):
        assert watch.add(look(step, 1.0, 0.9, true=math.nan), predict) is None
        assert watch.add(look(step, 1.0, math.nan), predict) is None
    assert watch.get_state()["points"] == []


def growth_ratio(predicted: Sequence[float], true: Sequence[float], scale: float = 1.0, shift: float = 0.0) -> float:
    watch = RewardWatch()
    for step, (p, t) in enumerate(zip(predicted, true, strict=True)):
        watch.add(look(step, p, 0.9, t, scale), lambda segments, step=step: predict(segments) + shift * step)
    return watch.growth_ratio


@given(st.lists(st.integers(-100, 100), min_size=3, max_size=20), st.floats(-5, 5))
def test_growth_ratio_is_one_when_prediction_is_the_truth_on_any_scale(returns: list[int], shift: float) -> None:
    ratio = growth_ratio([3.0 * value + 1 for value in returns], returns, scale=3.0, shift=shift)
    if returns[-1] != returns[0]:
        assert ratio == pytest.approx(1.0, rel=1e-3)
    else:
        assert math.isnan(ratio)


def test_growth_ratio_is_negative_when_the_truth_falls() -> None:
    steps = [float(step) for step in range(5)]
    assert growth_ratio(steps, [-step for step in steps]) == pytest.approx(-1.0)


def test_growth_ratio_tells_how_much_faster_the_prediction_grows() -> None:
    steps = np.arange(20.0)
    assert growth_ratio(steps, steps / 8) == pytest.approx(8.0)
    assert growth_ratio(steps / 8, steps) == pytest.approx(1 / 8)


def test_growth_ratio_needs_three_looks() -> None:
    assert math.isnan(growth_ratio([0, 1], [0, 1]))


def test_a_restored_watch_goes_on_alike() -> None:
    predicted, accuracies = [float(i) for i in range(10)], [0.9] * 4 + [0.8, 0.7, 0.6, 0.6, 0.6, 0.6]
    first, whole = RewardWatch(), reports(predicted, accuracies)
    found = []
    for step, (p, a) in enumerate(zip(predicted, accuracies, strict=True)):
        restored = RewardWatch()
        restored.set_state(first.get_state())
        evidence = restored.add(look(step, p, a), predict)
        if evidence:
            found.append((step, evidence))
        first = restored
    assert found == whole


def test_a_watch_goes_on_from_a_checkpoint_whose_looks_kept_no_segments() -> None:
    old = {"num_env_steps": 1, "predicted_return": 2.0, "true_return": 3.0, "fresh_accuracy": 0.9, "disagreement": 0.1}
    watch = RewardWatch()
    watch.set_state({"points": [old] * 7, "is_reported": False})
    for step in range(8):
        watch.add(look(step, float(step), 0.9), predict)
    assert len(watch.get_state()["points"]) == 8
