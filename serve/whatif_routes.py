"""POST /api/v1/cache/whatif: what would another configuration give this cache, from the newest look at it.

Read only, so it is counted and not audited. INVARIANT: nothing here reaches the coordinator's commands, the actuator
or the journal.
"""

from __future__ import annotations

import time

from fastapi import APIRouter, Request, Response

from serve.context import ERRORS, context_of, json_answer, known_state
from serve.errors import ApiError
from serve.gate import GovernedRoute, needs
from serve.looks import newest_look, rules_in_force
from serve.schemas import ErrorResponse
from serve.whatif import (
    DeskFull,
    Whatif,
    WhatifRequest,
    WhatifResponse,
    observed_of,
    unanswered,
)

__all__ = ["router", "waiting"]

router = APIRouter(route_class=GovernedRoute, tags=["observation"])


@router.post(
    "/api/v1/cache/whatif",
    response_model=WhatifResponse,
    responses={
        **ERRORS,
        429: {"model": ErrorResponse, "description": "too many what-ifs are waiting; see Retry-After"},
    },
    openapi_extra=needs("read"),
    summary="What other configurations would give one service; nothing is changed",
)
async def whatif(request: Request, body: WhatifRequest) -> Response:
    """Predict the hit ratio of up to 32 configurations from the newest look at the cache, each with its interval, or
    say what is missing for an answer."""
    started_s = time.perf_counter()
    context = context_of(request)
    service = context.backend.fleet.service(body.service_name)
    state = await known_state(context)
    snapshot, reason = await newest_look(context.backend, state, service)
    if snapshot is None or reason:
        found = Whatif(None, unanswered(body.candidates, reason))
    else:
        try:
            rules = rules_in_force(state, service.name)
            found = await context.whatif.evaluate(snapshot, rules, body.candidates)
        except DeskFull:
            raise waiting() from None
    answered = sum(result.answered for result in found.results)
    context.telemetry.asked_whatif(answered, len(found.results) - answered)
    return json_answer(
        WhatifResponse(
            service_name=service.name,
            observed=None if snapshot is None else observed_of(snapshot),
            current=found.current,
            results=list(found.results),
            performance_metrics={"whatif_duration_ms": (time.perf_counter() - started_s) * 1000},
        )
    )


def waiting() -> ApiError:
    """Return the answer for whoever asks while too many others wait."""
    return ApiError(429, "too many what-ifs are waiting, ask again in a moment", headers={"Retry-After": "2"})
