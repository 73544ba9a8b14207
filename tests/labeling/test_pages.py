"""The pages of people who take part, as a browser without scripts gets them."""

import re
import time

import pytest
from conftest import answer

from themis_ray.labeling.cookies import annotator_cookie
from themis_ray.labeling.security import SESSION_COOKIE, SESSION_S

PANEL = {"kind": "generic", "id_parameters": ["PID"], "code_complete": "C-OAK"}
AFTER = [{"kind": "text", "id": "how", "text": "How was it?", "max_length": 20}]


def link_of(lab, study="cart", **parameters):
    """The link of a study's door, which `POST` goes to as well."""
    invitation = lab.service.signer.make_invitation("annotator", study)
    return f"/join/{invitation}" + "".join(f"?{name}={value}" for name, value in parameters.items())


def come_in(lab, client, study="cart", **parameters):
    """Presses Start and returns the page that follows; calls of the API are this person's from here on."""
    page = client.post(link_of(lab, study, **parameters)).text
    client.headers["X-CSRF-Token"] = token_of(page)
    return page


def token_of(page):
    return re.search(r'name="csrf-token" content="(\w+)"', page).group(1)


def annotator_of(page):
    return re.search(r'data-annotator="([\w-]+)"', page).group(1)


def send(client, path, **fields):
    """Sends a form as a page does: the token is a field and no header."""
    form = {"csrf_token": client.headers["X-CSRF-Token"], **fields}
    return client.post(path, data=form, headers={"X-CSRF-Token": ""})


def answer_all(client):
    work = client.get("/api/v1/assignments").json()
    while work["assignments"]:
        work = answer(client, work["assignments"][0]).json()["work"]
    return work


# ---------------------------------------------------------------- forms


def test_line_breaks_of_a_form_are_one_character_each(lab):
    lab.study(before=AFTER)
    ada = lab.nobody()
    come_in(lab, ada)
    text = "1\n2\n3\n4\n5\n6\n7\n8\n9\n10"
    assert len(text) == AFTER[0]["max_length"]
    sent = text.replace("\n", "\r\n")
    assert "desk" in send(ada, "/questions/before", **{"answer-how": sent}).text
    (response,) = lab.service.store.people.responses("cart")
    assert response.answers == {"how": text}


@pytest.mark.parametrize("link", ["http://[half", "http://a]/s/cart", "https://elsewhere.example/x", "", "/"])
def test_what_is_no_link_of_a_study_is_told_so(lab, link):
    response = lab.nobody().post("/", data={"invitation": link})
    assert response.status_code == 422
    assert "This is no link of a study" in response.text


@pytest.mark.parametrize("given", ["9" * 5000, "-" + "9" * 5000, "1.5", "\u00b2", "\u0663", "--1"])
def test_a_scale_takes_numbers_only(lab, given):
    lab.study(before=[{"kind": "scale", "id": "robots", "text": "How familiar are robots?"}])
    ada = lab.nobody()
    come_in(lab, ada)
    response = send(ada, "/questions/before", **{"answer-robots": given})
    assert response.status_code == 422
    assert "Please choose a number." in response.text


# ---------------------------------------------------------------- stopping early


def test_who_waits_in_vain_can_stop_keeps_the_answers_and_gets_the_code(lab):
    lab.study(num_queries=2, panel=PANEL, after=AFTER)
    ada = lab.nobody()
    come_in(lab, ada)
    assert answer_all(ada)["is_waiting"]
    assert 'action="/finish"' in ada.get("/work").text
    page = send(ada, "/finish").text
    assert "How was it?" in page
    assert "C-OAK" not in page
    assert "How was it?" in send(ada, "/finish").text, "a second press skipped the questions"
    page = send(ada, "/questions/after", **{"answer-how": "Short."}).text
    assert "C-OAK" in page
    assert "2 answers are saved" in page
    assert len(lab.service.store.work.answers("cart").answers) == 2
    assert 'action="/finish"' not in ada.get("/work").text


def test_who_has_clips_to_answer_does_not_get_the_code_by_stopping(lab):
    lab.study(num_queries=2, panel=PANEL)
    ada = lab.nobody()
    come_in(lab, ada)
    page = send(ada, "/finish").text
    assert "C-OAK" not in page
    assert ada.get("/api/v1/assignments").json()["stage"] == "work"


def test_programs_get_the_code_for_all_there_is_to_answer_as_pages_do(lab):
    lab.study(num_queries=2, panel=PANEL)
    ada = lab.nobody()
    come_in(lab, ada)
    for _ in range(2):
        early = ada.post("/api/v1/finish")
        assert early.status_code == 409, early.text
        assert "clips for you to answer" in early.json()["error"]
        answer(ada, ada.get("/api/v1/assignments").json()["assignments"][0])
    assert [ada.post("/api/v1/finish").json()["code"] for _ in range(2)] == ["C-OAK"] * 2


def test_nobody_stops_by_a_form_of_somebody_else(lab):
    lab.study()
    ada, bob = lab.nobody(), lab.nobody()
    come_in(lab, ada)
    come_in(lab, bob)
    bob.headers["X-CSRF-Token"] = ada.headers["X-CSRF-Token"]
    assert send(bob, "/finish").status_code == 403


def test_who_comes_back_from_a_panel_after_the_study_has_stopped_gets_to_the_end(lab):
    lab.study(max_answers=1, panel=PANEL, after=AFTER)
    come_in(lab, lab.nobody(), PID="ada")
    bob = lab.nobody()
    come_in(lab, bob, PID="bob")
    assert answer_all(bob)["stage"] == "after"
    assert lab.service.store.studies.get("cart").status == "stopped"
    again = lab.nobody()
    assert again.get(link_of(lab, PID="ada")).status_code == 200
    come_in(lab, again, PID="ada")
    assert again.get("/api/v1/assignments").json()["stage"] == "after"
    assert "C-OAK" in send(again, "/questions/after", **{"answer-how": "Short."}).text
    for link in (link_of(lab), link_of(lab, PID="eve")):
        late = lab.nobody().post(link)
        assert late.status_code == 403
        assert "has ended" in late.text
    assert lab.nobody().get(link_of(lab)).status_code == 403


# ---------------------------------------------------------------- one browser, several people and studies


def test_an_admin_who_tries_a_study_stays_an_admin(lab):
    lab.study()
    admin = lab.member()
    token = admin.headers["X-CSRF-Token"]
    come_in(lab, admin)
    assert admin.get("/studies/cart").status_code == 200
    assert "Studies" in admin.get("/").text
    assert admin.get("/api/v1/me").status_code == 200
    admin.headers["X-CSRF-Token"] = token
    assert admin.post("/api/v1/studies/cart/status", json={"status": "paused"}).status_code == 200


def test_who_is_in_two_studies_goes_on_in_each(lab):
    lab.study()
    lab.study("boat")
    ada = lab.nobody()
    cart, boat = come_in(lab, ada), come_in(lab, ada, "boat")
    assert annotator_of(cart) != annotator_of(boat)
    assert annotator_of(ada.get("/work").text) == annotator_of(boat)
    assert annotator_of(ada.get(link_of(lab, "cart")).text) == annotator_of(cart)
    assert annotator_of(ada.get("/work").text) == annotator_of(cart)
    assert annotator_of(ada.get("/s/boat").text) == annotator_of(boat)
    assert annotator_of(come_in(lab, ada)) == annotator_of(cart)
    assert [len(lab.service.store.people.all(study)) for study in ("cart", "boat")] == [1, 1]


def test_a_page_of_the_study_entered_first_goes_on_to_work(lab):
    lab.study(num_queries=1)
    lab.study("boat")
    ada = lab.nobody()
    cart, boat = come_in(lab, ada), come_in(lab, ada, "boat")
    for page in (cart, boat):
        ada.headers["X-CSRF-Token"] = token_of(page)
        assert ada.get("/api/v1/me").json()["annotator_id"] == annotator_of(page)
        (first, *_) = ada.get("/api/v1/assignments").json()["assignments"]
        assert answer(ada, first).status_code == 200
    ada.headers["X-CSRF-Token"] = token_of(cart)
    assert "Thank you" in send(ada, "/finish").text
    stages = [lab.service.store.people.get(annotator_of(page)).stage for page in (cart, boat)]
    assert stages == ["done", "work"]


def test_who_leaves_a_study_leaves_the_one_whose_page_they_came_from(lab):
    lab.study()
    lab.study("boat", title="Boats")
    ada = lab.nobody()
    cart, _ = come_in(lab, ada), come_in(lab, ada, "boat")
    (address,) = set(re.findall(r'href="(/help[^"]*)"', cart))
    page = ada.get(address).text
    assert "Boats" not in page
    ada.headers["X-CSRF-Token"] = token_of(page)
    assert "You have left" in send(ada, "/withdraw", is_sure="yes").text
    stages = {study: lab.service.store.people.all(study)[0].stage for study in ("cart", "boat")}
    assert stages == {"cart": "withdrawn", "boat": "work"}
    assert "Boats" in ada.get("/help?study=boat").text


def test_who_comes_to_a_shared_computer_with_an_own_panel_id_is_somebody_else(lab):
    lab.study(num_queries=1, panel=PANEL)
    shared = lab.nobody()
    ada = annotator_of(come_in(lab, shared, PID="ada"))
    answer_all(shared)
    assert "C-OAK" in send(shared, "/finish").text
    assert "C-OAK" in shared.get(link_of(lab, PID="ada")).text
    assert "C-OAK" in shared.get(link_of(lab)).text
    door = shared.get(link_of(lab, PID="bob")).text
    assert "You are invited" in door
    assert "C-OAK" not in door
    bob = come_in(lab, shared, PID="bob")
    assert annotator_of(bob) != ada
    assert "C-OAK" not in shared.get("/work").text
    assert "C-OAK" in shared.post(link_of(lab, PID="ada")).text


@pytest.mark.parametrize(("share", "is_renewed"), [(0.4, False), (0.6, True)])
def test_sessions_are_renewed_in_the_second_half_of_their_life(lab, monkeypatch, share, is_renewed):
    lab.study()
    ada, admin = lab.nobody(), lab.member()
    page = come_in(lab, ada)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + share * SESSION_S)
    renewed = ada.get("/api/v1/me"), admin.get("/studies")
    names = annotator_cookie("cart"), SESSION_COOKIE
    assert [list(response.cookies) for response in renewed] == [[name] if is_renewed else [] for name in names]
    monkeypatch.setattr(time, "time", lambda: now + 1.2 * SESSION_S)
    assert (annotator_of(page) in ada.get("/work").text) == is_renewed
    assert send(ada, "/finish").status_code == (200 if is_renewed else 403), "the token is that of the page before"
    assert admin.get("/studies").status_code == (200 if is_renewed else 401)


def test_signing_out_in_the_second_half_of_a_session_ends_it(lab, monkeypatch):
    admin = lab.member()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 0.6 * SESSION_S)
    form = {"csrf_token": admin.headers["X-CSRF-Token"]}
    response = admin.post("/sign-out", data=form, follow_redirects=False)
    (cookie,) = response.headers.get_list("set-cookie")
    assert cookie.startswith(f'{SESSION_COOKIE}="";')
