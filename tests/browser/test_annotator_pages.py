"""People take part in studies in a real browser, and what they did is what the store holds."""

from __future__ import annotations

from typing import Any

import pytest
from browser.annotating import answer, come_in, on_screen, until, wait_for_pair

pytestmark = pytest.mark.browser


def test_a_whole_study_from_the_link_to_the_panel(site: Any, open_page: Any, shoot: Any) -> None:
    page = open_page()
    page.goto(site.entrance("whole", PID="panel-person-1"))
    shoot(page, "join")
    page.get_by_role("button", name="Start").click()

    shoot(page, "consent")
    (person,) = [row for row in site.store.people.all("whole") if row.panel == {"PID": "panel-person-1"}]
    page.get_by_role("button", name="I agree").click()
    row = site.store.people.get(person.id)
    assert row.stage == "before"

    # What is required is asked for; the browser marks the first field that misses an answer.
    page.get_by_role("button", name="Go on").click()
    assert page.evaluate("document.querySelector(':invalid[type=radio]') !== null")
    page.get_by_text("Every week").click()
    page.get_by_role("radio", name="5", exact=True).check()
    shoot(page, "questions", full_page=True)
    page.get_by_role("button", name="Go on").click()
    responses = {
        row.which: row.answers for row in site.store.people.responses("whole") if row.annotator_id == person.id
    }
    assert responses["before"] == {"games": "Every week", "robots": 5}

    page.get_by_role("dialog", name="What to do").wait_for()
    page.keyboard.press("ArrowLeft")  # Nothing is chosen behind a dialog.
    page.keyboard.press("Enter")
    for number in range(2):
        wait_for_pair(page)
        assert page.locator("#practice-badge").is_visible()
        page.keyboard.press("ArrowRight")
        page.get_by_role("dialog", name="Practice", exact=True).wait_for()
        expected = page.locator("#message-text").inner_text()
        assert "clip is better" in expected
        if number == 0:
            shoot(page, "practice")
        page.keyboard.press("Enter")
    page.get_by_role("dialog", name="Practice is over").get_by_role("button", name="Start").click()

    chosen: dict[str, str] = {}
    keys = {
        "ArrowLeft": "left",
        "ArrowRight": "right",
        "ArrowUp": "equal",
        "s": "skip",
        "e": "equal",
        "ArrowDown": "skip",
    }
    for number, key in enumerate(keys):
        chosen[answer_in_whole(page, key)] = keys[key]
        if number == 2:
            page.wait_for_timeout(500)
            shoot(page, "compare")
    # Clicks: on the clips themselves and on both buttons.
    for name, choice in {
        "Left clip": "left",
        "Right clip": "right",
        "Equal": "equal",
        "Can\u2019t tell": "skip",
    }.items():
        before = wait_for_pair(page)
        page.get_by_role("button", name=name).click()
        chosen[before] = choice
        pass_break(page)
        wait_for_pair(page, before)
    # Taken back and answered the other way.
    undone = answer_in_whole(page, "ArrowLeft")
    page.keyboard.press("z")
    page.wait_for_function("id => document.getElementById('stage').dataset.assignment === id", arg=undone)
    chosen[answer_in_whole(page, "ArrowRight")] = "right"
    assert undone in chosen
    # The last one while there is no connection: it is kept, and arrives once.
    last = wait_for_pair(page)
    page.context.set_offline(True)
    page.keyboard.press("ArrowUp")
    chosen[last] = "equal"
    page.wait_for_selector("#saving[data-state='offline']")
    page.wait_for_timeout(300)
    shoot(page, "offline")
    page.context.set_offline(False)

    page.get_by_role("heading", name="How was it?").wait_for()
    mine = [row for row in site.answers("whole") if row.annotator_id == person.id]
    assert len(mine) == 12 == len({row.query_id for row in mine})
    assert [on_screen(row) for row in mine] == list(chosen.values())
    stored = site.store.work.answers("whole").answers
    assert sum(row.is_undone for row in stored if row.annotator_id == person.id) == 1
    assert sum(row.response_ms for row in mine) > 0
    assert sum(row.watched_ms for row in mine) > 0

    page.get_by_role("radio", name="4", exact=True).check()
    page.get_by_label("What did you pay attention to?").fill("The angle of the pole.")
    shoot(page, "after", full_page=True)
    page.get_by_role("button", name="Send and finish").click()
    page.get_by_role("heading", name="Thank you").wait_for()
    # The code is stored before anybody leaves.
    assert site.store.people.get(person.id).completion_code == "C-1842-OAK"
    assert page.locator("#code").inner_text() == "C-1842-OAK"
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy").click()
    assert page.evaluate("navigator.clipboard.readText()") == "C-1842-OAK"
    shoot(page, "done")
    page.wait_for_url("**/healthz?cc=C-1842-OAK")


def answer_in_whole(page: Any, key: str) -> str:
    """Answers by a key; every fifth answer a break is proposed."""
    before = wait_for_pair(page)
    page.keyboard.press(key)
    pass_break(page)
    wait_for_pair(page, before)
    return before


def pass_break(page: Any) -> None:
    page.wait_for_timeout(300)
    if page.locator("#message[open]").count():
        assert "break" in page.locator("#message-title").inner_text()
        page.keyboard.press("Enter")


# ---------------------------------------------------------------- phone, and what is no work


def test_a_phone_shows_everything_at_once(site: Any, open_page: Any, shoot: Any) -> None:
    page = open_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True, device_scale_factor=2)
    come_in(page, site.entrance("plain"))
    first = wait_for_pair(page)
    page.wait_for_timeout(500)
    shoot(page, "phone")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    for name in ("Upper clip", "Lower clip", "Equal", "Can\u2019t tell", "Undo"):
        box = page.get_by_role("button", name=name).bounding_box()
        assert box["y"] + box["height"] <= 844
        assert box["height"] >= 44
    page.get_by_role("button", name="Lower clip").tap()
    wait_for_pair(page, first)
    for path in ("/help",):
        page.goto(path)
        assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_who_leaves_takes_their_answers_along(site: Any, open_page: Any, shoot: Any) -> None:
    page = open_page()
    come_in(page, site.entrance("leave"))
    answer(page, "ArrowLeft")
    until(lambda: len(site.answers("leave")) == 1)
    page.keyboard.press("?")
    page.wait_for_timeout(300)
    shoot(page, "keys")
    page.get_by_role("link", name="leave the study").click()
    page.wait_for_url("**/help?study=leave")
    shoot(page, "help", full_page=True)
    page.get_by_label("Delete all my answers").check()
    page.get_by_role("button", name="Leave the study").click()
    page.get_by_role("heading", name="You have left the study").wait_for()
    shoot(page, "withdrawn")
    assert site.answers("leave") == []
    assert len(site.store.people.tombstones("leave")) == 1


def test_who_does_not_agree_does_not_take_part(site: Any, open_page: Any) -> None:
    page = open_page()
    come_in(page, site.entrance("whole", PID="unwilling"))
    page.get_by_role("button", name="No, thank you").click()
    page.get_by_role("heading", name="You have left the study").wait_for()
    assert page.locator("#code").inner_text() == "N-7-ELM"


def test_a_code_without_a_redirect_stays_on_the_page(site: Any, open_page: Any, shoot: Any) -> None:
    page = open_page()
    come_in(page, site.entrance("code-only"))
    wait_for_pair(page)
    page.keyboard.press("ArrowLeft")
    page.get_by_role("heading", name="Thank you").wait_for()
    assert page.locator("#code").inner_text() == "C-1842-OAK"
    assert page.locator("[data-redirect]").count() == 0


def test_nobody_gets_in_without_an_invitation(site: Any, open_page: Any, shoot: Any) -> None:
    page = open_page()
    for path in ("/", "/work"):
        page.goto(path)
        page.get_by_role("heading", name="You need a link").wait_for()
    shoot(page, "sign-in")
    page.get_by_label("Link or invitation").fill("https://elsewhere.example/x/y")
    page.get_by_role("button", name="Go on").click()
    page.get_by_role("alert").wait_for()
    page.get_by_label("Link or invitation").fill(site.entrance("plain"))
    page.get_by_role("button", name="Go on").click()
    page.get_by_role("button", name="Start").wait_for()
    page.goto("/join/forged")
    page.get_by_role("heading", name="This is not open to you").wait_for()
    shoot(page, "error")
    assert page.goto("/s/plain").status == 403
    assert site.store.people.all("untouched") == []
    # A look at the link, such as a preview makes, is no person.
    page.goto(site.entrance("untouched"))
    assert site.store.people.all("untouched") == []


# ---------------------------------------------------------------- for everybody


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(site: Any, open_page: Any, axe: str, scheme: str) -> None:
    page = open_page(color_scheme=scheme)
    found: dict[str, list[str]] = {}

    def check(name: str) -> None:
        page.wait_for_timeout(350)
        page.evaluate(axe)
        result = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        found[name] = [
            f"{row['impact']} {row['id']}: {row['nodes'][0]['target']} {row['nodes'][0]['failureSummary']}"
            for row in result["violations"]
        ]

    page.goto("/")
    check("sign-in")
    page.goto("/join/forged")
    check("error")
    page.goto("/help")
    check("help, not signed in")
    page.goto(site.entrance("whole", PID=f"axe-{scheme}"))
    check("join")
    page.get_by_role("button", name="Start").click()
    check("consent")
    page.get_by_role("button", name="I agree").click()
    page.get_by_role("heading", name="A few questions first").wait_for()
    check("questions")
    page.get_by_text("Every week").click()
    page.get_by_role("radio", name="5", exact=True).check()
    page.get_by_role("button", name="Go on").click()
    page.get_by_role("dialog", name="What to do").wait_for()
    check("instructions")
    page.keyboard.press("Enter")
    wait_for_pair(page)
    check("practice")
    page.keyboard.press("?")
    page.get_by_role("dialog", name="Help").wait_for()
    check("keys")
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowRight")
    page.get_by_role("dialog", name="Practice", exact=True).wait_for()
    check("practice, answered")
    page.goto("/help")
    check("help")
    page.get_by_label("Delete all my answers").check()
    page.get_by_role("button", name="Leave the study").click()
    check("withdrawn")
    for study in ("patient", "rating", "steps", "demonstration", "nothing-yet", "code-only"):
        page.context.clear_cookies()
        come_in(page, site.entrance(study))
        if study == "nothing-yet":
            page.get_by_role("heading", name="Waiting for the next clips").wait_for()
        else:
            page.locator("#working:visible").wait_for()
        check(study)
    page.keyboard.press("ArrowLeft")
    page.get_by_role("heading", name="Thank you").wait_for()
    check("done")
    print({name: rows for name, rows in found.items() if rows} or f"axe: nothing on {len(found)} pages, {scheme}")
    grave = {name: [row for row in rows if row.startswith(("serious", "critical"))] for name, rows in found.items()}
    assert not {name: rows for name, rows in grave.items() if rows}
