"""The command: runs the parts, prints their tables, and keeps benchmarks/out/scale.json up to date."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import os
import platform
import time
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from rich.console import Console

from benchmarks import scale
from benchmarks.peers import OUT, ROOT, write_json
from benchmarks.scale import noop, reward, steps, trials
from themis_ray.experiment import quieten
from themis_ray.reward_actor import prepare_process

MODULES: Mapping[str, Any] = {"noop": noop, "trials": trials, "reward": reward, "steps": steps}
PARTS = tuple(MODULES)
# From a part to what of it stands at the top of the file.
HEADLINES = {
    "noop": ("overhead_per_trial_s", "start_s", "memory_growth_mib_per_100_trials"),
    "trials": ("trials_per_hour",),
    "reward": ("reward_actor_vs_torch",),
    "steps": ("env_steps_per_s",),
}


def measure(part: str, arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Runs one part and returns what it found, with when and how long."""
    load_before, start = os.getloadavg()[0], time.perf_counter()
    if part == "noop":
        found = noop.measure(arguments.num_trials, arguments.quick, console)
    else:
        found = MODULES[part].measure(arguments.quick, console)
    return found | {
        "took_s": time.perf_counter() - start,
        "load_before": load_before,
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def read_parts(path: Path) -> dict[str, Any]:
    """Returns what earlier runs measured; nothing where there is no such file."""
    return dict(json.loads(path.read_text())["parts"]) if path.exists() else {}


def assemble(parts: Mapping[str, Any], is_quick: bool) -> dict[str, Any]:
    """Returns the whole file: the main figures of the parts that there are, the machine, and every part."""
    main = {key: parts[part][key] for part in PARTS if part in parts for key in HEADLINES[part]}
    versions = {name: importlib.metadata.version(name) for name in ("ray", "torch", "gymnasium", "numpy")}
    machine = {"platform": platform.platform(), "num_cpus": os.cpu_count(), "python": platform.python_version()}
    return {
        **main,
        "quick": is_quick,
        "took_s": {part: parts[part]["took_s"] for part in PARTS if part in parts},
        "machine": {**machine, "versions": versions},
        "parts": {part: parts[part] for part in PARTS if part in parts},
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=scale.__doc__.split("\n")[0])
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {','.join(PARTS)} (default all)")
    parser.add_argument("--missing", action="store_true", help="only parts that are not in the file yet")
    parser.add_argument("--num-trials", type=int, help="no-op trials (default 500, with --quick 30)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, into scale.quick.json")
    arguments = parser.parse_args()
    arguments.parts = arguments.parts.split(",")
    unknown = [part for part in arguments.parts if part not in PARTS]
    if unknown:
        parser.error(f"--parts names {unknown[0]!r}; there are {', '.join(PARTS)}")
    if arguments.num_trials is None:
        arguments.num_trials = 30 if arguments.quick else 500
    if arguments.num_trials < 2:
        parser.error(f"--num-trials is {arguments.num_trials}; it must be at least 2")
    return arguments


def main() -> None:
    arguments, console = parse_arguments(), Console(width=120)
    warnings.filterwarnings("ignore")
    quieten()
    logging.getLogger("themis_ray").setLevel(logging.ERROR)
    prepare_process()
    out = OUT / ("scale.quick.json" if arguments.quick else "scale.json")
    known = read_parts(out)
    chosen = [part for part in PARTS if part in arguments.parts and not (arguments.missing and part in known)]
    for part in chosen:
        found = measure(part, arguments, console)
        # Read again: another part may have been written meanwhile.
        write_json(out, assemble(read_parts(out) | {part: found}, arguments.quick))
        MODULES[part].print_tables(found, console)
    took = ", ".join(f"{part} {seconds:.0f} s" for part, seconds in assemble(read_parts(out), False)["took_s"].items())
    console.print(f"took: {took}\nwritten: {out.relative_to(ROOT)}", highlight=False)


if __name__ == "__main__":
    main()
