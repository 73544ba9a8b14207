"""What simulated annotators know of clips: the true rewards that a run puts into `about` of its queries.

Only a token of the study can read them. What follows from them is said by a synthetic teacher (B-Pref,
`themis_ray.feedback.teachers`); of clips without rewards the one is preferred whose name is drawn better, by all of
them the same one.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from themis_ray.data import Choice, Query, Segment
from themis_ray.feedback import SyntheticTeacher, TeacherParameters
from themis_ray.feedback.study_client import StudyClient
from themis_ray.labeling.store.draws import draw

__all__ = ["Truths"]

Rewards = NDArray[np.float64]

REFRESH_S = 2.0


class Truths:
    """True rewards of the pairs of clips that a study shows, read with a token when somebody meets a pair.

    Args:
        client: With a token of the study; None knows no rewards.
        study: Its id.
    """

    def __init__(self, client: StudyClient | None, study: str) -> None:
        self._client = client
        self._study = study
        self._pairs: dict[tuple[str, str], Rewards] = {}
        self._known: set[tuple[str, str]] = set()  # with or without rewards
        self._read_at = -REFRESH_S
        self._lock = asyncio.Lock()
        self._returns: NDArray[np.float64] = np.empty(0)
        self._length = 1

    async def rewards(self, left: str, right: str) -> Rewards:
        """Returns the rewards of two clips, (2, L)."""
        asked_at = time.monotonic()
        while (left, right) not in self._known and self._client is not None:
            async with self._lock:
                if (left, right) in self._known or self._read_at >= asked_at:
                    break
                await asyncio.sleep(self._read_at + REFRESH_S - time.monotonic())
                began = time.monotonic()
                await asyncio.to_thread(self._read, self._client)
                self._read_at = began
        return self._pairs.get((left, right), np.array([[draw(left)], [draw(right)]]))

    def _read(self, client: StudyClient) -> None:
        for row in client.queries(self._study):
            rewards = row["about"].get("true_rewards")
            left, right = (row[side]["clip"] for side in ("left", "right" if row["right"] else "left"))
            self._known |= {(left, right), (right, left)}
            if rewards is None or row["right"] is None:
                continue
            pair = np.asarray(rewards, np.float64)
            self._pairs[left, right], self._pairs[right, left] = pair, pair[::-1]
        if self._pairs:
            self._returns = np.array([pair.sum(axis=1) for pair in self._pairs.values()])
            self._length = next(iter(self._pairs.values())).shape[1]

    def choose(self, rewards: Rewards, teacher: TeacherParameters, rng: np.random.Generator) -> Choice:
        """Returns what a teacher says of rewards (2, L).

        A synthetic teacher skips a share of a batch; here the batch is all that the study holds.
        """
        best = self._returns.max(axis=1) if len(self._returns) else np.empty(0)
        if teacher.eps_skip and len(best) and rewards.sum(axis=1).max() < np.quantile(best, teacher.eps_skip):
            return Choice.SKIP
        sides = [_to_segment(number, row) for number, row in enumerate(rewards)]
        returns = self._returns.reshape(-1)
        recent = (returns, np.full(len(returns), self._length, np.int64))
        (choice,) = SyntheticTeacher("simulated", replace(teacher, eps_skip=0.0)).answer([Query(*sides)], rng, recent)
        return choice

    def rank(self, rewards: Rewards) -> float:
        """Returns the share of known clips whose return is not above that of rewards (L,), from 0 to 1."""
        if not len(self._returns):
            return float(rewards.mean().clip(0.0, 1.0))
        return float((self._returns <= rewards.sum()).mean())


def _to_segment(number: int, rewards: Rewards) -> Segment:
    """Returns a segment with these rewards; the number keeps two sides with equal rewards apart."""
    shown = np.full((len(rewards), 1), number, np.float32)
    return Segment.create("simulated", str(number), 0, shown, shown, rewards)
