"""What the label store does, whatever database it is kept in."""

import hashlib
import math
import sys
import threading
import time
import uuid
from collections import Counter, defaultdict

import pytest
from label_stores import (
    BACKENDS,
    CLIP_NAMES,
    Clock,
    answer,
    answer_all,
    answer_one,
    check_counts,
    join,
    make_study,
    new_answer,
    new_query,
    open_store,
    run_threads,
)
from sqlalchemy import select

from themis_ray.data import Choice
from themis_ray.labeling import tables
from themis_ray.labeling.store import (
    ConflictError,
    ForbiddenError,
    LateError,
    NotFoundError,
    TooManyError,
    WrongError,
)
from themis_ray.labeling.study import StudyConfig

CONSENT = {"version": "1", "text": "I agree that my choices are stored."}
NUM_SIGMA = 5  # of statistical tests: by chance they fail once in a million runs
LEASE_S = 60.0


@pytest.fixture(scope="module", params=BACKENDS)
def store(request):
    with open_store(request.param) as store:
        yield store


@pytest.fixture
def clock():
    with Clock().used() as clock:
        yield clock


def query_row(store, study_id, name=0):
    return store.studies.query(study_id, f"q-{name}")


def rows_of(store, table, **values):
    with store.database.read() as connection:
        return connection.execute(select(table).where(*(table.c[name] == values[name] for name in values))).all()


def is_near(share, expected, num) -> bool:
    return abs(share - expected) < NUM_SIGMA * math.sqrt(expected * (1 - expected) / num)


# ---------------------------------------------------------------- overlap


def test_an_overlap_is_exact_while_many_people_answer_at_once(store):
    num_people, num_queries, overlap = 18, 6, 4
    study_id = make_study(store, num_queries, overlap=overlap)
    done, num_checks = [], 0

    def work(number):
        nonlocal num_checks
        if number < num_people:
            try:
                answer_all(store, join(store, study_id), count=1 + number % 3)
            finally:
                done.append(number)
        else:
            while len(done) < num_people:
                check_counts(store, study_id)
                num_checks += 1

    run_threads(num_people + 1, work)
    answer_all(store, join(store, study_id))  # what all passed over in the rush, as people who come later do
    assert num_checks
    check_counts(store, study_id)
    stored = store.work.answers(study_id)
    assert Counter(row.query_id for row in stored.answers) == {f"q-{n}": overlap for n in range(num_queries)}
    assert len({(row.query_id, row.annotator_id) for row in stored.answers}) == num_queries * overlap
    assert len({row.answer_id for row in stored.answers}) == num_queries * overlap
    assert stored.num_waiting == 0


def test_an_overlap_is_exact_while_leases_run_out_and_late_answers_arrive(store, clock):
    study_id = make_study(store, 4, overlap=3, lease_s=LEASE_S)
    num_late = []

    def work(number):
        person = join(store, study_id)
        desk = store.work.desk(person, 2)
        for turn in range(4):
            if number % 3 == 0 and turn == 0:
                clock.advance(LEASE_S + 5)
            for assignment in desk.assignments:
                try:
                    answer(store, person, assignment, count=0)
                except LateError:
                    num_late.append(1)
            desk = store.work.desk(person, 2)

    run_threads(16, work)
    check_counts(store, study_id)
    clock.advance(LEASE_S + 5)
    for _ in range(2):
        answer_all(store, join(store, study_id))
    assert {row.num_answers for row in store.studies.queries(study_id)} == {3}
    check_counts(store, study_id)


def test_the_same_answer_sent_by_several_threads_at_once_is_one_answer(store):
    study_id = make_study(store, 3, overlap=5)
    person = join(store, study_id)
    assignment = store.work.desk(person, 1).assignments[0]
    new, receipts = new_answer(assignment.id), []
    run_threads(8, lambda _: receipts.append(store.work.answer(person, new)))
    assert sorted(receipt.is_duplicate for receipt in receipts) == [False] + [True] * 7
    assert len({held.id for receipt in receipts for held in receipt.desk.assignments}) == new.count - 1
    check_counts(store, study_id)


def test_two_answers_to_one_assignment_at_once_are_one_answer(store):
    study_id = make_study(store, 3, overlap=5)
    person = join(store, study_id)
    assignment, outcomes = store.work.desk(person, 1).assignments[0], []

    def work(_):
        try:
            answer(store, person, assignment)
            outcomes.append("stored")
        except ConflictError:
            outcomes.append("refused")

    run_threads(6, work)
    assert Counter(outcomes) == {"stored": 1, "refused": 5}
    check_counts(store, study_id)


def test_the_least_answered_query_comes_first(store):
    study_id = make_study(store, 6, overlap=3)
    for _ in range(6):
        person = join(store, study_id)
        before = {row.id: row.num_taken for row in store.studies.queries(study_id)}
        taken = store.work.desk(person, 1).assignments[0].query_id
        assert before[taken] == min(before.values())
        answer_one(store, person, count=0)
    assert {row.num_answers for row in store.studies.queries(study_id)} == {1}


def test_a_desk_holds_what_is_wanted_and_not_more_than_is_left_to_do(store):
    study_id = make_study(store, 20, queries_per_annotator=5)
    person = join(store, study_id)
    first = store.work.desk(person, 3)
    assert len(first.assignments) == 3
    assert [row.id for row in store.work.desk(person, 3).assignments] == [row.id for row in first.assignments]
    assert len(store.work.desk(person, 10).assignments) == 5
    desk = answer(store, person, first.assignments[0], count=10).desk
    assert (len(desk.assignments), desk.progress.num_answered, desk.progress.num_total) == (4, 1, 5)
    assert not store.work.desk(join(store, study_id), 0).is_waiting
    check_counts(store, study_id)


def test_an_empty_study_lets_people_wait_until_queries_come(store):
    study_id = make_study(store, 0)
    person = join(store, study_id)
    desk = store.work.desk(person, 3)
    assert (desk.stage, desk.assignments, desk.is_waiting) == ("work", (), True)
    store.studies.add_clip(study_id, CLIP_NAMES[0], 10)
    assert store.studies.add_queries(study_id, [new_query(1), new_query(2)], "tests") == 2
    assert store.studies.add_queries(study_id, [new_query(2), new_query(3)], "tests") == 1
    desk = store.work.desk(person, 5)
    assert (len(desk.assignments), desk.is_waiting) == (3, False)


# ---------------------------------------------------------------- leases


def test_a_lease_runs_out_and_its_place_is_given_to_somebody_else(store, clock):
    study_id = make_study(store, 1, lease_s=LEASE_S)
    slow, quick = join(store, study_id), join(store, study_id)
    assert store.work.desk(slow, 1).assignments
    assert store.work.desk(quick, 1).is_waiting
    clock.advance(LEASE_S + 1)
    assert store.work.desk(quick, 1).assignments
    assert store.work.desk(slow, 1).is_waiting
    check_counts(store, study_id)


def test_who_held_a_query_gets_it_back_while_its_place_is_free(store, clock):
    """Somebody who is away for longer than a lease would else never be asked again, and one person never finish."""
    study_id = make_study(store, 3, lease_s=LEASE_S)
    person = join(store, study_id)
    held = [row.id for row in store.work.desk(person, 3).assignments]
    for _ in range(3):
        clock.advance(LEASE_S + 1)
        store.work.desk(join(store, study_id), 0)  # frees what ran out
        desk = store.work.desk(person, 3)
        assert [row.id for row in desk.assignments] == held
        assert all(row.leased_until.timestamp() > clock.time() for row in desk.assignments)
        check_counts(store, study_id)
    assert len(answer_all(store, person)) == 3


def test_a_late_answer_is_taken_if_the_place_is_free(store, clock):
    study_id = make_study(store, 1, lease_s=LEASE_S)
    person, other = join(store, study_id), join(store, study_id)
    assignment = store.work.desk(person, 1).assignments[0]
    clock.advance(LEASE_S + 1)
    store.work.desk(other, 0)  # frees what ran out
    assert query_row(store, study_id).num_taken == 0
    assert not answer(store, person, assignment).is_duplicate
    check_counts(store, study_id)
    assert store.work.desk(other, 1).is_waiting


@pytest.mark.parametrize("is_answered", [True, False])
def test_a_late_answer_is_refused_if_the_place_is_taken(store, clock, is_answered):
    study_id = make_study(store, 1, lease_s=LEASE_S)
    person, other = join(store, study_id), join(store, study_id)
    assignment = store.work.desk(person, 1).assignments[0]
    clock.advance(LEASE_S + 1)
    assert store.work.desk(other, 1).assignments
    if is_answered:
        answer_one(store, other)
    answer_id = str(uuid.uuid4())
    for _ in range(2):
        with pytest.raises(LateError, match="somebody else"):
            answer(store, person, assignment, answer_id=answer_id)
    assert [row.annotator_id for row in store.work.answers(study_id).answers] == [other] * is_answered
    assert answer_id not in {row.id for row in rows_of(store, tables.answer, study_id=study_id)}
    check_counts(store, study_id)


def test_practice_that_ran_out_is_not_skipped(store, clock):
    study_id = make_study(store, 1, num_practice=2, lease_s=LEASE_S)
    person = join(store, study_id)
    held = [row.id for row in store.work.desk(person, 2).assignments]
    clock.advance(LEASE_S + 1)
    store.work.desk(join(store, study_id), 0)
    desk = store.work.desk(person, 2)
    assert (desk.stage, [row.id for row in desk.assignments]) == ("practice", held)


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


def test_nobody_answers_more_often_than_anybody_can(store, clock, monkeypatch):
    monkeypatch.setattr("themis_ray.labeling.store.work.MAX_ANSWERS_PER_MINUTE", 3)
    study_id = make_study(store, 5)
    person = join(store, study_id)
    for _ in range(3):
        answer_one(store, person)
    with pytest.raises(TooManyError, match="more than 3 answers"):
        answer_one(store, person)
    clock.advance(61)
    answer_one(store, person)


# ---------------------------------------------------------------- chance


@pytest.fixture(scope="module")
def population(store):
    """Answers of many people, by person in the order in which they were given."""
    num_people, num_answers = 30, 22
    study_id = make_study(
        store,
        60,
        num_gold=22,
        overlap=num_people,
        queries_per_annotator=num_answers,
        gold_share=0.2,
        repeat_share=0.2,
        arms=[{"name": "plain"}, {"name": "heatmap", "overlay": "saliency"}, {"name": "path", "overlay": "path"}],
    )
    for _ in range(num_people):
        answer_all(store, join(store, study_id))
    check_counts(store, study_id)
    by_person = defaultdict(list)
    for row in store.work.answers(study_id).answers:
        by_person[row.annotator_id].append(row)
    assert {len(rows) for rows in by_person.values()} == {num_answers}
    return study_id, by_person


def test_gold_and_repeats_have_their_shares(population):
    _, by_person = population
    rows = [row for rows in by_person.values() for row in rows]
    assert is_near(sum(row.kind == "gold" and not row.repeat for row in rows) / len(rows), 0.2, len(rows))
    later = [row for rows in by_person.values() for row in rows[12:]]  # before, there is little to repeat
    assert is_near(sum(row.repeat for row in later) / len(later), 0.2, len(later))


def test_a_query_comes_once_or_as_a_repeat_with_sides_swapped_five_answers_later(population):
    _, by_person = population
    num_repeats = 0
    for rows in by_person.values():
        assert len({(row.query_id, row.repeat) for row in rows}) == len(rows)
        first = {row.query_id: (place, row.is_flipped) for place, row in enumerate(rows) if not row.repeat}
        for place, row in enumerate(rows):
            if row.repeat:
                was_at, was_flipped = first[row.query_id]
                assert row.is_flipped is not was_flipped
                assert place - was_at > 5
                num_repeats += 1
    assert num_repeats > 50


def test_repeats_do_not_count_towards_the_overlap(store, population):
    study_id, by_person = population
    firsts = Counter(row.query_id for rows in by_person.values() for row in rows if not row.repeat)
    assert {row.id: row.num_answers for row in store.studies.queries(study_id)} == {
        row.id: firsts[row.id] for row in store.studies.queries(study_id)
    }
    assert store.studies.counts(study_id).num_answers == sum(firsts.values())


def test_sides_are_balanced_and_do_not_change_what_is_stored(population):
    _, by_person = population
    rows = [row for rows in by_person.values() for row in rows if not row.repeat]
    assert is_near(sum(row.is_flipped for row in rows) / len(rows), 0.5, len(rows))
    assert {row.choice for row in rows} == {Choice.LEFT}  # all chose the query's left, wherever it was
    for pick in (lambda row: row.query_id, lambda row: row.annotator_id):
        assert len({row.is_flipped for row in rows if pick(row) == pick(rows[0])}) == 2


def test_arms_are_balanced_at_any_time_and_stay_with_the_person(store, population):
    study_id, by_person = population
    arms = [person.arm for person in store.people.all(study_id)]
    for number in range(1, len(arms) + 1):
        counts = Counter(arms[:number])
        assert max(counts.values()) - min(counts[name] for name in ("plain", "heatmap", "path")) <= 1
    assert len(set(zip(arms[0::3], arms[1::3], strict=True))) > 1, "the order is no chance"
    for person, rows in by_person.items():
        annotator = store.people.get(person)
        assert {row.arm for row in rows} == {annotator.arm}
        assert annotator.overlay == {"plain": "", "heatmap": "saliency", "path": "path"}[annotator.arm]


# ---------------------------------------------------------------- how people come and go


def test_there_is_no_answer_without_consent_to_the_text_of_now(store):
    study_id = make_study(store, 2, consent=CONSENT)
    consent = store.studies.get(study_id).config.consent
    assert consent.hash == hashlib.sha256(b"1\nI agree that my choices are stored.").hexdigest()
    person = join(store, study_id)
    assert store.people.get(person).stage == "consent"
    assert store.work.desk(person, 3).assignments == ()
    for version, text_hash in (("2", consent.hash), ("1", "0" * 64), ("1", "")):
        with pytest.raises(ConflictError, match="Read it again"):
            store.people.consent(person, version, text_hash, agrees=True)
    with pytest.raises(ConflictError, match="consent comes first"):
        store.people.finish(person)
    assert store.people.consent(person, "1", consent.hash, agrees=True).stage == "work"
    (row,) = rows_of(store, tables.annotator, id=person)
    assert (row.consent_version, row.consent_hash) == ("1", consent.hash)
    assert row.consent_at == pytest.approx(time.time(), abs=60)
    with pytest.raises(ConflictError, match="time for work, not for consent"):
        store.people.consent(person, "1", consent.hash, agrees=True)


def test_who_does_not_agree_is_out_with_a_code_of_their_own(store):
    panel = {
        "kind": "generic",
        "code_complete": "OK",
        "code_no_consent": "NO",
        "redirect_url": "https://p.org/?c={code}",
    }
    study_id = make_study(store, 2, consent=CONSENT, panel=panel)
    consent = store.studies.get(study_id).config.consent
    person = join(store, study_id)
    assert store.people.consent(person, "1", consent.hash, agrees=False).stage == "withdrawn"
    assert store.people.completion(person).redirect_url == "https://p.org/?c=NO"
    assert store.people.finish(person).code == "NO"
    assert store.work.desk(person, 1).assignments == ()
    (row,) = rows_of(store, tables.annotator, id=person)
    assert row.consent_at is None


QUESTIONS = [
    {"kind": "choice", "id": "age", "text": "Of age?", "options": ["yes", "no"], "screens_out": ["no"]},
    {"kind": "scale", "id": "games", "text": "How often?", "low": 1, "high": 5},
    {"kind": "text", "id": "words", "text": "Anything else?", "max_length": 10},
]


def test_stages_follow_one_another(store):
    panel = {"kind": "prolific", "code_complete": "C0DE"}
    study_id = make_study(
        store,
        2,
        num_practice=1,
        consent=CONSENT,
        before=QUESTIONS,
        after=QUESTIONS[1:2],
        queries_per_annotator=2,
        panel=panel,
    )
    consent = store.studies.get(study_id).config.consent
    person = join(store, study_id, PROLIFIC_PID="p1", STUDY_ID="s", OTHER="not kept")
    stages = [store.people.get(person).stage]
    stages.append(store.people.consent(person, consent.version, consent.hash, agrees=True).stage)
    with pytest.raises(ConflictError, match="time for before, not for after"):
        store.people.respond(person, "after", {"games": 3})
    stages.append(store.people.respond(person, "before", {"age": "yes", "games": "5"}).stage)
    answer_one(store, person)
    stages.append(store.people.get(person).stage)
    answer_all(store, person)
    stages.append(store.people.get(person).stage)
    with pytest.raises(ConflictError, match="after comes first"):
        store.people.finish(person)
    assert store.people.completion(person).redirect_url == ""
    stages.append(store.people.respond(person, "after", {"games": 1}).stage)
    assert stages == ["consent", "before", "practice", "work", "after", "done"]
    done = store.people.finish(person)
    assert (done.stage, done.code) == ("done", "C0DE")
    assert done.redirect_url == "https://app.prolific.com/submissions/complete?cc=C0DE"
    assert store.people.completion(person) == done
    assert rows_of(store, tables.annotator, id=person)[0].panel == {"PROLIFIC_PID": "p1", "STUDY_ID": "s"}
    assert [(row.which, row.answers) for row in store.people.responses(study_id)] == [
        ("after", {"games": 1}),
        ("before", {"age": "yes", "games": 5}),
    ]


def test_who_is_screened_out_is_told_where_to_go_and_answers_nothing(store):
    panel = {"kind": "prolific", "code_complete": "C", "code_screened_out": "OUT"}
    study_id = make_study(store, 2, before=QUESTIONS, panel=panel)
    person = join(store, study_id)
    assert store.people.respond(person, "before", {"age": "no", "games": 1}).stage == "screened_out"
    assert store.people.completion(person).redirect_url.endswith("cc=OUT")
    assert store.work.desk(person, 2).assignments == ()
    with pytest.raises(ConflictError):
        store.people.respond(person, "before", {"age": "yes", "games": 1})


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"games": 1}, "please answer: Of age"),
        ({"age": "yes"}, "please answer: How often"),
        ({"age": "", "games": 1}, "please answer: Of age"),
        ({"age": "perhaps", "games": 1}, "'perhaps' is no answer to: Of age"),
        ({"age": ["yes"], "games": 1}, "is no answer to: Of age"),
        ({"age": "yes", "games": 6}, "'6' is no answer to: How often"),
        ({"age": "yes", "games": 0}, "'0' is no answer"),
        ({"age": "yes", "games": "--3"}, "is no answer"),
        ({"age": "yes", "games": "²"}, "is no answer"),
        ({"age": "yes", "games": 2.5}, "is no answer"),
        ({"age": "yes", "games": True}, "is no answer"),
        ({"age": "yes", "games": 1, "words": "more than ten"}, "is no answer to: Anything"),
        ({"age": "yes", "games": 1, "words": 7}, "is no answer to: Anything"),
        ({"age": "yes", "games": 1, "else": 1}, "no question 'else'"),
    ],
)
def test_wrong_responses_are_refused_and_nothing_is_stored(store, questioned, answers, message):
    person = join(store, questioned)
    with pytest.raises(WrongError, match=message):
        store.people.respond(person, "before", answers)
    assert store.people.get(person).stage == "before"
    assert rows_of(store, tables.response, annotator_id=person) == []


@pytest.fixture(scope="module")
def questioned(store):
    return make_study(store, 0, before=QUESTIONS)


def test_there_are_questions_before_and_after_and_no_others(store):
    person = join(store, make_study(store, 1))
    with pytest.raises(WrongError, match="no questions 'work'"):
        store.people.respond(person, "work", {})
    assert store.people.get(person).stage == "work"


def test_practice_comes_first_counts_for_nothing_and_says_what_was_expected(store):
    study_id = make_study(store, 3, num_practice=2)
    person = join(store, study_id)
    desk = store.work.desk(person, 3)
    assert [row.is_practice for row in desk.assignments] == [True, True]
    receipt = answer(store, person, desk.assignments[0], Choice.LEFT)
    side = "left" if desk.assignments[0].left.segment_id.startswith("left") else "right"
    assert receipt.feedback == f"Yes: the {side} clip is better."
    receipt = answer(store, person, desk.assignments[1], Choice.RIGHT)
    assert receipt.feedback.startswith("We would say: the ")
    assert (receipt.desk.stage, receipt.desk.progress.num_answered) == ("work", 0)
    assert not any(row.is_practice for row in receipt.desk.assignments)
    assert answer(store, person, receipt.desk.assignments[0]).feedback == ""
    counts = store.studies.counts(study_id)
    assert (counts.num_answers, counts.num_waiting, counts.num_practice) == (1, 2, 2)
    check_counts(store, study_id)


def test_everybody_practises_even_if_all_come_at_once(store):
    study_id = make_study(store, 4, num_practice=1, overlap=30)
    stages = []

    def work(_):
        person = join(store, study_id)
        stages.append((store.work.desk(person, 2).stage, len(answer_all(store, person))))

    run_threads(12, work)
    assert {stage for stage, _ in stages} == {"practice"}
    check_counts(store, study_id)
    kinds = Counter(row.kind for row in store.work.answers(study_id).answers)
    assert kinds["practice"] == 12


def test_a_study_with_less_practice_than_it_promises_goes_on(store):
    study_id = make_study(store, 1, num_practice=1)
    with store.database.write() as connection:
        connection.execute(
            tables.query.delete().where(tables.query.c.study_id == study_id, tables.query.c.kind == "practice")
        )
    desk = store.work.desk(join(store, study_id), 1)
    assert (desk.stage, len(desk.assignments)) == ("work", 1)


def test_who_comes_back_from_a_panel_is_the_same_person(store):
    study_id = make_study(store, 2, panel={"kind": "prolific", "code_complete": "C"}, max_annotators=2)
    person = join(store, study_id, PROLIFIC_PID="p1", SESSION_ID="a")
    answer_one(store, person, count=0)
    again = store.people.join(study_id, {"PROLIFIC_PID": "p1", "SESSION_ID": "b"})
    assert (again.id, again.num_answered) == (person, 1)
    assert join(store, study_id, PROLIFIC_PID="p2") != person
    with pytest.raises(ForbiddenError, match="all the people it needs"):
        join(store, study_id, PROLIFIC_PID="p3")
    store.studies.set_status(study_id, "stopped", "tests")
    assert join(store, study_id, PROLIFIC_PID="p1") == person
    other = make_study(store, 2, panel={"kind": "prolific", "code_complete": "C"})
    assert join(store, other, PROLIFIC_PID="p1") != person


def test_people_who_come_at_once_are_as_many_as_there_may_be_and_one_per_panel_id(store):
    study_id = make_study(
        store,
        1,
        panel={"kind": "prolific", "code_complete": "C"},
        max_annotators=4,
        arms=[{"name": "a"}, {"name": "b"}],
    )
    people, refused = [], []

    def work(number):
        try:
            people.append(join(store, study_id, PROLIFIC_PID=f"p{number % 6}"))
        except ForbiddenError:
            refused.append(number)

    run_threads(18, work)
    assert len(set(people)) == 4
    assert len(people) == 12
    assert Counter(row.arm for row in store.people.all(study_id)) == {"a": 2, "b": 2}


def test_without_a_panel_nothing_of_the_link_is_kept(store):
    study_id = make_study(store, 1)
    assert join(store, study_id, PROLIFIC_PID="p1") != join(store, study_id, PROLIFIC_PID="p1")
    assert [(row.panel, row.panel_key) for row in store.people.all(study_id)] == [({}, None)] * 2


def test_finishing_early_gives_back_what_is_held(store):
    study_id = make_study(store, 3, panel={"kind": "generic", "code_complete": "OK"})
    person, other = join(store, study_id), join(store, study_id)
    answer_one(store, person, count=2)
    assert len(store.work.desk(other, 3).assignments) == 0
    assert store.people.finish(person).code == "OK"
    assert store.people.finish(person).stage == "done"
    check_counts(store, study_id)
    assert len(store.work.desk(other, 3).assignments) == 2
    held = rows_of(store, tables.assignment, annotator_id=person, state="expired")
    with pytest.raises(ConflictError, match="stage done takes no answers"):
        store.work.answer(person, new_answer(held[0].id))


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


# ---------------------------------------------------------------- the course of a study


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


# ---------------------------------------------------------------- withdrawal and retention


def test_withdrawal_removes_answers_frees_places_and_leaves_a_tombstone(store):
    study_id = make_study(store, 3, num_practice=1, overlap=1, before=QUESTIONS[1:2])
    person, other = join(store, study_id), join(store, study_id)
    for who in (person, other):
        store.people.respond(who, "before", {"games": 1})
    answer_one(store, person, count=1)
    kept_id, undone_id = answer_one(store, person, count=3), answer_one(store, person, count=3)
    store.work.undo(person, undone_id, 3)
    answer_one(store, other, count=1)
    assert store.work.desk(other, 3).is_waiting
    cursor = store.work.answers(study_id).cursor
    for _ in range(2):  # twice is as once
        assert store.people.withdraw(person, "experimenter").stage == "withdrawn"
        check_counts(store, study_id)
        page = store.work.answers(study_id)
        assert page.withdrawn == (person,)
        assert page.undone == ()
        assert {row.annotator_id for row in page.answers} == {other}
        (stone,) = store.people.tombstones(study_id)
        assert (stone.annotator_id, stone.withdrawn_by, stone.num_answers) == (person, "experimenter", 2)
    for table in (tables.answer, tables.assignment, tables.response):
        assert rows_of(store, table, annotator_id=person) == []
    assert len(answer_all(store, other)) == 3
    new = store.work.answers(study_id, after=cursor).answers
    assert len(new) == 3
    assert min(row.number for row in new) > cursor, "a number was used again"
    with pytest.raises(NotFoundError):
        store.work.undo(person, kept_id, 1)
    assert store.work.desk(person, 3).assignments == ()
    assert {row.act for row in store.access.audit(study_id=study_id) if row.actor == "experimenter"} == {
        "annotator.withdraw"
    }


def test_who_withdraws_themselves_is_not_in_the_record_of_administrative_acts(store):
    study_id = make_study(store, 1)
    person = join(store, study_id)
    store.people.withdraw(person, person)
    assert "annotator.withdraw" not in {row.act for row in store.access.audit(study_id=study_id)}


def test_people_may_withdraw_after_they_are_done_while_others_answer(store):
    study_id = make_study(store, 8, num_gold=4, gold_share=0.2, overlap=6, queries_per_annotator=6)
    withdrawn = []

    def work(number):
        person = join(store, study_id)
        answer_all(store, person, count=2, limit=3 + number % 4)
        if number % 2:
            store.people.withdraw(person, person)
            withdrawn.append(person)

    run_threads(16, work)
    check_counts(store, study_id)
    page = store.work.answers(study_id)
    assert set(page.withdrawn) == set(withdrawn)
    assert not {row.annotator_id for row in page.answers} & set(withdrawn)


def test_panel_ids_are_forgotten_when_their_time_is_over(store, clock):
    panel = {"kind": "prolific", "code_complete": "C"}
    study_id = make_study(store, 1, panel=panel, retention_days=30)
    kept = make_study(store, 1, panel=panel)
    for study in (study_id, kept):
        join(store, study, PROLIFIC_PID="p1")
        join(store, study, STUDY_ID="somewhere")
        store.studies.set_status(study, "stopped", "tests")
    clock.advance(20 * 86_400)
    store.studies.set_status(study_id, "stopped", "tests")  # again: the time goes on
    clock.advance(9 * 86_400)
    assert store.people.forget_panels() == 0
    clock.advance(2 * 86_400)
    assert store.people.forget_panels() == 2
    assert store.people.forget_panels() == 0
    assert [(row.panel, row.panel_key) for row in store.people.all(study_id)] == [({}, None)] * 2
    assert [row.panel for row in store.people.all(kept)] == [{"PROLIFIC_PID": "p1"}, {"STUDY_ID": "somewhere"}]
    assert [row.about for row in store.access.audit(study_id=study_id, limit=1)] == [{"num_people": 2}]


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
    insert = sys.modules["themis_ray.labeling.store.work"]._insert_answer

    def insert_and_wait(connection, row, new):
        insert(connection, row, new)
        if row.annotator_id == slow:
            has_number.set()
            assert may_commit.wait(30)

    monkeypatch.setattr("themis_ray.labeling.store.work._insert_answer", insert_and_wait)
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


def test_a_query_has_clips_of_its_own_study_only(store):
    study_id = make_study(store, 1)
    assert store.studies.has_clip(study_id, CLIP_NAMES[0])
    assert not store.studies.has_clip(study_id, "0" * 32 + ".webm")
    store.studies.add_clip(study_id, CLIP_NAMES[0], 10)  # again
    with pytest.raises(NotFoundError):
        store.studies.add_clip("nothing", CLIP_NAMES[0], 10)
    with pytest.raises(NotFoundError, match="has no query 'q-7'"):
        store.studies.query(study_id, "q-7")


# ---------------------------------------------------------------- who may come in


def test_a_token_is_stored_hashed_and_worthless_once_revoked(store):
    study_id, other = make_study(store, 0), make_study(store, 0)
    secret, row = store.access.make_token(study_id, "training", "admin")
    assert store.access.make_token(study_id, "other", "admin")[0] != secret
    assert store.access.find_token(secret) == row
    assert store.access.find_token(secret + "x") is None
    assert len(secret) > 40
    (stored,) = rows_of(store, tables.token, id=row.id)
    assert secret not in str(stored)
    assert stored.hash == hashlib.sha256(secret.encode()).hexdigest()
    for study, token_id in ((other, row.id), (study_id, "t-0")):
        with pytest.raises(NotFoundError, match="has no token"):
            store.access.revoke_token(study, token_id, "admin")
    store.access.revoke_token(study_id, row.id, "admin")
    assert store.access.find_token(secret) is None
    assert [token.revoked_at is None for token in store.access.tokens(study_id)] == [True, False]
    with pytest.raises(NotFoundError, match="no study"):
        store.access.make_token("nothing", "training", "admin")


def test_an_invitation_works_once_even_if_used_by_many_at_once(store):
    study_id, nonce = make_study(store, 0), uuid.uuid4().hex
    members, refused = [], []

    def work(_):
        try:
            members.append(store.access.accept_invitation(nonce, "experimenter", "Ada", study_id))
        except ForbiddenError:
            refused.append(1)

    run_threads(6, work)
    assert (len(members), len(refused)) == (1, 5)
    assert members[0].may_see(study_id)
    assert not members[0].may_see("another")
    with pytest.raises(NotFoundError):
        store.access.accept_invitation(unused := uuid.uuid4().hex, "experimenter", "Ada", "nothing")
    assert store.access.accept_invitation(unused, "admin", "Ada", None).may_see("another")
    assert store.access.has_members()


def test_a_member_who_is_deactivated_is_not_known_any_more(store):
    study_id = make_study(store, 0)
    member = store.access.accept_invitation(uuid.uuid4().hex, "experimenter", "Ada", None)
    assert store.access.member(member.id).studies == frozenset()
    for _ in range(2):
        store.access.add_to_study(member.id, study_id)
    assert store.access.member(member.id).studies == {study_id}
    store.access.deactivate(member.id, "admin")
    for call in (store.access.member, lambda who: store.access.deactivate(who, "admin")):
        with pytest.raises(NotFoundError, match="no member"):
            call(member.id)
    for who, study in ((member.id, study_id), ("m-nobody", study_id)):
        with pytest.raises(NotFoundError):
            store.access.add_to_study(who, study)


def test_every_administrative_act_is_in_the_record(store):
    last = max((row.number for row in store.access.audit(limit=1)), default=0)
    study_id = make_study(store, 2)
    person = join(store, study_id)
    member = store.access.accept_invitation(uuid.uuid4().hex, "experimenter", "Ada", study_id)
    another = store.access.accept_invitation(uuid.uuid4().hex, "admin", "Bo", None)
    store.access.add_to_study(another.id, study_id, member.id)
    for status in ("paused", "running", "stopped"):
        store.studies.set_status(study_id, status, member.id)
    store.studies.extend(study_id, member.id, overlap=2)
    _, token = store.access.make_token(study_id, "training", member.id)
    store.access.revoke_token(study_id, token.id, member.id)
    store.people.withdraw(person, member.id)
    store.access.deactivate(member.id, another.id)
    store.access.record(another.id, "export", study_id, {"format": "csv"})
    rows = [row for row in store.access.audit() if row.number > last]
    assert [(row.actor, row.act) for row in reversed(rows)] == [
        ("tests", "study.create"),
        ("tests", "queries.add"),
        (member.id, "member.join"),
        (another.id, "member.join"),
        (member.id, "member.add"),
        (member.id, "study.paused"),
        (member.id, "study.running"),
        (member.id, "study.stopped"),
        (member.id, "study.extend"),
        (member.id, "token.make"),
        (member.id, "token.revoke"),
        (member.id, "annotator.withdraw"),
        (another.id, "member.deactivate"),
        (another.id, "export"),
    ]
    assert rows[0].about == {"format": "csv"}
    assert rows[0].happened_at == pytest.approx(time.time(), abs=60)
    assert {row.study_id for row in store.access.audit(study_id=study_id)} == {study_id}
    older = store.access.audit(before=rows[0].number, limit=2)
    assert [row.number for row in older] == [rows[1].number, rows[2].number]


def test_hits_are_counted_in_windows_shared_by_all(store, clock):
    key, refused = f"sign-in:{uuid.uuid4()}", []

    def work(_):
        try:
            store.access.count_hit(key, 5, 60.0)
        except TooManyError:
            refused.append(1)

    run_threads(9, work)
    assert len(refused) == 4
    with pytest.raises(TooManyError, match="more than 5 calls in 60 s"):
        store.access.count_hit(key, 5, 60.0)
    store.access.count_hit(f"{key}-other", 5, 60.0)
    clock.advance(30)
    store.access.clear_hits()
    with pytest.raises(TooManyError):
        store.access.count_hit(key, 5, 60.0)
    clock.advance(31)
    for _ in range(5):
        store.access.count_hit(key, 5, 60.0)
    with pytest.raises(TooManyError):
        store.access.count_hit(key, 5, 60.0)
    clock.advance(120)
    store.access.clear_hits()
    assert rows_of(store, tables.hit, key=key) == []
