"""Run folders as a run leaves them, without the run: the files are written by what writes them."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from themis_ray.config import load_config
from themis_ray.tracking import METRICS, JsonLinesLogger, RunFolder

RANDOM = {"Pendulum-v1": -1200.0, "CartPole-v1": 22.0}
TRUE = {"Pendulum-v1": -150.0, "CartPole-v1": 480.0}
NUM_LINES = 20


def make_run(path: Path, score: float, settings: Sequence[str], *, is_finished: bool = True) -> Path:
    """Write the folder of a run whose final evaluation has a score on the scale of `RANDOM` and `TRUE`."""
    config = load_config(None, [*settings, *([] if any("env.id" in s for s in settings) else ["env.id=Pendulum-v1"])])
    folder = RunFolder.create(path, config, overwrite=True)
    random, true = RANDOM[config.env.id], TRUE[config.env.id]
    budget = config.feedback.budget if config.learn_reward else 0
    rng = np.random.default_rng([config.seed, int(1000 * abs(score))])
    logger = JsonLinesLogger(folder.metrics_path)
    for number in range(1, NUM_LINES + 1 if is_finished else 4):
        share = number / NUM_LINES
        reached = random + score * (true - random) * (1 - math.exp(-4 * share)) + rng.normal(0, 0.02) * (true - random)
        row = dict.fromkeys(METRICS, math.nan) | {
            "iteration": number,
            "num_env_steps": int(share * config.num_env_steps),
            "phase": "preference",
            # Nothing is known before the first episode is over.
            "true_return_mean": reached if number > 1 else math.nan,
            "queries_asked": min(budget, int(budget * share / 0.75)),
        }
        logger.log(row)
    logger.close(None)
    if is_finished:
        folder.write_summary(
            {
                "env_id": config.env.id,
                "algorithm": config.algorithm.name,
                "seed": config.seed,
                "learn_reward": config.learn_reward,
                "teacher": config.teacher.teacher_name if config.feedback.dataset is None else None,
                "dataset": config.feedback.dataset,
                "sampler": config.feedback.sampler,
                "num_env_steps": config.num_env_steps,
                "true_return_mean": random + score * (true - random),
                "random_return_mean": random,
                "queries_asked": budget,
                "heldout_accuracy": math.nan,
                "wall_s": 12.5,
            }
        )
    return path


def make_sweep(
    path: Path,
    *,
    envs: Sequence[str] = ("Pendulum-v1", "CartPole-v1"),
    teachers: Sequence[str] = ("oracle", "mistake", "noisy"),
    samplers: Sequence[str] = ("uniform", "disagreement", "entropy"),
    num_seeds: int = 3,
) -> Path:
    """Write a folder of runs: every teacher with every sampler, and the true reward; oracle beats mistake."""
    for number, (env, teacher, sampler) in enumerate(_combinations(envs, teachers, samplers)):
        level = {"oracle": 0.95, "mistake": 0.62, "noisy": 0.8}[teacher] + 0.03 * samplers.index(sampler)
        for seed in range(num_seeds):
            rng = np.random.default_rng([number, seed])
            settings = [f"env.id={env}", f"teacher.name={teacher}", f"feedback.sampler={sampler}", f"seed={seed}"]
            settings += ["num_env_steps=8000"]
            make_run(path / f"{env}-{teacher}-{sampler}-s{seed}", level + rng.normal(0, 0.06), settings)
    for env in envs:
        for seed in range(num_seeds):
            # Their mean score is 1.
            score = 1.0 + 0.02 * (seed - (num_seeds - 1) / 2)
            settings = [f"env.id={env}", "learn_reward=false", f"seed={seed}", "num_env_steps=8000"]
            make_run(path / "true" / f"{env}-s{seed}", score, settings)
    return path


def _combinations(*axes: Sequence[str]) -> Iterator[tuple[str, ...]]:
    if not axes:
        yield ()
        return
    for first in axes[0]:
        for rest in _combinations(*axes[1:]):
            yield (first, *rest)
