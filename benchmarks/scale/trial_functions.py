"""What runs in the processes of measured trials. At import it loads nothing of ours, so that a no-op costs nothing."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ray import tune

__all__ = ["NUM_LINES", "bundles_of", "chatty_trial", "noop_trial", "start_trial"]

START_FILE = "start.json"
# Lines of metrics that an experiment writes: at least one for each fortieth.
NUM_LINES = 40


def bundles_of(config: dict[str, Any]) -> tune.PlacementGroupFactory:
    """Returns what the sweep's own function does; that one would make a trial's process import all of ours."""
    return tune.PlacementGroupFactory([dict(bundle) for bundle in config["trial"]["bundles"]])


def noop_trial(config: dict[str, Any]) -> None:
    """Tells Tune one line and ends."""
    _tell(config, 1)


def chatty_trial(config: dict[str, Any]) -> None:
    """Tells Tune as many lines as an experiment does, as fast as it takes them."""
    _tell(config, NUM_LINES)


def _tell(config: dict[str, Any], num_lines: int) -> None:
    num_env_steps = config["trial"]["num_env_steps"]
    for line in range(1, num_lines + 1):
        tune.report({"num_env_steps": num_env_steps * line // num_lines, "true_return_mean": 0.0})


def start_trial(config: dict[str, Any]) -> None:
    """Does all that a trial of a sweep does up to `run_experiment`, and writes down when."""
    begun_s = time.time()
    from unittest import mock

    import psutil

    from themis_ray.sweeping import process

    imported_s = time.time()
    ready: list[float] = []

    def run_nothing(*_: Any, **__: Any) -> Iterator[Any]:
        ready.append(time.time())
        yield from ()

    with mock.patch.object(process, "run_experiment", run_nothing):
        process.train_trial(config)
    ours = psutil.Process(os.getpid())
    path = Path(config["trial"]["root"]) / config["trial"]["name"] / START_FILE
    times = {
        "process_until_function_s": begun_s - ours.create_time(),
        "imports_s": imported_s - begun_s,
        "until_experiment_s": ready[0] - imported_s,
        "start_s": ready[0] - ours.create_time(),
        "cpu_s": sum(ours.cpu_times()[:2]),
        "rss_mib": ours.memory_info().rss / 2**20,
    }
    path.write_text(json.dumps(times))
    _tell(config, 1)
