"""`themis clip`: segments of a run as videos."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from themis_ray.cli.paths import check_folder
from themis_ray.cli.progress import late_progress
from themis_ray.clips import CODECS, Replayer, spread_segments, write_gallery, write_page
from themis_ray.data import PreferenceDataset
from themis_ray.errors import ConfigError, DataError, lookup
from themis_ray.tracking import RunFolder

__all__ = ["clip"]

CLIP_EXAMPLES = """
\b
Examples:
  themis clip runs/pendulum-v1-sac-oracle-s0 --segments 6 --out clips
  themis clip runs/ale-pong-v5-ppo-oracle-s0 --segments 20 --out clips --codec h264 --fps 30
"""


@click.command(epilog=CLIP_EXAMPLES)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--segments", "num_segments", default=6, show_default=True, help="Clips, spread evenly over the run.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the clips. Default: RUN/clips.")
@click.option("--codec", default="vp9", show_default=True, help="vp9 (WebM) or h264 (MP4).")
@click.option("--fps", default=15.0, show_default=True, help="Env steps per second.")
@click.option("--actions/--no-actions", default=True, show_default=True, help="Show the action of each step.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def clip(run: Path, num_segments: int, out: Path | None, codec: str, fps: float, actions: bool, debug: bool) -> None:
    """Write videos of segments that a run asked about, and a page that plays them.

    Every frame is drawn by the simulator in the very state that the agent was in.
    """
    del debug
    if num_segments < 1:
        raise ConfigError(f"--segments {num_segments} shows nothing. Give 1 or more.")
    lookup("codec", codec, CODECS)
    folder, config = RunFolder.open(run)
    out = out or folder.path / "clips"
    check_folder("--out", out)
    stored = PreferenceDataset(folder.path).segments
    chosen = spread_segments(stored, num_segments)
    if not chosen:
        raise DataError(
            f"{run} holds {len(stored)} segments, none of which can be replayed. Segments are stored when a teacher is "
            "asked about them; give a run of themis train that asked."
        )
    clips = []
    with late_progress(f"clips of {config.env.id}") as report, Replayer(config.env) as replayer:
        for written in write_gallery(chosen, replayer, out, codec=codec, clip_fps=fps, has_actions=actions):
            clips.append(written)
            report(len(clips) / len(chosen))
    page = write_page(clips, out, config.env.id)
    table = Table(title=f"{config.env.id} · {len(clips)} of {len(stored)} segments", title_justify="left")
    for name in ("clip", "pixels", "kB", "true return", "steps of its episode"):
        table.add_column(name, justify="left" if name == "clip" else "right")
    for written in clips:
        first = written.segment.start_step
        table.add_row(
            written.path.name,
            "{}x{}".format(*written.size),
            f"{written.path.stat().st_size / 1000:.0f}",
            f"{written.segment.true_return:.2f}",
            f"{first} to {first + len(written.segment) - 1}",
        )
    Console().print(table)
    click.echo(f"Page: {page}")
