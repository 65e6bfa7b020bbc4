"""GET /api/v1/cache/services/{name}/curve and .../ttl: what memory and TTLs give this cache, from the newest look.

Read only, so it is counted and not audited. INVARIANT: nothing here reaches the coordinator's commands, the actuator
or the journal, and no model runs in the event loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Any, Final, TypeVar

from fastapi import APIRouter, Path, Query, Request, Response

from cachewarden.fleet import Service
from serve.context import ERRORS, context_of, json_answer, known_state
from serve.curve_views import CurveResponse, curve_answer
from serve.gate import GovernedRoute, needs
from serve.looks import Look, newest_look, rules_in_force
from serve.schemas import ErrorResponse
from serve.ttl_views import TtlResponse, ttl_answer
from serve.whatif import DeskFull, observed_of
from serve.whatif_routes import waiting

__all__ = ["router"]

router = APIRouter(route_class=GovernedRoute, tags=["observation"])

_ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    **ERRORS,
    429: {"model": ErrorResponse, "description": "too many questions are waiting; see Retry-After"},
}
_Name = Annotated[str, Path(max_length=200)]
_Target = Annotated[
    float | None, Query(gt=0, lt=1, description="hit ratio whose least memory is looked for, e.g. 0.95")
]
_Answer = TypeVar("_Answer", CurveResponse, TtlResponse)


@router.get(
    "/api/v1/cache/services/{name}/curve",
    response_model=CurveResponse,
    responses=_ERRORS,
    openapi_extra=needs("read"),
    summary="Hit ratio by memory, eviction age, working set, and the worth of a MiB, per service and prefix",
)
async def service_curve(request: Request, name: _Name, target: _Target = None) -> Response:
    """Answer from the newest look, each figure with its interval, or say what is missing for an answer."""
    return await _answered(request, name, CurveResponse, lambda look, _: curve_answer(look, target))


@router.get(
    "/api/v1/cache/services/{name}/ttl",
    response_model=TtlResponse,
    responses=_ERRORS,
    openapi_extra=needs("read"),
    summary="Misses by cause, what longer TTLs give, stampedes, and memory held for nothing, per service and prefix",
)
async def service_ttl(request: Request, name: _Name) -> Response:
    """Answer from the newest look, each figure with its interval, or say what is missing for an answer."""
    return await _answered(request, name, TtlResponse, ttl_answer)


async def _answered(
    request: Request, name: str, shape: type[_Answer], question: Callable[[Look, Service], _Answer]
) -> Response:
    started_s = time.perf_counter()
    context = context_of(request)
    service = context.backend.fleet.service(name)
    state = await known_state(context)
    snapshot, reason = await newest_look(context.backend, state, service)
    if snapshot is None or reason:
        found = shape(service_name=service.name, answered=False, reason=reason)
    else:
        try:
            rules = rules_in_force(state, service.name)
            found = await context.whatif.ask(snapshot, rules, lambda look: question(look, service))
        except DeskFull:
            raise waiting() from None
    context.telemetry.asked_whatif(int(found.answered), int(not found.answered))
    more = {
        "observed": None if snapshot is None else observed_of(snapshot),
        "performance_metrics": {"whatif_duration_ms": (time.perf_counter() - started_s) * 1000},
    }
    return json_answer(found.model_copy(update=more))
