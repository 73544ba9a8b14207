"""Queries and their clips on the way to a study."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from themis_ray.data import Choice, Query, Segment
from themis_ray.errors import ConfigError
from themis_ray.feedback.segment_clips import SegmentClips
from themis_ray.feedback.study_client import StudyClient
from themis_ray.wire import MAX_CLIP_FRAMES, NewQuery, NewSide, QueryKind

__all__ = ["QuerySender"]


class QuerySender:
    """Draws what is not drawn yet, sends clips that the study does not have, then the queries.

    Sending a query again changes nothing: its id is made of its segments.

    Args:
        client: With a token of the study.
        study: Its id.
        clips: Where clips are kept.
    """

    def __init__(self, client: StudyClient, study: str, clips: SegmentClips) -> None:
        self._client = client
        self._study = study
        self._clips = clips
        self._sent: set[Path] = set()

    def send(
        self,
        queries: Sequence[tuple[Query, Mapping[str, Any]]],
        kind: QueryKind = "ordinary",
        gold_choices: Mapping[str, Choice] | None = None,
    ) -> None:
        """Puts queries to people.

        Args:
            queries: Each with where it comes from; what only programs may know is added.
            kind: What they are for.
            gold_choices: The right answers by id of the query; of gold and practice.

        Raises:
            ConfigError: A segment is too long for a clip, or the environment draws no frames.
            DataError: A segment cannot be replayed.
            TeacherError: The service cannot be reached, or refuses.
        """
        segments = {side.id: side for query, _ in queries for side in (query.left, query.right)}
        paths = self._clips.paths(list(segments.values()))
        sides = {id_: self._send_clip(segments[id_], path) for id_, path in paths.items()}
        rows = [
            NewQuery(
                id=query.id,
                kind=kind,
                left=sides[query.left.id],
                right=sides[query.right.id],
                gold_choice=None if gold_choices is None else gold_choices[query.id],
                about={**about, **_true_rewards(query)},
            )
            for query, about in queries
        ]
        self._client.add_queries(self._study, rows)

    def _send_clip(self, segment: Segment, path: Path) -> NewSide:
        if len(segment) > MAX_CLIP_FRAMES:
            raise ConfigError(f"a segment of {len(segment)} steps is too long for a clip. Lower segment_length.")
        if path not in self._sent:
            self._client.upload_clip(self._study, path)
            self._sent.add(path)
        return NewSide(segment_id=segment.id, clip=path.name, num_frames=len(segment), clip_fps=self._clips.clip_fps)


def _true_rewards(query: Query) -> dict[str, Any]:
    """Returns what simulated annotators judge by; nothing where rewards are not finite."""
    rewards = [[float(value) for value in side.true_rewards] for side in (query.left, query.right)]
    if not all(math.isfinite(value) for side in rewards for value in side):
        return {}
    return {"true_returns": [query.left.true_return, query.right.true_return], "true_rewards": rewards}
