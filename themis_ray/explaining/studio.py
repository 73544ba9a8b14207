"""Clips and stills of a run's segments, with and without what explains them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

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
    pair_layout,
    shrink,
    write_picture,
)

__all__ = ["Drawn", "Output", "Studio"]

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


class Drawn(NamedTuple):
    """A segment that was drawn."""

    explained: ExplainedSegment
    plain_frames: NDArray[np.uint8]
    """(N, H, W, 3), what there was to see."""
    frames: NDArray[np.uint8]
    """(N, H', W', 3), the same with what explains it."""


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

    def draw(self, explained: ExplainedSegment, scales: Scales, meaning: str, texts: tuple[str, str]) -> Drawn:
        """Returns the segment's frames, without and with what explains them."""
        frames = self._replayer.frames(explained.segment)
        return Drawn(
            explained,
            upscale(shrink(frames, LARGE_WIDTH)),
            draw_explanation(frames, explained, scales, self._look, meaning, texts),
        )

    def clip(self, drawn: Drawn) -> Path:
        """Writes the clip of a segment with what explains it."""
        return self._write(drawn.frames)

    def pair_clip(self, left: Drawn, right: Drawn) -> Path:
        """Writes one clip of a pair: both segments on top, what explains them below."""
        return self._write(pair_layout(left.plain_frames, right.plain_frames, left.frames, right.frames))

    def page_clip(self, drawn: Drawn) -> ExplainedClip:
        """Writes the clip and a strip of stills, and returns both for the page."""
        explained, frames = drawn.explained, drawn.frames
        segment = explained.segment
        stills = np.unique(np.linspace(0, len(frames) - 1, NUM_STILLS).round().astype(int)).tolist()
        strip = film_strip(frames, stills, first_step=segment.start_step)
        clip = self._write(frames)
        strongest_input = int(np.abs(explained.inputs).mean(axis=0).argmax())
        return ExplainedClip(
            f"Segment {segment.id[:8]}",
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
