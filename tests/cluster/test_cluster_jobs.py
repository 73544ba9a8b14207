"""`ray job submit` of a shipped sweep, as docs/cluster.md tells it, to a head that is started as a service is."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from live_service import free_port

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def head() -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the address of a head that asks for a token, and the environment that holds it."""
    env = {
        **os.environ,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": uuid.uuid4().hex * 2,
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    env.pop("RAY_ADDRESS", None)
    gcs, dashboard, agent, client = (free_port() for _ in range(4))
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        options = {
            "port": gcs,
            "dashboard-port": dashboard,
            "dashboard-agent-listen-port": agent,
            "ray-client-server-port": client,
            "num-cpus": 2,
            "object-store-memory": 200 * 2**20,
            "temp-dir": folder,
        }
        process = subprocess.Popen(
            ["ray", "start", "--head", "--block", *(f"--{name}={value}" for name, value in options.items())],
            env=env,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        address = f"http://127.0.0.1:{dashboard}"
        try:
            wait_for(address, env["RAY_AUTH_TOKEN"], process)
            yield address, env
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def wait_for(address: str, token: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        assert process.poll() is None, f"ray start ended with {process.returncode}"
        try:
            if httpx.get(f"{address}/api/jobs/", headers={"Authorization": f"Bearer {token}"}).is_success:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise AssertionError("the head did not start")


def test_a_job_runs_the_smoke_sweep(head: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    address, env = head
    storage = f"file://{tmp_path / 'storage'}"
    command = ["ray", "job", "submit", "--address", address, "--working-dir", str(ROOT)]
    # What .gitignore names stays here; .git it does not name.
    command += ["--runtime-env-json", json.dumps({"excludes": [".git", "docs/images"]})]
    command += ["--", "themis", "sweep", "tune_configs/smoke.yaml", "num_env_steps=1200", "--storage", storage]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout
    found = sorted(path.parent for path in (tmp_path / "storage" / "smoke").rglob("summary.json"))
    assert len(found) == 4
    summary = json.loads((found[0] / "summary.json").read_text())
    assert summary["num_env_steps"] >= 1200


def test_a_job_without_the_token_is_refused(head: tuple[str, dict[str, str]]) -> None:
    address, env = head
    command = ["ray", "job", "submit", "--address", address, "--", "true"]
    done = subprocess.run(
        command, env={**env, "RAY_AUTH_TOKEN": "0" * 64}, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode != 0
