from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from themis_ray.clips import draw_actions, draw_caption, side_by_side, upscale
from themis_ray.clips.pictures import BACKGROUND, NEGATIVE, PRESSED
from themis_ray.errors import ConfigError, DataError

PONG = ["NOOP", "FIRE", "RIGHT", "LEFT", "RIGHTFIRE", "LEFTFIRE"]


def noise(num_frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Returns frames that cannot be written to."""
    frames = np.random.default_rng(seed).integers(0, 256, (num_frames, height, width, 3), np.uint8)
    frames.flags.writeable = False
    return frames


def strips(actions: Any, space: spaces.Space, names: list[str] | None = None, width: int = 256) -> np.ndarray:
    """Returns what is drawn below the frames."""
    frames = noise(len(actions), 40, width)
    drawn = draw_actions(frames, np.asarray(actions), space, names)
    assert drawn.dtype == np.uint8
    np.testing.assert_array_equal(drawn[:, :40], frames)
    return drawn[:, 40:]


def lit_columns(strip: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Returns the columns in which some pixel has the colour."""
    return np.flatnonzero((strip == colour).all(axis=-1).any(axis=0))


# ---------------------------------------------------------------- upscale


@pytest.mark.parametrize(
    ("height", "width", "factor"), [(84, 84, 3), (7, 7, 36), (60, 128, 2), (129, 20, 1), (1, 1, 256)]
)
def test_every_pixel_becomes_a_block(height: int, width: int, factor: int) -> None:
    frames = noise(3, height, width)
    large = upscale(frames)
    assert large.shape == (3, height * factor, width * factor, 3)
    blocks = large.reshape(3, height, factor, width, factor, 3)
    assert (blocks == frames[:, :, None, :, None]).all()


def test_large_frames_stay() -> None:
    frames = noise(2, 300, 20)
    np.testing.assert_array_equal(upscale(frames), frames)
    assert upscale(frames, target_side=600).shape == (2, 600, 40, 3)


# ---------------------------------------------------------------- side by side


def test_the_shorter_side_holds_its_last_frame_and_the_lower_is_centred() -> None:
    left, right = noise(3, 20, 30, seed=1), noise(5, 32, 18, seed=2)
    joined = side_by_side(left, right, gap=4)
    assert joined.shape == (5, 32, 30 + 4 + 18, 3)
    np.testing.assert_array_equal(joined[:, :, 34:], right)
    np.testing.assert_array_equal(joined[:3, 6:26, :30], left)
    np.testing.assert_array_equal(joined[3:, 6:26, :30], np.stack([left[-1]] * 2))
    for empty in (joined[:, :6, :30], joined[:, 26:, :30], joined[:, :, 30:34]):
        assert (empty == BACKGROUND).all()


def test_sides_may_touch() -> None:
    frames = noise(2, 8, 8)
    np.testing.assert_array_equal(side_by_side(frames, frames, gap=0), np.concatenate([frames, frames], axis=2))


# ---------------------------------------------------------------- actions


@pytest.mark.parametrize("width", [84, 160, 256, 600])
@pytest.mark.parametrize("names", [PONG, None])
def test_each_discrete_action_has_a_picture_of_its_own(width: int, names: list[str] | None) -> None:
    drawn = strips(np.arange(6), spaces.Discrete(6), names, width)
    assert len({strip.tobytes() for strip in drawn}) == 6
    # The tick of the action stands at its share of the width.
    for action, strip in enumerate(drawn):
        columns = lit_columns(strip[-1:], PRESSED)
        assert action / 6 * width - 1 <= columns.min()
        assert columns.max() <= (action + 1) / 6 * width + 1
    np.testing.assert_array_equal(strips([4, 2, 4], spaces.Discrete(6), names, width), drawn[[4, 2, 4]])


def test_discrete_actions_may_start_elsewhere() -> None:
    shifted = strips([-1, 1], spaces.Discrete(3, start=-1), ["a", "b", "c"])
    np.testing.assert_array_equal(shifted, strips([0, 2], spaces.Discrete(3), ["a", "b", "c"]))


def test_a_bar_is_as_long_as_its_number() -> None:
    values = [-2.0, -1.0, 0.0, 0.5, 2.0]
    drawn = strips(np.array(values, np.float32)[:, None], spaces.Box(-2, 2, (1,)))
    lengths = [len(lit_columns(strip, PRESSED)) - len(lit_columns(strip, NEGATIVE)) for strip in drawn]
    assert lengths[0] == pytest.approx(-lengths[4], abs=1)
    assert lengths[4] > 80
    np.testing.assert_allclose(np.array(lengths) / lengths[4], np.array(values) / 2, atol=0.02)


def test_numbers_out_of_bounds_fill_the_bar() -> None:
    drawn = strips([[1.0], [7.0]], spaces.Box(-1, 1, (1,)))
    np.testing.assert_array_equal(drawn[0], drawn[1])


def test_a_box_without_bounds_is_scaled_by_what_is_there() -> None:
    free = spaces.Box(-np.inf, np.inf, (1,))
    np.testing.assert_array_equal(strips([[3.0], [-1.5]], free), strips([[1.0], [-0.5]], spaces.Box(-1, 1, (1,))))
    assert strips([[0.0]], free).shape[0] == 1


def test_bounds_without_zero_begin_at_the_nearer_one() -> None:
    drawn = strips([[2.0], [4.0]], spaces.Box(2, 4, (1,)))
    assert len(lit_columns(drawn[0], PRESSED)) == 0
    assert len(lit_columns(drawn[1], PRESSED)) > 150
    assert len(lit_columns(drawn[1], NEGATIVE)) == 0


@pytest.mark.parametrize("num_dimensions", [1, 2, 6, 17, 24])
def test_every_dimension_of_a_box_is_seen(num_dimensions: int) -> None:
    still = strips(np.zeros((1, num_dimensions)), spaces.Box(-1, 1, (num_dimensions,)))[0]
    drawn = strips(np.eye(num_dimensions), spaces.Box(-1, 1, (num_dimensions,)))
    places = [tuple(np.argwhere((strip != still).any(axis=-1)).min(axis=0)) for strip in drawn]
    assert len(set(places)) == num_dimensions
    assert drawn.shape[1] < 130


def test_of_very_many_dimensions_the_first_are_drawn() -> None:
    drawn = strips(np.eye(376), spaces.Box(-1, 1, (376,)))
    assert len({strip.tobytes() for strip in drawn}) == 23 + 1
    assert drawn.shape[1] < 130
    wheel = spaces.MultiDiscrete([2] * 40)
    assert len({strip.tobytes() for strip in strips(np.eye(40, dtype=int), wheel)}) == 23 + 1


def test_dimensions_of_any_shape_are_laid_out_flat() -> None:
    values = np.random.default_rng(0).uniform(-1, 1, (4, 2, 3))
    flat = strips(values.reshape(4, 6), spaces.Box(-1, 1, (6,)))
    np.testing.assert_array_equal(strips(values, spaces.Box(-1, 1, (2, 3))), flat)


def test_every_cell_of_a_multidiscrete_action_is_seen() -> None:
    space = spaces.MultiDiscrete([3, 4, 2])
    actions = np.array(list(np.ndindex(3, 4, 2)))
    for names in (None, ["arm", "leg", "head"]):
        assert len({strip.tobytes() for strip in strips(actions, space, names)}) == 24


def test_names_are_drawn() -> None:
    box = spaces.Box(-1, 1, (2,))
    drawn = [strips(np.zeros((1, 2)), box, names) for names in (None, ["gas", "brake"], ["brake", "gas"])]
    assert len({strip.tobytes() for strip in drawn}) == 3


def test_names_too_long_for_the_frame_are_cut() -> None:
    name = "a name that goes on and on" * 5
    for space, action in ((spaces.Discrete(1), [0]), (spaces.Box(-1, 1, (1,)), [[0.5]])):
        assert strips(action, space, [name], width=64).shape[2] == 64
    assert strips([[1]], spaces.MultiDiscrete([2]), [name], width=64).shape[2] == 64


# ---------------------------------------------------------------- captions


def test_a_caption_stands_above_and_says_what_it_says() -> None:
    frames = noise(3, 50, 200)
    drawn = {text: draw_caption(frames, text) for text in ("left", "right", "", "long " * 100, "two\nlines")}
    height = drawn["left"].shape[1] - 50
    assert height > 15
    for clip in drawn.values():
        assert clip.shape == (3, 50 + height, 200, 3)
        np.testing.assert_array_equal(clip[:, height:], frames)
        np.testing.assert_array_equal(clip[:, :height], np.stack([clip[0, :height]] * 3))
    assert len({clip.tobytes() for clip in drawn.values()}) == len(drawn)
    assert (drawn[""][:, :height] == BACKGROUND).all()
    np.testing.assert_array_equal(drawn["two\nlines"], draw_caption(frames, "two lines"))


def test_text_grows_with_the_frame() -> None:
    narrow, wide = (draw_caption(noise(1, 50, width), "left").shape[1] - 50 for width in (256, 512))
    assert wide == 2 * narrow


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    "call",
    [
        upscale,
        lambda frames: side_by_side(frames, noise(1, 4, 4)),
        lambda frames: side_by_side(noise(1, 4, 4), frames),
        lambda frames: draw_caption(frames, "text"),
        lambda frames: draw_actions(frames, np.zeros(2, int), spaces.Discrete(2)),
    ],
    ids=["upscale", "left", "right", "caption", "actions"],
)
@pytest.mark.parametrize(
    "frames", [np.zeros((2, 4, 4, 3)), np.zeros((2, 4, 4), np.uint8), np.zeros((0, 4, 4, 3), np.uint8)]
)
def test_what_are_no_frames_is_refused(call: Any, frames: np.ndarray) -> None:
    with pytest.raises(DataError, match="frames"):
        call(frames)


@pytest.mark.parametrize(
    ("actions", "space"),
    [
        ([0], spaces.Discrete(3)),
        ([0, 1, 2], spaces.Discrete(3)),
        ([0, 3], spaces.Discrete(3)),
        ([0, -1], spaces.Discrete(3)),
        ([[0.0], [np.nan]], spaces.Box(-1, 1, (1,))),
        ([[0.0, 1.0]], spaces.Box(-1, 1, (1,))),
        ([[0, 0], [0, 2]], spaces.MultiDiscrete([2, 2])),
    ],
)
def test_actions_that_do_not_fit_are_refused(actions: list[Any], space: spaces.Space) -> None:
    with pytest.raises(DataError, match="actions"):
        draw_actions(noise(2, 8, 64), np.array(actions), space)


def test_other_spaces_are_refused() -> None:
    with pytest.raises(ConfigError, match="Box, Discrete and MultiDiscrete"):
        draw_actions(noise(2, 8, 64), np.zeros((2, 3)), spaces.MultiBinary(3))


@pytest.mark.parametrize(
    ("actions", "space"),
    [([0], spaces.Discrete(3)), ([[0.0]], spaces.Box(-1, 1, (1,))), ([[0, 1]], spaces.MultiDiscrete([2, 2]))],
)
def test_each_thing_needs_one_name(actions: list[Any], space: spaces.Space) -> None:
    with pytest.raises(ConfigError, match="names are given"):
        draw_actions(noise(1, 8, 64), np.array(actions), space, ["a", "b", "c", "d"])


def test_sizes_must_make_sense() -> None:
    with pytest.raises(ConfigError, match="target_side"):
        upscale(noise(1, 4, 4), target_side=0)
    with pytest.raises(ConfigError, match="gap"):
        side_by_side(noise(1, 4, 4), noise(1, 4, 4), gap=-1)
