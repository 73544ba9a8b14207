"""The course of a study and what it holds, whatever database the label store is kept in."""

import time
from collections import Counter

import pytest
from label_stores import (
    CLIP_NAMES,
    QUESTIONS,
    answer,
    answer_all,
    answer_one,
    check_counts,
    each_store,
    join,
    make_study,
    new_query,
    rows_of,
    run_threads,
)

from themis_ray.labeling import tables
from themis_ray.labeling.store import ConflictError, ForbiddenError, NotFoundError, WrongError
from themis_ray.labeling.study import StudyConfig

store = each_store


def test_a_paused_study_takes_answers_and_gives_no_work(store):
    study_id = make_study(store, 5)
    person = join(store, study_id)
    desk = store.work.desk(person, 2)
    assert store.studies.set_status(study_id, "paused", "tests").status == "paused"
    desk = answer(store, person, desk.assignments[0], count=2).desk
    assert (len(desk.assignments), desk.is_waiting) == (1, False)
    assert answer(store, person, desk.assignments[0], count=2).desk.is_waiting
    assert store.work.answers(study_id).status == "paused"
    store.studies.set_status(study_id, "running", "tests")
    assert len(store.work.desk(person, 2).assignments) == 2


@pytest.mark.parametrize(
    ("num_practice", "after", "stage"), [(0, [], "done"), (0, QUESTIONS[1:2], "after"), (2, [], "done")]
)
def test_a_stopped_study_ends_the_work_of_everybody(store, num_practice, after, stage):
    study_id = make_study(
        store, 5, num_practice=num_practice, after=after, panel={"kind": "generic", "code_complete": "OK"}
    )
    person = join(store, study_id)
    held = store.work.desk(person, 2).assignments
    store.studies.set_status(study_id, "stopped", "tests")
    with pytest.raises(ConflictError, match="has ended"):
        answer(store, person, held[0])
    desk = store.work.desk(person, 2)
    assert (desk.stage, desk.assignments, desk.is_waiting) == (stage, (), False)
    assert store.people.completion(person).code == ("OK" if stage == "done" else "")
    with pytest.raises(ForbiddenError, match="has ended"):
        join(store, study_id)
    assert store.studies.get(study_id).stopped_at == pytest.approx(time.time(), abs=60)
    assert store.studies.set_status(study_id, "running", "tests").stopped_at is None
    check_counts(store, study_id)


def test_nothing_is_undone_once_a_study_has_stopped(store):
    study_id = make_study(store, 3)
    person = join(store, study_id)
    answer_id = answer_one(store, person)
    store.studies.set_status(study_id, "stopped", "tests")
    with pytest.raises(ConflictError, match="has ended"):
        store.work.undo(person, answer_id, 1)
    assert store.work.answers(study_id).undone == ()


def test_a_study_stops_itself_when_it_has_enough(store):
    study_id = make_study(store, 9, num_practice=1, overlap=2, max_answers=7)
    refused = []

    def work(_):
        try:
            answer_all(store, join(store, study_id))
        except (ConflictError, ForbiddenError):
            refused.append(1)

    run_threads(8, work)
    assert store.studies.get(study_id).status == "stopped"
    assert Counter(row.kind for row in store.work.answers(study_id).answers)["ordinary"] == 7
    check_counts(store, study_id)
    assert {row.num_taken for row in rows_of(store, tables.query, study_id=study_id, kind="ordinary")} <= {0, 1, 2}


def test_the_answer_that_stops_a_study_sends_its_person_on(store):
    study_id = make_study(store, 9, max_answers=2)
    person = join(store, study_id)
    answer_one(store, person, count=3)
    desk = answer(store, person, store.work.desk(person, 3).assignments[0]).desk
    assert (desk.stage, desk.assignments) == ("done", ())
    assert {row.num_taken - row.num_answers for row in store.studies.queries(study_id)} == {0}


def test_a_study_that_has_enough_goes_on_when_more_is_asked_for(store):
    study_id = make_study(store, 9, max_answers=2, queries_per_annotator=4, after=QUESTIONS[1:2])
    person = join(store, study_id)
    assert len(answer_all(store, person)) == 2
    assert store.people.get(person).stage == "after"
    with pytest.raises(WrongError, match="max_answers 1 is less than before"):
        store.studies.extend(study_id, "tests", max_answers=1)
    extended = store.studies.extend(study_id, "tests", max_answers=3)
    assert (extended.config.max_answers, extended.status) == (3, "stopped")
    store.studies.set_status(study_id, "running", "tests")
    assert len(answer_all(store, person)) == 1
    assert store.studies.get(study_id).status == "stopped"
    as_it_was = extended.config.model_copy(update={"max_answers": 2})
    assert store.studies.create(as_it_was, "tests").config.max_answers == 3
    with pytest.raises(ConflictError, match="other settings"):
        store.studies.create(extended.config.model_copy(update={"max_answers": None}), "tests")
    unlimited = make_study(store, 1)
    with pytest.raises(WrongError, match="takes any number"):
        store.studies.extend(unlimited, "tests", max_answers=3)
    with pytest.raises(ConflictError, match="other settings"):
        store.studies.create(store.studies.get(unlimited).config.model_copy(update={"max_answers": 3}), "tests")


def test_extending_a_study_asks_for_more(store):
    study_id = make_study(store, 2, queries_per_annotator=1, after=QUESTIONS[1:2])
    store.studies.add_queries(
        study_id, [new_query("often", overlap=5), new_query("g", kind="gold", gold_choice="left")], "t"
    )
    person = join(store, study_id)
    answer_all(store, person)
    with pytest.raises(WrongError, match="queries_per_annotator 0 is less than before"):
        store.studies.extend(study_id, "tests", queries_per_annotator=0)
    with pytest.raises(WrongError, match=r"overlap: .*1000"):
        store.studies.extend(study_id, "tests", overlap=5000)
    extended = store.studies.extend(study_id, "tests", overlap=3, queries_per_annotator=3)
    assert (extended.config.overlap, extended.config.queries_per_annotator, extended.revision) == (3, 3, 2)
    assert {row.id: row.overlap for row in store.studies.queries(study_id)} == {
        "q-0": 3,
        "q-1": 3,
        "q-often": 5,
        "q-g": 1,
    }
    assert len(answer_all(store, person)) == 2
    assert store.studies.get(study_id).config == extended.config
    with pytest.raises(NotFoundError):
        store.studies.extend("nothing", "tests", overlap=2)


def test_extending_goes_together_with_people_who_answer(store):
    study_id = make_study(store, 6, num_gold=4, gold_share=0.3, overlap=1)

    def work(number):
        if number:
            answer_all(store, join(store, study_id))
        else:
            for overlap in range(2, 6):
                store.studies.extend(study_id, "tests", overlap=overlap, queries_per_annotator=20 + overlap)

    run_threads(10, work)
    check_counts(store, study_id)
    assert store.studies.get(study_id).revision == 5


def test_the_same_study_again_changes_nothing_and_another_is_refused(store):
    study_id = make_study(store, 1)
    config = store.studies.get(study_id).config
    assert store.studies.create(config, "tests").revision == 1
    with pytest.raises(ConflictError, match="other settings"):
        store.studies.create(config.model_copy(update={"title": "Runners"}), "tests")
    with pytest.raises(NotFoundError, match="themis study list"):
        store.studies.get("nothing")
    assert study_id in {row.id for row in store.studies.all()}
    prolific = StudyConfig(id=f"{study_id}-p", title="P", panel={"kind": "prolific", "code_complete": "C"}, overlap=3)
    run_threads(6, lambda _: store.studies.create(prolific, "tests"))
    assert store.studies.get(prolific.id).config == prolific
    assert len(store.access.audit(study_id=prolific.id)) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"left": {"segment_id": "s", "clip": "0" * 32 + ".webm", "num_frames": 4}}, "1 clips are not in study"),
        ({"feedback": "rating", "right": None}, "is rating, study .* is pairwise"),
        ({"right": None}, "pairwise has two sides"),
        ({"left": {"segment_id": "right-0", "clip": CLIP_NAMES[0], "num_frames": 4}}, "same segment on both sides"),
        ({"kind": "gold"}, "need gold_choice"),
        ({"gold_choice": "left"}, "ordinary ones have none"),
        ({"kind": "practice", "gold_choice": "skip"}, "cannot be skip"),
    ],
)
def test_queries_that_make_no_sense_are_refused_and_none_of_them_stored(store, empty_study, changes, message):
    with pytest.raises(WrongError, match=message):
        store.studies.add_queries(empty_study, [new_query("good"), new_query(0, **changes)], "tests")
    assert store.studies.queries(empty_study) == []


@pytest.fixture(scope="module")
def empty_study(store):
    return make_study(store, 0)


def test_many_queries_are_added_at_once_by_several_programs(store):
    study_id = make_study(store, 0)
    queries = [new_query(f"{number:04d}", about={"run": "r", "seed": number}) for number in range(2300)]
    num_new = []
    run_threads(
        3, lambda number: num_new.append(store.studies.add_queries(study_id, queries[number * 50 :][::-1], "t"))
    )
    assert sum(num_new) == 2300
    assert store.studies.counts(study_id).num_queries == 2300
    pages, after = [], ""
    while page := store.studies.queries(study_id, after=after, limit=1000):
        pages += page
        after = page[-1].id
    assert [row.id for row in pages] == [query.id for query in queries]
    assert pages[7].about == {"run": "r", "seed": 7}


def test_counts_of_a_study(store):
    study_id = make_study(store, 3, num_gold=2, num_practice=1, overlap=2, queries_per_annotator=2)
    for _ in range(3):
        answer_all(store, join(store, study_id))
    store.people.withdraw(store.people.all(study_id)[0].id, "tests")
    counts = store.studies.counts(study_id)
    assert (counts.num_queries, counts.num_gold, counts.num_practice, counts.num_wanted) == (3, 2, 1, 6)
    assert (counts.num_answers, counts.num_waiting) == (4, 2)
    assert (counts.num_annotators, counts.num_done, counts.num_withdrawn) == (3, 2, 1)
    assert store.studies.gold_choices(study_id) == {"q-gold-0": "left", "q-gold-1": "left"}


def test_a_notice_is_sent_once_by_whoever_is_first(store):
    study_id, claimed = make_study(store, 0), []
    run_threads(6, lambda _: claimed.append(store.studies.claim_notice(study_id, "stopped")))
    assert sum(claimed) == 1
    assert store.studies.claim_notice(study_id, "waiting")


def test_a_query_has_clips_of_its_own_study_only(store):
    study_id = make_study(store, 1)
    assert store.studies.has_clip(study_id, CLIP_NAMES[0])
    assert not store.studies.has_clip(study_id, "0" * 32 + ".webm")
    store.studies.add_clip(study_id, CLIP_NAMES[0], 10)  # again
    with pytest.raises(NotFoundError):
        store.studies.add_clip("nothing", CLIP_NAMES[0], 10)
    with pytest.raises(NotFoundError, match="has no query 'q-7'"):
        store.studies.query(study_id, "q-7")
