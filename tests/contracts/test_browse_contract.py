"""Looking through queries, files of answers and notices, whatever database they are kept in."""

import pytest
from label_stores import BACKENDS, answer, answer_all, check_counts, join, make_study, open_store, run_threads

from themis_ray.data import Choice
from themis_ray.labeling.export import read_answers
from themis_ray.labeling.store.browse import SHOWN, Browse
from themis_ray.labeling.store.imports import Imports
from themis_ray.labeling.transfer import export_study, import_study


@pytest.fixture(scope="module", params=BACKENDS)
def store(request):
    with open_store(request.param) as store:
        yield store


def say(store, study_id, *choices_by_query):
    """One person for each dict of choices, by query, answers everything with it."""
    for choices in choices_by_query:
        person = join(store, study_id)
        while assignments := store.work.desk(person, 1).assignments:
            query_id = assignments[0].left.segment_id.split("-", 1)[1]
            answer(store, person, assignments[0], Choice(choices[query_id]), count=0)


def test_queries_are_found_by_their_votes(store):
    study_id = make_study(store, 4, overlap=3, queries_per_annotator=4)
    browse = Browse(store.database)
    assert [browse.queries(study_id, shown)[1] for shown in SHOWN] == [4, 0, 0, 4, 0, 0, 0]
    say(
        store,
        study_id,
        {"0": "left", "1": "left", "2": "left", "3": "skip"},
        {"0": "left", "1": "right", "2": "equal", "3": "skip"},
        {"0": "left", "1": "right", "2": "right", "3": "skip"},
    )
    found = {shown: [row.id for row in browse.queries(study_id, shown)[0]] for shown in SHOWN}
    assert sorted(found.pop("all")) == ["q-0", "q-1", "q-2", "q-3"]
    assert found == {
        "disputed": ["q-2", "q-1"],
        "unanimous": ["q-0"],
        "waiting": [],
        "gold": [],
        "missed": [],
        "practice": [],
    }
    rows = {row.id: row for row in browse.queries(study_id)[0]}
    assert [(rows[f"q-{number}"].left, rows[f"q-{number}"].skip) for number in range(4)] == [
        (3, 0),
        (1, 0),
        (1, 0),
        (0, 3),
    ]
    assert [rows[f"q-{number}"].disagreement for number in range(4)] == pytest.approx([0, 1 / 3, 2 / 3, None])
    assert browse.queries(study_id, offset=3, limit=5)[1] == 4
    assert len(browse.queries(study_id, offset=3, limit=5)[0]) == 1


def test_gold_that_was_missed_is_found(store):
    study_id = make_study(store, 6, num_gold=2, overlap=2, queries_per_annotator=6, gold_share=0.5)
    wrong = {str(number): "left" for number in range(6)} | {"gold-0": "right", "gold-1": "skip"}
    say(store, study_id, wrong, wrong)
    browse = Browse(store.database)
    assert {row.id for row in browse.queries(study_id, "gold")[0]} == {"q-gold-0", "q-gold-1"}
    given = {row.id: row.num_answers for row in browse.queries(study_id, "gold")[0]}
    assert [row.id for row in browse.queries(study_id, "missed")[0]] == (["q-gold-0"] if given["q-gold-0"] else [])


def test_undone_and_repeated_answers_are_no_votes(store):
    study_id = make_study(store, 12, queries_per_annotator=12, repeat_share=0.5)
    person = join(store, study_id)
    answer_ids = answer_all(store, person, count=1, limit=10)
    store.work.undo(person, answer_ids[-1], 0)
    assert store.work.answers(study_id).undone == (answer_ids[-1],)
    rows, total = Browse(store.database).queries(study_id)
    assert total == 12
    assert all(row.left + row.right + row.equal + row.skip <= 1 for row in rows)
    counts = store.studies.counts(study_id)
    assert sum(row.num_answers for row in rows) == counts.num_answers


def test_an_import_keeps_every_count_right(store, tmp_path):
    settings = {"overlap": 3, "queries_per_annotator": 8, "repeat_share": 0.3, "num_gold": 2, "gold_share": 0.2}
    one, other = (make_study(store, 8, **settings) for _ in range(2))
    for _ in range(4):
        answer_all(store, join(store, one))
    path = tmp_path / "answers.parquet"
    num_rows = export_study(store, one, path, "parquet")
    rows = [
        row.model_copy(
            update={"study": other} | {name: f"{other}-{getattr(row, name)}" for name in ("annotator_id", "answer_id")}
        )
        for row in read_answers(path)
    ]
    imports = Imports(store.database)
    run_threads(3, lambda number: imports.add(other, rows[number:], "tests"))
    assert vars(imports.add(other, rows, "tests")) == {"num_new": 0, "num_known": num_rows, "num_withdrawn": 0}
    check_counts(store, other)
    assert store.studies.counts(other).num_answers == store.studies.counts(one).num_answers
    assert store.studies.counts(other).num_done == 4
    # Those who come now get what is left, and the counts stay right.
    answer_all(store, join(store, other))
    check_counts(store, other)
    # The same file in its own study changes nothing.
    assert import_study(store, one, path, "tests").num_known == num_rows
    check_counts(store, one)


def test_people_who_were_brought_in_can_be_taken_out(store, tmp_path):
    one, other = (make_study(store, 3, overlap=1) for _ in range(2))
    answer_all(store, join(store, one))
    path = tmp_path / "answers.jsonl"
    export_study(store, one, path, "jsonl")
    rows = [
        row.model_copy(update={"study": other, "annotator_id": f"x-{other}", "answer_id": f"{other}-{n}"})
        for n, row in enumerate(read_answers(path))
    ]
    imports = Imports(store.database)
    assert imports.add(other, rows, "tests").num_new == 3
    store.people.withdraw(f"x-{other}", "tests")
    check_counts(store, other)
    assert store.studies.counts(other).num_waiting == 3
    assert vars(imports.add(other, rows, "tests")) == {"num_new": 0, "num_known": 0, "num_withdrawn": 3}


def test_an_event_is_noted_once(store):
    study_id = make_study(store, 1)
    event = "waiting-" + "0" * 24 + ":mail"
    noted = []
    run_threads(6, lambda number: noted.append(store.studies.claim_notice(study_id, event)))
    assert sorted(noted) == [False] * 5 + [True]
