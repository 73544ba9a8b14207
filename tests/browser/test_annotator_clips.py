"""Clips run in step, and people move them as they like."""

from __future__ import annotations

from typing import Any

import pytest
from browser.annotating import answer, come_in, until, wait_for_pair
from browser.labelling_site import NUM_FRAMES

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("speed", ["1", "0.5", "2"])
def test_clips_stay_in_step(site: Any, open_page: Any, speed: str) -> None:
    page = open_page()
    come_in(page, site.entrance("plain"))
    wait_for_pair(page)
    page.locator("#speed").select_option(speed)
    num_loops = 3
    page.wait_for_function(
        "n => Number(document.getElementById('stage').dataset.numLoops) >= n", arg=num_loops, timeout=60_000
    )
    measured = page.locator("#stage").evaluate("stage => ({...stage.dataset})")
    print(f"speed {speed}: drift {measured['maxDriftFrames']} frames in {measured['numDriftSamples']} looks")
    assert int(measured["numDriftSamples"]) > 50
    assert float(measured["maxDriftFrames"]) <= 1


def test_the_pictures_themselves_are_in_step(site: Any, open_page: Any) -> None:
    """Reads from the screen which frames are there, at every picture of it, over three loops and two lengths."""
    page = open_page()
    come_in(page, site.entrance("numbered"))
    wait_for_pair(page)
    seen = page.evaluate(
        """() => new Promise((resolve) => {
          const stage = document.getElementById("stage"), seen = [];
          const number = (canvas) => {
            const [grey] = canvas.getContext("2d").getImageData(canvas.width / 2, canvas.height / 2, 1, 1).data;
            return Math.round((grey - 10) / 6);
          };
          const look = () => {
            const canvases = [...document.querySelectorAll(".stage canvas")];
            if (canvases.every((canvas) => !canvas.hidden)) seen.push(canvases.map(number));
            if (Number(stage.dataset.numLoops) >= 3) resolve(seen);
            else requestAnimationFrame(look);
          };
          look();
        })"""
    )
    short = NUM_FRAMES - 10 - 1
    apart = [abs(min(left, short) - min(right, short)) for left, right in seen]
    print(f"pixels: drift {max(apart)} frames in {len(seen)} looks, none at {apart.count(0) / len(apart):.0%} of them")
    assert max(apart) <= 1
    # Both clips are seen to their ends, and most of their frames are seen.
    assert {max(pair) for pair in seen} >= {NUM_FRAMES - 1}
    assert max(min(pair) for pair in seen) == short
    assert len({max(pair) for pair in seen}) > NUM_FRAMES * 0.6


def test_the_last_frame_is_held_and_clips_begin_again(site: Any, open_page: Any) -> None:
    page = open_page()
    come_in(page, site.entrance("plain"))
    wait_for_pair(page)
    last = f"{NUM_FRAMES - 1} {NUM_FRAMES - 1}"
    held_ms = page.evaluate(
        """last => new Promise((resolve) => {
          const stage = document.getElementById("stage");
          let since = 0;
          const look = (now) => {
            if (stage.dataset.frames === last) since ||= now;
            else if (since) return resolve(now - since);
            requestAnimationFrame(look);
          };
          requestAnimationFrame(look);
        })""",
        last,
    )
    assert 180 <= held_ms < 1500


def test_pause_steps_replay_and_speed(site: Any, open_page: Any) -> None:
    page = open_page()
    come_in(page, site.entrance("plain"))
    wait_for_pair(page)
    frames = lambda: page.locator("#stage").get_attribute("data-frames")  # noqa: E731
    page.wait_for_function("() => parseInt(document.getElementById('stage').dataset.frames) > 8")
    page.keyboard.press("p")
    page.wait_for_timeout(300)
    page.keyboard.press(",")
    page.wait_for_timeout(300)
    left, right = (int(frame) for frame in frames().split())
    assert left == right
    page.keyboard.press(".")
    page.keyboard.press(".")
    page.wait_for_function(
        "frames => document.getElementById('stage').dataset.frames === frames", arg=f"{left + 2} {left + 2}"
    )
    # The pictures are those of the frame.
    times = page.evaluate("[...document.querySelectorAll('.stage video')].map((video) => video.currentTime)")
    assert times == pytest.approx([(left + 2.5) / 15] * 2, abs=0.02)
    page.keyboard.press("]")
    assert page.locator("#speed").input_value() == "1.5"
    page.keyboard.press("Space")
    page.wait_for_function("() => parseInt(document.getElementById('stage').dataset.frames) < 5")
    before = wait_for_pair(page)
    page.keyboard.press("ArrowLeft")
    wait_for_pair(page, before)
    until(lambda: any(row.num_replays == 1 and row.speed == 1.5 for row in site.answers("plain")))


def test_reduced_motion_waits_for_play(site: Any, open_page: Any, shoot: Any) -> None:
    page = open_page(reduced_motion="reduce")
    come_in(page, site.entrance("plain"))
    wait_for_pair(page)
    page.wait_for_timeout(600)
    assert page.locator("#stage").get_attribute("data-watched-ms") == "0"
    page.get_by_role("button", name="Play", exact=True).first.click()
    page.wait_for_function("() => Number(document.getElementById('stage').dataset.numLoops) === 1")
    page.wait_for_timeout(500)
    assert page.evaluate("[...document.querySelectorAll('.stage video')].every((video) => video.paused)")


def test_buttons_wait_for_the_minimum_viewing_time(site: Any, open_page: Any, shoot: Any) -> None:
    page = open_page(color_scheme="dark")
    come_in(page, site.entrance("patient"))
    page.locator("#countdown:visible").wait_for()
    page.wait_for_timeout(400)
    assert page.get_by_role("button", name="Equal").get_attribute("aria-disabled") == "true"
    shoot(page, "countdown-dark")
    page.keyboard.press("ArrowLeft")
    page.wait_for_timeout(200)
    assert site.answers("patient") == []
    answer(page, "ArrowLeft")
    until(lambda: len(site.answers("patient")) == 1)
    assert site.answers("patient")[0].watched_ms >= 2000
