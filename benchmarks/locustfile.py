"""Annotators for people who know locust: the same calls as `themis simulate-annotators`, on locust's own page.

    export THEMIS_STUDY_TOKEN=...  THEMIS_STUDY=my-study
    locust -f benchmarks/locustfile.py --host http://127.0.0.1:8000 --users 200 --spawn-rate 20

Choices are drawn by the side of the screen. `themis simulate-annotators` is what the load test uses: it needs a tenth
of the processor time, prefers by true rewards and keeps a ledger of what was acknowledged.
"""

from __future__ import annotations

import os
import random
import time
import uuid
from typing import Any
from urllib.parse import parse_qs, urljoin, urlsplit

from locust import HttpUser, constant, events, task
from locust.exception import RescheduleTask, StopUser

THINK_S = float(os.environ.get("THEMIS_THINK_S", "8"))
STUDY = os.environ.get("THEMIS_STUDY", "example")
API = "/api/v1"
NUM_HELD = 3
# No connection, too many calls, or a service that is being restarted.
AGAIN = (0, 429, 502, 503, 504)
CHOICES = ("left", "right", "equal", "skip")
plan: dict[str, Any] = {}


@events.test_start.add_listener
def read_study(environment: Any, **_: Any) -> None:
    """Asks once what the study wants and how people come to it."""
    import requests

    headers = {"Authorization": f"Bearer {os.environ['THEMIS_STUDY_TOKEN']}"}
    reply = requests.get(f"{environment.host}{API}/studies/{STUDY}", headers=headers, timeout=30)
    reply.raise_for_status()
    study = reply.json()
    invitation = parse_qs(urlsplit(study["entrance"]).query)["invitation"][0]
    plan.update(settings=study["settings"], invitation=invitation)


class Annotator(HttpUser):
    """One person, from the link to the completion code."""

    wait_time = constant(0)

    def on_start(self) -> None:
        """Comes, agrees and answers the questions before the work."""
        self.seen: set[str] = set()
        settings = plan["settings"]
        panel = {name: uuid.uuid4().hex[:24] for name in settings["panel"]["id_parameters"]}
        session = self.call("POST", f"/studies/{STUDY}/join", {"invitation": plan["invitation"], "panel": panel})
        self.client.headers["X-CSRF-Token"] = session["csrf_token"]
        if session["stage"] == "consent":
            consent = settings["consent"]
            body = {"version": consent["version"], "hash": consent_hash(consent), "agrees": True}
            session = self.call("POST", "/consent", body)
        if session["stage"] == "before":
            self.answer_questions("before")
        self.work = self.call("GET", f"/assignments?count={NUM_HELD}", name="/assignments")

    @task
    def compare(self) -> None:
        """Watches, thinks and answers."""
        if self.work["stage"] not in ("practice", "work"):
            self.leave()
        if not self.work["assignments"]:
            time.sleep(2.0)
            self.work = self.call("GET", f"/assignments?count={NUM_HELD}", name="/assignments")
            return
        for assignment in self.work["assignments"]:
            self.watch(assignment)
        think_s = THINK_S * random.uniform(0.5, 1.5)
        time.sleep(think_s)
        body = {
            "answer_id": str(uuid.uuid4()),
            "assignment_id": self.work["assignments"][0]["assignment_id"],
            "choice": random.choices(CHOICES, (45, 45, 7, 3))[0],
            "response_ms": int(1000 * think_s),
            "watched_ms": int(1000 * max(think_s, plan["settings"]["min_watched_s"])) + 1,
            "count": NUM_HELD,
        }
        try:
            # What was not acknowledged is sent again under the same id, so that it counts once.
            self.work = self.call("POST", "/answers", body)["work"]
        except RescheduleTask:  # too late, or the study is over
            self.work = self.call("GET", f"/assignments?count={NUM_HELD}", name="/assignments")

    def watch(self, assignment: dict[str, Any]) -> None:
        """Fetches the clips that are new; a browser keeps the others."""
        for side in ("left", "right"):
            clip = assignment[side]
            if clip is not None and clip["url"] not in self.seen:
                self.seen.add(clip["url"])
                self.client.get(urljoin(f"{self.host}/", clip["url"]), name="clip")

    def answer_questions(self, which: str) -> None:
        """Gives the first answer that goes on."""
        answers: dict[str, Any] = {}
        for question in plan["settings"][which]:
            if question["kind"] == "choice":
                answers[question["id"]] = next(o for o in question["options"] if o not in question["screens_out"])
            else:
                answers[question["id"]] = question["low"] if question["kind"] == "scale" else "locust"
        self.call("POST", f"/questions/{which}", {"answers": answers}, name="/questions")

    def leave(self) -> None:
        """Answers the questions after the work and takes the completion code."""
        if self.work["stage"] == "after":
            self.answer_questions("after")
        self.call("POST", "/finish")
        raise StopUser

    def call(self, method: str, path: str, body: Any = None, name: str | None = None) -> Any:
        """Sends a call until it gets through and returns what came back; every try is shown on locust's page."""
        route = name or path.partition("?")[0].replace(STUDY, "STUDY")
        while True:
            response = self.client.request(method, API + path, json=body, name=route)
            if response.ok:
                return response.json()
            if response.status_code not in AGAIN:
                raise RescheduleTask
            time.sleep(float(response.headers.get("Retry-After", "1")))


def consent_hash(consent: dict[str, str]) -> str:
    """Returns what `themis_ray.labeling.study.Consent` computes of a text."""
    from themis_ray.labeling.study import Consent

    return Consent(**consent).hash
