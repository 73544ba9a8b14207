import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

from themis_ray.config import load_config, resolve
from themis_ray.data import Choice, Query, Segment
from themis_ray.envs import EnvConfig
from themis_ray.errors import ConfigError, TeacherError
from themis_ray.feedback import ScriptedTeacher, TeacherConfig, check_teacher, make_teacher

ROOT = Path(__file__).parents[2]
NO_RETURNS = (np.empty(0, np.float64), np.empty(0, np.int64))
MODULE = "teacher_of_a_user"
CODE = """
import functools
from themis_ray.data import Choice

calls = []

def by_reward(left, right):
    calls.append((left.id, right.id))
    return "left" if left.true_rewards.sum() > right.true_rewards.sum() else "right"

def by_first_action(left, right):
    return Choice.LEFT if left.actions[0, 0] > right.actions[0, 0] else Choice.EQUAL

def skip(left, right, strictness=3):
    return "skip"

def takes_anything(*segments):
    return "equal"

def takes_one(segment):
    return "left"

def takes_three(left, right, middle):
    return "left"

def takes_names(*, left, right):
    return "left"

def nothing(left, right):
    pass

def number(left, right):
    return 1

def shout(left, right):
    return "LEFT"

def long(left, right):
    return "left" * 100

def many(left, right):
    return ["left", "right"]

def writes(left, right):
    left.observations[0] = 1.0
    return "left"

def divides(left, right):
    return 1 / 0

def _hidden(left, right):
    return "left"

class Judge:
    def __call__(self, left, right):
        return "right"

an_object = Judge()
partial = functools.partial(takes_three, middle=None)
a_number = 3
"""


@pytest.fixture
def user_folder(tmp_path, monkeypatch):
    """A working directory that holds the module above, as `themis` sees it: not on the import path."""
    (tmp_path / f"{MODULE}.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder not in ("", str(tmp_path))])
    yield tmp_path
    sys.modules.pop(MODULE, None)


def segment(observations, actions=None, rewards=None) -> Segment:
    observations = np.asarray(observations, np.float32)
    n = len(observations)
    actions = np.zeros((n, 1), np.float32) if actions is None else np.asarray(actions, np.float32)
    return Segment.create("Test-v0", "e", 0, observations, actions, np.zeros(n) if rewards is None else rewards)


def random_queries(n: int) -> list[Query]:
    rng = np.random.default_rng(0)
    draw = lambda: segment(rng.normal(size=(4, 2)), rng.normal(size=(4, 1)), rng.normal(size=4))  # noqa: E731
    return [Query(draw(), draw()) for _ in range(n)]


def teacher(name: str) -> ScriptedTeacher:
    made = make_teacher(TeacherConfig(kind="scripted", function=f"{MODULE}:{name}"))
    assert isinstance(made, ScriptedTeacher)
    return made


def ask(name: str, queries: list[Query]) -> list[Choice]:
    return teacher(name).answer(queries, np.random.default_rng(0), NO_RETURNS)


# ---------------------------------------------------------------- answers


def test_the_function_is_asked_once_per_query_in_order(user_folder):
    queries = random_queries(30)
    choices = ask("by_reward", queries)
    assert importlib.import_module(MODULE).calls == [(query.left.id, query.right.id) for query in queries]
    expected = ["left" if q.left.true_return > q.right.true_return else "right" for q in queries]
    assert choices == expected
    assert all(type(choice) is Choice for choice in choices)


@pytest.mark.parametrize(
    ("name", "choice"),
    [("skip", "skip"), ("takes_anything", "equal"), ("an_object", "right"), ("partial", "left")],
)
def test_whatever_takes_two_segments_may_answer(user_folder, name, choice):
    assert ask(name, random_queries(2)) == [choice] * 2


def test_choices_are_words_too(user_folder):
    queries = random_queries(20)
    expected = [Choice.LEFT if q.left.actions[0, 0] > q.right.actions[0, 0] else Choice.EQUAL for q in queries]
    assert ask("by_first_action", queries) == expected


def test_no_number_is_drawn(user_folder):
    rng = np.random.default_rng(0)
    teacher("skip").answer(random_queries(3), rng, NO_RETURNS)
    assert rng.random() == np.random.default_rng(0).random()


def test_the_name_is_the_function(user_folder):
    assert (
        teacher("skip").name
        == f"{MODULE}:skip"
        == TeacherConfig(kind="scripted", function=f"{MODULE}:skip").teacher_name
    )


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("nothing", "None"),
        ("number", "1"),
        ("shout", "'LEFT'"),
        ("many", r"\['left', 'right'\]"),
        ("long", r"leftlef\.\.\."),
    ],
)
def test_what_is_no_choice_is_told_in_one_line(user_folder, name, shown):
    with pytest.raises(TeacherError, match=rf"{MODULE}:{name} returned .*{shown}. Return one of 'left'") as raised:
        ask(name, random_queries(1))
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 250


def test_segments_cannot_be_written_to(user_folder):
    with pytest.raises(TeacherError, match=r"writes failed on the query .*ValueError.*read-only"):
        ask("writes", random_queries(1))


def test_a_function_that_fails_is_named_with_its_error(user_folder):
    query = random_queries(1)[0]
    with pytest.raises(TeacherError, match=f"{MODULE}:divides failed on the query {query.id}: ZeroDivisionError"):
        ask("divides", [query])


# ---------------------------------------------------------------- what is refused before a run


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("by_reward", "names no function. Write package.module:function"),
        (":by_reward", "names no function"),
        (f"{MODULE}:", "names no function"),
        (f"{MODULE}:not a name", "names no function"),
        ("no_such_module:teach", "'no_such_module' cannot be imported .*ModuleNotFoundError.*PYTHONPATH"),
        (f"{MODULE}:by_rewards", "there is no 'by_rewards' in .*Functions there: .*by_first_action, by_reward, "),
        (f"{MODULE}:a_number", "is of type int. Give a function that can be called with two segments"),
        (f"{MODULE}:takes_one", r"is takes_one\(segment\). Give a function"),
        (f"{MODULE}:takes_three", r"is takes_three\(left, right, middle\)"),
        (f"{MODULE}:takes_names", r"is takes_names\(\*, left, right\)"),
    ],
)
def test_a_function_that_cannot_be_used_is_refused(user_folder, function, message):
    config = TeacherConfig(kind="scripted", function=function)
    with pytest.raises(ConfigError, match=message) as raised:
        check_teacher(config, EnvConfig(id="Pendulum-v1"))
    assert "\n" not in str(raised.value)
    assert "_hidden" not in str(raised.value)


@pytest.mark.parametrize(
    "code", ["import no_such_package", "def broken(:", "raise RuntimeError('at import')", "exit(3)"]
)
def test_a_module_that_fails_is_refused(user_folder, code):
    (user_folder / "broken_module.py").write_text(code)
    with pytest.raises(ConfigError, match="'broken_module' cannot be imported"):
        ScriptedTeacher("broken_module:teach")


def test_the_function_is_checked_when_the_config_is_resolved(user_folder):
    settings = ["env.id=Pendulum-v1", "teacher.kind=scripted"]
    config, _ = resolve(load_config(None, [*settings, f"teacher.function={MODULE}:by_reward"]))
    assert config.teacher.kind == "scripted"
    with pytest.raises(ConfigError, match="there is no 'missing'"):
        resolve(load_config(None, [*settings, f"teacher.function={MODULE}:missing"]))


def test_a_function_may_import_a_module_beside_it_when_it_is_called(user_folder):
    (user_folder / "late_helper.py").write_text("word = 'equal'")
    (user_folder / "late_module.py").write_text(
        "def teach(left, right):\n    import late_helper\n    return late_helper.word"
    )
    found = ScriptedTeacher("late_module:teach")
    assert found.answer(random_queries(2), np.random.default_rng(0), NO_RETURNS) == [Choice.EQUAL] * 2


def test_the_import_path_stays_as_it_was(user_folder):
    before = list(sys.path)
    teacher("skip")
    with pytest.raises(ConfigError):
        ScriptedTeacher("no_such_module:teach")
    assert sys.path == before


# ---------------------------------------------------------------- the examples that are shipped


@pytest.fixture
def examples(monkeypatch):
    monkeypatch.chdir(ROOT)

    def answer(name: str, left: Segment, right: Segment) -> Choice:
        made = ScriptedTeacher(f"examples.teachers:{name}")
        return made.answer([Query(left, right)], np.random.default_rng(0), NO_RETURNS)[0]

    return answer


def cart_pole(angles, positions=0.0, num_over: int = 0) -> Segment:
    observations = np.zeros((len(angles) + num_over, 5), np.float32)
    observations[: len(angles), 2] = np.radians(angles)
    observations[: len(angles), 0] = positions
    observations[len(angles) :, 4] = 1
    return segment(observations)


@pytest.mark.parametrize(
    ("left", "right", "choice"),
    [
        (cart_pole([1, 2, 3]), cart_pole([1, 2, 7]), "left"),
        (cart_pole([-8, 2, 3]), cart_pole([-5, 2, 3]), "right"),
        (cart_pole([1, 2, 3]), cart_pole([1, 2], num_over=1), "left"),
        (cart_pole([1, 2, 3], 0.5), cart_pole([1, 2, 3], -0.2), "right"),
        # The absorbing state is at 0 and must not pass for a cart at the centre.
        (cart_pole([1, 7], 0.3), cart_pole([1], 0.4, num_over=1), "left"),
        (cart_pole([1, 2], 0.3), cart_pole([2, 1], -0.3), "equal"),
        (cart_pole([8, 9]), cart_pole([10], num_over=1), "skip"),
    ],
)
def test_example_keeps_the_pole_upright(examples, left, right, choice):
    assert examples("keep_pole_upright", left, right) == choice


def pendulum(degrees) -> Segment:
    angles = np.radians(degrees)
    return segment(np.stack([np.cos(angles), np.sin(angles), np.zeros(len(angles))], axis=-1))


@pytest.mark.parametrize(
    ("left", "right", "choice"),
    [
        (pendulum([5, 20, 40]), pendulum([29, 31, 32]), "left"),
        (pendulum([180, 170]), pendulum([-100, -90]), "right"),
        (pendulum([10, -20]), pendulum([-10, 20]), "equal"),
    ],
)
def test_example_stays_upright(examples, left, right, choice):
    assert examples("stay_upright", left, right) == choice
