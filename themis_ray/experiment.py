"""The main job: train one agent, write its run folder, and tell what happened line by line."""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from themis_ray.config import ExperimentConfig, resolve
from themis_ray.envs import EnvSpec
from themis_ray.errors import RunFolderError
from themis_ray.feedback import open_demonstrations
from themis_ray.plots import plot_run
from themis_ray.randomness import RandomStreams, seed_python
from themis_ray.reward_actor import prepare_process
from themis_ray.rllib import (
    build_algorithm_config,
    deterministic_policy,
    evaluate,
    open_preferences,
    open_reference,
    random_policy,
)
from themis_ray.sessions import ray_session
from themis_ray.snapshots import adopt_settings, check_snapshot, open_snapshot, write_snapshot
from themis_ray.tracking import (
    RunFolder,
    RunLogger,
    check_tracking,
    gather_artifacts,
    make_loggers,
    record_policy,
    write_predictions,
)

__all__ = [
    "Iteration",
    "quieten",
    "resolve_new",
    "run_experiment",
    "run_pretraining",
]

logger = logging.getLogger("themis_ray")

LOOP_METRICS = (
    *("fit_loss", "fit_accuracy", "fit_num_epochs", "heldout_accuracy", "reward_correlation"),
    *("fit_trusted_share", "fit_flipped_share", "fit_num_pseudo_labels"),
    *("fit_heldout_loss", "fit_heldout_pair_accuracy", "fresh_accuracy", "policy_disagreement"),
    *("policy_reward_std", "growth_ratio"),
)
LEARNER_METRICS = {
    "policy_loss": ("policy_loss",),
    "critic_loss": ("critic_loss", "vf_loss"),
    "entropy": ("entropy",),
    "alpha": ("alpha",),
    "q_mean": ("q_mean",),
    "kl_to_reference": ("kl_to_reference",),
    "cpl_loss": ("cpl_loss",),
    "cpl_accuracy": ("cpl_accuracy",),
}


@dataclass(frozen=True)
class Iteration:
    """One line of metrics, as it was written.

    Args:
        metrics: Keys as in `themis_ray.tracking.METRICS`.
        summary: The run's summary; with the very last one only, which repeats the last line of metrics.
    """

    metrics: Mapping[str, Any]
    summary: Mapping[str, Any] | None = None


def resolve_new(config: ExperimentConfig) -> tuple[ExperimentConfig, EnvSpec]:
    """Resolve the settings of a new run, and check all that it starts from: snapshot, reference policy, stored answers.

    Raises:
        ThemisError: A setting is not allowed, or what it names is not there or does not fit.
    """
    if config.snapshot is None:
        config, spec = resolve(config)
    else:
        snapshot = open_snapshot(Path(config.snapshot))
        config, spec = resolve(adopt_settings(config, snapshot))
        check_snapshot(config, spec, snapshot)
    if config.algorithm.reference is not None:
        open_reference(config, spec)
    feedback = config.feedback
    if feedback.dataset is not None:
        open_preferences(config, spec)
    if feedback.demonstrations is not None:
        length = feedback.segment_length or 0
        open_demonstrations(Path(feedback.demonstrations), feedback.num_demonstrations, config.env, spec, length)
    return config, spec


def run_experiment(
    config: ExperimentConfig,
    spec: EnvSpec,
    folder: RunFolder,
    *,
    is_resumed: bool = False,
    should_stop: Callable[[Mapping[str, Any]], bool] | None = None,
) -> Iterator[Iteration]:
    """Train until `num_env_steps`, yielding each line of metrics; the last iteration carries the summary.

    Args:
        config: Resolved by `themis_ray.config.resolve`.
        spec: From the same call.
        folder: Where everything is written.
        is_resumed: Go on from the folder's newest checkpoint; without one, start over and keep the stored answers.
        should_stop: Told each line of metrics; the run ends after a line for which it is true.

    Raises:
        CheckpointError: The newest checkpoint, or the snapshot or reference to start from, cannot be read.
        ConfigError: The snapshot or reference to start from does not fit, or a tracker is not installed.
        DataError: The stored preferences cannot be read, or new ones cannot be written.
        RunFolderError: The disk is full.
    """
    check_tracking(config.tracking)
    quieten()
    prepare_process()
    seed_python(config.seed)
    with ray_session(), _told_when_full(folder), _log_file(folder.path / "run.log"):
        if config.has_reward_model and not spec.is_fixed_horizon:
            logger.warning(
                "%s: episodes end early, and their length tells a learner how good they were, whatever reward it is "
                "paid. Set env.fixed_horizon=true (and env.horizon) to judge the learned reward alone.",
                spec.id,
            )
        algorithm = build_algorithm_config(config, folder.path.resolve()).build_algo()
        try:
            rows = _restore(algorithm, config, spec, folder) if is_resumed else _start(algorithm, config, spec, folder)
            yield from _train(algorithm, config, spec, folder, rows, should_stop)
        finally:
            algorithm.stop()


def run_pretraining(config: ExperimentConfig, path: Path) -> Iterator[int]:
    """Take seed steps and explore without supervision, then write a snapshot; yield the env steps done so far.

    Args:
        config: Resolved by `themis_ray.config.resolve`.
        path: Where the snapshot goes.
    """
    quieten()
    prepare_process()
    seed_python(config.seed)
    with ray_session():
        rllib_config = build_algorithm_config(config.model_copy(update={"learn_reward": False}))
        # A line after each round, so that the run ends with the round in which exploration does.
        rllib_config.reporting(min_sample_timesteps_per_iteration=1)
        algorithm: Any = rllib_config.build_algo()
        algorithm.is_pretraining = True
        try:
            while algorithm.env_steps < algorithm.loop.num_steps_before_feedback:
                algorithm.train()
                yield algorithm.env_steps
            write_snapshot(path, algorithm, config)
        finally:
            algorithm.stop()


def _train(
    algorithm: Any,
    config: ExperimentConfig,
    spec: EnvSpec,
    folder: RunFolder,
    rows: list[dict[str, Any]],
    should_stop: Callable[[Mapping[str, Any]], bool] | None,
) -> Iterator[Iteration]:
    def is_over() -> bool:
        return algorithm.env_steps >= config.num_env_steps or bool(rows and should_stop and should_stop(rows[-1]))

    loggers = make_loggers(folder, config)
    summary: dict[str, Any] | None = None
    wall_s_before = float(rows[-1]["wall_s"]) if rows else 0.0
    assert config.checkpoint_interval is not None
    next_checkpoint = algorithm.env_steps + config.checkpoint_interval
    started = last = time.perf_counter()
    last_steps = algorithm.env_steps
    try:
        while not is_over():
            phase = algorithm.loop.phase(algorithm.env_steps)
            result = algorithm.train()
            now = time.perf_counter()
            row = {
                **_metrics(algorithm, result),
                "iteration": len(rows) + 1,
                "phase": phase,
                "env_steps_per_s": (algorithm.env_steps - last_steps) / (now - last),
                "wall_s": wall_s_before + now - started,
            }
            last, last_steps = now, algorithm.env_steps
            rows.append(row)
            for run_logger in loggers:
                run_logger.log(row)
            if algorithm.env_steps >= next_checkpoint or is_over():
                about = {"num_env_steps": algorithm.env_steps, "iteration": len(rows), "seed": config.seed}
                folder.add_checkpoint(algorithm, about, config.num_checkpoints_kept)
                next_checkpoint = algorithm.env_steps + config.checkpoint_interval
            yield Iteration(row)
        summary = _summary(algorithm, config, spec, rows)
        folder.write_summary(summary)
        plot_run(folder.read_metrics(), summary, folder.path / "plot.png")
        if config.tracking.trackers:
            _show_results(algorithm, config, folder, loggers)
        yield Iteration(rows[-1] if rows else {}, summary)
    finally:
        for run_logger in loggers:
            run_logger.close(summary)


@contextlib.contextmanager
def _told_when_full(folder: RunFolder) -> Iterator[None]:
    """Tell in one line that the disk is full, whatever was being written."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise RunFolderError(
            f"{error.filename or folder.path} cannot be written ({error.strerror or error}). What is in {folder.path} "
            f"stays: make room, then go on with --resume {folder.path}."
        ) from error


def _show_results(algorithm: Any, config: ExperimentConfig, folder: RunFolder, loggers: Sequence[RunLogger]) -> None:
    """Give trackers what the run leaves behind; what cannot be made of it is left out, for the run is done."""
    loop = algorithm.loop
    if config.tracking.log_clips:
        with _or_warning("There is no clip of the trained policy"):
            seeds = RandomStreams(config.seed)["evaluation"].integers(2**31, size=config.num_evaluation_episodes)
            policy = deterministic_policy(algorithm.env_runner.module)
            record_policy(policy, config.env, int(seeds[0]), folder.path / "clips")
    with _or_warning("Trackers do not get what the reward model predicts of the answers"):
        if loop.has_fitted_reward:
            write_predictions(folder.path, loop.dataset, loop.reward_model.segment_returns)
    with _or_warning("Trackers do not get pictures and tables"):
        artifacts = gather_artifacts(folder.path)
        for run_logger in loggers:
            run_logger.add(artifacts)


@contextlib.contextmanager
def _or_warning(text: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        logger.warning("%s (%s: %s).", text, type(error).__name__, error)


def _start(algorithm: Any, config: ExperimentConfig, spec: EnvSpec, folder: RunFolder) -> list[dict[str, Any]]:
    """Start from the snapshot or reference that the configuration names, or from nothing; return no metrics.

    After a snapshot a checkpoint is written at once, so that the run can be resumed without it.
    """
    algorithm.start_from_reference()
    if config.snapshot is not None:
        snapshot = open_snapshot(Path(config.snapshot))
        check_snapshot(config, spec, snapshot)
        algorithm.start_from_snapshot(snapshot.checkpoint_path, snapshot.config.seed)
        about = {"num_env_steps": algorithm.env_steps, "iteration": 0, "seed": config.seed}
        folder.add_checkpoint(algorithm, about, config.num_checkpoints_kept)
        logger.info("Started from %s at %d env steps.", snapshot.path, algorithm.env_steps)
    return []


def _restore(algorithm: Any, config: ExperimentConfig, spec: EnvSpec, folder: RunFolder) -> list[dict[str, Any]]:
    """Load the newest checkpoint, start fresh episodes, and return the lines of metrics up to it."""
    latest = folder.latest_checkpoint()
    if latest is None:
        logger.info("No checkpoint yet: starting over; %d stored answers stay.", algorithm.loop.dataset.num_questions)
        folder.rewind_metrics(-1)
        return _start(algorithm, config, spec, folder)
    path, about = latest
    algorithm.restore_checkpoint(path, "Delete it to resume from the one before.")
    algorithm.reset_environments()
    folder.rewind_metrics(about["num_env_steps"])
    logger.info("Resumed from %s at %d env steps.", path.name, about["num_env_steps"])
    return folder.read_metrics()


def _metrics(algorithm: Any, result: Mapping[str, Any]) -> dict[str, Any]:
    learner = result.get("learners", {}).get("default_policy", {})
    loop = algorithm.loop
    true_returns, lengths = loop.pool.recent_returns()
    row: dict[str, Any] = {
        "num_env_steps": algorithm.env_steps,
        "true_return_mean": float(true_returns.mean()) if len(true_returns) else math.nan,
        "episode_length_mean": float(lengths.mean()) if len(lengths) else math.nan,
        "num_episodes": int(result.get("env_runners", {}).get("num_episodes_lifetime", 0)),
        "predicted_return_mean": loop.predicted_return_mean,
        "queries_asked": loop.num_questions,
        "num_preferences": loop.num_preferences,
        "reward_version": loop.reward_model.version if loop.reward_model else 0,
    }
    for name in LOOP_METRICS:
        row[name] = loop.info.get(name, math.nan)
    for name, keys in LEARNER_METRICS.items():
        row[name] = next((float(learner[key]) for key in keys if key in learner), math.nan)
    return row


def _summary(algorithm: Any, config: ExperimentConfig, spec: EnvSpec, rows: list[dict[str, Any]]) -> dict[str, Any]:
    # Streams of their own, so that the final evaluation is the same however the run was interrupted.
    streams = RandomStreams(config.seed)
    seeds = streams["evaluation"].integers(2**31, size=config.num_evaluation_episodes).tolist()
    returns = evaluate(deterministic_policy(algorithm.env_runner.module), config.env, seeds)
    random_returns = evaluate(random_policy(spec.action_space, streams["random_policy"]), config.env, seeds)
    loop = algorithm.loop
    final = dict(loop.info)
    if loop.has_fitted_reward:
        final.update(loop.measure_reward())
    wall_s = float(rows[-1]["wall_s"]) if rows else 0.0
    return {
        "env_id": config.env.id,
        "algorithm": config.algorithm.name,
        "seed": config.seed,
        "learn_reward": config.learn_reward,
        "teacher": config.teacher.teacher_name if config.feedback.dataset is None else None,
        "dataset": config.feedback.dataset,
        "sampler": config.feedback.sampler,
        "num_env_steps": algorithm.env_steps,
        "true_return_mean": float(returns.mean()),
        "true_return_std": float(returns.std()),
        "random_return_mean": float(random_returns.mean()),
        "reference_return": spec.reference_return,
        "reference_source": spec.reference_source,
        "num_evaluation_episodes": len(returns),
        "budget": config.feedback.budget,
        "queries_asked": loop.num_questions,
        "num_preferences": loop.num_preferences,
        "heldout_accuracy": final.get("heldout_accuracy", math.nan),
        "reward_correlation": final.get("reward_correlation", math.nan),
        "num_reward_actor_restarts": loop.reward_model.num_restarts if loop.reward_model else 0,
        "env_steps_per_s": (algorithm.env_steps - loop.num_snapshot_env_steps) / wall_s if wall_s else math.nan,
        "wall_s": wall_s,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("themis-ray", "ray", "torch", "gymnasium", "numpy")},
        },
    }


@contextlib.contextmanager
def _log_file(path: Path) -> Iterator[None]:
    """Write what the package logs into the run folder too."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
        handler.close()


def quieten() -> None:
    """Keep libraries' notices about their own internals off the screen."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("PYTHONWARNINGS", "ignore::DeprecationWarning")
    for name in ("ray", "ray.rllib", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(gymnasium|pygame|ray)\b.*")
