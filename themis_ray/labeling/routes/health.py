"""Whether the service lives, is ready, and how it is doing."""

import hmac

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from themis_ray.labeling.callers import ServiceOf, UnauthorizedError, current_member
from themis_ray.labeling.metrics import REGISTRY

__all__ = ["router"]

router = APIRouter(tags=["health"])


@router.get("/healthz")
def healthz() -> dict[str, str]:
    """Answers as long as the process does."""
    return {"status": "ok"}


@router.get("/readyz")
def readyz(service: ServiceOf) -> dict[str, str]:
    """Answers if the database does."""
    service.store.access.has_members()
    return {"status": "ready"}


@router.get("/metrics", include_in_schema=False)
def metrics(request: Request, service: ServiceOf) -> PlainTextResponse:
    """Prometheus metrics of this replica, for admins and for whoever has the token of the settings."""
    wanted = service.settings.metrics_token
    given = request.headers.get("Authorization", "").removeprefix("Bearer ")
    is_known = bool(wanted) and hmac.compare_digest(given.encode(), wanted.encode())
    member = None if is_known else current_member(request)
    if not is_known and (member is None or member.role != "admin"):
        raise UnauthorizedError("metrics need an admin's session or Authorization: Bearer METRICS_TOKEN.")
    return PlainTextResponse(generate_latest(REGISTRY), media_type=CONTENT_TYPE_LATEST)
