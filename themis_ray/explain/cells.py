"""Attributions of grids such as MiniGrid's 7 x 7 view, which is not the picture that is rendered."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from themis_ray.clips.pictures import (
    BACKGROUND,
    CAPTION_HEIGHT,
    CAPTION_SIZE,
    CELL,
    MARGIN,
    blank,
    checked_frames,
    side_by_side,
    write_text,
)
from themis_ray.errors import DataError
from themis_ray.explain.pictures import BRIGHTNESS, chart_scale, checked_attributions, scaled, tinted

__all__ = ["draw_cells", "grid_views"]

Array = NDArray[Any]
Frames = NDArray[np.uint8]

MIN_PANEL_SIDE = 168
TILE_SIDE = 24
MARK_SHARE = 0.45
MARK_COLOUR = 255


def draw_cells(
    frames: Frames,
    attributions: Array,
    scale: float,
    *,
    views: Frames | None = None,
    columns_first: bool = False,
    agent: tuple[int, int] | None = None,
    has_agent: bool = True,
    caption: str = "what the agent sees",
) -> Frames:
    """Returns frames with a square beside each in which every cell of the grid has the colour of its attribution.

    Args:
        frames: (N, H, W, 3) uint8.
        attributions: (N, h, w), rows from the top; of MiniGrid's views (N, x, y), see `columns_first`.
        scale: Magnitude in full colour, see `shared_scale`.
        views: (N, H', W', 3) uint8, what is in the cells, shown in gray below the colours; see `grid_views`.
        columns_first: Whether the attributions are (N, x, y), as MiniGrid stores its views.
        agent: (row, column) of the cell that is marked; None for the middle of the lowest row, from where MiniGrid's
            agent looks up.
        has_agent: Whether a cell is marked.
        caption: The line above the square.

    Raises:
        DataError: The frames or views have another dtype or shape, there is none, there are more or fewer views than
            frames, or the attributions do not fit the frames.
        ConfigError: The scale is no number above 0.
    """
    ratios = scaled(checked_attributions(attributions, len(checked_frames(frames)), 3), scale)
    ratios = ratios.transpose(0, 2, 1) if columns_first else ratios
    if views is not None and len(checked_frames(views)) != len(frames):
        raise DataError(f"{len(views)} views are given for {len(frames)} frames. Give one for each.")
    text_scale = chart_scale(frames)
    caption_height, margin = round(CAPTION_HEIGHT * text_scale), round(MARGIN * text_scale)
    side = max(frames.shape[1] - caption_height - margin, MIN_PANEL_SIDE)
    panel = blank(caption_height + side + margin, side + 2 * margin, len(frames))
    head = Image.fromarray(panel[0, :caption_height])
    write_text(head, caption, (margin, caption_height / 2), CAPTION_SIZE * text_scale, side)
    panel[:, :caption_height] = np.asarray(head)
    cells = _cells(ratios, views, side)
    if has_agent:
        num_rows, num_columns = ratios.shape[1:]
        row, column = agent or (num_rows - 1, num_columns // 2)
        middle = (row + 0.5) * side / num_rows, (column + 0.5) * side / num_columns
        _mark(cells, *middle, side / max(num_rows, num_columns))
    panel[:, caption_height : caption_height + side, margin : margin + side] = cells
    return side_by_side(frames, panel, gap=0)


def grid_views(observations: Array, *, tile_side: int = TILE_SIDE) -> Frames:
    """Returns pictures of what MiniGrid's agent sees, drawn from its observations, (N, side, side, 3) uint8.

    Args:
        observations: (N, 7, 7, 3) uint8 as MiniGrid gives them, or with another side than 7.
        tile_side: Pixels of a side of a cell.

    Raises:
        DataError: The observations have another shape, or nothing that MiniGrid knows is in a cell.
    """
    from minigrid.core.grid import Grid  # Slow to import, and needed for these environments only.

    if observations.ndim != 4 or observations.shape[3] != 3 or observations.shape[1] < 3:
        raise DataError(f"observations have shape {observations.shape}, not MiniGrid's (N, 7, 7, 3).")
    seen, steps = np.unique(observations.astype(np.uint8), axis=0, return_inverse=True)
    agent = (observations.shape[1] // 2, observations.shape[2] - 1)
    pictures = []
    for observation in seen:
        try:
            grid, is_seen = Grid.decode(observation)
        except (AssertionError, KeyError, ValueError) as error:
            raise DataError(f"an observation has a cell that MiniGrid does not know ({error}).") from error
        pictures.append(grid.render(tile_side, agent, agent_dir=3, highlight_mask=is_seen))
    return np.stack(pictures)[steps.ravel()]


def _cells(ratios: NDArray[np.float32], views: Frames | None, side: int) -> Frames:
    """Returns the squares, (N, side, side, 3)."""
    num_rows, num_columns = ratios.shape[1:]
    row_of, column_of = (np.arange(side) * count // side for count in (num_rows, num_columns))
    if views is None:
        cells = tinted(np.array(CELL, np.float32), ratios)[:, row_of][:, :, column_of]
    else:
        gray = [cv2.cvtColor(np.ascontiguousarray(view), cv2.COLOR_RGB2GRAY) for view in views]
        base = np.stack([cv2.resize(view, (side, side), interpolation=cv2.INTER_AREA) for view in gray])
        cells = tinted(base[..., None] * np.float32(BRIGHTNESS), ratios[:, row_of][:, :, column_of])
    # A dark line between cells, so that equal neighbours are still two.
    cells[:, np.flatnonzero(np.diff(row_of)) + 1] = BACKGROUND
    cells[:, :, np.flatnonzero(np.diff(column_of)) + 1] = BACKGROUND
    return cells


def _mark(cells: Frames, y: float, x: float, cell_side: float) -> None:
    """Draws a white triangle with a dark edge that points up, small enough for its cell to show its colour."""
    reach = MARK_SHARE * cell_side / 2
    corners = reach * np.array([(0, -1), (-0.85, 1), (0.85, 1)])
    for grow, colour in ((1.35, BACKGROUND), (1.0, (MARK_COLOUR,) * 3)):
        points = (corners * grow + np.array([x, y])) * 16
        mask = np.zeros(cells.shape[1:3], np.uint8)
        cv2.fillConvexPoly(mask, points.round().astype(np.int32), 255, cv2.LINE_AA, 4)
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        cover = mask[box][..., None] / np.float32(255)
        cells[:, box[0], box[1]] = np.rint(
            cells[:, box[0], box[1]] * (1 - cover) + np.array(colour, np.float32) * cover
        )
