"""Sends clips, in a process of its own: it checks the signature of an address and sends the file.

`ClipApp` is a plain ASGI application. Clips are small, so it keeps those that were asked for last in memory and answers
with one message; larger files go out in parts. `docs/design/clips-under-load.md` has what was measured against other
ways.

`ClipServer` runs it as a child process that ends with its parent, and starts it again when it dies. On a host without
the service, `THEMIS_SECRET=... python -m themis_ray.labeling.clip_server --folder CLIPS` runs it alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import uvicorn

from themis_ray.errors import ConfigError
from themis_ray.labeling.signing import CLIP_TYPES, check_clip, is_clip

__all__ = ["CLIPS_PATH", "ClipApp", "ClipServer", "clip_path"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

CLIPS_PATH = "/clips"
SECRET_VARIABLE = "THEMIS_SECRET"
CACHE_BYTES = 128 << 20
# Files up to this size are kept in memory and sent whole; a clip of 50 frames has 8 to 15 KiB.
SMALL_BYTES = 1 << 20
PART_BYTES = 256 << 10
MAX_AGE_S = 24 * 3600
RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")
STATUS_TEXT = {
    400: "the request is no GET or HEAD. Ask for a clip with the address that an assignment has.",
    403: "the address has no valid signature, or has run out. Fetch the assignment again; it has a new address.",
    404: "no such clip. Ask for a clip with the address that an assignment has.",
}
RESTART_DELAY_S = 0.2
MAX_RESTART_DELAY_S = 10.0
BACKLOG = 4096
MIN_SECRET_BYTES = 32
STOP_TIMEOUT_S = 5.0


def clip_path(folder: Path, study: str, name: str) -> Path:
    """Returns where a clip's file is, `FOLDER/STUDY/NAME`.

    Raises:
        ValueError: Study or name is not what a clip can be called, so that no path leaves the folder.
    """
    if not is_clip(study, name):
        raise ValueError(f"study {study!r} and name {name!r} are no clip's. A name is 32 hex digits and .webm or .mp4.")
    return folder / study / name


class FileCache:
    """The small files that were read last. Clips are named by their content, so a path never means something else."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._files: OrderedDict[Path, bytes] = OrderedDict()

    def read(self, path: Path, num_bytes: int) -> bytes:
        """Returns the content of a file that has `num_bytes`; what is in memory of another size is read again."""
        content = self._files.get(path)
        if content is not None and len(content) == num_bytes:
            self._files.move_to_end(path)
            return content
        content = path.read_bytes()
        old = self._files.pop(path, b"")
        self._files[path] = content
        self._num_bytes += len(content) - len(old)
        while self._num_bytes > self._max_bytes:
            _, dropped = self._files.popitem(last=False)
            self._num_bytes -= len(dropped)
        return content


class ClipApp:
    """An ASGI application: `GET /clips/{study}/{name}?until=...&signature=...`, and `GET /healthz`.

    Args:
        folder: Holds `STUDY/NAME` for every clip.
        secret: What the addresses are signed with.
        origins: Origins of the pages that may read clips, such as `http://127.0.0.1:8000`. Without one of them a page
            can play a clip and not read its bytes.
        cache_bytes: Memory for clips.
    """

    def __init__(
        self, folder: Path, secret: bytes, origins: Collection[str] = (), *, cache_bytes: int = CACHE_BYTES
    ) -> None:
        self._folder = folder
        self._secret = secret
        self._origins = {origin.encode() for origin in origins}
        self._cache = FileCache(cache_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] == "lifespan":
            await _live(receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000})
            return
        headers = self._common_headers(scope)
        method, path = scope["method"], scope["path"]
        if method == "OPTIONS":
            allow = [(b"access-control-allow-methods", b"GET, HEAD"), (b"access-control-allow-headers", b"range")]
            await _send_whole(send, 204, [*headers, *allow, (b"access-control-max-age", b"86400")], b"")
        elif method not in ("GET", "HEAD"):
            await _send_error(send, 400, headers)
        elif path == "/healthz":
            await _send_whole(send, 200, [*headers, (b"content-type", b"text/plain")], b"ok")
        elif f"{CLIPS_PATH}/" not in path:
            await _send_error(send, 404, headers)
        else:
            # Whatever stands before /clips/ is where a proxy has put the service.
            study, _, name = path.partition(f"{CLIPS_PATH}/")[2].partition("/")
            if not self._is_signed(scope, study, name):
                await _send_error(send, 403, headers)
            else:
                await self._send_clip(scope, send, headers, study, name)

    def _common_headers(self, scope: Scope) -> Headers:
        headers: Headers = [
            (b"x-content-type-options", b"nosniff"),
            (b"vary", b"origin"),
            # A clip may be played by a page of another address; who has the signed address may see it.
            (b"cross-origin-resource-policy", b"cross-origin"),
        ]
        origin = _header(scope, b"origin")
        if origin in self._origins:
            headers += [
                (b"access-control-allow-origin", origin),
                (b"access-control-expose-headers", b"content-length, content-range, etag"),
            ]
        return headers

    def _is_signed(self, scope: Scope, study: str, name: str) -> bool:
        query = parse_qs(scope["query_string"].decode("latin-1"))
        until, signature = query.get("until", []), query.get("signature", [])
        if len(until) != 1 or len(signature) != 1:
            return False
        return check_clip(self._secret, study, name, until[0], signature[0], time.time())

    async def _send_clip(self, scope: Scope, send: Send, headers: Headers, study: str, name: str) -> None:
        path = clip_path(self._folder, study, name)
        try:
            num_bytes = path.stat().st_size
        except OSError:
            await _send_error(send, 404, headers)
            return
        etag = f'"{path.stem}"'.encode()
        headers = [
            *headers,
            (b"etag", etag),
            (b"cache-control", b"private, max-age=%d, immutable" % MAX_AGE_S),
            (b"accept-ranges", b"bytes"),
        ]
        if _is_known(_header(scope, b"if-none-match"), etag):
            await _send_whole(send, 304, headers, None)
            return
        headers.append((b"content-type", CLIP_TYPES[path.suffix[1:]].encode()))
        first, last, status = 0, num_bytes - 1, 200
        if_range = _header(scope, b"if-range")
        part = _part(_header(scope, b"range"), num_bytes) if if_range in (b"", etag) else None
        if part is not None:
            first, last = part
            if first > last:
                await _send_whole(send, 416, [*headers, (b"content-range", b"bytes */%d" % num_bytes)], b"")
                return
            status = 206
            headers.append((b"content-range", b"bytes %d-%d/%d" % (first, last, num_bytes)))
        if scope["method"] == "HEAD":
            headers.append((b"content-length", b"%d" % (last - first + 1)))
            await _send_whole(send, status, headers, None)
            return
        try:
            if num_bytes <= SMALL_BYTES:
                content = self._cache.read(path, num_bytes)
                body = content if status == 200 else content[first : last + 1]
                await _send_whole(send, status, headers, body)
            else:
                await _send_parts(send, status, headers, path, first, last)
        except FileNotFoundError:
            # Deleted since it was looked at; nothing has been sent.
            await _send_error(send, 404, headers[:3])


async def _live(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


def _header(scope: Scope, name: bytes) -> bytes:
    return next((value for key, value in scope["headers"] if key == name), b"")


def _is_known(if_none_match: bytes, etag: bytes) -> bool:
    tags = {tag.strip().removeprefix(b"W/") for tag in if_none_match.split(b",")}
    return etag in tags or b"*" in tags


def _part(header: bytes, num_bytes: int) -> tuple[int, int] | None:
    """Returns first and last byte of a request for a part.

    None where the header asks for none, or for several, which a server may answer with the whole file. The first byte
    is after the last one where there are no such bytes.
    """
    match = RANGE.fullmatch(header.decode("latin-1").strip())
    if match is None or match.groups() == ("", ""):
        return None
    start, end = match.groups()
    if not start:
        num_wanted = min(int(end), num_bytes)
        return (num_bytes - num_wanted, num_bytes - 1) if num_wanted else (1, 0)
    first = int(start)
    last = min(int(end), num_bytes - 1) if end else num_bytes - 1
    if end and int(end) < first:
        return None
    return (first, last) if first < num_bytes else (1, 0)


async def _send_whole(send: Send, status: int, headers: Headers, body: bytes | None) -> None:
    """Sends an answer in one message; a body of None means that there is none and its length is left as it is."""
    if body is not None:
        headers = [*headers, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body or b""})


async def _send_error(send: Send, status: int, headers: Headers) -> None:
    body = json.dumps({"error": STATUS_TEXT[status]}).encode()
    extra = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
    await _send_whole(send, status, [*headers, *extra], body)


async def _send_parts(send: Send, status: int, headers: Headers, path: Path, first: int, last: int) -> None:
    file = await asyncio.to_thread(path.open, "rb")
    try:
        num_left = last - first + 1
        headers = [*headers, (b"content-length", b"%d" % num_left)]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await asyncio.to_thread(file.seek, first)
        while num_left:
            part = await asyncio.to_thread(file.read, min(PART_BYTES, num_left))
            if not part:
                raise OSError(f"{path} has become shorter while it was sent")
            num_left -= len(part)
            await send({"type": "http.response.body", "body": part, "more_body": num_left > 0})
    finally:
        file.close()


class ClipServer:
    """The clip server as a child process, started again when it dies.

    This process holds the listening socket, so that connections wait while the child is started again, and a pipe that
    the child reads from, so that the child ends when this process does, however that happens.

    Args:
        folder: As of `ClipApp`.
        secret: As of `ClipApp`, as text; the child gets it through its environment.
        origins: As of `ClipApp`.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one, which `port` then is.
    """

    def __init__(self, folder: Path, secret: bytes, origins: Collection[str], *, host: str, port: int) -> None:
        self._command = [sys.executable, "-m", "themis_ray.labeling.clip_server", "--folder", str(folder)]
        self._command += [f"--origin={origin}" for origin in origins]
        self._environment = os.environ | {SECRET_VARIABLE: secret.decode()}
        self._address = (host, port)
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._is_stopping = threading.Event()
        self._watcher: threading.Thread | None = None
        self.num_restarts = 0

    @property
    def port(self) -> int:
        """The port, once started."""
        return self._address[1] if self._socket is None else int(self._socket.getsockname()[1])

    @property
    def pid(self) -> int | None:
        """Process id of the child."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Takes the port and starts the child; connections are accepted as soon as it is up.

        Raises:
            ConfigError: The address cannot be listened on.
        """
        try:
            self._socket = socket.create_server(self._address, backlog=BACKLOG)
        except OSError as error:
            host, port = self._address
            raise ConfigError(f"clips cannot be served on {host}:{port} ({error}). Give another port.") from error
        self._start_child()
        self._watcher = threading.Thread(target=self._watch, name="clip-server", daemon=True)
        self._watcher.start()

    def stop(self) -> None:
        """Ends the child and waits for it."""
        self._is_stopping.set()
        if self._watcher is not None:
            self._watcher.join()
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._close_pipe()
        if self._socket is not None:
            self._socket.close()

    def _start_child(self) -> None:
        assert self._socket is not None
        number = self._socket.fileno()
        # A process group of its own: Ctrl-C reaches the service, which then ends the child.
        self._process = subprocess.Popen(
            [*self._command, "--socket", str(number)],
            env=self._environment,
            stdin=subprocess.PIPE,
            start_new_session=True,
            pass_fds=(number,),
        )

    def _close_pipe(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    def _watch(self) -> None:
        delay_s = RESTART_DELAY_S
        started = time.monotonic()
        while not self._is_stopping.wait(RESTART_DELAY_S):
            if self._process is None or self._process.poll() is None:
                continue
            delay_s = RESTART_DELAY_S if time.monotonic() - started > MAX_RESTART_DELAY_S else 2 * delay_s
            logging.warning("the clip server ended with code %s; it is started again", self._process.returncode)
            self._close_pipe()
            if self._is_stopping.wait(min(delay_s, MAX_RESTART_DELAY_S)):
                return
            self.num_restarts += 1
            started = time.monotonic()
            self._start_child()


def _end_with_parent(server: uvicorn.Server) -> None:
    """Ends the server when the pipe from the parent is closed, which the system does when the parent dies."""

    def wait() -> None:
        while os.read(0, 1):
            pass
        server.should_exit = True

    threading.Thread(target=wait, daemon=True).start()


def main() -> None:
    """Serves a folder of clips."""
    parser = argparse.ArgumentParser(
        prog="python -m themis_ray.labeling.clip_server",
        description=f"Send signed clips. The secret of the service is in the environment, in {SECRET_VARIABLE}.",
    )
    parser.add_argument("--folder", type=Path, required=True, help="holds STUDY/NAME for every clip")
    parser.add_argument("--origin", action="append", default=[], help="origin of a page that reads clips")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument("--socket", type=int, help="inherited socket to listen on; ends when standard input does")
    arguments = parser.parse_args()
    secret = os.environ.get(SECRET_VARIABLE, "").encode()
    if len(secret) < MIN_SECRET_BYTES:
        parser.error(f"{SECRET_VARIABLE} holds no secret of {MIN_SECRET_BYTES} characters or more")
    server = uvicorn.Server(
        uvicorn.Config(
            ClipApp(arguments.folder, secret, arguments.origin),
            host=arguments.host,
            port=arguments.port,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=3,
            backlog=BACKLOG,
        )
    )
    if arguments.socket is None:
        server.run()
    else:
        _end_with_parent(server)
        server.run(sockets=[socket.socket(fileno=arguments.socket)])


if __name__ == "__main__":
    main()
