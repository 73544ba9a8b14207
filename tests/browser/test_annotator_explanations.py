"""People of an arm see clips with an explanation, hide and show it, and how long it was there is stored."""

from __future__ import annotations

from typing import Any

import pytest
from browser.annotating import answer, come_in, until, wait_for_pair
from browser.labelling_site import OVERLAY

pytestmark = pytest.mark.browser

PLAIN_WIDTH = 600  # of CartPole's frames
BUTTON = "#explanation"


def widths(page: Any) -> list[int]:
    """Returns how wide the pictures on the screen are in pixels of the clip."""
    return list(page.evaluate("[...document.querySelectorAll('.stage canvas')].map((canvas) => canvas.width)"))


def measured(page: Any) -> dict[str, str]:
    return dict(page.locator("#stage").evaluate("stage => ({...stage.dataset})"))


def wait_for_kind(page: Any, *, is_explained: bool) -> str:
    """Answers until a pair is there that has an explanation, or has none, and returns its assignment."""
    for _ in range(11):
        assignment = wait_for_pair(page)
        if page.locator(BUTTON).is_visible() == is_explained:
            return assignment
        answer(page, "ArrowLeft")
    raise AssertionError("there is no such pair")


def wait_for_shown(page: Any, *, is_shown: bool) -> None:
    page.wait_for_function(
        """([isShown, plain]) => {
          const canvases = [...document.querySelectorAll(".stage canvas")];
          return document.getElementById("stage").dataset.explained === String(isShown)
            && canvases.every((canvas) => !canvas.hidden && (canvas.width === plain) !== isShown);
        }""",
        arg=[is_shown, PLAIN_WIDTH],
    )


def rows_of_page(site: Any, page: Any) -> list[Any]:
    person = page.locator("#desk").get_attribute("data-annotator")
    return [row for row in site.answers("explained") if row.annotator_id == person]


def test_the_explanation_is_hidden_and_shown_and_its_time_is_stored(site: Any, open_page: Any, shoot: Any) -> None:
    page = open_page()
    come_in(page, site.entrance("explained"))
    wait_for_kind(page, is_explained=True)
    wait_for_shown(page, is_shown=True)
    assert page.get_by_role("button", name="Hide the explanation").is_visible()
    page.wait_for_function("() => Number(document.getElementById('stage').dataset.explainedMs) > 1500")
    shoot(page, "explanation")

    page.keyboard.press("h")
    wait_for_shown(page, is_shown=False)
    assert page.get_by_role("button", name="Show the explanation").is_visible()
    before = measured(page)
    page.wait_for_function(
        "ms => Number(document.getElementById('stage').dataset.watchedMs) > ms + 700", arg=int(before["watchedMs"])
    )
    after = measured(page)
    assert after["explainedMs"] == before["explainedMs"], "what is hidden is not counted"
    assert "Explanation hidden" in page.locator("#announcer").inner_text()

    page.get_by_role("button", name="Show the explanation").click()
    wait_for_shown(page, is_shown=True)
    page.wait_for_function(
        "ms => Number(document.getElementById('stage').dataset.explainedMs) > ms", arg=int(after["explainedMs"]) + 300
    )
    # Quickly there and back, it goes on as it was.
    page.keyboard.press("h")
    page.keyboard.press("h")
    wait_for_shown(page, is_shown=True)
    reached = int(measured(page)["explainedMs"])
    page.wait_for_function("ms => Number(document.getElementById('stage').dataset.explainedMs) > ms", arg=reached + 300)
    assert float(measured(page)["maxDriftFrames"]) <= 1
    page.keyboard.press("p")
    page.wait_for_timeout(100)
    last = measured(page)
    answered = answer(page, "ArrowRight")
    until(lambda: len(rows_of_page(site, page)) > 0 and rows_of_page(site, page)[-1].overlay == OVERLAY)
    row = rows_of_page(site, page)[-1]
    assert row.overlay_ms == pytest.approx(int(last["explainedMs"]), abs=30)
    assert row.watched_ms == pytest.approx(int(last["watchedMs"]), abs=30)
    assert 1000 < row.overlay_ms < row.watched_ms - 600

    # The next pair begins with its explanation, and so does one that is taken back.
    page.keyboard.press("z")
    page.wait_for_function("id => document.getElementById('stage').dataset.assignment === id", arg=answered)
    wait_for_shown(page, is_shown=True)


def test_clips_that_stand_still_are_turned_at_their_frame(site: Any, open_page: Any) -> None:
    page = open_page()
    come_in(page, site.entrance("explained"))
    wait_for_kind(page, is_explained=True)
    page.wait_for_function("() => parseInt(document.getElementById('stage').dataset.frames) > 5")
    page.keyboard.press("p")
    page.keyboard.press(".")
    page.wait_for_timeout(500)
    before = measured(page)
    for is_shown in (False, True, False):
        page.keyboard.press("h")
        wait_for_shown(page, is_shown=is_shown)
        page.wait_for_timeout(200)
        now = measured(page)
        assert [now[name] for name in ("frames", "watchedMs", "explainedMs")] == [
            before[name] for name in ("frames", "watchedMs", "explainedMs")
        ]
    page.keyboard.press("p")
    page.wait_for_function(
        "ms => Number(document.getElementById('stage').dataset.watchedMs) > ms + 300", arg=int(before["watchedMs"])
    )
    assert measured(page)["explainedMs"] == before["explainedMs"]
    page.keyboard.press("Space")  # Replayed without it, too.
    page.wait_for_function("() => parseInt(document.getElementById('stage').dataset.frames) < 5")
    assert set(widths(page)) == {PLAIN_WIDTH}


def test_a_pair_without_an_explanation_is_plain(site: Any, open_page: Any) -> None:
    page = open_page()
    come_in(page, site.entrance("explained"))
    wait_for_kind(page, is_explained=False)
    assert set(widths(page)) == {PLAIN_WIDTH}
    page.keyboard.press("h")
    page.wait_for_timeout(500)
    num_before = len(rows_of_page(site, page))
    answer(page, "ArrowLeft")
    until(lambda: len(rows_of_page(site, page)) > num_before)
    row = rows_of_page(site, page)[-1]
    assert (row.overlay, row.overlay_ms) == ("", 0)
    assert row.watched_ms > 0
    assert row.arm == "why"


def test_the_explanation_is_reached_by_tab_and_told_in_the_help(site: Any, open_page: Any, axe: str) -> None:
    page = open_page(viewport={"width": 375, "height": 700})
    come_in(page, site.entrance("explained"))
    wait_for_kind(page, is_explained=True)
    page.evaluate("document.activeElement.blur()")
    reached = []
    for _ in range(8):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
    assert "explanation" in reached
    page.locator(BUTTON).focus()
    page.keyboard.press("Enter")
    wait_for_shown(page, is_shown=False)
    assert page.evaluate("document.activeElement.id") == "explanation"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "wider than a phone"
    page.evaluate(axe)
    found = page.evaluate("axe.run().then((result) => result.violations.map((one) => one.id))")
    assert found == []
    page.keyboard.press("?")
    assert "Hide or show the explanation" in page.get_by_role("dialog", name="Help").inner_text()
    page.keyboard.press("Escape")
    page.goto("/help")
    assert "It may be wrong" in page.inner_text("main")
