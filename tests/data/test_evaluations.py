"""Ratings, judged steps and demonstrations: what is allowed, how they are stored, and their training data."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow.parquet as pq
import pytest

from themis_ray.data import (
    Choice,
    Demonstration,
    EvaluatedSegments,
    Evaluation,
    Preference,
    PreferenceDataset,
    Query,
    Rating,
    Segment,
    StepFeedback,
)
from themis_ray.errors import DataError

NOW = datetime(2025, 3, 1, 12, 30, 15, 123456, tzinfo=UTC)
ABOUT = ("oracle", 2, 1000, NOW, NOW + timedelta(seconds=2))


def make_segments(count: int, length: int = 3) -> list[Segment]:
    return [
        Segment.create(
            "Pendulum-v1", "e", i, np.full((length, 2), i, np.float32), np.ones((length, 1)), np.ones(length)
        )
        for i in range(count)
    ]


def rate(segment: Segment, level: int, num_levels: int = 4) -> Rating:
    return Rating(segment.id, level, num_levels, *ABOUT)


def fill(dataset: PreferenceDataset) -> list[Segment]:
    segments = make_segments(5)
    dataset.append_evaluations(segments[:3], [rate(segment, level) for level, segment in enumerate(segments[:3])])
    values = [(1, 0, -1), (0, 0, 0)]
    judged = [StepFeedback(segment.id, steps, *ABOUT) for segment, steps in zip(segments[2:4], values, strict=True)]
    dataset.append_evaluations(segments[2:4], judged)
    dataset.append_evaluations(segments[4:], [Demonstration(segments[4].id, *ABOUT)])
    return segments


def test_evaluations_come_back_as_they_were_stored(tmp_path) -> None:
    dataset = PreferenceDataset(tmp_path)
    segments = fill(dataset)
    loaded = PreferenceDataset(tmp_path)
    assert loaded.evaluations == dataset.evaluations
    assert [row.level for row in loaded.ratings] == [0, 1, 2]
    assert [row.values for row in loaded.step_feedback] == [(1, 0, -1), (0, 0, 0)]
    assert [row.segment_id for row in loaded.demonstrations] == [segments[4].id]
    assert loaded.ratings[0].answered_at == NOW + timedelta(seconds=2)
    assert (loaded.num_questions, loaded.num_queries) == (5, 0)
    for segment in segments:
        np.testing.assert_array_equal(loaded.segment(segment.id).observations, segment.observations)


def test_parts_are_numbered_and_never_written_again(tmp_path) -> None:
    dataset = PreferenceDataset(tmp_path)
    segments = fill(dataset)
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.parquet"))
    assert names == [
        "demonstrations/part-00000.parquet",
        "ratings/part-00000.parquet",
        *[f"segments/part-0000{i}.parquet" for i in range(3)],
        "step_feedback/part-00000.parquet",
    ]
    before = {name: (tmp_path / name).read_bytes() for name in names}
    dataset.append_evaluations(segments[4:], [rate(segments[4], 3)])
    PreferenceDataset(tmp_path).append_evaluations(segments[:1], [rate(segments[0], 3)])
    assert (tmp_path / "ratings/part-00002.parquet").exists()
    assert {name: (tmp_path / name).read_bytes() for name in names} == before
    with pytest.raises(DataError, match="another program"):
        dataset.append_evaluations(segments[:1], [rate(segments[0], 3)])


def test_any_program_can_read_the_columns(tmp_path) -> None:
    fill(PreferenceDataset(tmp_path))
    assert pq.read_table(tmp_path / "ratings")["level"].to_pylist() == [0, 1, 2]
    assert pq.read_table(tmp_path / "step_feedback")["values"].to_pylist() == [[1, 0, -1], [0, 0, 0]]


@pytest.mark.parametrize("folder", ["ratings", "step_feedback", "demonstrations"])
def test_damage_and_missing_segments_are_refused(tmp_path, folder) -> None:
    fill(PreferenceDataset(tmp_path))
    path = tmp_path / folder / "part-00000.parquet"
    content = path.read_bytes()
    path.write_bytes(content[:-10])
    with pytest.raises(DataError, match="cannot be read"):
        PreferenceDataset(tmp_path)
    path.write_bytes(content)
    path.rename(path.with_name("part-00001.parquet"))
    with pytest.raises(DataError, match="is missing"):
        PreferenceDataset(tmp_path)
    path.write_bytes(content)
    path.with_name("part-00001.parquet").unlink()
    for part in (tmp_path / "segments").iterdir():
        part.unlink()
    with pytest.raises(DataError, match="refers to segment"):
        PreferenceDataset(tmp_path)


def test_a_part_of_another_schema_version_is_refused(tmp_path) -> None:
    fill(PreferenceDataset(tmp_path))
    path = tmp_path / "ratings/part-00000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({b"themis_schema_version": b"2"}), path)
    with pytest.raises(DataError, match="schema version 2"):
        PreferenceDataset(tmp_path)


def test_preferences_and_evaluations_lie_side_by_side(tmp_path) -> None:
    dataset = PreferenceDataset(tmp_path)
    left, right, *_ = fill(dataset)
    query = Query(left, right)
    dataset.append([query], [Preference(query.id, left.id, right.id, Choice.LEFT, *ABOUT)])
    loaded = PreferenceDataset(tmp_path)
    assert (loaded.num_queries, loaded.num_questions) == (1, 6)
    assert len(loaded.labelled_pairs()) == 1


def test_what_does_not_fit_is_refused(tmp_path) -> None:
    dataset = PreferenceDataset(tmp_path)
    first, second, *_ = fill(dataset)
    cases: list[tuple[list[Segment], list[Evaluation], str]] = [
        ([first], [rate(second, 0)], "one evaluation of its own"),
        ([first, second], [rate(first, 0)], "one evaluation of its own"),
        ([first], [rate(first, 0, 7)], r"not of \[4, 7\] levels"),
        ([first], [StepFeedback(first.id, (1,), *ABOUT)], "needs as many values, not 1"),
        ([first, second], [rate(first, 0), Demonstration(second.id, *ABOUT)], "several kinds"),
    ]
    for segments, evaluations, reason in cases:
        with pytest.raises(ValueError, match=reason):
            dataset.append_evaluations(segments, evaluations)
    (longer,) = make_segments(1, length=4)
    with pytest.raises(ValueError, match="segments must have"):
        dataset.append_evaluations([longer], [rate(longer, 0)])
    dataset.append_evaluations([], [])
    assert PreferenceDataset(tmp_path).evaluations == dataset.evaluations


@pytest.mark.parametrize(
    "make",
    [
        lambda: Rating("a", 4, 4, *ABOUT),
        lambda: Rating("a", -1, 4, *ABOUT),
        lambda: Rating("a", 0, 1, *ABOUT),
        lambda: StepFeedback("a", (1, 2), *ABOUT),
        lambda: StepFeedback("a", (), *ABOUT),
        lambda: Demonstration("", *ABOUT),
        lambda: Demonstration("a", "t", -1, 0, NOW, NOW),
        lambda: Demonstration("a", "t", 0, 0, NOW, NOW - timedelta(seconds=1)),
        lambda: Demonstration("a", "t", 0, 0, NOW.replace(tzinfo=None), NOW),
    ],
)
def test_records_that_are_not_allowed(make) -> None:
    with pytest.raises((ValueError, TypeError)):
        make()


def test_training_data_holds_each_segment_once(tmp_path) -> None:
    dataset = PreferenceDataset(tmp_path)
    assert dataset.evaluated_segments() is None
    segments = fill(dataset)
    data = dataset.evaluated_segments()
    assert data is not None
    assert len(data) == 5
    assert len(data.shown) == 0
    values = data.observations[:, 0, 0]
    assert values[data.rated].tolist() == [0, 1, 2]
    assert data.levels.tolist() == [0, 1, 2]
    assert data.num_levels == 4
    assert values[data.judged].tolist() == [2, 3]
    assert data.step_values.tolist() == [[1, 0, -1], [0, 0, 0]]
    own = [*make_segments(8)[5:], segments[0]]
    data = dataset.evaluated_segments(own)
    assert data is not None
    assert len(data.observations) == 8
    values = data.observations[:, 0, 0]
    assert values[data.shown].tolist() == [4]
    assert values[data.own].tolist() == [5, 6, 7, 0]


def test_steps_without_an_opinion_are_no_training_data(tmp_path) -> None:
    dataset = PreferenceDataset(tmp_path)
    segments = make_segments(2)
    dataset.append_evaluations(segments[:1], [StepFeedback(segments[0].id, (0, 0, 0), *ABOUT)])
    assert dataset.evaluated_segments() is None
    dataset.append_evaluations(segments[1:], [StepFeedback(segments[1].id, (0, -1, 0), *ABOUT)])
    data = dataset.evaluated_segments()
    assert data is not None
    assert len(data) == 2


def test_training_data_that_does_not_fit_is_refused() -> None:
    observations, actions = np.zeros((2, 3, 4)), np.zeros((2, 3, 1))
    cases = [
        ({"rated": [2], "levels": [0]}, "must be rows of 2"),
        ({"rated": [1], "levels": [0, 1]}, "one shape"),
        ({"rated": [1], "levels": [2]}, "levels must be"),
        ({"judged": [0], "step_values": [[1, 1]]}, "must have shape"),
        ({"judged": [0], "step_values": [[1, 1, 3]]}, "must be one of"),
        ({"shown": [0]}, "segments of the learner"),
    ]
    for arrays, reason in cases:
        with pytest.raises(ValueError, match=reason):
            EvaluatedSegments(observations, actions, **{name: np.array(rows) for name, rows in arrays.items()})
