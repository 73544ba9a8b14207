"""What Prometheus reads, and the layers that every request goes through."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram

__all__ = ["REGISTRY", "SecureHeaders", "Timing"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)

REGISTRY = CollectorRegistry()
REQUESTS = Counter("themis_requests", "Requests by route and status.", ["method", "route", "status"], registry=REGISTRY)
SECONDS = Histogram("themis_request_seconds", "Seconds to answer.", ["route"], buckets=BUCKETS, registry=REGISTRY)


class Timing:
    """Counts and times requests by the pattern of their route, never by their path."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def note(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, note)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            REQUESTS.labels(scope["method"], route, status).inc()
            SECONDS.labels(route).observe(time.perf_counter() - started)


class SecureHeaders:
    """Adds the headers that keep a browser from doing what no page of ours wants it to.

    Args:
        app: What answers.
        clips_origin: Where clips come from; empty where that is the service's own origin.
        is_https: Whether people reach the service by https.
    """

    def __init__(self, app: App, clips_origin: str, *, is_https: bool) -> None:
        self._app = app
        clips = f" {clips_origin}" if clips_origin else ""
        policy = (
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
            f"media-src 'self' blob:{clips}; connect-src 'self'{clips}; form-action 'self'; "
            "frame-ancestors 'none'; base-uri 'none'"
        )
        headers = {
            "content-security-policy": policy,
            "x-content-type-options": "nosniff",
            "referrer-policy": "same-origin",
            "x-frame-options": "DENY",
            "cross-origin-opener-policy": "same-origin",
            "permissions-policy": "camera=(), microphone=(), geolocation=()",
        }
        if is_https:
            headers["strict-transport-security"] = "max-age=31536000"
        self._headers = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_private = not scope["path"].startswith("/static/")

        async def add(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *self._headers]
                if is_private:
                    message["headers"].append((b"cache-control", b"no-store"))
            await send(message)

        await self._app(scope, receive, add)
