"""Who calls: the session or the token of a request, and what it may do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from themis_ray.labeling.cookies import read_annotators
from themis_ray.labeling.security import SESSION_COOKIE, SessionCookie
from themis_ray.labeling.service import Service
from themis_ray.labeling.store import ForbiddenError, Member, NotFoundError, StoreError

__all__ = [
    "AdminCaller",
    "AnnotatorCaller",
    "AnyCaller",
    "Caller",
    "ServiceOf",
    "SessionOf",
    "StudyCaller",
    "UnauthorizedError",
    "annotator_session",
    "current_member",
    "current_session",
    "require_csrf",
]

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
FAILURES_PER_MINUTE = 60


class UnauthorizedError(StoreError):
    """Nobody is signed in, or not as somebody who could do this."""

    status = 401


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


ServiceOf = Annotated[Service, Depends(_service)]


def current_session(request: Request) -> SessionCookie | None:
    """Returns the session of the member whose browser it is; None without a valid one."""
    cookie = request.cookies.get(SESSION_COOKIE)
    session = None if cookie is None else _service(request).signer.read_session(cookie)
    return session if session is not None and session.kind == "member" else None


def annotator_session(request: Request, token: str | None = None) -> SessionCookie | None:
    """Returns the session of somebody who takes part; None without a valid one.

    Args:
        request: Its browser may have one session in each of several studies.
        token: The CSRF token that came with it, which tells the study; without one it is the study entered last.
    """
    service = _service(request)
    sessions = read_annotators(service, request.cookies)
    owned = (session for session in sessions if service.signer.is_csrf_token(session, token or ""))
    return next(owned, sessions[0] if sessions else None)


def require_csrf(request: Request, session: SessionCookie, token: str | None) -> None:
    """Lets requests through that a page of the service has sent.

    Args:
        request: Requests that change nothing need no token.
        session: Whose session the cookie is.
        token: From the header X-CSRF-Token, or of a form.

    Raises:
        ForbiddenError: The token is missing or another session's.
    """
    if request.method not in SAFE_METHODS and not _service(request).signer.is_csrf_token(session, token or ""):
        raise ForbiddenError("the request did not come from a page of this service. Load the page again.")


def current_member(request: Request) -> Member | None:
    """Returns the member whose session it is; None without one."""
    session = current_session(request)
    if session is None:
        return None
    try:
        return _service(request).store.access.member(session.id)
    except NotFoundError:
        return None


# ---------------------------------------------------------------- annotators


def _session(request: Request) -> SessionCookie:
    token = request.headers.get("X-CSRF-Token")
    session = annotator_session(request, token)
    if session is None:
        raise UnauthorizedError("nobody is signed in. Come in by the study's link.")
    require_csrf(request, session, token)
    return session


SessionOf = Annotated[SessionCookie, Depends(_session)]


def _annotator(session: SessionOf) -> str:
    return session.id


AnnotatorCaller = Annotated[str, Depends(_annotator)]


# ---------------------------------------------------------------- experimenters


@dataclass(frozen=True)
class Caller:
    """An experimenter, an admin, or a program with a token of one study.

    Attributes:
        id: What the record of acts calls it.
        member: Who it is; None for a program.
        study: The only study that a program may see; None for people.
    """

    id: str
    member: Member | None
    study: str | None

    def may_see(self, study_id: str) -> bool:
        """Whether this study is the caller's business."""
        return self.member.may_see(study_id) if self.member is not None else self.study == study_id


def _caller(request: Request) -> Caller:
    service = _service(request)
    header = request.headers.get("Authorization", "")
    if header:
        scheme, _, secret = header.partition(" ")
        token = service.store.access.find_token(secret.strip()) if scheme.lower() == "bearer" else None
        if token is None:
            _count_failure(request)
            raise UnauthorizedError("this token is not valid. Make one on the study's page.")
        return Caller(token.id, None, token.study_id)
    member = current_member(request)
    if member is None:
        raise UnauthorizedError("nobody is signed in. Sign in by an invitation, or send Authorization: Bearer TOKEN.")
    session = current_session(request)
    assert session is not None
    require_csrf(request, session, request.headers.get("X-CSRF-Token"))
    return Caller(member.id, member, None)


def _count_failure(request: Request) -> None:
    host = request.client.host if request.client else "?"
    _service(request).store.access.count_hit(f"failures:{host}", FAILURES_PER_MINUTE, 60.0)


AnyCaller = Annotated[Caller, Depends(_caller)]


def _study_caller(study: str, caller: AnyCaller) -> Caller:
    if not caller.may_see(study):
        # What is not the caller's business is not told apart from what does not exist.
        raise NotFoundError(f"there is no study {study!r}. themis study list names those there are.")
    return caller


StudyCaller = Annotated[Caller, Depends(_study_caller)]


def _admin(caller: AnyCaller) -> Caller:
    if caller.member is None or caller.member.role != "admin":
        raise ForbiddenError("only an admin may do this.")
    return caller


AdminCaller = Annotated[Caller, Depends(_admin)]
