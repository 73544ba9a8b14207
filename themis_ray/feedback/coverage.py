"""Queries spread out: k-center selection over embeddings of queries.

Greedy farthest-first selection is from Gonzalez 1985, "Clustering to minimize the maximum intercluster distance";
choosing queries by it is one of the samplers of Lee et al. 2021, "B-Pref" (arXiv 2111.03026).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from themis_ray.data import Query
from themis_ray.envs import ImagePart, ObservationKind

__all__ = ["distances_to_nearest", "farthest_first", "query_embeddings"]

IMAGE_SIZE = 8
MAX_NUM_FRAMES = 32
_MAX_CHUNK_BYTES = 2**25


def query_embeddings(
    queries: Sequence[Query], observation_kind: ObservationKind, layout: Sequence[ImagePart] = ()
) -> NDArray[np.float32]:
    """Returns one embedding per query, the observations of left and then of right, (N, D) float32.

    Vectors and grids are flattened as they are, over all steps. Of a segment of images at most 32 evenly spaced frames
    are taken, each as 8 x 8 means over blocks of pixels and all channels: D is then at most 4096 and 10 000 queries
    take at most 164 MB. The images in mixed observations are treated
    likewise, all their other numbers as vectors.

    Args:
        queries: N queries, all segments of one length and shape.
        observation_kind: What the observations are.
        layout: Where mixed observations hold images.
    """
    if not queries:
        return np.empty((0, 0), np.float32)
    embed = _embed_images if observation_kind == "image" else partial(_embed_mixed, layout=layout)
    embeddings: dict[str, NDArray[np.float32]] = {}
    for segment in (side for query in queries for side in (query.left, query.right)):
        if segment.id not in embeddings:
            embeddings[segment.id] = embed(segment.observations)
    size = len(embeddings[queries[0].left.id])
    table = np.empty((len(queries), 2 * size), np.float32)
    for row, query in zip(table, queries, strict=True):
        row[:size] = embeddings[query.left.id]
        row[size:] = embeddings[query.right.id]
    return table


def farthest_first(
    embeddings: NDArray[np.float32], centres: NDArray[np.float32], n: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Returns the indices of min(n, N) points, each the farthest from all centres and from the points before it.

    With c the centres and i_1 ... i_j the points picked so far, the next one is

        argmax over i of min( min_c ||x_i - x_c||, min over j of ||x_i - x_{i_j}|| ).

    The inner minimum is kept: a pick costs one product of the points with the picked one, whatever number of centres
    there is. Equal distances are ordered at random, so without centres the first point is any. A point that is picked
    leaves, so repeated points give distinct indices too.

    Args:
        embeddings: (N, D) points to pick from.
        centres: (M, D) points that are there already; any shape when M is 0.
        n: How many to pick.
        rng: Orders points that are equally far.
    """
    points = np.asarray(embeddings, np.float32)
    origin = _origin(points)
    nearest = _squared_distances_to_nearest(points, centres, origin)
    points = points - origin
    squares = _row_squares(points)
    order = rng.permutation(len(points))
    picked = np.empty(min(n, len(points)), np.int64)
    for i in range(len(picked)):
        pick = order[np.argmax(nearest[order])]
        picked[i] = pick
        squared = squares + (squares[pick] - 2.0 * (points @ points[pick]))
        np.minimum(nearest, np.maximum(squared, 0.0), out=nearest)
        nearest[picked[: i + 1]] = -np.inf
    return picked


def distances_to_nearest(points: NDArray[np.float32], centres: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the L2 distance of each of (N, D) points to the nearest of (M, D) centres; infinity when M is 0."""
    points = np.asarray(points, np.float32)
    distances: NDArray[np.float32] = np.sqrt(_squared_distances_to_nearest(points, centres, _origin(points)))
    return distances


def _squared_distances_to_nearest(
    points: NDArray[np.float32], centres: NDArray[np.float32], origin: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Returns min over c of |x|^2 + |c|^2 - 2 x.c, (N,) and at least 0, by products of bounded size.

    |x|^2 is added after the minimum, which saves a pass over each (N, M) product.
    """
    nearest = np.full(len(points), np.inf, np.float32)
    if len(centres) == 0 or len(points) == 0:
        return nearest
    points = points - origin
    chunk_size = max(1, _MAX_CHUNK_BYTES // (4 * max(points.shape)))
    for start in range(0, len(centres), chunk_size):
        block = np.asarray(centres[start : start + chunk_size], np.float32) - origin
        partial = block @ points.T
        partial *= -2.0
        partial += _row_squares(block)[:, None]
        np.minimum(nearest, partial.min(axis=0), out=nearest)
    nearest += _row_squares(points)
    return np.maximum(nearest, 0.0, out=nearest)


def _origin(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the mean point, near which products lose the fewest digits; exactly the point where all are equal."""
    if len(points) == 0:
        return np.zeros(points.shape[1:], np.float32)
    origin: NDArray[np.float32] = points.mean(axis=0, dtype=np.float64).astype(np.float32)
    return origin


def _row_squares(points: NDArray[np.float32]) -> NDArray[np.float32]:
    squares: NDArray[np.float32] = np.einsum("nd,nd->n", points, points)
    return squares


def _flatten(observations: NDArray[Any]) -> NDArray[np.float32]:
    return observations.astype(np.float32, copy=False).reshape(-1)


def _embed_mixed(observations: NDArray[Any], layout: Sequence[ImagePart]) -> NDArray[np.float32]:
    """Returns the block means of the images in (L, D) observations and all their other numbers, flat.

    Without images this is every observation of any shape as it is.
    """
    images = [part for part in layout if part.kind == "image"]
    if not images:
        return _flatten(observations)
    means = [_embed_images(observations[:, part.start : part.stop].reshape(-1, *part.shape)) for part in images]
    rest = np.delete(observations, np.concatenate([np.r_[part.start : part.stop] for part in images]), axis=1)
    return np.concatenate([*means, _flatten(rest)])


def _embed_images(frames: NDArray[Any]) -> NDArray[np.float32]:
    """Returns the block means of some of (L, height, width, channels) frames, flat."""
    length, height, width, num_channels = frames.shape
    kept = np.unique(np.linspace(0, length - 1, min(length, MAX_NUM_FRAMES)).round().astype(np.int64))
    rows, columns = _block_means(height), _block_means(width)
    # One product for columns and channels together, one for rows.
    columns = np.repeat(columns, num_channels, axis=1) / num_channels
    flat = frames[kept].reshape(len(kept), height, width * num_channels).astype(np.float32)
    means: NDArray[np.float32] = rows @ (flat @ columns.T)
    return means.reshape(-1)


def _block_means(num_pixels: int) -> NDArray[np.float32]:
    """Returns the (blocks, pixels) matrix that takes means over at most 8 blocks of pixels of nearly equal size."""
    num_blocks = min(IMAGE_SIZE, num_pixels)
    is_inside = np.arange(num_pixels) * num_blocks // num_pixels == np.arange(num_blocks)[:, None]
    means: NDArray[np.float32] = (is_inside / is_inside.sum(axis=1, keepdims=True)).astype(np.float32)
    return means
