"""GET /api/v1/cache/services/{name}/memory: where the memory of one cache goes, from the newest look at it.

Read only and not recorded. INVARIANT: nothing here reaches the coordinator's commands, the actuator or the journal.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from serve.context import ERRORS, context_of, json_answer, known_state
from serve.gate import GovernedRoute, needs
from serve.looks import newest_look, rules_in_force
from serve.memory import MemoryResponse, memory_view, unseen
from serve.schemas import ErrorResponse
from serve.whatif import DeskFull
from serve.whatif_routes import waiting

__all__ = ["router"]

router = APIRouter(route_class=GovernedRoute, tags=["observation"])


@router.get(
    "/api/v1/cache/services/{name}/memory",
    response_model=MemoryResponse,
    responses={
        **ERRORS,
        429: {"model": ErrorResponse, "description": "too many what-ifs are waiting; see Retry-After"},
    },
    openapi_extra=needs("read"),
    summary="Where the memory of one service goes, and what would make less of it",
)
async def memory(request: Request, name: Annotated[str, Path(max_length=200)]) -> Response:
    """Memory by type and encoding and by pattern, what higher limits of the small encodings would save and cost, and
    how well large values compress; each with its interval or the reason why not."""
    context = context_of(request)
    service = context.backend.fleet.service(name)
    state = await known_state(context)
    snapshot, reason = await newest_look(context.backend, state, service)
    if snapshot is None or reason:
        return json_answer(unseen(service.name, reason))
    try:
        rules = rules_in_force(state, service.name)
        plans = state.executions
        return json_answer(await context.whatif.ask(snapshot, rules, lambda look: memory_view(look.snapshot, plans)))
    except DeskFull:
        raise waiting() from None
