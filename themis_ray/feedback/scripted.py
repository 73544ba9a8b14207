"""A teacher that is a function of the user's: two segments in, a choice out."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from themis_ray.data import Choice, Query
from themis_ray.errors import ConfigError, TeacherError
from themis_ray.feedback.teachers import RecentReturns

__all__ = ["ScriptedTeacher", "find_function"]

MAX_SHOWN_CHARACTERS = 80


class ScriptedTeacher:
    """Answers with what a function says about (left, right).

    The function is given two `Segment`s, whose arrays are read-only, and returns `left`, `right`, `equal` or `skip`, as
    text or as a `Choice`. It is called once for each query, in order. No random number is drawn.

    Args:
        function: `package.module:function`, which is also the teacher's name.

    Raises:
        ConfigError: The function cannot be imported, or cannot be called with two segments.
    """

    def __init__(self, function: str) -> None:
        self.name = function
        self._function = find_function(function)

    def answer(
        self, queries: Sequence[Query], rng: np.random.Generator, returns: RecentReturns, feedback_session: int = 0
    ) -> list[Choice]:
        """Returns one choice for each query, in order.

        Raises:
            TeacherError: The function failed, or returned something that is no choice.
        """
        del rng, returns, feedback_session
        with _importable_working_directory():  # A function may import what it needs when it is called.
            return [self._choose(query) for query in queries]

    def _choose(self, query: Query) -> Choice:
        try:
            word = self._function(query.left, query.right)
        except Exception as error:  # The user's own code may raise anything.
            raise TeacherError(
                f"the teacher {self.name} failed on the query {query.id}: {type(error).__name__}: {error}. Correct the "
                "function, then resume the run."
            ) from error
        if isinstance(word, str) and word in set(Choice):
            return Choice(word)
        shown = repr(word)
        shown = shown if len(shown) <= MAX_SHOWN_CHARACTERS else f"{shown[:MAX_SHOWN_CHARACTERS]}..."
        words = ", ".join(repr(str(known)) for known in Choice)
        raise TeacherError(f"the teacher {self.name} returned {shown}. Return one of {words}.")


def find_function(path: str) -> Callable[[Any, Any], Any]:
    """Returns the function that `package.module:function` names, looked for in the working directory too.

    Raises:
        ConfigError: The text has another form, the module cannot be imported, it holds no such function, or the
            function does not take two arguments.
    """
    module_name, colon, name = path.partition(":")
    if not (colon and module_name and name.isidentifier()):
        raise ConfigError(
            f"teacher.function={path!r} names no function. Write package.module:function, for example "
            "examples.teachers:keep_pole_upright."
        )
    try:
        with _importable_working_directory():
            module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # The user's own module may raise anything while it is imported.
        raise ConfigError(
            f"teacher.function={path!r}: the module {module_name!r} cannot be imported ({type(error).__name__}: "
            f"{error}). Run from the folder that holds it, or put that folder on PYTHONPATH."
        ) from error
    known = {key: value for key, value in vars(module).items() if inspect.isfunction(value) and not key.startswith("_")}
    if name not in vars(module):
        raise ConfigError(
            f"teacher.function={path!r}: there is no {name!r} in {module_name}. Functions there: "
            f"{', '.join(sorted(known)) or 'none'}."
        )
    function = vars(module)[name]
    if not (callable(function) and _takes_two(function)):
        what = f"{name}{_signature(function)}" if callable(function) else f"of type {type(function).__name__}"
        raise ConfigError(
            f"teacher.function={path!r} is {what}. Give a function that can be called with two segments, (left, right)."
        )
    chosen: Callable[[Any, Any], Any] = function
    return chosen


@contextmanager
def _importable_working_directory() -> Iterator[None]:
    """Puts the working directory first on the import path, as `python -m` does and the `themis` command does not."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    # A module written since the last import from this folder would not be seen.
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(folder)


def _takes_two(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        return False
    except ValueError:  # Some compiled functions tell nothing about their arguments.
        return True
    return True


def _signature(function: Callable[..., Any]) -> str:
    try:
        return str(inspect.signature(function))
    except ValueError:
        return "(...)"
