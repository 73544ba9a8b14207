"""Looks at the studies now and then, and tells experimenters what they want to be told."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import replace

from themis_ray.labeling.notify import Notifier, find_events
from themis_ray.labeling.store import LabelStore
from themis_ray.labeling.store.notices import Notices

__all__ = ["Watcher", "check_studies"]

logger = logging.getLogger("themis_ray")

INTERVAL_S = 60.0


def check_studies(store: LabelStore, notifier: Notifier, now: float | None = None) -> int:
    """Tells what there is to tell of all studies that name somebody to tell; returns how many messages arrived."""
    notices = Notices(store.database)
    num_sent = 0
    for row in store.studies.all():
        config = row.config
        if not (config.webhook_url or config.notify_email):
            continue
        state = notices.state(row.id)
        if state is not None:
            events = find_events(replace(state, title=config.title), time.time() if now is None else now)
            num_sent += notifier.tell(events, config.webhook_url, config.notify_email)
    return num_sent


class Watcher:
    """A thread that checks the studies every minute.

    Args:
        store: Where the studies are.
        notifier: Tells.
        interval_s: Seconds between two checks.
    """

    def __init__(self, store: LabelStore, notifier: Notifier, interval_s: float = INTERVAL_S) -> None:
        self._store, self._notifier, self._interval_s = store, notifier, interval_s
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="themis-notices", daemon=True)

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def stop(self) -> None:
        """Ends; waits for a message that is on its way."""
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_over.wait(self._interval_s):
            try:
                check_studies(self._store, self._notifier)
            except Exception:
                # Whatever goes wrong here must not end the telling of what comes later.
                logger.exception("The studies could not be checked for what there is to tell.")
