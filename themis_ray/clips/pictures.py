"""What is drawn around frames: larger pixels, the action of each step, a line of text, two segments side by side.

Every function takes frames (N, H, W, 3) uint8 and returns new ones; what it is given is not written to.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from themis_ray.errors import ConfigError, DataError

__all__ = [
    "bar_pixels",
    "blank",
    "checked_frames",
    "draw_actions",
    "draw_caption",
    "load_font",
    "side_by_side",
    "text_scale",
    "upscale",
    "write_text",
]

AnyArray = NDArray[Any]
Frames = NDArray[np.uint8]
Colour = tuple[int, int, int]

BACKGROUND: Colour = (22, 24, 29)
CELL: Colour = (58, 62, 72)
TEXT: Colour = (236, 238, 242)
FAINT_TEXT: Colour = (158, 164, 176)
# Told apart by people who do not tell red from green.
PRESSED: Colour = (255, 176, 32)
NEGATIVE: Colour = (88, 166, 255)

# Sizes in pixels of a frame as wide as this; in a wider frame all of them grow with it.
REFERENCE_WIDTH = 256
MARGIN = 6
NAME_HEIGHT, NAME_SIZE = 22, 15
TICK_HEIGHT = 4
ROW_HEIGHT, ROW_SIZE, BAR_HEIGHT = 14, 11, 8
CAPTION_HEIGHT, CAPTION_SIZE = 24, 14
MIN_TEXT_SIZE = 9
MAX_DIMENSIONS = 24
MAX_COLUMNS, ROWS_BEFORE_COLUMNS = 3, 4
MAX_CELLS_PER_ROW = 8
MAX_LABEL_SHARE = 0.4


def checked_frames(frames: AnyArray) -> Frames:
    """Returns frames as they are, once they are known to be some.

    Raises:
        DataError: They are no (N, H, W, 3) uint8 array, or N, H or W is 0.
    """
    if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        given = f"{frames.dtype} {frames.shape}" if isinstance(frames, np.ndarray) else type(frames).__name__
        raise DataError(f"frames are {given}, not uint8 (N, H, W, 3). Stack RGB images with np.stack.")
    if not frames.size:
        raise DataError(f"frames have shape {frames.shape}, so there is nothing to see. Give one frame at least.")
    return frames


def upscale(frames: Frames, target_side: int = 256) -> Frames:
    """Returns frames enlarged by the largest whole factor that leaves the longer side at `target_side` or below.

    Each pixel becomes a block of that many pixels a side, so that nothing is blurred. Frames that are too large for a
    factor of 2 are returned as they are.

    Args:
        frames: (N, H, W, 3) uint8.
        target_side: Most pixels of the longer side.

    Raises:
        DataError: The frames have another dtype or shape, or there is none.
        ConfigError: `target_side` is below 1.
    """
    if target_side < 1:
        raise ConfigError(f"target_side {target_side} is no size of a picture. Give a number of pixels >= 1.")
    factor = target_side // max(checked_frames(frames).shape[1:3])
    return frames if factor < 2 else frames.repeat(factor, axis=1).repeat(factor, axis=2)


def side_by_side(left: Frames, right: Frames, *, gap: int = 8) -> Frames:
    """Returns the frames of two segments next to each other, (max N, max H, W + gap + W, 3).

    The lower ones are centred, and the fewer ones hold their last.

    Args:
        left: (N, H, W, 3) uint8.
        right: (N, H, W, 3) uint8, of any other N, H and W.
        gap: Pixels between them.

    Raises:
        DataError: The frames have another dtype or shape, or there is none.
        ConfigError: `gap` is negative.
    """
    if gap < 0:
        raise ConfigError(f"gap {gap} is negative. Give the number of pixels between left and right, 0 or more.")
    sides = [checked_frames(left), checked_frames(right)]
    length, height, _, _ = np.max([side.shape for side in sides], axis=0)
    joined = blank(height, left.shape[2] + gap + right.shape[2], length)
    for side, start in zip(sides, (0, left.shape[2] + gap), strict=True):
        top = (height - side.shape[1]) // 2
        steps = np.minimum(np.arange(length), len(side) - 1)
        joined[:, top : top + side.shape[1], start : start + side.shape[2]] = side[steps]
    return joined


def draw_caption(frames: Frames, text: str) -> Frames:
    """Returns frames with a line of text above them.

    Text that is too long is set smaller, then cut. White space and line breaks become one space.

    Raises:
        DataError: The frames have another dtype or shape, or there is none.
    """
    scale = text_scale(checked_frames(frames))
    strip = Image.fromarray(blank(round(CAPTION_HEIGHT * scale), frames.shape[2])[0])
    room = strip.width - 2 * MARGIN * scale
    write_text(strip, " ".join(text.split()), (MARGIN * scale, strip.height / 2), CAPTION_SIZE * scale, room)
    strips = np.broadcast_to(np.asarray(strip), (len(frames), strip.height, strip.width, 3))
    return np.concatenate([strips, frames], axis=1)


def draw_actions(
    frames: Frames,
    actions: AnyArray,
    action_space: spaces.Space[Any],
    names: Sequence[str] | None = None,
) -> Frames:
    """Returns frames with a strip below each that shows the action of its step.

    * Discrete: the name of the action, and a row of ticks of which its own is lit.
    * Box: a bar for each dimension, from 0 to the value, within the bounds of the space. A dimension without bounds
      is drawn from minus to plus its largest magnitude in `actions`.
    * MultiDiscrete: a cell for each dimension with its value.

    Of more than 24 dimensions the first 23 are drawn, and how many there are besides.

    Args:
        frames: (N, H, W, 3) uint8.
        actions: (N, *action_shape), in the units of `action_space`.
        action_space: What the actions are from. Actions of a segment are in [-1, 1] where the environment's are a Box:
            give `Box(-1, 1, shape)` for those.
        names: Of the actions of a Discrete space, of the dimensions of the others; None for numbers.

    Raises:
        DataError: The frames have another dtype or shape, there is none, there are more or fewer actions than frames,
            or an action is not in the space's range or not finite.
        ConfigError: Actions of such a space cannot be drawn, or there are more or fewer names than needed.
    """
    scale, width = text_scale(checked_frames(frames)), frames.shape[2]
    values = _checked_actions(np.asarray(actions), action_space, len(frames))
    if isinstance(action_space, spaces.Discrete):
        strips = _discrete_strips(values[:, 0], int(action_space.n), names, width, scale)
    elif isinstance(action_space, spaces.MultiDiscrete):
        strips = _cell_strips(values, names, width, scale)
    else:
        assert isinstance(action_space, spaces.Box), action_space
        low, high = _limits(action_space, values)
        strips = _bar_strips(values, low, high, names, width, scale)
    return np.concatenate([frames, strips], axis=1)


def _checked_actions(actions: AnyArray, space: spaces.Space[Any], num_frames: int) -> AnyArray:
    """Returns actions as (N, dimensions), whole numbers counted from 0."""
    if not isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete):
        raise ConfigError(f"actions of {space} cannot be drawn. Those of Box, Discrete and MultiDiscrete can.")
    shape = (num_frames, *(space.shape or ()))
    if actions.size != math.prod(shape) or actions.shape[:1] != (num_frames,):
        raise DataError(f"actions have shape {actions.shape}, not {shape}. Give one action of {space} for each frame.")
    values = actions.reshape(num_frames, -1)
    if isinstance(space, spaces.Box):
        if not np.isfinite(values).all():
            raise DataError("some actions are not finite, so they have no place on a bar. Give numbers only.")
        return np.asarray(values, np.float64)
    start, count = (space.start, space.n) if isinstance(space, spaces.Discrete) else (space.start, space.nvec)
    numbers: AnyArray = values.astype(np.int64) - np.ravel(start)
    if numbers.min() < 0 or (numbers >= np.ravel(count)).any():
        raise DataError(f"some actions are not in {space}. Give the actions of the same environment as the space.")
    return numbers


def _limits(space: spaces.Box, values: AnyArray) -> tuple[AnyArray, AnyArray]:
    """Returns finite (low, high), each (dimensions,)."""
    low, high = space.low.ravel().astype(np.float64), space.high.ravel().astype(np.float64)
    largest = np.abs(values).max(axis=0)
    reach = np.where(largest > 0, largest, 1.0)
    is_bounded = np.isfinite(low) & np.isfinite(high) & (low < high)
    return np.where(is_bounded, low, -reach), np.where(is_bounded, high, reach)


def _discrete_strips(
    actions: AnyArray, num_actions: int, names: Sequence[str] | None, width: int, scale: float
) -> Frames:
    names = _checked_names(names, num_actions) or [f"action {number}" for number in range(num_actions)]
    used, rows = np.unique(actions, return_inverse=True)
    return np.stack([_discrete_strip(int(action), names, width, scale) for action in used])[rows]


def _discrete_strip(action: int, names: Sequence[str], width: int, scale: float) -> Frames:
    """Returns the strip of one action, (H, W, 3): its name over a row of ticks."""
    tick_height, name_height = round(TICK_HEIGHT * scale), round(NAME_HEIGHT * scale)
    strip = blank(name_height + tick_height, width)[0]
    edges = np.linspace(0, width, len(names) + 1).round().astype(int)
    space = 1 if width >= 4 * len(names) else 0
    for number, (start, stop) in enumerate(itertools.pairwise(edges)):
        strip[name_height:, start : stop - space] = PRESSED if number == action else CELL
    image = Image.fromarray(strip)
    write_text(image, names[action], (MARGIN * scale, name_height / 2), NAME_SIZE * scale, width - 2 * MARGIN * scale)
    return np.asarray(image)


def _cell_strips(actions: AnyArray, names: Sequence[str] | None, width: int, scale: float) -> Frames:
    used, rows = np.unique(actions, axis=0, return_inverse=True)
    names = _checked_names(names, actions.shape[1])
    return np.stack([_cell_strip(action, names, width, scale) for action in used])[rows]


def _cell_strip(action: AnyArray, names: Sequence[str] | None, width: int, scale: float) -> Frames:
    """Returns the strip of one MultiDiscrete action, (H, W, 3): a cell with a number for each dimension."""
    num_drawn, note = _drawn(len(action))
    texts = [str(value) if names is None else f"{names[i]} {value}" for i, value in enumerate(action[:num_drawn])]
    texts += [note] if note else []
    num_columns = min(len(texts), MAX_CELLS_PER_ROW)
    row_height = NAME_HEIGHT * scale
    image = Image.fromarray(blank(round(row_height * math.ceil(len(texts) / num_columns)), width)[0])
    draw, cell_width = ImageDraw.Draw(image), width / num_columns
    for number, text in enumerate(texts):
        left, top = number % num_columns * cell_width, number // num_columns * row_height
        draw.rectangle((left + scale, top + scale, left + cell_width - 2 * scale, top + row_height - 2 * scale), CELL)
        centre = (left + cell_width / 2, top + row_height / 2)
        write_text(image, text, centre, NAME_SIZE * scale, cell_width - 5 * scale, anchor="mm")
    return np.asarray(image)


def _bar_strips(
    values: AnyArray, low: AnyArray, high: AnyArray, names: Sequence[str] | None, width: int, scale: float
) -> Frames:
    """Returns strips with a bar for each dimension, (N, H, W, 3)."""
    labels = _checked_names(names, values.shape[1]) or [str(number) for number in range(values.shape[1])]
    num_drawn, note = _drawn(values.shape[1])
    labels = [*labels[:num_drawn], *([note] if note else [])]
    num_columns = min(MAX_COLUMNS, math.ceil(len(labels) / ROWS_BEFORE_COLUMNS))
    num_rows = math.ceil(len(labels) / num_columns)
    column_width = width / num_columns
    label_width = _label_width(labels[:num_drawn], column_width, scale)
    half_margin, bar_height = MARGIN * scale / 2, round(BAR_HEIGHT * scale)
    image = Image.fromarray(blank(round(num_rows * ROW_HEIGHT * scale + 2 * half_margin), width)[0])
    places = []
    for number, label in enumerate(labels):
        left = number // num_rows * column_width + MARGIN * scale
        middle = half_margin + (number % num_rows + 0.5) * ROW_HEIGHT * scale
        room = column_width - MARGIN * scale if number >= num_drawn else label_width
        write_text(image, label, (left, middle), ROW_SIZE * scale, room, colour=FAINT_TEXT)
        start, stop = round(left + label_width), round(left + column_width - 2 * MARGIN * scale)
        places.append((round(middle - bar_height / 2), start, max(stop, start + 1)))
    strips = np.repeat(np.asarray(image)[None], len(values), axis=0)
    for number, (top, start, stop) in enumerate(places[:num_drawn]):
        bars = bar_pixels(values[:, number], low[number], high[number], stop - start)
        strips[:, top : top + bar_height, start:stop] = bars[:, None]
    return strips


def bar_pixels(values: AnyArray, low: float, high: float, width: int) -> Frames:
    """Returns one row of pixels for each value, (N, width, 3): lit from 0, or the bound next to it, to the value.

    Args:
        values: (N,); those out of bounds fill the bar.
        low: Value at the left end.
        high: Value at the right end, above `low`.
        width: Pixels of the whole bar.
    """

    def place(numbers: AnyArray) -> AnyArray:
        return np.rint((np.clip(numbers, low, high) - low) / (high - low) * (width - 1))

    ends, zero = place(values)[:, None], place(np.zeros(1))
    pixels = np.arange(width)
    bars = np.broadcast_to(np.array(CELL, np.uint8), (len(values), width, 3)).copy()
    bars[(pixels >= zero) & (pixels <= ends)] = PRESSED
    bars[(pixels <= zero) & (pixels >= ends)] = NEGATIVE
    bars[:, int(zero[0])] = TEXT
    return bars


def _label_width(labels: Sequence[str], column_width: float, scale: float) -> float:
    font = load_font(round(ROW_SIZE * scale))
    longest: float = max(font.getlength(label) for label in labels)
    return min(longest + 5 * scale, MAX_LABEL_SHARE * column_width)


def _drawn(num_dimensions: int) -> tuple[int, str]:
    """Returns how many dimensions are drawn, and what is said of the others."""
    if num_dimensions <= MAX_DIMENSIONS:
        return num_dimensions, ""
    num_drawn = MAX_DIMENSIONS - 1
    return num_drawn, f"+{num_dimensions - num_drawn}"


def _checked_names(names: Sequence[str] | None, count: int) -> list[str] | None:
    if names is not None and len(names) != count:
        raise ConfigError(f"{len(names)} names are given where {count} are needed. Give one for each, or none.")
    return None if names is None else list(names)


def write_text(
    image: Image.Image,
    text: str,
    place: tuple[float, float],
    size: float,
    room: float,
    *,
    colour: Colour = TEXT,
    anchor: str = "lm",
) -> None:
    """Writes a line of text that fits into `room` pixels: as large as `size`, else smaller, else cut.

    Args:
        image: What is written to.
        text: One line.
        place: (x, y) of the anchor in pixels.
        size: Of the font, in pixels.
        room: Most pixels of width.
        colour: Of the letters.
        anchor: Pillow's: "lm" is the middle of the left edge.
    """
    font = load_font(round(size))
    while font.getlength(text) > room and font.size > MIN_TEXT_SIZE:
        font = load_font(int(font.size) - 1)
    is_cut = font.getlength(text) > room
    while is_cut and text and font.getlength(f"{text}...") > room:
        text = text[:-1]
    text = f"{text}..." if is_cut and text else text
    ImageDraw.Draw(image).text((round(place[0]), round(place[1])), text, colour, font, anchor)


@lru_cache(maxsize=64)
def load_font(size: int) -> ImageFont.FreeTypeFont:
    """Returns Pillow's own font, `size` pixels high and 9 at least."""
    font = ImageFont.load_default(max(size, MIN_TEXT_SIZE))
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font


def text_scale(frames: Frames) -> float:
    """Returns what sizes in pixels are multiplied by: 1 up to 256 pixels of width, and more for wider frames."""
    width: int = frames.shape[2]
    return max(1.0, width / REFERENCE_WIDTH)


def blank(height: int, width: int, length: int = 1) -> Frames:
    """Returns frames with nothing on them, (length, height, width, 3)."""
    return np.broadcast_to(np.array(BACKGROUND, np.uint8), (length, height, width, 3)).copy()
