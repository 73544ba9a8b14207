"""Datasets in Parquet: our own folder of parts, and the folder that Hugging Face's `datasets` loads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from themis_ray.data import parquet
from themis_ray.data.exchange.batches import Batch, DatasetCounts
from themis_ray.data.preferences import Preference
from themis_ray.data.segments import Segment
from themis_ray.errors import DataError

__all__ = ["read_huggingface", "read_parquet", "write_huggingface", "write_parquet"]

SEGMENT_PART_BYTES = 2**27
PREFERENCE_PART_ROWS = 100_000

CARD = """
# Preferences over segments of {env_ids}

{num_queries} answers to the question which of two segments of episodes is better, and the {num_segments} segments.
Written by `themis data export`; `themis data import` reads this folder back.

```python
from datasets import load_dataset

preferences = load_dataset("this folder or its name on the Hub", "preferences", split="train")
segments = load_dataset("this folder or its name on the Hub", "segments", split="train")
```

* `preferences`: `left_id` and `right_id` are values of `segment_id`; `choice` is left, right, equal or skip; `teacher`
  is who chose.
* `segments`: `observations` and `actions` are flat lists in C order: reshape them to (`length`, *`observation_shape`)
  and (`length`, *`action_shape`). `true_rewards` are those of the environment, NaN where they are not known.
"""


def read_parquet(root: Path) -> Iterator[Batch]:
    """Reads a run folder or dataset part by part; answers that were withdrawn are left out.

    Raises:
        DataError: A part is missing, corrupt or of another schema version.
    """
    # Preferences first: a run that is going on writes their segments before them.
    answers, segments = (_numbered(root / kind) for kind in ("preferences", "segments"))
    withdrawn = {row.answer_id for path in _numbered(root / "withdrawals") for row in parquet.read_withdrawals(path)}
    for batch in _read_parts(segments, answers):
        preferences = [row for row in batch.preferences if row.answer_id not in withdrawn]
        yield replace(batch, preferences=preferences)


def read_huggingface(root: Path) -> Iterator[Batch]:
    """Reads a folder of `write_huggingface` file by file.

    Raises:
        DataError: A file is missing, corrupt or of another schema version.
    """
    found = []
    for kind in ("segments", "preferences"):
        paths = sorted((root / "data").glob(f"{kind}-*.parquet"))
        expected = [_shard(root, kind, number, len(paths)) for number in range(len(paths))]
        if not paths or paths != expected:
            raise DataError(
                f"{root}/data must hold {kind}-00000-of-N.parquet and all that follow, not "
                f"{', '.join(path.name for path in paths) or 'none'}; bring it back from a copy."
            )
        found.append(paths)
    yield from _read_parts(*found)


def write_parquet(batches: Iterable[Batch], root: Path) -> None:
    """Writes the dataset that runs write and `PreferenceDataset` loads, in parts of about 128 MiB."""
    _write_parts(batches, lambda kind, number: root / kind / f"part-{number:05d}.parquet")


def write_huggingface(batches: Iterable[Batch], root: Path, counts: DatasetCounts) -> None:
    """Writes a dataset card and data/*.parquet, two subsets that `datasets.load_dataset` finds.

    The header of the card names the files and features of each subset, see
    https://huggingface.co/docs/hub/datasets-manual-configuration.

    Args:
        batches: What to write.
        root: The folder.
        counts: What the batches count up; read when they are written.
    """
    nums = _write_parts(batches, lambda kind, number: root / "data" / f".{kind}-{number:05d}")
    for kind, num_files in nums.items():
        for number in range(num_files):
            (root / "data" / f".{kind}-{number:05d}").rename(_shard(root, kind, number, num_files))
    header = {
        "pretty_name": f"Preferences over segments of {', '.join(sorted(counts.env_ids))}",
        "tags": ["reinforcement-learning", "preferences", "rlhf"],
        "configs": [
            {
                "config_name": kind,
                **({"default": True} if kind == "preferences" else {}),
                "data_files": [{"split": "train", "path": f"data/{kind}-*.parquet"}],
            }
            for kind in nums
        ],
        # Without `splits`, which need the bytes that each takes in the reader's memory; the files tell it all.
        "dataset_info": [
            {
                "config_name": kind,
                "features": _features(pq.read_schema(_shard(root, kind, 0, nums[kind]))),
            }
            for kind in nums
        ],
    }
    text = CARD.format(
        env_ids=", ".join(sorted(counts.env_ids)), num_queries=counts.num_queries, num_segments=counts.num_segments
    )
    card = f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---\n{text}"
    (root / "README.md").write_text(card, encoding="utf-8")


def _read_parts(segments: list[Path], answers: list[Path]) -> Iterator[Batch]:
    sizes = [path.stat().st_size for path in (*segments, *answers)]
    for number, path in enumerate((*segments, *answers)):
        share = sum(sizes[: number + 1]) / max(1, sum(sizes))
        if number < len(segments):
            yield Batch(segments=parquet.read_segments(path), share=share)
        else:
            yield Batch(preferences=parquet.read_preferences(path), share=share)


def _numbered(folder: Path) -> list[Path]:
    paths = [folder / f"part-{number:05d}.parquet" for number in range(len(list(folder.glob("part-*.parquet"))))]
    for path in paths:
        if not path.exists():
            raise DataError(f"{path} is missing, though a later part is there; bring it back from a copy.")
    return paths


def _shard(root: Path, kind: str, number: int, num_files: int) -> Path:
    return root / "data" / f"{kind}-{number:05d}-of-{num_files:05d}.parquet"


def _write_parts(batches: Iterable[Batch], name: Callable[[str, int], Path]) -> dict[str, int]:
    """Writes a part whenever enough has come together; returns how many of each kind there are."""
    nums = {"preferences": 0, "segments": 0}
    segments: list[Segment] = []
    answers: list[Preference] = []
    num_bytes = 0

    def write(kind: str, tables: Iterable[pa.Table]) -> None:
        path = name(kind, nums[kind])
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write(path, tables)
        nums[kind] += 1

    for batch in batches:
        answers += batch.preferences
        while len(answers) >= PREFERENCE_PART_ROWS:
            write("preferences", [parquet.preference_table(answers[:PREFERENCE_PART_ROWS])])
            del answers[:PREFERENCE_PART_ROWS]
        for segment in batch.segments:
            segments.append(segment)
            num_bytes += segment.observations.nbytes + segment.actions.nbytes + segment.true_rewards.nbytes
            if num_bytes >= SEGMENT_PART_BYTES:
                write("segments", parquet.segment_tables(segments))
                segments.clear()
                num_bytes = 0
    if segments:
        write("segments", parquet.segment_tables(segments))
    if answers:
        write("preferences", [parquet.preference_table(answers)])
    return nums


def _features(schema: pa.Schema) -> list[dict[str, str]]:
    """Returns columns as a dataset card writes them; `sequence` is understood by all versions of `datasets`."""
    return [
        {"name": field.name, "sequence": _dtype(field.type.value_type)}
        if pa.types.is_list(field.type)
        else {"name": field.name, "dtype": _dtype(field.type)}
        for field in schema
    ]


def _dtype(kind: pa.DataType) -> str:
    # Arrow and `datasets` name all types alike but for these.
    return {"halffloat": "float16", "float": "float32", "double": "float64"}.get(str(kind), str(kind))
