"""The HTTP application: routes, errors and OpenAPI put together around one backend.

It knows nothing of Ray: `serve/deployments.py` runs it in Serve's replicas, tests run it in process. INVARIANT:
whatever goes wrong is answered in the one shape of `serve.errors`, with every prescribed header.
"""

from __future__ import annotations

import time
from math import inf
from typing import Any, Final

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException

from cachewarden import __version__
from cachewarden.errors import OperatingError, RequestError
from cachewarden.feed import BODY_BYTES_MAX
from cachewarden.messages import CONSTITUTIONAL_HASH
from cachewarden.models import CacheOptimizationRequest
from serve import (
    approval_routes,
    control_routes,
    curve_routes,
    feed_routes,
    hot_key_routes,
    memory_routes,
    mode_routes,
    optimize_routes,
    read_routes,
    warm_routes,
    whatif_routes,
)
from serve.admission import Admission
from serve.approval_views import EditRequest
from serve.backend import Backend
from serve.context import Context
from serve.envelope import Envelope
from serve.errors import ApiError, api_error_of, clip, error_response, validation_problems
from serve.feed import FeedBatchRequest
from serve.gate import Gate, GovernedRoute, needs
from serve.hot_route import CacheApi, HotPath, Raised
from serve.schemas import ControlRequest
from serve.security import TokenStore
from serve.telemetry import Telemetry
from serve.warm_views import WarmRequest
from serve.whatif import WhatifCandidate, WhatifRequest

__all__ = ["create_app"]

_FIELDS: Final = {
    "/api/v1/cache/optimize": frozenset(CacheOptimizationRequest.model_fields),
    "/api/v1/cache/feed": frozenset(FeedBatchRequest.model_fields),
    "/api/v1/cache/warm": frozenset(WarmRequest.model_fields),
    "/api/v1/control/mode": frozenset(mode_routes.ModeRequest.model_fields),
    "/api/v1/cache/whatif": frozenset([*WhatifRequest.model_fields, *WhatifCandidate.model_fields]),
}
_CONTROL_FIELDS: Final = frozenset(ControlRequest.model_fields)
_PLAN_FIELDS: Final = frozenset(EditRequest.model_fields)
_WARM_BODY_BYTES: Final = 8 * 1024 * 1024
"""A hundred thousand keys of usual length do not fit into the bound of the other bodies."""

_BODY_LIMITS: Final = {"/api/v1/cache/warm": _WARM_BODY_BYTES, "/api/v1/cache/feed": BODY_BYTES_MAX}

_REFUSALS_TOLD_S: Final = 1.0
"""Seconds between two lines of the log on refusals of one kind."""

log = structlog.get_logger("serve.api")


class Refusals:
    """Which refusals are worth a line of the log: while nothing can be decided there may be a thousand in a second."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, str], tuple[float, int]] = {}
        """By kind and route: when one was told, and how many have come since."""

    def told(self, kind: str, route: str, now_s: float) -> int | None:
        """Return how many of this kind were passed over on this route since the last one that was told; None to pass
        over this one. `route` is a template, never a path."""
        last_s, untold = self._told.get((kind, route), (-inf, 0))
        if now_s - last_s < _REFUSALS_TOLD_S:
            self._told[kind, route] = (last_s, untold + 1)
            return None
        self._told[kind, route] = (now_s, 0)
        return untold


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(request, error)


async def _on_known_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, (RequestError, OperatingError))
    if isinstance(error, OperatingError):
        kind = type(error).__name__
        refusals: Refusals = request.app.state.refusals
        route = getattr(request.scope.get("route"), "path", "unmatched")
        before = refusals.told(kind, route, time.monotonic())
        if before is not None:
            log.warning(
                "a request was answered with 503",
                path=clip(request.url.path),
                kind=kind,
                reason=str(error),
                untold_before=before,
            )
    return error_response(request, api_error_of(error))


async def _on_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    of_plans = request.url.path.startswith("/api/v1/cache/plans/")
    known = _FIELDS.get(request.url.path, _PLAN_FIELDS if of_plans else _CONTROL_FIELDS)
    message, problems = validation_problems(error.errors(), known)
    return error_response(request, ApiError(422, message, details={"validation_errors": problems}))


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == 404:
        message = f"no such route `{clip(request.url.path)}`, /openapi.json lists them all"
    elif error.status_code == 405:
        message = (
            f"`{clip(request.method, 20)}` is not allowed here, allowed: {headers.get('Allow', 'see /openapi.json')}"
        )
    else:
        message = "the request cannot be answered"
    return error_response(request, ApiError(error.status_code, message, headers=headers))


async def _on_bug(request: Request, error: Exception) -> Response:
    # The framework raises the exception again after this answer: the server's log has the trace, the caller none.
    log.error("an answer failed", path=clip(request.url.path), kind=type(error).__name__)
    return error_response(request, ApiError(500, "something went wrong on our side, the log has it under the error id"))


def create_app(
    backend: Backend, tokens: TokenStore | None = None, *, wait_s: float = 5.0, ids_by_server: bool = False
) -> FastAPI:
    """Return the application; `tokens` default to those in the state directory of the backend's settings.

    `wait_s` bounds how long an optimisation request waits for the cache's confirmation or a forced cycle.
    `ids_by_server`: the server before it puts `X-Request-ID` into answers, as it was given or made by itself.
    """
    telemetry = Telemetry()
    settings = backend.settings
    admission = Admission.of(settings)
    store = tokens if tokens is not None else TokenStore(backend.settings.state_dir)
    app = CacheApi(
        title="cachewarden",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        description=f"A governed autopilot for fleets of caches. Constitutional hash: `{CONSTITUTIONAL_HASH}`.",
    )
    app.state.context = Context(
        backend=backend,
        telemetry=telemetry,
        started_s=time.perf_counter(),
        admission=admission,
        wait_s=wait_s,
    )
    app.state.refusals = Refusals()
    app.state.ids_by_server = ids_by_server
    app.state.gate = Gate(backend, store, telemetry, admission)
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(RequestError, _on_known_error)
    app.add_exception_handler(OperatingError, _on_known_error)
    app.add_exception_handler(RequestValidationError, _on_validation)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_bug)
    for routes in (
        optimize_routes,
        warm_routes,
        whatif_routes,
        curve_routes,
        memory_routes,
        hot_key_routes,
        feed_routes,
        read_routes,
        approval_routes,
        control_routes,
        mode_routes,
    ):
        app.include_router(routes.router)
    route = optimize_routes.decision_route()
    app.router.routes.insert(0, Raised(route))
    app.hot = HotPath(route, app.whole, app.state.context, app.state.gate, ids_by_server=ids_by_server)
    _publish_openapi(app)
    app.add_middleware(
        Envelope,
        telemetry=telemetry,
        limits=_BODY_LIMITS,
        body_timeout_s=settings.body_timeout_s,
        ids_by_server=ids_by_server,
    )
    return app


def _publish_openapi(app: FastAPI) -> None:
    """Serve the OpenAPI document, with the token scheme, under the same gate as everything else."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            schema.setdefault("components", {})["securitySchemes"] = {
                "bearer": {"type": "http", "scheme": "bearer", "description": "a token of this deployment; docs/API.md"}
            }
            schema["x-constitutional-hash"] = CONSTITUTIONAL_HASH
            app.openapi_schema = schema
        return app.openapi_schema

    async def openapi() -> dict[str, Any]:
        return document()

    app.openapi = document  # type: ignore[method-assign]
    app.router.add_api_route(
        "/openapi.json",
        openapi,
        methods=["GET"],
        include_in_schema=False,
        route_class_override=GovernedRoute,
        openapi_extra=needs("read"),
    )
