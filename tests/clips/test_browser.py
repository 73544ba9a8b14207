"""A browser plays what `write_clip` writes: both formats have a length, a size, and frames that seeking finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from clips.browser import IS_SKIPPED, WHY_SKIPPED, play

from themis_ray.clips import CODECS, write_clip

pytestmark = pytest.mark.skipif(IS_SKIPPED, reason=WHY_SKIPPED)

COLOURS = np.array([[200, 30, 30], [30, 200, 30], [30, 30, 200], [220, 220, 40]], np.uint8)


def coloured_frames(num_frames: int, height: int, width: int) -> np.ndarray:
    """Returns frames of four plain colours, each for a quarter of the time."""
    quarters = np.arange(num_frames) * len(COLOURS) // num_frames
    return np.broadcast_to(COLOURS[quarters][:, None, None], (num_frames, height, width, 3)).copy()


def test_a_browser_plays_and_seeks(tmp_path: Path) -> None:
    frames = coloured_frames(40, 96, 128)
    odd = coloured_frames(1, 33, 51)
    paths = [write_clip(frames, tmp_path, codec=codec, clip_fps=20) for codec in CODECS]
    paths += [write_clip(odd, tmp_path, codec=codec, clip_fps=20) for codec in CODECS]
    results = play(paths, tmp_path, num_seeks=4)
    assert [result["error"] for result in results] == [None] * 4
    for result in results[:2]:
        assert result["duration"] == pytest.approx(2.0, abs=1e-3)
        assert (result["width"], result["height"]) == (128, 96)
        assert result["times"] == pytest.approx([0.25, 0.75, 1.25, 1.75], abs=1e-3)
        assert result["num_distinct_frames"] == 4
        # Where it seeks to is what it finds, and colours come out as they went in.
        np.testing.assert_allclose(result["colours"], COLOURS, atol=8)
    for result in results[2:]:
        assert result["duration"] == pytest.approx(0.05, abs=1e-3)
        assert (result["width"], result["height"]) == (52, 34)
        assert result["num_distinct_frames"] == 1


def test_what_is_no_video_is_told(tmp_path: Path) -> None:
    path = tmp_path / "broken.webm"
    path.write_bytes(b"no video")
    (result,) = play([path], tmp_path)
    assert result["error"]
