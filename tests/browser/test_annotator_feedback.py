"""Ratings, marks and demonstrations are given in a real browser."""

from __future__ import annotations

from typing import Any

import pytest
from browser.annotating import come_in, until, wait_for_pair
from browser.labelling_site import NUM_FRAMES

pytestmark = pytest.mark.browser


def test_rating(site: Any, open_page: Any, shoot: Any) -> None:
    page = open_page()
    come_in(page, site.entrance("rating"))
    first = wait_for_pair(page)
    page.keyboard.press("Enter")
    page.get_by_role("alert").get_by_text("Rate the clip first").wait_for()
    page.keyboard.press("7")
    page.locator("#toast").wait_for(state="hidden")
    shoot(page, "rating")
    page.keyboard.press("Enter")
    second = wait_for_pair(page, first)
    assert page.locator("#rating-value").inner_text() == "not rated yet"
    page.get_by_label("Your rating").fill("0.2")
    page.get_by_role("button", name="Send the rating").click()
    wait_for_pair(page, second)
    until(lambda: [row.rating for row in site.answers("rating")] == [0.75, 0.2])


def test_steps_are_marked_while_they_pass(site: Any, open_page: Any, shoot: Any) -> None:
    page = open_page(color_scheme="dark")
    come_in(page, site.entrance("steps"))
    first = wait_for_pair(page)
    page.wait_for_function("() => parseInt(document.getElementById('stage').dataset.frames) === 2")
    page.keyboard.down("g")
    page.wait_for_function("() => parseInt(document.getElementById('stage').dataset.frames) > 12")
    page.keyboard.up("g")
    page.locator("[data-mark='-1']").hover()
    page.mouse.down()
    page.wait_for_function("() => parseInt(document.getElementById('stage').dataset.frames) > 20")
    page.mouse.up()
    page.keyboard.press("p")
    page.mouse.move(0, 0)
    page.wait_for_timeout(300)
    shoot(page, "steps-dark")
    assert "bad" in page.locator("#strip").get_attribute("aria-label")
    page.keyboard.press("Enter")
    wait_for_pair(page, first)
    until(lambda: len(site.answers("steps")) == 1)
    steps = list(site.answers("steps")[0].steps)
    good, bad = [n for n, mark in enumerate(steps) if mark == 1], [n for n, mark in enumerate(steps) if mark == -1]
    assert len(steps) == NUM_FRAMES
    # Without a gap: frames between two looks are marked as well.
    assert good == list(range(good[0], good[-1] + 1))
    assert len(good) >= 8
    assert bad == list(range(bad[0], bad[-1] + 1))
    assert good[-1] < bad[0]


def test_a_demonstration_by_keyboard(site: Any, open_page: Any, shoot: Any) -> None:
    page = open_page()
    come_in(page, site.entrance("demonstration"))
    page.locator("#demo-frame:visible").wait_for()
    status = page.locator("#demo-status")
    page.keyboard.press("Enter")
    page.get_by_role("alert").get_by_text("Act first").wait_for()
    # Two fields forward, a turn to the right, two fields forward: by arrows, by number and by the button.
    acts = [
        lambda: page.keyboard.press("ArrowUp"),
        lambda: page.keyboard.press("3"),
        lambda: page.keyboard.press("ArrowRight"),
        lambda: page.get_by_role("button", name="forward").click(),
        lambda: page.keyboard.press("ArrowUp"),
    ]
    for number, act in enumerate(acts, start=1):
        act()
        status.get_by_text(f"{number} step").wait_for()
        if number == 4:
            page.locator("#toast").wait_for(state="hidden")
            shoot(page, "demonstration")
    page.keyboard.press("Enter")
    until(lambda: len(site.answers("demonstration")) == 1)
    row = site.answers("demonstration")[0]
    assert row.actions == (2, 2, 1, 2, 2)
    assert row.reset_seed is not None
    page.get_by_text("0 steps").wait_for()


def test_who_sends_a_demonstration_before_a_step_arrives_gets_the_next(site: Any, open_page: Any) -> None:
    page = open_page()
    come_in(page, site.entrance("hasty"))
    page.locator("#demo-frame:visible").wait_for()
    page.keyboard.press("ArrowUp")
    page.get_by_text("1 step", exact=True).wait_for()
    slow: list[Any] = []
    page.route("**/api/v1/demonstrations", lambda route: slow.append(route), times=1)
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    until(lambda: [row.actions for row in site.answers("hasty")] == [(2,)])
    page.locator("#demo-frame").wait_for(state="hidden")
    slow[0].continue_()
    page.get_by_text("0 steps").wait_for()
    page.locator("#demo-frame:visible").wait_for()
    page.keyboard.press("ArrowUp")
    page.get_by_text("1 step", exact=True).wait_for()
