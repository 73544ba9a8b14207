"""A run that can be asked why: its networks, its steps, and what they look like."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from themis_ray.clips import spread_segments
from themis_ray.config import ExperimentConfig
from themis_ray.data import Preference, Segment
from themis_ray.envs import action_names, find_family, make_env, observation_names
from themis_ray.errors import ConfigError, DataError, lookup
from themis_ray.explain import (
    BASELINES,
    METHODS,
    ExplainedSegment,
    Look,
    Prediction,
    Rows,
    Snapshot,
    Subject,
    add_up,
    attribute,
    preference_influence,
    reward_subject,
    state_influence,
)
from themis_ray.loop_settings import required
from themis_ray.randomness import RandomStreams
from themis_ray.rllib import FinishedRun, open_finished_run, open_networks, open_reward_history
from themis_ray.rllib.subjects import policy_subject, trace, value_subject

__all__ = ["INFLUENCE", "INFLUENCE_SUMMARY", "SUBJECTS", "ExplainedRun", "Explanation"]

SUBJECTS = {
    "action": "Why the policy acts so.",
    "value": "Why the critic expects so much.",
    "reward": "Why the reward ensemble pays so.",
    "preference": "Why the reward ensemble prefers one segment of a stored pair.",
}
INFLUENCE = "tracin_cp_fast"
INFLUENCE_SUMMARY = "Which answers, or which states, moved a prediction, by the last layer (Pruthi et al. 2020)."
NUM_REFERENCE_STEPS = 200
NUM_STORED_STATES = 1000
STATE_CLIP_STEPS = 8

Array = NDArray[Any]


@dataclass(frozen=True)
class Explanation:
    """What is explained, and how.

    Attributes:
        of: A key of `SUBJECTS`.
        method: A key of `METHODS`, or `INFLUENCE`.
        baseline: A key of `BASELINES`.
        dimension: Of a Box action; None takes the length of the action.

    Raises:
        UnknownNameError: There is no such thing.
    """

    of: str = "reward"
    method: str = "integrated_gradients"
    baseline: str = "auto"
    dimension: int | None = None

    def __post_init__(self) -> None:
        lookup("subject", self.of, SUBJECTS)
        lookup("method", self.method, {**METHODS, INFLUENCE: None})
        lookup("baseline", self.baseline, BASELINES)

    @classmethod
    def parse(cls, name: str) -> Self:
        """Returns the explanation that an overlay's name means: `OF` or `OF-METHOD`, such as `reward-kernel_shap`.

        Raises:
            UnknownNameError: There is no such subject or method.
            ConfigError: The method draws nothing on a clip.
        """
        of, has_method, method = name.partition("-")
        if method == INFLUENCE:
            raise ConfigError(
                f"overlay {name!r}: {INFLUENCE} draws nothing on a clip. Give OF or OF-METHOD with a method of "
                f"{', '.join(METHODS)}."
            )
        return cls(of, method) if has_method else cls(of)


class ExplainedRun:
    """A run's networks, its steps, and what they look like.

    Args:
        path: The run folder.
        config: Its resolved configuration.
        seed: For what is drawn.

    Raises:
        CheckpointError: The run has no checkpoint, or it cannot be read.
        DataError: The preferences cannot be read.
    """

    def __init__(self, path: Path, config: ExperimentConfig, seed: int = 0) -> None:
        self.run: FinishedRun = open_finished_run(path, config)
        self.streams = RandomStreams(seed)

    @cached_property
    def networks(self) -> list[Any]:
        """The learner's, of every checkpoint that was kept, oldest first."""
        return open_networks(self.run)

    @cached_property
    def look(self) -> Look:
        """Names and spaces of the environment."""
        config, family = self.run.settings.env, find_family(self.run.settings.env.id.rpartition(":")[2])
        env = make_env(config)
        try:
            return Look(
                self.run.spec,
                observation_names(env, config.id, family.name),
                action_names(env, config.id, family.name),
            )
        finally:
            env.close()  # type: ignore[no-untyped-call]

    @cached_property
    def references(self) -> tuple[Array, Array]:
        """Observations and actions of some steps of the newest episodes, to compare with."""
        num_segments = -(-NUM_REFERENCE_STEPS // self.length)
        drawn = self.run.pool.sample_segments(num_segments, self.length, self.streams["explanation"])
        return _steps(drawn)

    @property
    def length(self) -> int:
        """Steps per segment."""
        assert self.run.settings.feedback.segment_length is not None
        return self.run.settings.feedback.segment_length

    def subject(self, explanation: Explanation) -> Subject:
        """Returns what an explanation is about.

        Raises:
            ConfigError: The run has no such network.
        """
        if explanation.of == "action":
            return policy_subject(self.networks[-1], self.run.spec, explanation.dimension)
        if explanation.dimension is not None:
            raise ConfigError(f"--dimension {explanation.dimension} is of an action. Leave it out or give --of action.")
        if explanation.of == "value":
            return value_subject(self.networks[-1], self.run.spec)
        if self.run.ensemble is None:
            raise ConfigError(
                f"{self.run.path} has fitted no reward ensemble, so there is no {explanation.of} to explain. "
                "Explain --of action."
            )
        return reward_subject(self.run.ensemble, self.run.spec)

    def segments(self, count: int) -> list[Segment]:
        """Returns segments that can be drawn: those that a teacher was asked about, evenly over the run, or new ones.

        Raises:
            DataError: The run holds none.
        """
        chosen = spread_segments(self.run.dataset.segments, count)
        if not chosen and self.run.pool.num_starts(self.length):
            chosen = self.run.pool.sample_segments(count, self.length, self.streams["explanation"])
        if not chosen:
            raise DataError(f"{self.run.path} holds no segment that can be replayed. Train for longer.")
        return chosen

    def preferences(self, count: int) -> list[Preference]:
        """Returns preferences of which both sides can be drawn, evenly over the run.

        Raises:
            DataError: The run holds none.
        """
        known = [
            preference
            for preference in self.run.dataset.preferences
            if all(
                self.run.dataset.segment(id_).origin is not None for id_ in (preference.left_id, preference.right_id)
            )
        ]
        if not known:
            raise DataError(f"{self.run.path} holds no preference whose segments can be replayed.")
        rows = np.unique(np.linspace(0, len(known) - 1, min(count, len(known))).round().astype(int))
        return [known[row] for row in rows]

    def explain(
        self,
        explanation: Explanation,
        segments: Sequence[Segment],
        on_share: Callable[[float], None] = lambda _: None,
    ) -> list[ExplainedSegment]:
        """Returns what each step of the segments is due.

        Raises:
            ConfigError: The method does not fit, or there is no such network.
        """
        observations, actions = _steps(segments)
        result = attribute(
            self.subject(explanation),
            observations,
            actions,
            method=explanation.method,
            references=self.references,
            rng=self.streams["explanation"],
            baseline=explanation.baseline,
            on_rows=lambda done: on_share(done / len(observations)),
        )
        return add_up(result, segments, self.look)

    # ------------------------------------------------------------ influence

    def moved_by_preferences(self, predictions: Sequence[Prediction]) -> tuple[list[Preference], Array]:
        """Returns the run's preferences, and how far each moved each prediction, (T, N).

        Raises:
            ConfigError: The run has no fitted reward ensemble.
            DataError: It has no preferences.
        """
        history = open_reward_history(self.run)
        answered = self.run.dataset.labelled_preferences()
        if not history or not answered:
            raise ConfigError(f"{self.run.path} has no reward ensemble that was fitted to preferences.")
        steps = np.array([preference.num_env_steps for preference in answered])
        snapshots = [Snapshot(ensemble, steps <= num_env_steps) for ensemble, num_env_steps in history]
        pairs = self.run.dataset.labelled_pairs(required(self.run.settings.reward.label_margin))
        return answered, preference_influence(snapshots, pairs, predictions)

    def moved_by_states(self, explanation: Explanation, queries: tuple[Array, Array]) -> tuple[list[Segment], Array]:
        """Returns short segments around stored states, and how alike each pulls with each query, (Q, S).

        Args:
            explanation: Of an action or a value.
            queries: Observations and actions, Q of them.

        Raises:
            DataError: No stored episode is long enough.
        """
        make = policy_subject if explanation.of == "action" else value_subject
        num_stored = min(NUM_STORED_STATES, self.run.pool.num_starts(STATE_CLIP_STEPS))
        if not num_stored:
            raise DataError(
                f"{self.run.path} holds no episode of {STATE_CLIP_STEPS} env steps, so there are no states to ask for "
                f"their influence. Leave out --influence, and give a method other than {INFLUENCE}."
            )
        stored = self.run.pool.sample_segments(num_stored, STATE_CLIP_STEPS, self.streams["explanation"])
        middles = (
            np.stack([segment.observations[STATE_CLIP_STEPS // 2] for segment in stored]),
            np.stack([segment.actions[STATE_CLIP_STEPS // 2] for segment in stored]),
        )
        total = np.zeros((len(queries[0]), len(stored)))
        for network in self.networks:
            subject = make(network, self.run.spec)
            state_rows, query_rows = subject.read(*middles), subject.read(*queries)
            traced = trace(subject)
            total += state_influence(
                [(traced.network, traced.last_layer)], traced.loss, _traced_rows(state_rows), _traced_rows(query_rows)
            )
        return stored, total


def _traced_rows(rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    return rows.inputs[0], rows.context[0] if rows.context else torch.zeros(len(rows))


def _steps(segments: Sequence[Segment]) -> tuple[Array, Array]:
    """Returns observations and actions of all steps, one segment after the other."""
    return (
        np.concatenate([segment.observations for segment in segments]),
        np.concatenate([segment.actions for segment in segments]),
    )
