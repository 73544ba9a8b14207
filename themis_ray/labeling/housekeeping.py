"""What a service does by itself, every minute: tells people, forgets what it promised to forget, tidies up."""

from __future__ import annotations

import logging
import os
import threading
import time

import yaml
from pydantic import ValidationError

from themis_ray.errors import ConfigError
from themis_ray.labeling.notify import Notifier, SmtpSettings, StudyState, find_events
from themis_ray.labeling.service import Service
from themis_ray.labeling.store import StudyRow

__all__ = ["Housekeeper", "read_smtp"]

logger = logging.getLogger("themis_ray")

INTERVAL_S = 60.0
SMTP_VARIABLE = "THEMIS_SMTP"


def read_smtp() -> SmtpSettings | None:
    """Returns the settings of e-mail in the environment variable THEMIS_SMTP; None where there are none.

    They are YAML, such as `{host: mail.example.org, user: me, password: ..., sender: me@example.org}`.

    Raises:
        ConfigError: They are wrong.
    """
    text = os.environ.get(SMTP_VARIABLE)
    if not text:
        return None
    try:
        return SmtpSettings.model_validate(yaml.safe_load(text))
    except (yaml.YAMLError, ValidationError):  # which would show the password
        fields = ", ".join(SmtpSettings.model_fields)
        raise ConfigError(
            f"{SMTP_VARIABLE} cannot be read. Give YAML with some of {fields}; host and sender."
        ) from None


class Housekeeper:
    """Does the house's work beside the requests. Each replica may have one: nothing is done twice.

    Args:
        service: The service.
        smtp: How e-mail is sent; None: not at all.
        interval_s: How long it rests in between.
    """

    def __init__(self, service: Service, smtp: SmtpSettings | None = None, interval_s: float = INTERVAL_S) -> None:
        self._service = service
        self._interval_s = interval_s
        settings = service.settings
        self._notifier = Notifier(
            service.store.studies,
            settings.secret,
            lambda study_id: f"{settings.public_url}{settings.root}/studies/{study_id}",
            smtp,
        )
        self._is_over = threading.Event()

    def start(self) -> None:
        """Works in a thread of its own until `stop`, or until the process ends."""
        threading.Thread(target=self._run, name="housekeeper", daemon=True).start()

    def stop(self) -> None:
        """Ends the thread after what it is doing."""
        self._is_over.set()

    def work(self) -> int:
        """Does everything once and returns how many messages were sent."""
        store = self._service.store
        store.access.clear_hits()
        store.people.forget_panels()
        num_sent = 0
        for study in store.studies.all():
            config = study.config
            if config.webhook_url or config.notify_email:
                events = find_events(self._state(study), time.time())
                num_sent += self._notifier.tell(events, config.webhook_url, config.notify_email)
        return num_sent

    def _state(self, study: StudyRow) -> StudyState:
        counts = self._service.store.studies.counts(study.id)
        activity = self._service.store.studies.activity(study.id)
        return StudyState(
            id=study.id,
            title=study.config.title,
            status=study.status,
            num_answers=counts.num_answers,
            num_waiting=counts.num_waiting,
            last_number=activity.last_number,
            last_answered_at=activity.last_answered_at,
            waiting_since=activity.waiting_since,
            stopped_at=study.stopped_at,
        )

    def _run(self) -> None:
        while not self._is_over.wait(self._interval_s):
            try:
                self.work()
            except Exception:  # a database that is away for a moment must not end the thread
                logger.exception("Housekeeping failed and is tried again in %.0f s.", self._interval_s)
