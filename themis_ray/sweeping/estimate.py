"""How long a sweep takes, before it is started."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from themis_ray.config import ExperimentConfig
from themis_ray.envs import get_env_spec
from themis_ray.sweeping.trials import Trial

__all__ = ["Estimate", "estimate"]

# Seconds of one core with networks of two layers of 256 and vectors, as docs/performance.md has them: an env step with
# its share of everything else, and an update with 256 rows.
STEP_S, UPDATE_S = 0.0007, 0.007
IMAGE_FACTOR = 6.0
FIT_S_PER_LABEL = 0.1
START_S = 20.0
UPDATES_PER_STEP = {"ppo": 0.0, "sac": 1.0, "dqn": 0.5, "cpl": 0.25}


@dataclass(frozen=True)
class Estimate:
    """Seconds of each trial by itself, and of the whole sweep with `num_at_once` trials at a time."""

    trial_s: tuple[float, ...]
    num_at_once: int
    total_s: float


def estimate(
    trials: Sequence[Trial], num_cpus: float, max_concurrent: int | None = None, runs: Path | None = None
) -> Estimate:
    """Return how long trials take: from finished runs of the same environment and learner, else from tables.

    Args:
        trials: What is to be run.
        num_cpus: Of the machine or cluster.
        max_concurrent: Most trials at a time; None: as many as there is room.
        runs: Folder below which finished runs are looked for.
    """
    known = {} if runs is None else _known_speeds(runs)
    trial_s = tuple(_seconds(trial.config, known) for trial in trials)
    widest = max((trial.num_cpus for trial in trials), default=1.0)
    num_at_once = max(1, min(len(trials), math.floor(num_cpus / widest) if widest else len(trials)))
    if max_concurrent is not None:
        num_at_once = min(num_at_once, max_concurrent)
    total = max(sum(trial_s) / num_at_once, max(trial_s, default=0.0))
    return Estimate(trial_s, num_at_once, total)


def _known_speeds(runs: Path) -> dict[tuple[str, str], float]:
    """Return env steps per second by environment and learner, the median of all finished runs."""
    speeds: dict[tuple[str, str], list[float]] = {}
    for path in runs.rglob("summary.json"):
        try:
            summary = json.loads(path.read_text())
            speed = float(summary["env_steps_per_s"])
            speeds.setdefault((summary["env_id"], summary["algorithm"]), []).append(speed)
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return {key: median(values) for key, values in speeds.items()}


def _seconds(config: ExperimentConfig, known: dict[tuple[str, str], float]) -> float:
    algorithm = config.algorithm
    speed = known.get((config.env.id, algorithm.name))
    if speed:
        return START_S + config.num_env_steps / speed
    rows = (algorithm.batch_size or 256) / 256
    width = max(algorithm.hidden_sizes or (256,)) / 256
    updates = algorithm.updates_per_env_step or UPDATES_PER_STEP[algorithm.name]
    update_s = 0.0 if algorithm.name == "ppo" else updates * UPDATE_S * max(0.4, rows * width)
    is_image = get_env_spec(config.env).observation_kind in ("image", "mixed")
    step_s = (STEP_S + update_s) * (IMAGE_FACTOR if is_image else 1.0)
    labels_s = FIT_S_PER_LABEL * config.feedback.budget if config.has_reward_model else 0.0
    return START_S + config.num_env_steps * step_s + labels_s
