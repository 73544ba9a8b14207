import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from themis_ray.errors import ConfigError
from themis_ray.labeling.clip_server import SMALL_BYTES, ClipApp, ClipServer, FileCache, clip_path
from themis_ray.labeling.signing import clip_until, sign_clip

SECRET = b"0123456789abcdef" * 2
ORIGIN = "http://127.0.0.1:8000"
SMALL, LARGE, LAST = f"{'a' * 32}.webm", f"{'b' * 32}.mp4", f"{'c' * 32}.webm"
CONTENT = {SMALL: bytes(range(256)) * 40, LARGE: bytes(range(251)) * (SMALL_BYTES // 100), LAST: b"0123456789"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "clips" / "pong").mkdir(parents=True)
    for name, content in CONTENT.items():
        clip_path(tmp_path / "clips", "pong", name).write_bytes(content)
    (tmp_path / "secret.key").write_text("secret")
    return tmp_path / "clips"


@pytest.fixture
def get(folder: Path) -> Callable[..., httpx.Response]:
    app = ClipApp(folder, SECRET, [ORIGIN])

    def get(url: str, method: str = "GET", headers: dict[str, str] | None = None) -> httpx.Response:
        async def call() -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://clips") as client:
                return await client.request(method, url, headers=headers)

        return asyncio.run(call())

    return get


def address(name: str, study: str = "pong") -> str:
    return f"/clips/{study}/{name}?{sign_clip(SECRET, study, name, clip_until(time.time()))}"


@pytest.mark.parametrize(("name", "kind"), [(SMALL, "video/webm"), (LARGE, "video/mp4")])
def test_a_signed_address_gives_the_file(get: Callable[..., httpx.Response], name: str, kind: str) -> None:
    for _ in range(2):
        response = get(address(name))
        assert response.status_code == 200
        assert response.content == CONTENT[name]
        assert response.headers["content-type"] == kind
        assert response.headers["content-length"] == str(len(CONTENT[name]))
        assert response.headers["cache-control"] == "private, max-age=86400, immutable"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["etag"] == f'"{name[:32]}"'
    head = get(address(name), "HEAD")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(CONTENT[name]))


def test_without_a_valid_signature_nothing_is_told(get: Callable[..., httpx.Response]) -> None:
    good = address(SMALL)
    missing = f"{'d' * 32}.webm"
    for url in (
        f"/clips/pong/{SMALL}",
        good[:-2],
        good.replace(SMALL, LAST),
        good.replace("/pong/", "/other/"),
        good + "&signature=x",
        good + "&until=1",
        f"/clips/pong/{SMALL}?{sign_clip(SECRET, 'pong', SMALL, int(time.time()))}",
        f"/clips/pong/{SMALL}?{sign_clip(b'other', 'pong', SMALL, clip_until(time.time()))}",
        f"/clips/pong/{missing}?until=1&signature=x",
    ):
        response = get(url)
        assert response.status_code == 403, url
        assert response.headers["cache-control"] == "no-store"
        assert "etag" not in response.headers
        assert "signature" in response.json()["error"]
    assert get(address(missing)).status_code == 404


def test_no_path_leads_out_of_the_folder(get: Callable[..., httpx.Response]) -> None:
    query = address(SMALL).split("?")[1]
    for path in (
        "/clips/pong/../../secret.key",
        "/clips/../secret.key",
        "/clips/pong/%2e%2e%2f%2e%2e%2fsecret.key",
        "/clips/pong/..%2f..%2fsecret.key",
        f"/clips/pong/{SMALL}%00",
        f"/clips/pong/{SMALL}%0a",
        f"/clips//etc/passwd/{SMALL}",
        "/clips/",
        "/clips",
        "/etc/passwd",
        "/",
    ):
        assert get(f"{path}?{query}").status_code in (403, 404), path


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=2-4", 2, 4),
        ("bytes=4-", 4, 9),
        ("bytes=-3", 7, 9),
        ("bytes=-99", 0, 9),
        ("bytes=5-99", 5, 9),
    ],
)
def test_parts(get: Callable[..., httpx.Response], asked: str, first: int, last: int) -> None:
    response = get(address(LAST), headers={"range": asked})
    assert response.status_code == 206
    assert response.content == CONTENT[LAST][first : last + 1]
    assert response.headers["content-range"] == f"bytes {first}-{last}/10"


def test_a_part_of_a_large_file(get: Callable[..., httpx.Response]) -> None:
    first, last = SMALL_BYTES - 5, SMALL_BYTES + 700_000
    response = get(address(LARGE), headers={"range": f"bytes={first}-{last}"})
    assert (response.status_code, response.content) == (206, CONTENT[LARGE][first : last + 1])
    assert int(response.headers["content-length"]) == last - first + 1


@pytest.mark.parametrize("asked", ["bytes=10-", "bytes=99-100", "bytes=-0"])
def test_parts_that_do_not_exist(get: Callable[..., httpx.Response], asked: str) -> None:
    response = get(address(LAST), headers={"range": asked})
    assert response.status_code == 416
    assert response.headers["content-range"] == "bytes */10"


@pytest.mark.parametrize(
    "asked", ["bytes=0-1,4-5", "bytes=5-2", "bytes=-", "lines=1-2", "bytes=a-b", "bytes=1-2-3", ""]
)
def test_what_is_no_request_for_one_part_gets_the_whole(get: Callable[..., httpx.Response], asked: str) -> None:
    response = get(address(LAST), headers={"range": asked})
    assert (response.status_code, response.content) == (200, CONTENT[LAST])


def test_a_part_of_another_version_is_not_mixed_in(get: Callable[..., httpx.Response]) -> None:
    same, other = f'"{LAST[:32]}"', f'"{"d" * 32}"'
    assert get(address(LAST), headers={"range": "bytes=0-1", "if-range": same}).status_code == 206
    assert get(address(LAST), headers={"range": "bytes=0-1", "if-range": other}).status_code == 200


def test_who_has_it_is_told_so(get: Callable[..., httpx.Response]) -> None:
    etag = f'"{LAST[:32]}"'
    for known in (etag, f'"x", W/{etag}', "*"):
        response = get(address(LAST), headers={"if-none-match": known})
        assert (response.status_code, response.content) == (304, b"")
        assert response.headers["etag"] == etag
    assert get(address(LAST), headers={"if-none-match": '"x"'}).status_code == 200
    assert get(f"/clips/pong/{LAST}", headers={"if-none-match": etag}).status_code == 403


def test_only_pages_of_the_service_may_read(get: Callable[..., httpx.Response]) -> None:
    ours = get(address(LAST), headers={"origin": ORIGIN})
    assert ours.headers["access-control-allow-origin"] == ORIGIN
    for origin in ("http://evil.example", "null", f"{ORIGIN}0", ""):
        response = get(address(LAST), headers={"origin": origin})
        assert "access-control-allow-origin" not in response.headers
        assert response.headers["vary"] == "origin"
    preflight = get(address(LAST), "OPTIONS", headers={"origin": ORIGIN, "access-control-request-headers": "range"})
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-headers"] == "range"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_clips_are_only_read(get: Callable[..., httpx.Response], method: str) -> None:
    assert get(address(LAST), method).status_code == 400


def test_a_deleted_clip_is_gone_at_once(get: Callable[..., httpx.Response], folder: Path) -> None:
    assert get(address(LAST)).status_code == 200
    clip_path(folder, "pong", LAST).unlink()
    assert get(address(LAST)).status_code == 404


def test_the_cache_keeps_what_was_read_last(tmp_path: Path) -> None:
    cache = FileCache(max_bytes=25)
    paths = [tmp_path / str(number) for number in range(4)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * 10)
    for number in (0, 1, 0, 2):
        cache.read(paths[number], 10)
    for path in paths:
        path.unlink()
    assert cache.read(paths[0], 10) == bytes(10)
    assert cache.read(paths[2], 10) == b"\x02" * 10
    with pytest.raises(FileNotFoundError):
        cache.read(paths[1], 10)


@pytest.fixture
def server(folder: Path) -> Iterator[ClipServer]:
    server = ClipServer(folder, SECRET, [ORIGIN], host="127.0.0.1", port=0)
    server.start()
    yield server
    server.stop()


def test_the_process_serves_and_comes_back_when_it_is_killed(server: ClipServer) -> None:
    url = f"http://127.0.0.1:{server.port}{address(SMALL)}"
    assert httpx.get(url, timeout=30).content == CONTENT[SMALL]
    first = server.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    # The socket stays open: a new connection waits until the child is back.
    deadline = time.monotonic() + 30
    while server.pid == first and time.monotonic() < deadline:
        time.sleep(0.05)
    assert httpx.get(url, timeout=30).content == CONTENT[SMALL]
    assert server.num_restarts == 1


def test_the_secret_is_not_among_the_arguments(server: ClipServer) -> None:
    assert SECRET not in Path(f"/proc/{server.pid}/cmdline").read_bytes()


def test_stopping_ends_the_process_and_frees_the_port(folder: Path) -> None:
    server = ClipServer(folder, SECRET, [], host="127.0.0.1", port=0)
    server.start()
    port, pid = server.port, server.pid
    assert httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=30).text == "ok"
    server.stop()
    assert pid is not None
    assert not Path(f"/proc/{pid}").exists()
    socket.create_server(("127.0.0.1", port)).close()


def test_a_taken_port_is_named(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{port} .*another port"):
            ClipServer(folder, SECRET, [], host="127.0.0.1", port=port).start()


def test_it_ends_when_its_parent_is_killed(folder: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from themis_ray.labeling.clip_server import ClipServer;"
        "s = ClipServer(Path(sys.argv[1]), b'x' * 32, [], host='127.0.0.1', port=0); s.start();"
        "print(s.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = Path("/proc") / parent.stdout.readline().strip()
        assert child.exists()
        parent.kill()
    deadline = time.monotonic() + 30
    while child.exists() and _state(child) != "Z" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not child.exists() or _state(child) == "Z"


def _state(process: Path) -> str:
    try:
        return (process / "stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "Z"


def test_alone_it_needs_a_secret(folder: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "THEMIS_SECRET"}
    for secret in ({}, {"THEMIS_SECRET": "short"}, {"THEMIS_SECRET": "x" * 31}):
        command = [sys.executable, "-m", "themis_ray.labeling.clip_server", "--folder", str(folder)]
        done = subprocess.run(command, env=environment | secret, capture_output=True, text=True, timeout=60)
        assert done.returncode == 2
        assert "THEMIS_SECRET" in done.stderr
