"""What a person does on the pages, as functions."""

from __future__ import annotations

import time
from typing import Any

MIRRORED = {"left": "right", "right": "left"}
READY = "#desk[data-is-ready='true']"


def come_in(page: Any, entrance: str) -> None:
    """Opens a study's link and starts."""
    page.goto(entrance)
    page.get_by_role("button", name="Start").click()


def wait_for_pair(page: Any, other_than: str | None = None) -> str:
    """Waits until something can be answered, and returns its assignment."""
    page.wait_for_function(
        "other => document.querySelector(\"#desk[data-is-ready='true'] #stage\")?.dataset.assignment !== other",
        arg=other_than or "",
    )
    page.wait_for_selector(READY)
    return str(page.locator("#stage").get_attribute("data-assignment"))


def answer(page: Any, key: str) -> str:
    """Answers by a key once that is possible, waits for the next, and returns the assignment that was answered."""
    before = wait_for_pair(page)
    page.keyboard.press(key)
    wait_for_pair(page, before)
    return before


def until(condition: Any, timeout_s: float = 15.0) -> None:
    """Waits for something that does not happen in the browser."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def saving_state(page: Any) -> str:
    """Returns what the page says about answers on their way."""
    return str(page.locator("#saving").get_attribute("data-state"))


def on_screen(row: Any) -> str:
    """Returns which side of the screen was chosen."""
    return MIRRORED.get(row.choice, row.choice) if row.is_flipped else str(row.choice)
