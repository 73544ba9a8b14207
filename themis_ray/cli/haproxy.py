"""HAProxy in front of Ray Serve: faster by far, and set up by environment variables alone."""

from __future__ import annotations

import os
import resource
import shlex
import socket
import stat
from collections.abc import Mapping
from pathlib import Path

__all__ = ["proxy_environment"]

MAX_CONNECTIONS = 16_000


def proxy_environment(folder: Path, haproxy: Path) -> Mapping[str, str]:
    """Returns what Ray Serve has to find in the environment, before a head starts, to answer through HAProxy.

    By default all clusters of a machine share HAProxy's folder and ports, and its pages of statistics are open to the
    network. Here the folder is the service's own, ports are free ones, and the statistics are for this machine only.

    Args:
        folder: Folder of this start of the service; short, since paths of sockets are.
        haproxy: The program.
    """
    metrics_port, stats_port, fallback_port, fallback_grpc_port = _free_ports(4)
    script = folder / "haproxy"
    # A backslash is one only after sed has read it.
    later = _LATER.replace("\\", "\\\\").replace("/", r"\/")
    script.write_text(_HAPROXY_SCRIPT.replace("@LATER@", later).replace("@HAPROXY@", shlex.quote(str(haproxy))))
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(script),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics_port),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats_port),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback_port),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(fallback_grpc_port),
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, max(1, (os.cpu_count() or 1) // 2))),
        "RAY_SERVE_HAPROXY_MAXCONN": str(_max_connections()),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        # Sessions of dead replicas are not kept for two minutes.
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "10",
    }


# Serve writes the configuration and starts HAProxy with -f FILE. In it "*" and no host at all mean every address. While
# the application is not there yet, Serve has HAProxy say 404, which means "never" to a page that sends answers, and 500
# while no replica is there; both have to be 503, "later".
_HAPROXY_SCRIPT = r"""#!/bin/sh
for argument in "$@"; do
  case "$argument" in
    *.cfg)
      sed -i \
        -e "s/^\( *bind \):\($RAY_SERVE_HAPROXY_METRICS_PORT\)$/\1127.0.0.1:\2/" \
        -e "s/^\( *bind \)\*:\($RAY_SERVE_HAPROXY_STATS_PORT\)$/\1127.0.0.1:\2/" \
        -e 's/^\( *http-request return status \)404 .*"Path .* not found.*/\1503 @LATER@/' \
        -e '/^ *errorfile 50[234] /d' \
        "$argument" ;;
  esac
done
exec @HAPROXY@ "$@"
"""
_LATER = (
    "content-type application/json hdr Retry-After 2 "
    r'string "{\"error\": \"the service is starting. Send it again.\"}"'
)


def _max_connections() -> int:
    """Returns how many people can be connected at once: HAProxy wants somewhat more than two files for each."""
    _, num_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_CONNECTIONS if num_files < 0 else min(MAX_CONNECTIONS, max(500, (num_files - 200) // 3))


def _free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [int(taken.getsockname()[1]) for taken in sockets]
    for taken in sockets:
        taken.close()
    return ports
