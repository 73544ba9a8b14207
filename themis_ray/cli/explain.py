"""`themis explain`: why a policy acts so, and why a reward model pays so."""

from __future__ import annotations

from pathlib import Path

import click

from themis_ray.cli.paths import check_folder
from themis_ray.cli.progress import late_progress
from themis_ray.clips import CODECS
from themis_ray.errors import lookup
from themis_ray.explain import BASELINES
from themis_ray.explaining import SUBJECTS, ExplainedRun, Explanation, Output, explain_run
from themis_ray.reward_actor import prepare_process
from themis_ray.tracking import RunFolder

__all__ = ["explain"]

EXPLAIN_EXAMPLES = """
\b
Examples:
  themis explain runs/cartpole-v1-ppo-oracle-s0
  themis explain runs/ale-pong-v5-ppo-oracle-s0 --of action --method kernel_shap
  themis explain runs/halfcheetah-v5-sac-oracle-s0 --of action --dimension 2
  themis explain runs/cartpole-v1-ppo-oracle-s0 --of preference --influence
  themis explain runs/cartpole-v1-ppo-oracle-s0 --method tracin_cp_fast
"""


@click.command(epilog=EXPLAIN_EXAMPLES)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--of", default="reward", show_default=True, help=f"What: {', '.join(SUBJECTS)}.")
@click.option(
    "--method",
    default="integrated_gradients",
    show_default=True,
    help="How: see themis list explanations; tracin_cp_fast shows what it was learned from.",
)
@click.option("--influence", is_flag=True, help="Show which answers, or states, moved each prediction, too.")
@click.option("--segments", "num_segments", default=6, show_default=True, help="Segments, or pairs of --of preference.")
@click.option("--baseline", default="auto", show_default=True, help=f"Compared with: {', '.join(BASELINES)}.")
@click.option("--dimension", type=int, help="Of a Box action. Default: the length of the whole action.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder. Default: RUN/explanations/OF-METHOD.")
@click.option("--codec", default="vp9", show_default=True, help="vp9 (WebM) or h264 (MP4).")
@click.option("--fps", default=10.0, show_default=True, help="Env steps per second.")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="For what is drawn: reference steps, coalitions, noise.",
)
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def explain(
    run: Path,
    of: str,
    method: str,
    influence: bool,
    num_segments: int,
    baseline: str,
    dimension: int | None,
    out: Path | None,
    codec: str,
    fps: float,
    seed: int,
    debug: bool,
) -> None:
    """Write clips that show what each step's inputs are due, stills, their numbers, and a page with all of it.

    Opens the run's newest checkpoint, which is unpickled: trust a run folder like a program.
    """
    del debug
    explanation = Explanation(of, method, baseline, dimension)
    lookup("codec", codec, CODECS)
    folder, config = RunFolder.open(run)
    prepare_process()
    out = out or folder.path / "explanations" / f"{of}-{method}"
    check_folder("--out", out)
    with late_progress(f"{of} of {config.env.id}") as report:
        opened = ExplainedRun(folder.path, config, seed)
        page = explain_run(opened, explanation, Output(out, codec, fps), num_segments, influence, report)
    click.echo(f"Page: {page}")
