"""Many clips in a folder, and a page that plays them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Template

from themis_ray.clips.pictures import draw_actions, upscale
from themis_ray.clips.replay import Replayer
from themis_ray.clips.video import write_clip
from themis_ray.data import Segment

__all__ = ["GalleryClip", "spread_segments", "write_gallery", "write_page"]

PAGE = Template(
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
  :root { color-scheme: light dark; }
  body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1200px; padding: 0 1rem; }
  h1 { font-size: 1.3rem; margin: 0 0 .2rem; }
  p { margin: 0 0 1.5rem; opacity: .7; }
  main { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fill, minmax(260px, 1fr)); }
  figure { border: 1px solid #8884; border-radius: 8px; margin: 0; overflow: hidden; }
  video { background: #000; display: block; height: auto; image-rendering: pixelated; width: 100%; }
  figcaption { display: grid; font-size: .85rem; gap: 0 1rem; grid-template-columns: auto 1fr; padding: .6rem .8rem; }
  figcaption span:nth-child(even) { font-variant-numeric: tabular-nums; text-align: right; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p>{{ clips|length }} clips of {{ length }} steps. Point at one to play it again from its beginning.</p>
<main>
{%- for clip in clips %}
<figure>
<video src="{{ clip.path.name }}" autoplay loop muted playsinline controls
  onmouseenter="this.currentTime = 0; this.play()"></video>
<figcaption>
<span>true return</span><span>{{ "%.2f"|format(clip.segment.true_return) }}</span>
<span>steps of its episode</span>
<span>{{ clip.segment.start_step }} to {{ clip.segment.start_step + length - 1 }}</span>
<span>segment</span><span>{{ clip.segment.id[:8] }}</span>
</figcaption>
</figure>
{%- endfor %}
</main>
</body>
</html>
""",
    autoescape=True,
)


@dataclass(frozen=True)
class GalleryClip:
    """A clip that was written.

    Attributes:
        segment: What it shows.
        path: Its file.
        size: Width and height in pixels.
    """

    segment: Segment
    path: Path
    size: tuple[int, int]


def spread_segments(segments: tuple[Segment, ...], num_segments: int) -> list[Segment]:
    """Returns at most `num_segments` of those that can be replayed, evenly over the order in which they were stored."""
    known = [segment for segment in segments if segment.origin is not None]
    rows = np.unique(np.linspace(0, len(known) - 1, min(num_segments, len(known))).round().astype(int))
    return [known[row] for row in rows]


def write_gallery(
    segments: Iterable[Segment],
    replayer: Replayer,
    folder: Path,
    *,
    codec: str = "vp9",
    clip_fps: float = 15.0,
    has_actions: bool = True,
) -> Iterator[GalleryClip]:
    """Writes one clip per segment, small frames enlarged, and yields each as it is there.

    Args:
        segments: What is shown.
        replayer: Of their environment.
        folder: It is made if it is missing.
        codec: A key of `CODECS`.
        clip_fps: Frames, and so env steps, per second.
        has_actions: Whether a strip below the frames shows the action of each.

    Raises:
        DataError: A segment cannot be replayed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for segment, drawn in replayer.replay(segments):
        frames = upscale(drawn)
        if has_actions:
            frames = draw_actions(frames, segment.actions, replayer.action_space, replayer.action_names)
        path = write_clip(frames, folder, codec=codec, clip_fps=clip_fps)
        yield GalleryClip(segment, path, (frames.shape[2], frames.shape[1]))


def write_page(clips: list[GalleryClip], folder: Path, title: str) -> Path:
    """Writes `index.html`, which plays the clips of a folder, and returns its path."""
    path = folder / "index.html"
    path.write_text(PAGE.render(title=title, clips=clips, length=len(clips[0].segment)))
    return path
