"""Who is asked what, whatever database the label store is kept in: overlap, leases, gold, repeats and sides."""

import math
import uuid
from collections import Counter, defaultdict

import pytest
from label_stores import (
    CLIP_NAMES,
    LEASE_S,
    answer,
    answer_all,
    answer_one,
    check_counts,
    each_store,
    join,
    make_study,
    new_answer,
    new_query,
    rows_of,
    run_threads,
    used_clock,
)

from themis_ray.data import Choice
from themis_ray.labeling import tables
from themis_ray.labeling.store import ConflictError, LateError

NUM_SIGMA = 5  # of statistical tests: by chance they fail once in a million runs
store, clock = each_store, used_clock


def query_row(store, study_id, name=0):
    return store.studies.query(study_id, f"q-{name}")


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
        arms=[
            {"name": "plain"},
            {"name": "heatmap", "overlay": "reward-saliency"},
            {"name": "path", "overlay": "action"},
        ],
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
        assert annotator.overlay == {"plain": "", "heatmap": "reward-saliency", "path": "action"}[annotator.arm]
