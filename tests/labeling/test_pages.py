"""The pages of people who take part, as a browser without scripts gets them."""

import re

from conftest import answer

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


# ---------------------------------------------------------------- stopping early


def test_who_waits_in_vain_can_stop_keeps_the_answers_and_gets_the_code(lab):
    lab.study(num_queries=2, panel=PANEL, after=AFTER)
    ada = lab.nobody()
    come_in(lab, ada)
    assert answer_all(ada)["is_waiting"]
    for path in ("/work", "/help"):
        assert 'action="/finish"' in ada.get(path).text, path
    page = send(ada, "/finish").text
    assert "How was it?" in page
    assert "C-OAK" not in page
    assert "How was it?" in send(ada, "/finish").text, "a second press skipped the questions"
    page = send(ada, "/questions/after", **{"answer-how": "Short."}).text
    assert "C-OAK" in page
    assert "2 answers are saved" in page
    assert len(lab.service.store.work.answers("cart").answers) == 2
    for path in ("/work", "/help"):
        assert 'action="/finish"' not in ada.get(path).text, path


def test_nobody_stops_by_a_form_of_somebody_else(lab):
    lab.study()
    ada, bob = lab.nobody(), lab.nobody()
    come_in(lab, ada)
    come_in(lab, bob)
    bob.headers["X-CSRF-Token"] = ada.headers["X-CSRF-Token"]
    assert send(bob, "/finish").status_code == 403
