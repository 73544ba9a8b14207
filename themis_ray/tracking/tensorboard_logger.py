"""TensorBoard: scalars, settings as text and as hyper-parameters, pictures, and clips as moving pictures."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from themis_ray.clips import read_clip
from themis_ray.config import flatten
from themis_ray.tracking.artifacts import Artifacts, Table
from themis_ray.tracking.description import RunDescription
from themis_ray.tracking.metrics import Row
from themis_ray.tracking.progress_mark import read_mark, write_mark

__all__ = ["TensorBoardLogger"]

MAX_GIF_FRAMES, GIF_SIDE = 60, 240
GIF_FRAME_MS = 100
MAX_TEXT_ROWS = 200
EVENT_FILES = "events.out.tfevents.*"


class TensorBoardLogger:
    """Writes event files into a folder, against env steps.

    Args:
        folder: For the event files.
        about: What the run is called, and its settings.

    Attributes:
        num_env_steps: Of the newest line that it knows of.
        place: The folder.
    """

    def __init__(self, folder: Path, about: RunDescription) -> None:
        self._folder, self._about = folder, about
        self._writer: Any = None
        self._text_written = any(folder.glob(EVENT_FILES))
        self.num_env_steps = read_mark(folder)
        self.place = str(folder)

    def log(self, row: Row) -> None:
        """Write the numbers of one line; what an earlier start wrote from there on is hidden."""
        step = int(row["num_env_steps"])
        writer = self._open(step)
        for name, value in row.items():
            if _is_number(value):
                writer.add_scalar(name, value, step)
        self.num_env_steps = step

    def add(self, artifacts: Artifacts) -> None:
        """Write pictures as they are, clips as GIF, tables as text. TensorBoard takes no pages and no files."""
        step = max(0, self.num_env_steps)
        writer = self._open(step + 1)
        for key, files in artifacts.pictures.items():
            for number, file in enumerate(files):
                self._add_image(_numbered(key, number, len(files)), file.read_bytes(), step)
        for key, files in artifacts.clips.items():
            for number, file in enumerate(files):
                self._add_image(_numbered(key, number, len(files)), _gif(file), step)
        for key, table in artifacts.tables.items():
            writer.add_text(f"tables/{key}", _markdown(table), step)

    def close(self, summary: Row | None) -> None:
        """Write the final figures and, with the settings, a line of the table of hyper-parameters; close the files."""
        if self._writer is None and summary is None:
            return
        step = max(0, self.num_env_steps)
        writer = self._open(step + 1)
        if summary is not None:
            finals = {f"final/{key}": float(value) for key, value in summary.items() if _is_number(value)}
            for name, value in finals.items():
                writer.add_scalar(name, value, step)
            self._add_hparams(finals)
        writer.close()
        write_mark(self._folder, self.num_env_steps)

    def _open(self, first_step: int) -> Any:
        """Return the writer; with the first line it is known what earlier event files no longer say."""
        if self._writer is None:
            from tensorboardX import SummaryWriter

            num_files = len(list(self._folder.glob(EVENT_FILES)))
            # Names tell seconds; without a number two starts in one second would write to one file.
            self._writer = SummaryWriter(
                str(self._folder), purge_step=first_step if num_files else None, filename_suffix=f".{num_files}"
            )
            if not self._text_written:
                about = json.dumps(dict(self._about.settings), indent=2)
                self._writer.add_text("config", "".join(f"    {line}\n" for line in about.splitlines()), 0)
                facts = Table(
                    ("name", "group", "job type", "tags"),
                    ((self._about.name, self._about.group, self._about.job_type, ", ".join(self._about.tags)),),
                )
                self._writer.add_text("run", _markdown(facts), 0)
        return self._writer

    def _add_image(self, tag: str, content: bytes, step: int) -> None:
        """Write an encoded picture as it is: TensorBoard shows what a browser shows, GIF too."""
        from tensorboardX.proto.summary_pb2 import Summary

        with Image.open(io.BytesIO(content)) as picture:
            width, height = picture.size
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=content)
        self._writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)

    def _add_hparams(self, finals: Mapping[str, float]) -> None:
        from tensorboardX.summary import hparams

        settings = {key: _hparam(value) for key, value in flatten(self._about.settings).items()}
        for part in hparams({key: value for key, value in settings.items() if value is not None}, dict(finals)):
            self._writer.file_writer.add_summary(part)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _hparam(value: Any) -> Any:
    return value if value is None or isinstance(value, str | int | float) else json.dumps(value)


def _numbered(key: str, number: int, count: int) -> str:
    return key if count == 1 else f"{key}/{number}"


def _markdown(table: Table) -> str:
    lines = [table.columns, ("---",) * len(table.columns), *table.rows[-MAX_TEXT_ROWS:]]
    return "\n".join("| " + " | ".join("" if cell is None else str(cell) for cell in line) + " |" for line in lines)


def _gif(clip: Path) -> bytes:
    """Return a clip as a small GIF of at most `MAX_GIF_FRAMES` frames, over the whole of it."""
    frames = read_clip(clip)
    chosen = np.unique(np.linspace(0, len(frames) - 1, min(MAX_GIF_FRAMES, len(frames))).round().astype(int))
    pictures = [Image.fromarray(frames[number]) for number in chosen]
    for picture in pictures:
        picture.thumbnail((GIF_SIDE, GIF_SIDE))
    buffer = io.BytesIO()
    pictures[0].save(
        buffer, "GIF", save_all=True, append_images=pictures[1:], duration=GIF_FRAME_MS, loop=0, optimize=False
    )
    return buffer.getvalue()
