"""POST /api/v1/control/mode: how far cachewarden may go for one service, changed while it runs.

The coordinator carries it out and writes the audit record. INVARIANT: a mode that permits less needs the scope
`operate`; one that permits more needs `approve` as well.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from cachewarden.messages import CONSTITUTIONAL_HASH, Mode
from cachewarden.modes import ACTING, RANK
from cachewarden.protocol import FleetState, SetMode
from serve.context import ERRORS, context_of, json_answer, require_understood
from serve.errors import ApiError
from serve.gate import GovernedRoute, caller_of, needs

__all__ = ["ModeRequest", "ModeResponse", "router"]

router = APIRouter(route_class=GovernedRoute, tags=["operation"])


class ModeRequest(BaseModel):
    """Which service, which mode, and why."""

    model_config = ConfigDict(extra="forbid")

    service_name: str = Field(min_length=1, max_length=200)
    mode: Mode = Field(description="off, advise, approve or auto")
    reason: str = Field(min_length=1, max_length=500, description="stands in the audit trail")
    constitutional_hash: str = Field(CONSTITUTIONAL_HASH, max_length=200)


class ModeResponse(BaseModel):
    """What the mode was and is, or in a dry run would be."""

    service_name: str
    before: str
    mode: str
    dry_run: bool
    by: str
    reason: str
    consequences: list[str]
    constitutional_hash: str = CONSTITUTIONAL_HASH


@router.post(
    "/api/v1/control/mode",
    response_model=ModeResponse,
    responses=ERRORS,
    openapi_extra=needs("operate"),
    summary="Change the mode of one service: off, advise, approve or auto",
)
async def set_mode(
    request: Request,
    body: ModeRequest,
    dry_run: Annotated[bool, Query(description="only say what would happen; nothing is changed or recorded")] = False,
) -> Response:
    """In force until it is changed again, or until the fleet file gives the service another mode than now. It needs no
    fresh state: a mode that permits less is taken at once."""
    context = context_of(request)
    caller, backend = caller_of(request), context.backend
    before = backend.fleet.service(body.service_name).mode
    if RANK[body.mode] > RANK[before] and not caller.may("approve"):
        raise ApiError(
            403,
            f"`{body.mode.value}` permits more than `{before.value}`, which needs a token with the scope `approve`",
            code="AUTHORIZATION_FAILED",
            details={"required_scope": "approve"},
        )
    consequences = _consequences(body.service_name, before, body.mode, backend.newest_state())
    if not dry_run:
        # Whether it is in that mode already is not known then either.
        require_understood(context)
    if not dry_run and body.mode is not before:
        command = SetMode(service=body.service_name, mode=body.mode, by=caller.identity, reason=body.reason)
        await backend.set_mode(command)
    return json_answer(
        ModeResponse(
            service_name=body.service_name,
            before=before.value,
            mode=body.mode.value,
            dry_run=dry_run,
            by=caller.identity,
            reason=body.reason,
            consequences=consequences,
        )
    )


def _consequences(service: str, before: Mode, after: Mode, state: FleetState | None) -> list[str]:
    """Return in words what the change brings with it."""
    if before is after:
        return [f"it is in mode `{after.value}` already"]
    told = {
        Mode.OFF: "the cache is not looked at any more",
        Mode.ADVISE: "the cache is looked at and never written to",
        Mode.APPROVE: "plans wait for the approval of somebody else than their author",
        Mode.AUTO: "plans that constitution and budgets permit are carried out by themselves",
    }
    found = [told[after]]
    if after not in ACTING and before in ACTING:
        history = None if state is None else state.history.get(service)
        in_flight = None if history is None else history.in_flight
        if in_flight is not None:
            found.append(f"change {in_flight} is taken back first; once that has ended nothing is written")
        if history is not None and history.ttl_rules:
            rules = ", ".join(f"`{rule.pattern}`" for rule in history.ttl_rules)
            found.append(f"the TTL rules for {rules} rest; extended deadlines run out by themselves")
        found.append("plans that await approval are withdrawn, warming is refused; kept changes stay as they are")
    return found
