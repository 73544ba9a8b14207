"""The chat endpoint of `chat_server.py` for tests of the judge."""

import threading

import pytest
from chat_server import KEY, FakeEndpoint

from themis_ray.feedback import chat_endpoint


@pytest.fixture
def server(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(chat_endpoint, "FIRST_DELAY_S", 0.01)
    endpoint = FakeEndpoint()
    thread = threading.Thread(target=endpoint.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield endpoint
    endpoint.shutdown()
    endpoint.server_close()
    thread.join()
