"""All answers of a run on disk: append-only Parquet that any program can read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from themis_ray.data import parquet
from themis_ray.data.asked import AskedQuery, Withdrawal
from themis_ray.data.evaluations import (
    EVALUATION_FOLDERS,
    MIN_NUM_LEVELS,
    Demonstration,
    EvaluatedSegments,
    Evaluation,
    Rating,
    StepFeedback,
)
from themis_ray.data.pairs import LabelledPairs
from themis_ray.data.preferences import Choice, Preference, left_probability
from themis_ray.data.segments import Origin, Query, Segment
from themis_ray.errors import DataError
from themis_ray.files import whole

Row = TypeVar("Row")


class PreferenceDataset:
    """Segments and preferences in numbered Parquet parts below one folder.

    `preferences/part-00000.parquet` holds the answers of one feedback session,
    `segments/part-00000.parquet` the segments that were new in one, `episodes/part-00000.parquet`
    how to come to their first steps again; `ratings`, `step_feedback` and `demonstrations` hold
    what was said about single segments. `queries` holds what was put to people, who answer later
    and may be several for one query; `withdrawals` names answers that no longer count, which no
    property shows. A part is written to a hidden file, synced and moved into place, and never
    touched again. Episodes go first, then segments, so that a crash leaves at worst what nothing
    refers to.

    Args:
        root: The folder. It is made by the first `append`.

    Raises:
        DataError: A part is missing, corrupt or of another schema version, or an answer
            refers to a segment that is not stored.
    """

    SCHEMA_VERSION = parquet.SCHEMA_VERSION

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self._segments: dict[str, Segment] = {}
        self._preferences: list[Preference] = []
        self._evaluations: dict[str, list[Evaluation]] = {folder: [] for folder in EVALUATION_FOLDERS}
        self._asked: dict[str, AskedQuery] = {}
        self._withdrawals: dict[str, Withdrawal] = {}
        self._answer_ids: set[str] = set()
        self._num_answers_stored = 0
        self._num_unasked = 0
        kinds = ("episodes", "segments", "queries", "preferences", "withdrawals", *EVALUATION_FOLDERS)
        self._num_parts = dict.fromkeys(kinds, 0)
        origins: dict[str, Origin] = {}
        for _, stored_origins in self._load_parts("episodes", parquet.read_origins):
            for episode_id, origin in stored_origins:
                origins[episode_id] = _longer(origins.get(episode_id), origin)
        for _, segments in self._load_parts("segments", parquet.read_segments):
            for segment in segments:
                self._segments.setdefault(segment.id, _with_origin(segment, origins.get(segment.episode_id)))
        for path, queries in self._load_parts("queries", parquet.read_queries):
            for query in queries:
                self._require_segments(path, query.left_id, query.right_id)
                self._asked.setdefault(query.query_id, query)
        for path, preferences in self._load_parts("preferences", parquet.read_preferences):
            for preference in preferences:
                self._require_segments(path, preference.left_id, preference.right_id)
            self._take_in(preferences)
        for _, withdrawals in self._load_parts("withdrawals", parquet.read_withdrawals):
            self._leave_out(withdrawals)
        for folder, stored in self._evaluations.items():
            for path, evaluations in self._load_parts(folder, partial(parquet.read_evaluations, folder=folder)):
                self._require_segments(path, *(evaluation.segment_id for evaluation in evaluations))
                stored.extend(evaluations)

    @property
    def num_queries(self) -> int:
        """Answers to queries, skips too. Where several people answer one query, each answer counts."""
        return len(self._preferences)

    @property
    def num_preferences(self) -> int:
        """Answers to queries that are left, right or equal."""
        return sum(preference.choice is not Choice.SKIP for preference in self._preferences)

    @property
    def preferences(self) -> tuple[Preference, ...]:
        """All answers in the order they were appended, skips too."""
        return tuple(self._preferences)

    @property
    def ratings(self) -> tuple[Rating, ...]:
        """All ratings in the order they were appended."""
        return tuple(row for row in self._evaluations["ratings"] if isinstance(row, Rating))

    @property
    def step_feedback(self) -> tuple[StepFeedback, ...]:
        """All judged segments in the order they were appended."""
        return tuple(row for row in self._evaluations["step_feedback"] if isinstance(row, StepFeedback))

    @property
    def demonstrations(self) -> tuple[Demonstration, ...]:
        """All demonstrations in the order they were appended."""
        return tuple(row for row in self._evaluations["demonstrations"] if isinstance(row, Demonstration))

    @property
    def evaluations(self) -> tuple[Evaluation, ...]:
        """Ratings, then judged segments, then demonstrations."""
        return tuple(row for rows in self._evaluations.values() for row in rows)

    @property
    def num_questions(self) -> int:
        """Questions that were asked: queries, ratings and judged segments; a demonstration is none.

        A query that waits for its answer is one; one that several people have answered is one, not several.
        """
        return len(self._asked) + self._num_unasked + self._num_evaluations

    @property
    def num_changes(self) -> int:
        """Answers that were ever stored and answers that were withdrawn; what is learned changes when this grows."""
        return self._num_answers_stored + len(self._withdrawals) + self._num_evaluations

    @property
    def _num_evaluations(self) -> int:
        return len(self._evaluations["ratings"]) + len(self._evaluations["step_feedback"])

    @property
    def asked(self) -> Mapping[str, AskedQuery]:
        """All queries that were put to people, by id, in the order they were asked."""
        return MappingProxyType(self._asked)

    @property
    def withdrawals(self) -> tuple[Withdrawal, ...]:
        """The tombstones of answers that no longer count."""
        return tuple(self._withdrawals.values())

    @property
    def answer_ids(self) -> AbstractSet[str]:
        """Ids of all answers that were ever stored, withdrawn ones too; answers without an id have none here."""
        return self._answer_ids

    def num_missing(self, overlap: int = 1) -> dict[str, int]:
        """Returns how many answers each asked query waits for, those that have all left out.

        Args:
            overlap: Answers wanted of each.
        """
        counts = Counter(preference.query_id for preference in self._preferences)
        missing = {query_id: overlap - counts[query_id] for query_id in self._asked}
        return {query_id: number for query_id, number in missing.items() if number > 0}

    @property
    def last_feedback_session(self) -> int:
        """Number of the last session in which something was asked; -1 before the first."""
        rows: tuple[Preference | Evaluation | AskedQuery, ...]
        rows = (*self._preferences[-1:], *list(self._asked.values())[-1:], *self.ratings[-1:], *self.step_feedback[-1:])
        return max((row.feedback_session for row in rows), default=-1)

    @property
    def segments(self) -> tuple[Segment, ...]:
        """All stored segments in the order they were appended."""
        return tuple(self._segments.values())

    def segment(self, segment_id: str) -> Segment:
        """Returns the stored segment with this id.

        Raises:
            DataError: No segment has it.
        """
        if segment_id not in self._segments:
            raise DataError(f"no segment {segment_id} in {self.root}/segments")
        return self._segments[segment_id]

    def append(self, queries: Sequence[Query], preferences: Sequence[Preference]) -> None:
        """Stores one feedback session: its new segments, then its preferences.

        Args:
            queries: What was asked.
            preferences: The answers, one for each query, in the same order.

        Raises:
            ValueError: The preferences are not the answers to the queries, an answer id is stored already, or a
                segment's length, shapes or dtypes differ from those stored.
            DataError: Another program has written to the folder since it was loaded, or it cannot be written.
        """
        _check_answers(queries, preferences)
        ids = [preference.answer_id for preference in preferences if preference.answer_id]
        if len(set(ids)) < len(ids) or not self._answer_ids.isdisjoint(ids):
            raise ValueError("an answer with the same id is stored already")
        if not queries:
            return
        self._append_segments([segment for query in queries for segment in (query.left, query.right)])
        self._write_part("preferences", [parquet.preference_table(preferences)])
        self._take_in(preferences)

    def append_asked(self, queries: Sequence[Query], asked: Sequence[AskedQuery]) -> None:
        """Stores queries that are about to be put to people: their new segments, then the queries.

        Args:
            queries: What is asked.
            asked: When and by whom, one for each query, in the same order.

        Raises:
            ValueError: The rows are not those of the queries, a query was asked before, or a segment's length, shapes
                or dtypes differ from those stored.
            DataError: Another program has written to the folder since it was loaded, or it cannot be written.
        """
        _check_answers(queries, asked)
        new = {row.query_id: row for row in asked}
        if len(new) < len(asked) or not new.keys().isdisjoint(self._asked):
            raise ValueError("a query that waits for answers, or has them, is not asked again")
        if not queries:
            return
        self._append_segments([segment for query in queries for segment in (query.left, query.right)])
        self._write_part("queries", [parquet.query_table(asked)])
        self._asked.update(new)

    def withdraw(self, withdrawals: Sequence[Withdrawal]) -> None:
        """Stores tombstones; from now on the answers that they name are left out everywhere.

        Raises:
            ValueError: No stored answer has such an id, or it is withdrawn already.
            DataError: Another program has written to the folder since it was loaded, or it cannot be written.
        """
        ids = [row.answer_id for row in withdrawals]
        counted = {preference.answer_id for preference in self._preferences}
        if len(set(ids)) < len(ids) or not counted.issuperset(ids):
            raise ValueError("only answers that are stored and count can be withdrawn, each once")
        if withdrawals:
            self._write_part("withdrawals", [parquet.withdrawal_table(withdrawals)])
            self._leave_out(withdrawals)

    def _take_in(self, preferences: Sequence[Preference]) -> None:
        self._preferences.extend(preferences)
        self._answer_ids.update(preference.answer_id for preference in preferences if preference.answer_id)
        self._num_answers_stored += len(preferences)
        self._num_unasked += sum(preference.query_id not in self._asked for preference in preferences)

    def _leave_out(self, withdrawals: Sequence[Withdrawal]) -> None:
        self._withdrawals.update((row.answer_id, row) for row in withdrawals)
        self._preferences = [row for row in self._preferences if row.answer_id not in self._withdrawals]

    def append_evaluations(self, segments: Sequence[Segment], evaluations: Sequence[Evaluation]) -> None:
        """Stores evaluations of one kind: their new segments, then the evaluations.

        Args:
            segments: What was asked about or shown.
            evaluations: One for each segment, in the same order.

        Raises:
            ValueError: The evaluations are not about the segments, not of one kind or not of one scale, or a segment's
                length, shapes or dtypes differ from those stored.
            DataError: Another program has written to the folder since it was loaded, or it cannot be written.
        """
        folder = self._check_evaluations(segments, evaluations)
        if folder is None:
            return
        self._append_segments(segments)
        self._write_part(folder, [parquet.evaluation_table(folder, evaluations)])
        self._evaluations[folder].extend(evaluations)

    def evaluated_segments(self, own: Sequence[Segment] = ()) -> EvaluatedSegments | None:
        """Returns all evaluations as training data; None when there are none, or nothing but steps without an opinion.

        Args:
            own: Segments of the learner, which demonstrations are preferred to; without any, demonstrations are left
                out. They are not stored.
        """
        shown = self.demonstrations if own else ()
        if not (self.ratings or shown or any(any(row.values) for row in self.step_feedback)):
            return None
        known = {segment.id: segment for segment in own} if shown else {}
        known |= {row.segment_id: self._segments[row.segment_id] for row in self.evaluations}
        rows = {segment_id: row for row, segment_id in enumerate(known)}
        return EvaluatedSegments(
            observations=np.stack([segment.observations for segment in known.values()]),
            actions=np.stack([segment.actions for segment in known.values()]),
            rated=np.array([rows[row.segment_id] for row in self.ratings], np.int64),
            levels=np.array([row.level for row in self.ratings], np.int64),
            num_levels=self.ratings[0].num_levels if self.ratings else MIN_NUM_LEVELS,
            judged=np.array([rows[row.segment_id] for row in self.step_feedback], np.int64),
            step_values=np.array([row.values for row in self.step_feedback], np.int8).reshape(
                len(self.step_feedback), -1 if self.step_feedback else 0
            ),
            shown=np.array([rows[row.segment_id] for row in shown], np.int64),
            own=np.array([rows[segment.id] for segment in own] if shown else [], np.int64),
        )

    def _append_segments(self, segments: Sequence[Segment]) -> None:
        """Stores those that are new."""
        asked = {segment.id: segment for segment in segments}
        new = [segment for segment_id, segment in asked.items() if segment_id not in self._segments]
        for segment in new:
            stored = next(iter(self._segments.values()), new[0])
            if _layout(segment) != _layout(stored):
                raise ValueError(
                    f"segments must have (length, shapes, dtypes) {_layout(stored)}, not {_layout(segment)}"
                )
        if not new:
            return
        origins: dict[str, Origin] = {}
        for segment in new:
            if segment.origin is not None:
                origins[segment.episode_id] = _longer(origins.get(segment.episode_id), segment.origin)
        if origins:
            self._write_part("episodes", [parquet.episode_table(origins)])
        self._write_part("segments", parquet.segment_tables(new))
        # Copies, as the arrays may be views that keep a whole episode pool in memory.
        owned = {
            episode_id: replace(origin, earlier_actions=origin.earlier_actions.copy())
            for episode_id, origin in origins.items()
        }
        self._segments.update((segment.id, _owning(segment, owned.get(segment.episode_id))) for segment in new)

    def _check_evaluations(self, segments: Sequence[Segment], evaluations: Sequence[Evaluation]) -> str | None:
        """Returns the folder of the kind; None when there is nothing to store."""
        if [segment.id for segment in segments] != [evaluation.segment_id for evaluation in evaluations]:
            raise ValueError("every segment needs one evaluation of its own, in the same order")
        if not evaluations:
            return None
        (folder,) = [folder for folder, kind in EVALUATION_FOLDERS.items() if isinstance(evaluations[0], kind)]
        if any(type(evaluation) is not type(evaluations[0]) for evaluation in evaluations):
            raise ValueError("evaluations of several kinds were given at once. Append each kind by itself")
        for segment, row in zip(segments, evaluations, strict=True):
            if isinstance(row, StepFeedback) and len(row.values) != len(segment):
                raise ValueError(f"a segment of {len(segment)} steps needs as many values, not {len(row.values)}")
        scales = {row.num_levels for row in (*self.ratings, *evaluations) if isinstance(row, Rating)}
        if len(scales) > 1:
            raise ValueError(f"all ratings must be of one scale, not of {sorted(scales)} levels")
        return folder

    def _require_segments(self, path: Path, *segment_ids: str) -> None:
        for segment_id in segment_ids:
            if segment_id not in self._segments:
                raise DataError(f"{path} refers to segment {segment_id}, which is not in {self.root}/segments")

    def labelled_pairs(
        self,
        label_margin: float = 0.0,
        upto: int | None = None,
        weight: Callable[[Preference], float] | None = None,
    ) -> LabelledPairs:
        """Returns the preferences as training data; skips are left out.

        Answers of people come in the order in which they were asked, not in that of their arrival, so that what is
        learned does not depend on who was quicker.

        Args:
            label_margin: See `left_probability`.
            upto: Use the first `upto` answers stored, skips counted; None uses all.
            weight: Gives the weight of a preference, for example by its teacher; None weighs all the same.

        Raises:
            ValueError: `upto` is negative, `label_margin` outside [0, 0.5), or a weight negative or not finite.
        """
        if upto is not None and upto < 0:
            raise ValueError(f"upto must be at least 0, not {upto}")
        preferences = self.labelled_preferences(upto)
        rows: dict[str, int] = {}
        pairs = [
            [rows.setdefault(id_, len(rows)) for id_ in (preference.left_id, preference.right_id)]
            for preference in preferences
        ]
        labels = [left_probability(preference.choice, label_margin) for preference in preferences]
        weights = [1.0 if weight is None else weight(preference) for preference in preferences]
        left_right = np.array(pairs, dtype=np.int64).reshape(-1, 2)
        used = [self._segments[segment_id] for segment_id in rows]
        return LabelledPairs(
            observations=np.stack([segment.observations for segment in used]) if used else np.empty((0, 0)),
            actions=np.stack([segment.actions for segment in used]) if used else np.empty((0, 0)),
            left=np.ascontiguousarray(left_right[:, 0]),
            right=np.ascontiguousarray(left_right[:, 1]),
            labels=np.array(labels, dtype=np.float32),
            weights=np.array(weights, dtype=np.float32),
        )

    def labelled_preferences(self, upto: int | None = None) -> list[Preference]:
        """Returns the preferences that `labelled_pairs` is made of, in its order: all that are no skips.

        Args:
            upto: Of the first `upto` answers stored, skips counted; None takes all.
        """
        asked = self._in_order_of_asking(self._preferences[:upto])
        return [preference for preference in asked if left_probability(preference.choice) is not None]

    def _in_order_of_asking(self, preferences: Sequence[Preference]) -> Sequence[Preference]:
        if not self._asked:
            return preferences
        places = {query_id: place for place, query_id in enumerate(self._asked)}
        return sorted(preferences, key=lambda row: places.get(row.query_id, -1))

    def _part_path(self, kind: str, number: int) -> Path:
        return self.root / kind / f"part-{number:05d}.parquet"

    def _load_parts(self, kind: str, read: Callable[[Path], list[Row]]) -> Iterable[tuple[Path, list[Row]]]:
        num_found = sum(1 for _ in (self.root / kind).glob("part-*.parquet"))
        for number in range(num_found):
            path = self._part_path(kind, number)
            if not path.exists():
                raise DataError(f"{path} is missing, though a later part is there; bring it back from a copy")
            yield path, read(path)
        self._num_parts[kind] = num_found

    def _write_part(self, kind: str, tables: Iterable[pa.Table]) -> None:
        path = self._part_path(kind, self._num_parts[kind])
        if path.exists():
            raise DataError(f"{path} was written by another program; load {self.root} again, and let one program write")
        try:
            with whole(path) as temporary:
                parquet.write(temporary, tables)
        except OSError as error:
            raise DataError(f"{path} cannot be written ({error.strerror or error}). Make room for it.") from error
        self._num_parts[kind] += 1


def _check_answers(queries: Sequence[Query], preferences: Sequence[Preference | AskedQuery]) -> None:
    if len(queries) != len(preferences):
        raise ValueError(f"every query needs one preference, not {len(preferences)} for {len(queries)} queries")
    for query, preference in zip(queries, preferences, strict=True):
        asked = (query.id, query.left.id, query.right.id)
        answered = (preference.query_id, preference.left_id, preference.right_id)
        if asked != answered:
            raise ValueError(f"the preference answers (query, left, right) {answered}, but {asked} was asked")


def _layout(segment: Segment) -> tuple[Any, ...]:
    arrays = (segment.observations, segment.actions)
    return len(segment), *((array.shape[1:], array.dtype.name) for array in arrays)


def _owning(segment: Segment, origin: Origin | None) -> Segment:
    owned = replace(
        segment,
        observations=segment.observations.copy(),
        actions=segment.actions.copy(),
        true_rewards=segment.true_rewards.copy(),
        origin=None,
    )
    return owned if segment.origin is None else _with_origin(owned, origin)


def _longer(one: Origin | None, other: Origin) -> Origin:
    return other if one is None or len(other.earlier_actions) > len(one.earlier_actions) else one


def _with_origin(segment: Segment, origin: Origin | None) -> Segment:
    """Returns the segment with its part of the origin of a later step of its episode."""
    if origin is None or len(origin.earlier_actions) < segment.start_step:
        return segment
    return replace(segment, origin=Origin(origin.reset_seed, origin.earlier_actions[: segment.start_step]))
