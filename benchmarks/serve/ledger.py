"""The ledger: what was acknowledged, compared with what is stored when all is over."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["check_ledger"]

SWAPPED = {"left": "right", "right": "left"}


def check_ledger(database: Path, acknowledged: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Compares what was acknowledged with what is stored."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        stored = {
            answer: (assignment, choice, bool(is_flipped))
            for answer, assignment, choice, is_flipped in connection.execute(
                "SELECT answer.id, assignment_id, choice, is_flipped FROM answer "
                "JOIN assignment ON assignment.id = answer.assignment_id"
            )
        }

        def count(query: str) -> int:
            return int(connection.execute(query).fetchone()[0] or 0)

        doubled = count(
            "SELECT SUM(n - 1) FROM (SELECT COUNT(*) AS n FROM answer WHERE NOT is_undone GROUP BY assignment_id)"
        ) + count(
            "SELECT SUM(n - 1) FROM (SELECT COUNT(*) AS n FROM answer JOIN assignment ON assignment.id = assignment_id "
            "WHERE NOT is_undone GROUP BY answer.annotator_id, answer.query_id, repeat)"
        )
        over = count(
            "SELECT SUM(MAX(0, n - overlap)) FROM (SELECT query.overlap, COUNT(*) AS n FROM answer "
            "JOIN query ON query.study_id = answer.study_id AND query.id = answer.query_id "
            "WHERE NOT is_undone AND kind = 'ordinary' GROUP BY query.study_id, query.id)"
        )
        miscounted = count(
            "SELECT COUNT(*) FROM query WHERE num_answers != (SELECT COUNT(*) FROM answer "
            "WHERE answer.study_id = query.study_id AND answer.query_id = query.id AND NOT is_undone)"
        )
    num_lost = num_changed = 0
    for answer, assignment, choice in acknowledged:
        if answer not in stored:
            num_lost += 1
            continue
        kept_assignment, kept_choice, is_flipped = stored[answer]
        given = SWAPPED.get(choice, choice) if is_flipped else choice
        num_changed += (kept_assignment, kept_choice) != (assignment, given)
    return {
        "lost": num_lost + num_changed,
        "doubled": doubled,
        "over_collected": over,
        "changed": num_changed,
        "miscounted": miscounted,
        "stored": len(stored),
        "acknowledged": len(acknowledged),
        "stored_unacknowledged": len(stored) - (len(acknowledged) - num_lost),
    }
