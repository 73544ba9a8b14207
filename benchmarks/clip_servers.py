"""Ways to send small clips, side by side: `python -m benchmarks.clip_servers`, or `make bench-clip-servers`.

Every server checks the same signature and sends the same files, one process on one port. The load generator is a
process of its own on the same cores, with keep-alive connections that ask for the next clip as soon as they have one.
CPU time of the server per clip says most on a machine that does other things too. The result is
`benchmarks/out/clip_servers.json`; `docs/design/clips-under-load.md` reads it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.peers import OUT, write_json
from themis_ray.labeling.clip_server import SECRET_VARIABLE, clip_path
from themis_ray.labeling.signing import CLIP_TYPES, check_clip, clip_until, sign_clip

SECRET = b"0123456789abcdef" * 2
STUDY = "bench"
SERVERS = {
    "ours": "ClipApp: plain ASGI on uvicorn, small files from memory",
    "starlette": "Starlette's FileResponse on uvicorn",
    "aiohttp": "aiohttp's FileResponse (sendfile)",
}


# ---------------------------------------------------------------- servers


def serve_ours(folder: Path, port: int) -> None:
    from themis_ray.labeling.clip_server import ClipApp

    _run_uvicorn(ClipApp(folder, SECRET, ["http://127.0.0.1:8000"]), port)


def serve_starlette(folder: Path, port: int) -> None:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import FileResponse, Response
    from starlette.routing import Route

    async def clip(request: Request) -> Response:
        name, query = request.path_params["name"], request.query_params
        if not check_clip(SECRET, STUDY, name, query.get("until", ""), query.get("signature", ""), time.time()):
            return Response(status_code=403)
        return FileResponse(clip_path(folder, STUDY, name), media_type=CLIP_TYPES[name.rsplit(".", 1)[1]])

    _run_uvicorn(Starlette(routes=[Route(f"/clips/{STUDY}/{{name}}", clip)]), port)


def _run_uvicorn(app: Any, port: int) -> None:
    import uvicorn

    uvicorn.run(app, port=port, log_level="warning", access_log=False)


def serve_aiohttp(folder: Path, port: int) -> None:
    from aiohttp import web

    async def clip(request: web.Request) -> web.StreamResponse:
        name, query = request.match_info["name"], request.query
        if not check_clip(SECRET, STUDY, name, query.get("until", ""), query.get("signature", ""), time.time()):
            return web.Response(status=403)
        return web.FileResponse(clip_path(folder, STUDY, name))

    app = web.Application()
    app.router.add_get(f"/clips/{STUDY}/{{name}}", clip)
    web.run_app(app, host="127.0.0.1", port=port, print=None, access_log=None)


# ---------------------------------------------------------------- load


async def _connection(port: int, paths: list[str], until: float, rng: random.Random, times: list[float]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while time.perf_counter() < until:
        started = time.perf_counter()
        writer.write(f"GET {rng.choice(paths)} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        if not head.startswith(b"http/1.1 200"):
            raise RuntimeError(f"the server answered {head[:60]!r}")
        num_bytes = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
        await reader.readexactly(num_bytes)
        times.append(time.perf_counter() - started)
    writer.close()


async def _load(port: int, paths: list[str], num_connections: int, seconds: float) -> list[float]:
    until = time.perf_counter() + seconds
    times: list[list[float]] = [[] for _ in range(num_connections)]
    await asyncio.gather(
        *(_connection(port, paths, until, random.Random(number), row) for number, row in enumerate(times))
    )
    return sorted(value for row in times for value in row)


def load(port: int, paths: list[str], num_connections: int, seconds: float) -> list[float]:
    """Returns the sorted seconds of every request; runs in a process of its own."""
    return asyncio.run(_load(port, paths, num_connections, seconds))


def measure(
    name: str, folder: Path, paths: list[str], port: int, num_connections: int, seconds: float
) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.clip_servers", "--serve", name, str(folder), str(port)]
    with subprocess.Popen(command, env=os.environ | {SECRET_VARIABLE: SECRET.decode()}) as process:
        try:
            server = psutil.Process(process.pid)
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                for attempt in range(100):
                    try:
                        pool.apply(load, (port, paths, 2, 0.5))
                        break
                    except ConnectionRefusedError:
                        if attempt == 99:
                            raise
                        time.sleep(0.1)
                before = server.cpu_times()
                times = pool.apply(load, (port, paths, num_connections, seconds))
                after = server.cpu_times()
        finally:
            process.terminate()
    cpu_s = after.user + after.system - before.user - before.system

    def quantile(share: float) -> float:
        return 1000 * times[min(int(share * len(times)), len(times) - 1)]

    return {
        "description": SERVERS[name],
        "rps": len(times) / seconds,
        "cpu_ms_per_clip": 1000 * cpu_s / len(times),
        "p50_ms": quantile(0.5),
        "p95_ms": quantile(0.95),
        "p99_ms": quantile(0.99),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clip_servers", description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="seconds for each measurement (default 5)")
    parser.add_argument("--connections", type=int, default=50, help="connections at once (default 50)")
    parser.add_argument("--rounds", type=int, default=3, help="servers take turns so often (default 3)")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        name, folder, port = arguments.serve
        {"ours": serve_ours, "starlette": serve_starlette, "aiohttp": serve_aiohttp}[name](Path(folder), int(port))
        return 0
    console = Console()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for kib in (12, 200):
            folder = Path(temporary) / str(kib)
            (folder / STUDY).mkdir(parents=True)
            paths = []
            for number in range(300):
                name = f"{number:032x}.webm"
                clip_path(folder, STUDY, name).write_bytes(random.Random(number).randbytes(kib << 10))
                paths.append(f"/clips/{STUDY}/{name}?{sign_clip(SECRET, STUDY, name, clip_until(time.time()))}")
            port = 8471
            for round_number in range(arguments.rounds):
                for name in SERVERS:
                    figures = measure(name, folder, paths, port, arguments.connections, arguments.seconds)
                    rows.append({"server": name, "kib": kib, "round": round_number, **figures})
                    port += 1
    table = Table(title=f"300 clips, {arguments.connections} connections", title_justify="left")
    for heading in ("server", "KiB", "clips/s", "CPU ms/clip", "p50 ms", "p95 ms", "p99 ms"):
        table.add_column(heading, justify="left" if heading == "server" else "right")
    best = []
    for kib in (12, 200):
        for name in SERVERS:
            # The round that was disturbed least.
            row = max((r for r in rows if (r["server"], r["kib"]) == (name, kib)), key=lambda r: r["rps"])
            best.append(row)
            figures = [f"{row[key]:.2f}" for key in ("cpu_ms_per_clip", "p50_ms", "p95_ms", "p99_ms")]
            table.add_row(name, str(kib), f"{row['rps']:.0f}", *figures)
    console.print(table)
    report = {"num_cpus": os.cpu_count(), "load": os.getloadavg()[0], "best": best, "rounds": rows}
    write_json(OUT / "clip_servers.json", json.loads(json.dumps(report)))
    console.print(f"written: {OUT / 'clip_servers.json'}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
