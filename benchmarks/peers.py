"""Our main job against other libraries on Pendulum-v1: `python -m benchmarks.peers`, or `make bench-peers`.

Wall-clock seconds of training and final true return at the same number of environment steps and labels. Each peer runs
a script of `benchmarks/peer_scripts` in a virtual environment of its own, which this command makes under `.venvs`.
Systems run one after another, one thread each, and take turns seed by seed, so that a slow hour of the machine hits all
of them. `themis train` may still use a second core, because its reward model is a process of its own. The evaluation is
the same for all: 10 episodes of the deterministic policy, reset with the seeds 10000 to 10009.

Every finished measurement is kept in `benchmarks/out/peers.partial.json`, and a later call does not repeat it unless
its settings, pins or script have changed, or `--fresh` is given. The result is `benchmarks/out/peers.json`.
"""

import argparse
import hashlib
import json
import math
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "benchmarks" / "peer_scripts"
VENVS = ROOT / ".venvs"
OUT = ROOT / "benchmarks" / "out"
ENV_ID = "Pendulum-v1"
TARGET_RETURN = -200.0
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1")
MEDIANS = (
    *("wall_s", "process_wall_s", "cpu_s", "wall_s_per_update", "wall_s_to_target", "true_return"),
    *("num_env_steps", "num_learner_steps", "num_labels", "num_updates", "num_reward_updates"),
)


class MeasurementError(Exception):
    """A system could not be installed or did not finish; the message says which and where its log is."""


@dataclass(frozen=True)
class System:
    """One row of the table. The system without a virtual environment of its own is ours."""

    name: str
    description: str
    num_env_steps: int
    num_labels: int
    script: str
    venv: str | None = None

    def fingerprint(self) -> str:
        """Changes when a stored measurement no longer belongs to this row."""
        files = [SCRIPTS / self.script]
        if self.venv is None:
            files += sorted((ROOT / "themis_ray").rglob("*.py"))
        else:
            # imitation's script takes its clock and its evaluation from the other one
            files += [SCRIPTS / "sb3_baseline.py", SCRIPTS / f"requirements-{self.venv}.txt"]
        parts = [self.name, str(self.num_env_steps), str(self.num_labels), *(file.read_text() for file in files)]
        return hashlib.blake2b("\n".join(parts).encode(), digest_size=8).hexdigest()


SYSTEMS = (
    System("ours", "themis_ray, SAC, learned reward", 8_000, 50, "themis_run.py"),
    System("imitation_sac", "imitation, SAC, learned reward", 8_000, 50, "imitation_preferences.py", "imitation"),
    System("imitation_ppo", "imitation, PPO, learned reward", 100_000, 500, "imitation_preferences.py", "imitation"),
    System("sb3_sac", "Stable-Baselines3, SAC, true reward", 8_000, 0, "sb3_baseline.py", "sb3"),
    System("sb3_ppo", "Stable-Baselines3, PPO, true reward", 100_000, 0, "sb3_baseline.py", "sb3"),
)


def run_logged(command: Sequence[str | Path], log: Path, timeout_s: float) -> float:
    """Runs a command with one thread in a process group of its own, its output in `log`.

    Returns:
        Wall-clock seconds of the whole process.

    Raises:
        MeasurementError: it failed or took longer than `timeout_s`; its group is stopped first.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | ONE_THREAD | {"RAY_USAGE_STATS_ENABLED": "0"}
    started = time.perf_counter()
    with log.open("w") as output:
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return_code = process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise MeasurementError(f"took longer than {timeout_s:.0f} s; see {log}") from error
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if return_code != 0:
        lines = log.read_text(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
        raise MeasurementError(f"exit code {return_code}: {last[:160]} (see {log})")
    return time.perf_counter() - started


def ensure_venv(name: str, timeout_s: float) -> Path:
    """Makes `.venvs/NAME` from `requirements-NAME.txt`, or leaves it when those pins are already installed.

    Returns:
        The path of its Python.
    """
    requirements = SCRIPTS / f"requirements-{name}.txt"
    folder = VENVS / name
    python = folder / "bin" / "python"
    stamp = folder / ".installed"
    if not (stamp.exists() and stamp.read_text() == requirements.read_text()):
        run_logged([sys.executable, "-m", "venv", "--clear", folder], OUT / "peers" / f"venv-{name}.log", timeout_s)
        pip = [python, "-m", "pip", "install", "--disable-pip-version-check", "-r", requirements]
        run_logged(pip, OUT / "peers" / f"install-{name}.log", timeout_s)
        stamp.write_text(requirements.read_text())
    return python


def measure(system: System, seed: int, timeout_s: float) -> dict[str, Any]:
    """Runs a system's script once and reads its last line; notes when that was and on how busy a machine."""
    python = Path(sys.executable) if system.venv is None else ensure_venv(system.venv, timeout_s)
    arguments = {
        "--system": system.name,
        "--seed": seed,
        "--num-env-steps": system.num_env_steps,
        "--num-labels": system.num_labels,
    }
    command: list[str | Path] = [python, SCRIPTS / system.script]
    command += [str(part) for pair in arguments.items() for part in pair]
    log = OUT / "peers" / f"{system.name}-{seed}.log"
    fingerprint, load_before = system.fingerprint(), os.getloadavg()[0]
    process_wall_s = run_logged(command, log, timeout_s)
    record: dict[str, Any] = json.loads(log.read_text().strip().split("\n")[-1])
    return record | {
        "seed": seed,
        "process_wall_s": process_wall_s,
        "wall_s_per_update": record["wall_s"] / record["num_updates"],
        "wall_s_to_target": next((s for s, true_return in record["curve"] if true_return >= TARGET_RETURN), None),
        "load_before": load_before,
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "fingerprint": fingerprint,
    }


def median(records: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """Median over seeds, where what was never reached counts as infinite; None when it is, or nobody reports it."""
    values = [math.inf if record[key] is None else record[key] for record in records if key in record]
    result = statistics.median(values) if values else math.inf
    return None if math.isinf(result) else result


def summarise(system: System, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One system's entry in peers.json: medians over seeds, and every seed's own values."""
    return {
        "description": system.description,
        **{key: median(records, key) for key in MEDIANS},
        "versions": records[-1]["versions"],
        "seeds": [dict(record) for record in records],
    }


def ratios(systems: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Our medians divided by each peer's, for the wall-clock keys that both report; below 1 we are faster."""
    ours = systems.get("ours", {})
    return {
        f"{key}_vs_{name}": ours[key] / entry[key]
        for name, entry in systems.items()
        if name != "ours"
        for key in ("wall_s", "wall_s_per_update", "wall_s_to_target")
        if ours.get(key) and entry.get(key)
    }


def make_table(systems: Mapping[str, Mapping[str, Any]]) -> Table:
    """The table that the command ends with."""
    table = Table(title=f"{ENV_ID}: medians over seeds, one thread each", title_justify="left")
    table.add_column("system", no_wrap=True)
    for heading in ("env steps", "labels", "return", "wall s", f"s to {TARGET_RETURN:.0f}", "ms/update"):
        table.add_column(heading, justify="right")

    def show(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    for name, entry in systems.items():
        per_update = entry["wall_s_per_update"]
        by_seed = " ".join(show(record["true_return"], ".0f") for record in entry["seeds"])
        table.add_row(
            name,
            show(entry["num_env_steps"], ".0f"),
            show(entry["num_labels"], ".0f"),
            show(entry["true_return"], ".0f") + (f" ({by_seed})" if len(entry["seeds"]) > 1 else ""),
            show(entry["wall_s"], ".1f"),
            show(entry["wall_s_to_target"], ".1f"),
            show(None if per_update is None else 1000 * per_update, ".2f"),
        )
    return table


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replaces the file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    temporary.replace(path)


def parse_arguments() -> argparse.Namespace:
    names = [system.name for system in SYSTEMS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds, counted from 0 (default 1)")
    parser.add_argument("--systems", default=",".join(names), help=f"some of {','.join(names)} (default all)")
    parser.add_argument("--fresh", action="store_true", help="measure again what is already measured")
    parser.add_argument("--timeout-s", type=float, default=1800.0, help="longest single run or install (default 1800)")
    arguments = parser.parse_args()
    arguments.systems = arguments.systems.split(",")
    unknown = set(arguments.systems) - set(names)
    if unknown:
        parser.error(f"no system {', '.join(sorted(unknown))}. Known: {', '.join(names)}")
    if arguments.seeds < 1:
        parser.error(f"--seeds is {arguments.seeds}; it must be at least 1")
    return arguments


def main() -> int:
    arguments = parse_arguments()
    console = Console()
    partial = OUT / "peers.partial.json"
    measured: dict[str, dict[str, Any]] = json.loads(partial.read_text()) if partial.exists() else {}
    current = {system.name: system.fingerprint() for system in SYSTEMS}

    def is_measured(system: System, seed: int) -> bool:
        return measured.get(f"{system.name}/{seed}", {}).get("fingerprint") == current[system.name]

    asked = [(s, seed) for seed in range(arguments.seeds) for s in SYSTEMS if s.name in arguments.systems]
    to_run = [pair for pair in asked if arguments.fresh or not is_measured(*pair)]
    if len(to_run) < len(asked):
        console.print(f"{len(asked) - len(to_run)} of {len(asked)} runs are taken from {partial}; --fresh repeats them")
    failures: list[str] = []
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("peers", total=len(to_run))
        for system, seed in to_run:
            progress.update(task, description=f"{system.name}, seed {seed}")
            try:
                record = measure(system, seed, arguments.timeout_s)
            except (MeasurementError, OSError, ValueError, KeyError) as error:
                failures.append(f"{system.name}, seed {seed}: {error}")
                progress.console.print(f"[red]failed[/red] {failures[-1]}", highlight=False)
            else:
                measured[f"{system.name}/{seed}"] = record
                write_json(partial, measured)
                line = f"{system.name}, seed {seed}: true return {record['true_return']:.0f}, {record['wall_s']:.1f} s"
                progress.console.print(line, highlight=False)
            progress.advance(task)

    systems = {}
    for system in SYSTEMS:
        records = [measured[f"{system.name}/{seed}"] for seed in range(arguments.seeds) if is_measured(system, seed)]
        if records:
            systems[system.name] = summarise(system, records)
    machine = {"platform": platform.platform(), "num_cpus": os.cpu_count(), "python": platform.python_version()}
    report = {"env_id": ENV_ID, "machine": machine, "systems": systems, "ratios": ratios(systems)}
    write_json(OUT / "peers.json", report | {"failures": failures})
    console.print(make_table(systems))
    for name, ratio in report["ratios"].items():
        console.print(f"ours / peer, {name}: {ratio:.2f}", highlight=False)
    console.print(f"written: {OUT / 'peers.json'}", highlight=False)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
