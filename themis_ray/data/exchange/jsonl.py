"""Datasets as two files of JSON lines, exact to the bit, for programs that read no Parquet."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from themis_ray.data.exchange.batches import BATCH_BYTES, Batch
from themis_ray.data.preferences import Choice, Preference
from themis_ray.data.segments import ID_BYTES, Segment, query_id
from themis_ray.errors import DataError

__all__ = ["read_jsonl", "write_jsonl"]

SEGMENT_FIELDS = (
    "segment_id",
    "env_id",
    "episode_id",
    "start_step",
    "length",
    "observations",
    "observation_shape",
    "observation_dtype",
    "actions",
    "action_shape",
    "action_dtype",
    "true_rewards",
)
PREFERENCE_FIELDS = (
    "query_id",
    "left_id",
    "right_id",
    "choice",
    "teacher",
    "feedback_session",
    "num_env_steps",
    "asked_at",
    "answered_at",
)
DTYPES = ("bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))
FLOAT_DTYPES = ("float16", "float32", "float64")
# Largest value of each whole number, which Parquet has a column for.
WHOLE_NUMBERS = {"start_step": 2**63, "length": 2**31, "feedback_session": 2**31, "num_env_steps": 2**63}
NOT_TEXT = {*WHOLE_NUMBERS, "observations", "observation_shape", "actions", "action_shape", "true_rewards"}
CONTENT_ID = re.compile(f"[0-9a-f]{{{2 * ID_BYTES}}}")

Row = dict[str, Any]


def write_jsonl(batches: Iterable[Batch], root: Path) -> None:
    """Writes segments.jsonl and preferences.jsonl, one object a line, under the names of the Parquet columns.

    Arrays are flat lists in C order beside their shape and dtype. A number that is not finite is a string: "inf",
    "-inf" or "nan", and a NaN of other bits than numpy's carries them, as in "nan:ffc00000".
    """
    root.mkdir(parents=True, exist_ok=True)
    with (
        (root / "segments.jsonl").open("w", encoding="utf-8") as segments,
        (root / "preferences.jsonl").open("w", encoding="utf-8") as preferences,
    ):
        for batch in batches:
            segments.writelines(_line(_segment_row(segment)) for segment in batch.segments)
            preferences.writelines(_line(_preference_row(preference)) for preference in batch.preferences)


def read_jsonl(root: Path) -> Iterator[Batch]:
    """Reads what `write_jsonl` writes, or a file made by hand.

    A `segment_id` of 32 hexadecimal digits must be the id of the content. Any other text is a name within these two
    files; the segment gets the id of its content. `query_id` is checked against the pair in the first case.

    Raises:
        DataError: A file is missing, or a line is damaged; the message names the line.
    """
    paths = [root / f"{name}.jsonl" for name in ("segments", "preferences")]
    for path in paths:
        if not path.is_file():
            raise DataError(
                f"{path} is missing. A JSONL dataset is a folder with segments.jsonl and preferences.jsonl."
            )
    num_bytes = max(1, sum(path.stat().st_size for path in paths))
    ids: dict[str, str] = {}

    def parse_segment(row: Row) -> Segment:
        name = row["segment_id"]
        if name in ids:
            raise ValueError(f"segment_id {name!r} is there twice")
        segment = _parse_segment(row)
        ids[name] = segment.id
        return segment

    num_read = 0
    for rows, num_read in _read_lines(paths[0], SEGMENT_FIELDS, parse_segment):
        yield Batch(segments=rows, share=num_read / num_bytes)
    for answers, more in _read_lines(paths[1], PREFERENCE_FIELDS, lambda row: _parse_preference(row, ids)):
        yield Batch(preferences=answers, share=(num_read + more) / num_bytes)


def _line(row: Row) -> str:
    return json.dumps(row, allow_nan=False, ensure_ascii=False, separators=(",", ":")) + "\n"


def _segment_row(segment: Segment) -> Row:
    return {
        "segment_id": segment.id,
        "env_id": segment.env_id,
        "episode_id": segment.episode_id,
        "start_step": segment.start_step,
        "length": len(segment),
        "observations": _to_numbers(segment.observations),
        "observation_shape": segment.observations.shape[1:],
        "observation_dtype": segment.observations.dtype.name,
        "actions": _to_numbers(segment.actions),
        "action_shape": segment.actions.shape[1:],
        "action_dtype": segment.actions.dtype.name,
        "true_rewards": _to_numbers(segment.true_rewards),
    }


def _preference_row(preference: Preference) -> Row:
    row = {name: getattr(preference, name) for name in PREFERENCE_FIELDS}
    return {**row, **{name: row[name].isoformat() for name in ("asked_at", "answered_at")}}


def _read_lines(path: Path, fields: Sequence[str], parse: Callable[[Row], Any]) -> Iterator[tuple[list[Any], int]]:
    """Parses lines in batches; yields the parsed rows and how many bytes were read so far."""
    rows: list[Any] = []
    num_read = num_yielded = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            num_read += len(line)
            try:
                row = json.loads(line)
                _check_fields(row, fields)
                rows.append(parse(row))
            # TypeError and OverflowError: a value of another type or size than its field has.
            except (ValueError, TypeError, OverflowError, RecursionError) as error:
                raise DataError(f"{path} line {number} cannot be read ({error}). Repair or delete it.") from error
            if num_read - num_yielded >= BATCH_BYTES:
                yield rows, num_read
                rows, num_yielded = [], num_read
    yield rows, num_read


def _check_fields(row: Any, fields: Sequence[str]) -> None:
    if not isinstance(row, dict):
        raise ValueError(f"it is no object but a {type(row).__name__}")
    missing = [name for name in fields if name not in row and name != "query_id"]
    unknown = [name for name in row if name not in fields]
    if missing or unknown:
        what = f"field {missing[0]!r} is missing" if missing else f"unknown field {unknown[0]!r}"
        raise ValueError(f"{what}; fields: {', '.join(fields)}")
    for name, value in row.items():
        if name in WHOLE_NUMBERS:
            if type(value) is not int or not 0 <= value < WHOLE_NUMBERS[name]:
                raise ValueError(f"{name} must be a whole number from 0 to {WHOLE_NUMBERS[name] - 1}")
        elif name not in NOT_TEXT:
            if not isinstance(value, str) or not value:
                raise ValueError(f"{name} must be text")
            value.encode()  # Half of a surrogate pair is no text that Parquet can store.


def _parse_segment(row: Row) -> Segment:
    segment = Segment.create(
        row["env_id"],
        row["episode_id"],
        row["start_step"],
        _to_array(row["observations"], row["observation_dtype"]).reshape(_shape(row, "observation_shape")),
        _to_array(row["actions"], row["action_dtype"]).reshape(_shape(row, "action_shape")),
        _to_array(row["true_rewards"], "float32"),
    )
    if CONTENT_ID.fullmatch(row["segment_id"]) and row["segment_id"] != segment.id:
        raise ValueError(f"the content of segment {row['segment_id']} has changed")
    return segment


def _shape(row: Row, name: str) -> tuple[int, ...]:
    if not isinstance(row[name], list) or not all(type(size) is int and 0 <= size < 2**31 for size in row[name]):
        raise ValueError(f"{name} must be a list of whole numbers")
    return row["length"], *row[name]


def _parse_preference(row: Row, ids: Mapping[str, str]) -> Preference:
    for name in ("left_id", "right_id"):
        if row[name] not in ids:
            raise ValueError(f"{name} {row[name]!r} is not in segments.jsonl")
    left_id, right_id = ids[row["left_id"]], ids[row["right_id"]]
    has_content_ids = (left_id, right_id) == (row["left_id"], row["right_id"])
    if has_content_ids and row.get("query_id", query_id(left_id, right_id)) != query_id(left_id, right_id):
        raise ValueError(f"query_id {row['query_id']} is not that of left_id and right_id")
    return Preference(
        query_id(left_id, right_id),
        left_id,
        right_id,
        Choice(row["choice"]),
        row["teacher"],
        row["feedback_session"],
        row["num_env_steps"],
        _parse_time(row["asked_at"]),
        _parse_time(row["answered_at"]),
    )


def _parse_time(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    return time if time.tzinfo is None else time.astimezone(UTC)


def _to_numbers(array: NDArray[Any]) -> list[Any]:
    flat = np.ascontiguousarray(array).reshape(-1)
    numbers: list[Any] = flat.tolist()
    if array.dtype.kind == "f":
        standard = np.array(np.nan, array.dtype).tobytes()
        for i in np.flatnonzero(~np.isfinite(flat)):
            content = flat[i].tobytes()
            is_special = np.isnan(flat[i]) and content != standard
            numbers[i] = f"nan:{content[::-1].hex()}" if is_special else str(numbers[i])
    return numbers


def _to_array(numbers: Any, dtype: str) -> NDArray[Any]:
    if not isinstance(numbers, list):
        raise ValueError("observations, actions and true_rewards must be flat lists of numbers")
    if dtype in FLOAT_DTYPES:
        special = [i for i, number in enumerate(numbers) if type(number) not in (int, float)]
        plain = list(numbers)
        for i in special:
            plain[i] = 0.0
        with np.errstate(over="ignore"):
            array = np.array(plain, dtype)
        if not np.isfinite(array).all():
            raise ValueError(f"a value is too large for {dtype}")
        for i in special:
            array[i] = _parse_special(numbers[i], array.dtype)
        return array
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is none of {', '.join((*DTYPES, *FLOAT_DTYPES))}")
    kind = bool if dtype == "bool" else int
    if not all(type(number) is kind for number in numbers):
        raise ValueError(f"a value is no {kind.__name__}, though the dtype is {dtype}")
    return np.array(numbers, dtype)


def _parse_special(text: Any, dtype: np.dtype[Any]) -> Any:
    if text in ("nan", "inf", "-inf"):
        return dtype.type(text)
    if not isinstance(text, str) or not text.startswith("nan:"):
        raise ValueError(f"{str(text)[:40]!r} is no number")
    (value,) = np.frombuffer(bytes.fromhex(text[4:])[::-1], dtype)
    return value
