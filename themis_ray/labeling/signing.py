"""Addresses of clips that prove by themselves who may read them: signed for one study, one clip and a day.

The signature is HMAC-SHA256 over study, name and `until`, so that the process that sends clips needs no database.
`until` is the end of the day after today (UTC): within a day the address of a clip stays the same, and the browser that
has it does not fetch it again, and no address runs out in less than 24 hours.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re

__all__ = ["CLIP_TYPES", "check_clip", "clip_until", "is_clip", "sign_clip"]

DAY_S = 24 * 3600
CLIP_TYPES = {"webm": "video/webm", "mp4": "video/mp4"}
# The same as Slug and ClipName of themis_ray.wire, whose import takes longer than this process needs to start.
STUDY = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
CLIP_NAME = re.compile(r"[0-9a-f]{32}\.(webm|mp4)")
UNTIL = re.compile(r"[0-9]{1,12}")


def is_clip(study: str, name: str) -> bool:
    """Whether study and name are what a clip can be called; nothing else ever becomes part of a path."""
    return STUDY.fullmatch(study) is not None and CLIP_NAME.fullmatch(name) is not None


def clip_until(now: float) -> int:
    """Returns when addresses that are made now run out: the end of tomorrow, in seconds since 1970."""
    return (int(now) // DAY_S + 2) * DAY_S


def sign_clip(secret: bytes, study: str, name: str, until: int) -> str:
    """Returns the query string of a clip's address, `until=...&signature=...`.

    Args:
        secret: The service's secret; `signature` tells nothing about it.
        study: Id of the study that the clip belongs to.
        name: Name of the clip.
        until: Seconds since 1970 after which the address is worth nothing; see `clip_until`.

    Raises:
        ValueError: Study or name is not what a clip can be called.
    """
    if not is_clip(study, name):
        raise ValueError(f"study {study!r} and name {name!r} are no clip's. A name is 32 hex digits and .webm or .mp4.")
    return f"until={until}&signature={_signature(secret, study, name, str(until))}"


def check_clip(secret: bytes, study: str, name: str, until: str, signature: str, now: float) -> bool:
    """Whether the parts of an address belong together and it has not run out.

    Args:
        secret: The secret that the address was signed with.
        study: As in the address.
        name: As in the address.
        until: As in the address.
        signature: As in the address.
        now: Seconds since 1970.
    """
    if not is_clip(study, name) or UNTIL.fullmatch(until) is None or not signature.isascii():
        return False
    return hmac.compare_digest(_signature(secret, study, name, until), signature) and now < int(until)


def _signature(secret: bytes, study: str, name: str, until: str) -> str:
    # The first word keeps these apart from whatever else is signed with the secret.
    message = "\n".join(("themis-clip", study, name, until)).encode()
    return base64.urlsafe_b64encode(hmac.digest(secret, message, hashlib.sha256)).decode().rstrip("=")
