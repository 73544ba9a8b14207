"""What a service does by itself."""

import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from conftest import answer

from themis_ray.errors import ConfigError
from themis_ray.labeling import notify, tables
from themis_ray.labeling.housekeeping import SMTP_VARIABLE, Housekeeper, read_smtp


@pytest.fixture
def hook():
    """A server that keeps what is posted to it."""
    posted = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            posted.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/hook", posted
    server.shutdown()
    server.server_close()


def test_a_stop_is_told_once_whoever_keeps_house(lab, hook):
    url, posted = hook
    lab.study(webhook_url=url)
    keepers = [Housekeeper(lab.service) for _ in range(2)]
    assert [keeper.work() for keeper in keepers] == [0, 0]
    lab.service.store.studies.set_status("cart", "stopped", "test")
    assert [keeper.work() for keeper in keepers] == [1, 0]
    assert len(posted) == 1
    assert '"kind": "stopped"' in posted[0]
    assert "http://testserver/studies/cart" in posted[0]


def test_waiting_queries_are_told_after_a_while(lab, hook, monkeypatch):
    url, posted = hook
    lab.study(webhook_url=url, queries_per_annotator=2)
    ada = lab.annotator()
    answer(ada, ada.get("/api/v1/assignments").json()["assignments"][0])
    keeper = Housekeeper(lab.service)
    assert keeper.work() == 0
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + notify.WAITING_AFTER_S + 1)
    assert keeper.work() == 1
    assert '"kind": "waiting"' in posted[0]


def test_the_thread_works_forgets_and_ends(lab):
    lab.service.store.access.count_hit("someone", 5, 0.0)
    keeper = Housekeeper(lab.service, interval_s=0.02)
    keeper.start()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with lab.service.store.database.read() as connection:
            if connection.execute(tables.hit.select()).first() is None:
                break
        time.sleep(0.02)
    else:
        pytest.fail("the hit is still there")
    keeper.stop()


def test_settings_of_email_are_read_and_never_shown(monkeypatch):
    monkeypatch.delenv(SMTP_VARIABLE, raising=False)
    assert read_smtp() is None
    monkeypatch.setenv(SMTP_VARIABLE, "{host: localhost, port: 2525, security: none, sender: me@example.org}")
    assert read_smtp().port == 2525
    monkeypatch.setenv(SMTP_VARIABLE, "{host: localhost, password: hunter2}")
    with pytest.raises(ConfigError, match="THEMIS_SMTP") as raised:
        read_smtp()
    assert "hunter2" not in str(raised.value)
