"""Answers of a study as files, and back: Parquet, JSON lines, CSV, and the folder that Hugging Face's `datasets` loads.

A row is one answer with all that leads back to where it comes from: query, segments, hashes of clips, the side that was
shown, arm, times, run, checkpoint, version of the reward model, seed. Practice, undone answers and those of people who
withdrew are not in it, nor is anything that a panel says about a person.
"""

from __future__ import annotations

import csv
import json
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from pydantic import AfterValidator, Field, ValidationError

from themis_ray.data import Choice, parquet
from themis_ray.errors import DataError, lookup
from themis_ray.files import whole
from themis_ray.labeling.study import StudyConfig
from themis_ray.wire import (
    MAX_CLIP_FRAMES,
    MAX_MS,
    MAX_REPLAYS,
    MAX_SEED,
    MAX_SPEED,
    Action,
    ClipName,
    FeedbackKind,
    LongId,
    NewQuery,
    QueryKind,
    Slug,
    StoredAnswer,
    Wire,
)

__all__ = ["ANSWER_FORMATS", "AnswerRow", "answer_rows", "read_answers", "write_answers"]

# Each format and the suffix that it is known by.
ANSWER_FORMATS = {"parquet": ".parquet", "jsonl": ".jsonl", "csv": ".csv", "huggingface": ".zip"}
ROWS_PER_BATCH = 20_000
MAX_CELL = 2**31 - 1
NO_NUL = r"^[^\x00]*$"
SHARD = "data/train-00000-of-00001.parquet"
CARD = "README.md"

CARD_TEXT = """
# {title}

{num_rows} answers of people to the question “{question}”, collected with themis_ray's labelling service.

```python
from datasets import load_dataset

answers = load_dataset("this folder or its name on the Hub", split="train")
```

* Choices are those of the query: `left` is better, `right` is better, `equal`, or `skip` for can't tell. `is_flipped`
  says that the query's left was shown on the right of the screen.
* `annotator_id` is a random name that stands for a person within this study.
* `kind` is ordinary or gold, whose right answer is `gold_choice`; `repeat` is 1 where a person was asked again.
* `left_id` and `right_id` name segments, `left_clip` and `right_clip` are hashes of the clips that were shown.
* `run`, `checkpoint`, `reward_version`, `seed` and `num_env_steps` say where the query comes from; `about` has all that
  is known of it, as JSON.
* `weight` is what the answer counts in the loss of a reward model, by the reliability of who gave it.
"""


# What times a database can hold and tell again.
FIRST_TIME, END_OF_TIME = datetime(1970, 1, 1, tzinfo=UTC), datetime(3000, 1, 1, tzinfo=UTC)


def _in_utc(time: datetime) -> datetime:
    aware = time.replace(tzinfo=UTC) if time.tzinfo is None else time
    if not FIRST_TIME <= aware < END_OF_TIME:
        raise ValueError(f"a time from {FIRST_TIME.year} to {END_OF_TIME.year} was expected")
    return aware.astimezone(UTC)


Time = Annotated[datetime, AfterValidator(_in_utc)]


class AnswerRow(Wire):
    """A row of an export. The names of its fields are those of the columns, and what they hold is as in `NewAnswer`."""

    study: Slug
    answer_id: LongId
    query_id: LongId
    kind: QueryKind
    feedback: FeedbackKind
    left_id: LongId
    right_id: LongId | None
    left_clip: ClipName
    right_clip: ClipName | None
    left_num_frames: int
    right_num_frames: int | None
    clip_fps: float
    choice: Choice | None
    rating: float | None = Field(ge=0, le=1)
    steps: tuple[Literal[-1, 0, 1], ...] | None = Field(max_length=MAX_CLIP_FRAMES)
    actions: tuple[Action, ...] | None = Field(max_length=MAX_CLIP_FRAMES)
    reset_seed: int | None = Field(ge=0, le=MAX_SEED)
    gold_choice: Choice | None
    annotator_id: LongId
    arm: str = Field(max_length=64, pattern=NO_NUL)
    overlay: str = Field(
        max_length=64, pattern=NO_NUL, description="Name of the explanation that was shown with it; empty for none."
    )
    is_flipped: bool
    repeat: int = Field(ge=0, le=1)
    response_ms: int = Field(ge=0, le=MAX_MS)
    watched_ms: int = Field(ge=0, le=MAX_MS)
    num_replays: int = Field(ge=0, le=MAX_REPLAYS)
    speed: float = Field(gt=0, le=MAX_SPEED)
    overlay_ms: int = Field(ge=0, le=MAX_MS)
    assigned_at: Time
    answered_at: Time
    weight: float = Field(ge=0)
    env_id: str | None
    run: str | None
    checkpoint: str | None
    reward_version: int | None
    seed: int | None
    num_env_steps: int | None
    about: str = Field(description="JSON.")


_ARROW_TYPES: dict[Any, pa.DataType] = {
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
    datetime: pa.timestamp("us", tz="UTC"),
    tuple: pa.list_(pa.int32()),
}


def _arrow_type(annotation: Any) -> pa.DataType:
    kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
    is_optional = len(kinds) == 1 and type(None) in get_args(annotation)
    kind = kinds[0] if is_optional else annotation
    return _ARROW_TYPES.get(get_origin(kind) or kind, pa.string())


SCHEMA = pa.schema([(name, _arrow_type(field.annotation)) for name, field in AnswerRow.model_fields.items()])


def answer_rows(
    answers: Iterable[StoredAnswer],
    queries: Mapping[str, NewQuery],
    study: StudyConfig,
    weights: Mapping[str, float] | None = None,
) -> Iterator[AnswerRow]:
    """Turns answers that count into rows.

    Args:
        answers: Of one study, practice and undone ones too, which are left out.
        queries: What was asked, by id.
        study: The study.
        weights: Of people, by id; None: as the answers say.
    """
    for answer in answers:
        if answer.is_undone or answer.kind == "practice":
            continue
        query = queries[answer.query_id]
        weight = answer.weight if weights is None else weights.get(answer.annotator_id, answer.weight)
        values = answer.model_dump(exclude={"number", "is_undone", "weight"})
        yield AnswerRow.model_construct(  # what is stored goes out as it is, whatever is taken in today
            study=study.id,
            left_id=query.left.segment_id,
            right_id=query.right.segment_id if query.right else None,
            left_clip=query.left.clip,
            right_clip=query.right.clip if query.right else None,
            left_num_frames=query.left.num_frames,
            right_num_frames=query.right.num_frames if query.right else None,
            clip_fps=query.left.clip_fps,
            gold_choice=query.gold_choice,
            weight=weight,
            **values,
            **_origin(query.about),
        )


def _origin(about: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what has a column of its own; an empty text, which CSV would not tell from none, has not.

    Nor has a number that is none, such as a version with a letter.
    """
    texts = {name: about.get(name) for name in ("env_id", "run", "checkpoint")}
    numbers = {name: about.get(name) for name in ("reward_version", "seed", "num_env_steps")}
    return {
        **{name: None if value in (None, "") else str(value) for name, value in texts.items()},
        **{name: value if type(value) is int and abs(value) < 2**63 else None for name, value in numbers.items()},
        "about": json.dumps(about, sort_keys=True, ensure_ascii=False),
    }


# ---------------------------------------------------------------- out


def write_answers(rows: Iterable[AnswerRow], path: Path, format_name: str, study: StudyConfig) -> int:
    """Writes rows as a file, or as a folder where huggingface is given a path that does not end in .zip.

    Nothing is there before everything is.

    Returns:
        How many rows there are.

    Raises:
        UnknownNameError: No format has this name.
        DataError: `path` is there already or cannot be written, or an answer has a number that the format cannot hold.
    """
    lookup("export format", format_name, ANSWER_FORMATS)
    if path.exists():
        raise DataError(f"{path} is there already. Give another name, or delete it first.")
    write = {"parquet": _write_parquet, "jsonl": _write_jsonl, "csv": _write_csv}.get(format_name)
    try:
        with whole(path) as temporary:
            if write is not None:
                num_rows = write(rows, temporary)
            elif path.suffix == ".zip":
                num_rows = _write_zip(rows, temporary, study)
            else:
                num_rows = _write_huggingface(rows, temporary, study)
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror or error}). Give a folder with room.") from error
    except pa.ArrowInvalid as error:
        raise DataError(f"an answer does not go into {format_name} ({error}). Export as jsonl or csv.") from error
    return num_rows


def _counted(rows: Iterable[AnswerRow], write: Callable[[AnswerRow], Any]) -> int:
    num_rows = 0
    for row in rows:
        write(row)
        num_rows += 1
    return num_rows


def _write_parquet(rows: Iterable[AnswerRow], path: Path) -> int:
    num_rows = 0

    def tables() -> Iterator[pa.Table]:
        nonlocal num_rows
        remaining = iter(rows)
        yield SCHEMA.empty_table()  # so that no rows are a file too
        while batch := [row.model_dump() for row in islice(remaining, ROWS_PER_BATCH)]:
            num_rows += len(batch)
            yield pa.Table.from_pylist(batch, schema=SCHEMA)

    parquet.write(path, tables())
    return num_rows


def _write_jsonl(rows: Iterable[AnswerRow], path: Path) -> int:
    with path.open("w", encoding="utf-8") as file:
        return _counted(rows, lambda row: file.write(row.model_dump_json() + "\n"))


def _write_csv(rows: Iterable[AnswerRow], path: Path) -> int:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(SCHEMA.names)

        def write(row: AnswerRow) -> None:
            values = row.model_dump(mode="json").values()
            writer.writerow([json.dumps(value) if isinstance(value, list | bool) else value for value in values])

        return _counted(rows, write)


def _write_huggingface(rows: Iterable[AnswerRow], folder: Path, study: StudyConfig) -> int:
    shard = folder / SHARD
    shard.parent.mkdir(parents=True)
    num_rows = _write_parquet(rows, shard)
    (folder / CARD).write_text(_card(study, num_rows), encoding="utf-8")
    return num_rows


def _write_zip(rows: Iterable[AnswerRow], path: Path, study: StudyConfig) -> int:
    folder = path.with_name(f"{path.name}.folder")
    try:
        num_rows = _write_huggingface(rows, folder, study)
        # Parquet is compressed already.
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for name in (CARD, SHARD):
                archive.write(folder / name, name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return num_rows


def _card(study: StudyConfig, num_rows: int) -> str:
    header = {
        "pretty_name": study.title,
        "tags": ["reinforcement-learning", "preferences", "rlhf", "human-feedback"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}],
        # Without `splits`, which need the bytes that each takes in the reader's memory; the file tells it all.
        "dataset_info": {"features": [_feature(field) for field in SCHEMA]},
    }
    text = CARD_TEXT.format(title=study.title, question=study.question, num_rows=num_rows)
    return f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---\n{text}"


def _feature(field: pa.Field) -> dict[str, str]:
    """Returns a column as a dataset card writes it."""
    if pa.types.is_list(field.type):
        return {"name": field.name, "sequence": str(field.type.value_type)}
    return {"name": field.name, "dtype": {"double": "float64"}.get(str(field.type), str(field.type))}


# ---------------------------------------------------------------- in


def read_answers(path: Path) -> Iterator[AnswerRow]:
    """Reads what `write_answers` writes; the format is seen from the name.

    Raises:
        DataError: There is no such file, it is of no known format, or a row is damaged; the message names the row.
    """
    for number, values in enumerate(_read(path), start=1):
        try:
            yield AnswerRow.model_validate(values)
        except ValidationError as error:
            wrong = error.errors()[0]
            where = ".".join(map(str, wrong["loc"])) or "row"
            raise DataError(f"{path} row {number}: {where}: {wrong['msg']}. Repair or delete it.") from error


def _read(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        raise DataError(f"{path} does not exist. Give a file or folder with answers.")
    try:
        if path.is_dir():
            yield from _read_parquet(path / SHARD)
        elif path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive, archive.open(SHARD) as file:
                yield from _read_parquet(file)
        elif path.suffix == ".parquet":
            yield from _read_parquet(path)
        elif path.suffix == ".jsonl":
            yield from _read_jsonl(path)
        elif path.suffix == ".csv":
            yield from _read_csv(path)
        else:
            known = ", ".join(ANSWER_FORMATS.values())
            raise DataError(f"{path} is of no known format. Give a name that ends in {known}, or a folder.")
    except (OSError, KeyError, ValueError, zipfile.BadZipFile, csv.Error) as error:
        raise DataError(f"{path} cannot be read ({error}). Bring it back from a copy.") from error


def _read_parquet(source: Any) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(source) as file:
        for batch in file.iter_batches(ROWS_PER_BATCH):
            yield from batch.to_pylist()


def _read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def _read_csv(path: Path) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(MAX_CELL)  # of the whole process; Python's own is 128 kB
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if list(reader.fieldnames or ()) != SCHEMA.names:
            raise ValueError(f"its first line must name the columns {', '.join(SCHEMA.names)}")
        for row in reader:
            yield {name: _from_cell(name, cell) for name, cell in row.items()}


def _from_cell(name: str, cell: str | None) -> Any:
    field = AnswerRow.model_fields.get(name)
    if field is None or cell is None:
        return cell
    if cell == "" and type(None) in get_args(field.annotation):
        return None
    return json.loads(cell) if pa.types.is_list(SCHEMA.field(name).type) else cell
