"""Queries that wait for people: several answers to one, answers taken back, and nothing stored twice."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow.parquet as pq
import pytest

from themis_ray.data import AskedQuery, Choice, Preference, PreferenceDataset, Query, Segment, Withdrawal
from themis_ray.data.exchange import export_dataset, import_dataset

NOW = datetime(2025, 3, 1, 12, 30, tzinfo=UTC)


def make_query(number):
    def side(value):
        observations = np.full((3, 2), value, np.float32)
        return Segment.create("Pendulum-v1", f"e{value}", 0, observations, observations[:, :1], observations[:, 0])

    return Query(side(2 * number), side(2 * number + 1))


def asked(query, session=0):
    return AskedQuery(query.id, query.left.id, query.right.id, "human:tea", session, 500, 2, NOW)


def answer(query, answer_id, annotator="ann", choice=Choice.LEFT, session=0):
    later = NOW + timedelta(seconds=30)
    ids = (query.id, query.left.id, query.right.id)
    return Preference(*ids, choice, annotator, session, 500, NOW, later, answer_id)


def withdrawal(answer_id, annotator="ann", reason="withdrawn"):
    return Withdrawal(answer_id, annotator, reason, NOW)


@pytest.fixture
def queries():
    return [make_query(number) for number in range(3)]


def same(root, dataset):
    """Loads the folder again and checks that it says the same."""
    loaded = PreferenceDataset(root)
    for name in ("preferences", "num_questions", "num_changes", "withdrawals", "answer_ids", "last_feedback_session"):
        assert getattr(loaded, name) == getattr(dataset, name), name
    assert dict(loaded.asked) == dict(dataset.asked)
    return loaded


def test_queries_count_when_they_are_asked_and_not_again_when_they_are_answered(tmp_path, queries):
    dataset = PreferenceDataset(tmp_path)
    dataset.append_asked(queries, [asked(query, session=4) for query in queries])
    assert (dataset.num_questions, dataset.num_queries, dataset.num_changes) == (3, 0, 0)
    assert dataset.last_feedback_session == 4
    assert set(dataset.num_missing()) == {query.id for query in queries}
    dataset.append(queries[:1], [answer(queries[0], "a1")])
    assert (dataset.num_questions, dataset.num_queries, dataset.num_changes) == (3, 1, 1)
    assert dataset.num_missing() == {queries[1].id: 1, queries[2].id: 1}
    assert dataset.num_missing(2) == {queries[0].id: 1, queries[1].id: 2, queries[2].id: 2}
    same(tmp_path, dataset)


def test_a_query_holds_the_answers_of_several_people(tmp_path, queries):
    dataset = PreferenceDataset(tmp_path)
    dataset.append_asked(queries[:1], [asked(queries[0])])
    people = [answer(queries[0], "a1", "ann"), answer(queries[0], "a2", "bob", Choice.RIGHT)]
    dataset.append([queries[0]] * 2, people)
    assert (dataset.num_questions, dataset.num_queries) == (1, 2)
    pairs = same(tmp_path, dataset).labelled_pairs(weight=lambda row: 0.5 if row.teacher == "bob" else 1.0)
    assert len(pairs.observations) == 2
    np.testing.assert_array_equal(pairs.labels, [1, 0])
    np.testing.assert_array_equal(pairs.weights, [1, 0.5])


def test_what_is_learned_does_not_depend_on_who_was_quicker(tmp_path, queries):
    pairs = []
    for number, order in enumerate(([0, 1, 2], [2, 0, 1])):
        dataset = PreferenceDataset(tmp_path / str(number))
        dataset.append_asked(queries, [asked(query) for query in queries])
        for i in order:
            dataset.append([queries[i]], [answer(queries[i], f"a{i}", choice=[Choice.LEFT, Choice.RIGHT][i % 2])])
        pairs.append(dataset.labelled_pairs())
    for name in ("observations", "left", "right", "labels"):
        np.testing.assert_array_equal(getattr(pairs[0], name), getattr(pairs[1], name))


def test_an_answer_is_stored_once(tmp_path, queries):
    dataset = PreferenceDataset(tmp_path)
    dataset.append(queries[:1], [answer(queries[0], "a1")])
    with pytest.raises(ValueError, match="same id"):
        same(tmp_path, dataset).append(queries[1:2], [answer(queries[1], "a1")])
    with pytest.raises(ValueError, match="same id"):
        dataset.append(queries[1:], [answer(query, "a2") for query in queries[1:]])
    assert dataset.num_queries == 1


def test_a_query_is_asked_once(tmp_path, queries):
    dataset = PreferenceDataset(tmp_path)
    dataset.append_asked(queries[:1], [asked(queries[0])])
    with pytest.raises(ValueError, match="not asked again"):
        same(tmp_path, dataset).append_asked(queries[:1], [asked(queries[0])])


def test_withdrawn_answers_stay_on_disk_and_count_nowhere(tmp_path, queries):
    dataset = PreferenceDataset(tmp_path / "run")
    dataset.append_asked(queries, [asked(query) for query in queries])
    dataset.append(queries, [answer(query, f"a{i}", "ann" if i else "bob") for i, query in enumerate(queries)])
    before = dataset.num_changes
    dataset.withdraw([withdrawal("a1"), withdrawal("a2", reason="undone")])
    assert [row.answer_id for row in dataset.preferences] == ["a0"]
    assert len(dataset.labelled_pairs()) == dataset.num_preferences == 1
    assert dataset.num_changes == before + 2
    assert dataset.num_questions == 3
    assert set(dataset.num_missing()) == {queries[1].id, queries[2].id}
    assert dataset.answer_ids == {"a0", "a1", "a2"}, "what was withdrawn must not come back"
    same(tmp_path / "run", dataset)
    assert pq.read_table(tmp_path / "run" / "preferences" / "part-00000.parquet").num_rows == 3
    with pytest.raises(ValueError, match="each once"):
        dataset.withdraw([withdrawal("a1")])
    with pytest.raises(ValueError, match="each once"):
        dataset.withdraw([withdrawal("never given")])

    for name in ("parquet", "jsonl", "huggingface"):
        counts = export_dataset(tmp_path / "run", tmp_path / name, name)
        assert counts.num_queries == 1, f"{name} holds withdrawn answers"
        import_dataset(tmp_path / name, tmp_path / f"{name}-back", "auto")
        assert [row.teacher for row in PreferenceDataset(tmp_path / f"{name}-back").preferences] == ["bob"]


def test_parts_without_answer_ids_look_as_they_always_did(tmp_path, queries):
    dataset = PreferenceDataset(tmp_path)
    dataset.append(queries[:1], [answer(queries[0], "")])
    dataset.append(queries[1:2], [answer(queries[1], "a1")])
    columns = [pq.read_schema(path).names for path in sorted((tmp_path / "preferences").iterdir())]
    assert columns[1] == [*columns[0], "answer_id"]
    assert "answer_id" not in columns[0]
    same(tmp_path, dataset)


def test_records_hold_what_they_promise(queries):
    query = queries[0]
    for name, value in (("teacher", ""), ("feedback_session", -1), ("reward_version", -1), ("right_id", query.left.id)):
        with pytest.raises(ValueError, match=r"must|needs"):
            AskedQuery(**{**vars(asked(query)), name: value})
    with pytest.raises(ValueError, match="UTC"):
        AskedQuery(**{**vars(asked(query)), "asked_at": datetime(2025, 3, 1)})
    with pytest.raises(ValueError, match="reason"):
        withdrawal("a1", reason="bored")
    with pytest.raises(ValueError, match="answer_id"):
        withdrawal("")
