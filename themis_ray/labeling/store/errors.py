"""Why the store refuses something. `status` is what HTTP calls it."""

from themis_ray.errors import ThemisError

__all__ = ["ConflictError", "ForbiddenError", "LateError", "NotFoundError", "StoreError", "TooManyError", "WrongError"]


class StoreError(ThemisError):
    """Something that the store refuses."""

    status = 400


class WrongError(StoreError):
    """What was sent makes no sense here."""

    status = 422


class ForbiddenError(StoreError):
    """The caller may not do this."""

    status = 403


class NotFoundError(StoreError):
    """There is no such thing, or the caller is not to know that there is."""

    status = 404


class ConflictError(StoreError):
    """It does not go together with the state that things are in."""

    status = 409


class LateError(ConflictError):
    """The lease had run out and somebody else has answered: nothing was stored."""


class TooManyError(StoreError):
    """Too many calls in a short time."""

    status = 429
