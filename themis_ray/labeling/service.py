"""What every part of the web application needs: the store, the signer, where clips are."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from themis_ray.labeling.report import study_report
from themis_ray.labeling.report_parts import StudyReport
from themis_ray.labeling.security import Signer
from themis_ray.labeling.signing import clip_until, sign_clip
from themis_ray.labeling.store import Assignment, Clip, Completion, ConflictError, Desk, LabelStore, StudyRow
from themis_ray.wire import AssignmentView, ClipView, StoredAnswer, Work

__all__ = ["Service", "ServiceSettings"]

REPORT_FRESH_S = 5.0
REPORT_FRESH_RATIO = 10.0  # A report that takes long is kept for so many times as long.
ANSWERS_PER_READ = 20_000


@dataclass(frozen=True)
class ServiceSettings:
    """How a service is reached and where it keeps its files.

    Attributes:
        secret: What everything is signed with.
        clips_folder: Holds STUDY/NAME for every clip.
        clips_url: Where clips are sent from, such as http://127.0.0.1:8001; without a slash at the end.
        public_url: Where people reach the service; decides whether cookies need https.
        root: What stands before every path where the service is not at the top of its host, such as /labels.
        metrics_token: Who may read /metrics with it; empty: admins only.
        joins_per_minute: People who may come to a study in a minute.
        max_clip_bytes: Size of the largest clip.
    """

    secret: bytes
    clips_folder: Path
    clips_url: str
    public_url: str
    root: str = ""
    metrics_token: str = ""
    joins_per_minute: int = 600
    max_clip_bytes: int = 20 * 2**20

    @property
    def is_https(self) -> bool:
        """Whether people reach the service by https."""
        return self.public_url.startswith("https://")

    @property
    def clips_origin(self) -> str:
        """Scheme, host and port of the clips; empty where they come from the service's own."""
        parts = urlsplit(self.clips_url)
        return f"{parts.scheme}://{parts.netloc}" if parts.netloc else ""


@dataclass(frozen=True)
class _Known:
    """What the answers of a study say, until when it is not asked again."""

    report: StudyReport
    weights: dict[str, float]
    fresh_until: float


@dataclass
class Service:
    """One process of the labelling service."""

    store: LabelStore
    settings: ServiceSettings
    signer: Signer = field(init=False)

    def __post_init__(self) -> None:
        self.signer = Signer(self.settings.secret)
        self._reports: dict[str, _Known] = {}
        self._locks: dict[str, threading.Lock] = {}

    # ---------------------------------------------------------------- what is shown

    def clip_url(self, study_id: str, name: str) -> str:
        """Returns the signed address of a clip."""
        query = sign_clip(self.settings.secret, study_id, name, clip_until(time.time()))
        return f"{self.settings.clips_url}/clips/{study_id}/{name}?{query}"

    def work(self, desk: Desk) -> Work:
        """Returns a desk as it is sent."""
        return Work(
            stage=desk.stage,
            assignments=tuple(self._assignment(desk, assignment) for assignment in desk.assignments),
            progress=desk.progress,
            is_waiting=desk.is_waiting,
        )

    def _assignment(self, desk: Desk, assignment: Assignment) -> AssignmentView:
        study_id, overlay = desk.annotator.study.id, desk.annotator.overlay
        return AssignmentView(
            assignment_id=assignment.id,
            feedback=assignment.feedback,
            left=self._clip(study_id, assignment.left, overlay),
            right=None if assignment.right is None else self._clip(study_id, assignment.right, overlay),
            is_practice=assignment.is_practice,
            leased_until=assignment.leased_until,
            overlay=overlay if overlay in assignment.left.overlays else "",
        )

    def _clip(self, study_id: str, clip: Clip, overlay: str) -> ClipView:
        explained = clip.overlays.get(overlay)
        return ClipView(
            url=self.clip_url(study_id, clip.name),
            num_frames=clip.num_frames,
            clip_fps=clip.clip_fps,
            overlay_url=None if explained is None else self.clip_url(study_id, explained),
        )

    def entrance(self, study: StudyRow) -> str:
        """Returns the path of a study's entrance, which works as long as the study does."""
        invitation = self.signer.make_invitation("annotator", study.id, 10 * 365 * 86_400)
        return f"{self.settings.root}/s/{study.id}?invitation={invitation}"

    # ---------------------------------------------------------------- the end of somebody's part

    def finish(self, annotator_id: str) -> Completion:
        """Ends the work of somebody who has nothing to answer; tells a person who is done where to go.

        Raises:
            ConflictError: There is something to do first. One answer is not worth the code of a whole part.
        """
        desk = self.store.work.desk(annotator_id, 1)
        if desk.stage == "work" and desk.assignments:
            raise ConflictError("there are clips for you to answer. Answer them, or withdraw.")
        return self.store.people.finish(annotator_id)

    # ---------------------------------------------------------------- what is known of a study

    def all_answers(self, study_id: str) -> list[StoredAnswer]:
        """Returns all answers of a study."""
        found: list[StoredAnswer] = []
        while True:
            page = self.store.work.answers(study_id, after=found[-1].number if found else 0, limit=ANSWERS_PER_READ)
            found.extend(page.answers)
            if len(page.answers) < ANSWERS_PER_READ:
                return found

    def report(self, study_id: str) -> StudyReport:
        """Returns the report of a study, a few seconds old at most; older where it takes long to make."""
        return self._known(study_id).report

    def weights(self, study_id: str) -> dict[str, float]:
        """Returns the weight of each annotator's answers, as old as the report; 1 where nothing is known."""
        return self._known(study_id).weights

    def _known(self, study_id: str) -> _Known:
        """Returns what the answers of a study say; one request makes it anew, others do with the one before."""
        known = self._reports.get(study_id)
        if known is not None and time.monotonic() < known.fresh_until:
            return known
        lock = self._locks.setdefault(study_id, threading.Lock())
        if not lock.acquire(blocking=known is None):
            assert known is not None
            return known
        try:
            known = self._reports.get(study_id)
            if known is None or time.monotonic() >= known.fresh_until:
                known = self._reports[study_id] = self._look(study_id)
            return known
        finally:
            lock.release()

    def _look(self, study_id: str) -> _Known:
        began = time.monotonic()
        study = self.store.studies.get(study_id)
        answers = self.all_answers(study_id)
        gold = self.store.studies.gold_choices(study_id)
        waiting = self.store.studies.counts(study_id).num_waiting
        report = study_report(answers, study.config, gold=gold, num_waiting=waiting)
        weights = {row.annotator_id: row.weight for row in report.annotators}
        now = time.monotonic()
        return _Known(report, weights, now + max(REPORT_FRESH_S, REPORT_FRESH_RATIO * (now - began)))
