"""A light HTTP/1.1 client for load generators: one keep-alive connection, no library's time in the figures."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Connection", "LostConnectionError", "Reply"]


class LostConnectionError(Exception):
    """No complete answer came: refused, reset, ended early or too late. Whether the server acted is not known."""


@dataclass(frozen=True)
class Reply:
    """An answer of a server; names of headers are in lower case, of several with one name the last one counts."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)


class Connection:
    """Asks one server, one request after another; connects when it has to."""

    def __init__(self, host: str, port: int, *, timeout_s: float = 30.0) -> None:
        self._host, self._port, self._timeout_s = host, port, timeout_s
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def request(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: Any = None,
        body: bytes = b"",
    ) -> Reply:
        """Returns the answer; `content` is sent as JSON, else `body` as it is.

        Raises:
            LostConnectionError: See there. The next request connects again.
        """
        body = body if content is None else json.dumps(content).encode()
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self._host}:{self._port}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        if content is not None:
            lines.append("Content-Type: application/json")
        if body or method not in ("GET", "HEAD"):
            lines.append(f"Content-Length: {len(body)}")
        message = "\r\n".join((*lines, "", "")).encode() + body
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._exchange(message)
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError) as error:
            self.close()
            raise LostConnectionError(f"{type(error).__name__}: {error}") from error
        except BaseException:
            self.close()
            raise

    async def _exchange(self, message: bytes) -> Reply:
        if self._streams is not None and self._streams[0].at_eof():
            self.close()
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port, limit=1 << 20)
        reader, writer = self._streams
        writer.write(message)
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")[:-2]
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        status = int(first.split(" ", 2)[1])
        if headers.get("transfer-encoding") == "chunked":
            body = await self._read_chunks(reader)
        elif status in (204, 304):
            body = b""
        elif "content-length" in headers:
            body = await reader.readexactly(int(headers["content-length"]))
        else:
            body = await reader.read()
            headers["connection"] = "close"
        if headers.get("connection", "").lower() == "close" or first.startswith("HTTP/1.0"):
            self.close()
        return Reply(status, headers, body)

    @staticmethod
    async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
        parts = []
        while num_bytes := int((await reader.readline()).split(b";")[0], 16):
            parts.append(await reader.readexactly(num_bytes))
            await reader.readexactly(2)
        while (await reader.readline()).strip():
            pass
        return b"".join(parts)

    def close(self) -> None:
        """Ends the connection; a later request makes a new one."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None
