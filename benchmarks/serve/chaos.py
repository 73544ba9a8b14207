"""Processes of the service that are killed while people answer."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.serve.service import Service, kill_process

__all__ = ["Chaos"]

KILL_EVERY_S = 30.0


class Chaos:
    """Kills replicas one after the other, and once everything."""

    def __init__(self, service: Service, seconds: float, kill_all_after_s: float) -> None:
        self._service, self._seconds, self._kill_all_after_s = service, seconds, kill_all_after_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.num_replicas_killed = 0
        self.num_restarts = 0
        self.restart_s = 0.0
        self.error: Exception | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Kills while the block runs."""
        self._thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            self._thread.join()
            if self.error is not None:
                raise self.error

    def _run(self) -> None:
        started = time.monotonic()
        rng = random.Random(0)
        try:
            while not self._stopping.wait(KILL_EVERY_S):
                if not self.num_restarts and time.monotonic() - started > self._kill_all_after_s:
                    num = self._service.kill()
                    self.num_restarts += 1
                    print(f"killed all {num} processes of the service", flush=True)
                    self._service.start()
                    self.restart_s = self._service.start_s
                    print(f"the service is back after {self.restart_s:.0f} s", flush=True)
                elif replicas := self._service.replicas():
                    kill_process(rng.choice(replicas))
                    self.num_replicas_killed += 1
                    print(f"killed one of {len(replicas)} replicas", flush=True)
        except Exception as error:
            self.error = error
