"""The clips of a run's segments, drawn once and found again by a run that goes on."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from themis_ray.clips import Replayer, write_clip
from themis_ray.data import Segment
from themis_ray.envs import EnvConfig
from themis_ray.errors import DataError

__all__ = ["ClipIndex", "SegmentClips"]

logger = logging.getLogger("themis_ray")


class ClipIndex:
    """Which clip of a folder shows which segment: one line of JSON for each, in a file beside the clips.

    Each line holds segment_id, clip and what `about` holds. A line that cannot be read, such as the unfinished last one
    of a killed run, costs that its segment is drawn again.

    Args:
        path: Of the file; made with the first line.
        about: How clips were drawn; lines that say something else are passed over.

    Raises:
        DataError: There is such a file, and it cannot be read.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self._path = path
        self._about = dict(about)
        self._names: dict[str, str] = {}
        self._needs_line_break = False
        if path.exists():
            self._load()

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, segment_id: str) -> Path:
        return self._path.with_name(self._names[segment_id])

    def find(self, segment_id: str) -> Path | None:
        """Returns the clip of a segment; None where it has to be drawn."""
        path = self[segment_id] if segment_id in self._names else None
        return path if path is not None and path.is_file() else None

    def add(self, segment_id: str, name: str) -> None:
        """Writes down that a clip shows a segment.

        Raises:
            DataError: The file cannot be written.
        """
        line = {"segment_id": segment_id, "clip": name, **self._about}
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write("\n" * self._needs_line_break + json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise DataError(f"{self._path} cannot be written ({error.strerror}).") from error
        self._needs_line_break = False
        self._names[segment_id] = name

    def _load(self) -> None:
        try:
            text = self._path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise DataError(f"{self._path} cannot be read ({error.strerror}). Move it away.") from error
        num_broken = 0
        for line in text.splitlines():
            try:
                row = json.loads(line)
                if all(row[name] == value for name, value in self._about.items()):
                    self._names[str(row["segment_id"])] = str(row["clip"])
            except (ValueError, KeyError, TypeError):
                num_broken += bool(line.strip())
        self._needs_line_break = bool(text) and not text.endswith("\n")
        if num_broken:
            logger.warning("%d lines of %s cannot be read; their clips are drawn again.", num_broken, self._path)


class SegmentClips:
    """Clips in one folder, and `segments.jsonl` beside them, which says which clip shows which segment.

    Args:
        folder: Where clips lie; made when the first is written.
        env_config: Where segments come from.
        codec: A key of `themis_ray.clips.CODECS`.
        clip_fps: Frames shown per second.

    Raises:
        DataError: There is a `segments.jsonl`, and it cannot be read.
    """

    def __init__(self, folder: Path, env_config: EnvConfig, codec: str = "vp9", clip_fps: float = 15.0) -> None:
        self.folder = folder
        self.codec = codec
        self.clip_fps = clip_fps
        self.index = ClipIndex(folder / "segments.jsonl", {"codec": codec, "clip_fps": clip_fps})
        self._env_config = env_config

    def paths(self, segments: Sequence[Segment]) -> dict[str, Path]:
        """Returns the clip of each segment by its id, drawing those that are not there.

        Raises:
            ConfigError: The environment cannot be made or draws no frames.
            DataError: A segment cannot be replayed, or a file cannot be written.
        """
        wanted = {segment.id: segment for segment in segments}
        missing = [segment for id_, segment in wanted.items() if self.index.find(id_) is None]
        if missing:
            with Replayer(self._env_config) as replayer:
                for segment, frames in replayer.replay(missing):
                    path = write_clip(frames, self.folder, codec=self.codec, clip_fps=self.clip_fps)
                    self.index.add(segment.id, path.name)
        return {segment_id: self.index[segment_id] for segment_id in wanted}
