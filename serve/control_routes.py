"""POST /api/v1/control/{pause,resume,kill}: stop and go, by name and with a reason.

The coordinator carries it out and writes the audit record; the answer says only that it has taken the command.
INVARIANT: stopping needs nothing but a reachable coordinator, in particular no fresh state.
"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from cachewarden.protocol import SetPaused
from serve.context import ERRORS, context_of, json_answer
from serve.gate import GovernedRoute, caller_of, needs
from serve.schemas import ControlRequest, ControlResponse

__all__ = ["router"]

router = APIRouter(route_class=GovernedRoute, tags=["operation"])


async def _set(request: Request, body: ControlRequest, *, paused: bool, kill: bool = False) -> Response:
    command = SetPaused(paused=paused, by=caller_of(request).name, reason=body.reason, kill=kill)
    await context_of(request).backend.set_paused(command)
    return json_answer(ControlResponse(accepted=True, paused=paused, by=command.by, reason=command.reason))


@router.post(
    "/api/v1/control/pause",
    response_model=ControlResponse,
    responses=ERRORS,
    openapi_extra=needs("operate"),
    summary="Begin no new change; what is in flight is finished",
)
async def pause(request: Request, body: ControlRequest) -> Response:
    return await _set(request, body, paused=True)


@router.post(
    "/api/v1/control/resume",
    response_model=ControlResponse,
    responses=ERRORS,
    openapi_extra=needs("operate"),
    summary="Allow changes again",
)
async def resume(request: Request, body: ControlRequest) -> Response:
    return await _set(request, body, paused=False)


@router.post(
    "/api/v1/control/kill",
    response_model=ControlResponse,
    responses=ERRORS,
    openapi_extra=needs("operate"),
    summary="Pause, and take back whatever is in flight",
)
async def kill(request: Request, body: ControlRequest) -> Response:
    return await _set(request, body, paused=True, kill=True)
