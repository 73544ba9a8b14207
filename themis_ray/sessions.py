"""The Ray cluster that a command works on: the one that it is told of, or one of its own that ends with it."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import ray

from themis_ray.errors import ClusterError

__all__ = ["SYSTEM_CONFIG", "ray_session", "start_ray"]

logger = logging.getLogger("themis_ray")

OBJECT_STORE_BYTES = 512 * 2**20

SYSTEM_CONFIG = {
    # Ray would run actors at a lower priority than the driver, which waits for them here.
    "worker_niceness": 0,
    # What is remembered of actors and tasks that are gone; a long sweep has many.
    "maximum_gcs_destroyed_actor_cached_count": 1000,
    "task_events_max_num_task_in_gcs": 1000,
}
NUM_TRIES = 3
CONNECT_TIMEOUT_S = 10.0
# What Ray says when a node did not register within the 30 s that it is given, which no setting changes.
TOO_SLOW = "timed out during startup"


@contextlib.contextmanager
def ray_session() -> Iterator[None]:
    """Use the cluster that RAY_ADDRESS names or that this process is in; else start a small one and end it afterwards.

    Without RAY_ADDRESS a cluster that somebody else runs on this machine is left alone.

    Raises:
        ClusterError: No cluster is at RAY_ADDRESS, or this machine is too busy for one.
    """
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    if address:
        _check_is_there(address)
        try:
            ray.init(log_to_driver=False, logging_level="ERROR", namespace="themis")
        except (ConnectionError, ValueError) as error:
            raise ClusterError(
                f"RAY_ADDRESS={address} leads to no Ray cluster ({error}). Name one that runs, or unset RAY_ADDRESS to "
                "start one on this machine."
            ) from error
    else:
        start_ray(namespace="themis", object_store_memory=OBJECT_STORE_BYTES, _system_config=dict(SYSTEM_CONFIG))
    try:
        yield
    finally:
        ray.shutdown()


def start_ray(**options: Any) -> None:
    """Start a quiet cluster of this process's own with `ray.init`, and try again where the machine was too busy.

    Args:
        options: More arguments of `ray.init`.

    Raises:
        ClusterError: No try was fast enough.
    """
    for number in range(1, NUM_TRIES + 1):
        before = set(psutil.Process().children())
        try:
            ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR", **options)
        except Exception as error:  # Ray raises no class of its own
            if TOO_SLOW not in str(error):
                raise
            logger.warning("Ray did not start within 30 s (try %d of %d).", number, NUM_TRIES)
            _end_ray(set(psutil.Process().children()) - before)
        else:
            return
    raise ClusterError(
        f"Ray did not start within 30 s, in {NUM_TRIES} tries. Too much runs on this machine; wait, or end some of it."
    )


def _check_is_there(address: str) -> None:
    """Connects to HOST:PORT once, because Ray itself would try for minutes and tell nobody why."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:  # the port is not a number
        host = port = None
    if host is None or port is None:
        return  # auto, local and the like, which Ray looks up or refuses by itself
    try:
        socket.create_connection((host, port), CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise ClusterError(
            f"no Ray cluster answers at {address}, which RAY_ADDRESS names ({error.strerror or error}). Name one that "
            "runs, or unset RAY_ADDRESS to start one on this machine."
        ) from error


def _end_ray(processes: set[psutil.Process]) -> None:
    """Ends what a cluster that did not come up has left."""
    home = str(Path(ray.__file__).parent)
    killed = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if any(part.startswith(home) for part in process.cmdline()):
                process.kill()
                killed.append(process)
    psutil.wait_procs(killed)
