"""How an observation space becomes one Box: vectors, images, grids, and vectors that hold flattened images."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from themis_ray.errors import ConfigError

__all__ = [
    "MIN_IMAGE_SIDE",
    "Conversion",
    "ImagePart",
    "MixedBox",
    "ObservationKind",
    "convert_space",
    "float32_box",
    "image_parts",
    "infer_observation_kind",
    "observation_scale",
]

ObservationKind = Literal["vector", "image", "grid", "mixed"]

# The smallest side of an image: RLlib's and our image networks need about 36 pixels to leave one after striding.
MIN_IMAGE_SIDE = 36
BYTE_SCALE = 1 / 255
GRID_SCALE = 0.1  # MiniGrid's object, colour and state numbers run from 0 to 10
# Wider bounds of a picture, such as the largest float, say "no bound": no camera has more than 16 bits.
MAX_IMAGE_RANGE = 2**16

FLATTENABLE = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


@dataclass(frozen=True)
class ImagePart:
    """Where a mixed observation holds an image or a grid, flattened.

    Attributes:
        start: Index of its first number.
        stop: Index after its last number.
        shape: (height, width, channels).
        kind: Which convolutions fit it.
    """

    start: int
    stop: int
    shape: tuple[int, int, int]
    kind: Literal["image", "grid"]


class MixedBox(spaces.Box):
    """A float32 Box of rank 1 that says which of its numbers are flattened images.

    Image parts come first, without gaps; every number from `num_pixels` on belongs to the vector part.

    Args:
        low: (D,) lower bounds.
        high: (D,) upper bounds.
        layout: The image parts, in order.

    Raises:
        ValueError: The parts do not follow each other from 0 on.
    """

    def __init__(self, low: NDArray[Any], high: NDArray[Any], layout: Sequence[ImagePart]) -> None:
        super().__init__(low, high, dtype=np.float32)
        self.layout = tuple(layout)
        bounds = [0, *(part.stop for part in self.layout)]
        if [part.start for part in self.layout] != bounds[:-1] or not 0 < bounds[-1] <= len(self.low):
            raise ValueError(f"image parts must follow each other from 0 to at most {len(self.low)}: {self.layout}")

    @property
    def num_pixels(self) -> int:
        """How many numbers the image parts take, all of them at the beginning."""
        return self.layout[-1].stop

    def __eq__(self, other: object) -> bool:
        """Tells whether bounds and layout are the same."""
        return isinstance(other, MixedBox) and self.layout == other.layout and bool(super().__eq__(other))

    def __repr__(self) -> str:
        """Names the parts instead of the bounds."""
        parts = ", ".join(f"{part.kind} {part.shape}" for part in self.layout)
        return f"MixedBox({parts}, vector ({len(self.low) - self.num_pixels},), float32)"


class Conversion(NamedTuple):
    """A Box and how an observation gets there."""

    space: spaces.Box
    convert: Callable[[Any], NDArray[Any]]


def image_parts(space: spaces.Space[Any]) -> tuple[ImagePart, ...]:
    """Returns the layout of a mixed space; any other space has no parts."""
    return space.layout if isinstance(space, MixedBox) else ()


def infer_observation_kind(space: spaces.Space[Any]) -> ObservationKind:
    """Tells which network an observation space needs.

    Args:
        space: A MixedBox is mixed. A Box of rank 3 is an image where both height and width are at least 36, else a
            grid; everything else is a vector.
    """
    if isinstance(space, MixedBox):
        return "mixed"
    if isinstance(space, spaces.Box) and len(space.shape) == 3:
        return _picture_kind(space.shape)
    return "vector"


def observation_scale(space: spaces.Box, kind: ObservationKind) -> float:
    """Returns what a network multiplies observations by: grids of bytes 0.1, Boxes from 0 to 255 1 / 255, others 1."""
    if kind == "grid" and space.dtype == np.uint8:
        return GRID_SCALE
    is_bytes = bool(np.all(space.low == 0) and np.all(space.high == 255))
    return BYTE_SCALE if is_bytes else 1.0


def convert_space(space: spaces.Space[Any]) -> Conversion | None:
    """Returns how observations become a Box: float32 of rank 1, or rank 3 as float32 or uint8; None if they are one.

    A Box that is a picture (`_picture_axes`) becomes (height, width, channels) and stays uint8 where it is; every other
    Box is flattened; Discrete, MultiDiscrete and MultiBinary become one-hot vectors or bits. Dict and Tuple of these,
    nested too, become a MixedBox where a part is a picture, else one vector in gymnasium's order; one with a single
    part is that part.

    Raises:
        ConfigError: The space holds parts that have no fixed-size vector, such as Text, Graph or Sequence.
    """
    leaves = list(_leaves(space))
    for leaf in leaves:
        if not isinstance(leaf.space, FLATTENABLE):
            raise _unsupported(space, leaf)
    if len(leaves) == 1 and leaves[0].path:
        return _convert_only_leaf(leaves[0])
    if isinstance(space, spaces.Box):
        return _convert_box(space)
    if any(_is_picture(leaf.space) for leaf in leaves):
        return _convert_mixed(leaves)
    return _flattening(space)


@dataclass(frozen=True)
class _Leaf:
    """A part of a space that is neither Dict nor Tuple, and the keys that lead to it."""

    path: tuple[Any, ...]
    space: spaces.Space[Any]

    def find(self, observation: Any) -> Any:
        for key in self.path:
            observation = observation[key]
        return observation


def _leaves(space: spaces.Space[Any], path: tuple[Any, ...] = ()) -> Iterator[_Leaf]:
    """Yields the parts of a nested space in gymnasium's order."""
    match space:
        case spaces.Dict():
            for key, part in space.spaces.items():
                yield from _leaves(part, (*path, key))
        case spaces.Tuple():
            for index, part in enumerate(space.spaces):
                yield from _leaves(part, (*path, index))
        case _:
            yield _Leaf(path, space)


def _unsupported(space: spaces.Space[Any], leaf: _Leaf) -> ConfigError:
    part = f"its part {'.'.join(map(str, leaf.path))!r}, " if leaf.path else ""
    return ConfigError(
        f"observation space {space} is not supported: {part}{type(leaf.space).__name__} has no fixed-size vector. "
        "Supported: Box, Discrete, MultiDiscrete, MultiBinary, and Dict or Tuple of these. "
        "Wrap the environment to drop it."
    )


def _picture_axes(space: spaces.Box) -> tuple[int, ...] | None:
    """Returns the order of axes that puts height and width first and channels last; None: the Box is no picture.

    An axis is long from 36 on. (H, W) bytes with two long axes are a gray image. Of three axes, channels are the first
    where it is the only short one, else the last. Of four, the first counts the frames of a stack, and the two long
    ones behind it are height and width; frames and their channels are joined, the oldest frame first.
    """
    match tuple(side >= MIN_IMAGE_SIDE for side in space.shape):
        case (True, True) if space.dtype == np.uint8:
            return (0, 1)
        case (False, True, True):
            return (1, 2, 0)
        case (_, _, _):
            return (0, 1, 2)
        case (_, True, True, _):
            return (1, 2, 0, 3)
        case (_, _, True, True):
            return (2, 3, 0, 1)
    return None


def _is_picture(space: spaces.Space[Any]) -> bool:
    return isinstance(space, spaces.Box) and _picture_axes(space) is not None


def _picture_kind(shape: Sequence[int]) -> Literal["image", "grid"]:
    return "image" if min(shape[:2]) >= MIN_IMAGE_SIDE else "grid"


def _to_picture(array: NDArray[Any], axes: tuple[int, ...]) -> NDArray[Any]:
    """Returns (height, width, channels) of an array whose axes come in another order."""
    moved = array.transpose(axes)
    return np.ascontiguousarray(moved.reshape(*moved.shape[:2], -1))


def _convert_only_leaf(leaf: _Leaf) -> Conversion:
    inner = convert_space(leaf.space)
    if inner is None:
        assert isinstance(leaf.space, spaces.Box), leaf.space
        return Conversion(leaf.space, leaf.find)
    return Conversion(inner.space, lambda observation: inner.convert(leaf.find(observation)))


def _convert_box(space: spaces.Box) -> Conversion | None:
    axes = _picture_axes(space)
    if axes is None:
        is_done = space.dtype == np.float32 and len(space.shape) == 1
        return None if is_done else _flattening(space)
    if axes == (0, 1, 2) and space.dtype in (np.uint8, np.float32):
        return None
    low, high = _to_picture(space.low, axes), _to_picture(space.high, axes)
    dtype = np.uint8 if space.dtype == np.uint8 else np.float32
    return Conversion(
        spaces.Box(low, high, dtype=np.uint8) if dtype == np.uint8 else float32_box(low, high),
        lambda observation: _to_picture(np.asarray(observation, dtype), axes),
    )


def _flattening(space: spaces.Space[Any]) -> Conversion:
    flat = spaces.flatten_space(space)
    assert isinstance(flat, spaces.Box), flat
    return Conversion(
        float32_box(flat.low, flat.high),
        lambda observation: np.asarray(spaces.flatten(space, observation), np.float32),
    )


def _convert_mixed(leaves: Sequence[_Leaf]) -> Conversion:
    """Puts the pictures first, each in its own scale and flattened, and all other parts behind them."""
    pictures = [_Picture.of(leaf) for leaf in leaves if _is_picture(leaf.space)]
    others = [leaf for leaf in leaves if not _is_picture(leaf.space)]
    stops = np.cumsum([math.prod(picture.shape) for picture in pictures]).tolist()
    layout = [
        ImagePart(stop - math.prod(picture.shape), stop, picture.shape, _picture_kind(picture.shape))
        for picture, stop in zip(pictures, stops, strict=True)
    ]
    flat_spaces = [_flattening(leaf.space).space for leaf in others]
    low = [*(picture.scale(picture.low) for picture in pictures), *(flat.low for flat in flat_spaces)]
    high = [*(picture.scale(picture.high) for picture in pictures), *(flat.high for flat in flat_spaces)]

    def convert(observation: Any) -> NDArray[np.float32]:
        parts: list[Any] = [picture.convert(observation) for picture in pictures]
        parts += [spaces.flatten(leaf.space, leaf.find(observation)) for leaf in others]
        return np.concatenate(parts, dtype=np.float32, casting="unsafe")

    return Conversion(MixedBox(np.concatenate(low), np.concatenate(high), layout), convert)


@dataclass(frozen=True, eq=False)
class _Picture:
    """A picture among the parts of an observation.

    An image with bounds is stretched so that they become 0 and 1; cells of bytes are divided by 10, as where a grid is
    the whole observation; all others stay as they are.

    Attributes:
        leaf: Where it is.
        axes: The order of its axes that puts channels last.
        shape: (height, width, channels).
        low: Lower bounds of its numbers, flat.
        high: Upper bounds of its numbers, flat.
        offset: What is subtracted from each number.
        span: What each number is divided by then.
    """

    leaf: _Leaf
    axes: tuple[int, ...]
    shape: tuple[int, int, int]
    low: NDArray[np.float32]
    high: NDArray[np.float32]
    offset: np.float32
    span: np.float32

    @classmethod
    def of(cls, leaf: _Leaf) -> "_Picture":
        space = leaf.space
        assert isinstance(space, spaces.Box), space
        axes = _picture_axes(space)
        assert axes is not None
        box = float32_box(_to_picture(space.low, axes), _to_picture(space.high, axes))
        height, width, channels = box.shape
        offset, span = np.float32(0), np.float32(1)
        if _picture_kind(box.shape) == "image":
            low, high = float(box.low.min()), float(box.high.max())
            if 0 < high - low <= MAX_IMAGE_RANGE:
                offset, span = np.float32(low), np.float32(high - low)
        elif space.dtype == np.uint8:
            span = np.float32(1 / GRID_SCALE)
        return cls(leaf, axes, (height, width, channels), box.low.ravel(), box.high.ravel(), offset, span)

    def scale(self, numbers: NDArray[np.float32]) -> NDArray[np.float32]:
        scaled: NDArray[np.float32] = (numbers - self.offset) / self.span
        return scaled

    def convert(self, observation: Any) -> NDArray[np.float32]:
        picture = _to_picture(np.asarray(self.leaf.find(observation), np.float32), self.axes)
        return self.scale(np.clip(picture.ravel(), self.low, self.high))


def float32_box(low: NDArray[Any], high: NDArray[Any]) -> spaces.Box:
    """Returns a float32 Box with these bounds; a float64 bound beyond float32 means "no bound"."""
    with np.errstate(over="ignore"):
        return spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)
