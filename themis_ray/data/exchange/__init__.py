"""Datasets in and out: one way through for all formats, and nothing half-written.

A reader yields batches, `checked` looks at what passes, a writer writes into a hidden folder beside the target, which
takes the target's name when all is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from themis_ray.data.exchange.batches import Batch, DatasetCounts, checked
from themis_ray.data.exchange.foreign import ArraySpec, EnvLayout, find_buffer, read_bpref, read_imitation
from themis_ray.data.exchange.jsonl import read_jsonl, write_jsonl
from themis_ray.data.exchange.parts import read_huggingface, read_parquet, write_huggingface, write_parquet
from themis_ray.data.exchange.pickles import FragmentPairs, read_pickle
from themis_ray.errors import DataError, lookup
from themis_ray.files import whole

__all__ = [
    "EXPORT_FORMATS",
    "FOREIGN_FORMATS",
    "IMPORT_FORMATS",
    "ArraySpec",
    "DatasetCounts",
    "EnvLayout",
    "export_dataset",
    "import_dataset",
]

# What each format that we read is; below, those that we write, and those that do not say their environment.
IMPORT_FORMATS = {
    "parquet": "a run folder, or a folder with segments/ and preferences/",
    "jsonl": "a folder with segments.jsonl and preferences.jsonl",
    "huggingface": "a folder with data/segments-*.parquet and data/preferences-*.parquet",
    "imitation": "a pickle that imitation's PreferenceDataset saved",
    "bpref": "buffer_seg1, buffer_seg2 and buffer_label in one file or a folder",
}
EXPORT_FORMATS = ("parquet", "jsonl", "huggingface")
FOREIGN_FORMATS = ("imitation", "bpref")

Report = Callable[[float], None]


def _ignore(share: float) -> None:
    del share


def import_dataset(
    source: Path, out: Path, format_name: str = "auto", layout: EnvLayout | None = None, report: Report = _ignore
) -> DatasetCounts:
    """Copies a dataset of any format into a folder that `PreferenceDataset` loads.

    Args:
        source: File or folder.
        out: Must not exist, or be an empty folder. It appears when all is written.
        format_name: A key of `IMPORT_FORMATS`; auto looks at the source.
        layout: The environment; needed by `FOREIGN_FORMATS`, with the others its id is compared.
        report: Is told the share of the source that is read, from 0 to 1, now and then.

    Returns:
        What was copied.

    Raises:
        UnknownNameError: No format has this name.
        DataError: The source cannot be read, is of another environment, or `out` holds something or cannot be written.
    """
    if not source.exists():
        raise DataError(f"{source} does not exist. Give a file or folder with preferences.")
    counts = DatasetCounts()
    batches = checked(_open(source, format_name, layout), str(source), counts)
    _write(_reporting(batches, report), out, "parquet", counts)
    return counts


def export_dataset(source: Path, out: Path, format_name: str, report: Report = _ignore) -> DatasetCounts:
    """Copies the preferences and segments of a run or dataset into a new folder of another format.

    Args:
        source: A run folder or dataset.
        out: As in `import_dataset`.
        format_name: One of `EXPORT_FORMATS`.
        report: As in `import_dataset`.

    Returns:
        What was copied.

    Raises:
        UnknownNameError: No format has this name.
        DataError: The source holds no preferences or cannot be read, or `out` holds something or cannot be written.
    """
    lookup("export format", format_name, dict.fromkeys(EXPORT_FORMATS))
    counts = DatasetCounts()
    batches = checked(read_parquet(source), str(source), counts)
    _write(_reporting(batches, report), out, format_name, counts)
    return counts


def _open(source: Path, format_name: str, layout: EnvLayout | None) -> Iterator[Batch]:
    content: Any = None
    if format_name == "auto":
        format_name, content = _detect(source)
    lookup("dataset format", format_name, IMPORT_FORMATS)
    if format_name not in FOREIGN_FORMATS:
        readers = {"parquet": read_parquet, "jsonl": read_jsonl, "huggingface": read_huggingface}
        batches = readers[format_name](source)
        return batches if layout is None else _of_env(batches, source, layout.env_id)
    if layout is None:
        raise DataError(f"{source} ({format_name}) does not say which environment it comes from. Give --env ENV_ID.")
    reader = read_imitation if format_name == "imitation" else read_bpref
    return reader(source, layout, content)


def _detect(source: Path) -> tuple[str, Any]:
    """Returns the format of a source, and for a pickle what it holds, which tells imitation's from B-Pref's."""
    if source.is_dir():
        if any(source.glob("data/preferences-*.parquet")):
            return "huggingface", None
        if (source / "preferences.jsonl").exists() or (source / "segments.jsonl").exists():
            return "jsonl", None
        if (source / "preferences").is_dir():
            return "parquet", None
        if find_buffer(source, "buffer_label") is not None:
            return "bpref", None
        known = "; ".join(f"{name}: {what}" for name, what in IMPORT_FORMATS.items())
        raise DataError(f"{source} is no dataset that is known. Known: {known}.")
    if source.suffix in (".npy", ".npz", ".pt", ".pth"):
        return "bpref", None
    content = read_pickle(source)
    return "imitation" if isinstance(content, FragmentPairs | tuple) else "bpref", content


def _of_env(batches: Iterator[Batch], source: Path, env_id: str) -> Iterator[Batch]:
    for batch in batches:
        for segment in batch.segments:
            if segment.env_id != env_id:
                raise DataError(f"{source} holds segments of {segment.env_id}, not of {env_id}. Leave out --env.")
        yield batch


def _reporting(batches: Iterator[Batch], report: Report) -> Iterator[Batch]:
    for batch in batches:
        yield batch
        report(batch.share)


def _write(batches: Iterator[Batch], out: Path, format_name: str, counts: DatasetCounts) -> None:
    """Writes the folder as a whole; an empty one is replaced, one that another program fills meanwhile is not."""
    if out.resolve() == Path.cwd():
        raise DataError(f"{out} is the folder you are in, which cannot be replaced. Give another folder.")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DataError(f"{out} holds something already. Give another folder, or delete it first.")
    try:
        with whole(out) as temporary:
            temporary.mkdir()
            if format_name == "huggingface":
                write_huggingface(batches, temporary, counts)
            else:
                {"parquet": write_parquet, "jsonl": write_jsonl}[format_name](batches, temporary)
    except OSError as error:
        raise DataError(f"{out} cannot be written ({error.strerror or error}). Give a folder with room.") from error
