"""How segments, preferences and evaluations look in Parquet: schema version 1, written and read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from themis_ray.data.asked import AskedQuery, Withdrawal
from themis_ray.data.evaluations import EVALUATION_FOLDERS, Evaluation
from themis_ray.data.preferences import Preference
from themis_ray.data.segments import Origin, Segment, content_id
from themis_ray.errors import DataError

SCHEMA_VERSION = 1
VERSION_KEY = b"themis_schema_version"
ROW_GROUP_BYTES = 2**26

Row = TypeVar("Row")

_ANSWER_FIELDS = (
    ("teacher", pa.string()),
    ("feedback_session", pa.int32()),
    ("num_env_steps", pa.int64()),
    ("asked_at", pa.timestamp("us", tz="UTC")),
    ("answered_at", pa.timestamp("us", tz="UTC")),
)
PREFERENCE_FIELDS = (
    ("query_id", pa.string()),
    ("left_id", pa.string()),
    ("right_id", pa.string()),
    ("choice", pa.string()),
    *_ANSWER_FIELDS,
)
# Behind the fields of parts in which an answer has an id.
ANSWER_ID_FIELD = ("answer_id", pa.string())
QUERY_FIELDS = (
    ("query_id", pa.string()),
    ("left_id", pa.string()),
    ("right_id", pa.string()),
    ("teacher", pa.string()),
    ("feedback_session", pa.int32()),
    ("num_env_steps", pa.int64()),
    ("reward_version", pa.int32()),
    ("asked_at", pa.timestamp("us", tz="UTC")),
)
WITHDRAWAL_FIELDS = (
    ("answer_id", pa.string()),
    ("teacher", pa.string()),
    ("reason", pa.string()),
    ("withdrawn_at", pa.timestamp("us", tz="UTC")),
)
EVALUATION_FIELDS = {
    "ratings": (("segment_id", pa.string()), ("level", pa.int32()), ("num_levels", pa.int32()), *_ANSWER_FIELDS),
    "step_feedback": (("segment_id", pa.string()), ("values", pa.list_(pa.int8())), *_ANSWER_FIELDS),
    "demonstrations": (("segment_id", pa.string()), *_ANSWER_FIELDS),
}


def segment_schema(observation_type: pa.DataType, action_type: pa.DataType) -> pa.Schema:
    """Returns the columns of a segments part; array values keep their own type."""
    fields = (
        ("segment_id", pa.string()),
        ("env_id", pa.string()),
        ("episode_id", pa.string()),
        ("start_step", pa.int64()),
        ("length", pa.int32()),
        ("observations", pa.list_(observation_type)),
        ("observation_shape", pa.list_(pa.int32())),
        ("observation_dtype", pa.string()),
        ("actions", pa.list_(action_type)),
        ("action_shape", pa.list_(pa.int32())),
        ("action_dtype", pa.string()),
        ("true_rewards", pa.list_(pa.float32())),
    )
    return _versioned(fields)


def episode_schema(action_type: pa.DataType) -> pa.Schema:
    """Returns the columns of an episodes part."""
    fields = (
        ("episode_id", pa.string()),
        ("reset_seed", pa.int64()),
        ("actions", pa.list_(action_type)),
        ("action_shape", pa.list_(pa.int32())),
        ("action_dtype", pa.string()),
    )
    return _versioned(fields)


def preference_schema(has_answer_ids: bool = False) -> pa.Schema:
    """Returns the columns of a preferences part; answers of people have an id too."""
    return _versioned((*PREFERENCE_FIELDS, ANSWER_ID_FIELD) if has_answer_ids else PREFERENCE_FIELDS)


def segment_tables(segments: Sequence[Segment]) -> Iterator[pa.Table]:
    """Turns segments of one length, shape and dtype into tables of about 64 MiB, one a row group.

    Array values are flattened in C order; the shape columns hold the shape of one step.
    """
    first = segments[0]
    schema = segment_schema(
        pa.from_numpy_dtype(first.observations.dtype),
        pa.from_numpy_dtype(first.actions.dtype),
    )
    num_rows = max(1, ROW_GROUP_BYTES // max(1, first.observations.nbytes + first.actions.nbytes))
    for start in range(0, len(segments), num_rows):
        rows = segments[start : start + num_rows]
        columns = {
            "segment_id": [row.id for row in rows],
            "env_id": [row.env_id for row in rows],
            "episode_id": [row.episode_id for row in rows],
            "start_step": [row.start_step for row in rows],
            "length": [len(row) for row in rows],
            "observations": _list_column([row.observations for row in rows]),
            "observation_shape": [row.observations.shape[1:] for row in rows],
            "observation_dtype": [row.observations.dtype.name for row in rows],
            "actions": _list_column([row.actions for row in rows]),
            "action_shape": [row.actions.shape[1:] for row in rows],
            "action_dtype": [row.actions.dtype.name for row in rows],
            "true_rewards": _list_column([row.true_rewards for row in rows]),
        }
        yield pa.table(columns, schema=schema)


def episode_table(origins: Mapping[str, Origin]) -> pa.Table:
    """Turns the origin of each episode's last segment, by episode id, into one table."""
    actions = [origin.earlier_actions for origin in origins.values()]
    columns = {
        "episode_id": list(origins),
        "reset_seed": [origin.reset_seed for origin in origins.values()],
        "actions": _list_column(actions),
        "action_shape": [rows.shape[1:] for rows in actions],
        "action_dtype": [rows.dtype.name for rows in actions],
    }
    return pa.table(columns, schema=episode_schema(pa.from_numpy_dtype(actions[0].dtype)))


def preference_table(preferences: Sequence[Preference]) -> pa.Table:
    """Turns preferences into one table."""
    schema = preference_schema(any(preference.answer_id for preference in preferences))
    columns = {
        name: [str(value) if name == "choice" else value for value in (getattr(row, name) for row in preferences)]
        for name in schema.names
    }
    return pa.table(columns, schema=schema)


def query_table(asked: Sequence[AskedQuery]) -> pa.Table:
    """Turns queries that were put to people into one table."""
    return _record_table(asked, QUERY_FIELDS)


def withdrawal_table(withdrawals: Sequence[Withdrawal]) -> pa.Table:
    """Turns tombstones of answers into one table."""
    return _record_table(withdrawals, WITHDRAWAL_FIELDS)


def evaluation_table(folder: str, evaluations: Sequence[Evaluation]) -> pa.Table:
    """Turns evaluations of the kind that lies in `folder` into one table."""
    return _record_table(evaluations, EVALUATION_FIELDS[folder])


def _record_table(rows: Sequence[object], fields: Iterable[tuple[str, pa.DataType]]) -> pa.Table:
    schema = _versioned(fields)
    return pa.table({name: [getattr(row, name) for row in rows] for name in schema.names}, schema=schema)


def write(path: Path, tables: Iterable[pa.Table]) -> None:
    """Writes tables of one schema as the row groups of a file."""
    tables = iter(tables)
    table = next(tables)
    # Plain Parquet stores a uint8 in four bytes; 256 dictionary entries make it one.
    small = [_leaf(field) for field in table.schema if field.type in (pa.string(), pa.list_(pa.uint8()))]
    with pq.ParquetWriter(
        path,
        table.schema,
        compression="zstd",
        use_dictionary=small,
        write_statistics=[field.name for field in table.schema if _leaf(field) == field.name],
        write_page_checksum=True,
    ) as writer:
        writer.write_table(table)
        for following in tables:
            writer.write_table(following)


def read_segments(path: Path) -> list[Segment]:
    """Reads a segments part; values are views of Arrow's memory, and every id is checked.

    Raises:
        DataError: The file is corrupt or of another schema version.
    """
    return _read(path, _parse_segments)


def read_origins(path: Path) -> list[tuple[str, Origin]]:
    """Reads an episodes part: episode ids, and how to come to the last step that was needed.

    Raises:
        DataError: The file is corrupt or of another schema version.
    """
    return _read(path, _parse_origins)


def read_preferences(path: Path) -> list[Preference]:
    """Reads a preferences part.

    Raises:
        DataError: The file is corrupt or of another schema version.
    """
    return _read(path, _parse_preferences)


def read_queries(path: Path) -> list[AskedQuery]:
    """Reads a part of queries that were put to people.

    Raises:
        DataError: The file is corrupt or of another schema version.
    """

    def parse(table: pa.Table) -> list[AskedQuery]:
        _check_schema(table, _versioned(QUERY_FIELDS))
        return [AskedQuery(**row) for row in _rows_with_times(table, "asked_at")]

    return _read(path, parse)


def read_withdrawals(path: Path) -> list[Withdrawal]:
    """Reads a part of tombstones.

    Raises:
        DataError: The file is corrupt or of another schema version.
    """

    def parse(table: pa.Table) -> list[Withdrawal]:
        _check_schema(table, _versioned(WITHDRAWAL_FIELDS))
        return [Withdrawal(**row) for row in _rows_with_times(table, "withdrawn_at")]

    return _read(path, parse)


def read_evaluations(path: Path, folder: str) -> list[Evaluation]:
    """Reads a part of the kind that lies in `folder`.

    Raises:
        DataError: The file is corrupt or of another schema version.
    """

    def parse(table: pa.Table) -> list[Evaluation]:
        _check_schema(table, _versioned(EVALUATION_FIELDS[folder]))
        return [EVALUATION_FOLDERS[folder](**row) for row in _rows_with_times(table, "asked_at", "answered_at")]

    return _read(path, parse)


def _read(path: Path, parse: Callable[[pa.Table], list[Row]]) -> list[Row]:
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
        found = (file.schema_arrow.metadata or {}).get(VERSION_KEY, b"none").decode(errors="replace")
        if found != str(SCHEMA_VERSION):
            raise DataError(
                f"{path} has schema version {found}, this themis_ray reads version {SCHEMA_VERSION}; "
                "use the version of themis_ray that wrote it, or start in a new folder"
            )
        return [row for group in range(file.num_row_groups) for row in parse(file.read_row_group(group))]
    # Arrow reports damage as one of its own errors, as OSError or as one of the built-in
    # ones, depending on which byte is hit; a parser reports it as ValueError or KeyError.
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        reason = str(error) or type(error).__name__
        raise DataError(f"{path} cannot be read ({reason}); bring it back from a copy") from error


def _parse_segments(table: pa.Table) -> list[Segment]:
    types = [table.schema.field(name).type for name in ("observations", "actions")]
    # Whatever the values are, they must come in lists; pa.null() matches nothing.
    _check_schema(table, segment_schema(*(t.value_type if pa.types.is_list(t) else pa.null() for t in types)))
    if not table.num_rows:
        return []
    words = table.drop_columns(["observations", "actions", "true_rewards"]).to_pylist()
    (length,) = {row["length"] for row in words}
    observations = _read_arrays(table, "observations", words[0]["observation_dtype"])
    actions = _read_arrays(table, "actions", words[0]["action_dtype"])
    true_rewards = _read_arrays(table, "true_rewards", "float32")
    segments = [
        Segment(
            row["segment_id"],
            row["env_id"],
            row["episode_id"],
            row["start_step"],
            observations[i].reshape(length, *row["observation_shape"]),
            actions[i].reshape(length, *row["action_shape"]),
            true_rewards[i],
        )
        for i, row in enumerate(words)
    ]
    for segment in segments:
        if segment.id != content_id(segment.env_id, segment.observations, segment.actions, segment.true_rewards):
            raise ValueError(f"the content of segment {segment.id} has changed")
    return segments


def _parse_origins(table: pa.Table) -> list[tuple[str, Origin]]:
    type_ = table.schema.field("actions").type
    _check_schema(table, episode_schema(type_.value_type if pa.types.is_list(type_) else pa.null()))
    column = table.column("actions").combine_chunks()
    origins = []
    for i, row in enumerate(table.drop_columns(["actions"]).to_pylist()):
        actions = column[i].values.to_numpy(zero_copy_only=False).astype(row["action_dtype"], copy=False)
        origins.append((row["episode_id"], Origin(row["reset_seed"], actions.reshape(-1, *row["action_shape"]))))
    return origins


def _parse_preferences(table: pa.Table) -> list[Preference]:
    _check_schema(table, preference_schema(ANSWER_ID_FIELD[0] in table.column_names))
    return [Preference(**row) for row in _rows_with_times(table, "asked_at", "answered_at")]


def _rows_with_times(table: pa.Table, *times: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = table.to_pylist()
    for row in rows:
        row.update({name: row[name].astimezone(UTC) for name in times})
    return rows


def _versioned(fields: Iterable[tuple[str, pa.DataType]]) -> pa.Schema:
    return pa.schema(
        [pa.field(name, type_, nullable=False) for name, type_ in fields],
        metadata={VERSION_KEY: str(SCHEMA_VERSION).encode()},
    )


def _check_schema(table: pa.Table, expected: pa.Schema) -> None:
    found = [(field.name, field.type) for field in table.schema]
    if found != [(field.name, field.type) for field in expected]:
        raise ValueError(f"its columns are not those of schema version {SCHEMA_VERSION}")
    if any(column.null_count for column in table.columns):
        raise ValueError("it has empty values")


def _leaf(field: pa.Field) -> str:
    """Returns the name that Parquet gives to the values of a column."""
    return f"{field.name}.list.element" if pa.types.is_list(field.type) else str(field.name)


def _list_column(arrays: Sequence[NDArray[Any]]) -> pa.ListArray:
    """Makes one list per array of the values in C order, without a Python object per value."""
    values = np.concatenate([array.reshape(-1) for array in arrays])
    offsets = np.cumsum([0, *(array.size for array in arrays)], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


def _read_arrays(table: pa.Table, name: str, dtype: str) -> NDArray[Any]:
    """Returns one read-only row of values per table row; all rows have the same length."""
    column = table.column(name).combine_chunks()
    values: NDArray[Any] = column.flatten().to_numpy(zero_copy_only=False)
    if values.dtype != np.dtype(dtype):
        raise ValueError(f"{name} are {values.dtype}, not {dtype}")
    # pyarrow hands booleans and nothing else over as a copy that can be written to.
    values.flags.writeable = False
    return values.reshape(table.num_rows, -1)
