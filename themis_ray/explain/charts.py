"""Numbers beside and below frames: a bar for each input, a curve along the clip, a legend of the colours.

Every function takes frames (N, H, W, 3) uint8 and returns new ones; what it is given is not written to. What does not
change from frame to frame is drawn once, and so is each number that is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from themis_ray.clips.pictures import (
    BACKGROUND,
    CELL,
    FAINT_TEXT,
    MARGIN,
    NEGATIVE,
    TEXT,
    Colour,
    bar_pixels,
    blank,
    checked_frames,
    load_font,
    side_by_side,
    write_text,
)
from themis_ray.errors import ConfigError, DataError
from themis_ray.explain.pictures import POSITIVE, chart_scale, checked_attributions, scaled, tinted

__all__ = ["draw_bars", "draw_curve", "draw_legend", "largest_inputs", "shared_limits"]

Array = NDArray[Any]
Frames = NDArray[np.uint8]

MAX_ROWS = 16
# Sizes in pixels, which grow with the frame as those of the strips of actions do.
PANEL_WIDTH, MAX_NAME_SHARE = 256, 0.42
ROW_HEIGHT, ROW_SIZE, BAR_HEIGHT = 15, 11, 9
HEAD_HEIGHT, HEAD_SIZE = 20, 10
CURVE_HEIGHT, CURVE_HEAD_HEIGHT, CURVE_SIZE, LIMIT_SIZE = 70, 26, 12, 10
LEGEND_HEAD_HEIGHT, LEGEND_SIZE, RAMP_HEIGHT, TICK_HEIGHT, TICK_SIZE = 18, 11, 8, 14, 10
RAMP_GRAY = 92
MAX_DECIMALS = 4
TIP = 2
# OpenCV takes coordinates in sixteenths of a pixel.
SHIFT = 4


def largest_inputs(*attributions: Array, num_rows: int = MAX_ROWS) -> list[int]:
    """Returns the inputs with the largest mean magnitude over all steps, in the order of the inputs.

    Args:
        *attributions: Each (N, D), of the same D: both sides of a pair, so that they show the same inputs.
        num_rows: Most inputs.

    Raises:
        DataError: There is no step, or the arrays have different numbers of inputs.
    """
    shapes = [np.shape(array) for array in attributions]
    if not shapes or {len(shape) for shape in shapes} != {2} or len({shape[1] for shape in shapes}) != 1:
        raise DataError(f"attributions have shapes {shapes}, not (N, inputs) with the same inputs each.")
    means = np.abs(np.concatenate(attributions)).mean(axis=0)
    chosen: list[int] = np.sort(np.argsort(-means, kind="stable")[:num_rows]).tolist()
    return chosen


def shared_limits(*values: Array) -> tuple[float, float]:
    """Returns the least and the largest of all values, for curves that are compared; two numbers that differ.

    Raises:
        DataError: There is no value, or one is not finite.
    """
    numbers = np.concatenate([np.ravel(array) for array in values]) if values else np.zeros(0)
    if not numbers.size or not np.isfinite(numbers).all():
        raise DataError("there are no values, or some are not finite, so they have no limits. Give numbers only.")
    low, high = float(numbers.min()), float(numbers.max())
    room = max(abs(low), abs(high), 1e-3) / 2
    return (low, high) if high - low > 1e-6 * room else (low - room, high + room)


def draw_bars(
    frames: Frames,
    attributions: Array,
    names: Sequence[str],
    scale: float,
    values: Array | None = None,
    *,
    inputs: Sequence[int] | None = None,
) -> Frames:
    """Returns frames with a panel at the right: each input's name, its value, and its attribution as a bar.

    Bars go from the middle to the right, orange, where an attribution is above 0 and to the left, blue, where it is
    below. Of many inputs some are drawn, and the sum of the others in a row of its own. A bar that is longer than the
    scale ends in white.

    Args:
        frames: (N, H, W, 3) uint8.
        attributions: (N, D).
        names: Of the inputs.
        scale: Magnitude of the longest bar, see `shared_scale`.
        values: (N, D) of the inputs; None leaves numbers out.
        inputs: Which inputs are drawn, from 0 to D - 1; None for the 16 of `largest_inputs`.

    Raises:
        DataError: The frames have another dtype or shape, there is none, or attributions or values do not fit them.
        ConfigError: The scale is no number above 0, there are more or fewer names than inputs, or no such inputs.
    """
    numbers = checked_attributions(attributions, len(checked_frames(frames)), 2)
    chosen = largest_inputs(numbers) if inputs is None else list(inputs)
    _check_inputs(numbers.shape[1], names, chosen)
    labels, columns = [names[number] for number in chosen], [numbers[:, number] for number in chosen]
    others = sorted(set(range(numbers.shape[1])) - set(chosen))
    if others:
        labels.append(f"+{len(others)} more, summed")
        columns.append(numbers[:, others].sum(axis=1))
    texts = [] if values is None else [_texts(column) for column in _checked_values(values, numbers.shape)[:, chosen].T]
    panel = _bar_panels(np.stack(columns, axis=1), scale, labels, texts, frames)
    return side_by_side(frames, panel, gap=0)


def draw_curve(frames: Frames, values: Array, label: str, limits: tuple[float, float] | None = None) -> Frames:
    """Returns frames with a strip below each: a number along the clip, how far it is, and what it is at present.

    What is over is bright and what is to come faint. A line marks 0 where it is within the limits.

    Args:
        frames: (N, H, W, 3) uint8.
        values: (N,) of the steps, such as predicted rewards.
        label: What they are.
        limits: Values at the lower and upper edge, see `shared_limits`; None for the least and the largest.

    Raises:
        DataError: The frames have another dtype or shape, there is none, or the values do not fit them.
        ConfigError: The limits are not two numbers of which the first is less.
    """
    numbers = checked_attributions(values, len(checked_frames(frames)), 1).astype(np.float64)
    low, high = shared_limits(numbers) if limits is None else limits
    if not np.isfinite([low, high]).all() or not low < high:
        raise ConfigError(f"limits {limits} are no range. Give two numbers, the lower one first.")
    scale, width = chart_scale(frames), frames.shape[2]
    height, top = round(CURVE_HEIGHT * scale), round(CURVE_HEAD_HEIGHT * scale)
    margin = MARGIN * scale
    limit_texts = _texts(np.array([high, low]))
    font = load_font(round(LIMIT_SIZE * scale))
    left = 2 * margin + max(font.getlength(text) for text in limit_texts)
    middle = top / 2
    ends = top + 2 * scale, height - margin
    image = Image.fromarray(blank(height, width)[0])
    texts = _texts(numbers)
    room = width - 3 * margin - max(load_font(round(CURVE_SIZE * scale)).getlength(text) for text in texts)
    write_text(image, label, (margin, middle), CURVE_SIZE * scale, room, colour=FAINT_TEXT)
    for text, y in zip(limit_texts, ends, strict=True):
        write_text(image, text, (left - margin, y), LIMIT_SIZE * scale, left, colour=FAINT_TEXT, anchor="rm")

    def height_of(value: Array | float) -> Array:
        return np.asarray(ends[1] + (np.clip(value, low, high) - low) / (high - low) * (ends[0] - ends[1]))

    x = np.linspace(left, width - 2 * margin, len(numbers))
    plain = np.array(image)
    if low < 0 < high:
        plain[round(float(height_of(0.0))), round(left) : round(width - 2 * margin) + 1] = CELL
    strips = _curve_strips(plain, x, height_of(numbers), top, scale)
    for strip, text in zip(strips, texts, strict=True):
        _paste(strip, _stamp(text, round(CURVE_SIZE * scale), TEXT), width - margin, middle)
    return np.concatenate([frames, strips], axis=1)


def draw_legend(
    frames: Frames, scale: float, text_negative: str = "pushes it down", text_positive: str = "pushes it up"
) -> Frames:
    """Returns frames with a strip below each that says what the colours mean, from minus to plus the scale.

    Args:
        frames: (N, H, W, 3) uint8.
        scale: Magnitude in full colour, see `shared_scale`.
        text_negative: What blue means.
        text_positive: What orange means.

    Raises:
        DataError: The frames have another dtype or shape, or there is none.
        ConfigError: The scale is no number above 0.
    """
    scaled(np.zeros(1, np.float32), scale)
    size, width = chart_scale(checked_frames(frames)), frames.shape[2]
    margin, head, ramp = round(MARGIN * size), round(LEGEND_HEAD_HEIGHT * size), round(RAMP_HEIGHT * size)
    foot = round(TICK_HEIGHT * size)
    strip = blank(head + ramp + foot, width)[0]
    ratios = np.linspace(-1, 1, max(width - 2 * margin, 1), dtype=np.float32)
    strip[head : head + ramp, margin : margin + len(ratios)] = tinted(RAMP_GRAY, ratios)
    image = Image.fromarray(strip)
    places = ((margin, "l"), (width / 2, "m"), (width - margin, "r"))
    room = width / 2 - 2 * margin
    letters = _common_size((text_negative, text_positive), LEGEND_SIZE * size, room)
    for (x, side), text, colour in ((places[0], text_negative, NEGATIVE), (places[2], text_positive, POSITIVE)):
        write_text(image, text, (x, head / 2), letters, room, colour=colour, anchor=f"{side}m")
    for (x, side), text in zip(places, (f"{-scale:.3g}", "0", f"+{scale:.3g}"), strict=True):
        middle = head + ramp + foot / 2
        write_text(image, text, (x, middle), TICK_SIZE * size, room, colour=FAINT_TEXT, anchor=f"{side}m")
    strips = np.broadcast_to(np.asarray(image), (len(frames), *strip.shape))
    return np.concatenate([frames, strips], axis=1)


def _bar_panels(
    numbers: NDArray[np.float32], scale: float, labels: Sequence[str], texts: Sequence[Sequence[str]], frames: Frames
) -> Frames:
    """Returns a panel for each step, (N, H, W, 3).

    Args:
        numbers: (N, rows) attributions of the rows that are drawn.
        scale: Magnitude of the longest bar.
        labels: Of the rows.
        texts: Of the first rows, N numbers each; rows behind them have none.
        frames: What the panels will stand beside.
    """
    plain_height = HEAD_HEIGHT + ROW_HEIGHT * len(labels) + MARGIN
    size = max(1.0, min(chart_scale(frames), frames.shape[1] / plain_height))
    width, margin = round(PANEL_WIDTH * size), round(MARGIN * size)
    letters = _common_size(labels, ROW_SIZE * size, MAX_NAME_SHARE * width)
    font = load_font(round(letters))
    text_width = max((font.getlength(text) for column in texts for text in column), default=0)
    name_width = min(max(font.getlength(label) for label in labels) + 1, MAX_NAME_SHARE * width)
    value_right = round(2 * margin + name_width + text_width)
    start, stop = value_right + (margin if texts else 0), width - margin
    image = Image.fromarray(blank(round(plain_height * size), width)[0])
    _write_head(image, scale, size, start, stop)
    middles = [(HEAD_HEIGHT + (row + 0.5) * ROW_HEIGHT) * size for row in range(len(labels))]
    for label, middle in zip(labels, middles, strict=True):
        write_text(image, label, (margin, middle), letters, name_width)
    panels = np.repeat(np.asarray(image)[None], len(numbers), axis=0)
    bar_height, tip = round(BAR_HEIGHT * size), round(TIP * size)
    for column, middle in zip(numbers.T, middles, strict=True):
        bars = bar_pixels(scaled(column, scale).astype(np.float64), -1.0, 1.0, stop - start)
        bars[column > scale, -tip:] = TEXT
        bars[column < -scale, :tip] = TEXT
        top = round(middle - bar_height / 2)
        panels[:, top : top + bar_height, start:stop] = bars[:, None]
    for column_texts, middle in zip(texts, middles, strict=False):
        for panel, text in zip(panels, column_texts, strict=True):
            _paste(panel, _stamp(text, round(letters), FAINT_TEXT), value_right, middle)
    return panels


def _write_head(image: Image.Image, scale: float, size: float, start: int, stop: int) -> None:
    """Writes what the ends and the middle of bars stand for."""
    middle, room = HEAD_HEIGHT * size / 2, (stop - start) / 2
    for x, text, side in (
        (start, f"{-scale:.2g}", "l"),
        ((start + stop) / 2, "0", "m"),
        (stop, f"+{scale:.2g}", "r"),
    ):
        write_text(image, text, (x, middle), HEAD_SIZE * size, room, colour=FAINT_TEXT, anchor=f"{side}m")


def _curve_strips(plain: Frames, x: Array, y: Array, top: int, scale: float) -> Frames:
    """Returns strips, (N, H, W, 3), with a line through all points that is bright up to the point of the step."""
    points = np.stack([x, y], axis=1)
    faint, bright = (np.ascontiguousarray(plain.copy()) for _ in range(2))
    for image, colour in ((faint, CELL), (bright, FAINT_TEXT)):
        _line(image, points, colour, max(1, round(1.5 * scale)))
    is_over = np.arange(plain.shape[1]) <= np.rint(x)[:, None]
    strips = np.where(is_over[:, None, :, None], bright, faint)
    for strip, point in zip(strips, points, strict=True):
        strip[top:, round(float(point[0]))] = CELL
        centre = (round(point[0] * 2**SHIFT), round(point[1] * 2**SHIFT))
        for radius, colour in ((4.0, BACKGROUND), (3.0, TEXT)):
            cv2.circle(strip, centre, round(radius * scale * 2**SHIFT), colour, -1, cv2.LINE_AA, SHIFT)
    return strips


def _line(image: Frames, points: Array, colour: Colour, thickness: int) -> None:
    path = np.rint(points * 2**SHIFT).astype(np.int32)[:, None]
    cv2.polylines(image, [path], isClosed=False, color=colour, thickness=thickness, lineType=cv2.LINE_AA, shift=SHIFT)


def _common_size(texts: Sequence[str], size: float, room: float) -> float:
    """Returns the size at which the longest text fits into `room`, at least 3/4 of `size`."""
    longest = max(load_font(round(size)).getlength(text) for text in texts)
    return size * min(1.0, max(0.75, room / max(longest, 1.0)))


def _texts(values: Array) -> list[str]:
    """Returns numbers with as many decimals as the largest of them needs for three digits."""
    largest = float(np.abs(values).max())
    decimals = 2 if largest == 0 else int(np.clip(2 - np.floor(np.log10(largest)), 0, MAX_DECIMALS))
    rounded = np.round(np.asarray(values, np.float64), decimals) + 0.0  # no "-0.00"
    return [f"{value:.{decimals}f}" for value in rounded.tolist()]


@lru_cache(maxsize=4096)
def _stamp(text: str, size: int, colour: Colour) -> Frames:
    """Returns a line of text, (H, W, 3), on the background."""
    width = round(load_font(size).getlength(text)) + 1
    image = Image.fromarray(blank(round(1.3 * size), width)[0])
    write_text(image, text, (0, image.height / 2), size, width, colour=colour)
    return np.asarray(image)


def _paste(target: Frames, stamp: Frames, right: float, middle: float) -> None:
    """Puts a stamp where it ends at `right` and has `middle` in its middle; what does not fit is cut at the left."""
    top, stop = round(middle - len(stamp) / 2), round(right)
    stamp = stamp[:, max(0, stamp.shape[1] - stop) :]
    target[top : top + len(stamp), stop - stamp.shape[1] : stop] = stamp


def _check_inputs(num_inputs: int, names: Sequence[str], chosen: Sequence[int]) -> None:
    if len(names) != num_inputs:
        raise ConfigError(f"{len(names)} names are given where {num_inputs} are needed. Give one for each input.")
    if not chosen or min(chosen) < 0 or max(chosen) >= num_inputs:
        raise ConfigError(
            f"inputs {list(chosen)} are not among {num_inputs}. Give one from 0 to {num_inputs - 1} at least."
        )


def _checked_values(values: Array, shape: tuple[int, ...]) -> NDArray[np.float64]:
    array = np.asarray(values)
    if array.shape != shape or not np.isfinite(array).all():
        raise DataError(f"values have shape {array.shape} or are not finite. Give numbers of shape {shape}.")
    return array.astype(np.float64)
