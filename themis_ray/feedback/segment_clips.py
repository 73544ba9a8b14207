"""The clips of a run's segments, drawn once and found again by a run that goes on."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from themis_ray.clips import Replayer, write_clip
from themis_ray.data import Segment
from themis_ray.envs import EnvConfig
from themis_ray.errors import DataError

__all__ = ["SegmentClips"]

logger = logging.getLogger("themis_ray")


class SegmentClips:
    """Clips in one folder, and `segments.jsonl` beside them, which says which clip shows which segment.

    Each line holds segment_id, clip, codec and clip_fps. A line that cannot be read, such as the unfinished last one of
    a killed run, costs that its segment is drawn again.

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
        self._env_config = env_config
        self._index_path = folder / "segments.jsonl"
        self._names: dict[str, str] = {}
        self._needs_line_break = False
        if self._index_path.exists():
            self._load()

    def paths(self, segments: Sequence[Segment]) -> dict[str, Path]:
        """Returns the clip of each segment by its id, drawing those that are not there.

        Raises:
            ConfigError: The environment cannot be made or draws no frames.
            DataError: A segment cannot be replayed, or a file cannot be written.
        """
        wanted = {segment.id: segment for segment in segments}
        missing = [segment for id_, segment in wanted.items() if not self._is_there(id_)]
        if missing:
            with Replayer(self._env_config) as replayer:
                for segment, frames in replayer.replay(missing):
                    path = write_clip(frames, self.folder, codec=self.codec, clip_fps=self.clip_fps)
                    self._add(segment.id, path.name)
        return {segment_id: self.folder / self._names[segment_id] for segment_id in wanted}

    def _is_there(self, segment_id: str) -> bool:
        return segment_id in self._names and (self.folder / self._names[segment_id]).is_file()

    def _add(self, segment_id: str, name: str) -> None:
        line = {"segment_id": segment_id, "clip": name, "codec": self.codec, "clip_fps": self.clip_fps}
        try:
            with self._index_path.open("a", encoding="utf-8") as file:
                file.write("\n" * self._needs_line_break + json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise DataError(f"{self._index_path} cannot be written ({error.strerror}).") from error
        self._needs_line_break = False
        self._names[segment_id] = name

    def _load(self) -> None:
        try:
            text = self._index_path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise DataError(f"{self._index_path} cannot be read ({error.strerror}). Move it away.") from error
        num_broken = 0
        for line in text.splitlines():
            try:
                row = json.loads(line)
                if (row["codec"], float(row["clip_fps"])) == (self.codec, self.clip_fps):
                    self._names[str(row["segment_id"])] = str(row["clip"])
            except (ValueError, KeyError, TypeError):
                num_broken += bool(line.strip())
        self._needs_line_break = bool(text) and not text.endswith("\n")
        if num_broken:
            logger.warning("%d lines of %s cannot be read; their clips are drawn again.", num_broken, self._index_path)
