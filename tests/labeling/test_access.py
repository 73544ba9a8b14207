"""Who may read and do what: nobody reads anything without proof, and proof of one study opens no other."""

import re
import secrets
import time

import pytest
from conftest import answer, clip_name, new_query
from label_stores import run_threads

from themis_ray.errors import ConfigError
from themis_ray.labeling import tables
from themis_ray.labeling.cookies import annotator_cookie
from themis_ray.labeling.routes import dashboard, pages
from themis_ray.labeling.security import SESSION_COOKIE, Signer, read_secret
from themis_ray.labeling.store import ForbiddenError

PUBLIC = {"/healthz", "/readyz"}
# What is put for each parameter of a path.
VALUES = {
    "study": "cart",
    "name": clip_name(0),
    "query_id": "q0",
    "annotator_id": "a-1",
    "token_id": "t-1",
    "member_id": "m-1",
    "which": "before",
    "answer_id": "x",
}


def operations(app):
    """Yields (method, path with values, path pattern) of everything in the OpenAPI document."""
    for pattern, methods in app.openapi()["paths"].items():
        path = re.sub(r"\{(\w+)\}", lambda match: VALUES[match[1]], pattern)
        yield from ((method.upper(), path, pattern) for method in methods)


def test_nobody_reads_or_does_anything(lab):
    lab.study()
    nobody = lab.nobody()
    seen = set()
    for method, path, pattern in operations(lab.app):
        response = nobody.request(method, path, json={})
        if pattern in PUBLIC:
            assert response.status_code == 200, path
        elif pattern.endswith("/join"):
            assert response.status_code == 422, path  # no invitation
        else:
            assert response.status_code in (401, 422), (method, path, response.status_code)
            assert "cart" not in response.text
            seen.add(pattern)
    assert len(seen) > 20
    assert nobody.get("/api/v1/openapi.json").status_code == 401
    assert nobody.get("/metrics").status_code == 401


def test_pages_show_nobody_anything_but_how_to_sign_in(lab):
    lab.study()
    nobody, person = lab.nobody(), lab.member("experimenter")
    shown = [route.path for route in (*pages.router.routes, *dashboard.router.routes) if "GET" in route.methods]
    assert {"/", "/work", "/studies", "/studies/{study}", "/studies/{study}/queries/{query_id}"} <= set(shown)
    for pattern in shown:
        path = re.sub(r"\{(\w+)\}", lambda match: VALUES.get(match[1], "x"), pattern)
        for client in (nobody, person):
            response = client.get(path, headers={"Accept": "text/html"}, follow_redirects=False)
            assert "Carts" not in response.text, path
            assert response.status_code < 500, path


def test_a_token_of_one_study_reads_nothing_of_another(lab):
    lab.study()
    other = lab.program(lab.study("boat"))
    assert other.get("/api/v1/studies/boat").status_code == 200
    assert [row["id"] for row in other.get("/api/v1/studies").json()] == ["boat"]
    about_study = [row for row in operations(lab.app) if "/studies/{study}" in row[2] and "join" not in row[2]]
    assert len(about_study) >= 14
    for method, path, _ in about_study:
        response = other.request(method, path, json={"queries": [new_query(1)], "name": "x", "status": "paused"})
        assert response.status_code in (404, 422), (method, path, response.status_code)
        assert "Carts" not in response.text
    for path in ("/api/v1/audit", "/metrics"):
        assert other.get(path).status_code in (401, 403)
    assert other.post("/api/v1/members/invitations", json={}).status_code == 403
    assert other.post("/api/v1/studies", json={"id": "new", "title": "New"}).status_code == 403


def test_an_experimenter_sees_their_own_studies_only(lab):
    lab.study()
    lab.study("boat")
    person = lab.member("experimenter", "boat")
    assert [row["id"] for row in person.get("/api/v1/studies").json()] == ["boat"]
    assert person.get("/api/v1/studies/cart").status_code == 404
    assert person.post("/api/v1/studies", json={"id": "new", "title": "New"}).status_code == 201
    assert person.get("/api/v1/studies/new").status_code == 200
    assert person.get("/api/v1/audit").status_code == 403
    assert {row["id"] for row in lab.member().get("/api/v1/studies").json()} == {"cart", "boat", "new"}


def test_who_sends_the_settings_of_a_study_of_others_does_not_get_into_it(lab):
    ada, bob, admin = lab.member("experimenter"), lab.member("experimenter"), lab.member()
    settings = {"id": "new", "title": "New"}
    for _ in range(2):
        assert ada.post("/api/v1/studies", json=settings).status_code == 201
    assert admin.post("/api/v1/studies", json=settings).status_code == 201
    form = {"csrf_token": bob.headers["X-CSRF-Token"], "settings": "id: new\ntitle: New"}
    for title in ("New", "Old"):
        refused = bob.post("/api/v1/studies", json=settings | {"title": title})
        assert refused.status_code == 409
        assert refused.json()["error"] == "there is a study 'new' already. Choose another id."
    assert bob.post("/studies", data=form, follow_redirects=False).status_code == 409
    assert bob.get("/api/v1/studies/new").status_code == 404
    assert bob.get("/studies/new").status_code == 404


def test_an_annotator_is_no_experimenter_and_sees_own_work_only(lab):
    lab.study()
    ada, bob = lab.annotator(), lab.annotator()
    for method, path, pattern in operations(lab.app):
        if "/studies/" in pattern and "join" not in pattern:
            assert ada.request(method, path, json={}).status_code in (401, 422), path
    (first, *_) = ada.get("/api/v1/assignments").json()["assignments"]
    assert answer(bob, first).status_code == 404
    given = answer(ada, first)
    assert given.status_code == 200
    assert bob.post(f"/api/v1/answers/{given.json()['answer_id']}/undo").status_code == 404


def test_what_changes_something_needs_the_csrf_token_of_the_session(lab):
    lab.study()
    ada, bob = lab.annotator(), lab.annotator()
    (first, *_) = ada.get("/api/v1/assignments").json()["assignments"]
    own = ada.headers.pop("X-CSRF-Token")
    assert answer(ada, first).status_code == 403
    ada.headers["X-CSRF-Token"] = bob.headers["X-CSRF-Token"]
    assert answer(ada, first).status_code == 403
    ada.headers["X-CSRF-Token"] = own
    assert answer(ada, first).status_code == 200
    admin = lab.member()
    del admin.headers["X-CSRF-Token"]
    assert admin.get("/api/v1/studies").status_code == 200
    assert admin.post("/api/v1/studies/cart/status", json={"status": "paused"}).status_code == 403


def test_cookies_are_out_of_reach_of_scripts_and_other_sites(lab):
    lab.study()
    entrance = lab.service.entrance(lab.service.store.studies.get("cart"))
    request = {"invitation": entrance.split("invitation=")[1]}
    cookie = lab.nobody().post("/api/v1/studies/cart/join", json=request).headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie


@pytest.mark.parametrize("forged", ["", "x", "a.b", "W10.W10"])
def test_forged_sessions_and_invitations_are_nothing(lab, forged):
    lab.study()
    nobody = lab.nobody()
    for name in (SESSION_COOKIE, annotator_cookie("cart")):
        nobody.cookies.set(name, forged)
    assert nobody.get("/api/v1/me").status_code == 401
    assert nobody.get("/studies").status_code == 401
    assert nobody.post("/api/v1/studies/cart/join", json={"invitation": forged or " "}).status_code == 403


def test_a_session_of_one_kind_is_none_of_the_other(lab):
    lab.study()
    member, person = lab.member(), lab.annotator()
    swapped = lab.nobody()
    swapped.cookies.set(SESSION_COOKIE, person.cookies[annotator_cookie("cart")])
    swapped.cookies.set(annotator_cookie("cart"), member.cookies[SESSION_COOKIE])
    for path in ("/api/v1/me", "/api/v1/studies", "/studies", "/s/cart"):
        assert swapped.get(path).status_code in (401, 403), path


def test_an_invitation_of_another_study_role_or_time_does_not_let_in(lab):
    lab.study()
    lab.study("boat")
    signer = lab.service.signer
    wrong = [
        signer.make_invitation("annotator", "boat"),
        signer.make_invitation("experimenter", "cart"),
        signer.make_invitation("annotator", "cart", -1.0),
        Signer(b"another secret that is as long as this").make_invitation("annotator", "cart"),
    ]
    for invitation in wrong:
        assert lab.nobody().post("/api/v1/studies/cart/join", json={"invitation": invitation}).status_code == 403


def test_a_member_comes_in_once_by_an_invitation_and_not_after_the_end(lab):
    access = lab.service.store.access
    member = access.accept_invitation("nonce", "admin", "Admin", None)
    with pytest.raises(ForbiddenError, match="used before"):
        access.accept_invitation("nonce", "admin", "Admin", None)
    boss = lab.member()
    person = lab.member("experimenter")
    found = [row["actor"] for row in boss.get("/api/v1/audit").json() if row["act"] == "member.join"]
    assert member.id in found
    assert boss.delete(f"/api/v1/members/{found[0]}").status_code == 204
    assert person.get("/api/v1/studies").status_code == 401


def test_tokens_are_random_shown_once_and_stored_hashed(lab):
    lab.study()
    admin = lab.member()
    made = [admin.post("/api/v1/studies/cart/tokens", json={"name": "run"}).json() for _ in range(2)]
    assert made[0]["token"] != made[1]["token"]
    assert len(made[0]["token"]) > 40
    listed = admin.get("/api/v1/studies/cart/tokens").json()
    assert all(row["token"] == "" for row in listed)
    with lab.service.store.database.read() as connection:
        stored = str(connection.execute(tables.token.select()).all())
    assert made[0]["token"] not in stored
    program = lab.program(made[0]["token"])
    assert program.get("/api/v1/studies/cart").status_code == 200
    assert admin.delete(f"/api/v1/studies/cart/tokens/{made[0]['id']}").status_code == 204
    assert program.get("/api/v1/studies/cart").status_code == 401


def test_guessing_tokens_is_stopped(lab):
    lab.study()
    guesser = lab.program("themis_guess")
    codes = [guesser.get("/api/v1/studies/cart").status_code for _ in range(62)]
    assert codes[0] == 401
    assert codes[-1] == 429
    assert "Retry-After" in guesser.get("/api/v1/studies/cart").headers


def test_every_administrative_act_is_on_record(lab):
    lab.study()
    admin = lab.member()
    ada = lab.annotator()
    admin.post("/api/v1/studies/cart/status", json={"status": "paused"})
    admin.post("/api/v1/studies/cart/status", json={"status": "running"})
    admin.post("/api/v1/studies/cart/extend", json={"overlap": 3})
    admin.post("/api/v1/studies/cart/invitations", json={"role": "experimenter"})
    token = admin.post("/api/v1/studies/cart/tokens", json={"name": "run"}).json()
    admin.delete(f"/api/v1/studies/cart/tokens/{token['id']}")
    admin.post(f"/api/v1/studies/cart/annotators/{ada.annotator_id}/withdraw")
    admin.post("/api/v1/members/invitations", json={"role": "admin"})
    acts = [row["act"] for row in admin.get("/api/v1/audit").json()]
    expected = {
        "study.create",
        "queries.add",
        "study.paused",
        "study.running",
        "study.extend",
        "invite.experimenter",
        "token.make",
        "token.revoke",
        "annotator.withdraw",
        "invite.admin",
    }
    assert expected <= set(acts)


def test_every_answer_has_strict_headers(lab):
    headers = lab.nobody().get("/healthz").headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"


def test_metrics_are_for_admins_and_their_token(lab):
    lab.study()
    assert "themis_requests_total" in lab.member().get("/metrics").text
    assert lab.member("experimenter").get("/metrics").status_code == 401


def test_a_secret_is_made_once_and_is_its_owners(tmp_path, monkeypatch):
    monkeypatch.delenv("THEMIS_SECRET", raising=False)
    path = tmp_path / "new" / "secret.key"
    secret = read_secret(path)
    assert read_secret(path) == secret
    assert path.stat().st_mode & 0o077 == 0
    path.write_text("short")
    with pytest.raises(ConfigError, match="too short"):
        read_secret(path)
    monkeypatch.setenv("THEMIS_SECRET", "x")
    with pytest.raises(ConfigError, match="THEMIS_SECRET"):
        read_secret(path)


def test_all_who_start_at_once_get_the_same_secret(tmp_path, monkeypatch):
    monkeypatch.delenv("THEMIS_SECRET", raising=False)
    draw, found = secrets.token_urlsafe, []

    def draw_slowly(num_bytes):
        time.sleep(0.05)
        return draw(num_bytes)

    monkeypatch.setattr(secrets, "token_urlsafe", draw_slowly)
    path = tmp_path / "secret.key"
    run_threads(8, lambda _: found.append(read_secret(path)))
    assert found == [path.read_bytes()] * 8
    assert list(tmp_path.iterdir()) == [path]


def test_sessions_run_out(lab, monkeypatch):
    _, cookie = lab.service.signer.make_session("member", "m-1")
    assert lab.service.signer.read_session(cookie).id == "m-1"
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 61 * 86_400)
    assert lab.service.signer.read_session(cookie) is None
