"""The cookies that the service sets: a member's session, an annotator's for each study, and the study entered last.

One browser may be an experimenter's and take part in several studies, so none of these takes another's place.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

from fastapi.responses import Response
from starlette.requests import HTTPConnection

from themis_ray.labeling.metrics import App, Receive, Scope, Send
from themis_ray.labeling.security import SESSION_COOKIE, SESSION_S, SessionCookie
from themis_ray.labeling.service import Service
from themis_ray.labeling.store import Annotator

__all__ = [
    "STUDY_COOKIE",
    "SessionRenewal",
    "annotator_cookie",
    "open_study",
    "read_annotators",
    "sign_in_annotator",
    "sign_in_member",
]

STUDY_COOKIE = "themis_study"
ANNOTATOR_COOKIES = "themis_annotator_"


def annotator_cookie(study_id: str) -> str:
    """Returns the name of the cookie of whoever takes part in a study."""
    return ANNOTATOR_COOKIES + study_id


def read_annotators(service: Service, cookies: Mapping[str, str]) -> list[SessionCookie]:
    """Returns the valid sessions of annotators, that of the study entered last first."""
    last = annotator_cookie(cookies.get(STUDY_COOKIE, ""))
    names = sorted((name for name in cookies if name.startswith(ANNOTATOR_COOKIES)), key=lambda name: name != last)
    found = (service.signer.read_session(cookies[name]) for name in names)
    return [session for session in found if session is not None and session.kind == "annotator"]


def sign_in_member(response: Response, service: Service, member_id: str) -> None:
    """Signs a member in."""
    _, value = service.signer.make_session("member", member_id)
    _set(response, service, SESSION_COOKIE, value)


def sign_in_annotator(response: Response, service: Service, annotator: Annotator) -> SessionCookie:
    """Signs an annotator in to their study."""
    session, value = service.signer.make_session("annotator", annotator.id)
    _set(response, service, annotator_cookie(annotator.study.id), value)
    return session


def open_study(response: Response, service: Service, study_id: str) -> None:
    """Makes a study the one entered last, which pages without a study in their address belong to."""
    _set(response, service, STUDY_COOKIE, study_id)


def _set(response: Response, service: Service, name: str, value: str) -> None:
    response.set_cookie(
        name,
        value,
        max_age=SESSION_S,
        path=service.settings.root or "/",
        secure=service.settings.is_https,
        httponly=True,
        samesite="lax",
    )


class SessionRenewal:
    """Sets sessions again when more than half of their life is over, so that they end for those alone who stay away.

    A session keeps its nonce, so CSRF tokens of pages that are open go on to be valid.

    Args:
        app: What answers.
        service: Whose sessions.
    """

    def __init__(self, app: App, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on."""
        if scope["type"] != "http" or scope["path"].startswith("/static/"):  # which may be cached on the way
            await self._app(scope, receive, send)
            return
        aging = dict(self._aging(HTTPConnection(scope).cookies))

        async def renew(message: MutableMapping[str, Any]) -> None:
            if aging and message["type"] == "http.response.start":
                sent = [value for name, value in message["headers"] if name == b"set-cookie"]
                renewed = Response()
                for name, session in aging.items():
                    if not any(value.startswith(f"{name}=".encode()) for value in sent):  # signed out, or in as another
                        _set(renewed, self._service, name, self._service.signer.write_session(session))
                cookies = [header for header in renewed.raw_headers if header[0] == b"set-cookie"]
                message["headers"] = [*message["headers"], *cookies]
            await send(message)

        await self._app(scope, receive, renew)

    def _aging(self, cookies: Mapping[str, str]) -> Iterator[tuple[str, SessionCookie]]:
        """Yields the names of cookies that are to be set again, and the sessions in them."""
        for name, value in cookies.items():
            if name == SESSION_COOKIE or name.startswith(ANNOTATOR_COOKIES):
                session = self._service.signer.read_session(value)
                if session is not None and session.until - time.time() < SESSION_S / 2:
                    yield name, session
