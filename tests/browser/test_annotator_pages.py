"""People take part in studies in a real browser, and what they did is what the store holds."""

from __future__ import annotations

import json
from typing import Any

import pytest
from browser.annotating import answer, come_in, saving_state, until, wait_for_pair
from browser.labelling_site import NUM_FRAMES

from themis_ray.data import Choice
from themis_ray.wire import NewQuery, NewSide

pytestmark = pytest.mark.browser

MIRRORED = {"left": "right", "right": "left"}


def on_screen(row: Any) -> str:
    """Returns which side of the screen was chosen."""
    return MIRRORED.get(row.choice, row.choice) if row.is_flipped else str(row.choice)


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


# ---------------------------------------------------------------- clips


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


# ---------------------------------------------------------------- other feedback


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
    page.wait_for_url("**/help")
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
