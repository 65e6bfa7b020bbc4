"""The client feed: recorders of applications fetch instructions and report hashed samples of their accesses.

Needs the scope `feed`, which permits nothing else. What is reported is input, checked and bounded, and judged by the
collector; it is counted and not audited, since it decides nothing. INVARIANT: no batch of another secret or of other
patterns gets through, and the secret itself never travels.
"""

from __future__ import annotations

import hmac
import time
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response

from cachewarden.fed_accesses import FeedReport
from cachewarden.feed import Instruction
from cachewarden.fleet import Service
from cachewarden.messages import Mode
from serve.context import ERRORS, Context, context_of, json_answer
from serve.errors import ApiError, clip
from serve.feed import (
    FeedAnswer,
    FeedBatchRequest,
    FeedFull,
    FeedInstruction,
    batch_of,
    instruction_for,
    report_view,
)
from serve.gate import GovernedRoute, needs
from serve.schemas import ErrorResponse

__all__ = ["router"]

router = APIRouter(route_class=GovernedRoute, tags=["observation"])
_CONFLICT: dict[int | str, dict[str, Any]] = {
    409: {"model": ErrorResponse, "description": "not permitted for this service, or of another secret"}
}


def _fed(context: Context, name: str) -> Service:
    """Return the service; raises UnknownService, and ApiError 409 where the fleet file permits no feed."""
    service = context.backend.fleet.service(name)
    if not service.feed:
        raise ApiError(409, f"the fleet file permits no client feed for `{service.name}`, set `feed: true` there")
    if service.mode is Mode.OFF:
        raise ApiError(409, f"`{service.name}` is not looked at, its mode is `off`")
    return service


async def _instruction(context: Context, service: Service) -> Instruction:
    state = await context.backend.state()
    snapshot = None if state is None else state.snapshots.get(service.name)
    settings = context.backend.settings
    history_ms = max(settings.feed_history_ms, 2 * settings.capture_ms)
    return instruction_for(service, snapshot, context.backend.secret_fingerprint, history_ms)


def _answer(instruction: Instruction, report: FeedReport | None) -> Response:
    return json_answer(
        FeedAnswer(
            instruction=FeedInstruction(
                service_name=instruction.service,
                spatial_rate=instruction.spatial_rate,
                patterns=list(instruction.patterns),
                secret_fingerprint=instruction.secret_fingerprint,
                patterns_id=instruction.patterns_id,
                flush_ms=instruction.flush_ms,
                rows_max=instruction.rows_max,
            ),
            report=None if report is None else report_view(report),
        )
    )


@router.get(
    "/api/v1/cache/feed/{service_name}",
    response_model=FeedAnswer,
    responses={**ERRORS, **_CONFLICT},
    openapi_extra=needs("feed"),
    summary="What a recorder of this service is to keep",
)
async def instructions(request: Request, service_name: Annotated[str, Path(max_length=200)]) -> Response:
    """The spatial rate, the patterns, and a fingerprint of the secret that keys are hashed with."""
    context = context_of(request)
    service = _fed(context, service_name)
    return _answer(await _instruction(context, service), await context.backend.feed_report(service.name))


@router.post(
    "/api/v1/cache/feed",
    response_model=FeedAnswer,
    responses={
        **ERRORS,
        **_CONFLICT,
        429: {"model": ErrorResponse, "description": "more than is let in; see Retry-After"},
    },
    openapi_extra=needs("feed"),
    summary="Report a batch of hashed accesses",
)
async def feed(request: Request, body: FeedBatchRequest) -> Response:
    """Take one batch and answer with the instruction from now on; a batch that was sent before counts once."""
    context = context_of(request)
    service = _fed(context, body.service_name)
    instruction = await _instruction(context, service)
    _same_terms(body, instruction)
    try:
        batch = batch_of(body, service)
    except ValueError as error:
        raise ApiError(422, f"the batch cannot be: {error}") from None
    try:
        async with context.feed.admit(service.name, len(batch), time.perf_counter()):
            report = await context.backend.feed(batch)
    except FeedFull as full:
        message = f"the feed of `{service.name}` is full: {full}"
        raise ApiError(429, message, headers={"Retry-After": str(full.retry_after_s)}) from None
    context.telemetry.fed(service.name, len(batch))
    return _answer(instruction, report)


def _same_terms(body: FeedBatchRequest, instruction: Instruction) -> None:
    given = body.secret_fingerprint.encode("utf-8", "surrogatepass")
    if not hmac.compare_digest(given, instruction.secret_fingerprint.encode()):
        raise ApiError(
            409,
            f"the recorder hashes keys with another secret: fingerprint `{clip(body.secret_fingerprint, 16)}`, "
            f"this deployment has `{instruction.secret_fingerprint}`; give it the content of `hash_secret` in the "
            "state directory, or HASH_SECRET where that is set",
        )
    if body.patterns_id != instruction.patterns_id:
        raise ApiError(409, "the patterns of the fleet file have changed since, ask for instructions again")
