"""POST /api/v1/cache/whatif: what would another configuration give this cache, from the newest look at it.

Read only, so it is counted and not audited. INVARIANT: nothing here reaches the coordinator's commands, the actuator
or the journal.
"""

from __future__ import annotations

import time
from typing import Final

from fastapi import APIRouter, Request, Response

from cachewarden.observation import Snapshot
from serve.context import ERRORS, Context, context_of, json_answer, known_state
from serve.decision import max_age_ms_of
from serve.errors import ApiError
from serve.gate import GovernedRoute, needs
from serve.schemas import ErrorResponse
from serve.whatif import (
    DeskFull,
    Whatif,
    WhatifRequest,
    WhatifResponse,
    observed_of,
    rules_in_force,
    unanswered,
)

__all__ = ["router", "too_old", "waiting"]

# A question about the last minutes, not a decision: it may rest on an older look than a change may.
_LOOK_AGE_MIN_MS: Final = 60_000

router = APIRouter(route_class=GovernedRoute, tags=["observation"])


def too_old(context: Context, snapshot: Snapshot) -> str | None:
    """Return why a look cannot speak for now, None where it can."""
    age_ms = context.backend.now_ms() - snapshot.taken_at_ms
    if age_ms <= max(_LOOK_AGE_MIN_MS, max_age_ms_of(context.backend.settings)):
        return None
    return f"the newest look at the cache is {age_ms / 1000:.0f} s old, it cannot speak for now"


def waiting() -> ApiError:
    """Return the answer of a desk that is full."""
    return ApiError(429, "too many what-ifs are waiting, ask again in a moment", headers={"Retry-After": "2"})


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
    snapshot = await context.backend.snapshot(service.name)
    if snapshot is None:
        reason = state.missing.get(service.name, f"it has not been looked at yet, its mode is `{service.mode.value}`")
        found = Whatif(None, unanswered(body.candidates, f"the cache was not seen: {reason}"))
    elif (stale := too_old(context, snapshot)) is not None:
        found = Whatif(None, unanswered(body.candidates, stale))
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
