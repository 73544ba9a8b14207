"""What is signed with the service's secret: sessions, invitations, tokens against forged requests."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from itsdangerous import BadSignature, URLSafeSerializer

from themis_ray.errors import ConfigError
from themis_ray.labeling.store import ForbiddenError

__all__ = ["SESSION_COOKIE", "Invitation", "SessionCookie", "Signer", "read_secret"]

SESSION_COOKIE = "themis_session"
SESSION_S = 60 * 24 * 3600
INVITATION_S = 7 * 24 * 3600
MIN_SECRET_BYTES = 32

InvitedRole = Literal["annotator", "experimenter", "admin"]


@dataclass(frozen=True)
class SessionCookie:
    """Who a browser belongs to.

    Attributes:
        kind: Annotator or member.
        id: Which one.
        nonce: Another one for every session, so that no two have the same CSRF token.
        until: Seconds since 1970 at which it runs out.
    """

    kind: Literal["annotator", "member"]
    id: str
    nonce: str
    until: int


@dataclass(frozen=True)
class Invitation:
    """Lets somebody in.

    Attributes:
        role: As what.
        study: To which study; None for admins.
        nonce: Invitations of members work once, and this is what is remembered of them.
        until: Seconds since 1970 at which it runs out.
    """

    role: InvitedRole
    study: str | None
    nonce: str
    until: int


class Signer:
    """Signs and checks; a change of the secret ends all sessions and invitations.

    Args:
        secret: At least 32 random bytes.
    """

    def __init__(self, secret: bytes) -> None:
        if len(secret) < MIN_SECRET_BYTES:
            raise ConfigError(f"the secret has {len(secret)} bytes. Give {MIN_SECRET_BYTES} random ones or more.")
        self._secret = secret
        self._sessions = URLSafeSerializer(secret, salt="themis-session", signer_kwargs=_SHA256)
        self._invitations = URLSafeSerializer(secret, salt="themis-invitation", signer_kwargs=_SHA256)

    def make_session(self, kind: Literal["annotator", "member"], person_id: str) -> tuple[SessionCookie, str]:
        """Returns a session and the value of its cookie."""
        session = SessionCookie(kind, person_id, secrets.token_urlsafe(9), int(time.time()) + SESSION_S)
        return session, self.write_session(session)

    def write_session(self, session: SessionCookie) -> str:
        """Returns the value of a session's cookie, whose life begins now."""
        until = int(time.time()) + SESSION_S
        return str(self._sessions.dumps([session.kind, session.id, session.nonce, until]))

    def read_session(self, cookie: str) -> SessionCookie | None:
        """Returns whose session a cookie is; None where it is forged or too old."""
        try:
            kind, person_id, nonce, until = self._sessions.loads(cookie)
        except (BadSignature, ValueError, TypeError):
            return None
        return SessionCookie(kind, person_id, nonce, until) if time.time() < until else None

    def csrf_token(self, session: SessionCookie) -> str:
        """Returns what has to come with everything that a browser changes."""
        message = "\n".join(("themis-csrf", session.kind, session.id, session.nonce))
        return hmac.digest(self._secret, message.encode(), hashlib.sha256).hex()

    def is_csrf_token(self, session: SessionCookie, token: str) -> bool:
        """Whether a token belongs to a session."""
        return token.isascii() and hmac.compare_digest(self.csrf_token(session), token)

    def make_invitation(self, role: InvitedRole, study: str | None, valid_s: float = INVITATION_S) -> str:
        """Returns the signed part of a link."""
        until = int(time.time() + valid_s)
        return str(self._invitations.dumps([role, study, secrets.token_urlsafe(12), until]))

    def read_invitation(self, text: str) -> Invitation:
        """Returns what an invitation says.

        Raises:
            ForbiddenError: It is forged or has run out.
        """
        try:
            role, study, nonce, until = self._invitations.loads(text)
        except (BadSignature, ValueError, TypeError) as error:
            raise ForbiddenError("this invitation is not valid. Ask for another one.") from error
        if time.time() >= until:
            raise ForbiddenError("this invitation has run out. Ask for another one.")
        return Invitation(role, study, nonce, until)


_SHA256 = {"digest_method": hashlib.sha256, "key_derivation": "hmac"}


def read_secret(path: Path) -> bytes:
    """Returns the secret of a file, which is made, readable by its owner only, where there is none.

    The environment variable THEMIS_SECRET goes before the file. Of several that start at once, all get the same.

    Raises:
        ConfigError: The secret is too short, or the file cannot be read or written.
    """
    given = os.environ.get("THEMIS_SECRET")
    if given is not None:
        if len(given.encode()) < MIN_SECRET_BYTES:
            raise ConfigError(f"THEMIS_SECRET is too short. Give {MIN_SECRET_BYTES} random characters or more.")
        return given.encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            _make_secret(path)
        secret = path.read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"the secret {path} cannot be read or made ({error}). Or set THEMIS_SECRET.") from error
    if len(secret) < MIN_SECRET_BYTES:
        raise ConfigError(f"the secret {path} is too short. Delete it to get a new one, which ends all sessions.")
    return secret


def _make_secret(path: Path) -> None:
    """Makes the file of a secret, whole from the first moment on; one that another has made meanwhile stays."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_urlsafe(48).encode())
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
