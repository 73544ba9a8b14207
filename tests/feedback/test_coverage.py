import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from themis_ray.data import Query, Segment
from themis_ray.envs import ImagePart
from themis_ray.feedback import distances_to_nearest, farthest_first, query_embeddings

# Few distinct coordinates: many equal distances and repeated points.
coordinates = st.integers(-3, 3).map(float)


@st.composite
def points_and_centres(draw):
    size = draw(st.integers(1, 4))
    tables = (draw(arrays(np.float32, (draw(st.integers(low, 12)), size), elements=coordinates)) for low in (1, 0))
    return tuple(tables)


def slow_distances(points, centres):
    """Every distance anew, in double precision, one pair at a time."""
    return np.array([min((np.linalg.norm(p - c) for c in centres), default=np.inf) for p in points.astype(np.float64)])


def slow_farthest_first(points, centres, n):
    """k-center as it is defined: before each pick all distances to all centres are computed anew."""
    centres, picked = list(centres.astype(np.float64)), []
    for _ in range(n):
        distances = slow_distances(points, centres)
        distances[picked] = -np.inf
        picked.append(int(np.argmax(distances)))
        centres.append(points[picked[-1]].astype(np.float64))
    return picked


@pytest.mark.parametrize("num_centres", [1, 2, 40])
@pytest.mark.parametrize("seed", range(5))
def test_the_running_minimum_picks_what_recomputing_picks(num_centres, seed):
    rng = np.random.default_rng(seed)
    points, centres = (rng.normal(size=(n, 30)).astype(np.float32) for n in (60, num_centres))
    picked = farthest_first(points, centres, 25, rng)
    assert picked.tolist() == slow_farthest_first(points, centres, 25)


@given(data=points_and_centres(), n=st.integers(0, 15), offset=st.sampled_from([0.0, 1000.0]), seed=st.integers(0, 99))
@settings(max_examples=150)
def test_each_pick_is_one_of_the_farthest_whatever_ties_there_are(data, n, offset, seed):
    points, centres = (table + np.float32(offset) for table in data)
    picked = farthest_first(points, centres, n, np.random.default_rng(seed))
    assert picked.dtype == np.int64
    assert len(picked) == min(n, len(points)) == len(set(picked.tolist()))
    for i, pick in enumerate(picked):
        distances = slow_distances(points, [*centres, *points[picked[:i]]])
        distances[picked[:i]] = -np.inf
        assert distances[pick] >= distances.max() - 0.01


@given(data=points_and_centres())
def test_distances_are_those_to_the_nearest_centre(data):
    np.testing.assert_allclose(distances_to_nearest(*data), slow_distances(*data), atol=0.01)


def test_chunks_of_centres_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    points, centres = (rng.normal(size=(n, 7)).astype(np.float32) for n in (20, 50))
    whole = distances_to_nearest(points, centres)
    monkeypatch.setattr("themis_ray.feedback.coverage._MAX_CHUNK_BYTES", 4 * 20 * 3)
    np.testing.assert_allclose(distances_to_nearest(points, centres), whole, rtol=1e-5)


def test_far_from_the_origin_distances_keep_their_digits():
    rng = np.random.default_rng(0)
    points, centres = (rng.normal(size=(n, 50)) for n in (10, 20))
    shifted = distances_to_nearest(*((table + 300.0).astype(np.float32) for table in (points, centres)))
    np.testing.assert_allclose(shifted, slow_distances(points, centres), rtol=1e-3)


def test_points_at_centres_are_picked_last():
    points = np.array([[0.0], [5.0], [5.0], [9.0]], np.float32)
    picked = farthest_first(points, np.array([[5.0]], np.float32), 4, np.random.default_rng(0))
    assert picked[:2].tolist() == [0, 3]
    assert sorted(picked.tolist()) == [0, 1, 2, 3]


def test_without_centres_the_first_point_is_any_and_the_second_the_farthest_from_it():
    points = np.array([[0.0], [1.0], [10.0], [4.0]], np.float32)
    rng = np.random.default_rng(0)
    picks = np.array([farthest_first(points, np.empty((0, 0), np.float32), 2, rng) for _ in range(2000)])
    counts = np.bincount(picks[:, 0], minlength=4)
    # Chi-square with 3 degrees of freedom is above 16.3 once in a thousand seeds.
    assert ((counts - 500) ** 2 / 500).sum() < 16.3
    farthest = {0: 2, 1: 2, 2: 0, 3: 2}
    assert all(farthest[first] == second for first, second in picks.tolist())


def test_equal_points_come_in_any_order():
    points = np.full((5, 3), 0.3, np.float32)
    rng = np.random.default_rng(0)
    picks = np.array([farthest_first(points, points[:2], 5, rng) for _ in range(2000)])
    for place in picks.T:
        counts = np.bincount(place, minlength=5)
        # Chi-square with 4 degrees of freedom is above 18.5 once in a thousand seeds.
        assert ((counts - 400) ** 2 / 400).sum() < 18.5
    assert all(sorted(row) == list(range(5)) for row in picks.tolist())


def test_points_that_are_no_numbers_still_give_distinct_indices():
    points = np.array([[0.0], [np.nan], [1.0], [np.nan]], np.float32)
    picked = farthest_first(points, points[:1], 4, np.random.default_rng(0))
    assert sorted(picked.tolist()) == [0, 1, 2, 3]


# ---------------------------------------------------------------- embeddings


def segment(observations):
    length = len(observations)
    return Segment.create("Test-v0", "e", 0, observations, np.zeros(length), np.zeros(length))


def test_vectors_are_flattened_left_then_right():
    left, right = np.arange(6.0).reshape(3, 2), np.arange(6.0, 12.0).reshape(3, 2)
    table = query_embeddings([Query(segment(left), segment(right)), Query(segment(right), segment(left))], "vector")
    assert table.dtype == np.float32
    assert table.tolist() == [list(range(12)), [*range(6, 12), *range(6)]]


def test_grids_are_kept_whole():
    cells = np.random.default_rng(0).integers(0, 11, (2, 4, 7, 7, 3), dtype=np.uint8)
    table = query_embeddings([Query(segment(cells[0]), segment(cells[1]))], "grid")
    assert table.tolist() == [cells.reshape(-1).tolist()]


@pytest.mark.parametrize("shape", [(4, 16, 24, 3), (5, 13, 9, 1), (3, 5, 20, 4)])
def test_images_become_means_over_blocks_of_pixels(shape):
    frames = np.random.default_rng(0).integers(0, 256, (2, *shape), dtype=np.uint8)
    table = query_embeddings([Query(segment(frames[0]), segment(frames[1]))], "image")
    expected = []
    height, width = shape[1:3]
    num_rows, num_columns = min(8, height), min(8, width)
    for frame in frames.reshape(-1, *shape[1:]).astype(np.float64):
        for i in range(num_rows):
            for j in range(num_columns):
                rows = [row for row in range(height) if row * num_rows // height == i]
                columns = [column for column in range(width) if column * num_columns // width == j]
                # Each pixel of a column of the block weighs the same, and so does each column.
                expected.append(np.mean([frame[row, column].mean() for row in rows for column in columns]))
    np.testing.assert_allclose(table[0], expected, rtol=1e-4)


def test_long_segments_of_images_take_bounded_memory_and_keep_both_ends():
    frames = np.random.default_rng(0).integers(0, 256, (2, 120, 64, 64, 3), dtype=np.uint8)
    table = query_embeddings([Query(segment(frames[0]), segment(frames[1]))], "image")
    assert table.shape == (1, 4096)
    ends = query_embeddings([Query(segment(frames[0][[0, 119]]), segment(frames[1][[0, 119]]))], "image")
    np.testing.assert_allclose(table[0, :64], ends[0, :64], rtol=1e-5)
    np.testing.assert_allclose(table[0, -64:], ends[0, -64:], rtol=1e-5)


def test_no_queries_have_no_embeddings():
    assert query_embeddings([], "vector").shape[0] == 0


def test_images_in_mixed_observations_become_block_means_and_the_rest_stays():
    layout = (ImagePart(0, 4800, (40, 40, 3), "image"), ImagePart(4800, 4947, (7, 7, 3), "grid"))
    observations = np.random.default_rng(0).random((2, 5, 4950), np.float32)
    table = query_embeddings([Query(segment(observations[0]), segment(observations[1]))], "mixed", layout)
    size = 5 * (64 + 147 + 3)
    assert table.shape == (1, 2 * size)
    pictures = observations[0, :, :4800].reshape(5, 8, 5, 8, 5, 3)
    np.testing.assert_allclose(table[0, : 5 * 64], pictures.mean(axis=(2, 4, 5)).ravel(), rtol=1e-4)
    np.testing.assert_array_equal(table[0, 5 * 64 : size], observations[0, :, 4800:].ravel())
