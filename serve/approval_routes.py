"""GET /api/v1/cache/approvals and POST /api/v1/cache/plans/{id}/{approve,reject,edit,rollback}.

HTTP only; what happens is in `serve/approvals.py`. INVARIANT: approving and rejecting need the scope `approve`, editing
and taking back `operate`, and the identity is that of the token.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Path, Query, Request, Response

from serve.approval_views import ApprovalsResponse, DecisionRequest, DecisionResponse, EditRequest, approval_view
from serve.approvals import Person, decide, edit, roll_back
from serve.context import ERRORS, context_of, json_answer, known_state
from serve.gate import GovernedRoute, caller_of, needs
from serve.schemas import ErrorResponse
from serve.whatif import DeskFull
from serve.whatif_routes import waiting

__all__ = ["router"]

router = APIRouter(route_class=GovernedRoute, tags=["plans"])

_ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    **ERRORS,
    403: {"model": ErrorResponse, "description": "the token lacks the scope, or its holder is the author of the plan"},
    409: {"model": ErrorResponse, "description": "expired, changed, superseded, decided already, or not predictable"},
    429: {"model": ErrorResponse, "description": "too many predictions are waiting; see Retry-After"},
}

_PlanId = Annotated[str, Path(max_length=200)]
_DryRun = Annotated[bool, Query(description="only say what would happen; nothing is changed or recorded")]


def _person(request: Request, plan_id: str, dry_run: bool) -> Person:
    return Person(caller=caller_of(request), plan_id=plan_id, dry_run=dry_run)


async def _answer(work: Awaitable[DecisionResponse]) -> Response:
    try:
        return json_answer(await work)
    except DeskFull:
        raise waiting() from None


@router.get(
    "/api/v1/cache/approvals",
    response_model=ApprovalsResponse,
    responses=ERRORS,
    openapi_extra=needs("read"),
    summary="Plans that await approval, or all that are remembered",
)
async def approvals(
    request: Request,
    show: Annotated[Literal["open", "all"], Query(description="open: pending and approved ones")] = "open",
) -> Response:
    state = await known_state(context_of(request))
    found = [a for a in state.approvals if show == "all" or a.state.open]
    return json_answer(ApprovalsResponse(approvals=[approval_view(a) for a in found]))


@router.post(
    "/api/v1/cache/plans/{plan_id}/approve",
    response_model=DecisionResponse,
    responses=_ERRORS,
    openapi_extra=needs("approve"),
    summary="Approve a plan that somebody else is the author of",
)
async def approve(request: Request, plan_id: _PlanId, body: DecisionRequest, dry_run: _DryRun = False) -> Response:
    """The approval is of exactly this content and holds until the plan expires. The next cycle judges the plan again
    and hands it over if nothing stands against it."""
    return await _answer(decide(context_of(request), _person(request, plan_id, dry_run), body, approve=True))


@router.post(
    "/api/v1/cache/plans/{plan_id}/reject",
    response_model=DecisionResponse,
    responses=_ERRORS,
    openapi_extra=needs("approve"),
    summary="Turn a plan down; the same change rests for a while",
)
async def reject(request: Request, plan_id: _PlanId, body: DecisionRequest, dry_run: _DryRun = False) -> Response:
    return await _answer(decide(context_of(request), _person(request, plan_id, dry_run), body, approve=False))


@router.post(
    "/api/v1/cache/plans/{plan_id}/edit",
    response_model=DecisionResponse,
    responses=_ERRORS,
    openapi_extra=needs("operate"),
    summary="Put a plan with other values in its place, predicted and judged anew",
)
async def edit_plan(request: Request, plan_id: _PlanId, body: EditRequest, dry_run: _DryRun = False) -> Response:
    """The editor is the author of the new plan, so somebody else has to approve it."""
    return await _answer(edit(context_of(request), _person(request, plan_id, dry_run), body))


@router.post(
    "/api/v1/cache/plans/{plan_id}/rollback",
    response_model=DecisionResponse,
    responses=_ERRORS,
    openapi_extra=needs("operate"),
    summary="Take a change back that is in flight or was kept",
)
async def rollback(request: Request, plan_id: _PlanId, body: DecisionRequest, dry_run: _DryRun = False) -> Response:
    """In flight, and for TTL rules: at once. Knobs of a kept change: by a plan with the old values, judged like any
    other, and approved by somebody else where the mode asks for it."""
    return await _answer(roll_back(context_of(request), _person(request, plan_id, dry_run), body))
