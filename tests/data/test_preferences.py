from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from themis_ray.data import Choice, Preference, left_probability

NOW = datetime(2025, 1, 1, tzinfo=UTC)
SWAPPED = {
    Choice.LEFT: Choice.RIGHT,
    Choice.RIGHT: Choice.LEFT,
    Choice.EQUAL: Choice.EQUAL,
    Choice.SKIP: Choice.SKIP,
}
MARGINS = st.floats(0, 0.5, exclude_max=True)


def make_preference(**changes):
    fields = {
        "query_id": "q",
        "left_id": "a",
        "right_id": "b",
        "choice": Choice.LEFT,
        "teacher": "oracle",
        "feedback_session": 0,
        "num_env_steps": 1000,
        "asked_at": NOW,
        "answered_at": NOW,
    } | changes
    return Preference(**fields)


def test_choices_are_the_stored_words():
    assert [str(choice) for choice in Choice] == ["left", "right", "equal", "skip"]


@pytest.mark.parametrize(("choice", "label"), [("left", 1.0), ("right", 0.0), ("equal", 0.5), ("skip", None)])
def test_labels_without_a_margin(choice, label):
    assert left_probability(Choice(choice)) == label


@pytest.mark.parametrize(("choice", "label"), [("left", 0.95), ("right", 0.05), ("equal", 0.5), ("skip", None)])
def test_labels_with_a_margin(choice, label):
    assert left_probability(Choice(choice), label_margin=0.05) == label


@given(st.sampled_from([choice for choice in Choice if choice is not Choice.SKIP]), MARGINS)
def test_a_choice_and_its_mirror_image_sum_to_one(choice, margin):
    assert left_probability(choice, margin) + left_probability(SWAPPED[choice], margin) == pytest.approx(1, abs=1e-15)


@given(MARGINS)
def test_left_is_always_above_equal_and_right_below(margin):
    labels = [left_probability(choice, margin) for choice in (Choice.RIGHT, Choice.EQUAL, Choice.LEFT)]
    assert 0 <= labels[0] < labels[1] < labels[2] <= 1 or margin > 0.5 - 1e-9


@pytest.mark.parametrize("margin", [-0.01, 0.5, 1.0, float("nan")])
def test_a_margin_that_turns_labels_round_is_refused(margin):
    with pytest.raises(ValueError, match="label_margin"):
        left_probability(Choice.LEFT, margin)


def test_a_word_that_is_no_choice_is_refused():
    with pytest.raises(ValueError, match="both"):
        left_probability("both")


def test_a_plain_word_becomes_a_choice():
    assert make_preference(choice="skip").choice is Choice.SKIP


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query_id": ""}, "query_id must not be empty"),
        ({"teacher": ""}, "teacher must not be empty"),
        ({"right_id": "a"}, "two different segments"),
        ({"choice": "both"}, "both"),
        ({"feedback_session": -1}, "feedback_session"),
        ({"num_env_steps": -1}, "num_env_steps"),
        ({"asked_at": NOW.replace(tzinfo=None)}, "asked_at must be a time in UTC"),
        ({"answered_at": NOW.astimezone(timezone(timedelta(hours=1)))}, "answered_at must be a time in UTC"),
        ({"answered_at": NOW - timedelta(seconds=1)}, "must not be before"),
    ],
)
def test_impossible_preferences_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_preference(**changes)
