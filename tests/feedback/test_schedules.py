import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from themis_ray.errors import ConfigError, UnknownNameError
from themis_ray.feedback import SCHEDULES, FeedbackConfig, Session, queries_due, session_plan


def sizes(plan: tuple[Session, ...]) -> list[int]:
    return np.diff([0, *(session.cumulative_queries for session in plan)]).tolist()


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
@given(
    budget=st.integers(1, 3000),
    session_size=st.none() | st.integers(1, 400),
    first_step=st.integers(0, 20_000),
    num_steps=st.integers(1, 2_000_000),
)
@settings(max_examples=150, deadline=None)
def test_sessions_sum_to_the_budget_and_rise(schedule, budget, session_size, first_step, num_steps):
    config = FeedbackConfig(budget=budget, session_size=session_size, schedule=schedule)
    last_step = first_step + num_steps
    plan = session_plan(config, first_step, last_step)
    assert sum(sizes(plan)) == budget == plan[-1].cumulative_queries
    assert all(isinstance(size, int) and size >= 1 for size in sizes(plan))
    steps = [session.step for session in plan]
    assert steps == sorted(set(steps))
    assert steps[0] == first_step
    assert steps[-1] < last_step
    assert queries_due(plan, last_step) == budget


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
@given(budget=st.integers(1, 500), steps=st.lists(st.integers(0, 12_000), min_size=2, max_size=20))
@settings(max_examples=50, deadline=None)
def test_queries_due_never_falls_and_stays_within_the_budget(schedule, budget, steps):
    plan = session_plan(FeedbackConfig(budget=budget, schedule=schedule), 1000, 11_000)
    due = [queries_due(plan, step) for step in sorted(steps)]
    assert due == sorted(due)
    assert due[0] >= 0
    assert due[-1] <= budget


def test_queries_are_due_exactly_at_the_step_of_a_session():
    plan = session_plan(FeedbackConfig(budget=30, session_size=10), 1000, 4000)
    assert plan == (Session(1000, 10), Session(2000, 20), Session(3000, 30))
    at = [0, 999, 1000, 1001, 1999, 2000, 2999, 3000, 4000, 10**9]
    assert [queries_due(plan, step) for step in at] == [0, 0, 10, 10, 10, 20, 20, 30, 30, 30]


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
def test_sizes_follow_the_formula_within_one_query(schedule):
    first_step, last_step, num_sessions, budget = 9000, 100_000, 20, 1400
    t = first_step + np.arange(num_sessions) * (last_step - first_step) / num_sessions
    weights = {
        "constant": np.ones(num_sessions),
        "decreasing": (last_step - t) / last_step,
        "increasing": last_step / (last_step - t + 1),
    }[schedule]
    config = FeedbackConfig(budget=budget, session_size=70, schedule=schedule)
    planned = sizes(session_plan(config, first_step, last_step))
    assert np.abs(np.array(planned) - budget * weights / weights.sum()).max() <= 1.0


def test_constant_sessions_have_the_session_size_and_others_move_one_way():
    plans = {
        name: sizes(session_plan(FeedbackConfig(budget=500, session_size=50, schedule=name), 0, 10_000))
        for name in SCHEDULES
    }
    assert plans["constant"] == [50] * 10
    assert plans["decreasing"] == sorted(plans["decreasing"], reverse=True)
    assert plans["increasing"] == sorted(plans["increasing"])
    assert plans["decreasing"][0] > 50 > plans["decreasing"][-1]
    assert plans["increasing"][0] < 50 < plans["increasing"][-1]


@pytest.mark.parametrize(("budget", "first_size"), [(100, 10), (1000, 100), (30, 5), (3, 3)])
def test_default_session_is_a_tenth_of_the_budget_and_at_least_five(budget, first_size):
    assert sizes(session_plan(FeedbackConfig(budget=budget), 0, 10_000))[0] == first_size


def test_sessions_that_fall_on_one_step_are_merged():
    plan = session_plan(FeedbackConfig(budget=100, session_size=1), 5, 8)
    assert [session.step for session in plan] == [5, 6, 7]
    assert plan[-1].cumulative_queries == 100


def test_no_budget_no_sessions():
    plan = session_plan(FeedbackConfig(budget=0), 0, 100)
    assert plan == ()
    assert queries_due(plan, 100) == 0


@pytest.mark.parametrize(("first_step", "last_step"), [(10, 10), (11, 10), (-1, 10)])
def test_run_that_ends_before_the_first_session_is_refused(first_step, last_step):
    with pytest.raises(ConfigError, match="no feedback session fits"):
        session_plan(FeedbackConfig(), first_step, last_step)


@pytest.mark.parametrize(
    "wrong",
    [{"budget": -1}, {"session_size": 0}, {"segment_length": 0}, {"candidates_per_query": 0}, {"bugdet": 3}],
)
def test_config_refuses_wrong_values(wrong):
    with pytest.raises(ValidationError):
        FeedbackConfig(**wrong)


@pytest.mark.parametrize(
    ("wrong", "told"), [({"sampler": "disagrement"}, "'disagreement'"), ({"schedule": "constnt"}, "'constant'")]
)
def test_unknown_name_suggests(wrong, told):
    with pytest.raises(UnknownNameError, match=f"Did you mean {told}"):
        FeedbackConfig(**wrong)
