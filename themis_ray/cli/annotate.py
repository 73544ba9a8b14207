"""`themis annotate`: one person answers in the terminal, with no service."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from pathlib import Path

import click
import numpy as np

from themis_ray.clips import CODECS
from themis_ray.data import AskedQuery, Choice, Preference, PreferenceDataset, Query, Withdrawal
from themis_ray.envs import EnvConfig
from themis_ray.errors import ConfigError, DataError, lookup
from themis_ray.feedback.segment_clips import SegmentClips
from themis_ray.rllib import draw_queries, open_finished_run
from themis_ray.tracking import RunFolder

__all__ = ["annotate"]

ANNOTATE_EXAMPLES = """
\b
Examples:
  themis annotate runs/pendulum-v1-sac-oracle-s0 -n 20
  themis annotate runs/pendulum-v1-sac-oracle-s0 --sampler uniform --name tea
  themis train env.id=Pendulum-v1 algorithm.name=cpl feedback.dataset=runs/pendulum-v1-sac-oracle-s0/annotated
"""
KEYS = {"l": "left", "r": "right", "e": "equal", "s": "skip", "u": "undo", "q": "quit"}
PROMPT = "Better? [l]eft [r]ight [e]qual [s]kip, [u]ndo [q]uit"


@click.command(epilog=ANNOTATE_EXAMPLES)
@click.argument("source", type=click.Path(path_type=Path), metavar="RUN_OR_DATASET")
@click.option("-n", "num_queries", default=20, show_default=True, help="New queries, once none waits for an answer.")
@click.option("--sampler", default="disagreement", show_default=True, help="Who picks them; see themis list samplers.")
@click.option("--name", default="me", show_default=True, help="Stored with every answer.")
@click.option("--out", type=click.Path(path_type=Path), help="Dataset of the answers. Default: RUN/annotated.")
@click.option("--codec", default="vp9", show_default=True, help="vp9 (WebM) or h264 (MP4).")
@click.option("--fps", default=15.0, show_default=True, help="Env steps per second.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Draws new queries.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def annotate(
    source: Path,
    num_queries: int,
    sampler: str,
    name: str,
    out: Path | None,
    codec: str,
    fps: float,
    seed: int,
    debug: bool,
) -> None:
    """Compare clips in the terminal: it prints two paths, you watch and type a letter.

    Queries that wait for an answer come first: those of a run that asks people, or those of an earlier call. Every
    answer is on the disk before the next question, so this can be ended at any time and called again.
    """
    del debug
    lookup("codec", codec, CODECS)
    if not name.strip():
        raise ConfigError("--name is empty. Give a name, which is stored with every answer.")
    dataset, env_config = open_dataset(source, out)
    if not dataset.num_missing():
        ask_new(source, dataset, sampler, num_queries, seed, name)
    clips = SegmentClips(dataset.root / "clips", env_config, codec, fps)
    num_answered = put_all(dataset, clips, name)
    left = len(dataset.num_missing())
    click.echo(f"{num_answered} answers, {left} left. Dataset: {dataset.root}")


def open_dataset(source: Path, out: Path | None) -> tuple[PreferenceDataset, EnvConfig]:
    """Returns where answers go, and the environment that its segments come from.

    Raises:
        DataError: There is nothing at `source`, or it cannot be read.
    """
    if (source / "config.yaml").is_file():
        folder, config = RunFolder.open(source)
        own = PreferenceDataset(folder.path)
        if out is None and own.num_missing():
            return own, config.env
        return PreferenceDataset(out or folder.path / "annotated"), config.env
    dataset = PreferenceDataset(source)
    if not dataset.segments:
        raise DataError(f"{source} is no run and no dataset. Give the folder of a run of themis train.")
    return dataset if out is None else PreferenceDataset(out), EnvConfig(id=dataset.segments[0].env_id)


def ask_new(source: Path, dataset: PreferenceDataset, sampler: str, num_queries: int, seed: int, name: str) -> None:
    """Stores new queries of a run, as a sampler picks them.

    Raises:
        ConfigError: The sampler needs a reward ensemble and there is none.
        DataError: The source is no run, so that there are no episodes to draw from.
    """
    if not (source / "config.yaml").is_file():
        raise DataError(f"no query of {source} waits for an answer, and only runs have episodes to draw new ones from.")
    folder, config = RunFolder.open(source)
    run = open_finished_run(folder.path, config)
    session = dataset.last_feedback_session + 1
    # Another call draws others, however often it is made.
    drawn = draw_queries(run, sampler, num_queries, np.random.default_rng([seed, session]))
    queries = [query for query in drawn if query.id not in dataset.asked]
    num_env_steps = int(run.checkpoint.rpartition("_")[2])
    about = f"annotate:{name}", session, num_env_steps, run.reward_version, datetime.now(UTC)
    dataset.append_asked(queries, [AskedQuery(query.id, query.left.id, query.right.id, *about) for query in queries])


def put_all(dataset: PreferenceDataset, clips: SegmentClips, name: str) -> int:
    """Asks what waits for an answer until there is nothing left or the person has enough; returns how many count."""
    given: list[Preference] = []
    while waiting := list(dataset.num_missing()):
        row = dataset.asked[waiting[0]]
        query = Query(dataset.segment(row.left_id), dataset.segment(row.right_id))
        paths = clips.paths([query.left, query.right])
        click.echo(f"\n{len(waiting)} left")
        click.echo(f"  left:  {paths[query.left.id]}")
        click.echo(f"  right: {paths[query.right.id]}")
        word = ask()
        if word == "quit":
            break
        if word == "undo":
            if not given:
                click.echo("There is nothing to take back.")
                continue
            last = given.pop()
            dataset.withdraw([Withdrawal(last.answer_id, last.teacher, "undone", datetime.now(UTC))])
            continue
        given.append(answer(row, Choice(word), name))
        dataset.append([query], [given[-1]])
    return len(given)


def ask() -> str:
    """Returns what the person types, in full."""
    while True:
        typed = str(click.prompt(PROMPT, prompt_suffix=": ")).strip().lower()
        if typed in KEYS or typed in KEYS.values():
            return KEYS.get(typed, typed)
        click.echo(f"{typed!r} is none of them.")


def answer(row: AskedQuery, choice: Choice, name: str) -> Preference:
    """Returns an answer that is given now."""
    now = datetime.now(UTC)
    return Preference(
        row.query_id,
        row.left_id,
        row.right_id,
        choice,
        name.strip(),
        row.feedback_session,
        row.num_env_steps,
        min(row.asked_at, now),
        now,
        uuid.uuid4().hex,
    )
