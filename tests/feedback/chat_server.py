"""A local HTTP server that speaks the chat-completions protocol as a test tells it to, and queries to judge."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
from lantern import LANTERN, lantern_segment

from themis_ray.data import Choice, Query, Segment
from themis_ray.feedback import TeacherConfig, make_teacher

KEY = "sk-secret-0123456789"
NO_RETURNS = (np.empty(0, np.float64), np.empty(0, np.int64))
PRICES = {"price_per_1k_input_tokens": 1.0, "price_per_1k_output_tokens": 4.0}
USAGE = {"prompt_tokens": 500, "completion_tokens": 125}  # costs 1.0 at these prices
USUAL_DELAY_S = 1.0


def completion(text, usage=USAGE) -> dict:
    return {"choices": [{"message": {"role": "assistant", "content": text}}], "usage": usage}


def choose(word: str) -> dict:
    return completion(json.dumps({"choice": word}))


def by_brightness(server, request) -> dict:
    """Prefers the clip whose first frame is brighter."""
    left, right = (clip[0].mean() for clip in clips_of(request["body"]))
    return choose("left" if left > right else "right")


def clips_of(body: dict) -> list[list[np.ndarray]]:
    """Returns the frames of both clips, decoded from a request."""
    clips: list[list[np.ndarray]] = []
    for part in body["messages"][1]["content"]:
        if part["type"] == "text" and "clip," in part["text"]:
            clips.append([])
        elif part["type"] == "image_url":
            scheme, _, data = part["image_url"]["url"].partition(",")
            assert scheme == "data:image/png;base64"
            image = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
            clips[-1].append(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
    return clips


class FakeEndpoint(ThreadingHTTPServer):
    """Answers each POST with what `reply(server, request)` returns: a body, or (status, body, headers)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply = by_brightness
        self.requests: list[dict] = []
        self.lock = threading.Lock()
        self.num_under_way = 0
        self.most_under_way = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request, client_address) -> None:
        """Says nothing about clients that hung up."""


class Handler(BaseHTTPRequestHandler):
    server: FakeEndpoint
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            number = len(server.requests)
            request = {"path": self.path, "headers": dict(self.headers), "body": body, "number": number}
            server.requests.append(request)
            server.num_under_way += 1
            server.most_under_way = max(server.most_under_way, server.num_under_way)
        reply = server.reply(server, request)
        with server.lock:
            server.num_under_way -= 1
        status, answer, headers = reply if isinstance(reply, tuple) else (200, reply, {})
        data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format, *args) -> None:
        """Says nothing."""


def segment(brightness: int, length: int = 12) -> Segment:
    """A red clip of this brightness."""
    return lantern_segment(brightness << 16, np.zeros(length))


def make_queries(n: int) -> tuple[list[Query], list[Choice]]:
    """Returns queries and what `by_brightness` answers."""
    rng = np.random.default_rng(0)
    left = rng.integers(0, 200, n)
    right = (left + rng.integers(1, 100, n)) % 255
    queries = [Query(segment(int(a)), segment(int(b))) for a, b in zip(left, right, strict=True)]
    return queries, [Choice.LEFT if a > b else Choice.RIGHT for a, b in zip(left, right, strict=True)]


def judge(server: FakeEndpoint, cache_path=None, **settings):
    settings = {"model": "seer", "prompt": "Be bright.", "url": server.url, **settings}
    return make_teacher(TeacherConfig(kind="judge", **settings), LANTERN, cache_path)


def ask(teacher, queries, seed: int = 0) -> list[Choice]:
    return teacher.answer(queries, np.random.default_rng(seed), NO_RETURNS)
