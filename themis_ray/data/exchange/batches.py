"""What flows between formats: pieces of a dataset, checked on the way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from themis_ray.data.preferences import Choice, Preference
from themis_ray.data.segments import Segment
from themis_ray.errors import DataError

__all__ = ["BATCH_BYTES", "Batch", "DatasetCounts", "checked"]

# Readers pass a batch on once it is this large.
BATCH_BYTES = 2**24


@dataclass(frozen=True)
class Batch:
    """A piece of a dataset. A segment comes before, or with, the first preference about it.

    Attributes:
        segments: Segments, some of which may have come before.
        preferences: Answers, in the order in which they were given.
        share: How much of the source is read, from 0 to 1.
        num_left_out: Pairs of the source that cannot be preferences: twice the same segment.
    """

    segments: Sequence[Segment] = ()
    preferences: Sequence[Preference] = ()
    share: float = 0.0
    num_left_out: int = 0


@dataclass
class DatasetCounts:
    """What was copied.

    Attributes:
        env_ids: Ids of the environments that the segments come from.
        num_segments: Different segments.
        choices: How many answers there are of each choice.
        num_left_out: Pairs that were left out, see `Batch`.
    """

    env_ids: set[str] = field(default_factory=set)
    num_segments: int = 0
    choices: dict[Choice, int] = field(default_factory=lambda: dict.fromkeys(Choice, 0))
    num_left_out: int = 0

    @property
    def num_queries(self) -> int:
        """All answers, skips too."""
        return sum(self.choices.values())


def checked(batches: Iterable[Batch], source: str, counts: DatasetCounts) -> Iterator[Batch]:
    """Passes batches on with each segment once, and counts them.

    Keeps ids and no arrays, so that memory grows by about 100 bytes a segment.

    Args:
        batches: What a reader reads.
        source: Where it comes from, for messages.
        counts: Is counted up.

    Raises:
        DataError: The source cannot be read, segments differ in length, shape or dtype, a preference is about a segment
            that did not come before it, or there is no preference at all.
    """
    known: set[str] = set()
    layout: tuple[Any, ...] | None = None
    for batch in _readable(batches, source):
        new = []
        for segment in batch.segments:
            if segment.id in known:
                continue
            layout = layout or _layout(segment)
            if _layout(segment) != layout:
                raise DataError(
                    f"{source} mixes segments of (length, shapes, dtypes) {layout} and {_layout(segment)}. A dataset "
                    "holds segments of one kind; split it."
                )
            known.add(segment.id)
            counts.env_ids.add(segment.env_id)
            new.append(segment)
        for preference in batch.preferences:
            for segment_id in (preference.left_id, preference.right_id):
                if segment_id not in known:
                    raise DataError(f"{source}: a preference is about segment {segment_id}, which is not there.")
            counts.choices[preference.choice] += 1
        counts.num_segments += len(new)
        counts.num_left_out += batch.num_left_out
        yield Batch(new, batch.preferences, batch.share)
    if not counts.num_queries:
        raise DataError(f"{source} holds no preferences. Give a dataset with answers.")


def _readable(batches: Iterable[Batch], source: str) -> Iterator[Batch]:
    """Tells errors of the disk that is read from those of the disk that is written."""
    try:
        yield from batches
    except OSError as error:
        raise DataError(f"{source} cannot be read ({error.strerror or error}). Give a file you may read.") from error


def _layout(segment: Segment) -> tuple[Any, ...]:
    arrays = (segment.observations, segment.actions)
    return len(segment), *((array.shape[1:], array.dtype.name) for array in arrays)
