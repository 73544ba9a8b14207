"""What a run leaves behind beside numbers, as every tracker takes it: pictures, clips, tables, pages and files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from themis_ray.data import Preference, PreferenceDataset, left_probability
from themis_ray.data.parquet import read_preferences, read_withdrawals
from themis_ray.reward import left_probabilities
from themis_ray.tracking.folder import PREDICTIONS_FILE

__all__ = ["POLICY_CLIP", "Artifacts", "Table", "gather_artifacts", "write_predictions"]

POLICY_CLIP = "trained-policy"
CLIP_SUFFIXES = (".webm", ".mp4")
# Trackers are for looking; all of it is in the run folder.
MAX_ROWS, MAX_CLIPS, MAX_STILLS = 1000, 12, 24
RUN_FILES = ("config.yaml", "metrics.jsonl", "summary.json", "plot.png", "run.log", "takeovers.jsonl")
ANSWER_FOLDERS = ("queries", "preferences", "withdrawals", "ratings", "step_feedback", "demonstrations")
PREFERENCE_COLUMNS = (
    *("query_id", "feedback_session", "num_env_steps", "teacher", "choice", "asked_at", "answered_at", "answer_s"),
    *("left_true_return", "right_true_return", "agrees_with_true_return", "predicted_left"),
)
PREDICTED_PAIRS = 16

SegmentReturns = Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]


@dataclass(frozen=True)
class Table:
    """Rows under named columns; None where there is no value."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    def as_csv(self) -> str:
        """Return the table as CSV."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(self.rows)
        return buffer.getvalue()


@dataclass(frozen=True)
class Artifacts:
    """What there is to look at, each under the name that it has in a tracker.

    Attributes:
        pictures: PNG files.
        clips: Video files.
        tables: Tables.
        pages: HTML files that need no other file.
        bundles: Files that belong together, by their path in the bundle.
    """

    pictures: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    clips: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    tables: Mapping[str, Table] = field(default_factory=dict)
    pages: Mapping[str, Path] = field(default_factory=dict)
    bundles: Mapping[str, Mapping[str, Path]] = field(default_factory=dict)


def gather_artifacts(path: Path) -> Artifacts:
    """Return what the run in a folder has left behind so far.

    Clips are those in clips/, attribution pictures those that `themis explain` wrote to explanations/. Segments are in
    no bundle: they are as large as all that was seen.

    Args:
        path: A run folder.

    Raises:
        DataError: Stored answers are corrupt.
    """
    path = path.resolve()
    pictures = {"plot": [path / "plot.png"]} if (path / "plot.png").is_file() else {}
    clips: dict[str, list[Path]] = {}
    pages: dict[str, Path] = {}
    for clip in _videos(path / "clips"):
        clips.setdefault("clips/trained_policy" if clip.stem == POLICY_CLIP else "clips/segments", []).append(clip)
    explanations = path / "explanations"
    for folder in sorted(explanations.iterdir()) if explanations.is_dir() else []:
        key = f"explanations/{folder.name}"
        stills, videos = sorted(folder.glob("*.png")), _videos(folder)
        pictures |= {key: stills[:MAX_STILLS]} if stills else {}
        clips |= {f"{key}-clips": videos} if videos else {}
        pages |= {f"{key}-page": folder / "index.html"} if (folder / "index.html").is_file() else {}
    table = _preference_table(path)
    answers = [file for name in ANSWER_FOLDERS for file in sorted((path / name).glob("*.parquet"))]
    bundles = {
        "run": [path / name for name in RUN_FILES if (path / name).is_file()],
        "preferences": answers,
        "explanations": sorted(file for file in explanations.rglob("*") if file.is_file() and file.name[0] != "."),
    }
    return Artifacts(
        pictures=pictures,
        clips={key: files[:MAX_CLIPS] for key, files in clips.items()},
        tables={"preferences": table} if table.rows else {},
        pages=pages,
        bundles={
            name: {file.relative_to(path).as_posix(): file for file in files}
            for name, files in bundles.items()
            if files
        },
    )


def _below(path: Path, file: Path) -> str:
    return file.relative_to(path).as_posix()


def _videos(folder: Path) -> list[Path]:
    return sorted(file for suffix in CLIP_SUFFIXES for file in folder.glob(f"[!.]*{suffix}"))


# ---------------------------------------------------------------- preferences


def write_predictions(path: Path, dataset: PreferenceDataset, segment_returns: SegmentReturns) -> None:
    """Write p(left preferred), mean over members, by query id, for the answers that a table shows.

    Args:
        path: The run folder; `gather_artifacts` finds them there.
        dataset: With the segments.
        segment_returns: (S, L, ...) observations and actions to (K, S) predicted returns.
    """
    pairs = {row.query_id: (row.left_id, row.right_id) for row in dataset.preferences[-MAX_ROWS:]}
    items = list(pairs.items())
    predicted: dict[str, float] = {}
    for start in range(0, len(items), PREDICTED_PAIRS):
        part = items[start : start + PREDICTED_PAIRS]
        left, right = (
            segment_returns(
                np.stack([segment.observations for segment in side]), np.stack([segment.actions for segment in side])
            )
            for side in zip(*((dataset.segment(a), dataset.segment(b)) for _, (a, b) in part), strict=True)
        )
        means = left_probabilities(left, right).mean(axis=0)
        predicted |= {query_id: round(float(p), 4) for (query_id, _), p in zip(part, means, strict=True)}
    (path / PREDICTIONS_FILE).write_text(json.dumps(predicted) + "\n")


def _preference_table(path: Path) -> Table:
    """Return the newest answers; those that were withdrawn are left out."""
    withdrawn = {row.answer_id for part in _parts(path / "withdrawals") for row in read_withdrawals(part)}
    answers = [row for part in _parts(path / "preferences") for row in read_preferences(part)]
    shown = [row for row in answers if not row.answer_id or row.answer_id not in withdrawn][-MAX_ROWS:]
    returns = _true_returns(path / "segments") if shown else {}
    predicted = json.loads((path / PREDICTIONS_FILE).read_text()) if (path / PREDICTIONS_FILE).is_file() else {}
    rows = [_row(row, returns, predicted.get(row.query_id)) for row in shown]
    return Table(PREFERENCE_COLUMNS, tuple(rows))


def _row(row: Preference, returns: Mapping[str, float], predicted: float | None) -> tuple[Any, ...]:
    left, right = returns.get(row.left_id), returns.get(row.right_id)
    return (
        *(row.query_id, row.feedback_session, row.num_env_steps, row.teacher, str(row.choice)),
        *(row.asked_at.isoformat(), row.answered_at.isoformat()),
        round((row.answered_at - row.asked_at).total_seconds(), 3),
        *(left, right, _agrees(row, left, right), predicted),
    )


def _agrees(row: Preference, left: float | None, right: float | None) -> bool | None:
    """Tell whether an answer names the side with the larger true return; None where neither or nobody does."""
    label = left_probability(row.choice)
    if label is None or label == 0.5 or left is None or right is None or left == right:
        return None
    return (label > 0.5) == (left > right)


def _true_returns(folder: Path) -> dict[str, float]:
    """Return the true return of each stored segment, without reading what was seen."""
    returns = {}
    for part in _parts(folder):
        table = pq.read_table(part, columns=["segment_id", "true_rewards"])
        for segment_id, rewards in zip(table["segment_id"].to_pylist(), table["true_rewards"].to_pylist(), strict=True):
            returns[segment_id] = round(float(np.sum(rewards, dtype=np.float64)), 6)
    return returns


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*.parquet"))
