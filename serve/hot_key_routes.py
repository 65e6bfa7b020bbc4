"""GET /api/v1/cache/services/{name}/hotkeys: which keys carry the load of one cache, and what could be done.

Read only and not recorded. INVARIANT: nothing here reaches the coordinator's commands, the actuator or the journal.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from serve.context import ERRORS, context_of, json_answer, known_state
from serve.gate import GovernedRoute, needs
from serve.hot_keys import HotKeysResponse, hot_keys_view
from serve.looks import newest_look, rules_in_force
from serve.schemas import ErrorResponse
from serve.whatif import DeskFull
from serve.whatif_routes import waiting

__all__ = ["router"]

router = APIRouter(route_class=GovernedRoute, tags=["observation"])


@router.get(
    "/api/v1/cache/services/{name}/hotkeys",
    response_model=HotKeysResponse,
    responses={
        **ERRORS,
        429: {"model": ErrorResponse, "description": "too many what-ifs are waiting; see Retry-After"},
    },
    openapi_extra=needs("read"),
    summary="Hot keys of one service, and what client caches, replicas or splitting would give",
)
async def hotkeys(
    request: Request,
    name: Annotated[str, Path(max_length=200)],
    clients: Annotated[int, Query(ge=1, le=100_000, description="processes that would cache in the client")] = 10,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> Response:
    """Keys with more than 1 % of the lookups, as keyed hashes, from the newest capture or feed; without one, the
    highest LFU counters of sampled keys."""
    context = context_of(request)
    service = context.backend.fleet.service(name)
    state = await known_state(context)
    snapshot, reason = await newest_look(context.backend, state, service)
    if snapshot is None or reason:
        return json_answer(HotKeysResponse(service_name=service.name, taken_at=None, answered=False, reason=reason))
    try:
        rules = rules_in_force(state, service.name)
        fleet = tuple(state.snapshots.values())
        answer = await context.whatif.ask(
            snapshot, rules, lambda look: hot_keys_view(look.snapshot, clients, limit, fleet)
        )
    except DeskFull:
        raise waiting() from None
    return json_answer(answer)
