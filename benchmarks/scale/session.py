"""A Ray session of the benchmark's own, and the memory of its processes."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterator, Sequence

import psutil
import ray

from themis_ray.sessions import SYSTEM_CONFIG, start_ray

__all__ = ["growth", "head_memory_mib", "own_session"]

OBJECT_STORE_BYTES = 100 * 2**20
END_TIMEOUT_S = 20.0
# Processes of a head that are written in Python: their titles, or their scripts where they have none.
AGENTS = {"ray::DashboardAgent": "dashboard_agent", "ray::RuntimeEnvAgent": "runtime_env_agent"}
SCRIPTS = {
    "dashboard/agent.py": "dashboard_agent",
    "runtime_env/agent/main.py": "runtime_env_agent",
    "log_monitor.py": "log_monitor",
    "_private/monitor.py": "monitor",
    "dashboard/dashboard.py": "dashboard",
}


@contextlib.contextmanager
def own_session(num_cpus: int) -> Iterator[None]:
    """Starts a small cluster like `themis_ray.sessions.ray_session`, whatever else is up, and ends all of it.

    Args:
        num_cpus: What Ray is told; more than there are lets it place more actors than can compute at a time.

    Raises:
        RuntimeError: Processes were left over; they have been ended.
    """
    start_ray(
        num_cpus=num_cpus,
        object_store_memory=OBJECT_STORE_BYTES,
        namespace="themis",
        _system_config=dict(SYSTEM_CONFIG),
    )
    try:
        yield
    finally:
        ours = psutil.Process().children(recursive=True)
        ray.shutdown()
        left = psutil.wait_procs(ours, timeout=END_TIMEOUT_S)[1]
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    if left:
        raise RuntimeError(f"{len(left)} processes of the Ray session did not end by themselves")


def head_memory_mib() -> dict[str, float]:
    """Returns the resident memory of this process and of Ray's own processes below it, workers left out."""
    driver = psutil.Process()
    memory = {"driver": driver.memory_info().rss / 2**20}
    for process in driver.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            role = _role(process.cmdline())
            if role is not None:
                memory[role] = memory.get(role, 0.0) + process.memory_info().rss / 2**20
    memory["head"] = sum(memory.values())
    return memory


def _role(command: Sequence[str]) -> str | None:
    """Returns what a process below the driver is; None for a worker."""
    program, words = (command[0] if command else ""), " ".join(command)
    if program.startswith("ray::"):
        return AGENTS.get(program.split()[0])
    for name in ("gcs_server", "raylet"):
        if program.endswith(name):
            return name
    return next((name for path, name in SCRIPTS.items() if path in words), None)


def growth(numbers: Sequence[float], values: Sequence[float]) -> float:
    """Returns the growth of `values` per unit of `numbers`: the slope of a straight line; 0 with one number."""
    if len(set(numbers)) < 2:
        return 0.0
    return statistics.linear_regression(numbers, values).slope
