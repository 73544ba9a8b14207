"""The command: starts the service, makes the study, lets annotators come, and says what was seen."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import serve
from benchmarks.peers import OUT, write_json
from benchmarks.serve.chaos import Chaos
from benchmarks.serve.ledger import check_ledger
from benchmarks.serve.load import Load, generate, quantile
from benchmarks.serve.service import START_TIMEOUT_S, Service
from benchmarks.serve.study import make_clips, make_study

OVERLAP = 5


def summarise(seen: Mapping[str, Any], ledger: Mapping[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the report."""
    routes = {
        route: {
            "requests": len(times),
            "p50_ms": quantile(times, 0.5),
            "p95_ms": quantile(times, 0.95),
            "p99_ms": quantile(times, 0.99),
            "max_ms": quantile(times, 1.0),
            "failures": sum(n for what, n in seen["failures"].items() if what.startswith(f"{route} ")),
        }
        for route, times in sorted(seen["times"].items())
    }
    num_complaints = sum(number for _, number in seen["complaints"])
    answers, clips = routes.get("answer", {}), routes.get("clip", {})
    return {
        "clients": arguments.clients,
        "think_s": arguments.think_s,
        "answers": len(seen["acknowledged"]),
        "p99_answer_ms": answers.get("p99_ms", 0.0),
        "p99_clip_ms": clips.get("p99_ms", 0.0),
        "errors": sum(seen["failures"].values()) + num_complaints,
        "lost": ledger["lost"],
        "doubled": ledger["doubled"],
        "over_collected": ledger["over_collected"],
        "p50_answer_ms": answers.get("p50_ms", 0.0),
        "p95_answer_ms": answers.get("p95_ms", 0.0),
        "p50_clip_ms": clips.get("p50_ms", 0.0),
        "p95_clip_ms": clips.get("p95_ms", 0.0),
        "p99_answer_until_acknowledged_ms": quantile(seen["delays"], 0.99),
        "max_answer_until_acknowledged_ms": quantile(seen["delays"], 1.0),
        "seconds": seen["seconds"],
        "answers_per_s": len(seen["acknowledged"]) / seen["seconds"],
        "clips_per_s": clips.get("requests", 0) / seen["seconds"],
        "clip_mib": seen["clip_bytes"] / 2**20,
        "annotators_done": seen["num_done"],
        "late": seen["late"],
        "stored_before_retry": seen["duplicates"],
        "failures": seen["failures"],
        "complaints": seen["complaints"],
        "routes": routes,
        "ledger": dict(ledger),
    }


def make_table(report: Mapping[str, Any]) -> Table:
    """The table that the command ends with."""
    title = (
        f"{report['clients']} annotators, {report['think_s']:g} s of thought, {report['answers']} answers in "
        f"{report['seconds']:.0f} s"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("route")
    for heading in ("requests", "p50 ms", "p95 ms", "p99 ms", "max ms", "failures"):
        table.add_column(heading, justify="right")
    for route, row in report["routes"].items():
        times = [f"{row[key]:.0f}" for key in ("p50_ms", "p95_ms", "p99_ms", "max_ms")]
        table.add_row(route, str(row["requests"]), *times, str(row["failures"]))
    return table


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve", description=serve.__doc__.split("\n")[0])
    parser.add_argument("--clients", type=int, default=1000, help="annotators (default 1000)")
    parser.add_argument("--think-s", type=float, default=8.0, help="mean seconds of thought (default 8)")
    parser.add_argument("--answers", type=int, default=20, help="answers of each annotator (default 20)")
    parser.add_argument("--seconds", type=float, default=600.0, help="longest time (default 600)")
    parser.add_argument("--ramp-s", type=float, default=30.0, help="seconds over which annotators come (default 30)")
    parser.add_argument("--replicas", type=int, default=2, help="replicas of the service (default 2)")
    parser.add_argument("--no-haproxy", action="store_true", help="Ray Serve's own proxy instead of HAProxy")
    parser.add_argument("--chaos", action="store_true", help="kill replicas, and once the whole service")
    parser.add_argument("--out", type=Path, help="file of the result (default benchmarks/out/serve[_chaos].json)")
    arguments = parser.parse_args()
    for name in ("clients", "answers", "replicas"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} is {getattr(arguments, name)}; it must be at least 1")
    return arguments


def main() -> int:
    arguments = parse_arguments()
    console = Console()
    out = arguments.out or OUT / ("serve_chaos.json" if arguments.chaos else "serve.json")
    clips = make_clips(console)
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="bench-serve-") as temporary:
        folder = Path(temporary) / "data"
        service = Service(
            folder, num_replicas=arguments.replicas, options=["--no-haproxy"] if arguments.no_haproxy else []
        )
        try:
            service.start()
            console.print(f"the service is ready after {service.start_s:.0f} s", highlight=False)
            study = make_study(
                service, clips, arguments.clients * arguments.answers, overlap=OVERLAP, per_annotator=arguments.answers
            )
            load = Load(
                port=service.port,
                invitation=study.invitation,
                num_clients=arguments.clients,
                num_answers=arguments.answers,
                think_s=arguments.think_s,
                ramp_s=arguments.ramp_s,
                seconds=arguments.seconds,
                # A restart of the whole service takes its time on two cores.
                grace_s=START_TIMEOUT_S if arguments.chaos else 60.0,
            )
            cpu_before = service.cpu_s()
            expected_s = min(arguments.seconds, arguments.ramp_s + arguments.answers * arguments.think_s)
            chaos = Chaos(service, arguments.seconds, expected_s / 2)
            if arguments.chaos:
                with chaos.running():
                    seen = generate(load, Path(temporary), lambda: chaos.error is not None)
            else:
                seen = generate(load, Path(temporary))
            cpu_s = service.cpu_s() - cpu_before
        finally:
            service.stop()
        ledger = check_ledger(folder / "labelling.db", seen["acknowledged"])
    report = summarise(seen, ledger, arguments) | {
        "queries": study.num_queries,
        "overlap": OVERLAP,
        "clips": study.num_clips,
        "clip_kib": study.clip_kib,
        "ramp_s": arguments.ramp_s,
        "replicas": arguments.replicas,
        "haproxy": not arguments.no_haproxy,
        # Of processes that lived from beginning to end.
        "cpu_s": {"load generator": seen["cpu_s"], **cpu_s},
        "start_s": service.start_s,
        "replicas_killed": chaos.num_replicas_killed,
        "restarts": chaos.num_restarts,
        "restart_s": chaos.restart_s,
        "load_before": load_before,
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"platform": platform.platform(), "num_cpus": os.cpu_count(), "python": platform.python_version()},
    }
    write_json(out, report)
    console.print(make_table(report))
    console.print(
        f"acknowledged {report['answers']}, lost {report['lost']}, doubled {report['doubled']}, "
        f"over-collected {report['over_collected']}, errors {report['errors']}, late {report['late']}",
        highlight=False,
    )
    cpu = ", ".join(f"{role} {seconds:.0f}" for role, seconds in report["cpu_s"].items())
    console.print(f"CPU seconds: {cpu}", highlight=False)
    for complaint, number in report["complaints"]:
        console.print(f"{number} x {complaint}", highlight=False)
    console.print(f"written: {out}", highlight=False)
    return 1 if report["lost"] or report["doubled"] or report["over_collected"] else 0


if __name__ == "__main__":
    sys.exit(main())
