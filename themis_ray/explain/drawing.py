"""From an attribution and a clip to the frames that show both, whatever kind of observation it is about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from themis_ray.clips import upscale
from themis_ray.data import Segment
from themis_ray.envs import EnvSpec, image_parts
from themis_ray.explain.cells import draw_cells, grid_views
from themis_ray.explain.charts import draw_bars, draw_curve, draw_legend, largest_inputs, shared_limits
from themis_ray.explain.methods import Attribution
from themis_ray.explain.pictures import draw_heatmap, shared_scale, shrink

__all__ = ["ExplainedSegment", "Look", "Scales", "add_up", "draw_explanation", "find_scales"]

Array = NDArray[Any]
Frames = NDArray[np.uint8]

FRAME_WIDTH, FRAME_SIDE = 320, 420


@dataclass(frozen=True)
class Look:
    """What drawings need to know about an environment.

    Attributes:
        spec: Its spaces.
        observation_names: Of the numbers of a vector observation; None where they are not known.
        action_names: Of the actions of a Discrete space, of the dimensions of the others; None where not known.
    """

    spec: EnvSpec
    observation_names: Sequence[str] | None = None
    action_names: Sequence[str] | None = None

    @property
    def has_views(self) -> bool:
        """Whether grids are what MiniGrid's agent sees."""
        return self.spec.family in ("minigrid", "babyai") and self.spec.observation_kind == "grid"


@dataclass(frozen=True, eq=False)
class ExplainedSegment:
    """A segment and what its steps are due.

    Attributes:
        segment: The steps.
        numbers: (N,) the explained number of each step.
        places: (N, h, w), what each place of the picture is due, all channels together; None where there is none.
        inputs: (N, D), what each other input is due; of an observation that is a picture, all of it is one.
        input_names: Of the D inputs.
        input_values: (N, D), what they are; NaN where there is no one number.
    """

    segment: Segment
    numbers: NDArray[np.float32]
    places: NDArray[np.float32] | None
    inputs: NDArray[np.float32]
    input_names: tuple[str, ...]
    input_values: NDArray[np.float64]


@dataclass(frozen=True)
class Scales:
    """One scale for all that is compared.

    Attributes:
        colour: Magnitude of a place in full colour.
        bar: Magnitude of the longest bar.
        limits: Of the curve.
        inputs: Which inputs have a bar.
    """

    colour: float
    bar: float
    limits: tuple[float, float]
    inputs: list[int]


def add_up(attribution: Attribution, segments: Sequence[Segment], look: Look) -> list[ExplainedSegment]:
    """Returns what is drawn of each segment: numbers that belong together are added up.

    Those are the channels of a picture, and the numbers that encode one choice of an action.

    Args:
        attribution: Of the steps of all segments, one segment after the other.
        segments: Of equal or different lengths.
        look: Their environment.
    """
    stops = np.cumsum([len(segment) for segment in segments])[:-1]
    parts = zip(
        segments,
        np.split(attribution.values, stops),
        np.split(attribution.observations, stops),
        [None] * len(segments) if attribution.actions is None else np.split(attribution.actions, stops),
        strict=True,
    )
    return [_add_up(*part, look) for part in parts]


def _add_up(
    segment: Segment, numbers: Array, observations: Array, actions: Array | None, look: Look
) -> ExplainedSegment:
    space, kind = look.spec.observation_space, look.spec.observation_kind
    places, names = None, list[str]()
    shares, values = list[Array](), list[Array]()
    if kind == "vector":
        shares = [observations.reshape(len(numbers), -1)]
        values = [segment.observations.reshape(len(numbers), -1)]
        names = list(look.observation_names or (f"observation {i}" for i in range(shares[0].shape[1])))
    elif kind == "mixed":
        layout = image_parts(space)
        first, stop = layout[0], layout[-1].stop
        places = observations[:, first.start : first.stop].reshape(-1, *first.shape).sum(axis=3)
        for number, part in enumerate(layout):
            names.append(f"picture {number + 1}" if len(layout) > 1 else "picture")
            shares.append(observations[:, part.start : part.stop].sum(axis=1, keepdims=True))
        shares.append(observations[:, stop:])
        values = [np.full((len(numbers), len(layout)), np.nan), segment.observations[:, stop:]]
        names += [f"number {i}" for i in range(observations.shape[1] - stop)]
    else:
        places = observations.sum(axis=3)
        names, shares = ["picture" if kind == "image" else "view"], [places.sum(axis=(1, 2))[:, None]]
        values = [np.full((len(numbers), 1), np.nan)]
    if actions is not None:
        added, acted, labels = _action_inputs(actions, segment, look)
        shares.append(added)
        values.append(acted)
        names += labels
    return ExplainedSegment(
        segment,
        numbers,
        None if places is None else places.astype(np.float32),
        np.concatenate(shares, axis=1).astype(np.float32),
        tuple(names),
        np.concatenate([part.astype(np.float64) for part in values], axis=1),
    )


def _action_inputs(actions: Array, segment: Segment, look: Look) -> tuple[Array, Array, list[str]]:
    """Returns what each part of an action is due (N, A), what it is (N, A), and its names."""
    space, taken = look.spec.action_space, segment.actions.reshape(len(segment), -1)
    match space:
        case gym.spaces.Discrete():
            return actions.sum(axis=1, keepdims=True), taken, ["action"]
        case gym.spaces.MultiDiscrete():
            counts = space.nvec.reshape(-1).astype(int)
            starts = np.cumsum(counts) - counts
            return np.add.reduceat(actions, starts, axis=1), taken, [f"action {i}" for i in range(len(counts))]
    names = look.action_names or [str(i) for i in range(actions.shape[1])]
    return actions, taken, [f"action {name}" for name in names]


def find_scales(explained: Sequence[ExplainedSegment]) -> Scales:
    """Returns scales under which the same colour, length and height mean the same in all segments."""
    places = [one.places for one in explained if one.places is not None]
    return Scales(
        colour=shared_scale(*places) if places else 1.0,
        bar=shared_scale(*(one.inputs for one in explained)),
        limits=shared_limits(*(one.numbers for one in explained)),
        inputs=largest_inputs(*(one.inputs for one in explained)),
    )


def draw_explanation(
    frames: Frames, explained: ExplainedSegment, scales: Scales, look: Look, meaning: str, texts: tuple[str, str]
) -> Frames:
    """Returns frames with what each step's inputs are due on or beside them, and the explained number below.

    Heat maps lie on frames that are the observation, of images; a grid is drawn beside the frame, and so are bars of
    all inputs that have no place in a picture.

    Args:
        frames: (N, H, W, 3) uint8, of the segment's steps.
        explained: From `add_up`.
        scales: From `find_scales`.
        look: Its environment.
        meaning: What the number is.
        texts: What blue and orange mean.
    """
    frames = upscale(shrink(frames, FRAME_WIDTH), FRAME_SIDE)
    names, values = list(explained.input_names), explained.input_values
    drawn = frames
    if explained.places is not None:
        match look.spec.observation_kind:
            case "image":
                drawn = draw_heatmap(frames, explained.places, scales.colour)
            case "grid":
                views = grid_views(explained.segment.observations) if look.has_views else None
                drawn = draw_cells(
                    frames,
                    explained.places,
                    scales.colour,
                    views=views,
                    columns_first=look.has_views,
                    has_agent=look.has_views,
                )
            case _:
                caption = "the picture among the observations"
                drawn = draw_cells(frames, explained.places, scales.colour, has_agent=False, caption=caption)
    if explained.inputs.shape[1] > 1 or explained.places is None:
        shown = None if np.isnan(values).any() else values
        drawn = draw_bars(drawn, explained.inputs, names, scales.bar, shown, inputs=scales.inputs)
    drawn = draw_curve(drawn, explained.numbers, meaning, scales.limits)
    return draw_legend(drawn, scales.bar if explained.places is None else scales.colour, *texts)
