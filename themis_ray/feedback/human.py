"""People as teachers: queries go to a labelling service, answers come when they come.

Nothing is asked twice and no answer is lost, whatever is killed when: queries are in the run's dataset before they are
sent, their ids are the same when they are sent again, and an answer is stored once by its own id. So all that this
needs to remember is in the dataset, and a run that goes on sends what waits and reads all answers once more.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from themis_ray.data import AskedQuery, Preference, PreferenceDataset, Query, Withdrawal
from themis_ray.envs import EnvConfig
from themis_ray.errors import ConfigError, DataError, TeacherError
from themis_ray.feedback.query_sender import QuerySender
from themis_ray.feedback.segment_clips import SegmentClips
from themis_ray.feedback.study_client import StudyClient, UnreachableError
from themis_ray.files import write_whole
from themis_ray.wire import StoredAnswer

__all__ = ["AnnotatorWeights", "HumanParameters", "HumanTeacher"]

logger = logging.getLogger("themis_ray")

# A service that is down is asked less and less often, at least this often.
MAX_POLL_S = 60.0
# The study's overlap is read again this often, as it may be raised; while answers are missing so are all of them, in
# case one became visible behind the cursor.
REREAD_S = 60.0
NUM_QUERIES_AT_ONCE = 50
TELL_S = 30.0


@dataclass(frozen=True)
class HumanParameters:
    """The settings of a study that answers; `TeacherConfig` says what they mean."""

    study: str
    wait: bool = False
    wait_timeout_s: float = 86_400.0
    poll_s: float = 2.0
    fit_after_s: float = 60.0
    codec: str = "vp9"
    clip_fps: float = 15.0


class AnnotatorWeights:
    """How far each annotator is trusted, as the study last said, kept in a JSON file beside the answers.

    Args:
        path: The file.

    Raises:
        DataError: There is such a file, and it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._weights: dict[str, float] = {}
        if path.exists():
            try:
                stored = json.loads(path.read_text(encoding="utf-8"))
                self._weights = {str(name): float(weight) for name, weight in stored.items()}
            except (OSError, ValueError, AttributeError, TypeError) as error:
                raise DataError(
                    f"{path} cannot be read ({error}). Delete it; the study tells weights again."
                ) from error

    def of(self, annotator_id: str) -> float:
        """Returns the weight of an annotator; 1 where the study has told none."""
        return self._weights.get(annotator_id, 1.0)

    def learn(self, weights: Mapping[str, float]) -> None:
        """Takes newer weights over and stores them.

        Raises:
            DataError: They cannot be stored.
        """
        if all(self._weights.get(name) == weight for name, weight in weights.items()):
            return
        self._weights |= weights
        try:
            write_whole(self._path, json.dumps(self._weights, indent=1, sort_keys=True) + "\n")
        except OSError as error:
            raise DataError(f"{self._path} cannot be written ({error.strerror or error}). Make room for it.") from error


class HumanTeacher:
    """Puts queries to a study and brings the answers into the dataset.

    Args:
        parameters: Which study, and how to deal with it.
        client: Connected to the service.
        env_config: Where segments come from.
        dataset: Where queries and answers are kept.
        about: Goes with every query, for the experimenter: run, seed.
        answers_per_fit: New answers that are worth a fit while others are awaited.
        clock: Seconds that only grow.
        sleep: Waits so many seconds.
    """

    def __init__(
        self,
        parameters: HumanParameters,
        client: StudyClient,
        env_config: EnvConfig,
        dataset: PreferenceDataset,
        about: Mapping[str, Any],
        answers_per_fit: int = 10,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.name = f"human:{parameters.study}"
        self.parameters = parameters
        self.client = client
        self.dataset = dataset
        self.weights = AnnotatorWeights(dataset.root / "annotators.json")
        clips = SegmentClips(dataset.root / "clips", env_config, parameters.codec, parameters.clip_fps)
        self._sender = QuerySender(client, parameters.study, clips)
        self._about = {"env_id": env_config.id, **about}
        self._answers_per_fit = answers_per_fit
        self._clock, self._sleep = clock, sleep
        self._overlap = 1
        self._status = "running"
        self._cursor = 0
        self._sent: set[str] = set()
        self._next_poll = -math.inf
        self._next_reread = clock() + REREAD_S
        self._num_failures = 0
        self._problem = ""
        self._unfitted_since: float | None = None

    # ---------------------------------------------------------------- asking

    def check(self) -> None:
        """Asks the service for the study.

        Raises:
            ConfigError: The study wants something else than preferences.
            TeacherError: The service cannot be reached, refuses the token, or knows no such study.
        """
        study = self.client.study(self.parameters.study)
        settings = study.get("settings", {})
        if settings.get("feedback", "pairwise") != "pairwise":
            raise ConfigError(
                f"study {self.parameters.study} asks for {settings['feedback']}, but a run asks which of two segments "
                "is better. Give teacher.study=ID of a study with feedback: pairwise."
            )
        self._overlap = _overlap(study)
        self._status = str(study.get("status", "running"))
        if self._status != "running":
            logger.warning("Study %s is %s: nobody answers until it goes on.", self.parameters.study, self._status)

    def ask(self, queries: Sequence[Query], feedback_session: int, num_env_steps: int, reward_version: int) -> None:
        """Stores queries that were not asked before and sends them; what cannot be sent now is sent later.

        Args:
            queries: What is asked; twice the same, or one that was asked before, counts once.
            feedback_session: Number of the feedback session, from 0.
            num_env_steps: Env steps that the learner has done.
            reward_version: How often the reward ensemble was fitted.

        Raises:
            ConfigError: The environment draws no frames.
            DataError: A segment cannot be replayed, or something cannot be written.
            TeacherError: The service refuses.
        """
        new = {query.id: query for query in queries if query.id not in self.dataset.asked}
        about = self.name, feedback_session, num_env_steps, reward_version, datetime.now(UTC)
        rows = [AskedQuery(query.id, query.left.id, query.right.id, *about) for query in new.values()]
        self.dataset.append_asked(list(new.values()), rows)
        self._reach(self._send_waiting)

    def _send_waiting(self) -> None:
        """Sends what waits for answers and was not sent by this process."""
        waiting = [id_ for id_ in self.dataset.num_missing(self._overlap) if id_ not in self._sent]
        for start in range(0, len(waiting), NUM_QUERIES_AT_ONCE):
            rows = [self.dataset.asked[id_] for id_ in waiting[start : start + NUM_QUERIES_AT_ONCE]]
            self._sender.send([(self._query(row), self._describe(row)) for row in rows])
            self._sent.update(row.query_id for row in rows)

    def _describe(self, row: AskedQuery) -> dict[str, Any]:
        return {
            **self._about,
            "num_env_steps": row.num_env_steps,
            "feedback_session": row.feedback_session,
            "reward_version": row.reward_version,
            "checkpoint": self._newest_checkpoint(),
        }

    def _newest_checkpoint(self) -> str:
        names = sorted(path.name for path in (self.dataset.root / "checkpoints").glob("checkpoint_*"))
        return names[-1] if names else ""

    # ---------------------------------------------------------------- answers

    @property
    def num_missing(self) -> int:
        """Answers that are still to come."""
        return sum(self.dataset.num_missing(self._overlap).values())

    def collect(self, *, at_once: bool = False) -> bool:
        """Sends what could not be sent before, brings new answers into the dataset, and tells whether any changed.

        Args:
            at_once: Also when the service was asked less than `poll_s` seconds ago.

        Raises:
            TeacherError: The service refuses.
        """
        if not at_once and self._clock() < self._next_poll:
            return False
        num_changes = self.dataset.num_changes
        self._reach(self._collect)
        return self.dataset.num_changes != num_changes

    def _collect(self) -> None:
        if self._clock() >= self._next_reread:
            self._overlap = _overlap(self.client.study(self.parameters.study))
            if self.num_missing:
                self._cursor = 0
            self._next_reread = self._clock() + REREAD_S
        self._send_waiting()
        self._take_answers()

    def _reach(self, act: Callable[[], None]) -> None:
        """Does something with the service; if it cannot be reached, that is told once and tried again later."""
        try:
            act()
        except UnreachableError as error:
            if not self._num_failures:
                logger.warning("%s The run goes on; queries and answers are kept and sent again.", error)
            self._problem = str(error)
            self._num_failures += 1
            delay_s = min(MAX_POLL_S, self.parameters.poll_s * 2.0 ** min(self._num_failures, 10))
            self._next_poll = self._clock() + delay_s
            return
        if self._num_failures:
            logger.warning("The labelling service answers again.")
        self._num_failures, self._problem = 0, ""
        self._next_poll = self._clock() + self.parameters.poll_s

    def _take_answers(self) -> None:
        """Reads all pages behind the cursor; stores what is new, then the tombstones of what no longer counts."""
        arrived: list[StoredAnswer] = []
        while True:
            page = self.client.answers(self.parameters.study, self._cursor)
            arrived += page.answers
            is_last = not page.answers or page.cursor <= self._cursor
            self._cursor = max(self._cursor, page.cursor)
            if is_last:
                break
        if page.status != self._status:
            logger.warning("Study %s is now %s.", self.parameters.study, page.status)
            self._status = page.status
        withdrawn, undone = frozenset(page.withdrawn), frozenset(page.undone)
        self.weights.learn({answer.annotator_id: answer.weight for answer in arrived})
        new = [
            answer
            for answer in {answer.answer_id: answer for answer in arrived}.values()
            if self._counts(answer) and answer.annotator_id not in withdrawn and answer.answer_id not in undone
        ]
        self.dataset.append(
            [self._query(self.dataset.asked[answer.query_id]) for answer in new],
            [_to_preference(self.dataset.asked[answer.query_id], answer) for answer in new],
        )
        now = datetime.now(UTC)
        self.dataset.withdraw(
            [
                Withdrawal(row.answer_id, row.teacher, "withdrawn" if row.teacher in withdrawn else "undone", now)
                for row in self.dataset.preferences
                if row.answer_id and (row.teacher in withdrawn or row.answer_id in undone)
            ]
        )

    def _counts(self, answer: StoredAnswer) -> bool:
        """Whether an answer is a new one to a query of this run; planned repeats tell about people, not segments."""
        return (
            answer.kind == "ordinary"
            and answer.choice is not None
            and answer.repeat == 0
            and not answer.is_undone
            and answer.query_id in self.dataset.asked
            and answer.answer_id not in self.dataset.answer_ids
        )

    def _query(self, row: AskedQuery) -> Query:
        return Query(self.dataset.segment(row.left_id), self.dataset.segment(row.right_id))

    # ---------------------------------------------------------------- waiting and fitting

    def wait(self) -> None:
        """Returns when every answer has come; returns at once where none is missing.

        Raises:
            TeacherError: No answer has come for `wait_timeout_s` seconds, or the study was stopped; the run can be
                resumed.
        """
        num_missing, parameters = self.num_missing, self.parameters
        if not num_missing:
            return
        logger.warning("Waiting for %d answers of study %s at %s.", num_missing, parameters.study, self.client.url)
        deadline, next_told = self._clock() + parameters.wait_timeout_s, self._clock() + TELL_S
        while True:
            if self.collect(at_once=True):
                deadline = self._clock() + parameters.wait_timeout_s
            left = self.num_missing
            if not left:
                logger.info("All %d answers are there.", num_missing)
                return
            if left != num_missing and self._clock() >= next_told:
                logger.warning("%d answers of study %s are missing.", left, parameters.study)
                num_missing, next_told = left, self._clock() + TELL_S
            if self._status == "stopped":
                raise TeacherError(
                    f"study {parameters.study} was stopped while {left} answers were missing. Let it go on and resume "
                    "the run; nothing is asked twice."
                )
            if self._clock() >= deadline:
                why = f" {self._problem}" if self._problem else ""
                raise TeacherError(
                    f"study {parameters.study} gave no answer for {parameters.wait_timeout_s:g} s "
                    f"(teacher.wait_timeout_s), and {left} are missing.{why} Invite people, then resume the run; "
                    "nothing is asked twice."
                )
            self._sleep(max(self.parameters.poll_s, min(self._next_poll - self._clock(), MAX_POLL_S)))

    def is_fit_due(self, num_new: int) -> bool:
        """Tells whether new answers, or answers that were withdrawn, are worth a fit now.

        They are when none is missing, when there are `answers_per_fit`, or when the first has waited `fit_after_s`.
        Reads the weights of all annotators again where it says yes.

        Args:
            num_new: What has changed since the last fit.
        """
        if self._unfitted_since is None:
            self._unfitted_since = self._clock()
        has_waited = self._clock() - self._unfitted_since >= self.parameters.fit_after_s
        if num_new < self._answers_per_fit and not has_waited and self.num_missing:
            return False
        self._unfitted_since = None
        self._cursor = 0
        self._reach(self._take_answers)
        return True

    def weight(self, preference: Preference) -> float:
        """Returns how much an answer counts in a fit."""
        return self.weights.of(preference.teacher)


def _overlap(study: Mapping[str, Any]) -> int:
    """Returns how many answers a study wants of each query."""
    return int(study.get("settings", {}).get("overlap", 1))


def _to_preference(asked: AskedQuery, answer: StoredAnswer) -> Preference:
    answered_at = _utc(answer.answered_at)
    assert answer.choice is not None
    return Preference(
        query_id=asked.query_id,
        left_id=asked.left_id,
        right_id=asked.right_id,
        choice=answer.choice,
        teacher=answer.annotator_id,
        feedback_session=asked.feedback_session,
        num_env_steps=asked.num_env_steps,
        # Another machine's clock may be behind.
        asked_at=min(asked.asked_at, answered_at),
        answered_at=answered_at,
        answer_id=answer.answer_id,
    )


def _utc(time_: datetime) -> datetime:
    return time_.replace(tzinfo=UTC) if time_.tzinfo is None else time_.astimezone(UTC)
