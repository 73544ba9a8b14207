from typing import Any

import numpy as np
import pytest

from themis_ray.clips.pictures import NEGATIVE, PRESSED, TEXT
from themis_ray.errors import ConfigError, DataError
from themis_ray.explain.charts import draw_bars, draw_curve, draw_legend, largest_inputs, shared_limits


def noise(num_frames: int, height: int = 200, width: int = 256) -> np.ndarray:
    """Returns frames that cannot be written to."""
    frames = np.random.default_rng(0).integers(0, 256, (num_frames, height, width, 3), np.uint8)
    frames.flags.writeable = False
    return frames


def bars(attributions: Any, names: Any = None, scale: float = 1.0, **settings: Any) -> np.ndarray:
    """Returns what is drawn at the right of the frames."""
    attributions = np.asarray(attributions, float)
    frames = noise(len(attributions), 400)
    names = [f"input {number}" for number in range(attributions.shape[1])] if names is None else names
    drawn = draw_bars(frames, attributions, names, scale, **settings)
    np.testing.assert_array_equal(drawn[:, :, :256], frames)
    return drawn[:, :, 256:]


def strips(values: Any, limits: tuple[float, float] | None = None, width: int = 256) -> np.ndarray:
    """Returns what is drawn below the frames."""
    frames = noise(len(values), width=width)
    drawn = draw_curve(frames, np.asarray(values), "predicted reward", limits)
    np.testing.assert_array_equal(drawn[:, :200], frames)
    return drawn[:, 200:]


def lengths(panels: np.ndarray, colour: tuple[int, int, int]) -> list[int]:
    """Returns how many columns of each panel have the colour."""
    return [int((panel == colour).all(axis=-1).any(axis=0).sum()) for panel in panels]


def lit_rows(panel: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return np.flatnonzero((panel == colour).all(axis=-1).any(axis=1))


def cursor(strip: np.ndarray) -> tuple[float, float]:
    """Returns (column, row) of the point on the curve: the white below the line of text."""
    rows, columns = np.nonzero((strip[28:] == TEXT).all(axis=-1))
    return float(columns.mean()), float(rows.mean())


# ---------------------------------------------------------------- bars


def test_a_bar_is_as_long_as_its_attribution() -> None:
    values = np.array([0.0, 0.25, 0.5, 1.0, -0.5, -1.0])
    panels = bars(values[:, None])
    assert lengths(panels, PRESSED)[0] == lengths(panels, NEGATIVE)[0] == 0
    signed = np.array(lengths(panels, PRESSED)) - lengths(panels, NEGATIVE)
    assert signed[3] > 40
    np.testing.assert_allclose(signed / signed[3], values, atol=0.04)


def test_what_is_beyond_the_scale_ends_in_white() -> None:
    panels = bars([[1.0], [1.2], [-1.2]])
    assert lengths(panels[:1], PRESSED)[0] - lengths(panels[1:2], PRESSED)[0] == 2
    assert lengths(panels[2:], NEGATIVE)[0] > 40


def test_each_input_has_a_row_of_its_own_in_their_order() -> None:
    panels = bars(np.eye(5))
    tops = [lit_rows(panel, PRESSED).min() for panel in panels]
    assert (np.diff(tops) > 10).all()


def test_both_sides_of_a_pair_have_the_same_length_for_the_same_attribution() -> None:
    left, right = np.array([[0.2, 0.1]]), np.array([[0.2, 2.0]])
    first, second = bars(left, scale=2.0), bars(right, scale=2.0)
    rows = lit_rows(first[0], PRESSED)
    upper = rows[rows < rows.min() + 8]
    np.testing.assert_array_equal(first[:, upper], second[:, upper])


def test_of_many_inputs_the_largest_are_drawn_and_the_others_summed() -> None:
    attributions = np.zeros((3, 40))
    attributions[:, 30] = 1.0
    attributions[:, 2:18] = 0.5
    attributions[:, 1] = -0.2
    chosen = largest_inputs(attributions)
    assert len(chosen) == 16
    assert 30 in chosen
    assert 1 not in chosen
    assert chosen == sorted(chosen)
    panels = bars(attributions)
    # 16 rows and one for the sum of 24 others, one of them 0.5 and one -0.2.
    tops = np.flatnonzero(np.diff(lit_rows(panels[0], PRESSED), prepend=-9) > 1)
    assert len(tops) == 17
    without = bars(attributions * (np.arange(40) != 1) * (np.arange(40) != 17))
    assert len(np.flatnonzero(np.diff(lit_rows(without[0], PRESSED), prepend=-9) > 1)) == 16


def test_two_sides_show_the_same_inputs() -> None:
    left, right = np.zeros((2, 30)), np.zeros((5, 30))
    left[:, 3], right[:, 20] = 1.0, -1.0
    assert largest_inputs(left, right, num_rows=2) == [3, 20]
    shown = bars(left, inputs=[3, 20])
    assert len(lit_rows(shown[0], PRESSED)) > 5


def test_values_are_written_and_change_nothing_else() -> None:
    attributions = np.tile([[0.5, -0.5]], (4, 1))
    values = np.array([[1.0, 2.0], [1.0, 2.0], [-1.0, 2.0], [1.0, 123456.0]])
    panels = bars(attributions, values=values)
    np.testing.assert_array_equal(panels[0], panels[1])
    for step in (2, 3):
        columns = np.flatnonzero((panels[step] != panels[0]).any(axis=-1).any(axis=0))
        lit = np.flatnonzero(((panels[0] == PRESSED) | (panels[0] == NEGATIVE)).all(axis=-1).any(axis=0))
        assert columns.max() < lit.min()


def test_names_are_seen() -> None:
    assert (bars(np.zeros((1, 1)), ["pole angle"]) != bars(np.zeros((1, 1)), ["pole speed"])).any()
    long = bars(np.zeros((1, 2)), ["a very long name of an input that nobody could have foreseen", "b"])
    assert long.shape == bars(np.zeros((1, 2))).shape


def test_bars_fit_beside_low_frames() -> None:
    frames = noise(2, 40, 60)
    drawn = draw_bars(frames, np.ones((2, 30)), [str(number) for number in range(30)], 1.0)
    top = (drawn.shape[1] - 40) // 2
    np.testing.assert_array_equal(drawn[:, top : top + 40, :60], frames)


# ---------------------------------------------------------------- curve


def test_the_cursor_moves_with_the_step() -> None:
    places = [cursor(strip)[0] for strip in strips(np.zeros(20))]
    steps = np.diff(places)
    assert (steps > 5).all()
    assert steps.max() - steps.min() < 2


def test_the_point_is_as_high_as_the_value() -> None:
    values = np.array([0.0, 1.0, 0.5, 0.25, 2.0])
    heights = -np.array([cursor(strip)[1] for strip in strips(values, (0.0, 1.0))])
    reach = heights[1] - heights[0]
    assert reach > 20
    np.testing.assert_allclose((heights - heights[0]) / reach, np.clip(values, 0, 1), atol=0.05)


def test_what_is_to_come_is_fainter_than_what_is_over() -> None:
    drawn = strips(np.sin(np.linspace(0, 6, 30))).astype(int)
    right = drawn[:, 30:, 180:].max(axis=-1)
    # At the first step only the faint line is there, at the last the bright one.
    assert right[0].max() < 100 < right[-1].max()


def test_the_number_of_the_step_is_written() -> None:
    drawn = strips([1.0, 2.0, 1.0], (0.0, 3.0))
    np.testing.assert_array_equal(drawn[0, :26], drawn[2, :26])
    assert (drawn[0, :26] != drawn[1, :26]).any()


def test_one_step_and_equal_values_have_a_curve_too() -> None:
    assert strips([3.0]).shape[0] == 1
    assert strips([0.0, 0.0]).shape[0] == 2


def test_limits_hold_both_sides() -> None:
    assert shared_limits(np.array([1.0, -2.0]), np.array([5.0])) == (-2.0, 5.0)
    for same in (0.0, 3.0, -1e9):
        low, high = shared_limits(np.full(4, same))
        assert low < same < high


# ---------------------------------------------------------------- legend


def test_the_legend_goes_from_blue_to_orange() -> None:
    drawn = draw_legend(noise(3), 0.5, "down", "up")
    np.testing.assert_array_equal(drawn[:, :200], noise(3))
    ramp = drawn[0, 200 + 22, 6:-6].astype(int)
    warm = ramp[:, 0] - ramp[:, 2]
    assert warm[0] < -100
    assert warm[-1] > 100
    assert (np.diff(warm) >= -1).all()
    assert abs(warm[len(warm) // 2]) < 5
    np.testing.assert_array_equal(drawn[0, 200:], drawn[2, 200:])
    assert (draw_legend(noise(1), 0.7, "down", "up")[:, 200:] != drawn[:1, 200:]).any()


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    "call",
    [
        lambda frames: draw_bars(frames, np.zeros((2, 3)), ["a", "b", "c"], 1.0),
        lambda frames: draw_curve(frames, np.zeros(2), "reward"),
        lambda frames: draw_legend(frames, 1.0),
    ],
    ids=["bars", "curve", "legend"],
)
@pytest.mark.parametrize("frames", [np.zeros((2, 4, 4, 3)), np.zeros((0, 4, 4, 3), np.uint8)])
def test_what_are_no_frames_is_refused(call: Any, frames: np.ndarray) -> None:
    with pytest.raises(DataError, match="frames"):
        call(frames)


@pytest.mark.parametrize(
    ("call", "error", "told"),
    [
        (lambda f: draw_bars(f, np.zeros((3, 1)), ["a"], 1.0), DataError, "attributions"),
        (lambda f: draw_bars(f, np.full((2, 1), np.nan), ["a"], 1.0), DataError, "attributions"),
        (lambda f: draw_bars(f, np.zeros((2, 1)), ["a", "b"], 1.0), ConfigError, "names"),
        (lambda f: draw_bars(f, np.zeros((2, 1)), ["a"], 0.0), ConfigError, "scale"),
        (lambda f: draw_bars(f, np.zeros((2, 1)), ["a"], 1.0, np.zeros((2, 2))), DataError, "values"),
        (lambda f: draw_bars(f, np.zeros((2, 1)), ["a"], 1.0, inputs=[1]), ConfigError, "inputs"),
        (lambda f: draw_bars(f, np.zeros((2, 1)), ["a"], 1.0, inputs=[]), ConfigError, "inputs"),
        (lambda f: draw_curve(f, np.zeros(3), "reward"), DataError, "shape"),
        (lambda f: draw_curve(f, np.full(2, np.inf), "reward"), DataError, "finite"),
        (lambda f: draw_curve(f, np.zeros(2), "reward", (1.0, 1.0)), ConfigError, "limits"),
        (lambda f: draw_legend(f, -1.0), ConfigError, "scale"),
        (lambda f: largest_inputs(np.zeros((2, 3)), np.zeros((2, 4))), DataError, "inputs"),
        (lambda f: largest_inputs(), DataError, "inputs"),
        (lambda f: shared_limits(), DataError, "limits"),
        (lambda f: shared_limits(np.array([np.nan])), DataError, "limits"),
    ],
)
def test_what_does_not_fit_is_told(call: Any, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        call(noise(2))
