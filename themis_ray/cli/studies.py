"""`themis study`, `themis simulate-annotators` and `themis annotate`: people, and programs in their place."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from themis_ray.cli.paths import check_file
from themis_ray.cli.progress import late_progress, progress_bar
from themis_ray.clips import CODECS
from themis_ray.data import Choice, Query
from themis_ray.errors import ConfigError, lookup
from themis_ray.feedback import TEACHERS, SyntheticTeacher, TeacherParameters
from themis_ray.feedback.query_sender import QuerySender
from themis_ray.feedback.segment_clips import SegmentClips
from themis_ray.feedback.study_client import StudyClient
from themis_ray.tracking import RunFolder
from themis_ray.wire import QueryKind

if TYPE_CHECKING:
    from themis_ray.explaining import ExplainedRun, Output, OverlayClips

__all__ = ["simulate_annotators", "study"]

Command = TypeVar("Command", bound=Callable[..., Any])

STUDY_EXAMPLES = """
\b
Examples:
  themis study create study.yaml
  themis study add-queries my-study --run runs/pendulum-v1-sac-oracle-s0 --sampler disagreement -n 200
  themis study status my-study
  themis study export my-study --out answers.parquet
  themis study export my-study --responses --out responses.jsonl
"""
SIMULATE_EXAMPLES = """
\b
Examples:
  themis simulate-annotators --study my-study --n 20
  themis simulate-annotators --study my-study --n 1000 --think-s 8 --teacher mistake --ledger ledger.jsonl
"""
TOKEN_VARIABLE = "THEMIS_STUDY_TOKEN"
URL_VARIABLE = "THEMIS_STUDY_URL"
DEFAULT_URL = "http://127.0.0.1:8000"
NUM_QUERIES_AT_ONCE = 50
ACTOR = "themis study create"


def connected(command: Command) -> Command:
    """Gives a command the options of where the service is and who asks."""
    for option in (
        click.option("--debug", is_flag=True, help="Show tracebacks."),
        click.option(
            "--token-env",
            default=TOKEN_VARIABLE,
            show_default=True,
            help="Environment variable with an API token of the study.",
        ),
        click.option("--token", help="The token itself; others on this machine can see it."),
        click.option(
            "--url", envvar=URL_VARIABLE, default=DEFAULT_URL, show_default=True, help="Address of the service."
        ),
    ):
        command = option(command)
    return command


def connect(url: str, token: str | None, token_env: str) -> StudyClient:
    """Returns a client; without a token the service says what is missing."""
    return StudyClient(url, token or os.environ.get(token_env), patience_s=10.0)


@click.group(epilog=STUDY_EXAMPLES)
def study() -> None:
    """Studies at a labelling service: make them, fill them, read them."""


@study.command("create", epilog=STUDY_EXAMPLES)
@click.argument("source", type=click.Path(path_type=Path), metavar="STUDY.yaml")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    default=Path("labelling"),
    show_default=True,
    help="Data folder of themis serve.",
)
@click.option("--database-url", default="", help="The service's Postgres, if it has one.")
@click.option("--url", envvar=URL_VARIABLE, default=DEFAULT_URL, show_default=True, help="Address of the service.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def create(source: Path, data: Path, database_url: str, url: str, debug: bool) -> None:
    """Make a study in the data folder of a service, and print its link and, the first time, an API token.

    Run it where the service runs. From elsewhere, sign in and make the study on the page Studies.
    """
    del debug
    # The web stack takes seconds to import.
    from themis_ray.labeling.security import Signer, read_secret
    from themis_ray.labeling.store import LabelStore
    from themis_ray.labeling.study import load_study
    from themis_ray.serving import LabellingSettings, secret_path

    config = load_study(source)
    settings = LabellingSettings(data=data.resolve(), database_url=database_url)
    if not secret_path(settings.data).exists():
        if not database_url:
            raise ConfigError(
                f"--data {data} is no data folder of themis serve. Start themis serve first, or give another."
            )
        if "THEMIS_SECRET" not in os.environ:
            raise ConfigError(
                f"--data {data} has no secret of themis serve to sign the link with. Set THEMIS_SECRET as the service "
                "has it, or give its data folder."
            )
    secret = read_secret(secret_path(settings.data))
    store = LabelStore(settings.resolved_database_url())
    try:
        store.studies.create(config, ACTOR)
        is_known = any(row.name == ACTOR and row.revoked_at is None for row in store.access.tokens(config.id))
        token = None if is_known else store.access.make_token(config.id, ACTOR, ACTOR)[0]
    finally:
        store.close()
    invitation = Signer(secret).make_invitation("annotator", config.id, 366 * 86_400)
    click.echo(f"Study: {config.id}")
    click.echo(f"For annotators: {url.rstrip('/')}/s/{config.id}?invitation={invitation}")
    if token is None:
        click.echo("Token: shown the first time. Make another on the study's page.")
    else:
        click.echo(f"Token, shown once: export {TOKEN_VARIABLE}={token}")


@study.command("list")
@connected
def list_studies(url: str, token: str | None, token_env: str, debug: bool) -> None:
    """Print the studies that the token may see."""
    del debug
    with connect(url, token, token_env) as client:
        rows = client.studies()
    table = Table()
    for name in ("study", "title", "status", "queries", "answers", "wanted", "people"):
        table.add_column(name, justify="left" if name in ("study", "title", "status") else "right")
    for row in rows:
        counts = (str(row[f"num_{name}"]) for name in ("queries", "answers", "wanted", "annotators"))
        table.add_row(row["id"], escape(row["title"]), row["status"], *counts)
    Console().print(table)


@study.command("status")
@click.argument("study_id", metavar="STUDY")
@click.argument("status", required=False, metavar="[running|paused|stopped]")
@connected
def show_status(study_id: str, status: str | None, url: str, token: str | None, token_env: str, debug: bool) -> None:
    """Print how far a study is; with a second word let it go on, pause or stop it."""
    del debug
    if status is not None:
        lookup("status", status, dict.fromkeys(("running", "paused", "stopped")))
    with connect(url, token, token_env) as client:
        row = client.study(study_id) if status is None else client.set_status(study_id, status)
    click.echo(f"{row['id']}: {row['title']} ({row['status']})")
    click.echo(f"Answers: {row['num_answers']} of {row['num_wanted']} to {row['num_queries']} queries")
    click.echo(f"People: {row['num_annotators']}")
    click.echo(f"For annotators: {row['entrance']}")


@study.command("export")
@click.argument("study_id", metavar="STUDY")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="New file.")
@click.option("--format", "format_name", help="parquet, jsonl, csv or huggingface (zip). Default: by the suffix.")
@click.option(
    "--responses", is_flag=True, help="Instead what people answered to the questions before and after, as jsonl."
)
@connected
def export(
    study_id: str,
    out: Path,
    format_name: str | None,
    responses: bool,
    url: str,
    token: str | None,
    token_env: str,
    debug: bool,
) -> None:
    """Write all answers of a study into a file."""
    del debug
    formats = {".parquet": "parquet", ".jsonl": "jsonl", ".csv": "csv", ".zip": "huggingface"}
    name = format_name or formats.get(out.suffix, out.suffix)
    lookup("format", name, dict.fromkeys(formats.values()))
    if responses and name != "jsonl":
        raise ConfigError(f"--responses are written as jsonl, not as {name}. Give --out FILE.jsonl.")
    if out.exists():
        raise ConfigError(f"--out {out} is there already. Give another file.")
    check_file("--out", out)
    with connect(url, token, token_env) as client:
        if responses:
            content = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in client.responses(study_id)).encode()
        else:
            content = client.export(study_id, name)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(content)
    click.echo(f"Wrote {out} ({len(content) / 1000:.0f} kB).")


@study.command("add-queries", epilog=STUDY_EXAMPLES)
@click.argument("study_id", metavar="STUDY")
@click.option("--run", type=click.Path(path_type=Path), required=True, help="Folder of a run with a checkpoint.")
@click.option("--sampler", default="disagreement", show_default=True, help="Who picks; see themis list samplers.")
@click.option("-n", "num_queries", default=100, show_default=True, help="How many queries.")
@click.option(
    "--kind",
    default="ordinary",
    show_default=True,
    help="ordinary, gold or practice; of the last two the true rewards say which side is right.",
)
@click.option("--codec", default="vp9", show_default=True, help="vp9 (WebM) or h264 (MP4).")
@click.option("--fps", default=15.0, show_default=True, help="Env steps per second.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Draws the queries.")
@connected
def add_queries(
    study_id: str,
    run: Path,
    sampler: str,
    num_queries: int,
    kind: str,
    codec: str,
    fps: float,
    seed: int,
    url: str,
    token: str | None,
    token_env: str,
    debug: bool,
) -> None:
    """Ask a study about pairs of segments of a run's newest episodes.

    Where arms of the study show explanations, those of the run's networks are drawn and sent with each clip.
    """
    del debug
    lookup("codec", codec, CODECS)
    lookup("kind", kind, dict.fromkeys(("ordinary", "gold", "practice")))
    # RLlib and captum take seconds to import, and the other commands do without.
    from themis_ray.explaining import ExplainedRun, Output
    from themis_ray.rllib import draw_queries

    folder, config = RunFolder.open(run)
    with connect(url, token, token_env) as client:
        asked = client.study(study_id)  # refused now rather than after drawing
        opened = ExplainedRun(folder.path, config)
        finished = opened.run
        rng = np.random.default_rng(seed)
        queries = draw_queries(finished, sampler, num_queries, rng)
        golden = None
        if kind != "ordinary":
            golden = right_answers(queries, rng)
            queries = [query for query in queries if query.id in golden]
        about = {
            "env_id": config.env.id,
            "run": folder.path.resolve().name,
            "checkpoint": finished.checkpoint,
            "num_env_steps": int(finished.checkpoint.rpartition("_")[2]),
            "reward_version": finished.reward_version,
            "seed": config.seed,
            "sampler": sampler,
        }
        overlays = overlay_clips(asked, opened, queries, Output(folder.path / "clips", codec, fps))
        draw = {name: clips.paths for name, clips in overlays.items()}
        sender = QuerySender(client, study_id, SegmentClips(folder.path / "clips", config.env, codec, fps), draw)
        with late_progress(f"queries for {study_id}") as report:
            for start in range(0, len(queries), NUM_QUERIES_AT_ONCE):
                part = queries[start : start + NUM_QUERIES_AT_ONCE]
                sender.send([(query, about) for query in part], cast(QueryKind, kind), golden)
                report((start + len(part)) / len(queries))
    explained = f", explained by {', '.join(overlays)}" if overlays else ""
    click.echo(f"Study {study_id} asks {len(queries)} {kind} queries about {run}{explained}.")


def overlay_clips(
    asked: Mapping[str, Any], run: ExplainedRun, queries: Sequence[Query], output: Output
) -> dict[str, OverlayClips]:
    """Returns what draws the explanations that a study's arms show, by name; all queries share a scale."""
    from themis_ray.explaining import OverlayClips

    names = dict.fromkeys(arm["overlay"] for arm in asked["settings"]["arms"] if arm["overlay"])
    segments = [side for query in queries for side in (query.left, query.right)]
    return {name: OverlayClips(run, name, segments, output) for name in names}


def right_answers(queries: list[Query], rng: np.random.Generator) -> dict[str, Choice]:
    """Returns which side the true rewards prefer, by id; pairs that are worth the same are left out."""
    if not queries:
        return {}
    nothing = np.empty(0), np.empty(0, np.int64)
    oracle = SyntheticTeacher("oracle", TEACHERS["oracle"])
    choices = oracle.answer(queries, rng, nothing)
    pairs = zip(queries, choices, strict=True)
    return {query.id: choice for query, choice in pairs if choice in ("left", "right")}


# ---------------------------------------------------------------- simulated annotators


@click.command("simulate-annotators", epilog=SIMULATE_EXAMPLES)
@click.option("--study", "study_id", required=True, help="Id of the study.")
@click.option("--n", "num_annotators", default=20, show_default=True, help="How many people.")
@click.option("--think-s", default=8.0, show_default=True, help="Mean seconds of thought before an answer.")
@click.option("--teacher", default="oracle", show_default=True, help="What they prefer; see themis list teachers.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Every draw of theirs comes from it."
)
@click.option("--arrival-s", type=float, help="Seconds during which they come. Default: --think-s.")
@click.option("--idle-s", default=60.0, show_default=True, help="Who has nothing to do for so long leaves.")
@click.option("--duration-s", type=float, help="All leave after so long. Default: when they are done.")
@click.option("--clips/--no-clips", default=True, show_default=True, help="Fetch the clips.")
@click.option("--ledger", type=click.Path(path_type=Path), help="JSON lines of all acknowledged answers.")
@connected
def simulate_annotators(
    study_id: str,
    num_annotators: int,
    think_s: float,
    teacher: str,
    seed: int,
    arrival_s: float | None,
    idle_s: float,
    duration_s: float | None,
    clips: bool,
    ledger: Path | None,
    url: str,
    token: str | None,
    token_env: str,
    debug: bool,
) -> None:
    """Let programs take part in a study over HTTP, as people do in their browsers."""
    del debug
    parameters: TeacherParameters = lookup("teacher", teacher, TEACHERS)
    if ledger is not None:
        check_file("--ledger", ledger)
    # Takes long to import, like everything of the service.
    from themis_ray.labeling.simulate import read_simulation, simulate
    from themis_ray.labeling.simulated_annotator import SimulationResult
    from themis_ray.labeling.truths import Truths

    with connect(url, token, token_env) as client, progress_bar(Console(stderr=True)) as progress:
        plan = read_simulation(
            client,
            study_id,
            num_annotators,
            think_s=think_s,
            teacher=parameters,
            seed=seed,
            arrival_s=think_s if arrival_s is None else arrival_s,
            idle_s=idle_s,
            duration_s=duration_s,
            gets_clips=clips,
        )
        task = progress.add_task(study_id, total=None, status="")

        def tell(result: SimulationResult) -> None:
            status = f"answers {result.num_answers}  left {sum(result.outcomes.values())}/{num_annotators}"
            progress.update(task, status=status)

        result = asyncio.run(simulate(plan, Truths(client, study_id), ledger=ledger, on_progress=tell))
    print_simulation(result)


def print_simulation(result: Any) -> None:
    """Prints what simulated annotators did and how long the service took."""
    table = Table(title=f"{result.num_answers} answers in {result.wall_s:.0f} s", title_justify="left")
    for name in ("call", "count", "p50 ms", "p95 ms", "p99 ms"):
        table.add_column(name, justify="left" if name == "call" else "right")
    for route, row in result.quantiles_ms().items():
        table.add_row(route, f"{row['count']:.0f}", *(f"{row[name]:.0f}" for name in ("p50", "p95", "p99")))
    Console().print(table)
    ends = ", ".join(f"{number} {re.sub('_', ' ', name)}" for name, number in sorted(result.outcomes.items()) if number)
    click.echo(
        f"People: {ends}. Answers sent twice: {result.num_duplicates}, late: {result.num_late}, "
        f"given up: {result.num_lost}."
    )
    for problem, number in result.problems.most_common(10):
        click.echo(f"{number} x {problem}")
