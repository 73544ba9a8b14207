"""Proof, one environment after another, that everything works in it."""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np

from themis_ray.census.known import known_cause
from themis_ray.census.listing import describe_env
from themis_ray.clips import Replayer, read_clip, upscale, write_clip
from themis_ray.config import load_config, resolve
from themis_ray.data import Segment
from themis_ray.envs import EnvConfig, make_env
from themis_ray.errors import DataError, ThemisError
from themis_ray.experiment import quieten
from themis_ray.reward_actor import prepare_process
from themis_ray.rllib import build_algorithm_config
from themis_ray.sessions import ray_session

__all__ = ["CHECKS", "check_env", "open_results", "run_checks", "status_of"]

NUM_STEPS = 200
NUM_PREFERENCES = 8
SEGMENT_LENGTH = 10
MAX_ITERATIONS = 20
TIMEOUT_S = 600.0
# The smallest run that does everything: one session, two passes over its answers, small updates.
QUICK = (
    "num_env_steps=512",
    f"feedback.budget={NUM_PREFERENCES}",
    f"feedback.session_size={NUM_PREFERENCES}",
    "reward.num_epochs=2",
    "algorithm.batch_size=64",
    "algorithm.num_envs=1",
)
QUICK_BY_LEARNER = {
    "ppo": ("algorithm.minibatch_size=32", "algorithm.num_epochs=1"),
    "sac": ("algorithm.updates_per_env_step=0.1", "exploration.num_seed_steps=32", "exploration.num_env_steps=32"),
}

Result = dict[str, Any]
ENV_FIELDS = ("family", "observation", "action", "horizon", "is_fixed_horizon", "extra")
RESULT_FIELDS = ("id", *ENV_FIELDS, "error", "failed_check", "wall_s")


def _check_episode(env_id: str) -> None:
    """The same seed and actions give the same observations and rewards twice, for 200 steps."""
    config = EnvConfig(id=env_id)
    env = make_env(config)
    try:
        first, again = (_rollout(env) for _ in range(2))
    finally:
        env.close()  # type: ignore[no-untyped-call]
    for step, (one, other) in enumerate(zip(first, again, strict=True)):
        if one[1] != other[1] or not np.array_equal(one[0], other[0], equal_nan=True):
            raise DataError(f"step {step} differs the second time, with the same seed and actions")
        if not np.isfinite(one[0]).all() or not np.isfinite(one[1]):
            raise DataError(f"step {step} has an observation or reward that is not finite")


def _rollout(env: Any) -> list[tuple[Any, float]]:
    actions = env.action_space  # a reset of highway-env makes another, which is not seeded
    actions.seed(0)
    observation, _ = env.reset(seed=0)
    seen = [(observation, 0.0)]
    for number in range(NUM_STEPS):
        observation, reward, terminated, truncated, _ = env.step(actions.sample())
        if not env.observation_space.contains(observation):
            raise DataError(f"the observation of step {number} is not in {env.observation_space}")
        seen.append((observation, float(reward)))
        if terminated or truncated:
            observation, _ = env.reset(seed=number)
    return seen


def _check_training(env_id: str) -> list[Segment]:
    """The ensemble is fitted to eight preferences, and the learner learns from predicted reward for an iteration."""
    default, spec = resolve(load_config(None, [f"env.id={env_id}"]))
    learner = default.algorithm.name
    length = min(SEGMENT_LENGTH, spec.horizon or SEGMENT_LENGTH)
    overrides = [f"env.id={env_id}", f"feedback.segment_length={length}", *QUICK, *QUICK_BY_LEARNER[learner]]
    config, _ = resolve(load_config(None, overrides))
    with tempfile.TemporaryDirectory() as folder:
        algorithm: Any = build_algorithm_config(config, Path(folder)).build_algo()
        try:
            for _ in range(MAX_ITERATIONS):
                is_paid = algorithm.loop.dataset.num_queries >= NUM_PREFERENCES
                algorithm.train()
                if is_paid:
                    break
            num_queries = algorithm.loop.dataset.num_queries
            segments = list(algorithm.loop.dataset.segments)
        finally:
            algorithm.stop()
    if num_queries < NUM_PREFERENCES or not is_paid:
        raise DataError(f"{num_queries} of {NUM_PREFERENCES} queries were asked in {config.num_env_steps} env steps")
    return segments


def _check_clip(env_id: str, segments: Sequence[Segment]) -> None:
    """A segment that the learner collected is replayed, its frames are written as video, and the file decodes."""
    with tempfile.TemporaryDirectory() as folder, Replayer(EnvConfig(id=env_id)) as replayer:
        segment = min(segments, key=lambda segment: segment.start_step)
        frames = upscale(replayer.frames(segment))
        decoded = read_clip(write_clip(frames, Path(folder)))
    if len(decoded) != len(segment):
        raise DataError(f"the clip has {len(decoded)} frames, the segment {len(segment)} steps")
    if not decoded.std():
        raise DataError("every pixel of the clip is the same")


CHECKS = ("make", "episode", "train", "clip")
"""What is proved of each environment, in this order; the first that fails ends the check of that environment."""


def check_env(env_id: str) -> Result:
    """Returns the row of `describe_env` with `failed_check`, None or one of `CHECKS`, `error` and `wall_s`.

    Needs a Ray session.
    """
    started = time.monotonic()
    row = describe_env(env_id)
    segments: list[Segment] = []
    steps: dict[str, Callable[[], Any]] = {
        "episode": lambda: _check_episode(env_id),
        "train": lambda: segments.extend(_check_training(env_id)),
        "clip": lambda: _check_clip(env_id, segments),
    }
    failed = "make" if row["error"] else None
    for name, step in steps.items():
        if failed is not None:
            break
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                step()
        except ThemisError as error:
            failed, row["error"] = name, str(error)
        except Exception as error:
            failed, row["error"] = name, " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return row | {"failed_check": failed, "wall_s": round(time.monotonic() - started, 1)}


def status_of(result: Result) -> str:
    """Returns passed, known (it fails, and is known to) or failed."""
    if result["failed_check"] is None:
        return "passed"
    return "known" if known_cause(result["id"]) else "failed"


def open_results(path: Path, *, is_resumed: bool) -> dict[str, Result]:
    """Returns the results that a file of JSON lines holds by id, none unless resumed; half a last line is left out.

    Raises:
        DataError: A line is damaged.
    """
    if not is_resumed or not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
        return {}
    whole, _, rest = path.read_bytes().rpartition(b"\n")
    if rest:
        path.write_bytes(whole + b"\n" if whole else b"")
    try:
        rows = [json.loads(line) for line in whole.decode().split("\n") if line]
        return {row["id"]: {name: row[name] for name in RESULT_FIELDS} for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is damaged ({type(error).__name__}: {error}). Delete it, or give another --out."
        ) from error


def run_checks(env_ids: Sequence[str], num_jobs: int, path: Path) -> Iterator[Result]:
    """Yields results as they come, each appended to a file of JSON lines first.

    Every job is a process with a Ray cluster of its own. One that dies or takes longer than ten minutes is a failure of
    its environment and is started anew.
    """
    waiting = list(reversed(env_ids))
    workers = [_Worker() for _ in range(min(num_jobs, len(env_ids)))]
    try:
        with path.open("a") as file:
            while waiting or any(worker.env_id for worker in workers):
                for worker in workers:
                    if worker.env_id is None and waiting:
                        worker.start(waiting.pop())
                for worker in _next_finished(workers):
                    result = worker.result()
                    file.write(json.dumps(result) + "\n")
                    file.flush()
                    yield result
    finally:
        for worker in workers:
            worker.stop()


class _Worker:
    """A process that checks one environment after another."""

    def __init__(self) -> None:
        self.env_id: str | None = None
        self._process: Any = None
        self.connection: Connection[Any, Any] | None = None
        self._deadline = 0.0

    @property
    def is_late(self) -> bool:
        return time.monotonic() > self._deadline

    def start(self, env_id: str) -> None:
        if self._process is None or not self._process.is_alive():
            context = multiprocessing.get_context("spawn")
            self.connection, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs,))
            self._process.start()
            theirs.close()
        assert self.connection is not None
        self.env_id, self._deadline = env_id, time.monotonic() + TIMEOUT_S
        self.connection.send(env_id)

    def result(self) -> Result:
        """Returns what the process said about its environment, or that it died or took too long."""
        assert self.connection is not None
        env_id, self.env_id = self.env_id, None
        try:
            if self.connection.poll():
                result: Result = self.connection.recv()
                return result
            reason = f"not finished after {TIMEOUT_S:.0f} s"
        except EOFError:
            self._process.join()
            reason = f"the process died with exit code {self._process.exitcode}"
        self.stop()
        return {**_unknown(str(env_id)), "failed_check": "make", "error": reason, "wall_s": TIMEOUT_S}

    def stop(self) -> None:
        if self._process is None:
            return
        if self.connection is not None and self._process.is_alive():
            with contextlib.suppress(OSError):
                self.connection.send(None)
            self._process.join(10 if self.env_id is None else 0.1)
        self._process.kill()
        self._process.join()
        self._process = None


def _next_finished(workers: Sequence[_Worker]) -> list[_Worker]:
    """Waits until a busy worker has something to say or is late."""
    busy = [worker for worker in workers if worker.env_id is not None and worker.connection is not None]
    while True:
        ready = wait([worker.connection for worker in busy if worker.connection is not None], timeout=1.0)
        found = [worker for worker in busy if worker.connection in ready or worker.is_late]
        if found:
            return found


def _unknown(env_id: str) -> Result:
    return {**dict.fromkeys(ENV_FIELDS), "id": env_id}


def _serve(connection: Connection[Any, Any]) -> None:
    """Checks what it is told to, in one Ray session, until it is told None."""
    quieten()
    warnings.simplefilter("ignore")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    prepare_process()
    with ray_session():
        while (env_id := connection.recv()) is not None:
            connection.send(check_env(env_id))
