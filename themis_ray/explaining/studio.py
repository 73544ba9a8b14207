"""Clips and stills of a run's segments, with and without what explains them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from themis_ray.clips import Replayer, draw_actions, upscale, write_clip
from themis_ray.data import Segment
from themis_ray.explain import (
    ExplainedClip,
    ExplainedSegment,
    Look,
    Scales,
    draw_explanation,
    film_strip,
    shrink,
    write_picture,
)

__all__ = ["Output", "Studio"]

NUM_STILLS = 4
SMALL_WIDTH, LARGE_WIDTH = 160, 320


@dataclass(frozen=True)
class Output:
    """Where explanations go.

    Attributes:
        folder: Made if it is missing.
        codec: Of the clips.
        clip_fps: Env steps per second.
    """

    folder: Path
    codec: str = "vp9"
    clip_fps: float = 15.0


class Studio:
    """Draws segments of one run, each simulated once.

    Args:
        look: Of their environment.
        replayer: Of its environment.
        output: Where clips go.
    """

    def __init__(self, look: Look, replayer: Replayer, output: Output) -> None:
        self._look, self._replayer, self._output = look, replayer, output
        self._plain: dict[tuple[str, int], Path] = {}

    def _plain_clip(self, segment: Segment, width: int) -> Path:
        """Returns a clip of a segment with its actions."""
        key = segment.id, width
        if key not in self._plain:
            frames = upscale(shrink(self._replayer.frames(segment), width), width)
            frames = draw_actions(frames, segment.actions, self._replayer.action_space, self._replayer.action_names)
            self._plain[key] = self._write(frames)
        return self._plain[key]

    def small_clip(self, segment: Segment) -> Path | None:
        """Returns a small clip of a segment; None where it cannot be drawn, as of preferences that were imported."""
        return None if segment.origin is None else self._plain_clip(segment, SMALL_WIDTH)

    def shown_clip(self, segment: Segment) -> ExplainedClip:
        """Returns a segment for the page, without anything drawn on it."""
        clip = self._plain_clip(segment, LARGE_WIDTH)
        return ExplainedClip(f"Segment {segment.id[:8]}", clip, None, facts=_facts(segment))

    def explained_frames(
        self, explained: ExplainedSegment, scales: Scales, meaning: str, texts: tuple[str, str]
    ) -> NDArray[np.uint8]:
        """Returns the segment's frames with what explains them."""
        frames = self._replayer.frames(explained.segment)
        return draw_explanation(frames, explained, scales, self._look, meaning, texts)

    def explained_clip(self, explained: ExplainedSegment, scales: Scales, meaning: str, texts: tuple[str, str]) -> Path:
        """Writes the clip of a segment with what explains it."""
        return self._write(self.explained_frames(explained, scales, meaning, texts))

    def page_clip(self, explained: ExplainedSegment, frames: NDArray[np.uint8], title: str) -> ExplainedClip:
        """Writes the clip and a strip of stills, and returns both for the page."""
        segment = explained.segment
        stills = np.unique(np.linspace(0, len(frames) - 1, NUM_STILLS).round().astype(int)).tolist()
        strip = film_strip(frames, stills, first_step=segment.start_step)
        clip = self._write(frames)
        strongest_input = int(np.abs(explained.inputs).mean(axis=0).argmax())
        return ExplainedClip(
            title,
            clip,
            write_picture(strip, clip.with_suffix(".png")),
            facts=(
                *_facts(segment),
                ("sum of what is explained", f"{explained.numbers.sum():.3g}"),
                ("most is due to", explained.input_names[strongest_input]),
            ),
        )

    def _write(self, frames: NDArray[np.uint8]) -> Path:
        return write_clip(frames, self._output.folder, codec=self._output.codec, clip_fps=self._output.clip_fps)


def _facts(segment: Segment) -> tuple[tuple[str, str], ...]:
    steps = f"{segment.start_step} to {segment.start_step + len(segment) - 1}"
    return ("steps of its episode", steps), ("true return", f"{segment.true_return:.3g}")
