"""The process that serves one reward ensemble.

It answers `predict` while it fits: a fit works on a copy in a thread and swaps it in at the end. It holds nothing that
cannot be lost: its state is returned after every fit.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import zlib
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import ray
import torch
from numpy.typing import NDArray

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
from themis_ray.reward_actor.process import prepare_process, prepare_thread

__all__ = ["NotLoadedError", "RewardModelActor", "RewardModelSpec"]

Array = NDArray[Any]


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
