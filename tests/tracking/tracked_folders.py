"""A run folder with everything that trackers take, without a run."""

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from themis_ray.clips import write_clip
from themis_ray.config import ExperimentConfig, load_config
from themis_ray.data import Choice, Preference, PreferenceDataset, Query, Segment
from themis_ray.tracking import METRICS, JsonLinesLogger, RunFolder

STEPS = (100, 200, 300)
CHOICES = (Choice.LEFT, Choice.RIGHT, Choice.EQUAL, Choice.SKIP)


def make_row(num_env_steps: int, **values: Any) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(METRICS, 0.5)
    return {**row, "num_env_steps": num_env_steps, "iteration": num_env_steps, "phase": "preference", **values}


def make_config(*settings: str) -> ExperimentConfig:
    return load_config(None, ["env.id=Pendulum-v1", "teacher.name=mistake", *settings])


def make_run(path: Path, *settings: str, is_finished: bool = True) -> Path:
    """Writes metrics, summary, plot, four answers, two clips and an explanation; segment i has the true return i."""
    folder = RunFolder.create(path, make_config(*settings))
    logger = JsonLinesLogger(folder.metrics_path)
    for step in STEPS:
        logger.log(make_row(step, true_return_mean=-float(step), alpha=math.nan))
    logger.close(None)
    picture = Image.fromarray(np.full((20, 30, 3), 200, np.uint8))
    picture.save(path / "plot.png")
    _append_answers(path)
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (8, 32, 32, 3), np.uint8)
    write_clip(frames, path / "clips").replace(path / "clips" / "trained-policy.webm")
    write_clip(frames[::-1].copy(), path / "clips")
    explanation = path / "explanations" / "reward-saliency"
    write_clip(frames, explanation)
    picture.save(explanation / "still.png")
    (explanation / "index.html").write_text("<!doctype html><title>why</title>")
    (explanation / "explanations.json").write_text("{}")
    if is_finished:
        folder.write_summary({"env_id": "Pendulum-v1", "true_return_mean": -150.0, "heldout_accuracy": math.nan})
    return path


def _append_answers(path: Path) -> None:
    rng, now = np.random.default_rng(1), datetime(2025, 1, 2, tzinfo=UTC)
    segments = [
        Segment.create("Pendulum-v1", "e", 4 * i, rng.normal(size=(4, 3)), rng.normal(size=(4, 1)), np.full(4, i / 4))
        for i in range(2 * len(CHOICES))
    ]
    queries = [Query(segments[i], segments[i + 1]) for i in range(0, len(segments), 2)]
    preferences = [
        Preference(query.id, query.left.id, query.right.id, choice, "mistake", 0, 100, now, now + timedelta(seconds=2))
        for query, choice in zip(queries, CHOICES, strict=True)
    ]
    PreferenceDataset(path).append(queries, preferences)
