"""What picking queries costs.

    python -m benchmarks.samplers [--repeats N]

Prints a table and writes benchmarks/out/samplers.json:

* ms_per_session: by sampler, median ms to pick 50 of 500 candidate queries, with 5000 labelled pairs, 3 members of the
  ensemble and segments of 50 observations of 17 numbers. Drawing candidates and predicting returns is not in it;
  embedding candidates and labelled pairs is.
* kcenter_ratio: picking 50 of 500 by k-center over the one matrix of distances (500, 5000) that it needs. Both are on
  one thread, in one process and in turn; the median of the ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from themis_ray.data import Query, Segment
from themis_ray.feedback import SAMPLERS, SamplerSpec, choose_queries, farthest_first, query_embeddings

OUT = Path(__file__).parent / "out" / "samplers.json"
MAX_KCENTER_RATIO = 1.5
MIN_REPEATS = 7
NUM_PICKED, NUM_CANDIDATES, NUM_LABELLED, NUM_MEMBERS = 50, 500, 5000, 3
SEGMENT_LENGTH, OBSERVATION_SIZE = 50, 17


def make_queries(n: int, rng: np.random.Generator) -> list[Query]:
    def segment() -> Segment:
        observations = rng.standard_normal((SEGMENT_LENGTH, OBSERVATION_SIZE)).astype(np.float32)
        steps = np.zeros(SEGMENT_LENGTH, np.float32)
        return Segment.create("HalfCheetah-v5", "e", 0, observations, steps, steps)

    return [Query(segment(), segment()) for _ in range(n)]


def distance_matrix(points: NDArray[np.float32], centres: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return all L2 distances (N, M), by one product."""
    squared = points @ centres.T
    squared *= -2.0
    squared += np.einsum("nd,nd->n", points, points)[:, None]
    squared += np.einsum("nd,nd->n", centres, centres)
    np.maximum(squared, 0.0, out=squared)
    return np.sqrt(squared, out=squared)


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure_sessions(candidates: list[Query], labelled: list[Query], num_repeats: int) -> dict[str, float]:
    """Time every sampler in turn and return medians in ms."""
    segments = [side for query in candidates for side in (query.left, query.right)]
    returns = dict(zip((s.id for s in segments), np.random.default_rng(1).normal(size=(len(segments), 3)), strict=True))

    def predict_returns(asked: Sequence[Segment]) -> NDArray[np.float64]:
        return np.stack([returns[segment.id] for segment in asked], axis=1)

    def session(sampler: SamplerSpec) -> None:
        choose_queries(
            sampler,
            candidates,
            NUM_PICKED,
            np.random.default_rng(0),
            labelled=labelled,
            observation_kind="vector",
            predict_returns=predict_returns,
        )

    times: dict[str, list[float]] = {name: [] for name in SAMPLERS}
    for i in track(range(num_repeats + 1), description="sessions", transient=True):
        for name, sampler in SAMPLERS.items():
            elapsed = seconds(lambda sampler=sampler: session(sampler))
            if i:  # The first round warms up.
                times[name].append(elapsed)
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}


def measure_kcenter(candidates: list[Query], labelled: list[Query], num_repeats: int) -> dict[str, float]:
    """Time k-center and its distance matrix in turn."""
    points, centres = (query_embeddings(queries, "vector") for queries in (candidates, labelled))
    pair: list[tuple[str, Callable[[], object]]] = [
        ("kcenter", lambda: farthest_first(points, centres, NUM_PICKED, np.random.default_rng(0))),
        ("matrix", lambda: distance_matrix(points, centres)),
    ]
    times: dict[str, list[float]] = {name: [] for name, _ in pair}
    for i in track(range(num_repeats + 1), description="k-center", transient=True):
        for name, function in pair if i % 2 else reversed(pair):
            elapsed = seconds(function)
            if i:
                times[name].append(elapsed)
    ratios = [ours / matrix for ours, matrix in zip(times["kcenter"], times["matrix"], strict=True)]
    medians = {f"{name}_ms": 1e3 * statistics.median(values) for name, values in times.items()}
    return {**medians, "ratio": statistics.median(ratios)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15, help=f"timed repetitions, at least {MIN_REPEATS}")
    repeats = max(MIN_REPEATS, parser.parse_args().repeats)
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    candidates, labelled = make_queries(NUM_CANDIDATES, rng), make_queries(NUM_LABELLED, rng)
    kcenter = measure_kcenter(candidates, labelled, repeats)
    sessions = measure_sessions(candidates, labelled, repeats)
    result = {
        "kcenter_ratio": kcenter["ratio"],
        "ms_per_session": sessions,
        "details": {"kcenter_ms": kcenter["kcenter_ms"], "distance_matrix_ms": kcenter["matrix_ms"]},
        "num_repeats": repeats,
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
    }
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(result, indent=2) + "\n")
    title = f"Picking {NUM_PICKED} of {NUM_CANDIDATES} candidates, {NUM_LABELLED} labelled pairs (medians)"
    table = Table(title=title, title_justify="left")
    table.add_column("sampler")
    table.add_column("ms per session", justify="right")
    for name, value in sessions.items():
        table.add_row(name, f"{value:.1f}")
    Console().print(table)
    print(
        f"k-center: {kcenter['kcenter_ms']:.0f} ms, its distance matrix: {kcenter['matrix_ms']:.0f} ms, "
        f"ratio {kcenter['ratio']:.2f} (at most {MAX_KCENTER_RATIO})"
    )
    print(f"Wrote {OUT.relative_to(Path.cwd())}")


if __name__ == "__main__":
    main()
