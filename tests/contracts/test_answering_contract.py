"""What becomes of answers, whatever database the label store is kept in: stored, taken back, read."""

import threading
import time

import pytest
from label_stores import (
    LEASE_S,
    QUESTIONS,
    answer,
    answer_all,
    answer_one,
    check_counts,
    each_store,
    join,
    make_study,
    new_answer,
    rows_of,
    run_threads,
    used_clock,
)

from themis_ray.data import Choice
from themis_ray.labeling import tables
from themis_ray.labeling.store import ConflictError, NotFoundError, TooManyError, WrongError, answering

store, clock = each_store, used_clock


# ---------------------------------------------------------------- answers


def test_the_same_answer_id_twice_is_one_answer_and_another_persons_a_conflict(store):
    study_id = make_study(store, 4, overlap=2)
    person, other = join(store, study_id), join(store, study_id)
    assignment, theirs = (store.work.desk(who, 1).assignments[0] for who in (person, other))
    new = new_answer(assignment.id, choice="left")
    assert not store.work.answer(person, new).is_duplicate
    again = store.work.answer(person, new.model_copy(update={"choice": Choice.RIGHT, "count": 1}))
    assert again.is_duplicate
    assert again.desk.progress.num_answered == 1
    with pytest.raises(ConflictError, match="answer_id is taken"):
        store.work.answer(other, new_answer(theirs.id, answer_id=new.answer_id))
    with pytest.raises(ConflictError, match="is answered"):
        answer(store, person, assignment)
    rows = store.work.answers(study_id).answers
    assert [(row.answer_id, row.annotator_id) for row in rows] == [(new.answer_id, person)]
    check_counts(store, study_id)


def test_an_assignment_of_somebody_else_is_as_unknown_as_one_that_does_not_exist(store):
    study_id = make_study(store, 1)
    person = join(store, study_id)
    assignment = store.work.desk(person, 1).assignments[0]
    for assignment_id in (assignment.id, "nothing"):
        with pytest.raises(NotFoundError, match="no such assignment of yours"):
            store.work.answer(join(store, study_id), new_answer(assignment_id))
    with pytest.raises(NotFoundError, match="no such annotator"):
        store.work.answer("nobody", new_answer(assignment.id))
    with pytest.raises(NotFoundError, match="no such annotator"):
        store.work.desk("nobody", 1)


@pytest.mark.parametrize("choice", list(Choice))
def test_a_choice_is_stored_in_the_order_of_the_query_and_equal_is_not_skip(store, choice):
    study_id = make_study(store, 8)
    person = join(store, study_id)
    for _ in range(8):
        answer_one(store, person, choice, count=0, speed=0.5, num_replays=2, overlay_ms=77)
    rows = store.work.answers(study_id).answers
    assert {row.choice for row in rows} == {choice}
    assert {(row.speed, row.num_replays, row.overlay_ms, row.response_ms, row.watched_ms) for row in rows} == {
        (0.5, 2, 77, 900, 800)
    }


@pytest.mark.parametrize(
    ("feedback", "given"),
    [
        ("rating", {"rating": 0.25}),
        ("rating", {"rating": 0.0}),
        ("steps", {"steps": (-1, 0, 1, 1)}),
        ("demonstration", {"actions": (0, 1, 1, 0, 2), "reset_seed": 2**40}),
    ],
)
def test_other_kinds_of_feedback_come_back_as_they_were_given(store, feedback, given):
    study_id = make_study(store, 2, feedback=feedback, **({"env_id": "CartPole-v1"} if "actions" in given else {}))
    person = join(store, study_id)
    assignment = store.work.desk(person, 1).assignments[0]
    assert (assignment.feedback, assignment.right) == (feedback, None)
    with pytest.raises(WrongError, match=f"of kind {feedback} was expected"):
        store.work.answer(person, new_answer(assignment.id, choice="left"))
    answer(store, person, assignment, **given)
    (row,) = store.work.answers(study_id).answers
    assert {name: getattr(row, name) for name in given} == given
    assert (row.choice, row.is_flipped, row.feedback) == (None, False, feedback)


def test_answers_that_do_not_fit_are_refused(store):
    study_id = make_study(store, 1)
    person = join(store, study_id)
    assignment = store.work.desk(person, 1).assignments[0]
    for changes in ({"rating": 0.5}, {"choice": "left", "rating": 0.5}, {"choice": None}):
        with pytest.raises(WrongError, match="of kind pairwise was expected"):
            store.work.answer(person, new_answer(assignment.id, **changes))
    steps = make_study(store, 1, feedback="steps")
    person = join(store, steps)
    assignment = store.work.desk(person, 1).assignments[0]
    with pytest.raises(WrongError, match="4 frames, steps has 2"):
        answer(store, person, assignment, steps=(0, 1))
    shown = make_study(store, 1, feedback="demonstration", env_id="CartPole-v1")
    person = join(store, shown)
    assignment = store.work.desk(person, 1).assignments[0]
    with pytest.raises(WrongError, match="reset_seed"):
        answer(store, person, assignment, actions=(1,), reset_seed=2**70)
    for study in (study_id, steps, shown):
        assert store.work.answers(study).answers == ()
        check_counts(store, study)


def test_clips_have_to_be_watched_as_long_as_the_study_says(store):
    study_id = make_study(store, 1, min_watched_s=2.0)
    person = join(store, study_id)
    assignment = store.work.desk(person, 1).assignments[0]
    with pytest.raises(WrongError, match="for 2 s"):
        answer(store, person, assignment, watched_ms=1999)
    answer(store, person, assignment, watched_ms=2000)


def test_who_acts_has_nothing_to_watch(store):
    study_id = make_study(store, 1, feedback="demonstration", env_id="CartPole-v1", min_watched_s=2.0)
    person = join(store, study_id)
    assignment = store.work.desk(person, 1).assignments[0]
    answer(store, person, assignment, actions=(0, 1), reset_seed=3, watched_ms=0)
    assert len(store.work.answers(study_id).answers) == 1


def test_nobody_answers_more_often_than_anybody_can(store, clock, monkeypatch):
    monkeypatch.setattr("themis_ray.labeling.store.answering.MAX_ANSWERS_PER_MINUTE", 3)
    study_id = make_study(store, 5)
    person = join(store, study_id)
    for _ in range(3):
        answer_one(store, person)
    with pytest.raises(TooManyError, match="more than 3 answers"):
        answer_one(store, person)
    clock.advance(61)
    answer_one(store, person)


# ---------------------------------------------------------------- undo


def test_an_undone_answer_comes_first_on_the_desk_and_is_given_again(store):
    study_id = make_study(store, 5, overlap=1)
    person = join(store, study_id)
    desk = store.work.desk(person, 3)
    first = desk.assignments[0]
    answer(store, person, first, Choice.RIGHT, answer_id=f"{person}-1")
    for _ in range(2):  # twice is as once
        desk = store.work.undo(person, f"{person}-1", 3)
        assert desk.assignments[0].id == first.id
        assert desk.assignments[0].left == first.left
        assert desk.progress.num_answered == 0
        check_counts(store, study_id)
    page = store.work.answers(study_id)
    assert page.undone == (f"{person}-1",)
    assert [row.is_undone for row in page.answers] == [True]
    answer(store, person, first, Choice.LEFT, answer_id=f"{person}-2")
    assert answer(store, person, first, answer_id=f"{person}-1").is_duplicate  # sent again by a page that was offline
    rows = store.work.answers(study_id).answers
    assert [(row.choice, row.is_undone) for row in rows] == [(Choice.RIGHT, True), (Choice.LEFT, False)]
    assert store.work.answers(study_id).num_waiting == 4
    check_counts(store, study_id)


def test_only_the_last_answer_can_be_undone_and_only_by_who_gave_it(store):
    study_id = make_study(store, 5, overlap=2)
    person, other = join(store, study_id), join(store, study_id)
    first, second = answer_one(store, person), answer_one(store, person)
    with pytest.raises(ConflictError, match="only the last"):
        store.work.undo(person, first, 1)
    for who, answer_id in ((other, second), (person, "nothing")):
        with pytest.raises(NotFoundError, match="no such answer of yours"):
            store.work.undo(who, answer_id, 1)
    assert store.work.last_answer(person) == second
    store.work.undo(person, second, 1)
    assert store.work.last_answer(person) == first
    store.work.undo(person, first, 1)
    assert store.work.last_answer(person) is None
    check_counts(store, study_id)


def test_what_is_undone_comes_first_even_if_it_was_answered_out_of_order(store):
    study_id = make_study(store, 5)
    person = join(store, study_id)
    desk = store.work.desk(person, 3)
    answer(store, person, desk.assignments[2], answer_id=f"{person}-x", count=0)
    desk_after = store.work.undo(person, f"{person}-x", 3)
    assert [row.id for row in desk_after.assignments] == [desk.assignments[place].id for place in (2, 0, 1)]


def test_what_is_undone_comes_first_even_if_another_was_put_there_before(store):
    study_id = make_study(store, 5, num_practice=1)
    person = join(store, study_id)
    practised = answer_one(store, person, count=0)
    desk = store.work.desk(person, 2)
    answer(store, person, desk.assignments[1], answer_id=f"{person}-x", count=0)
    store.work.undo(person, f"{person}-x", 0)  # takes the place of the practice, which is answered
    assert store.work.undo(person, practised, 1).assignments[0].is_practice


def test_practice_can_be_undone_from_the_work(store):
    study_id = make_study(store, 3, num_practice=1)
    person = join(store, study_id)
    practised = answer_one(store, person, Choice.RIGHT, count=2)
    desk = store.work.undo(person, practised, 2)
    assert (desk.stage, desk.assignments[0].is_practice) == ("practice", True)
    receipt = answer(store, person, desk.assignments[0])
    assert (receipt.feedback[:4], receipt.desk.stage) == ("Yes:", "work")
    check_counts(store, study_id)


def test_the_last_answer_of_the_work_can_be_undone_from_the_questions(store):
    study_id = make_study(store, 3, queries_per_annotator=2, after=QUESTIONS[1:2])
    person = join(store, study_id)
    last = answer_all(store, person)[-1]
    assert store.people.get(person).stage == "after"
    desk = store.work.undo(person, last, 3)
    assert (desk.stage, len(desk.assignments), desk.progress.num_answered) == ("work", 1, 1)
    answer_all(store, person)
    assert store.people.respond(person, "after", {"games": 2}).stage == "done"
    with pytest.raises(ConflictError, match="stage done"):
        store.work.undo(person, store.work.last_answer(person), 1)
    check_counts(store, study_id)


def test_the_place_of_an_undone_answer_is_kept_until_its_lease_runs_out(store, clock):
    study_id = make_study(store, 2, lease_s=LEASE_S)
    person, other = join(store, study_id), join(store, study_id)
    store.work.undo(person, answer_one(store, person, count=0), 0)
    assert len(store.work.desk(other, 2).assignments) == 1
    clock.advance(LEASE_S + 1)
    assert len(store.work.desk(other, 2).assignments) == 2
    check_counts(store, study_id)


# ---------------------------------------------------------------- reading


def test_pages_miss_nothing_while_people_answer(store):
    study_id = make_study(store, 10, overlap=8)
    seen, is_done, done = [], threading.Event(), []

    def work(number):
        cursor = 0
        while number == 0:
            is_last = is_done.is_set()
            page = store.work.answers(study_id, after=cursor, limit=7)
            seen.extend(page.answers)
            cursor = page.cursor
            if is_last and not page.answers:
                return
        try:
            answer_all(store, join(store, study_id), count=2)
        finally:
            done.append(number)
            if len(done) == 10:
                is_done.set()

    run_threads(11, work)
    assert [row.number for row in seen] == sorted(row.number for row in seen)
    assert {row.answer_id for row in seen} == {row.id for row in rows_of(store, tables.answer, study_id=study_id)}
    assert len(seen) == len({row.answer_id for row in seen}) > 60


def test_an_answer_that_is_stored_late_is_not_behind_the_cursor(store, monkeypatch):
    """A writer that has its number and waits before it commits holds others back, so a reader sees none after it."""
    study_id = make_study(store, 4, overlap=4)
    slow, quick = join(store, study_id), join(store, study_id)
    desks = {who: store.work.desk(who, 1).assignments[0] for who in (slow, quick)}
    has_number, may_commit = threading.Event(), threading.Event()
    insert = answering.insert_answer

    def insert_and_wait(connection, row, new, overlay):
        insert(connection, row, new, overlay)
        if row.annotator_id == slow:
            has_number.set()
            assert may_commit.wait(30)

    monkeypatch.setattr("themis_ray.labeling.store.work.insert_answer", insert_and_wait)
    threads = [threading.Thread(target=answer, args=(store, who, desks[who]), daemon=True) for who in (slow, quick)]
    threads[0].start()
    assert has_number.wait(30)
    threads[1].start()
    time.sleep(0.3)
    assert store.work.answers(study_id).answers == ()
    may_commit.set()
    for thread in threads:
        thread.join(30)
    assert [row.annotator_id for row in store.work.answers(study_id).answers] == [slow, quick]


def test_answers_of_one_query_and_of_one_study_only(store):
    study_id, other = make_study(store, 3, overlap=2), make_study(store, 3)
    for study in (study_id, study_id, other):
        answer_all(store, join(store, study))
    assert {row.annotator_id for row in store.work.answers(study_id, query_id="q-1").answers} == {
        row.id for row in store.people.all(study_id)
    }
    assert {row.query_id for row in store.work.answers(study_id, query_id="q-1").answers} == {"q-1"}
    assert len(store.work.answers(study_id).answers) == 6
    page = store.work.answers(study_id, after=store.work.answers(study_id).cursor)
    assert (page.answers, page.cursor) == ((), store.work.answers(study_id).cursor)
    with pytest.raises(NotFoundError):
        store.work.answers("nothing")
