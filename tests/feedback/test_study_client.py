"""The client of a labelling service: what is tried again, what is not, and what the user reads."""

import httpx
import pytest
from fake_study import TOKEN, URL, FakeStudy

from themis_ray.errors import ConfigError, DataError
from themis_ray.feedback import study_client
from themis_ray.feedback.study_client import AnnotatorCalls, RefusedError, StudyClient, UnreachableError
from themis_ray.wire import NewAnswer


@pytest.fixture
def service():
    return FakeStudy()


@pytest.fixture
def naps(monkeypatch):
    """Time that passes only by sleeping."""
    slept = []
    monkeypatch.setattr(study_client.time, "sleep", slept.append)
    monkeypatch.setattr(study_client.time, "monotonic", lambda: sum(slept))
    return slept


def connect(service, **arguments):
    return StudyClient(URL, **{"token": TOKEN, "transport": service.transport, **arguments})


def test_broken_connections_and_busy_services_are_tried_again(service, naps):
    service.broken = [httpx.ConnectError("refused"), (503, {}), (429, {"Retry-After": "7"}), (502, {})]
    assert connect(service).study("tea")["status"] == "running"
    assert naps == [0.2, 0.4, 7.0, 1.6]
    assert len(service.calls) == 5


def test_patience_ends(service, naps):
    service.broken = [httpx.ReadTimeout("slow")] * 100
    with pytest.raises(UnreachableError, match=r"did not take GET .*/tea .*ReadTimeout.* themis serve") as caught:
        connect(service, patience_s=10.0).study("tea")
    assert "\n" not in str(caught.value)
    assert sum(naps) <= 10
    naps.clear()
    service.broken = [(503, {"Retry-After": "60"})]
    with pytest.raises(UnreachableError, match="status 503"):
        connect(service, patience_s=10.0).study("tea")
    assert naps == [], "a rest that is longer than the patience is not waited for"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 422, 500])
def test_what_is_meant_is_not_tried_again(service, naps, status):
    service.broken = [(status, {})]
    with pytest.raises(RefusedError, match=f"refused.*{status}: not now") as caught:
        connect(service).study("tea")
    assert caught.value.status == status
    assert len(service.calls) == 1


@pytest.mark.parametrize("text", ["Path '/api/v1/studies/tea' not found.", "", "[]", '{"detail": "Not Found"}'])
def test_a_404_that_is_not_the_services_own_is_tried_again(naps, text):
    """Serve's own proxy says it until the application is registered."""
    replies = [httpx.Response(404, text=text)] * 2 + [httpx.Response(200, json={"status": "running"})]
    client = StudyClient(URL, TOKEN, transport=httpx.MockTransport(lambda _: replies.pop(0)))
    assert client.study("tea") == {"status": "running"}
    assert naps == [0.2, 0.4]
    replies += [httpx.Response(404, text=text)] * 100
    with pytest.raises(UnreachableError, match="status 404"):
        client.study("tea")


def test_a_wrong_token_says_which_variable_and_shows_nothing(service):
    with pytest.raises(RefusedError, match="THEMIS_STUDY_TOKEN") as caught:
        connect(service, token="hush-hush").study("tea")
    assert "hush" not in str(caught.value)

    def repeat(request):
        return httpx.Response(500, text=f"you sent {request.headers['Authorization']}")

    with pytest.raises(RefusedError, match=r"\*\*\*") as caught:
        StudyClient(URL, "hush-hush", transport=httpx.MockTransport(repeat)).studies()
    assert "hush" not in str(caught.value)
    with pytest.raises(ConfigError, match="blanks"):
        StudyClient(URL, "two words")


def test_a_stranger_on_the_other_side_is_told_in_one_line():
    def greet(request):
        return httpx.Response(200, text="<html>\n<h1>welcome</h1>")

    with pytest.raises(RefusedError, match="something else than a labelling service") as caught:
        StudyClient(URL, TOKEN, transport=httpx.MockTransport(greet)).answers("tea")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("body", ["7", "null", "[1]", '"ok"', ""])
def test_an_answer_that_is_no_object_is_refused_in_one_line(body):
    transport = httpx.MockTransport(lambda _: httpx.Response(200, text=body))
    with pytest.raises(RefusedError, match="something else than a labelling service") as caught:
        StudyClient(URL, TOKEN, transport=transport).study("tea")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["localhost:8000", "http://a..b", "http://a\u200bb", "ftp://example.com"])
def test_what_is_no_address_is_refused(url):
    with pytest.raises(ConfigError, match="is no address"):
        StudyClient(url)


def test_the_address_may_end_in_a_slash_or_in_the_api():
    for url in (URL, f"{URL}/", f"{URL}/api/v1", f"{URL}/api/v1/"):
        assert StudyClient(url).url == URL


def test_a_clip_is_sent_once(service, tmp_path):
    path = tmp_path / "0123.webm"
    path.write_bytes(b"moving pictures")
    client = connect(service)
    client.upload_clip("tea", path)
    client.upload_clip("tea", path)
    assert service.clips == {"0123.webm": b"moving pictures"}
    assert [method for method, _ in service.calls] == ["GET", "PUT", "GET"]
    service.broken = [(403, {})]
    with pytest.raises(RefusedError, match="403"):
        client.upload_clip("tea", path)
    with pytest.raises(DataError, match="cannot be read"):
        client.upload_clip("tea", tmp_path / "absent.webm")


def test_all_answers_are_read_page_by_page(service):
    service.page_size = 2
    ids = [service.answer(f"q{number}") for number in range(5)]
    assert [row.answer_id for row in connect(service).all_answers("tea")] == ids


def test_calls_of_annotators_go_where_the_page_goes():
    calls = {
        ("POST", "/api/v1/studies/tea/join"): AnnotatorCalls.join("tea", "signed"),
        ("GET", "/api/v1/me"): AnnotatorCalls.me(),
        ("POST", "/api/v1/consent"): AnnotatorCalls.consent("1", "abc"),
        ("POST", "/api/v1/questions/before"): AnnotatorCalls.questions("before", {"age": 3}),
        ("GET", "/api/v1/assignments"): AnnotatorCalls.assignments(2),
        ("POST", "/api/v1/answers"): AnnotatorCalls.answer(
            NewAnswer(answer_id="a", assignment_id="b", choice="left", response_ms=3)
        ),
        ("POST", "/api/v1/answers/a/undo"): AnnotatorCalls.undo("a"),
        ("POST", "/api/v1/withdraw"): AnnotatorCalls.withdraw(),
        ("POST", "/api/v1/finish"): AnnotatorCalls.finish(),
    }
    for expected, call in calls.items():
        assert (call.method, call.path) == expected
        assert call.changes_something == (call.method != "GET")


def test_names_cannot_leave_their_place_in_an_address():
    assert AnnotatorCalls.undo("../../me?x=1").path == "/api/v1/answers/..%2F..%2Fme%3Fx%3D1/undo"
