"""How people come to a study and leave it, whatever database the label store is kept in."""

import hashlib
import time
from collections import Counter

import pytest
from label_stores import (
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
from themis_ray.labeling.store import ConflictError, ForbiddenError, NotFoundError, WrongError

CONSENT = {"version": "1", "text": "I agree that my choices are stored."}
store, clock = each_store, used_clock


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


def test_who_declines_withdraws_or_is_screened_out_takes_nobodys_place(store):
    study_id = make_study(store, 2, consent=CONSENT, before=QUESTIONS, max_annotators=1)
    consent = store.studies.get(study_id).config.consent
    store.people.consent(join(store, study_id), "1", consent.hash, agrees=False)
    for age in ("no", "yes"):
        person = join(store, study_id)
        store.people.consent(person, "1", consent.hash, agrees=True)
        store.people.respond(person, "before", {"age": age, "games": 1})
    with pytest.raises(ForbiddenError, match="all the people it needs"):
        join(store, study_id)
    store.people.withdraw(person, person)
    join(store, study_id)
    with pytest.raises(ForbiddenError, match="all the people it needs"):
        join(store, study_id)


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


def test_arms_are_even_among_those_who_take_part(store):
    study_id = make_study(store, 1, before=QUESTIONS[:1], arms=[{"name": "a"}, {"name": "b"}])
    num_out, arms = 0, []
    while len(arms) < 8:
        person = join(store, study_id)
        arm = store.people.get(person).arm
        is_out = arm == "a" and num_out < 4
        store.people.respond(person, "before", {"age": "no" if is_out else "yes"})
        num_out += is_out
        if not is_out:
            arms.append(arm)
    assert Counter(arms) == {"a": 4, "b": 4}


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


def test_who_has_withdrawn_does_not_come_back_from_the_panel_as_somebody_new(store):
    study_id = make_study(store, 1, panel={"kind": "prolific", "code_complete": "C"})
    person = join(store, study_id, PROLIFIC_PID="p1", SESSION_ID="a")
    store.people.withdraw(person, person)
    again = store.people.join(study_id, {"PROLIFIC_PID": "p1", "SESSION_ID": "b"})
    assert (again.id, again.stage) == (person, "withdrawn")
    (row,) = store.people.all(study_id)
    assert row.panel == {}
    assert "p1" not in row.panel_key


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
