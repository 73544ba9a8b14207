"""The API as its callers see it, and the faults of the platform that it replaces."""

import concurrent.futures

import pytest
from conftest import CLIP_BYTES, answer, clip_name, new_query
from sqlalchemy.exc import OperationalError, TimeoutError

from themis_ray.labeling import tables
from themis_ray.labeling.clip_server import clip_path
from themis_ray.labeling.export import read_answers
from themis_ray.labeling.signing import check_clip


def work_through(client, choice="left", limit=100):
    """Answers until nothing is left; returns the ids of the answers."""
    given = []
    work = client.get("/api/v1/assignments").json()
    while work["assignments"] and len(given) < limit:
        response = answer(client, work["assignments"][0], choice)
        assert response.status_code == 200, response.text
        given.append(response.json()["answer_id"])
        work = response.json()["work"]
    return given


def test_what_was_acknowledged_can_be_read_at_once(lab):
    program = lab.program(lab.study())
    ada = lab.annotator()
    for assignment in ada.get("/api/v1/assignments").json()["assignments"]:
        receipt = answer(ada, assignment).json()
        stored = program.get("/api/v1/studies/cart/answers").json()["answers"]
        assert stored[-1]["answer_id"] == receipt["answer_id"]


def test_an_answer_that_is_sent_twice_is_one_answer(lab):
    program = lab.program(lab.study())
    ada = lab.annotator()
    (first, *_) = ada.get("/api/v1/assignments").json()["assignments"]
    once, again = (answer(ada, first, answer_id="one-and-only") for _ in range(2))
    assert [once.json()["is_duplicate"], again.json()["is_duplicate"]] == [False, True]
    assert once.json()["work"]["progress"] == again.json()["work"]["progress"]
    assert len(program.get("/api/v1/studies/cart/answers").json()["answers"]) == 1
    assert answer(ada, first).status_code == 409  # a second answer to the same question
    (other, *_) = lab.annotator().get("/api/v1/assignments").json()["assignments"]
    assert answer(lab.annotator(), other, answer_id="one-and-only").status_code in (404, 409)


def test_overlap_is_exact_with_many_people_at_once(lab):
    program = lab.program(lab.study(num_queries=6, overlap=3, queries_per_annotator=6))
    people = [lab.annotator() for _ in range(12)]
    with concurrent.futures.ThreadPoolExecutor(12) as executor:
        given = [len(ids) for ids in executor.map(work_through, people)]
    stored = program.get("/api/v1/studies/cart/answers").json()
    by_query = {}
    for row in stored["answers"]:
        by_query.setdefault(row["query_id"], []).append(row["annotator_id"])
    assert sum(given) == len(stored["answers"]) == 18
    assert {len(people) for people in by_query.values()} == {3}
    assert all(len(set(people)) == len(people) for people in by_query.values())
    assert stored["num_waiting"] == 0


def test_equal_and_skip_are_different_answers(lab):
    program = lab.program(lab.study())
    ada = lab.annotator()
    for assignment, choice in zip(
        ada.get("/api/v1/assignments?count=2").json()["assignments"], ("equal", "skip"), strict=True
    ):
        assert answer(ada, assignment, choice).status_code == 200
    assert [row["choice"] for row in program.get("/api/v1/studies/cart/answers").json()["answers"]] == ["equal", "skip"]


def test_choices_are_stored_in_the_order_of_the_query(lab):
    program = lab.program(lab.study(num_queries=40, queries_per_annotator=40))
    work_through(lab.annotator(), "left")
    rows = program.get("/api/v1/studies/cart/answers").json()["answers"]
    assert {(row["is_flipped"], row["choice"]) for row in rows} == {(True, "right"), (False, "left")}


def test_no_answer_without_consent_to_the_text_as_it_is(lab):
    lab.study(consent={"version": "1", "text": "We store what you choose."})
    ada = lab.annotator()
    session = ada.get("/api/v1/me").json()
    assert session["stage"] == "consent"
    assert ada.get("/api/v1/assignments").json()["assignments"] == []
    assert answer(ada, {"assignment_id": "x"}).status_code == 404
    wrong = {"version": "1", "hash": "0" * 64, "agrees": True}
    assert ada.post("/api/v1/consent", json=wrong).status_code == 409
    consent = lab.service.store.studies.get("cart").config.consent
    right = {"version": "1", "hash": consent.hash, "agrees": True}
    assert ada.post("/api/v1/consent", json=right).json()["stage"] == "work"
    assert len(ada.get("/api/v1/assignments").json()["assignments"]) == 3


def test_practice_tells_what_was_expected(lab):
    program = lab.program(lab.study(num_practice=2, num_queries=3))
    practice = [new_query(100 + i, kind="practice", gold_choice="left") for i in range(2)]
    assert program.post("/api/v1/studies/cart/queries", json={"queries": practice}).status_code == 200
    ada = lab.annotator()
    work = ada.get("/api/v1/assignments").json()
    assert work["stage"] == "practice"
    told = []
    while work["stage"] == "practice":
        receipt = answer(ada, work["assignments"][0]).json()
        told.append(receipt["feedback"])
        work = receipt["work"]
    assert len(told) == 2
    assert all("clip is better" in text for text in told)
    assert work["progress"]["num_answered"] == 0
    assert not any(assignment["is_practice"] for assignment in work["assignments"])


def test_withdrawal_leaves_nothing_but_a_tombstone(lab):
    program = lab.program(lab.study(num_queries=3, queries_per_annotator=3))
    ada = lab.annotator()
    work_through(ada)
    assert len(program.get("/api/v1/studies/cart/answers").json()["answers"]) == 3
    assert ada.post("/api/v1/withdraw").json()["stage"] == "withdrawn"
    page = program.get("/api/v1/studies/cart/answers").json()
    assert page["answers"] == []
    assert page["withdrawn"] == [ada.annotator_id]
    assert page["num_waiting"] == 3
    assert len(work_through(lab.annotator())) == 3


def test_what_people_say_about_themselves_is_read_by_those_of_the_study(lab):
    age = {"kind": "choice", "id": "age", "text": "Of age?", "options": ["yes", "no"]}
    often = {"kind": "scale", "id": "often", "text": "How often?"}
    words = {"kind": "text", "id": "words", "text": "Anything?"}
    program = lab.program(lab.study(num_queries=1, before=[age, often], after=[words]))
    ada, bob = lab.annotator(), lab.annotator()
    for person, number in ((ada, 3), (bob, 5)):
        given = {"answers": {"age": "yes", "often": number}}
        assert person.post("/api/v1/questions/before", json=given).status_code == 200
    work_through(ada)
    ada.post("/api/v1/finish")
    assert ada.post("/api/v1/questions/after", json={"answers": {"words": "fünf"}}).status_code == 200
    rows = program.get("/api/v1/studies/cart/responses").json()
    said = {(row["annotator_id"], row["which"]): row["answers"] for row in rows}
    assert said == {
        (ada.annotator_id, "before"): {"age": "yes", "often": 3},
        (ada.annotator_id, "after"): {"words": "fünf"},
        (bob.annotator_id, "before"): {"age": "yes", "often": 5},
    }
    ada.post("/api/v1/withdraw")
    assert {row["annotator_id"] for row in program.get("/api/v1/studies/cart/responses").json()} == {bob.annotator_id}
    assert lab.member("experimenter").get("/api/v1/studies/cart/responses").status_code == 404
    assert bob.get("/api/v1/studies/cart/responses").status_code == 401
    assert lab.member().get("/api/v1/studies/none/responses").status_code == 404


def test_undo_brings_the_query_back_first(lab):
    program = lab.program(lab.study())
    ada = lab.annotator()
    (first, *_) = ada.get("/api/v1/assignments").json()["assignments"]
    answer_id = answer(ada, first).json()["answer_id"]
    work = ada.post(f"/api/v1/answers/{answer_id}/undo").json()
    assert work["assignments"][0]["assignment_id"] == first["assignment_id"]
    assert work["progress"]["num_answered"] == 0
    assert program.get("/api/v1/studies/cart/answers").json()["undone"] == [answer_id]
    assert answer(ada, first, "equal").status_code == 200


def test_a_paused_study_gives_out_no_work_and_goes_on_later(lab):
    lab.study()
    admin, ada = lab.member(), lab.annotator()
    admin.post("/api/v1/studies/cart/status", json={"status": "paused"})
    assert ada.get("/api/v1/assignments").json() == {
        "stage": "work",
        "assignments": [],
        "progress": {"num_answered": 0, "num_total": 20},
        "is_waiting": True,
    }
    admin.post("/api/v1/studies/cart/status", json={"status": "running"})
    assert len(ada.get("/api/v1/assignments").json()["assignments"]) == 3


def test_clips_are_addressed_by_signature_and_stored_as_sent(lab):
    lab.study()
    (first, *_) = lab.annotator().get("/api/v1/assignments").json()["assignments"]
    path, _, query = first["left"]["url"].removeprefix("http://127.0.0.1:9/clips/").partition("?")
    study, name = path.split("/")
    parts = dict(part.split("=") for part in query.split("&"))
    secret = lab.service.settings.secret
    assert check_clip(secret, study, name, parts["until"], parts["signature"], 0.0)
    assert not check_clip(secret, "boat", name, parts["until"], parts["signature"], 0.0)
    assert clip_path(lab.service.settings.clips_folder, "cart", name).read_bytes() == CLIP_BYTES


@pytest.mark.parametrize(
    ("name", "body", "status"),
    [
        ("%2e%2e%2f%2e%2e%2fx.webm", CLIP_BYTES, 404),
        ("x.webm", CLIP_BYTES, 422),
        (clip_name(7), b"<html>", 422),
        (clip_name(7).replace("webm", "mp4"), CLIP_BYTES, 422),
        (clip_name(0), CLIP_BYTES + b"other", 409),
        (clip_name(7), CLIP_BYTES + b"\0" * 21 * 2**20, 413),
    ],
)
def test_what_is_no_clip_is_refused(lab, name, body, status):
    program = lab.program(lab.study())
    response = program.put(f"/api/v1/studies/cart/clips/{name}", content=body)
    assert response.status_code == status
    assert "error" in response.json()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"left": {"segment_id": "s", "clip": clip_name(99), "num_frames": 5}}, "Send clips before queries"),
        ({"kind": "gold"}, "need gold_choice"),
        ({"gold_choice": "left"}, "ordinary ones have none"),
        ({"right": None}, "two sides"),
        ({"feedback": "rating", "right": None}, "is rating"),
    ],
)
def test_a_query_that_makes_no_sense_is_refused_in_one_line(lab, change, message):
    program = lab.program(lab.study())
    response = program.post("/api/v1/studies/cart/queries", json={"queries": [new_query(50) | change]})
    assert response.status_code == 422
    assert message in response.json()["error"]
    assert "\n" not in response.json()["error"]


def test_known_queries_change_nothing(lab):
    program = lab.program(lab.study(num_queries=2))
    queries = {"queries": [new_query(0), new_query(1), new_query(2)]}
    assert program.post("/api/v1/studies/cart/queries", json=queries).json() == {"num_new": 1, "num_known": 2}


def test_more_can_be_asked_for(lab):
    lab.study(num_queries=2, queries_per_annotator=2)
    admin = lab.member()
    assert len(work_through(lab.annotator())) == 2
    assert lab.annotator().get("/api/v1/assignments").json()["is_waiting"]
    extended = admin.post("/api/v1/studies/cart/extend", json={"overlap": 2}).json()
    assert extended["num_waiting"] == 2
    assert len(work_through(lab.annotator())) == 2
    assert admin.post("/api/v1/studies/cart/extend", json={"overlap": 1}).status_code == 422
    assert "takes any number" in admin.post("/api/v1/studies/cart/extend", json={"max_answers": 9}).json()["error"]
    as_it_was = {"id": "cart", "title": "Carts", "queries_per_annotator": 2}
    assert admin.post("/api/v1/studies", json=as_it_was).json()["settings"]["overlap"] == 2
    assert admin.post("/api/v1/studies", json=as_it_was | {"title": "Boats"}).status_code == 409


def test_a_study_of_an_older_version_is_read_without_what_is_gone(lab):
    lab.study()
    with lab.service.store.database.write() as connection:
        settings = connection.execute(tables.study.select()).one().settings
        older = settings[:-1] + ', "is_gone": 1}'
        connection.execute(tables.study.update().values(settings=older))
    assert lab.service.store.studies.get("cart").config.title == "Carts"


@pytest.mark.parametrize("has_gold", [True, False])
def test_gold_weighs_answers_where_every_query_is_asked_once(lab, has_gold, tmp_path):
    program = lab.program(lab.study(num_queries=40, queries_per_annotator=40, gold_share=0.5, min_gold_accuracy=0.6))
    if has_gold:
        gold = [new_query(100 + number, kind="gold", gold_choice="equal") for number in range(8)]
        assert program.post("/api/v1/studies/cart/queries", json={"queries": gold}).status_code == 200
    ada = lab.annotator()
    work_through(ada, "left")
    expected = 0.0 if has_gold else 1.0
    (person,) = program.get("/api/v1/studies/cart/report").json()["annotators"]
    assert person["weight"] == expected
    assert {row["weight"] for row in program.get("/api/v1/studies/cart/answers").json()["answers"]} == {expected}
    path = tmp_path / "answers.jsonl"
    path.write_bytes(program.get("/api/v1/studies/cart/export?format=jsonl").content)
    assert {row.weight for row in read_answers(path)} == {expected}


def test_bad_answers_are_refused_in_one_line(lab):
    lab.study(min_watched_s=0.5)
    ada = lab.annotator()
    (first, *_) = ada.get("/api/v1/assignments").json()["assignments"]
    for change, status in (
        ({"choice": "both"}, 422),
        ({"choice": None}, 422),
        ({"choice": None, "rating": 0.5}, 422),
        ({"rating": 0.5}, 422),
        ({"response_ms": -1}, 422),
        ({"watched_ms": 100}, 422),
        ({"surprise": 1}, 422),
        ({"answer_id": "no spaces"}, 422),
    ):
        response = answer(ada, first, **({"choice": "left"} | change))
        assert response.status_code == status, change
        assert "\n" not in response.json()["error"]
    assert answer(ada, first).status_code == 200


@pytest.mark.parametrize("error", [TimeoutError("no connection"), OperationalError("", {}, Exception("locked"))])
def test_a_database_that_does_not_answer_is_busy(lab, monkeypatch, error):
    program = lab.program(lab.study())

    def fail(*_):
        raise error

    monkeypatch.setattr(lab.service.store.studies, "get", fail)
    response = program.get("/api/v1/studies/cart")
    assert (response.status_code, response.headers["Retry-After"]) == (503, "2")


def test_the_document_describes_every_call(lab):
    document = lab.member().get("/api/v1/openapi.json").json()
    calls = [call for methods in document["paths"].values() for call in methods.values()]
    assert len(calls) > 25
    assert all(call.get("description") for call in calls)
