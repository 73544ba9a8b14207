"""The label store under several processes, one that is killed, and any order of calls."""

import os
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)
from label_stores import (
    BACKENDS,
    LEASE_S,
    Clock,
    Ids,
    answer,
    answer_all,
    check_counts,
    clear,
    join,
    make_study,
    make_url,
    new_answer,
    open_store,
    temporary_folder,
)

from themis_ray.data import Choice
from themis_ray.labeling.store import ConflictError, LabelStore, LateError, NotFoundError, Work

TESTS = Path(__file__).parents[1]


def start(call: str, *arguments: object) -> subprocess.Popen:
    """Starts a process that calls a function of `label_stores`."""
    program = f"import label_stores; label_stores.{call}(*{arguments!r})"
    environ = {**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}"}
    return subprocess.Popen([sys.executable, "-c", program], env=environ, stdout=subprocess.PIPE, text=True)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.slow)])
def url(request):
    with temporary_folder() as folder:
        yield make_url(request.param, folder)


def test_an_overlap_is_exact_while_two_processes_serve(url):
    num_queries, overlap = 8, 5
    store = LabelStore(url)
    study_id = make_study(store, num_queries, num_practice=1, overlap=overlap)
    processes = [start("work_in_threads", url, study_id, 8) for _ in range(2)]
    while any(process.poll() is None for process in processes):
        check_counts(store, study_id)
        time.sleep(0.05)
    assert [process.returncode for process in processes] == [0, 0]
    answer_all(store, join(store, study_id))
    check_counts(store, study_id)
    page = store.work.answers(study_id)
    assert page.num_waiting == 0
    ordinary = [(row.query_id, row.annotator_id) for row in page.answers if row.kind == "ordinary"]
    assert len(ordinary) == len(set(ordinary)) == num_queries * overlap
    store.close()


def test_what_was_acknowledged_is_there_after_the_process_was_killed(url):
    store = LabelStore(url)
    study_id = make_study(store, 400, overlap=3)
    store.close()
    process = start("answer_and_print", url, study_id)
    acknowledged = [process.stdout.readline().strip() for _ in range(25)]
    process.kill()
    acknowledged += process.communicate()[0].split("\n")[:-1]
    store = LabelStore(url)
    stored = [row.answer_id for row in store.work.answers(study_id, limit=10_000).answers]
    assert set(acknowledged) <= set(stored)
    assert len(stored) == len(set(stored)) <= len(acknowledged) + 1  # one it did not tell of
    check_counts(store, study_id)
    assert store.work.desk(join(store, study_id), 3).assignments
    store.close()


class StudyMachine(RuleBasedStateMachine):
    """People come, answer, change their minds, dawdle and leave in any order; counts are right after every step."""

    people = Bundle("people")
    store: LabelStore

    def __init__(self):
        super().__init__()
        self.clock, self.patches = Clock(), ExitStack()
        self.patches.enter_context(self.clock.used())
        self.patches.enter_context(Ids().used())
        self.answers: dict[str, list[str]] = {}
        self.seen: dict[str, dict] = {}

    def teardown(self):
        self.patches.close()

    @initialize(
        target=people,
        num_queries=st.integers(1, 5),
        overlap=st.integers(1, 2),
        num_practice=st.integers(0, 2),
        gold_share=st.sampled_from([0.0, 0.3]),
        repeat_share=st.sampled_from([0.0, 0.4]),
        queries_per_annotator=st.integers(2, 15),
        max_answers=st.sampled_from([None, None, 6]),
    )
    def make(self, num_queries, **study):
        clear(self.store)
        self.store.work = Work(self.store.database)  # which has not looked for leases that ran out yet
        self.study = make_study(self.store, num_queries, num_gold=3, lease_s=LEASE_S, study_id="machine", **study)
        return multiple(self.somebody(), self.somebody())

    @precondition(lambda self: len(self.answers) < 4 and not self.is_stopped())
    @rule(target=people)
    def somebody_comes(self):
        return self.somebody()

    def somebody(self):
        person = join(self.store, self.study)
        self.answers[person], self.seen[person] = [], {}
        return person

    def remember(self, person, desk):
        self.seen[person] |= {row.id: row for row in desk.assignments}
        assert len({row.id for row in desk.assignments}) == len(desk.assignments)
        return desk

    @rule(person=people, count=st.integers(0, 4))
    def look_at_the_desk(self, person, count):
        self.remember(person, self.store.work.desk(person, count))

    @rule(person=people, choice=st.sampled_from(list(Choice)), count=st.integers(0, 3), limit=st.integers(1, 4))
    def answer_what_comes_first(self, person, choice, count, limit):
        for _ in range(limit):
            desk = self.remember(person, self.store.work.desk(person, 1))
            if not desk.assignments:
                break
            answer_id = f"{person}-{len(self.answers[person])}"
            receipt = answer(self.store, person, desk.assignments[0], choice, answer_id=answer_id, count=count)
            assert not receipt.is_duplicate
            self.answers[person].append(answer_id)
            self.remember(person, receipt.desk)

    @rule(person=people, which=st.integers(0, 100))
    def answer_anything_seen(self, person, which):
        """Out of order, late, or a second time."""
        if self.seen[person]:
            self.answer_or_be_refused(person, list(self.seen[person].values())[which % len(self.seen[person])])

    @rule(person=people, which=st.integers(0, 100))
    def keep_anything_seen(self, person, which):
        if self.seen[person]:
            with suppress(ConflictError, LateError, NotFoundError):
                self.store.work.keep(person, list(self.seen[person])[which % len(self.seen[person])])

    @rule(slow=people, quick=people)
    def answer_after_somebody_else_was_quicker(self, slow, quick):
        held = self.remember(slow, self.store.work.desk(slow, 2)).assignments
        self.clock.advance(1.1 * LEASE_S)
        self.remember(quick, self.store.work.desk(quick, 4))
        for assignment in held:
            self.answer_or_be_refused(slow, assignment)

    def answer_or_be_refused(self, person, assignment):
        before = self.stored()
        answer_id = f"{person}-{len(self.answers[person])}"
        try:
            receipt = answer(self.store, person, assignment, answer_id=answer_id)
        except (ConflictError, LateError, NotFoundError):
            assert self.stored() == before
        else:
            self.answers[person].append(answer_id)
            self.remember(person, receipt.desk)
            assert self.stored() == before | {answer_id}

    @rule(person=people, which=st.integers(0, 100))
    def send_an_answer_again(self, person, which):
        if self.answers[person]:
            answer_id = self.answers[person][which % len(self.answers[person])]
            if answer_id in self.stored():
                before = self.stored()
                assert self.store.work.answer(person, new_answer("any", answer_id=answer_id, count=0)).is_duplicate
                assert self.stored() == before

    @rule(person=people, count=st.integers(0, 3))
    def undo(self, person, count):
        answer_id = self.store.work.last_answer(person)
        if answer_id is None:
            return
        try:
            desk = self.remember(person, self.store.work.undo(person, answer_id, count))
        except ConflictError:
            assert self.store.people.get(person).stage in ("done", "withdrawn") or self.is_stopped()
        else:
            (row,) = [row for row in self.store.work.answers(self.study).answers if row.answer_id == answer_id]
            assert row.is_undone
            assert desk.assignments[0].query_id == row.query_id

    @rule(person=people, is_withdrawn=st.booleans())
    def leave(self, person, is_withdrawn):
        if is_withdrawn:
            self.store.people.withdraw(person, person)
            assert not [row for row in self.store.work.answers(self.study).answers if row.annotator_id == person]
            return
        try:
            assert self.store.people.finish(person).stage in ("done", "withdrawn")
        except ConflictError:
            assert self.store.people.get(person).stage == "practice"

    @rule(leases=st.sampled_from([0.4, 1.1]))
    def time_passes(self, leases):
        self.clock.advance(leases * LEASE_S)

    @rule(change=st.sampled_from(["paused", "running", "running", "running", "more"]))
    def steer(self, change):
        if change == "more":
            config = self.store.studies.get(self.study).config
            self.store.studies.extend(self.study, "tests", overlap=min(4, config.overlap + 1))
        else:
            self.store.studies.set_status(self.study, change, "tests")

    def is_stopped(self):
        return self.store.studies.get(self.study).status == "stopped"

    def stored(self):
        return {row.answer_id for row in self.store.work.answers(self.study).answers}

    @invariant()
    def counts_are_right(self):
        if hasattr(self, "study"):
            check_counts(self.store, self.study)


@pytest.mark.parametrize(("backend", "num_examples"), [("sqlite", 40), ("postgres", 10)])
def test_counts_are_right_whatever_people_do_in_whatever_order(backend, num_examples):
    run_machine(backend, num_examples, num_steps=25)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_counts_are_right_for_longer(backend):
    run_machine(backend, num_examples=300, num_steps=60)


def run_machine(backend: str, num_examples: int, num_steps: int) -> None:
    with open_store(backend) as store:
        machine = type("Machine", (StudyMachine,), {"store": store}).TestCase
        machine.settings = settings(max_examples=num_examples, stateful_step_count=num_steps, deadline=None)
        machine("runTest").runTest()
