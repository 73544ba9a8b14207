"""A labelling service with a database in a temporary folder, and people who call it."""

import hashlib
import uuid
from dataclasses import dataclass
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from themis_ray.labeling.app import create_app
from themis_ray.labeling.security import SESSION_COOKIE
from themis_ray.labeling.service import Service, ServiceSettings
from themis_ray.labeling.store import LabelStore
from themis_ray.labeling.study import StudyConfig

SECRET = b"a secret of tests, long enough 0123456789"
CLIP_BYTES = b"\x1a\x45\xdf\xa3 and so on"


def clip_name(number: int) -> str:
    return hashlib.md5(str(number).encode()).hexdigest() + ".webm"


def new_query(number: int, **changes) -> dict:
    sides = {
        side: {"segment_id": f"{side}-{number}", "clip": clip_name(clip), "num_frames": 5}
        for side, clip in (("left", 0), ("right", 1))
    }
    return {"id": f"q{number}", **sides, **changes}


@dataclass
class Lab:
    """A service and its callers."""

    service: Service
    app: FastAPI

    def member(self, role: str = "admin", study: str | None = None) -> TestClient:
        """A browser in which a member is signed in."""
        member = self.service.store.access.accept_invitation(uuid.uuid4().hex, role, role, study)
        session, cookie = self.service.signer.make_session("member", member.id)
        headers = {"X-CSRF-Token": self.service.signer.csrf_token(session)}
        return TestClient(self.app, cookies={SESSION_COOKIE: cookie}, headers=headers)

    def nobody(self) -> TestClient:
        """A browser in which nobody is signed in."""
        return TestClient(self.app, raise_server_exceptions=True)

    def study(self, study_id: str = "cart", num_queries: int = 5, **settings) -> str:
        """A study with queries; returns its token."""
        studies = self.service.store.studies
        studies.create(StudyConfig(**{"id": study_id, "title": "Carts", **settings}), "test")
        token, _ = self.service.store.access.make_token(study_id, "test", "test")
        program = self.program(token)
        for number in range(2):
            url = f"/api/v1/studies/{study_id}/clips/{clip_name(number)}"
            assert program.put(url, content=CLIP_BYTES).status_code == 200
        if num_queries:
            queries = {"queries": [new_query(number) for number in range(num_queries)]}
            assert program.post(f"/api/v1/studies/{study_id}/queries", json=queries).json()["num_new"] == num_queries
        return token

    def program(self, token: str) -> TestClient:
        """A program with a token."""
        return TestClient(self.app, headers={"Authorization": f"Bearer {token}"})

    def annotator(self, study_id: str = "cart", **panel: str) -> TestClient:
        """A browser in which somebody has come to a study."""
        client = self.nobody()
        entrance = self.service.entrance(self.service.store.studies.get(study_id))
        request = {"invitation": entrance.split("invitation=")[1], "panel": panel}
        session = client.post(f"/api/v1/studies/{study_id}/join", json=request).json()
        client.headers["X-CSRF-Token"] = session["csrf_token"]
        client.annotator_id = session["annotator_id"]
        return client


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """A service that nobody has used yet."""
    settings = ServiceSettings(
        secret=SECRET,
        clips_folder=tmp_path / "clips",
        clips_url="http://127.0.0.1:9",
        public_url="http://testserver",
    )
    store = LabelStore(f"sqlite:///{tmp_path}/labels.db")
    service = Service(store, settings)
    yield Lab(service, create_app(service))
    store.close()


def answer(client: TestClient, assignment: dict, choice: str = "left", **changes):
    """Sends an answer and returns the response."""
    body = {
        "answer_id": str(uuid.uuid4()),
        "assignment_id": assignment["assignment_id"],
        "choice": choice,
        "response_ms": 1200,
        "watched_ms": 900,
    }
    return client.post("/api/v1/answers", json=body | changes)
