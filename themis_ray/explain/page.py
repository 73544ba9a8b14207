"""One page that shows why: clips with their explanations, pairs, and the answers that a prediction stands on.

The page is a single file. Videos and pictures are in it, and it asks no other machine for anything, so that it can be
kept, mailed and opened years later.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from themis_ray.data import Choice
from themis_ray.errors import DataError
from themis_ray.files import write_whole

__all__ = ["ExplainedClip", "ExplainedPair", "InfluenceRow", "PageSection", "write_explanation_page"]

TEMPLATE = "page.html"
MEDIA_TYPES = {".webm": "video/webm", ".mp4": "video/mp4", ".png": "image/png"}
VIDEOS, PICTURES = (".webm", ".mp4"), (".png",)

Facts = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class ExplainedClip:
    """A clip with what explains it drawn on or beside its frames.

    Attributes:
        title: What it is.
        clip: The video, .webm or .mp4.
        picture: A still of it, such as a film strip, .png; None for none.
        facts: What is known of it: (name, value).
        note: A sentence below it.
    """

    title: str
    clip: Path
    picture: Path | None
    facts: Facts = ()
    note: str = ""


@dataclass(frozen=True)
class ExplainedPair:
    """Two clips that are compared.

    Attributes:
        title: What they are.
        left: One of them.
        right: The other one.
        facts: What is known of the pair: (name, value).
        note: A sentence below it.
    """

    title: str
    left: ExplainedClip
    right: ExplainedClip
    facts: Facts = ()
    note: str = ""


@dataclass(frozen=True)
class InfluenceRow:
    """An answer that moved a prediction, or anything else that did.

    Attributes:
        title: What it is, such as the number of the answer and who gave it.
        influence: How far it moved the prediction; above 0 where it raised it.
        left: The video of its left segment; None where there is nothing to see.
        right: That of its right segment; None where there is only one.
        choice: What was answered; None where nothing was asked.
        facts: What is known of it: (name, value).
    """

    title: str
    influence: float
    left: Path | None = None
    right: Path | None = None
    choice: Choice | None = None
    facts: Facts = ()


@dataclass(frozen=True)
class PageSection:
    """A part of the page under a heading of its own; what it has none of is left out.

    Attributes:
        title: The heading.
        text: What it shows; an empty line begins a paragraph.
        clips: Shown next to each other.
        pairs: Shown below each other.
        influences: Shown in the order given, with bars of one scale.
        influence_texts: What a bar to the left and one to the right mean.
    """

    title: str
    text: str = ""
    clips: Sequence[ExplainedClip] = ()
    pairs: Sequence[ExplainedPair] = ()
    influences: Sequence[InfluenceRow] = ()
    influence_texts: tuple[str, str] = ("spoke against it", "spoke for it")


@dataclass
class _Media:
    """Files as addresses that hold their content; each is read once."""

    known: dict[Path, str] = field(default_factory=dict)

    def address(self, path: Path, suffixes: Sequence[str]) -> str:
        if path.suffix not in suffixes:
            raise DataError(f"{path} is no {' or '.join(suffixes)} file, which is what a page can show there.")
        if path not in self.known:
            try:
                content = path.read_bytes()
            except OSError as error:
                raise DataError(f"{path} cannot be read ({error}). Write it first, see write_clip.") from error
            self.known[path] = f"data:{MEDIA_TYPES[path.suffix]};base64,{base64.b64encode(content).decode()}"
        return self.known[path]


def write_explanation_page(
    path: str | Path, title: str, intro: str, sections: Sequence[PageSection], *, facts: Facts = ()
) -> Path:
    """Writes the page and returns its path; the folder is made if it is missing.

    Whatever is said is shown as it is, HTML too. Clips play while they are in view, those of a pair together, and not
    by themselves where the reader's system asks for less motion. A clip takes a third more bytes in the page than in
    its file: keep clips small.

    Args:
        path: Where to.
        title: The heading.
        intro: What the page shows; an empty line begins a paragraph.
        sections: Its parts, in order.
        facts: What is known of the run: (name, value).

    Raises:
        DataError: A video or picture is missing, or of a kind that browsers do not show.
    """
    media = _Media()
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "video": lambda file: media.address(Path(file), VIDEOS),
        "picture": lambda file: media.address(Path(file), PICTURES),
        "paragraphs": _paragraphs,
    }
    environment.globals |= {"bars": _bars, "anchor": _anchor}
    page = environment.get_template(TEMPLATE).render(title=title, intro=intro, sections=sections, facts=facts)
    path = Path(path)
    write_whole(path, page)
    return path


def _paragraphs(text: str) -> list[str]:
    return [" ".join(part.split()) for part in text.split("\n\n") if part.strip()]


def _anchor(number: int) -> str:
    return f"part-{number}"


def _bars(rows: Sequence[InfluenceRow]) -> list[dict[str, Any]]:
    """Returns where the bar of each row begins and how wide it is, in per cent, and what its number is.

    Raises:
        DataError: An influence is not finite.
    """
    if not all(math.isfinite(row.influence) for row in rows):
        raise DataError("some influences are not finite, so they have no bar. Give numbers only.")
    largest = max((abs(row.influence) for row in rows), default=0.0) or 1.0
    return [
        {
            "start": round(50 + min(row.influence, 0.0) / largest * 50, 2),
            "width": round(abs(row.influence) / largest * 50, 2),
            "sign": "up" if row.influence > 0 else "down",
            "text": f"{row.influence:+.3g}".replace("-", "\N{MINUS SIGN}"),
        }
        for row in rows
    ]
