"""What every teacher does, whatever it prefers."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lantern import LANTERN, lantern_segment

from themis_ray.data import Choice, Query, Segment
from themis_ray.feedback import TEACHERS, Teacher, TeacherConfig, make_teacher

NO_RETURNS = (np.empty(0, np.float64), np.empty(0, np.int64))
SOME_RETURNS = (np.array([-30.0, 12.0]), np.array([20, 40]))
POSITIVE_RETURNS = (np.array([30.0, 12.0]), np.array([20, 40]))


def prefer_larger_return(left: Segment, right: Segment) -> str:
    """A scripted teacher."""
    return "left" if left.true_return > right.true_return else "right"


CONFIGS = {
    **{name: TeacherConfig(name=name) for name in TEACHERS},
    **{f"{name}-bpref": TeacherConfig(name=name, bpref_compat=True) for name in TEACHERS},
    "scripted": TeacherConfig(kind="scripted", function=f"{__name__}:prefer_larger_return"),
    "judge": TeacherConfig(kind="judge", url="http://127.0.0.1/v1", model="seer", prompt="Be bright.", num_frames=1),
    "judge-both-orders": TeacherConfig(
        kind="judge", url="http://127.0.0.1/v1", model="seer", prompt="p", num_frames=1, ask_both_orders=True
    ),
}
every_teacher = pytest.mark.parametrize("name", CONFIGS)


class Seer(BaseHTTPRequestHandler):
    """A model behind a chat endpoint that prefers the clip of the larger number written into its pixels."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        urls = [part["image_url"]["url"] for part in body["messages"][1]["content"] if part["type"] == "image_url"]
        left, right = (read_number(url) for url in urls)
        word = "equal" if left == right else "left" if left > right else "right"
        data = json.dumps({"choices": [{"message": {"content": json.dumps({"choice": word})}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


def read_number(url: str) -> int:
    image = cv2.imdecode(np.frombuffer(base64.b64decode(url.partition(",")[2]), np.uint8), cv2.IMREAD_COLOR)
    blue, green, red = (int(value) for value in image[0, 0])
    return (red * 256 + green) * 256 + blue


@pytest.fixture(scope="module")
def seer_url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Seer)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True, scope="module")
def _no_proxy() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield


def make_queries(num_queries: int, seed: int = 0, length: int = 6) -> list[Query]:
    """Returns queries of random rewards, whose sum is to be seen too, for the teacher that looks at frames."""
    rng = np.random.default_rng(seed)

    def segment() -> Segment:
        rewards = rng.normal(size=length).astype(np.float32)
        number = int((rewards.sum(dtype=np.float64) + 100.0) * 2**16)
        return lantern_segment(number, rewards)

    return [Query(segment(), segment()) for _ in range(num_queries)]


def make(name: str, seer_url: str, is_sure: bool = False) -> Teacher:
    """Returns a teacher; one that is sure neither errs by chance nor mixes up sides."""
    config = CONFIGS[name]
    if config.kind == "judge":
        config = config.model_copy(update={"url": seer_url})
    elif is_sure and config.kind == "synthetic":
        config = config.model_copy(update={"eps_mistake": 0.0, "beta": -1.0})
    return make_teacher(config, LANTERN)


def answer(teacher: Teacher, queries: list[Query], seed: int = 0, returns=NO_RETURNS) -> list[Choice]:
    return teacher.answer(queries, np.random.default_rng(seed), returns)


@every_teacher
@pytest.mark.parametrize("returns", [NO_RETURNS, SOME_RETURNS, POSITIVE_RETURNS], ids=["none", "negative", "positive"])
@given(num_queries=st.integers(0, 12), seed=st.integers(0, 100), feedback_session=st.integers(0, 3))
@settings(max_examples=15)
def test_one_legal_choice_per_query(
    seer_url: str, name: str, returns, num_queries: int, seed: int, feedback_session: int
) -> None:
    queries = make_queries(num_queries, seed)
    choices = make(name, seer_url).answer(queries, np.random.default_rng(seed), returns, feedback_session)
    assert isinstance(choices, list)
    assert len(choices) == num_queries
    assert all(type(choice) is Choice for choice in choices)
    assert {str(choice) for choice in choices} <= {"left", "right", "equal", "skip"}


@every_teacher
def test_same_rng_same_answers(seer_url: str, name: str) -> None:
    queries = make_queries(100)
    assert answer(make(name, seer_url), queries, 3) == answer(make(name, seer_url), queries, 3)


@every_teacher
def test_as_many_numbers_are_drawn_for_as_many_queries(seer_url: str, name: str) -> None:
    """Whatever the answers are, the stream of the next session begins at the same place."""
    rngs = [np.random.default_rng(0), np.random.default_rng(0)]
    for rng, seed in zip(rngs, (1, 2), strict=True):
        make(name, seer_url).answer(make_queries(10, seed), rng, NO_RETURNS)
    assert rngs[0].random() == rngs[1].random()


@every_teacher
def test_answers_are_in_the_order_of_the_queries(seer_url: str, name: str) -> None:
    """Sides that nobody mixes up, asked in any order, get the same answers."""
    queries = make_queries(40)
    order = np.random.default_rng(1).permutation(len(queries))
    straight = answer(make(name, seer_url, is_sure=True), queries)
    shuffled = answer(make(name, seer_url, is_sure=True), [queries[i] for i in order])
    assert shuffled == [straight[i] for i in order]


@every_teacher
def test_swapping_sides_swaps_the_words_of_a_teacher_without_chance(seer_url: str, name: str) -> None:
    queries = make_queries(60)
    straight = answer(make(name, seer_url, is_sure=True), queries)
    swapped = answer(make(name, seer_url, is_sure=True), [Query(q.right, q.left) for q in queries])
    mirror = {Choice.LEFT: Choice.RIGHT, Choice.RIGHT: Choice.LEFT}
    assert swapped == [mirror.get(choice, choice) for choice in straight]


@every_teacher
def test_better_than_chance(seer_url: str, name: str) -> None:
    queries = make_queries(300)
    choices = answer(make(name, seer_url), queries)
    is_told = [choice in (Choice.LEFT, Choice.RIGHT) for choice in choices]
    is_right = [
        (choice is Choice.LEFT) == (query.left.true_return > query.right.true_return)
        for query, choice in zip(queries, choices, strict=True)
    ]
    assert np.mean(np.array(is_right)[is_told]) > 0.7
    assert np.mean(is_told) > 0.5


@every_teacher
def test_the_name_is_the_configs(seer_url: str, name: str) -> None:
    assert make(name, seer_url).name == CONFIGS[name].teacher_name


@every_teacher
def test_queries_are_left_as_they_were(seer_url: str, name: str) -> None:
    queries = make_queries(10)
    ids = [query.id for query in queries]
    answer(make(name, seer_url), queries)
    assert [query.id for query in queries] == ids
