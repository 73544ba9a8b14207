"""What one person does costs as much in a study of thousands of queries and answers as in a small one."""

import uuid

import pytest
from label_stores import Ids, answer_all, join, make_study, open_store, rows_of
from sqlalchemy import event

from themis_ray.labeling import tables

STEPS_PER_COUNT = 50


class Steps:
    """Counts the steps that SQLite takes, which are the same in every run."""

    def __init__(self, store):
        self.num = 0
        store.database.engine.dispose()
        event.listen(store.database.engine, "connect", self._watch)

    def _watch(self, connection, _):
        connection.set_progress_handler(self._count, STEPS_PER_COUNT)

    def _count(self):
        self.num += STEPS_PER_COUNT
        return 0


def grow(store, study_id, person, num):
    """Adds queries that nobody is to answer any more, and answers that others have given."""
    query = rows_of(store, tables.query, study_id=study_id, kind="ordinary")[0]._asdict()
    given = rows_of(store, tables.answer, study_id=study_id, annotator_id=person)[0]._asdict()
    with store.database.write() as connection:
        full = [
            query | {"id": f"full-{number}", "num_taken": query["overlap"], "num_answers": query["overlap"]}
            for number in range(num)
        ]
        connection.execute(tables.query.insert(), full)
        del given["number"]
        connection.execute(tables.answer.insert(), [given | {"id": uuid.uuid4().hex} for _ in range(num)])


def wait(store, person):
    answer_all(store, person)
    return lambda: store.work.desk(person, 3)


def give_answers(store, person):
    return lambda: answer_all(store, person, limit=6)


def leave(store, person):
    answer_all(store, person)
    return lambda: store.people.withdraw(person, person)


@pytest.mark.parametrize("prepare", [wait, give_answers, leave])
@pytest.mark.parametrize("settings", [{"max_answers": 100_000}, {"repeat_share": 0.5}], ids=["max_answers", "repeats"])
def test_what_one_person_does_costs_as_much_in_a_large_study(prepare, settings):
    num_steps = []
    for num in (100, 4000):
        with open_store("sqlite") as store, Ids().used():
            study_id = make_study(store, 30, study_id="study", queries_per_annotator=200, overlap=3, **settings)
            other, person = join(store, study_id), join(store, study_id)
            answer_all(store, other, limit=8)
            answer_all(store, person, limit=8)
            grow(store, study_id, other, num)
            act = prepare(store, person)
            steps = Steps(store)
            act()
            num_steps.append(steps.num)
    assert 0 < num_steps[1] < 2 * num_steps[0]
