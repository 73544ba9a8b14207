"""A labelling service that listens on this machine, with SQLite in a folder and a clip server of its own."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from themis_ray.feedback.study_client import StudyClient
from themis_ray.labeling.app import create_app
from themis_ray.labeling.clip_server import ClipServer
from themis_ray.labeling.service import Service, ServiceSettings
from themis_ray.labeling.store import LabelStore
from themis_ray.labeling.study import StudyConfig

SECRET = b"a secret of tests, long enough 0123456789"


@dataclass
class LiveService:
    """Where it is and what is behind it."""

    url: str
    store: LabelStore

    def study(self, **settings) -> StudyClient:
        """Makes a study; returns a client with a token of it."""
        config = StudyConfig(**{"id": "tea", "title": "Tea", **settings})
        self.store.studies.create(config, "test")
        return StudyClient(self.url, self.token(config.id))

    def token(self, study: str = "tea") -> str:
        """Makes a token."""
        token, _ = self.store.access.make_token(study, "test", "test")
        return token


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextlib.contextmanager
def live_service(folder: Path, port: int | None = None, **settings) -> Iterator[LiveService]:
    """Runs a service in a thread; one in the same folder and on the same port goes on where the last one stopped."""
    port = port or free_port()
    url = f"http://127.0.0.1:{port}"
    clips = folder / "clips"
    clips.mkdir(parents=True, exist_ok=True)
    clip_server = ClipServer(clips, SECRET, [url], host="127.0.0.1", port=0)
    clip_server.start()
    store = LabelStore(f"sqlite:///{folder}/labels.db")
    clips_url = f"http://127.0.0.1:{clip_server.port}"
    service = Service(store, ServiceSettings(SECRET, clips, clips_url, url, **settings))
    server = uvicorn.Server(uvicorn.Config(create_app(service), "127.0.0.1", port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        assert thread.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    try:
        yield LiveService(url, store)
    finally:
        server.should_exit = True
        thread.join(10)
        store.close()
        clip_server.stop()
