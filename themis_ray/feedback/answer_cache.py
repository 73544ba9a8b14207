"""What a judge answered and what it cost, kept in a file so that no query is paid twice."""

from __future__ import annotations

import json
import logging
import os
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from themis_ray.data import Choice
from themis_ray.errors import DataError
from themis_ray.feedback.chat_endpoint import Spending

__all__ = ["AnswerCache"]

logger = logging.getLogger("themis_ray")


class AnswerCache:
    """Paid answers by query id, appended to a JSONL file as they come, so that no query is paid twice.

    Each line holds query_id, choice (null where calls gave no answer), num_calls, cost, dearest (the cost of the
    dearest call), model, asked and answered_at. Lines that cannot be read, such as the unfinished last one of a killed
    run, are asked again. So are those of another model, or asked something else; what they cost still counts.

    Args:
        path: The file; None keeps answers in memory.
        model: Whose answers these are.
        asked: A digest of how they are asked. Lines of older versions have none and fit any.

    Raises:
        DataError: There is such a file, and it cannot be read.
    """

    def __init__(self, path: Path | None, model: str, asked: str) -> None:
        self.path = path
        self.answers: dict[str, Choice] = {}
        self.spending = Spending()
        self._model = model
        self._asked = asked
        self._lock = threading.Lock()
        self._needs_line_break = False
        if path is not None and path.exists():
            self._load(path)

    def add(self, query_id: str, choice: Choice | None, spending: Spending) -> None:
        """Keeps an answer and what it took; safe from several threads.

        Raises:
            DataError: The file cannot be written.
        """
        now = datetime.now(UTC).isoformat(timespec="seconds")
        line = {
            "query_id": query_id,
            "choice": None if choice is None else str(choice),
            "num_calls": spending.num_calls,
            "cost": spending.cost,
            "dearest": spending.dearest,
            "model": self._model,
            "asked": self._asked,
            "answered_at": now,
        }
        with self._lock:
            self._count(query_id, choice, spending)
            if self.path is not None:
                self._append(self.path, json.dumps(line))

    def _append(self, path: Path, line: str) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write("\n" * self._needs_line_break + line + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise DataError(f"the judge's answers cannot be written to {path} ({error.strerror}).") from error
        self._needs_line_break = False

    def _load(self, path: Path) -> None:
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise DataError(
                f"the judge's answers in {path} cannot be read ({error.strerror}). Move it away to ask again."
            ) from error
        num_broken, num_others = 0, 0
        for line in text.splitlines():
            try:
                row = json.loads(line)
                choice = None if row["choice"] is None else Choice(row["choice"])
                if (row["model"], row.get("asked", self._asked)) != (self._model, self._asked):
                    num_others += choice is not None
                    choice = None
                self._count(str(row["query_id"]), choice, _spending(row))
            except (ValueError, KeyError, TypeError):
                num_broken += bool(line.strip())
        self._needs_line_break = bool(text) and not text.endswith("\n")
        if num_broken:
            logger.warning("%d lines of %s cannot be read; their queries are asked again.", num_broken, path)
        if num_others:
            logger.warning(
                "%d answers in %s are of another model, prompt or number of frames; their queries are asked again.",
                num_others,
                path,
            )

    def _count(self, query_id: str, choice: Choice | None, spending: Spending) -> None:
        if choice is not None:
            self.answers[query_id] = choice
        self.spending.add(spending)


def _spending(row: dict[str, Any]) -> Spending:
    """Returns what a line of the file says was spent.

    Lines of older versions do not tell the dearest call. It cost no more than all of them, so no limit is passed.
    """
    cost = max(0.0, float(row["cost"]))
    return Spending(int(row["num_calls"]), cost, float(row.get("dearest", cost)))
