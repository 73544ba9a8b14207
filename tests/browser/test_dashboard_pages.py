"""The pages of experimenters in a browser: live numbers, clips side by side, forms, both schemes, axe."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser.labelling_site import CLIP_FPS, NUM_FRAMES, SECRET, Site, _running, balance_clips, free_port

from themis_ray.labeling.app import create_app
from themis_ray.labeling.clip_server import ClipApp
from themis_ray.labeling.export import AnswerRow
from themis_ray.labeling.routes import dashboard, exports, pages
from themis_ray.labeling.security import SESSION_COOKIE
from themis_ray.labeling.service import Service, ServiceSettings
from themis_ray.labeling.store import LabelStore
from themis_ray.labeling.store.imports import Imports
from themis_ray.labeling.study import StudyConfig
from themis_ray.wire import NewQuery, NewSide

pytestmark = pytest.mark.browser

NUM_PEOPLE = 14
OVERLAP = 8
SETTINGS = {
    "id": "balance",
    "title": "Holding a pole upright",
    "question": "In which clip is the pole held up better?",
    "overlap": OVERLAP,
    "queries_per_annotator": 25,
    "gold_share": 0.1,
    "max_answers": 5000,
    "arms": [{"name": "plain"}, {"name": "heatmap", "overlay": "reward-saliency"}],
    "webhook_url": "https://hooks.example.org/labels",
}


@dataclass(frozen=True)
class Board(Site):
    """A service that runs, and the names of its clips."""

    clips: list[str]


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    """A service with a study in which people have answered for some hours, and one that nobody has come to."""
    folder = tmp_path_factory.mktemp("board")
    names = balance_clips(folder / "clips" / "balance")
    store = LabelStore(f"sqlite:///{folder / 'labels.sqlite'}")
    store.studies.create(StudyConfig.model_validate(SETTINGS), "test")
    store.studies.create(StudyConfig(id="later", title="Not begun"), "test")
    for name in names:
        store.studies.add_clip("balance", name, 1)
    queries = make_queries(names)
    store.studies.add_queries("balance", queries, "test")
    Imports(store.database).add("balance", make_answers(queries), "test")
    port, clips_port = free_port(), free_port()
    url = f"http://127.0.0.1:{port}"
    service = Service(store, ServiceSettings(SECRET, folder / "clips", f"http://127.0.0.1:{clips_port}", url))
    app = create_app(service)
    paths = {getattr(route, "path", "") for route in app.routes}
    for router, path, prefix in (
        (pages.router, "/work", ""),
        (dashboard.router, "/studies", ""),
        (exports.router, "/api/v1/studies/{study}/export", "/api/v1"),
    ):
        if path not in paths:
            app.include_router(router, prefix=prefix)
    with _running(app, port), _running(ClipApp(folder / "clips", SECRET, [url]), clips_port):
        yield Board(url, service, names)
    store.close()


def make_queries(names: list[str]) -> list[NewQuery]:
    sides = [
        NewSide(segment_id=f"segment-{number}", clip=name, num_frames=NUM_FRAMES, clip_fps=CLIP_FPS)
        for number, name in enumerate(names)
    ]
    pairs = [(left, right) for number, left in enumerate(sides) for right in sides[number + 1 :]]
    queries = [
        NewQuery(
            id=f"query-{number:02d}",
            kind="gold" if number % 7 == 3 else "ordinary",
            gold_choice=None,
            left=left,
            right=right,
            about={"env_id": "CartPole-v1", "run": "cartpole-3", "checkpoint": 120, "reward_version": 4, "seed": 3},
        )
        for number, (left, right) in enumerate(pairs)
    ]
    return [
        query.model_copy(update={"gold_choice": better_and_worse(query)[0]}) if query.kind == "gold" else query
        for query in queries
    ]


def better_and_worse(query: NewQuery) -> tuple[str, str]:
    assert query.right is not None
    is_left = hash_of(query.left.clip) < hash_of(query.right.clip)
    return ("left", "right") if is_left else ("right", "left")


def hash_of(name: str) -> str:
    """An order of the clips in which about half of the pairs have the better one on the left."""
    return name[::-1]


def make_answers(queries: list[NewQuery]) -> list[AnswerRow]:
    """Two thirds of what is wanted; person 5 guesses, the others know which clip is better in 17 of 20 cases."""
    rng = np.random.default_rng(0)
    at = datetime.now(UTC) - timedelta(hours=5)
    rows = []
    for number in range(len(queries) * OVERLAP * 2 // 3):
        query = queries[number % len(queries)]
        person = (number * 3 + number // len(queries)) % NUM_PEOPLE
        at += timedelta(seconds=float(rng.exponential(120)))
        better, worse = better_and_worse(query)
        is_right = rng.random() < (0.5 if person == 5 else 0.85)
        rows.append(
            AnswerRow(
                study="balance",
                answer_id=f"answer-{number}",
                query_id=query.id,
                kind=query.kind,
                feedback="pairwise",
                left_id=query.left.segment_id,
                right_id=query.right.segment_id,
                left_clip=query.left.clip,
                right_clip=query.right.clip,
                left_num_frames=NUM_FRAMES,
                right_num_frames=NUM_FRAMES,
                clip_fps=CLIP_FPS,
                choice="equal" if rng.random() < 0.08 else better if is_right else worse,
                rating=None,
                steps=None,
                actions=None,
                reset_seed=None,
                gold_choice=query.gold_choice,
                annotator_id=f"p-{person:02d}{'abcdefghijklmn'[person]}4",
                arm=("plain", "heatmap")[person % 2],
                overlay=("", "reward-saliency")[person % 2],
                is_flipped=bool(rng.integers(2)),
                repeat=0,
                response_ms=int(1000 * rng.lognormal(1.6, 0.5)),
                watched_ms=3000,
                num_replays=0,
                speed=1.0,
                overlay_ms=1500 * (person % 2),
                assigned_at=at - timedelta(seconds=9),
                answered_at=at,
                weight=1.0,
                env_id=None,
                run=None,
                checkpoint=None,
                reward_version=None,
                seed=None,
                num_env_steps=None,
                about=json.dumps({}),
            )
        )
    return rows


@pytest.fixture
def open_board(open_page: Any, board: Board) -> Any:
    """Opens pages in which an admin is signed in."""

    def make(**settings: Any) -> Any:
        page = open_page(base_url=board.url, **settings)
        name = f"Ada {np.random.default_rng().integers(10**9)}"
        member = board.store.access.accept_invitation(name, "admin", "Ada", None)
        _, cookie = board.service.signer.make_session("member", member.id)
        page.context.add_cookies([{"name": SESSION_COOKIE, "value": cookie, "url": board.url}])
        return page

    return make


def test_the_numbers_are_fetched_anew(board: Board, open_board: Any, shoot: Any) -> None:
    page = open_board(viewport={"width": 1200, "height": 1180})
    page.goto("/studies")
    page.get_by_role("heading", name="Studies").wait_for()
    page.get_by_role("link", name="Holding a pole upright").click()
    page.get_by_text("Updated every 5 seconds").wait_for()
    shoot(page, "dashboard")
    before = page.locator("[data-tile=answers] .value").inner_text()
    late = [
        row.model_copy(update={"answer_id": f"late-{row.answer_id}", "annotator_id": "p-late"})
        for row in make_answers(make_queries(board.clips))[:2]
    ]
    Imports(board.store.database).add("balance", late, "test")
    page.wait_for_function(
        "before => document.querySelector('[data-tile=answers] .value').textContent.trim() !== before.trim()",
        arg=before,
        timeout=20_000,
    )
    assert "p-late" in page.locator("#live").inner_text()
    # Who has stopped it sees what they were looking at.
    page.get_by_role("button", name="Stop updating").click()
    page.get_by_text("Not updated").wait_for()


def test_a_query_is_watched_side_by_side(open_board: Any, shoot: Any) -> None:
    page = open_board(viewport={"width": 1100, "height": 860})
    page.goto("/studies/balance/queries?show=disputed")
    shoot(page, "queries")
    page.locator("tbody a").first.click()
    page.get_by_role("button", name="Play both").click()
    page.wait_for_function("() => [...document.querySelectorAll('video')].every(v => !v.paused && v.currentTime > 0.2)")
    page.get_by_role("button", name="Pause both").click()
    page.wait_for_function("() => [...document.querySelectorAll('video')].every(v => v.paused)")
    shoot(page, "query")
    assert "cartpole-3" in page.locator(".about-list").inner_text()


def test_forms_do_what_they_say(board: Board, open_board: Any) -> None:
    page = open_board()
    page.goto("/studies/later")
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("button", name="Resume").click()
    page.get_by_role("button", name="Pause").wait_for()
    page.once("dialog", lambda dialog: dialog.dismiss())
    page.get_by_role("button", name="Stop", exact=True).click()
    assert board.store.studies.get("later").status == "running"
    page.get_by_label("What it is for").fill("trainer")
    page.get_by_role("button", name="Make a token").click()
    assert re.fullmatch(r"themis_\S{40,}", page.locator("#secret").inner_text())
    page.get_by_label("Answers per query").fill("4")
    page.get_by_role("button", name="Extend").click()
    page.get_by_text("4 answers per query").wait_for()
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Stop", exact=True).click()
    page.locator(".badge.stopped").wait_for()
    page.get_by_role("button", name="Resume").click()
    page.locator(".badge.running").wait_for()
    page.get_by_role("button", name="Sign out").click()
    page.get_by_label("Link or invitation").wait_for()
    assert page.goto("/studies").status == 401


def test_an_export_is_downloaded(open_board: Any, tmp_path: Path) -> None:
    page = open_board()
    page.goto("/studies/balance")
    with page.expect_download() as waiting:
        page.get_by_role("link", name="Download as CSV").click()
    waiting.value.save_as(tmp_path / "got.csv")
    assert len((tmp_path / "got.csv").read_text().splitlines()) > 100


def test_everything_works_without_scripts(open_board: Any) -> None:
    page = open_board(java_script_enabled=False)
    page.goto("/studies/balance?sort=reliability")
    assert page.locator("figure.chart svg").count() == 6
    assert page.get_by_role("button", name="Stop updating").count() == 0
    page.get_by_role("link", name="Browse queries").click()
    page.get_by_role("link", name="Gold", exact=True).click()
    assert page.locator("tbody tr").count() == 3


@pytest.mark.parametrize("width", [390, 820, 1280])
def test_no_page_is_wider_than_its_window(open_board: Any, width: int) -> None:
    page = open_board(viewport={"width": width, "height": 900})
    for path in (
        "/studies",
        "/studies/balance",
        "/studies/later",
        "/studies/balance/queries",
        "/studies/balance/queries/query-00",
    ):
        page.goto(path)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_on_the_dashboard(open_board: Any, axe: str, scheme: str) -> None:
    page = open_board(color_scheme=scheme)
    found = {}
    for path in (
        "/studies",
        "/studies/balance",
        "/studies/later",
        "/studies/balance/queries",
        "/studies/balance/queries?show=practice",
        "/studies/balance/queries/query-00",
    ):
        page.goto(path)
        page.evaluate(axe)
        result = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        found[path] = [
            f"{row['impact']} {row['id']}: {row['nodes'][0]['target']} {row['nodes'][0]['failureSummary']}"
            for row in result["violations"]
        ]
    print({path: rows for path, rows in found.items() if rows} or f"axe: nothing on {len(found)} pages, {scheme}")
    grave = {path: [row for row in rows if row.startswith(("serious", "critical"))] for path, rows in found.items()}
    assert not {path: rows for path, rows in grave.items() if rows}
