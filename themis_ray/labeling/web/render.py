"""Templates become pages."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup

__all__ = ["STATIC_FOLDER", "PageRenderer", "page_renderer"]

FOLDER = Path(__file__).parent
STATIC_FOLDER = FOLDER / "static"


class PageRenderer:
    """Fills in templates; everything that is filled in is escaped.

    Attributes:
        root: What stands before every address of the service, such as "/labels"; "" where it is served from the top.
    """

    def __init__(self, root: str = "") -> None:
        self.root = root.rstrip("/")
        self._environment = Environment(
            loader=FileSystemLoader(FOLDER / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters["markdown"] = _to_html
        self._environment.globals["root"] = self.root

    def render(self, template: str, **context: object) -> str:
        """Returns the page that a template makes of the context."""
        return self._environment.get_template(template).render(context)


@lru_cache(maxsize=8)
def page_renderer(root: str) -> PageRenderer:
    """Returns the renderer of a service, which is made once since it keeps its templates compiled."""
    return PageRenderer(root)


def _to_html(text: str) -> Markup:
    """Returns an experimenter's Markdown as HTML; tags in it are shown, not obeyed."""
    return Markup(MarkdownIt("commonmark", {"html": False}).enable("table").render(text))
