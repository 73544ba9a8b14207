"""The driver's hold on the reward actor: it keeps the state, and brings the actor back when its process dies.

Ray starts a dead actor again, empty; the state is loaded back before anything else is asked.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import ActorUnavailableError, RayActorError, TaskCancelledError

from themis_ray.data import EvaluatedSegments, LabelledPairs
from themis_ray.reward import UnlabelledPairs
from themis_ray.reward_actor.actor import NotLoadedError, RewardModelActor, RewardModelSpec

__all__ = ["PendingPrediction", "RewardModel"]

logger = logging.getLogger("themis_ray")
Array = NDArray[Any]

RESTART_TIMEOUT_S = 120.0
# While Ray looks for room for it: a cluster may have to start a machine and install everything on it first.
ROOM_TIMEOUT_S = 1800.0
ROOM_NOTE_S = 10.0
PREDICT_CHUNK_ROWS = 32_768
PREDICT_CHUNK_BYTES = 2**25


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
