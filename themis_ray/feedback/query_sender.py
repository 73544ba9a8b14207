"""Queries and their clips on the way to a study."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from themis_ray.data import Choice, Query, Segment
from themis_ray.errors import ConfigError
from themis_ray.feedback.segment_clips import SegmentClips
from themis_ray.feedback.study_client import StudyClient
from themis_ray.wire import MAX_CLIP_FRAMES, NewQuery, NewSide, QueryKind

__all__ = ["DrawClips", "QuerySender"]

# Returns a clip of each segment by its id.
DrawClips = Callable[[Sequence[Segment]], Mapping[str, Path]]


class QuerySender:
    """Draws what is not drawn yet, sends clips that the study does not have, then the queries.

    Sending a query again changes nothing: its id is made of its segments.

    Args:
        client: With a token of the study.
        study: Its id.
        clips: Where clips are kept.
        overlays: What draws the clips with an explanation, frame by frame the same, by its name.
    """

    def __init__(
        self, client: StudyClient, study: str, clips: SegmentClips, overlays: Mapping[str, DrawClips] | None = None
    ) -> None:
        self._client = client
        self._study = study
        self._clips = clips
        self._overlays = dict(overlays or {})
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
            ConfigError: A segment is too long for a clip, the environment draws no frames, or cannot be explained.
            DataError: A segment cannot be replayed.
            TeacherError: The service cannot be reached, or refuses.
        """
        segments = {side.id: side for query, _ in queries for side in (query.left, query.right)}
        paths = self._clips.paths(list(segments.values()))
        explained = {name: draw(list(segments.values())) for name, draw in self._overlays.items()}
        sides = {
            id_: self._send_side(segment, paths[id_], {name: drawn[id_] for name, drawn in explained.items()})
            for id_, segment in segments.items()
        }
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

    def _send_side(self, segment: Segment, path: Path, overlays: Mapping[str, Path]) -> NewSide:
        if len(segment) > MAX_CLIP_FRAMES:
            raise ConfigError(f"a segment of {len(segment)} steps is too long for a clip. Lower segment_length.")
        for clip in (path, *overlays.values()):
            if clip not in self._sent:
                self._client.upload_clip(self._study, clip)
                self._sent.add(clip)
        return NewSide(
            segment_id=segment.id,
            clip=path.name,
            num_frames=len(segment),
            clip_fps=self._clips.clip_fps,
            overlays={name: clip.name for name, clip in overlays.items()},
        )


def _true_rewards(query: Query) -> dict[str, Any]:
    """Returns what simulated annotators judge by; nothing where rewards are not finite."""
    rewards = [[float(value) for value in side.true_rewards] for side in (query.left, query.right)]
    if not all(math.isfinite(value) for side in rewards for value in side):
        return {}
    return {"true_returns": [query.left.true_return, query.right.true_return], "true_rewards": rewards}
