import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from themis_ray.clips import write_clip
from themis_ray.data import Choice
from themis_ray.errors import DataError
from themis_ray.explain.page import ExplainedClip, ExplainedPair, InfluenceRow, PageSection, write_explanation_page
from themis_ray.explain.pictures import write_picture

NASTY = "<script>alert('a')</script> & \"quoted\""


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    frames = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    return write_clip(frames, tmp_path / "clips")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    return write_picture(np.full((8, 8, 3), 9, np.uint8), tmp_path / "still.png")


class Tags(HTMLParser):
    """Collects tags with their attributes, and the text of the page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def read(path: Path) -> Tags:
    """Parses a page, in which every tag that is opened has to be closed."""
    tags = Tags()
    tags.feed(path.read_text())
    assert not tags.open
    return tags


def everything(clip: Path, picture: Path, text: str = "words") -> list[PageSection]:
    facts = [(text, text)]
    one = ExplainedClip(text, clip, picture, facts, text)
    rows = [InfluenceRow(text, -1.0, clip, clip, choice, facts) for choice in Choice]
    pair = ExplainedPair(text, one, one, facts, text)
    section = PageSection(text, text, [one], [pair], [*rows, InfluenceRow(text, 0.5, left=clip)], (text, text))
    return [section, PageSection(text)]


def test_everything_is_in_the_page(tmp_path: Path, clip: Path, picture: Path) -> None:
    path = write_explanation_page(
        tmp_path / "new" / "page.html", "Why", "So.\n\nBecause.", everything(clip, picture), facts=[("run", "seed 3")]
    )
    tags = read(path)
    sources = [attributes["src"] for tag in ("video", "img") for attributes in tags.all(tag)]
    assert len(tags.all("video")) == 1 + 2 + 4 * 2 + 1
    assert len(tags.all("img")) == 1 + 2
    prefix = "data:video/webm;base64,"
    assert base64.b64decode(sources[0].removeprefix(prefix)) == clip.read_bytes()
    assert base64.b64decode(sources[-1].removeprefix("data:image/png;base64,")) == picture.read_bytes()
    for told in ("Why", "So.", "Because.", "run", "seed 3", "left is better", "can't tell"):
        assert told in tags.text


def test_the_page_asks_nobody_for_anything(tmp_path: Path, clip: Path, picture: Path) -> None:
    path = write_explanation_page(tmp_path / "page.html", "Why", "", everything(clip, picture))
    tags = read(path)
    for _, attributes in tags.tags:
        assert (attributes.get("src") or "data:").startswith("data:")
        assert (attributes.get("href") or "#").startswith("#")
    assert not tags.all("link")
    rest = re.sub(r"base64,[\w+/=]*", "", path.read_text())
    assert not re.search(r"https?://|@import|url\(|fetch\(|XMLHttpRequest", rest)
    policy = next(meta["content"] for meta in tags.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy


def test_what_is_said_is_shown_and_never_run(tmp_path: Path, clip: Path, picture: Path) -> None:
    plain = read(write_explanation_page(tmp_path / "plain.html", "t", "i", everything(clip, picture)))
    sections = everything(clip, picture, NASTY)
    nasty = read(write_explanation_page(tmp_path / "nasty.html", NASTY, NASTY, sections, facts=[(NASTY, NASTY)]))
    assert len(nasty.all("script")) == len(plain.all("script")) == 1
    assert nasty.text.count(NASTY) > 20
    assert all(NASTY in video["aria-label"] for video in nasty.all("video"))


def test_nothing_moves_by_itself_without_being_asked_whether_it_may(tmp_path: Path, clip: Path, picture: Path) -> None:
    path = write_explanation_page(tmp_path / "page.html", "Why", "", everything(clip, picture))
    assert all(
        "autoplay" not in video and "controls" in video and "muted" in video for video in read(path).all("video")
    )
    assert "prefers-reduced-motion: reduce" in path.read_text()


def test_clips_of_a_pair_are_a_group_of_their_own(tmp_path: Path, clip: Path, picture: Path) -> None:
    sections = everything(clip, picture) + everything(clip, picture)
    groups = [
        video["data-group"]
        for video in read(write_explanation_page(tmp_path / "p.html", "", "", sections)).all("video")
    ]
    counts = sorted(groups.count(group) for group in set(groups))
    assert counts == [1] * 4 + [2] * 10
    identifiers = [attributes["id"] for _, attributes in read(tmp_path / "p.html").tags if "id" in attributes]
    assert len(set(identifiers)) == len(identifiers)


def test_bars_of_influence_are_signed_and_of_one_scale(tmp_path: Path) -> None:
    rows = [InfluenceRow(str(influence), influence) for influence in (2.0, -1.0, 0.5, 0.0)]
    tags = read(write_explanation_page(tmp_path / "page.html", "", "", [PageSection("five", influences=rows)]))
    bars = [attributes["style"] for attributes in tags.all("i") if "style" in attributes]
    assert bars == [
        "left: 50.0%; width: 50.0%",
        "left: 25.0%; width: 25.0%",
        "left: 50.0%; width: 12.5%",
        "left: 50.0%; width: 0.0%",
    ]
    classes = [attributes["class"] for attributes in tags.all("div") if attributes.get("class", "").startswith("bar ")]
    assert classes[:3] == ["bar up", "bar down", "bar up"]
    assert "+2" in tags.text
    assert "\N{MINUS SIGN}1" in tags.text


def test_the_side_that_was_chosen_is_marked(tmp_path: Path, clip: Path) -> None:
    for choice, marked in ((Choice.LEFT, ["chosen", ""]), (Choice.RIGHT, ["", "chosen"]), (Choice.EQUAL, ["", ""])):
        rows = [InfluenceRow("answer", 1.0, clip, clip, choice)]
        tags = read(write_explanation_page(tmp_path / "page.html", "", "", [PageSection("", influences=rows)]))
        figures = [attributes["class"].split() for attributes in tags.all("figure")]
        assert figures == [["said", mark] if mark else ["said"] for mark in marked]


def test_what_a_page_cannot_show_is_told_and_leaves_no_page(tmp_path: Path, clip: Path, picture: Path) -> None:
    path = tmp_path / "page.html"
    for wrong, told in (
        (ExplainedClip("t", tmp_path / "missing.webm", None), "cannot be read"),
        (ExplainedClip("t", picture, None), "webm"),
        (ExplainedClip("t", clip, clip), "png"),
    ):
        with pytest.raises(DataError, match=told):
            write_explanation_page(path, "t", "i", [PageSection("s", clips=[wrong])])
    with pytest.raises(DataError, match="finite"):
        write_explanation_page(path, "t", "i", [PageSection("s", influences=[InfluenceRow("r", float("nan"))])])
    assert not list(tmp_path.glob("*page.html*"))
