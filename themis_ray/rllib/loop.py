"""The preference loop as one checkpointable component of an RLlib Algorithm.

It holds what RLlib does not know: phase, random streams, episode pool, preferences, reward model, replay. Because it
is an RLlib `Checkpointable`, Tune, `Algorithm.from_checkpoint` and `themis train --resume` save and restore all of it
through the same code.
"""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.utils.checkpoints import Checkpointable

from themis_ray.data import AskedQuery, Choice, EpisodePool, Preference, PreferenceDataset, Query
from themis_ray.envs import EnvSpec, image_parts
from themis_ray.errors import TooFewSegmentsError
from themis_ray.feedback import (
    SAMPLERS,
    Teacher,
    choose_queries,
    draw_distinct,
    make_human_teacher,
    make_teacher,
    queries_due,
    session_plan,
)
from themis_ray.loop_settings import LoopSettings, required
from themis_ray.randomness import RandomStreams
from themis_ray.reward import (
    RunningStd,
    UnlabelledPairs,
    disagreement_bonus,
    state_entropy_rewards,
    teaches_anything,
    unlabelled_pairs,
)
from themis_ray.reward_actor import PendingPrediction, RewardModel
from themis_ray.rllib.evaluative import (
    ask_about_segments,
    own_segments,
    restore_evaluations,
    take_demonstrations,
)
from themis_ray.rllib.looks import PolicyLooks, compare_with_true_reward, member_returns
from themis_ray.rllib.replay import ReplayBuffer

if TYPE_CHECKING:
    from themis_ray.feedback.human import HumanTeacher

__all__ = ["COMPONENT_PREFERENCE_LOOP", "Phase", "PreferenceLoop"]

logger = logging.getLogger("themis_ray")

COMPONENT_PREFERENCE_LOOP = "preference_loop"
Phase = Literal["seed", "exploration", "preference"]

POOL_NUM_ENV_STEPS = 50_000
NUM_PREDICTED_RETURNS = 10
# So many segments' worth of env steps without one of them is no longer the beginning of a run.
MIN_SEGMENTS_BEFORE_WARNING = 20


class PreferenceLoop(Checkpointable):
    """Decides when people or programs are asked, about what, and what the learner is paid.

    Args:
        settings: Resolved settings of the experiment.
        spec: What the environment is like.
        dataset_path: Folder of the preference dataset; what it already holds counts against the budget.
        reward_model: The reward actor's client; None when the learner is paid the true reward.
        replay: The off-policy learner's experience, part of what is saved; None for on-policy learners.
    """

    def __init__(
        self,
        settings: LoopSettings,
        spec: EnvSpec,
        dataset_path: Path,
        reward_model: RewardModel | None,
        replay: ReplayBuffer | None,
    ) -> None:
        self.settings = settings
        self.spec = spec
        self.reward_model = reward_model
        self.replay = replay
        self.streams = RandomStreams(settings.seed)
        self.pool = EpisodePool(settings.env.id, POOL_NUM_ENV_STEPS)
        self.dataset = PreferenceDataset(dataset_path)
        self.info: dict[str, float] = {}
        self._teacher: Teacher | None = None
        self._human: HumanTeacher | None = None
        if settings.teacher.kind != "human":
            self._teacher = make_teacher(settings.teacher, settings.env, dataset_path / "judge_answers.jsonl")
        elif settings.has_reward_model:
            about = {"run": dataset_path.name, "seed": settings.seed}
            self._human = make_human_teacher(
                settings.teacher, settings.env, self.dataset, about, settings.feedback.budget
            )
        self._intrinsic_std = RunningStd()
        self.looks = PolicyLooks(settings, spec)
        self.num_updates_owed = 0.0
        self.num_snapshot_env_steps = 0
        self._num_fitted_queries = 0
        self._is_waiting_told = False
        self._predicted_returns: dict[str, float] = {}
        self._finished_predicted_returns: deque[float] = deque(maxlen=NUM_PREDICTED_RETURNS)
        exploration = settings.exploration
        self.num_seed_steps = required(exploration.num_seed_steps)
        self.num_steps_before_feedback = self.num_seed_steps + required(exploration.num_env_steps)
        num_steps_left = settings.num_env_steps - self.num_steps_before_feedback
        last_step = self.num_steps_before_feedback + max(1, int(settings.feedback.until_share * num_steps_left))
        self._plan = session_plan(settings.feedback, self.num_steps_before_feedback, last_step)

    # ---------------------------------------------------------------- what the learner is paid

    def phase(self, env_step: int) -> Phase:
        """Return the phase that the step after `env_step` env steps belongs to."""
        if env_step < self.num_seed_steps:
            return "seed"
        return "exploration" if env_step < self.num_steps_before_feedback else "preference"

    @property
    def has_fitted_reward(self) -> bool:
        """Whether predictions mean anything yet."""
        return self.reward_model is not None and self.reward_model.version > 0

    @property
    def _model(self) -> RewardModel:
        assert self.reward_model is not None
        return self.reward_model

    def predict_later(self, observations: NDArray[Any], actions: NDArray[Any]) -> PendingPrediction:
        """Start predicting the rewards of N steps."""
        return self._model.predict_later(observations, actions)

    def collect(self, pending: PendingPrediction) -> NDArray[np.float32]:
        """Wait for a prediction, shape (N,)."""
        return self._model.collect(pending)

    def predict(self, observations: NDArray[Any], actions: NDArray[Any]) -> NDArray[np.float32]:
        """Return the predicted rewards of N steps, shape (N,)."""
        return self._model.predict(observations, actions)

    def intrinsic_rewards(self, observations: NDArray[Any], reference: NDArray[Any]) -> NDArray[np.float32]:
        """Return state-entropy rewards of N observations against M references, over their running std, (N,)."""
        distances = state_entropy_rewards(observations, reference, self.settings.exploration.num_neighbors)
        self._intrinsic_std.update(distances)
        return (distances / (self._intrinsic_std.std or 1.0)).astype(np.float32)

    def count_predicted_returns(self, episodes: Sequence[Any], rewards: NDArray[np.float32]) -> None:
        """Add predicted rewards (N,) of consecutive RLlib episode pieces to the returns of their episodes.

        An episode that began before there were predictions does not count: its return would be that of its rest.
        """
        stops = np.cumsum([len(episode) for episode in episodes])
        for episode, part in zip(episodes, np.split(rewards, stops[:-1]), strict=True):
            if episode.t_started > 0 and episode.id_ not in self._predicted_returns:
                continue
            total = self._predicted_returns.pop(episode.id_, 0.0) + float(part.sum())
            if episode.is_done:
                self._finished_predicted_returns.append(total)
            else:
                self._predicted_returns[episode.id_] = total

    @property
    def predicted_return_mean(self) -> float:
        """Mean predicted return of the last finished episodes; NaN before the first."""
        returns = self._finished_predicted_returns
        return float(np.mean(returns)) if returns else float("nan")

    # ---------------------------------------------------------------- feedback

    @property
    def num_questions(self) -> int:
        """Questions so far, as in `PreferenceDataset.num_questions`."""
        return self.dataset.num_questions

    @property
    def num_preferences(self) -> int:
        """Answers left, right or equal so far."""
        return self.dataset.num_preferences

    def hold_session_if_due(self, env_step: int) -> bool:
        """Ask, store, fit and measure when the schedule says so; tell whether the reward model changed.

        Answers that were stored after the last fit, by a run that was killed, are fitted too, once the pool holds two
        segments to measure the fit on. People are asked at the same times; their answers are taken in whenever this is
        called, and fitted when enough are there.
        """
        if self.reward_model is None or env_step < self.num_steps_before_feedback:
            return False
        if self._human is not None:
            self._human.collect()
        num_due = queries_due(self._plan, env_step) - self.dataset.num_questions
        try:
            if self.pool.num_starts(self._segment_length) < 2:
                raise TooFewSegmentsError("no episode is so long")
            take_demonstrations(self.settings, self.spec, self.dataset, env_step)
            if num_due > 0:
                self._ask(num_due, env_step)
        except TooFewSegmentsError as error:
            if num_due > 0:
                self._tell_that_feedback_waits(error)
            return False
        if not self._has_news():
            return False
        self._num_fitted_queries = self._num_changes
        evaluations = self.dataset.evaluated_segments(
            own_segments(self.pool, self.dataset, self._segment_length, self.streams)
        )
        if evaluations is not None and not teaches_anything(evaluations, self.settings.reward):
            evaluations = None
        pairs = self.dataset.labelled_pairs(required(self.settings.reward.label_margin), weight=self._weight)
        if not pairs.weights.any() and evaluations is None:
            return False
        info = self.reward_model.fit(
            pairs,
            self.streams.draw_seed("fit"),
            bonus=disagreement_bonus(self.settings.reward, env_step),
            unlabelled=self._unlabelled_pairs(),
            **({} if evaluations is None else {"evaluations": evaluations}),
        )
        self.info |= {f"fit_{name}": value for name, value in info.items()}
        self.info.update(self.measure_reward())
        return True

    def _tell_that_feedback_waits(self, error: TooFewSegmentsError) -> None:
        """Say once that there is nothing to ask about, when that is not only because the run has just begun."""
        if self._is_waiting_told or self.pool.num_env_steps < MIN_SEGMENTS_BEFORE_WARNING * self._segment_length:
            return
        self._is_waiting_told = True
        logger.warning(
            "Feedback that is due waits for two distinct segments of %d steps (%s). Lower feedback.segment_length if "
            "episodes stay shorter: until then no reward is learned.",
            *(self._segment_length, error),
        )

    @property
    def _num_changes(self) -> int:
        return self.dataset.num_changes + len(self.dataset.demonstrations)

    def _has_news(self) -> bool:
        """Tell whether answers are to be fitted now; with people that wait for each other, wait for them first."""
        if self._human is None:
            return self._num_changes != self._num_fitted_queries
        if self._human.parameters.wait:
            self._human.wait()
        num_new = abs(self._num_changes - self._num_fitted_queries)
        return num_new > 0 and self._human.is_fit_due(num_new)

    @property
    def _weight(self) -> Callable[[Preference], float] | None:
        if self._human is None or self.settings.reward.reliability_weights is False:
            return None
        return self._human.weight

    def _unlabelled_pairs(self) -> UnlabelledPairs | None:
        """Draw pairs for pseudo-labels from the pool; None when they are off or the pool holds too little."""
        config = self.settings.reward
        if config.pseudo_label_threshold is None:
            return None
        num_pairs = config.pseudo_labels_per_label * self.dataset.num_preferences
        if num_pairs == 0:
            return None
        with suppress(TooFewSegmentsError):
            queries = self.pool.sample_queries(num_pairs, self._segment_length, self.streams["unlabelled"])
            return unlabelled_pairs(queries)
        return None

    @property
    def _segment_length(self) -> int:
        return required(self.settings.feedback.segment_length)

    def _ask(self, num_queries: int, env_step: int) -> None:
        if self.settings.feedback.kind != "preference":
            ask_about_segments(self.settings, self.pool, self.dataset, self.streams, num_queries, env_step)
            return
        queries = self._choose_queries(num_queries)
        last = self.dataset.last_feedback_session
        if self._human is not None:
            self._human.ask(queries, last + 1, env_step, self._model.version)
            return
        assert self._teacher is not None
        asked_at = datetime.now(UTC)
        returns, lengths = self.pool.recent_returns()
        choices = self._teacher.answer(queries, self.streams["teacher"], (returns, lengths), last + 1)
        answered_at = max(asked_at, datetime.now(UTC))  # The machine's clock may be set back.
        self.dataset.append(
            queries,
            [
                Preference(
                    query_id=query.id,
                    left_id=query.left.id,
                    right_id=query.right.id,
                    choice=choice,
                    teacher=self._teacher.name,
                    feedback_session=last + 1,
                    num_env_steps=env_step,
                    asked_at=asked_at,
                    answered_at=answered_at,
                )
                for query, choice in zip(queries, choices, strict=True)
            ],
        )

    def _choose_queries(self, num_queries: int) -> list[Query]:
        """Draw candidates and let the sampler pick; one that needs a fitted ensemble is uniform until there is one."""
        feedback, rng = self.settings.feedback, self.streams["sampler"]
        sampler = SAMPLERS[feedback.sampler]
        if sampler.needs_model and not self.has_fitted_reward:
            sampler = SAMPLERS["uniform"]
        newest = feedback.newest_num_episodes if sampler.newest_only else None
        num_candidates = num_queries * feedback.candidates_per_query

        def draw(number: int) -> list[Query]:
            return self.pool.sample_queries(number, self._segment_length, rng, newest)

        if not (sampler.needs_model or sampler.needs_embeddings):
            return draw_distinct(draw, num_queries, num_candidates)
        return choose_queries(
            sampler,
            draw(num_candidates),
            num_queries,
            rng,
            labelled=self._labelled_queries(),
            observation_kind=self.spec.observation_kind,
            layout=image_parts(self.spec.observation_space),
            predict_returns=lambda segments: member_returns(self._model, segments),
        )

    def _labelled_queries(self) -> list[Query]:
        """Return what needs no further answer, so that samplers look elsewhere; with people, what waits for one too."""
        if self._human is not None:
            skipped = {row.query_id for row in self.dataset.preferences if row.choice is Choice.SKIP}
            return [query for query in self._asked_queries() if query.id not in skipped]
        return [
            Query(self.dataset.segment(preference.left_id), self.dataset.segment(preference.right_id))
            for preference in self.dataset.preferences
            if preference.choice is not Choice.SKIP
        ]

    def measure_reward(self) -> dict[str, float]:
        """Compare the reward model with the true reward, see `compare_with_true_reward`; nothing where it cannot be."""
        rng = self.streams["heldout"]
        with suppress(TooFewSegmentsError):
            return compare_with_true_reward(self._model, self.pool, self.spec, self._segment_length, rng)
        return {}

    def look_if_due(self, env_step: int) -> None:
        """Measure the reward model on the current policy, twenty times a run, and warn when it seems exploited."""
        if not self.has_fitted_reward or not self.looks.is_due(env_step):
            return
        with suppress(TooFewSegmentsError):  # Episodes may have become shorter than a segment.
            metrics, evidence = self.looks.look(self._model, self.pool, env_step, self.streams["watch"])
            self.info |= metrics
            if evidence is not None:
                logger.warning("%s", evidence)

    # ---------------------------------------------------------------- state

    def get_state(self, components: Any = None, *, not_components: Any = None, **_: Any) -> dict[str, Any]:
        """Return everything that a restored loop needs to go on as if it had not stopped."""
        del components, not_components
        queries = [
            Query(self.dataset.segment(preference.left_id), self.dataset.segment(preference.right_id))
            for preference in self.dataset.preferences
        ]
        return {
            "streams": self.streams.get_state(),
            "pool": self.pool.get_state(),
            "queries": queries,
            "preferences": list(self.dataset.preferences),
            "asked": (self._asked_queries(), list(self.dataset.asked.values())),
            "evaluations": (
                [self.dataset.segment(row.segment_id) for row in self.dataset.evaluations],
                list(self.dataset.evaluations),
            ),
            "num_fitted_queries": self._num_fitted_queries,
            "intrinsic_std": self._intrinsic_std.get_state(),
            "info": dict(self.info),
            "watch": self.looks.get_state(),
            "num_updates_owed": self.num_updates_owed,
            "num_snapshot_env_steps": self.num_snapshot_env_steps,
            "predicted_returns": (dict(self._predicted_returns), list(self._finished_predicted_returns)),
            "reward_model": None if self.reward_model is None else self.reward_model.state,
            "replay": None if self.replay is None else self.replay.get_state(),
            "global_generators": (torch.get_rng_state(), np.random.get_state(), random.getstate()),  # noqa: NPY002
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore `get_state`. Answers on disk that are newer than the state stay; older ones that miss are added."""
        self.streams.set_state(state["streams"])
        self.pool.set_state(state["pool"])
        self._restore_asked(*state.get("asked", ([], [])))
        self._restore_dataset(state["queries"], state["preferences"])
        num_newer = restore_evaluations(self.dataset, *state.get("evaluations", ([], [])))
        if num_newer:
            logger.info("Kept %d ratings, judged steps or demonstrations given after the checkpoint.", num_newer)
        self._num_fitted_queries = state["num_fitted_queries"]
        self._intrinsic_std.set_state(state["intrinsic_std"])
        self.info = dict(state["info"])
        self.looks.set_state(state["watch"])
        self.num_updates_owed = state["num_updates_owed"]
        self.num_snapshot_env_steps = state.get("num_snapshot_env_steps", 0)
        self._predicted_returns = dict(state["predicted_returns"][0])
        self._finished_predicted_returns.clear()
        self._finished_predicted_returns.extend(state["predicted_returns"][1])
        if self.reward_model is not None and state["reward_model"] is not None:
            self.reward_model.load(state["reward_model"])
        if self.replay is not None and state["replay"] is not None:
            self.replay.set_state(state["replay"])
        torch_state, numpy_state, python_state = state["global_generators"]
        torch.set_rng_state(torch_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)

    def _asked_queries(self) -> list[Query]:
        return [
            Query(self.dataset.segment(row.left_id), self.dataset.segment(row.right_id))
            for row in self.dataset.asked.values()
        ]

    def _restore_asked(self, queries: list[Query], asked: list[AskedQuery]) -> None:
        """Store the queries to people that miss in the dataset."""
        rows = [i for i, row in enumerate(asked) if row.query_id not in self.dataset.asked]
        self.dataset.append_asked([queries[i] for i in rows], [asked[i] for i in rows])

    def _restore_dataset(self, queries: list[Query], preferences: list[Preference]) -> None:
        stored = self.dataset.num_queries
        if stored > len(preferences):
            logger.info("Kept %d answers given after the checkpoint.", stored - len(preferences))
        missing = list(range(stored, len(preferences)))
        if any(preference.answer_id for preference in preferences):
            # People's answers have ids; withdrawn ones are known too and do not come back.
            missing = [i for i, row in enumerate(preferences) if row.answer_id not in self.dataset.answer_ids]
        by_session: dict[int, list[int]] = {}
        for i in missing:
            by_session.setdefault(preferences[i].feedback_session, []).append(i)
        for rows in by_session.values():
            self.dataset.append([queries[i] for i in rows], [preferences[i] for i in rows])

    def get_ctor_args_and_kwargs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return nothing: the algorithm builds its loop itself, then restores it."""
        return (), {}

    def get_checkpointable_components(self) -> list[tuple[str, Any]]:
        """Return nothing: everything is in `get_state`."""
        return []
