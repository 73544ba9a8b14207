"""The charts, and the pages on which experimenters follow and steer their studies."""

import re
from datetime import UTC, datetime, timedelta
from xml.etree import ElementTree

import pytest
from conftest import answer, new_query
from sqlalchemy import select
from test_report import START, make_answer, make_study

from themis_ray.labeling import tables
from themis_ray.labeling.charts import study_charts
from themis_ray.labeling.notify import webhook_key
from themis_ray.labeling.report import study_report
from themis_ray.labeling.routes import dashboard, pages
from themis_ray.labeling.store.browse import Browse
from themis_ray.labeling.study import Arm, StudyConfig

SVG = "{http://www.w3.org/2000/svg}"
# What a page may not hold under `style-src 'self'; script-src 'self'`.
INLINE = re.compile(r"<style|\sstyle=|<script(?![^>]*\ssrc=)|\son\w+=|javascript:", re.IGNORECASE)


# ---------------------------------------------------------------- charts


def parse(chart):
    return ElementTree.fromstring(str(chart.svg).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))


def charts_of(answers, study, **changes):
    return {chart.key: chart for chart in study_charts(study_report(answers, study, **changes))}


def test_every_chart_has_a_title_a_description_and_numbers_on_its_marks():
    answers, study, gold = make_study()
    charts = charts_of(answers, study, gold=gold)
    assert list(charts) == ["rate", "times", "agreement", "reliability", "position", "agreement-arms"]
    ids = []
    for chart in charts.values():
        svg = parse(chart)
        assert svg.get("role") == "img"
        assert svg.get("aria-labelledby") == f"{chart.key}-title {chart.key}-desc"
        assert svg.find(f"{SVG}title").text == chart.title
        assert svg.find(f"{SVG}desc").text == chart.summary
        assert re.search(r"\d", chart.summary)
        ids += [part.get("id") for part in svg.iter() if part.get("id")]
        marks = [*svg.iter(f"{SVG}rect"), *svg.iter(f"{SVG}g")]
        assert marks
        assert all(re.search(r"\d", mark.find(f"{SVG}title").text) for mark in marks)
        assert all(part.get("style") is None for part in svg.iter())
    assert len(set(ids)) == len(ids)


def one_sided():
    """Five people who never chose the clip shown left, and contradict each other."""
    return [
        make_answer(
            10 * person + number, f"q{number}", f"a{person}", "right", is_flipped=False, arm=("x", "y")[person % 2]
        )
        if person % 2
        else make_answer(10 * person + number, f"q{number}", f"a{person}", "left", is_flipped=True, arm="x")
        for person in range(5)
        for number in range(8)
    ]


@pytest.mark.parametrize("kind", ["ordinary", "one-sided"])
def test_marks_stay_inside_the_picture(kind):
    answers, study, gold = make_study(300, seed=3)
    slow = make_answer(999, "q0000", "a09", response_ms=3_000_000, answered_at=START + timedelta(days=12))
    answers = one_sided() if kind == "one-sided" else [*answers, slow]
    drawn = [chart for chart in charts_of(answers, study, gold=gold).values() if chart.svg]
    assert len(drawn) >= 4
    for chart in drawn:
        svg = parse(chart)
        _, _, width, height = (float(number) for number in svg.get("viewBox").split())
        for part in svg.iter():
            for name, end in (("x", width), ("x1", width), ("x2", width), ("cx", width), ("y", height), ("cy", height)):
                if part.get(name):
                    assert -0.5 <= float(part.get(name)) <= end + 0.5, (chart.key, part.attrib)
        for bar in svg.iter(f"{SVG}rect"):
            assert float(bar.get("x")) + float(bar.get("width")) <= width
            assert float(bar.get("height")) >= 0


@pytest.mark.parametrize(
    "answers", [[], [make_answer(1)], [make_answer(1, choice="skip")]], ids=["none", "one", "skip"]
)
def test_charts_of_little_say_what_is_missing(answers):
    study = StudyConfig(id="s", title="S", arms=(Arm(name="one"),))
    for chart in charts_of(answers, study).values():
        assert chart.summary
        if chart.svg:
            parse(chart)


def test_bars_are_as_high_as_their_numbers():
    answers = [make_answer(number) for number in (0, 1, 2, 3, 4, 5, 10)]
    chart = charts_of(answers, StudyConfig(id="s", title="S"), now=START + timedelta(hours=1))["rate"]
    heights = [float(bar.get("height")) for bar in parse(chart).iter(f"{SVG}rect")]
    assert heights[0] == pytest.approx(heights[1])
    assert heights[3] == 0
    assert heights[5] == pytest.approx(heights[0] / 2, abs=0.02)


def test_names_are_escaped():
    answers = [make_answer(number, f"q{number % 6}", f"<b>&{number // 6}", arm="<i>") for number in range(18)]
    for chart in charts_of(answers, StudyConfig(id="s", title="S")).values():
        if chart.svg:
            parse(chart)
            assert "<b>" not in chart.svg
            assert "<i>" not in chart.svg


# ---------------------------------------------------------------- pages


@pytest.fixture
def board(lab):
    """A service with the pages in it."""
    paths = {getattr(route, "path", "") for route in lab.app.routes}
    for module, path in ((pages, "/work"), (dashboard, "/studies")):
        if path not in paths:
            lab.app.include_router(module.router)
    return lab


def form_of(client, **fields):
    """A form as a page of this browser sends it."""
    return {"csrf_token": client.headers["X-CSRF-Token"], **fields}


def post(client, path, **fields):
    # A form sends its token in a field, not in a header.
    return client.post(path, data=form_of(client, **fields), headers={"X-CSRF-Token": ""}, follow_redirects=False)


def answer_all(lab, *choices, study="cart"):
    """One person for each choice answers everything with it, by the sides of the query."""
    left_clip = new_query(0)["left"]["clip"]
    for choice in choices:
        client = lab.annotator(study)
        work = client.get("/api/v1/assignments").json()
        while work["assignments"]:
            is_flipped = left_clip not in work["assignments"][0]["left"]["url"]
            said = {"left": "right", "right": "left"}.get(choice, choice) if is_flipped else choice
            work = answer(client, work["assignments"][0], said).json()["work"]


def test_nobody_sees_a_page_without_signing_in(board):
    board.study()
    for path in (
        "/studies",
        "/studies/cart",
        "/studies/cart/live",
        "/studies/cart/queries",
        "/studies/cart/queries/q1",
    ):
        response = board.nobody().get(path)
        assert response.status_code == 401
        assert "Carts" not in response.text
        assert board.annotator().get(path).status_code == 401
    for path in ("status", "extend", "invitations", "tokens", "tokens/t-1/revoke"):
        assert board.nobody().post(f"/studies/cart/{path}", data={}).status_code == 401


def test_an_experimenter_sees_own_studies_only(board):
    board.study()
    board.study("pole")
    mine = board.member("experimenter", "pole")
    assert "/studies/pole" in mine.get("/studies").text
    assert "/studies/cart" not in mine.get("/studies").text
    assert mine.get("/studies/pole").status_code == 200
    for path in ("", "/live", "/queries", "/queries/q1"):
        assert mine.get(f"/studies/cart{path}").status_code == 404
        assert mine.get(f"/studies/nosuch{path}").status_code == 404
    for path, fields in (("status", {"status": "paused"}), ("tokens", {"name": "x"}), ("invitations", {"days": "1"})):
        assert post(mine, f"/studies/cart/{path}", **fields).status_code == 404
    assert board.service.store.studies.get("cart").status == "running"


def test_forms_without_the_token_of_the_page_change_nothing(board):
    board.study()
    admin, other = board.member(), board.member()
    for token in ("", "wrong", other.headers["X-CSRF-Token"]):
        response = admin.post("/studies/cart/status", data={"csrf_token": token, "status": "stopped"})
        assert response.status_code == 403
    assert board.service.store.studies.get("cart").status == "running"


def test_every_page_obeys_the_policy_of_the_service(board):
    arms = ({"name": "plain"}, {"name": "map"})
    board.study(num_queries=6, overlap=3, arms=arms, queries_per_annotator=6)
    answer_all(board, "left", "right", "left")
    admin = board.member()
    for path in (
        "/studies",
        "/studies/cart",
        "/studies/cart/live",
        "/studies/cart/queries",
        "/studies/cart/queries?show=disputed",
        "/studies/cart/queries/q1",
    ):
        response = admin.get(path)
        assert response.status_code == 200, path
        assert response.headers["content-type"].startswith("text/html")
        assert not INLINE.search(response.text), (path, INLINE.search(response.text))


def test_a_study_is_paused_resumed_and_stopped(board):
    board.study()
    admin = board.member()
    for status, offered in (("paused", "Resume"), ("running", "Pause"), ("stopped", "Resume")):
        response = post(admin, "/studies/cart/status", status=status)
        assert (response.status_code, response.headers["location"]) == (303, "/studies/cart")
        assert board.service.store.studies.get("cart").status == status
        assert f">{offered}</button>" in admin.get("/studies/cart").text
    assert post(admin, "/studies/cart/status", status="deleted").status_code == 422


def test_a_study_is_extended(board):
    board.study()
    admin = board.member()
    assert post(admin, "/studies/cart/extend", overlap="3", queries_per_annotator="30").status_code == 303
    config = board.service.store.studies.get("cart").config
    assert (config.overlap, config.queries_per_annotator) == (3, 30)
    revision = board.service.store.studies.get("cart").revision
    assert post(admin, "/studies/cart/extend", overlap="3", queries_per_annotator="30").status_code == 303
    assert board.service.store.studies.get("cart").revision == revision
    for overlap in ("2", "0", "-1", "many", "", "9" * 30, "\u0663"):
        response = post(admin, "/studies/cart/extend", overlap=overlap, queries_per_annotator="30")
        assert response.status_code == 422
        assert "whole number from 3 to 1000" in response.text
    assert "answers in all" not in admin.get("/studies/cart").text.lower()


def test_a_study_that_stopped_itself_is_given_more_answers(board):
    board.study(num_queries=3, overlap=2, max_answers=2)
    answer_all(board, "left")
    assert board.service.store.studies.get("cart").status == "stopped"
    admin = board.member()
    page = admin.get("/studies/cart").text
    assert ", 2 answers in all</span>" in page
    assert re.search(r'name="max_answers"[^>]* min="2" value="2"', page)
    numbers = {"overlap": "2", "queries_per_annotator": "20"}
    assert post(admin, "/studies/cart/extend", **numbers, max_answers="1").status_code == 422
    assert post(admin, "/studies/cart/extend", **numbers, max_answers="5").status_code == 303
    assert board.service.store.studies.get("cart").config.max_answers == 5
    assert post(admin, "/studies/cart/status", status="running").status_code == 303
    answer_all(board, "left")
    assert board.service.store.studies.get("cart").status == "stopped"
    assert board.service.store.studies.counts("cart").num_answers == 5


def test_a_token_is_shown_once_and_can_be_revoked(board):
    board.study()
    admin = board.member()
    page = post(admin, "/studies/cart/tokens", name="trainer <1>")
    token = re.search(r'<code id="secret">(themis_[^<]+)</code>', page.text).group(1)
    assert page.headers["cache-control"].startswith("no-store")
    assert board.program(token).get("/api/v1/studies/cart").status_code == 200
    listed = admin.get("/studies/cart").text
    assert token not in listed
    assert "trainer &lt;1&gt;" in listed
    token_id = next(row.id for row in board.service.store.access.tokens("cart") if row.name == "trainer <1>")
    assert post(admin, f"/studies/cart/tokens/{token_id}/revoke").status_code == 303
    assert board.program(token).get("/api/v1/studies/cart").status_code == 401
    assert post(admin, "/studies/cart/tokens", name=" ").status_code == 422


def test_the_key_of_webhooks_is_on_the_page_of_a_study_that_has_one(board):
    board.study()
    board.study("told", webhook_url="https://hooks.example.org/x")
    key = webhook_key(board.service.settings.secret, "told")
    assert key in board.member().get("/studies/told").text
    assert "webhook-key" not in board.member().get("/studies/cart").text


def test_invitations_let_people_in(board):
    board.study()
    admin = board.member()
    page = post(admin, "/studies/cart/invitations", role="annotator", days="3").text
    link = re.search(r'<code id="secret">http://testserver([^<]+)</code>', page).group(1)
    assert board.nobody().get(link).status_code == 200
    page = post(admin, "/studies/cart/invitations", role="experimenter", days="3").text
    link = re.search(r'<code id="secret">http://testserver([^<]+)</code>', page).group(1)
    new = board.nobody()
    assert new.post(link, data={"name": "Eve"}, follow_redirects=True).status_code == 200
    assert new.get("/studies/cart").status_code == 200
    assert post(admin, "/studies/cart/invitations", role="admin", days="3").status_code == 422
    assert post(admin, "/studies/cart/invitations", role="annotator", days="1000").status_code == 422


def test_signing_out_ends_the_session(board):
    admin = board.member()
    assert admin.get("/studies").status_code == 200
    assert post(admin, "/sign-out").status_code == 303
    admin.cookies.clear()
    assert admin.get("/studies").status_code == 401


def test_the_numbers_of_a_study_are_on_its_page(board):
    board.study(num_queries=4, overlap=3, queries_per_annotator=4)
    answer_all(board, "left", "right")
    admin = board.member()
    page = admin.get("/studies/cart").text
    assert "8 of 12 wanted" in page
    assert "2 active in the last 5 minutes" in page
    assert page.count('<svg viewBox="0 0 480') >= 3
    live = admin.get("/studies/cart/live").text
    assert "8 of 12 wanted" in live
    assert "<html" not in live
    assert "66 %" in admin.get("/studies").text


@pytest.mark.parametrize("column", dashboard.COLUMNS.values(), ids=lambda column: column.key)
def test_people_can_be_sorted_by_every_column(board, column):
    answers, study, gold = make_study(300)
    people = dashboard.sort_people(study_report(answers, study, gold=gold).annotators, column)
    values = [column.value(row) for row in people]
    known = [value for value in values if value is not None]
    assert values[: len(known)] == sorted(known, reverse=column.direction == "descending")
    assert len(people) == 12


def test_a_column_or_filter_that_is_not_there_is_refused(board):
    board.study()
    admin = board.member()
    assert admin.get("/studies/cart?sort=height").status_code == 422
    response = admin.get("/studies/cart/queries?show=odd")
    assert response.status_code == 422
    assert "Known: all, disputed" in response.text
    assert admin.get("/studies/cart/queries?page=-3").status_code == 200
    assert admin.get("/studies/cart/queries/nosuch").status_code == 404


def test_queries_are_found_by_what_was_said(board):
    program = board.program(board.study(num_queries=0, overlap=2, queries_per_annotator=10))
    queries = [new_query(number) for number in range(3)]
    queries.append(new_query(3, kind="gold", gold_choice="right", about={"run": "walker-3", "checkpoint": 12}))
    program.post("/api/v1/studies/cart/queries", json={"queries": queries})
    answer_all(board, "left", "right")
    browse = Browse(board.service.store.database)
    rows, total = browse.queries("cart")
    assert (total, [row.id for row in rows][:3]) == (4, ["q0", "q1", "q2"])
    assert [(row.left, row.right, row.equal, row.skip) for row in rows if row.kind == "ordinary"] == [(1, 1, 0, 0)] * 3
    assert [row.disagreement for row in rows if row.kind == "ordinary"] == [0.5] * 3
    assert browse.queries("cart", "disputed")[1] >= 3
    assert browse.queries("cart", "unanimous")[1] == 0
    assert browse.queries("cart", "waiting") == ([], 0)
    assert browse.queries("cart", "practice") == ([], 0)
    assert [row.id for row in browse.queries("cart", "gold")[0]] == ["q3"]
    page, total = browse.queries("cart", offset=2, limit=1)
    assert ([row.id for row in page], total) == (["q2"], 4)
    admin = board.member()
    page = admin.get("/studies/cart/queries?show=gold").text
    assert "run walker-3, checkpoint 12" in page
    assert "1 query" in page


def test_the_most_disputed_come_first(board):
    board.study(num_queries=2, overlap=4, queries_per_annotator=2)
    said_by_person = [("left", "left"), ("left", "left"), ("left", "right"), ("right", "equal")]
    for choices in said_by_person:
        client = board.annotator()
        for assignment in client.get("/api/v1/assignments").json()["assignments"]:
            with board.service.store.database.read() as connection:
                row = connection.execute(
                    select(tables.assignment).where(tables.assignment.c.id == assignment["assignment_id"])
                ).one()
            said = dict(zip(("q0", "q1"), choices, strict=True))[row.query_id]
            answer(client, assignment, {"left": "right", "right": "left"}.get(said, said) if row.is_flipped else said)
    rows, total = Browse(board.service.store.database).queries("cart", "disputed")
    assert total == 2
    assert [(row.id, row.disagreement) for row in rows] == [("q1", 0.5), ("q0", 0.25)]


def test_a_query_is_shown_with_its_clips_and_answers(board):
    program = board.program(board.study(num_queries=0, overlap=3))
    about = {"env_id": "Walker2d-v5", "reward_version": 12, "note": "<script>alert(1)</script>"}
    program.post("/api/v1/studies/cart/queries", json={"queries": [new_query(0, about=about)]})
    answer_all(board, "left", "left", "right")
    page = board.member().get("/studies/cart/queries/q0").text
    assert page.count("<video ") == 2
    assert "2 votes" in page
    assert "1 vote<" in page
    assert "Walker2d-v5" in page
    assert "<script>alert" not in page
    assert "left-0" in page
    assert len(re.findall(r"<td class=\"text\">(left|right)", page)) == 3


def test_what_people_gave_is_said_in_words(board):
    assert dashboard._said(make_answer(1, choice="skip")) == "can't tell"
    assert dashboard._said(make_answer(1, choice=None, rating=0.5)) == "0.50"
    assert dashboard._said(make_answer(1, choice=None, steps=(1, 1, 0, -1))) == "2 good, 1 bad frames"
    assert dashboard._said(make_answer(1, choice=None, actions=(0, 1))) == "2 actions"


def test_people_are_active_for_five_minutes():
    now = datetime.now(UTC)
    answers = [
        make_answer(1, answered_at=now - timedelta(minutes=4)),
        make_answer(2, person="a2", answered_at=now - timedelta(minutes=6)),
    ]
    assert dashboard._num_active(study_report(answers, StudyConfig(id="s", title="S"))) == 1


def test_a_study_is_made_on_the_page_of_all_studies(board):
    person = board.member("experimenter")
    assert "name: settings" not in person.get("/studies").text
    made = post(person, "/studies", settings="id: walk\ntitle: Who walks better?\noverlap: 2")
    assert made.headers["location"] == "/studies/walk"
    assert "Who walks better?" in person.get("/studies/walk").text
    wrong = post(person, "/studies", settings="id: walk")
    assert wrong.status_code == 422
    assert "title" in wrong.text
    assert "What was done" not in person.get("/studies").text


def test_an_admin_lets_people_in_and_sees_what_was_done(board):
    admin, person = board.member(), board.member("experimenter")
    shown = post(admin, "/members/invitations", role="experimenter", days="2")
    assert "http://testserver/join/" in shown.text
    assert "valid for 2 days" in shown.text
    assert "invite.experimenter" in admin.get("/studies").text
    assert post(person, "/members/invitations", role="admin", days="2").status_code == 403
    assert post(admin, "/members/invitations", role="annotator", days="2").status_code in (404, 422)
