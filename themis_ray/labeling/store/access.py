"""Members, API tokens, invitations that work once, rate limits, and the record of what was done."""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, case, delete, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from themis_ray.labeling import tables
from themis_ray.labeling.database import Database
from themis_ray.labeling.store.errors import ForbiddenError, NotFoundError, TooManyError

__all__ = ["Access", "Member", "Role", "TokenRow", "hash_token", "write_audit"]

Role = Literal["admin", "experimenter"]
TOKEN_PREFIX = "themis_"


@dataclass(frozen=True)
class Member:
    """An admin, who may do everything, or an experimenter, who may do what concerns their studies."""

    id: str
    name: str
    role: Role
    studies: frozenset[str]

    def may_see(self, study_id: str) -> bool:
        """Whether this study is the member's business."""
        return self.role == "admin" or study_id in self.studies


@dataclass(frozen=True)
class TokenRow:
    """What is known of an API token; not the token itself."""

    id: str
    study_id: str
    name: str
    created_at: float
    revoked_at: float | None


def hash_token(token: str) -> str:
    """SHA-256, hexadecimal. Tokens are random, so there is nothing to guess and no salt to keep."""
    return hashlib.sha256(token.encode()).hexdigest()


def write_audit(connection: Connection, actor: str, act: str, study_id: str | None, about: dict[str, Any]) -> None:
    """Records that somebody did something."""
    connection.execute(
        insert(tables.audit).values(happened_at=time.time(), actor=actor, act=act, study_id=study_id, about=about)
    )


class Access:
    """Who may come in."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # ---------------------------------------------------------------- members

    def accept_invitation(self, nonce: str, role: Role, name: str, study_id: str | None) -> Member:
        """Makes a member of an invitation that nobody has used.

        Raises:
            ForbiddenError: The invitation was used before.
            NotFoundError: Its study does not exist.
        """
        dialect = sqlite if self._database.is_sqlite else postgresql
        with self._database.write() as connection:
            used = dialect.insert(tables.used_invitation).values(nonce=nonce, used_at=time.time())
            is_new = used.on_conflict_do_nothing().returning(tables.used_invitation.c.nonce)
            if connection.execute(is_new).first() is None:
                raise ForbiddenError("this invitation was used before. Ask for another one.")
            member_id = f"m-{secrets.token_hex(8)}"
            connection.execute(
                insert(tables.member).values(id=member_id, name=name, role=role, created_at=time.time(), is_active=True)
            )
            if study_id is not None:
                self._join(connection, member_id, study_id)
            write_audit(connection, member_id, "member.join", study_id, {"role": role})
            return self._member(connection, member_id)

    def member(self, member_id: str) -> Member:
        """Returns a member.

        Raises:
            NotFoundError: There is none, or not any more.
        """
        with self._database.read() as connection:
            return self._member(connection, member_id)

    def deactivate(self, member_id: str, actor: str) -> None:
        """Ends a membership; sessions of the member end with it.

        Raises:
            NotFoundError: There is no such member.
        """
        with self._database.write() as connection:
            self._member(connection, member_id)
            connection.execute(update(tables.member).where(tables.member.c.id == member_id).values(is_active=False))
            write_audit(connection, actor, "member.deactivate", None, {"member": member_id})

    def has_members(self) -> bool:
        """Whether anybody has ever come in."""
        with self._database.read() as connection:
            return connection.execute(select(tables.member.c.id).limit(1)).first() is not None

    def _join(self, connection: Connection, member_id: str, study_id: str) -> None:
        if connection.execute(select(tables.study.c.id).where(tables.study.c.id == study_id)).first() is None:
            raise NotFoundError(f"there is no study {study_id!r}.")
        dialect = sqlite if self._database.is_sqlite else postgresql
        connection.execute(
            dialect.insert(tables.membership).values(member_id=member_id, study_id=study_id).on_conflict_do_nothing()
        )

    def _member(self, connection: Connection, member_id: str) -> Member:
        row = connection.execute(select(tables.member).where(tables.member.c.id == member_id)).one_or_none()
        if row is None or not row.is_active:
            raise NotFoundError(f"there is no member {member_id!r}.")
        studies = connection.execute(
            select(tables.membership.c.study_id).where(tables.membership.c.member_id == member_id)
        ).scalars()
        return Member(row.id, row.name, row.role, frozenset(studies))

    # ---------------------------------------------------------------- tokens

    def make_token(self, study_id: str, name: str, actor: str) -> tuple[str, TokenRow]:
        """Makes an API token of one study; it is returned now and never again.

        Raises:
            NotFoundError: There is no such study.
        """
        secret = TOKEN_PREFIX + secrets.token_urlsafe(32)
        row = TokenRow(f"t-{secrets.token_hex(6)}", study_id, name, time.time(), None)
        with self._database.write() as connection:
            if connection.execute(select(tables.study.c.id).where(tables.study.c.id == study_id)).first() is None:
                raise NotFoundError(f"there is no study {study_id!r}.")
            connection.execute(
                insert(tables.token).values(
                    id=row.id, hash=hash_token(secret), study_id=study_id, name=name, created_at=row.created_at
                )
            )
            write_audit(connection, actor, "token.make", study_id, {"token": row.id, "name": name})
        return secret, row

    def find_token(self, secret: str) -> TokenRow | None:
        """Returns what is known of a token; None where it is unknown or revoked."""
        with self._database.read() as connection:
            row = connection.execute(
                select(tables.token).where(
                    tables.token.c.hash == hash_token(secret), tables.token.c.revoked_at.is_(None)
                )
            ).one_or_none()
        return None if row is None else TokenRow(row.id, row.study_id, row.name, row.created_at, row.revoked_at)

    def tokens(self, study_id: str) -> list[TokenRow]:
        """Returns the tokens of a study, the newest first."""
        with self._database.read() as connection:
            rows = connection.execute(
                select(tables.token)
                .where(tables.token.c.study_id == study_id)
                .order_by(tables.token.c.created_at.desc())
            ).all()
        return [TokenRow(row.id, row.study_id, row.name, row.created_at, row.revoked_at) for row in rows]

    def revoke_token(self, study_id: str, token_id: str, actor: str) -> None:
        """Makes a token worthless.

        Raises:
            NotFoundError: The study has no such token.
        """
        with self._database.write() as connection:
            changed = connection.execute(
                update(tables.token)
                .where(tables.token.c.id == token_id, tables.token.c.study_id == study_id)
                .values(revoked_at=func.coalesce(tables.token.c.revoked_at, time.time()))
            )
            if changed.rowcount == 0:
                raise NotFoundError(f"study {study_id!r} has no token {token_id!r}.")
            write_audit(connection, actor, "token.revoke", study_id, {"token": token_id})

    # ---------------------------------------------------------------- limits and the record

    def count_hit(self, key: str, limit: int, window_s: float) -> None:
        """Counts a call, for all replicas together.

        Args:
            key: Who calls what.
            limit: Calls allowed in a window.
            window_s: Length of a window, which begins with its first call.

        Raises:
            TooManyError: There were more.
        """
        with self._database.write() as connection:
            if count_hit(connection, self._database, key, window_s) > limit:
                raise TooManyError(f"more than {limit} calls in {window_s:.0f} s. Wait a little and go on.")

    def clear_hits(self) -> None:
        """Forgets windows that are over."""
        with self._database.write() as connection:
            connection.execute(delete(tables.hit).where(tables.hit.c.expires_at < time.time()))

    def record(self, actor: str, act: str, study_id: str | None, about: dict[str, Any]) -> None:
        """Records that somebody did something."""
        with self._database.write() as connection:
            write_audit(connection, actor, act, study_id, about)

    def audit(self, *, study_id: str | None = None, before: int | None = None, limit: int = 200) -> list[Any]:
        """Returns rows of the record, the newest first.

        Args:
            study_id: Only those of this study.
            before: Only those with smaller numbers.
            limit: How many at most.
        """
        chosen = select(tables.audit).order_by(tables.audit.c.number.desc()).limit(limit)
        if study_id is not None:
            chosen = chosen.where(tables.audit.c.study_id == study_id)
        if before is not None:
            chosen = chosen.where(tables.audit.c.number < before)
        with self._database.read() as connection:
            return list(connection.execute(chosen))


def count_hit(connection: Connection, database: Database, key: str, window_s: float) -> int:
    """Counts a call in the caller's transaction and returns how many there were in this window."""
    now = time.time()
    dialect = sqlite if database.is_sqlite else postgresql
    new = dialect.insert(tables.hit).values(key=key, expires_at=now + window_s, count=1)
    is_over = tables.hit.c.expires_at < now
    statement = new.on_conflict_do_update(
        index_elements=["key"],
        set_={
            "count": case((is_over, 1), else_=tables.hit.c.count + 1),
            "expires_at": case((is_over, now + window_s), else_=tables.hit.c.expires_at),
        },
    ).returning(tables.hit.c.count)
    return int(connection.execute(statement).scalar_one())
