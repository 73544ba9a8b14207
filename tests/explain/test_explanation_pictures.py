from pathlib import Path
from typing import Any

import numpy as np
import pytest
from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX
from PIL import Image

from themis_ray.clips.pictures import BACKGROUND
from themis_ray.errors import ConfigError, DataError
from themis_ray.explain.cells import draw_cells, grid_views
from themis_ray.explain.pictures import (
    _covered,
    draw_heatmap,
    film_strip,
    pair_layout,
    shared_scale,
    shrink,
    tinted,
    write_picture,
)


def noise(num_frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Returns frames that cannot be written to."""
    frames = np.random.default_rng(seed).integers(0, 256, (num_frames, height, width, 3), np.uint8)
    frames.flags.writeable = False
    return frames


def warmth(frames: np.ndarray) -> np.ndarray:
    """Returns red minus blue: above 0 for orange, below for blue, 0 for gray."""
    return frames[..., 0].astype(int) - frames[..., 2]


# ---------------------------------------------------------------- scale


def test_the_scale_is_the_largest_of_a_step_and_no_outlier_of_the_clip() -> None:
    attributions = np.tile([0.1, -0.5, 0.3], (100, 1))
    assert shared_scale(attributions) == pytest.approx(0.5)
    attributions[7] = 90.0
    assert shared_scale(attributions) == pytest.approx(0.5)


def test_the_scale_does_not_vanish_where_few_pixels_matter() -> None:
    attributions = np.zeros((10, 84, 84))
    attributions[:, 40, 40:47] = -2.0
    assert shared_scale(attributions) == pytest.approx(2.0)
    # One pixel alone is no scale of 7056.
    attributions[:, 0, 0] = 100.0
    assert shared_scale(attributions) < 20.0


def test_both_sides_count_and_their_order_does_not() -> None:
    left, right = np.full((5, 3), 1.0), np.full((9, 3), 4.0)
    assert shared_scale(left, right) == shared_scale(right, left) == pytest.approx(4.0)
    assert shared_scale(-3 * left) == pytest.approx(3 * shared_scale(left))


def test_nothing_has_a_scale_too() -> None:
    assert shared_scale(np.zeros((4, 2))) == 1.0
    # Even where all but one step of many are nothing.
    rare = np.zeros((50, 2))
    rare[3, 1] = 0.25
    assert shared_scale(rare) == pytest.approx(0.25)


@pytest.mark.parametrize("attributions", [[], [np.zeros((0, 3))], [np.array([[np.nan, 1.0]])]])
def test_what_has_no_scale_is_refused(attributions: list[np.ndarray]) -> None:
    with pytest.raises(DataError, match="attributions"):
        shared_scale(*attributions)


# ---------------------------------------------------------------- heat maps


def test_without_attribution_there_is_no_colour_and_the_picture_is_seen() -> None:
    frames = noise(3, 40, 30)
    drawn = draw_heatmap(frames, np.zeros((3, 10, 10)), 1.0)
    assert drawn.shape == frames.shape
    assert (drawn == drawn[..., :1]).all()
    brightness = frames @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(drawn[..., 0], 0.7 * brightness, atol=1.5)
    np.testing.assert_allclose(draw_heatmap(frames, np.zeros((3, 1, 1)), 1.0, brightness=1)[..., 0], brightness, atol=1)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_spot_colours_its_place_and_no_other(sign: int) -> None:
    frames = noise(2, 80, 60)
    attributions = np.zeros((2, 8, 6))
    attributions[1, 2, 4] = sign
    drawn = sign * warmth(draw_heatmap(frames, attributions, 1.0))
    assert not drawn[0].any()
    assert (drawn >= 0).all()
    middle = drawn[1, 24:26, 44:46]
    assert middle.min() > 100
    # Smooth edges reach half a cell into the neighbours.
    rows, columns = np.nonzero(drawn[1])
    assert 10 <= rows.min() < rows.max() < 40
    assert 30 <= columns.min() < columns.max() < 60
    assert drawn[1].max() == middle.max()


def test_more_attribution_covers_more_until_the_scale() -> None:
    frames = np.full((5, 8, 8, 3), 100, np.uint8)
    attributions = np.array([0.0, 0.25, 0.5, 1.0, 3.0])[:, None, None] * np.ones((1, 2, 2))
    warm = warmth(draw_heatmap(frames, attributions, 1.0))[:, 4, 4]
    assert warm[0] == 0
    assert (np.diff(warm[:4]) > 20).all()
    assert warm[4] == warm[3]
    cold = warmth(draw_heatmap(frames, -attributions, 1.0))[:, 4, 4]
    assert (np.diff(cold[:4]) < -15).all()


def test_a_shared_scale_gives_both_sides_the_same_colours() -> None:
    frames = noise(4, 20, 20)
    weak, strong = np.full((4, 5, 5), 0.2), np.full((4, 5, 5), 0.2)
    strong[:, 0, 0] = 1.0
    scale = shared_scale(weak, strong)
    left, right = (draw_heatmap(frames, side, scale) for side in (weak, strong))
    np.testing.assert_array_equal(left[:, 10:, 10:], right[:, 10:, 10:])
    # With a scale of its own the weak side would look strong.
    assert (warmth(draw_heatmap(frames, weak, shared_scale(weak))) > warmth(left)).all()


def test_attributions_may_be_finer_than_the_frame() -> None:
    attributions = np.zeros((1, 80, 80))
    attributions[0, 40:, :] = 1.0
    warm = warmth(draw_heatmap(noise(1, 20, 20), attributions, 1.0))[0]
    assert not warm[:10].any()
    assert (warm[10:] > 0).all()


def test_the_fast_way_is_the_same_way() -> None:
    rng = np.random.default_rng(0)
    gray, ratios = rng.uniform(0, 255, (30, 40)), rng.uniform(-1, 1, (30, 40)).astype(np.float32)
    slow = tinted(gray[..., None], ratios).astype(int)
    assert np.abs(_covered(gray.astype(np.float32), ratios) - slow).max() <= 1


# ---------------------------------------------------------------- cells


def panel(attributions: np.ndarray, scale: float = 1.0, **settings: Any) -> np.ndarray:
    """Returns the square, (N, side, side, 3), without the caption above it."""
    frames = noise(len(attributions), 200, 200)
    drawn = draw_cells(frames, attributions, scale, **settings)
    np.testing.assert_array_equal(drawn[:, :200, :200], frames)
    margin, caption = 6, 24
    return drawn[:, caption:-margin, 200 + margin : -margin]


def cell(square: np.ndarray, row: int, column: int, count: int = 7) -> np.ndarray:
    side = square.shape[0] / count
    return square[
        int((row + 0.1) * side) : int((row + 0.2) * side), int((column + 0.4) * side) : int((column + 0.6) * side)
    ]


def test_each_cell_has_the_colour_of_its_attribution() -> None:
    attributions = np.zeros((2, 7, 7))
    attributions[0, 1, 5], attributions[1, 3, 2] = 1.0, -1.0
    squares = panel(attributions)
    assert squares.shape[1] == squares.shape[2]
    still = warmth(cell(squares[0], 0, 0)).mean()  # a cell of nothing is nearly gray
    for step, place in ((0, (1, 5)), (1, (3, 2))):
        for row in range(7):
            for column in range(7):
                warm = warmth(cell(squares[step], row, column)).mean() - still
                assert (abs(warm) > 80) == ((row, column) == place)
    assert warmth(cell(squares[0], 1, 5)).mean() > 0 > warmth(cell(squares[1], 3, 2)).mean()


def test_minigrids_views_have_columns_first() -> None:
    attributions = np.zeros((1, 7, 7))
    attributions[0, 2, 6] = 0.8
    np.testing.assert_array_equal(panel(attributions, columns_first=True), panel(attributions.transpose(0, 2, 1)))


def test_the_agent_is_marked_in_the_middle_of_the_lowest_row() -> None:
    nothing = np.zeros((2, 7, 7))
    marked, plain = panel(nothing), panel(nothing, has_agent=False)
    rows, columns = np.nonzero((marked[0] != plain[0]).any(axis=-1))
    side = marked.shape[1]
    assert 6 * side / 7 <= rows.min() < rows.max() < side
    assert 3 * side / 7 <= columns.min() < columns.max() < 4 * side / 7
    assert marked[1].max() == 255
    elsewhere = panel(nothing, agent=(0, 0))
    rows, columns = np.nonzero((elsewhere[0] != plain[0]).any(axis=-1))
    assert max(rows.max(), columns.max()) < side / 7


def test_what_is_in_the_cells_is_seen_below_the_colours() -> None:
    views = noise(1, 70, 70)
    nothing = panel(np.zeros((1, 7, 7)), views=views, has_agent=False)
    is_line = (nothing == BACKGROUND).all(axis=-1)
    assert (nothing == nothing[..., :1]).all(axis=-1)[~is_line].all()
    assert len(np.unique(nothing)) > 50


def test_views_are_drawn_from_observations() -> None:
    observations = np.zeros((3, 7, 7, 3), np.uint8)
    observations[..., 0] = OBJECT_TO_IDX["empty"]
    observations[1, 5, 2] = (OBJECT_TO_IDX["goal"], COLOR_TO_IDX["green"], 0)
    views = grid_views(observations, tile_side=10)
    assert views.shape == (3, 70, 70, 3)
    np.testing.assert_array_equal(views[0], views[2])
    rows, columns = np.nonzero((views[1] != views[0]).any(axis=-1))
    # Column 5, row 2.
    assert (rows.min() // 10, rows.max() // 10, columns.min() // 10, columns.max() // 10) == (2, 2, 5, 5)
    with pytest.raises(DataError, match="MiniGrid"):
        grid_views(observations[..., :2])
    observations[0, 0, 0] = 200
    with pytest.raises(DataError, match="does not know"):
        grid_views(observations)


# ---------------------------------------------------------------- stills and pairs


def test_a_film_strip_shows_the_chosen_frames_in_order() -> None:
    frames = noise(9, 20, 50)
    strip = film_strip(frames, [1, 8, 4])
    head = strip.shape[0] - 20
    for number, step in enumerate((1, 8, 4)):
        np.testing.assert_array_equal(strip[head:, number * 58 : number * 58 + 50], frames[step])
    assert strip.shape[1] == 3 * 50 + 2 * 8
    below = film_strip(frames, [1, 8, 4], num_columns=2)
    assert below.shape == (2 * strip.shape[0] + 8, 2 * 50 + 8, 3)
    np.testing.assert_array_equal(below[-20:, :50], frames[4])
    # Steps of an episode are other numbers above the same frames.
    moved = film_strip(frames, [1, 8, 4], first_step=30)
    np.testing.assert_array_equal(moved[head:], strip[head:])
    assert (moved[:head] != strip[:head]).any()


def test_a_pair_has_its_clips_on_top_and_explanations_under() -> None:
    parts = [noise(3, 20, 30, 1), noise(5, 24, 30, 2), noise(3, 30, 50, 3), noise(5, 30, 40, 4)]
    whole = pair_layout(*parts, gap=4)
    assert whole.shape == (5, 24 + 4 + 30, 50 + 4 + 40, 3)
    places = [(2, 10), (0, 54 + 5), (28, 0), (28, 54)]
    for part, (top, left) in zip(parts, places, strict=True):
        shown = whole[:, top : top + part.shape[1], left : left + part.shape[2]]
        np.testing.assert_array_equal(shown[: len(part)], part)
        assert (shown[len(part) :] == part[-1]).all()


def test_wide_frames_are_made_smaller() -> None:
    frames = np.full((2, 400, 600, 3), 7, np.uint8)
    assert shrink(frames, 300).shape == (2, 200, 300, 3)
    assert (shrink(frames, 300) == 7).all()
    np.testing.assert_array_equal(shrink(frames, 600), frames)


def test_a_picture_is_read_back_as_it_was(tmp_path: Path) -> None:
    frame = noise(1, 12, 17)[0]
    path = write_picture(frame, tmp_path / "new" / "still.png")
    np.testing.assert_array_equal(np.asarray(Image.open(path)), frame)


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    "call",
    [
        lambda frames: draw_heatmap(frames, np.zeros((2, 3, 3)), 1.0),
        lambda frames: draw_cells(frames, np.zeros((2, 3, 3)), 1.0),
        lambda frames: film_strip(frames, [0]),
        lambda frames: pair_layout(noise(1, 4, 4), noise(1, 4, 4), frames, noise(1, 4, 4)),
        shrink,
        lambda frames: write_picture(frames[0] if len(frames) else frames, "/nowhere"),
    ],
    ids=["heatmap", "cells", "strip", "pair", "shrink", "write"],
)
@pytest.mark.parametrize(
    "frames", [np.zeros((2, 4, 4, 3)), np.zeros((2, 4, 4), np.uint8), np.zeros((0, 4, 4, 3), np.uint8)]
)
def test_what_are_no_frames_is_refused(call: Any, frames: np.ndarray) -> None:
    with pytest.raises(DataError, match="frames"):
        call(frames)


@pytest.mark.parametrize("draw", [draw_heatmap, draw_cells])
@pytest.mark.parametrize(
    "attributions", [np.zeros((3, 4, 4)), np.zeros((2, 4)), np.zeros((2, 0, 4)), np.full((2, 4, 4), np.inf)]
)
def test_attributions_that_do_not_fit_are_refused(draw: Any, attributions: np.ndarray) -> None:
    with pytest.raises(DataError, match="attributions"):
        draw(noise(2, 40, 40), attributions, 1.0)


@pytest.mark.parametrize("draw", [draw_heatmap, draw_cells])
@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf])
def test_a_scale_is_above_nothing(draw: Any, scale: float) -> None:
    with pytest.raises(ConfigError, match="scale"):
        draw(noise(1, 40, 40), np.zeros((1, 4, 4)), scale)


def test_other_mistakes_are_told() -> None:
    frames = noise(2, 20, 20)
    with pytest.raises(DataError, match="steps"):
        film_strip(frames, [2])
    with pytest.raises(DataError, match="steps"):
        film_strip(frames, [])
    with pytest.raises(ConfigError, match="num_columns"):
        film_strip(frames, [0], num_columns=0)
    with pytest.raises(ConfigError, match="gap"):
        pair_layout(frames, frames, frames, frames, gap=-1)
    with pytest.raises(ConfigError, match="brightness"):
        draw_heatmap(frames, np.zeros((2, 3, 3)), 1.0, brightness=2)
    with pytest.raises(ConfigError, match="target_width"):
        shrink(frames, 0)
    with pytest.raises(DataError, match="views"):
        draw_cells(frames, np.zeros((2, 3, 3)), 1.0, views=noise(1, 9, 9))
