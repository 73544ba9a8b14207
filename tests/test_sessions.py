"""Ray sessions: busy machines, and clusters that are not there."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from themis_ray.errors import ClusterError
from themis_ray.sessions import ray_session

# The first `argv[1]` clusters come up too late: Ray's clock runs a million times as fast, and finds no node at first.
LATE_NODES = """
import sys, time, types
import psutil, ray
import ray._private.node as node
from themis_ray.errors import ClusterError
from themis_ray.sessions import start_ray

get_node, num_late = ray._private.services.get_node, int(sys.argv[1])

def late_node(*args):
    global num_late
    node.time = time
    if num_late:
        num_late -= 1
        node.time = types.SimpleNamespace(monotonic=lambda: time.monotonic() * 1e6, sleep=time.sleep, time=time.time)
        raise RuntimeError("no node yet")
    return get_node(*args)

ray._private.services.get_node = late_node
node.time = types.SimpleNamespace(monotonic=lambda: time.monotonic(), sleep=time.sleep, time=time.time)
try:
    start_ray(num_cpus=1, object_store_memory=80 * 2**20)
except ClusterError as error:
    print(error)
else:
    print("answer", ray.get(ray.remote(lambda: 6 * 7).remote()))
names = [process.name() for process in psutil.Process().children()]
print("left", names.count("raylet"), names.count("gcs_server"))
ray.shutdown()
"""


def start_with_late_nodes(num_late: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LATE_NODES, str(num_late)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)


@pytest.mark.ray
def test_a_cluster_that_comes_up_too_late_is_ended_and_started_again() -> None:
    done = start_with_late_nodes(1)
    assert done.stdout.splitlines() == ["answer 42", "left 1 1"], done.stderr
    assert "try 1 of 3" in done.stderr


@pytest.mark.ray
def test_a_machine_that_is_too_busy_is_told_in_one_line() -> None:
    done = start_with_late_nodes(3)
    assert done.stdout.splitlines() == [
        "Ray did not start within 30 s, in 3 tries. Too much runs on this machine; wait, or end some of it.",
        "left 0 0",
    ], done.stderr


@pytest.mark.parametrize(
    ("address", "refusal"),
    [("auto", ConnectionError("Could not find any running Ray instance.")), ("here:port", ValueError("no port"))],
)
def test_an_address_that_ray_itself_refuses_is_told_in_one_line(
    address: str, refusal: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise refusal

    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(ClusterError, match=f"RAY_ADDRESS={address} leads to no Ray cluster"), ray_session():
        pass


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_cluster_that_is_not_there_is_told_at_once(scheme: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "themis_ray.cli", "train", "env.id=CartPole-v1", "--out", str(out)]
    with socket.socket() as taken:  # a port that nothing listens on, and that nothing else can take meanwhile
        taken.bind(("127.0.0.1", 0))
        address = f"{scheme}127.0.0.1:{taken.getsockname()[1]}"
        environment = {**os.environ, "RAY_ADDRESS": address}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    message = f"error: no Ray cluster answers at {address}, which RAY_ADDRESS names (Connection refused)."
    assert message in " ".join(done.stderr.split())
