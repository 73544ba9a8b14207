"""What every teacher does, whatever it prefers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from themis_ray.data import Choice, Query, Segment
from themis_ray.feedback import TEACHERS, TeacherConfig, make_teacher

NO_RETURNS = (np.empty(0, np.float64), np.empty(0, np.int64))
SOME_RETURNS = (np.array([-30.0, 12.0]), np.array([20, 40]))

teacher_names = pytest.mark.parametrize("name", TEACHERS)


def make_queries(num_queries: int, seed: int = 0, length: int = 6) -> list[Query]:
    rng = np.random.default_rng(seed)

    def segment() -> Segment:
        observations = rng.normal(size=(length, 2)).astype(np.float32)
        rewards = rng.normal(size=length).astype(np.float32)
        return Segment.create("Test-v0", "e", 0, observations, np.zeros((length, 1), np.float32), rewards)

    return [Query(segment(), segment()) for _ in range(num_queries)]


def answer(name: str, queries: list[Query], seed: int = 0, returns=NO_RETURNS) -> list[Choice]:
    return make_teacher(TeacherConfig(name=name)).answer(queries, np.random.default_rng(seed), returns)


@teacher_names
@pytest.mark.parametrize("returns", [NO_RETURNS, SOME_RETURNS], ids=["no-returns", "returns"])
@given(num_queries=st.integers(0, 30), seed=st.integers(0, 100))
def test_one_legal_choice_per_query(name: str, returns, num_queries: int, seed: int) -> None:
    choices = answer(name, make_queries(num_queries, seed), seed, returns)
    assert isinstance(choices, list)
    assert len(choices) == num_queries
    assert all(type(choice) is Choice for choice in choices)
    assert {str(choice) for choice in choices} <= {"left", "right", "equal", "skip"}


@teacher_names
def test_same_rng_same_answers(name: str) -> None:
    queries = make_queries(200)
    assert answer(name, queries, 3) == answer(name, queries, 3)


@teacher_names
def test_answers_are_in_the_order_of_the_queries(name: str) -> None:
    """Sides that nobody mixes up, asked in any order, get the same answers."""
    queries = make_queries(40)
    order = np.random.default_rng(1).permutation(len(queries))
    parameters = {"eps_mistake": 0.0, "beta": -1.0}
    teacher = make_teacher(TeacherConfig(name=name, **parameters))
    straight = teacher.answer(queries, np.random.default_rng(0), NO_RETURNS)
    shuffled = teacher.answer([queries[i] for i in order], np.random.default_rng(0), NO_RETURNS)
    assert shuffled == [straight[i] for i in order]


@teacher_names
def test_swapping_sides_swaps_the_words_of_a_teacher_without_chance(name: str) -> None:
    queries = make_queries(60)
    teacher = make_teacher(TeacherConfig(name=name, eps_mistake=0.0, beta=-1.0))
    straight = teacher.answer(queries, np.random.default_rng(0), NO_RETURNS)
    swapped = teacher.answer([Query(q.right, q.left) for q in queries], np.random.default_rng(0), NO_RETURNS)
    mirror = {Choice.LEFT: Choice.RIGHT, Choice.RIGHT: Choice.LEFT}
    assert swapped == [mirror.get(choice, choice) for choice in straight]


@teacher_names
def test_better_than_chance(name: str) -> None:
    queries = make_queries(400)
    choices = answer(name, queries)
    is_told = [choice in (Choice.LEFT, Choice.RIGHT) for choice in choices]
    is_right = [
        (choice is Choice.LEFT) == (query.left.true_return > query.right.true_return)
        for query, choice in zip(queries, choices, strict=True)
    ]
    assert np.mean(np.array(is_right)[is_told]) > 0.7
    assert np.mean(is_told) > 0.5


@teacher_names
def test_the_name_is_the_presets(name: str) -> None:
    assert make_teacher(TeacherConfig(name=name)).name == name


@teacher_names
def test_queries_are_left_as_they_were(name: str) -> None:
    queries = make_queries(10)
    ids = [query.id for query in queries]
    answer(name, queries)
    assert [query.id for query in queries] == ids
