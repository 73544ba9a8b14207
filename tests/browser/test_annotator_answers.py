"""Keys and connections: one press is one answer, and every answer arrives once."""

from __future__ import annotations

import json
from typing import Any

import pytest
from browser.annotating import answer, come_in, on_screen, saving_state, until, wait_for_pair
from browser.labelling_site import NUM_FRAMES

from themis_ray.data import Choice
from themis_ray.wire import NewQuery, NewSide

pytestmark = pytest.mark.browser


# ---------------------------------------------------------------- keys


def test_one_press_is_one_answer(site: Any, open_page: Any) -> None:
    page = open_page()
    come_in(page, site.entrance("keys"))
    first = wait_for_pair(page)
    page.keyboard.down("ArrowLeft")
    for _ in range(10):
        page.keyboard.down("ArrowLeft")  # A key that is held repeats.
    page.keyboard.up("ArrowLeft")
    second = wait_for_pair(page, first)
    for keys in ("Control+ArrowLeft", "Alt+s", "Meta+e"):
        page.keyboard.press(keys)
    page.locator("#speed").focus()
    page.keyboard.press("s")
    page.keyboard.press("Escape")
    page.locator("#speed").evaluate("field => field.blur()")
    page.keyboard.press("?")
    page.get_by_role("dialog", name="Help").wait_for()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("e")
    page.keyboard.press("Escape")
    page.wait_for_timeout(500)
    assert wait_for_pair(page) == second
    assert [on_screen(row) for row in site.answers("keys")] == ["left"]


def test_everything_is_reached_by_tab(site: Any, open_page: Any) -> None:
    page = open_page()
    come_in(page, site.entrance("keys"))
    first = wait_for_pair(page)
    page.evaluate("document.activeElement.blur()")
    reached = []
    for _ in range(16):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("(({dataset, id}) => dataset.choice ?? dataset.do ?? id)(document.activeElement)"))
    wanted = ["left", "right", "equal", "skip", "replay", "back", "pause", "forward", "speed", "undo"]
    assert [name for name in reached if name in wanted][: len(wanted)] == wanted
    page.locator("#card-right").focus()
    page.keyboard.press("Enter")
    wait_for_pair(page, first)
    # Who works by Tab is not thrown back to the top of the page.
    assert page.evaluate("document.activeElement.id") == "card-right"


# ---------------------------------------------------------------- connections


def test_answers_without_a_connection_are_kept_and_arrive_once(site: Any, open_page: Any) -> None:
    page = open_page()
    come_in(page, site.entrance("offline"))
    answer(page, "ArrowLeft")
    wait_for_pair(page)
    until(lambda: saving_state(page) == "saved")
    page.wait_for_timeout(1500)  # The next pairs are preloaded.
    page.context.set_offline(True)
    answered = [answer(page, "ArrowLeft"), answer(page, "ArrowRight"), wait_for_pair(page)]
    page.keyboard.press("ArrowUp")
    page.locator("#waiting:visible").wait_for()
    assert len(set(answered)) == 3
    assert saving_state(page) == "offline"
    assert "3 answers are kept" in page.locator("#saving").inner_text()
    assert page.evaluate("Object.keys(localStorage).filter((key) => key.startsWith('themis-outbox')).length") == 3
    page.context.set_offline(False)
    wait_for_pair(page, answered[-1])
    until(lambda: len(site.answers("offline")) == 4)
    assert [on_screen(row) for row in site.answers("offline")] == ["left", "left", "right", "equal"]
    until(lambda: saving_state(page) == "saved")
    assert page.evaluate("Object.keys(localStorage).filter((key) => key.startsWith('themis-outbox')).length") == 0


def test_an_answer_whose_receipt_is_lost_is_stored_once(site: Any, open_page: Any) -> None:
    page = open_page()
    come_in(page, site.entrance("lost"))
    wait_for_pair(page)
    sent = []

    def lose_receipt(route: Any) -> None:
        sent.append(json.loads(route.request.post_data)["answer_id"])
        route.fetch()  # The service has it,
        route.abort()  # the browser does not know.

    page.route("**/api/v1/answers", lose_receipt, times=2)
    page.on("request", lambda request: sent.append("seen") if request.url.endswith("/answers") else None)
    answer(page, "ArrowLeft")
    until(lambda: saving_state(page) == "saved" and sent.count("seen") == 3)
    assert len({name for name in sent if name != "seen"}) == 1
    assert len(site.answers("lost")) == 1


def test_an_answer_left_by_a_closed_page_is_sent_by_the_next(site: Any, open_page: Any) -> None:
    page = open_page()
    come_in(page, site.entrance("closed"))
    first = wait_for_pair(page)
    page.route("**/api/v1/answers", lambda route: route.abort())
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#saving[data-state='offline']")
    assert site.answers("closed") == []
    again = page.context.new_page()
    page.close()
    again.goto("/work")
    assert wait_for_pair(again) != first
    until(lambda: [on_screen(row) for row in site.answers("closed")] == ["right"])


def test_a_busy_service_is_given_the_time_it_asks_for(site: Any, open_page: Any) -> None:
    page = open_page()
    come_in(page, site.entrance("busy"))
    wait_for_pair(page)
    refusals = iter([429, 503])

    def refuse(route: Any) -> None:
        route.fulfill(status=next(refusals), headers={"Retry-After": "1"}, json={"error": "wait"})

    page.route("**/api/v1/answers", refuse, times=2)
    answer(page, "ArrowLeft")
    page.wait_for_selector("#saving[data-state='busy']")
    assert "busy" in page.locator("#saving").inner_text()
    assert site.answers("busy") == []
    until(lambda: saving_state(page) == "saved")
    assert len(site.answers("busy")) == 1


def test_an_answer_is_kept_while_the_application_is_not_there_yet(site: Any, open_page: Any) -> None:
    page = open_page()
    come_in(page, site.entrance("starting"))
    wait_for_pair(page)
    text = "Path '/api/v1/answers' not found."
    page.route("**/api/v1/answers", lambda route: route.fulfill(status=404, body=text), times=2)
    answer(page, "ArrowLeft")
    page.wait_for_selector("#saving[data-state='offline']")
    until(lambda: saving_state(page) == "saved")
    assert [on_screen(row) for row in site.answers("starting")] == ["left"]


def test_an_answer_that_came_too_late_is_dropped_with_a_word(site: Any, open_page: Any) -> None:
    page = open_page()
    come_in(page, site.entrance("late"))
    wait_for_pair(page)
    text = "the time for this query was over and somebody else has answered it. Go on with the next."
    page.route("**/api/v1/answers", lambda route: route.fulfill(status=409, json={"error": text}), times=1)
    answer(page, "ArrowLeft")
    page.get_by_role("alert").get_by_text("did not count").wait_for()
    assert saving_state(page) == "saved"
    answer(page, "ArrowRight")
    until(lambda: [on_screen(row) for row in site.answers("late")] == ["right"])


def test_what_was_refused_can_be_answered_again(site: Any, open_page: Any) -> None:
    page = open_page()
    come_in(page, site.entrance("refused"))
    only = wait_for_pair(page)
    text = "watch the clips for 3 s before you answer."
    page.route("**/api/v1/answers", lambda route: route.fulfill(status=422, json={"error": text}), times=1)
    page.keyboard.press("ArrowLeft")
    page.get_by_role("alert").get_by_text("did not count").wait_for()
    assert wait_for_pair(page) == only
    page.keyboard.press("ArrowRight")
    page.get_by_role("heading", name="Thank you").wait_for()
    assert [on_screen(row) for row in site.answers("refused")] == ["right"]


def test_undo_takes_back_what_was_stored(site: Any, open_page: Any) -> None:
    page = open_page()
    come_in(page, site.entrance("undo"))
    first = answer(page, "ArrowLeft")
    second = answer(page, "ArrowLeft")
    for expected in (second, first):
        page.get_by_role("button", name="Undo").click()
        page.wait_for_function("id => document.getElementById('stage').dataset.assignment === id", arg=expected)
        wait_for_pair(page)
    until(lambda: site.answers("undo") == [])
    assert page.locator("#progress-text").inner_text() == "0 of 12"
    assert answer(page, "ArrowUp") == first
    until(lambda: [row.choice for row in site.answers("undo")] == [Choice.EQUAL])


def test_undo_takes_back_what_a_page_before_has_sent(site: Any, open_page: Any) -> None:
    page = open_page()
    come_in(page, site.entrance("reload"))
    wait_for_pair(page)
    assert page.get_by_role("button", name="Undo").get_attribute("aria-disabled") == "true"
    first, second = answer(page, "ArrowLeft"), answer(page, "ArrowLeft")
    until(lambda: len(site.answers("reload")) == 2)
    page.reload()
    wait_for_pair(page)
    assert page.get_by_role("button", name="Undo").get_attribute("aria-disabled") == "false"
    page.keyboard.press("z")
    page.wait_for_function("id => document.getElementById('stage').dataset.assignment === id", arg=second)
    wait_for_pair(page)
    assert answer(page, "ArrowUp") == second != first
    until(lambda: [row.choice for row in site.answers("reload")][1:] == [Choice.EQUAL])


def test_undo_takes_back_what_a_page_before_has_left_to_be_sent(site: Any, open_page: Any) -> None:
    page = open_page()
    come_in(page, site.entrance("left"))
    answer(page, "ArrowLeft")
    until(lambda: len(site.answers("left")) == 1)
    page.route("**/api/v1/answers", lambda route: route.abort())
    left = wait_for_pair(page)
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#saving[data-state='offline']")
    page.unroute("**/api/v1/answers")
    page.reload()
    until(lambda: [on_screen(row) for row in site.answers("left")] == ["left", "right"])
    wait_for_pair(page)
    page.get_by_role("button", name="Undo").click()
    page.wait_for_function("id => document.getElementById('stage').dataset.assignment === id", arg=left)
    until(lambda: [on_screen(row) for row in site.answers("left")] == ["left"])


def test_waiting_ends_when_queries_come(site: Any, open_page: Any, shoot: Any) -> None:
    page = open_page()
    come_in(page, site.entrance("empty"))
    page.get_by_role("heading", name="Waiting for the next clips").wait_for()
    shoot(page, "waiting")
    names = [row.left_clip for row in site.store.studies.queries("plain")][:1] + [
        row.right_clip for row in site.store.studies.queries("plain")
    ][:1]
    sides = [NewSide(segment_id=name[:8], clip=name, num_frames=NUM_FRAMES, clip_fps=15.0) for name in names]
    for name in names:
        site.store.studies.add_clip("empty", name, 1)
    site.store.studies.add_queries("empty", [NewQuery(id="late-1", left=sides[0], right=sides[1])], "test")
    wait_for_pair(page)
    page.keyboard.press("ArrowLeft")
    until(lambda: len(site.answers("empty")) == 1)
    page.get_by_role("heading", name="Waiting for the next clips").wait_for()
    page.get_by_role("button", name="Stop here, keep my answers").click()
    page.get_by_role("heading", name="Thank you").wait_for()
    assert len(site.answers("empty")) == 1
