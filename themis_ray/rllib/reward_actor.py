"""The reward ensemble as a Ray actor, and the client that keeps it alive.

The actor answers `predict` while it fits: a fit works on a copy in a thread and swaps it in at the end. It holds
nothing that cannot be lost: after every fit the client keeps the state, and when the actor's process dies Ray starts
it again, empty, and the client loads the state back before it asks anything else.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import gymnasium as gym
import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.exceptions import ActorUnavailableError, RayActorError, TaskCancelledError

from themis_ray.data import EvaluatedSegments, LabelledPairs
from themis_ray.envs import ObservationKind
from themis_ray.reward import (
    RewardConfig,
    RewardEnsemble,
    UnlabelledPairs,
    ensemble_state,
    fit,
    load_ensemble_state,
    make_optimizer,
)
from themis_ray.rllib.process import prepare_process, prepare_thread

__all__ = ["PendingPrediction", "RewardModel", "RewardModelActor", "RewardModelSpec"]

logger = logging.getLogger("themis_ray")
T = TypeVar("T")
Array = NDArray[Any]

RESTART_TIMEOUT_S = 120.0
# While Ray looks for room for it: a cluster may have to start a machine and install everything on it first.
ROOM_TIMEOUT_S = 1800.0
ROOM_NOTE_S = 10.0
PREDICT_CHUNK_ROWS = 32_768
PREDICT_CHUNK_BYTES = 2**25


class NotLoadedError(Exception):
    """The actor was restarted and holds no weights yet."""


@dataclass(frozen=True)
class RewardModelSpec:
    """What the actor needs to build its ensemble."""

    observation_space: gym.spaces.Box
    action_space: gym.Space[Any]
    observation_kind: ObservationKind
    config: RewardConfig
    seed: int

    def pack(self) -> bytes:
        """Return the spec in a few hundred bytes, bounds of image spaces included.

        Ray keeps large constructor arguments in the object store, where a restart may no longer find them.
        """
        return zlib.compress(pickle.dumps(self))


class RewardModelActor:
    """Serves one reward ensemble. Async: every method may run while a fit is under way."""

    def __init__(self, packed_spec: bytes, num_fit_threads: int = 1) -> None:
        spec: RewardModelSpec = pickle.loads(zlib.decompress(packed_spec))
        prepare_process()
        self._spec = spec
        self._num_fit_threads = num_fit_threads
        # Only a GPU of its own: Ray hides those of others no longer from actors that reserved none.
        has_gpu = torch.cuda.is_available() and bool(ray.get_gpu_ids())
        self._device = torch.device("cuda" if has_gpu else "cpu")
        self._ensemble, self._optimizer = self._build(spec.seed)
        self._version = -1
        self._waiting: list[tuple[Array, Array, asyncio.Future[NDArray[np.float32]]]] = []
        self._num_forwards = 0

    def _build(self, seed: int) -> tuple[RewardEnsemble, torch.optim.Optimizer]:
        spec = self._spec
        ensemble = RewardEnsemble(
            spec.observation_space, spec.action_space, spec.observation_kind, spec.config, seed
        ).to(self._device)
        return ensemble, make_optimizer(ensemble, spec.config)

    def _require_loaded(self) -> None:
        if self._version < 0:
            raise NotLoadedError

    async def start(self) -> dict[str, Any]:
        """Take the freshly drawn weights as version 0 and return the state. For the first start only."""
        prepare_thread()  # the event loop's thread is not the one that ran __init__
        self._version = 0
        return await self.state()

    async def load(self, state: dict[str, Any]) -> None:
        """Take weights, optimiser and version from `state`."""
        prepare_thread()
        load_ensemble_state(self._ensemble, self._optimizer, state["ensemble"])
        self._version = state["version"]

    async def state(self) -> dict[str, Any]:
        """Return weights, optimiser and version."""
        self._require_loaded()
        return {"ensemble": ensemble_state(self._ensemble, self._optimizer), "version": self._version}

    async def status(self) -> dict[str, int]:
        """Return version (-1: no weights), process id, and how many forward passes were made for `predict`."""
        return {"version": self._version, "pid": os.getpid(), "num_forwards": self._num_forwards}

    async def predict(self, observations: Array, actions: Array) -> NDArray[np.float32]:
        """Return the predicted rewards of N steps, shape (N,). Calls that wait together share one forward pass."""
        self._require_loaded()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[NDArray[np.float32]] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._answer_waiting)
        self._waiting.append((observations, actions, future))
        return await future

    def _answer_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        try:
            if len(waiting) == 1:
                observations, actions = waiting[0][:2]
            else:
                observations = np.concatenate([call[0] for call in waiting])
                actions = np.concatenate([call[1] for call in waiting])
            rewards = self._ensemble.predict(observations, actions)
        except Exception as error:
            for *_, future in waiting:
                if not future.done():
                    future.set_exception(error)
            return
        self._num_forwards += 1
        stops = np.cumsum([len(call[0]) for call in waiting])
        for (*_, future), part in zip(waiting, np.split(rewards, stops[:-1]), strict=True):
            if not future.done():
                future.set_result(part)

    async def segment_returns(self, observations: Array, actions: Array) -> NDArray[np.float32]:
        """Return every member's summed reward of S segments of L steps, shape (K, S)."""
        self._require_loaded()
        return self._ensemble.segment_returns(observations, actions)

    async def fit(
        self,
        pairs: LabelledPairs,
        seed: int,
        bonus: float = 0.0,
        unlabelled: UnlabelledPairs | None = None,
        evaluations: EvaluatedSegments | None = None,
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Fit a copy to all answers in a thread, swap it in, and return (what happened, the new state).

        With `from_scratch` it is no copy, but an ensemble drawn from `seed`.
        """
        self._require_loaded()

        def work() -> tuple[RewardEnsemble, torch.optim.Optimizer, dict[str, float]]:
            prepare_thread(self._num_fit_threads)
            ensemble, optimizer = self._build(seed)
            if not self._spec.config.from_scratch:
                load_ensemble_state(ensemble, optimizer, ensemble_state(self._ensemble, self._optimizer))
            rng = np.random.default_rng(seed)
            info = fit(
                ensemble, optimizer, pairs, self._spec.config, rng, unlabelled=unlabelled, evaluations=evaluations
            )
            ensemble.bonus = bonus
            prepare_thread()  # the thread goes back to a pool
            return ensemble, optimizer, info

        self._ensemble, self._optimizer, info = await asyncio.to_thread(work)
        self._version += 1
        return info, await self.state()


@dataclass(frozen=True)
class PendingPrediction:
    """A prediction that is being made; it keeps its inputs, in case the actor dies."""

    reference: Any
    observations: Array
    actions: Array


class RewardModel:
    """The driver's hold on one `RewardModelActor`: asks it, keeps its state, and brings it back when it dies.

    Args:
        spec: What to build.
        name: Name of the actor in the namespace of the Ray job; one per trial.
        num_cpus: CPUs reserved for it.
        num_gpus: GPUs reserved for it.
        custom_resources: Other resources reserved for it, by name.
        num_fit_threads: Threads of a fit; the learner waits meanwhile.
        on_restart: Told in one line when the actor had to be brought back.
    """

    def __init__(
        self,
        spec: RewardModelSpec,
        name: str,
        num_cpus: float = 0.5,
        num_gpus: float = 0,
        custom_resources: Mapping[str, float] | None = None,
        num_fit_threads: int = 1,
        on_restart: Callable[[str], None] = logger.warning,
    ) -> None:
        actor_class = ray.remote(RewardModelActor)
        self.name = name
        self._on_restart = on_restart
        self._actor = actor_class.options(
            name=name,
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            resources=dict(custom_resources or {}),
            max_restarts=-1,
            max_task_retries=0,
        ).remote(spec.pack(), num_fit_threads)
        self.state: dict[str, Any] = ray.get(self._actor.start.remote())
        self.num_restarts = 0

    @property
    def version(self) -> int:
        """How many fits the weights have seen."""
        return int(self.state["version"])

    def load(self, state: dict[str, Any]) -> None:
        """Make `state` the model's state, in the actor too."""
        self.state = state
        self._call(lambda: self._actor.load.remote(state))

    def status(self) -> dict[str, int]:
        """Return the actor's version, process id and number of forward passes."""
        status: dict[str, int] = self._call(lambda: self._actor.status.remote())
        return status

    def predict_later(self, observations: Array, actions: Array) -> PendingPrediction:
        """Start predicting the rewards of N steps and return at once."""
        return PendingPrediction(self._actor.predict.remote(observations, actions), observations, actions)

    def collect(self, pending: PendingPrediction) -> NDArray[np.float32]:
        """Wait for a prediction and return it, shape (N,)."""
        references = [pending.reference]
        rewards: NDArray[np.float32] = self._call(
            lambda: (
                references.pop() if references else self._actor.predict.remote(pending.observations, pending.actions)
            )
        )
        return rewards

    def predict(self, observations: Array, actions: Array) -> NDArray[np.float32]:
        """Return the predicted rewards of N steps, shape (N,); large inputs go in chunks, one ahead."""
        chunks: list[NDArray[np.float32]] = []
        pending: PendingPrediction | None = None
        if len(actions) == 0:
            return np.zeros(0, np.float32)
        chunk_size = max(1, min(PREDICT_CHUNK_ROWS, PREDICT_CHUNK_BYTES // observations[:1].nbytes))
        for start in range(0, len(actions), chunk_size):
            rows = slice(start, start + chunk_size)
            following = self.predict_later(observations[rows], actions[rows])
            if pending is not None:
                chunks.append(self.collect(pending))
            pending = following
        assert pending is not None
        return np.concatenate([*chunks, self.collect(pending)])

    def segment_returns(self, observations: Array, actions: Array) -> NDArray[np.float32]:
        """Return every member's summed reward of S segments of L steps, shape (K, S)."""
        returns: NDArray[np.float32] = self._call(lambda: self._actor.segment_returns.remote(observations, actions))
        return returns

    def fit(
        self,
        pairs: LabelledPairs,
        seed: int,
        bonus: float = 0.0,
        unlabelled: UnlabelledPairs | None = None,
        evaluations: EvaluatedSegments | None = None,
    ) -> dict[str, float]:
        """Fit to all answers, keep the new state here, and return what `themis_ray.reward.fit` returns.

        Args:
            pairs: All preferences so far.
            seed: Seeds the shuffles, and the weights with `from_scratch`.
            bonus: What `RewardEnsemble.bonus` is from now on.
            unlabelled: Where pseudo-labels may come from.
            evaluations: All ratings, judged steps and demonstrations so far.
        """
        references = ray.put(pairs), ray.put(unlabelled), ray.put(evaluations)
        info: dict[str, float]
        info, self.state = self._call(
            lambda: self._actor.fit.remote(
                references[0], seed, bonus=bonus, unlabelled=references[1], evaluations=references[2]
            )
        )
        return info

    def stop(self) -> None:
        """End the actor."""
        ray.kill(self._actor)

    def _call(self, submit: Callable[[], Any]) -> Any:
        """Return the result of `submit()`; when the actor is gone or empty, bring it back and submit again."""
        began = time.monotonic()
        while True:
            try:
                return ray.get(submit())
            except (RayActorError, TaskCancelledError, NotLoadedError) as error:
                if _is_too_late(began, error):
                    raise
                self._bring_back(began, error)

    def _bring_back(self, began: float, cause: Exception) -> None:
        """Wait until Ray has restarted the actor and load the kept state into it."""
        has_told = False
        while True:
            try:
                if ray.get(self._actor.status.remote())["version"] != self.version:
                    ray.get(self._actor.load.remote(self.state))
                    self.num_restarts += 1
                    self._on_restart(
                        f"The reward actor died ({type(cause).__name__}) and was restarted with the weights of "
                        f"version {self.version}; nothing was lost."
                    )
                return
            except RayActorError as error:
                if _is_too_late(began, error):
                    raise
                if not has_told and time.monotonic() > began + ROOM_NOTE_S:
                    has_told = True
                    self._on_restart(
                        f"The reward actor died ({type(cause).__name__}); waiting up to {ROOM_TIMEOUT_S / 60:.0f} min "
                        "for room to start it again."
                    )
                time.sleep(0.1)


def _is_too_late(began: float, error: Exception) -> bool:
    """Tell whether to give up: later where Ray still means to start the actor than where it does not."""
    timeout_s = ROOM_TIMEOUT_S if isinstance(error, ActorUnavailableError) else RESTART_TIMEOUT_S
    return time.monotonic() > began + timeout_s
