"""Attributions over frames: heat maps, strips of stills, and the two sides of a pair with what explains them.

Every function takes frames (N, H, W, 3) uint8 and returns new ones; what it is given is not written to. Blue is
negative and orange is positive, which people who do not tell red from green tell apart too; no other colour is left in
a picture under a heat map, so that whatever has a colour has an attribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from themis_ray.clips.pictures import (
    FAINT_TEXT,
    MARGIN,
    NEGATIVE,
    PRESSED,
    blank,
    checked_frames,
    text_scale,
    write_text,
)
from themis_ray.errors import ConfigError, DataError

__all__ = [
    "chart_scale",
    "checked_attributions",
    "draw_heatmap",
    "film_strip",
    "pair_layout",
    "scaled",
    "shared_scale",
    "shrink",
    "tinted",
    "write_picture",
]

Array = NDArray[Any]
Frames = NDArray[np.uint8]

POSITIVE = PRESSED
# Of the strongest attribution: something of the frame is still seen through it.
MAX_ALPHA = 0.85
BRIGHTNESS = 0.7
# The largest attribution of a step is the mean of this share of its inputs, and that of a clip this quantile of steps.
TOP_SHARE = 0.001
STEP_QUANTILE = 0.95
GAP = 8
MAX_TEXT_SCALE = 1.75
STEP_HEIGHT, STEP_SIZE = 18, 11


def shared_scale(*attributions: Array) -> float:
    """Returns the magnitude that is drawn in full colour, one for all that is compared, such as both sides of a pair.

    It is a maximum that single numbers do not move: of each step the mean magnitude of the largest 0.1 % of its inputs
    (one at least), and of the steps of all arrays together the 95 % quantile. Unlike a quantile of all numbers it does
    not vanish where few inputs matter, as in a picture where all but a ball is still.

    Args:
        *attributions: Each (N, ...), of any N and shape.

    Returns:
        A number above 0; 1 where nothing has an attribution.

    Raises:
        DataError: There is no step, or a number is not finite.
    """
    steps = [_largest(_finite(np.asarray(array)).reshape(len(array), -1)) for array in attributions if len(array)]
    if not steps:
        raise DataError("there are no attributions to find a scale of. Give those of one step at least.")
    largest = np.concatenate(steps)
    scale = float(np.quantile(largest, STEP_QUANTILE)) or float(largest.max())
    return scale if scale > 0 else 1.0


def shrink(frames: Frames, target_width: int = 400) -> Frames:
    """Returns frames made smaller so that they are `target_width` pixels wide; narrower ones as they are.

    Simulators draw up to 600 pixels, which leaves no room beside or below for what explains them.

    Args:
        frames: (N, H, W, 3) uint8.
        target_width: Most pixels of width.

    Raises:
        DataError: The frames have another dtype or shape, or there is none.
        ConfigError: `target_width` is below 1.
    """
    if target_width < 1:
        raise ConfigError(f"target_width {target_width} is no size of a picture. Give a number of pixels >= 1.")
    height, width = checked_frames(frames).shape[1:3]
    if width <= target_width:
        return frames
    size = target_width, max(1, round(height * target_width / width))
    return np.stack([cv2.resize(np.ascontiguousarray(frame), size, interpolation=cv2.INTER_AREA) for frame in frames])


def draw_heatmap(frames: Frames, attributions: Array, scale: float, *, brightness: float = BRIGHTNESS) -> Frames:
    """Returns frames in gray, coloured where the attribution is: blue below 0, orange above.

    The attribution is stretched over the frame, smoothly where it is coarser. The colour covers the more of the frame
    the larger the attribution is, so that what does not matter stays as it was, in gray and a little darker.

    Args:
        frames: (N, H, W, 3) uint8.
        attributions: (N, h, w), of any h and w, rows from the top.
        scale: Magnitude in full colour, see `shared_scale`; larger ones look the same.
        brightness: Of what is not coloured, from 0 to 1, which leaves it as bright as it was.

    Raises:
        DataError: The frames have another dtype or shape, there is none, or the attributions do not fit them.
        ConfigError: The scale is no number above 0, or `brightness` is out of range.
    """
    if not 0 <= brightness <= 1:
        raise ConfigError(f"brightness {brightness} is out of range. Give a number from 0, black, to 1, as it was.")
    ratios = scaled(checked_attributions(attributions, len(checked_frames(frames)), 3), scale)
    height, width = frames.shape[1:3]
    drawn = np.empty_like(frames)
    for target, frame, ratio in zip(drawn, frames, ratios, strict=True):
        is_smaller = ratio.shape[0] > height or ratio.shape[1] > width
        wide = cv2.resize(ratio, (width, height), interpolation=cv2.INTER_AREA if is_smaller else cv2.INTER_LINEAR)
        gray = cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) * np.float32(brightness)
        target[:] = _covered(gray, wide)
    return drawn


def film_strip(frames: Frames, steps: Sequence[int], *, first_step: int = 0, num_columns: int | None = None) -> Frames:
    """Returns a few frames side by side as one picture, (H, W, 3) uint8, each with the number of its step above it.

    Args:
        frames: (N, H, W, 3) uint8.
        steps: Which ones, from 0 to N - 1.
        first_step: What is added to the numbers, such as the step of the episode that the clip begins with.
        num_columns: Most frames in a row; None for all in one.

    Raises:
        DataError: The frames have another dtype or shape, there is none, or there are no such steps.
        ConfigError: `num_columns` is below 1.
    """
    if num_columns is not None and num_columns < 1:
        raise ConfigError(f"num_columns {num_columns} leaves no room for a frame. Give 1 or more.")
    if not len(steps) or min(steps) < 0 or max(steps) >= len(checked_frames(frames)):
        raise DataError(f"steps {list(steps)} are not among the {len(frames)} frames. Give one from 0 on at least.")
    stills = [_numbered(frames[step], f"step {first_step + step}", chart_scale(frames)) for step in steps]
    height, width = stills[0].shape[:2]
    columns = min(num_columns or len(stills), len(stills))
    rows = -(-len(stills) // columns)
    strip: Frames = blank(rows * (height + GAP) - GAP, columns * (width + GAP) - GAP)[0]
    for number, still in enumerate(stills):
        top, left = number // columns * (height + GAP), number % columns * (width + GAP)
        strip[top : top + height, left : left + width] = still
    return strip


def pair_layout(
    left_frames: Frames, right_frames: Frames, left_explained: Frames, right_explained: Frames, *, gap: int = GAP
) -> Frames:
    """Returns both clips next to each other on top, and below each its explanation.

    All of a side are centred on one line, and the fewer frames hold their last.

    Args:
        left_frames: (N, H, W, 3) uint8, of any N, H and W, as are the others.
        right_frames: What is compared with it.
        left_explained: The left frames with their explanation.
        right_explained: The right frames with theirs.
        gap: Pixels between them.

    Raises:
        DataError: Frames have another dtype or shape, or there is none.
        ConfigError: `gap` is negative.
    """
    if gap < 0:
        raise ConfigError(f"gap {gap} is negative. Give the number of pixels between the clips, 0 or more.")
    pairs = ((left_frames, right_frames), (left_explained, right_explained))
    rows = [[checked_frames(part) for part in pair] for pair in pairs]
    length = max(len(part) for row in rows for part in row)
    heights = [max(part.shape[1] for part in row) for row in rows]
    widths = [max(row[side].shape[2] for row in rows) for side in range(2)]
    whole = blank(sum(heights) + gap, sum(widths) + gap, length)
    for row, top, height in zip(rows, (0, heights[0] + gap), heights, strict=True):
        for part, start, width in zip(row, (0, widths[0] + gap), widths, strict=True):
            y, x = top + (height - part.shape[1]) // 2, start + (width - part.shape[2]) // 2
            steps = np.minimum(np.arange(length), len(part) - 1)
            whole[:, y : y + part.shape[1], x : x + part.shape[2]] = part[steps]
    return whole


def write_picture(frame: Frames, path: str | Path) -> Path:
    """Writes a picture, (H, W, 3) uint8, as PNG and returns its path; the folder is made if it is missing.

    Raises:
        DataError: It has another dtype or shape, or nothing in it.
    """
    checked_frames(np.asarray(frame)[None])
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(frame)).save(path, "PNG", optimize=True)
    return path


def chart_scale(frames: Frames) -> float:
    """Returns what sizes of text are multiplied by: that of clips, but less than twice, as panels make frames wide."""
    return min(text_scale(frames), MAX_TEXT_SCALE)


def checked_attributions(attributions: Array, num_frames: int, num_axes: int) -> NDArray[np.float32]:
    """Returns attributions as float32, once they are known to be numbers with one step for each frame.

    Args:
        attributions: (N, ...) with `num_axes` axes.
        num_frames: N.
        num_axes: 1 for a number, 2 for vectors, 3 for pictures.

    Raises:
        DataError: They have another number of axes or of steps, nothing in them, or a number that is not finite.
    """
    array = np.asarray(attributions)
    if array.ndim != num_axes or len(array) != num_frames or not array.size:
        wanted = {1: "(N,)", 2: "(N, inputs)", 3: "(N, height, width)"}[num_axes]
        raise DataError(
            f"attributions have shape {array.shape}, not {wanted} with one step for each of {num_frames} frames."
        )
    return _finite(array)


def scaled(attributions: NDArray[np.float32], scale: float) -> NDArray[np.float32]:
    """Returns attributions as shares of full colour, from -1 to 1.

    Raises:
        ConfigError: The scale is no number above 0.
    """
    if not np.isfinite(scale) or scale <= 0:
        raise ConfigError(f"scale {scale} is no magnitude of attributions. Give a number above 0, see shared_scale.")
    shares: NDArray[np.float32] = np.clip(attributions / np.float32(scale), -1, 1)
    return shares


def tinted(base: Array | float, ratios: Array) -> Frames:
    """Returns pixels (..., 3) uint8: those of `base` covered by orange for ratios up to 1, by blue down to -1.

    Args:
        base: (..., 3), or (..., 1) or one number for gray, from 0 to 255.
        ratios: (...,) from -1 to 1.
    """
    alpha = (np.abs(ratios) * np.float32(MAX_ALPHA))[..., None]
    colours = np.where((ratios > 0)[..., None], np.array(POSITIVE, np.float32), np.array(NEGATIVE, np.float32))
    return np.rint(base * (1 - alpha) + colours * alpha).astype(np.uint8)


def _covered(gray: Array, ratios: NDArray[np.float32]) -> Array:
    """Returns what `tinted` does of one gray picture (H, W), give or take a rounding, in a seventh of the time."""
    left = gray * (1 - np.abs(ratios) * np.float32(MAX_ALPHA))
    shares = cv2.merge([left, np.maximum(ratios, 0), np.maximum(-ratios, 0)])
    rows = [(1.0, MAX_ALPHA * up, MAX_ALPHA * down) for up, down in zip(POSITIVE, NEGATIVE, strict=True)]
    return np.asarray(cv2.convertScaleAbs(cv2.transform(shares, np.array(rows, np.float32))))


def _numbered(frame: Frames, text: str, size: float) -> Frames:
    head = Image.fromarray(blank(round(STEP_HEIGHT * size), frame.shape[1])[0])
    write_text(head, text, (MARGIN, head.height / 2), STEP_SIZE * size, head.width - 2 * MARGIN, colour=FAINT_TEXT)
    return np.concatenate([np.asarray(head), frame])


def _largest(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the mean of the largest magnitudes of each row, (N,)."""
    count = max(1, round(TOP_SHARE * rows.shape[1]))
    magnitudes = np.partition(np.abs(rows), rows.shape[1] - count, axis=1)
    largest: NDArray[np.float32] = magnitudes[:, -count:].mean(axis=1)
    return largest


def _finite(array: Array) -> NDArray[np.float32]:
    if not np.isfinite(array).all():
        raise DataError("some attributions are not finite, so they have no colour. Give numbers only.")
    return array.astype(np.float32)
