"""Synthetic ratings and judged steps against their formulas, and which segments are shown."""

import math
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete, MultiDiscrete, Space

from themis_ray.data import Demonstration, PreferenceDataset, Rating, Segment
from themis_ray.envs import EnvConfig, get_env_spec
from themis_ray.errors import DataError
from themis_ray.feedback import check_choices, judge_steps, open_demonstrations, rate_segments

ENV = EnvConfig(id="Pendulum-v1")
SPEC = get_env_spec(ENV)
NOW = datetime(2025, 3, 1, tzinfo=UTC)


def make_segment(rewards: np.ndarray | list[float], env_id: str = "Pendulum-v1") -> Segment:
    length = len(rewards)
    return Segment.create(env_id, "e", 0, np.zeros((length, 3), np.float32), np.zeros((length, 1), np.float32), rewards)


def test_levels_are_quantiles_of_recent_returns() -> None:
    rng = np.random.default_rng(0)
    recent = [make_segment(rng.normal(size=4)) for _ in range(40)]
    segments = [make_segment(rng.normal(size=4)) for _ in range(50)]
    levels = rate_segments(segments, recent, 5, 0.0, rng)
    for segment, level in zip(segments, levels, strict=True):
        num_smaller = sum(other.true_return < segment.true_return for other in recent)
        assert level == min(4, 5 * num_smaller // 40)
    assert set(levels) == set(range(5))


@pytest.mark.parametrize("num_levels", [2, 5, 10, 100])
def test_levels_are_exact_where_floats_are_not(num_levels: int) -> None:
    """Of 200 recent returns any number is smaller and any number equal."""
    for num_smaller, num_equal in [(140, 40), (100, 120), (57, 6), (199, 2), (0, 200), (200, 0), (29, 0)]:
        num_greater = max(0, 200 - num_smaller - num_equal)
        recent = [make_segment([value]) for value in [0.0] * num_smaller + [1.0] * num_equal + [2.0] * num_greater]
        share = Fraction(2 * num_smaller + num_equal, 2 * len(recent))
        levels = rate_segments([make_segment([1.0])], recent, num_levels, 0.0, np.random.default_rng(0))
        assert levels == [min(num_levels - 1, math.floor(num_levels * share))]


def test_equal_returns_are_rated_in_the_middle() -> None:
    same = [make_segment([1.0, 1.0])] * 5
    assert rate_segments(same, same, 5, 0.0, np.random.default_rng(0)) == [2] * 5


def test_wrong_ratings_are_as_frequent_as_asked_for_and_uniform() -> None:
    recent = [make_segment([float(i)]) for i in range(100)]
    segments = [recent[50]] * 10_000
    levels = np.array(rate_segments(segments, recent, 4, 0.3, np.random.default_rng(0)))
    counts = np.bincount(levels, minlength=4) / 10_000
    np.testing.assert_allclose(counts, [0.1, 0.1, 0.7, 0.1], atol=0.015)


def test_steps_are_judged_by_the_sign_beside_the_median() -> None:
    rng = np.random.default_rng(0)
    recent = [make_segment(rng.normal(size=6)) for _ in range(30)]
    segments = [make_segment(rng.normal(size=6)) for _ in range(20)]
    values = judge_steps(segments, recent, 0.5, 0.0, rng)
    usual = sorted(float(reward) for segment in recent for reward in segment.true_rewards)
    median = (usual[89] + usual[90]) / 2
    size = sum(abs(reward - median) for reward in usual) / len(usual)
    for segment, steps in zip(segments, values, strict=True):
        for reward, value in zip(segment.true_rewards.tolist(), steps, strict=True):
            assert value == (0 if abs(reward - median) <= 0.5 * size else 1 if reward > median else -1)
    assert {value for steps in values for value in steps} == {-1, 0, 1}
    assert judge_steps([make_segment([1.0, 1.0])], [make_segment([1.0, 1.0])], 0.0, 0.0, rng) == [(0, 0)]


def test_steps_without_a_finite_reward_get_no_opinion() -> None:
    recent = [make_segment([0.0, np.nan, 2.0]), make_segment([1.0, 1.0, np.inf])]
    rng = np.random.default_rng(0)
    assert judge_steps([make_segment([np.nan, 3.0, np.inf])], recent, 0.0, 0.0, rng) == [(0, 1, 0)]
    assert judge_steps([make_segment([1.0])], [make_segment([np.nan])], 0.0, 1.0, rng) == [(0,)]


def test_wrong_signs_are_as_frequent_as_asked_for() -> None:
    recent = [make_segment([0.0, 1.0, 2.0])]
    (steps,) = judge_steps([make_segment(np.full(10_000, 3.0))], recent, 0.0, 0.2, np.random.default_rng(0))
    assert np.mean(np.array(steps) == -1) == pytest.approx(0.2, abs=0.015)


def test_the_best_segments_are_shown_unless_there_are_demonstrations(tmp_path) -> None:
    dataset = PreferenceDataset(tmp_path)
    segments = [make_segment([float(i), 0.0]) for i in (3, 1, 4, 2)]
    rows = [Rating(segment.id, 0, 2, "oracle", 0, 100, NOW, NOW) for segment in segments]
    dataset.append_evaluations(segments, rows)
    shown = open_demonstrations(tmp_path, 2, ENV, SPEC, 2)
    assert [segment.true_return for segment in shown] == [4, 3]
    dataset.append_evaluations(segments[1:2] * 2, [Demonstration(segments[1].id, "annotator", 0, 100, NOW, NOW)] * 2)
    assert open_demonstrations(tmp_path, 2, ENV, SPEC, 2) == segments[1:2]


def test_without_true_rewards_only_demonstrations_are_shown(tmp_path) -> None:
    dataset = PreferenceDataset(tmp_path)
    segments = [make_segment([np.nan, np.nan]), make_segment([1.0, 2.0])]
    dataset.append_evaluations(segments, [Rating(segment.id, 0, 2, "expert", 0, 0, NOW, NOW) for segment in segments])
    with pytest.raises(DataError, match="whose true rewards nobody knows"):
        open_demonstrations(tmp_path, 2, ENV, SPEC, 2)
    dataset.append_evaluations(segments[:1], [Demonstration(segments[0].id, "expert", 0, 0, NOW, NOW)])
    assert [segment.id for segment in open_demonstrations(tmp_path, 2, ENV, SPEC, 2)] == [segments[0].id]


def test_segments_that_do_not_fit_are_refused(tmp_path) -> None:
    with pytest.raises(DataError, match="holds no segments"):
        open_demonstrations(tmp_path / "nothing", 2, ENV, SPEC, 2)
    for name, segment in (("env", make_segment([1.0, 2.0], "Other-v1")), ("length", make_segment([1.0]))):
        dataset = PreferenceDataset(tmp_path / name)
        dataset.append_evaluations([segment], [Rating(segment.id, 0, 2, "oracle", 0, 100, NOW, NOW)])
        with pytest.raises(DataError, match="does not fit this run"):
            open_demonstrations(tmp_path / name, 2, ENV, SPEC, 2)


def test_demonstrations_of_observations_of_another_meaning_are_refused(tmp_path) -> None:
    segment = make_segment([1.0, 2.0])
    PreferenceDataset(tmp_path).append_evaluations([segment], [Rating(segment.id, 0, 2, "oracle", 0, 100, NOW, NOW)])
    (tmp_path / "config.yaml").write_text("env: {id: Pendulum-v1, normalize_observations: true}")
    with pytest.raises(DataError, match=r"env.normalize_observations is True there and False here"):
        open_demonstrations(tmp_path, 2, ENV, SPEC, 2)
    (tmp_path / "config.yaml").write_text("env: {id: Pendulum-v1}")
    assert len(open_demonstrations(tmp_path, 2, ENV, SPEC, 2)) == 1


def act(env_id: str, num_observations: int, actions: Any) -> Segment:
    observations = np.zeros((len(actions), num_observations), np.float32)
    return Segment.create(env_id, "e", 0, observations, np.array(actions), np.zeros(len(actions)))


@pytest.mark.parametrize(
    ("space", "actions", "message"),
    [
        (Discrete(2), [0, 1], None),
        (Discrete(2), [0.0, 1.0], None),
        (Discrete(2), [False, True], None),
        (Discrete(2), [1, 2], r"an action is 2 there, and allowed are whole numbers from 0 to 1\. Count .* from 0"),
        (Discrete(2), [0, -1], "an action is -1 there"),
        (Discrete(2), [0.5, 0.0], "an action is 0.5 there"),
        (Discrete(2), [np.nan, 0.0], "an action is nan there"),
        (MultiDiscrete([2, 3]), [[0, 2], [1, 0]], None),
        (MultiDiscrete([2, 3]), [[0, 2], [1, 3]], "an action at place 1 is 3 there, and allowed .* from 0 to 2"),
        (Box(-1, 1, (1,)), [[7.5], [-3.0]], None),
    ],
)
def test_choices_that_the_environment_does_not_have_are_refused(
    space: Space[Any], actions: list[Any], message: str | None
) -> None:
    segments = [act("Made-v0", 1, actions[:1] * 2), act("Made-v0", 1, actions)]
    if message is None:
        check_choices("feedback.dataset=x", segments, space)
    else:
        with pytest.raises(DataError, match=f"^feedback.dataset=x does not fit this run: {message}"):
            check_choices("feedback.dataset=x", segments, space)


def test_demonstrations_of_choices_that_the_environment_does_not_have_are_refused(tmp_path) -> None:
    env = EnvConfig(id="CartPole-v1")
    spec = get_env_spec(env)
    for dtype, message in (
        (np.int32, "an action is 2 there"),
        (np.int64, r"\(\), 'int64'\)\) there and .* 'int32'\)\) here"),
    ):
        segment = act(env.id, spec.observation_space.shape[0], np.array([1, 2], dtype))
        path = tmp_path / dtype.__name__
        PreferenceDataset(path).append_evaluations([segment], [Demonstration(segment.id, "expert", 0, 0, NOW, NOW)])
        with pytest.raises(DataError, match=message):
            open_demonstrations(path, 1, env, spec, 2)
