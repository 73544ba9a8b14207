"""The study that annotators come to: really encoded clips, and as many queries as answers need."""

from __future__ import annotations

import asyncio
import itertools
import random
import shutil
import statistics
import uuid
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
from rich.console import Console
from rich.progress import track

from benchmarks.http_client import Connection
from benchmarks.peers import OUT
from benchmarks.serve.service import HOST, Service

__all__ = ["API", "STUDY", "Study", "make_clips", "make_study"]

API = "/api/v1"
STUDY = "bench"
NUM_CLIPS = 300
NUM_FRAMES = 50
# Somewhat more places than answers: with exactly as many, the last annotators find only queries that they have had.
SPARE = 1.05


@dataclass(frozen=True)
class Study:
    """A study that annotators can come to."""

    id: str
    invitation: str
    num_queries: int
    num_clips: int
    clip_kib: float


def draw_clip(number: int, folder: str) -> str:
    """Encodes a clip: a ball that bounces over a pattern, 210 x 160 enlarged twice, as of an Atari game."""
    from themis_ray.clips import upscale, write_clip

    rng = np.random.default_rng(number)
    background = rng.integers(0, 90, (14, 10, 3), np.uint8).repeat(15, 0).repeat(16, 1)
    position, speed = rng.uniform(30, 130, 2), rng.uniform(-6, 6, 2)
    colour = rng.integers(120, 255, 3, np.uint8)
    frames = np.repeat(background[None], NUM_FRAMES, 0)
    for frame in frames:
        position += speed
        speed = np.where((position < 10) | (position > np.array([195, 145])), -speed, speed)
        row, column = position.astype(int)
        frame[max(row - 6, 0) : row + 6, max(column - 6, 0) : column + 6] = colour
    return write_clip(upscale(frames), folder).name


def make_clips(console: Console) -> list[Path]:
    """Returns the clips, which are encoded once and kept."""
    folder = OUT / "serve" / "clips"
    known = sorted(folder.glob("*.webm"))
    if len(known) == NUM_CLIPS:
        return known
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with ProcessPoolExecutor(1) as pool:
        made = pool.map(draw_clip, range(NUM_CLIPS), itertools.repeat(str(folder)))
        for _ in track(made, "clips", total=NUM_CLIPS, console=console):
            pass
    return sorted(folder.glob("*.webm"))


def make_study(service: Service, clips: Sequence[Path], num_answers: int, *, overlap: int, per_annotator: int) -> Study:
    """Makes a study over the API, as an admin: its clips, its queries, the link for annotators."""
    return asyncio.run(_make_study(service, clips, num_answers, overlap, per_annotator))


async def _make_study(
    service: Service, clips: Sequence[Path], num_answers: int, overlap: int, per_annotator: int
) -> Study:
    headers = _admin_headers(service.folder)
    connection = Connection(HOST, service.port, timeout_s=120)

    async def send(method: str, path: str, content: Any) -> Any:
        reply = await connection.request(method, API + path, headers=headers, content=content)
        if reply.status >= 300:
            raise RuntimeError(f"{method} {path}: {reply.status} {reply.body[:300]!r}")
        return reply.json()

    settings = {"id": STUDY, "title": "Benchmark", "queries_per_annotator": per_annotator, "overlap": overlap}
    await send("POST", "/studies", settings)
    for clip in clips:
        reply = await connection.request(
            "PUT", f"{API}/studies/{STUDY}/clips/{clip.name}", headers=headers, body=clip.read_bytes()
        )
        if reply.status >= 300:
            raise RuntimeError(f"clip {clip.name}: {reply.status} {reply.body[:300]!r}")
    num_queries = int(num_answers * SPARE / overlap) + 1
    rng = random.Random(0)
    queries = []
    for number in range(num_queries):
        left, right = rng.sample(clips, 2)
        sides = {
            side: {"segment_id": clip.stem, "clip": clip.name, "num_frames": NUM_FRAMES}
            for side, clip in (("left", left), ("right", right))
        }
        queries.append({"id": f"q{number:06d}", **sides})
    for start in range(0, num_queries, 500):
        await send("POST", f"/studies/{STUDY}/queries", {"queries": queries[start : start + 500]})
    link = (await send("POST", f"/studies/{STUDY}/invitations", {"role": "annotator"}))["url"]
    connection.close()
    return Study(
        id=STUDY,
        invitation=parse_qs(urlsplit(link).query)["invitation"][0],
        num_queries=num_queries,
        num_clips=len(clips),
        clip_kib=statistics.mean(clip.stat().st_size for clip in clips) / 1024,
    )


def _admin_headers(folder: Path) -> dict[str, str]:
    """Signs in as an admin with the service's own secret: whoever owns the data folder may do everything."""
    from themis_ray.labeling.security import SESSION_COOKIE, Signer, read_secret
    from themis_ray.labeling.store import LabelStore

    signer = Signer(read_secret(folder / "secret.key"))
    store = LabelStore(f"sqlite:///{folder / 'labelling.db'}")
    member = store.access.accept_invitation(uuid.uuid4().hex, "admin", "benchmark", None)
    store.close()
    session, cookie = signer.make_session("member", member.id)
    return {"Cookie": f"{SESSION_COOKIE}={cookie}", "X-CSRF-Token": signer.csrf_token(session)}
