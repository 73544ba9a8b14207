"""The web application: `create_app(service)`. Nothing happens when this is imported."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from sqlalchemy.exc import OperationalError, TimeoutError
from starlette.exceptions import HTTPException

from themis_ray.labeling.callers import AnyCaller
from themis_ray.labeling.cookies import SessionRenewal
from themis_ray.labeling.metrics import SecureHeaders, Timing
from themis_ray.labeling.routes import annotator, dashboard, demonstrations, experimenter, exports, health, pages
from themis_ray.labeling.service import Service
from themis_ray.labeling.store import StoreError
from themis_ray.labeling.web.render import STATIC_FOLDER
from themis_ray.wire import Wire

__all__ = ["create_app"]

logger = logging.getLogger("themis_ray")

API = "/api/v1"
RETRY_AFTER_S = "2"


class ErrorView(Wire):
    """Why something was refused: what was given, what is allowed, what to do."""

    error: str


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorView, "description": reason}
    for status, reason in {
        400: "It cannot be read",
        401: "Nobody is signed in",
        403: "Not allowed",
        404: "There is no such thing, or it is not the caller's business",
        405: "Not this method",
        409: "Not in this state",
        413: "Too large",
        422: "It makes no sense",
        429: "Too often; see Retry-After",
        503: "Busy; see Retry-After",
    }.items()
}


def create_app(service: Service) -> FastAPI:
    """Returns the application of a service, an ASGI callable.

    Args:
        service: Where it stores, what it signs with, where its clips are.
    """
    app = FastAPI(
        title="themis_ray labelling service",
        version="1",
        openapi_url=None,  # served below, to those who may use it
        docs_url=None,
        redoc_url=None,
        root_path=service.settings.root,
    )
    app.state.service = service
    app.include_router(health.router, responses=ERRORS)
    app.include_router(annotator.router, prefix=API, responses=ERRORS)
    app.include_router(demonstrations.router, prefix=API, responses=ERRORS)
    app.include_router(experimenter.router, prefix=API, responses=ERRORS)
    app.include_router(exports.router, prefix=API, responses=ERRORS)
    app.include_router(pages.router)
    app.include_router(dashboard.router)

    @app.get(f"{API}/openapi.json", include_in_schema=False)
    def openapi(caller: AnyCaller) -> JSONResponse:
        del caller
        return JSONResponse(app.openapi())

    app.mount("/static", StaticFiles(directory=STATIC_FOLDER), name="static")
    app.add_exception_handler(StoreError, _refuse)
    app.add_exception_handler(RequestValidationError, _refuse_wrong)
    app.add_exception_handler(HTTPException, _refuse_http)
    app.add_exception_handler(OperationalError, _refuse_busy)
    app.add_exception_handler(TimeoutError, _refuse_busy)  # all connections are taken
    app.add_middleware(SessionRenewal, service=service)
    app.add_middleware(SecureHeaders, clips_origin=service.settings.clips_origin, is_https=service.settings.is_https)
    app.add_middleware(Timing)
    return app


async def _refuse(_: Request, error: Exception) -> Response:
    assert isinstance(error, StoreError)
    headers = {"Retry-After": RETRY_AFTER_S} if error.status in (429, 503) else {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"error": str(error)}, error.status, headers)


async def _refuse_wrong(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    wrong = "; ".join(
        f"{'.'.join(str(part) for part in row['loc'][1:]) or row['loc'][0]}: {row['msg']}" for row in error.errors()
    )
    return JSONResponse({"error": f"{wrong}."}, 422)


async def _refuse_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if "text/html" in request.headers.get("Accept", ""):
        root = request.app.state.service.settings.root
        return pages.error_page(root, error.status_code, "There is no such page here. Check the address.")
    return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)


async def _refuse_busy(_: Request, error: Exception) -> Response:
    logger.warning("The database did not answer: %s", error)
    return JSONResponse({"error": "the database is busy. Send it again."}, 503, {"Retry-After": RETRY_AFTER_S})
