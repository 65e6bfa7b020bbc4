"""POST /api/v1/cache/warm and its jobs: load keys of one service from its origin, audited as one operation.

Which keys may be warmed is `coordination.warm_rules`' business, loading them `coordination.warmer`'s. INVARIANT:
nothing is written to a cache before the intent is durable in the journal; a dry run writes nothing anywhere.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Annotated, Final
from uuid import uuid4

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import StreamingResponse

from cachewarden.errors import OperatingError
from cachewarden.fleet import Service
from coordination.warm_rules import WarmCourse, WarmReport
from serve.context import ERRORS, Context, context_of, json_answer, known_state
from serve.errors import ApiError, clip
from serve.gate import GovernedRoute, caller_of, needs
from serve.warm_jobs import JOBS_MAX, WarmDeskFull, outcome_of
from serve.warm_views import (
    KeyOutcomeView,
    OutcomesResponse,
    WarmedKey,
    WarmJobView,
    WarmRequest,
    WarmResponse,
    job_view,
)
from serve.warming import PART_KEYS, Operation, warm_part

__all__ = ["router"]

router = APIRouter(route_class=GovernedRoute, tags=["optimisation"])

_STREAM_S: Final = 3_600.0
_STREAM_POLL_S: Final = 0.5
_STREAMS_MAX: Final = 32
_JobId = Annotated[str, Path(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9-]+$")]


@router.post(
    "/api/v1/cache/warm",
    response_model=WarmResponse,
    responses={**ERRORS, 202: {"model": WarmJobView, "description": "a job has begun; ask for it by its id"}},
    openapi_extra=needs("operate"),
    summary="Load keys from the service's origin",
)
async def warm(
    request: Request,
    body: WarmRequest,
    wait: Annotated[bool, Query(description="false: begin a job, however short the list is")] = True,
    dry_run: Annotated[bool, Query(description="only say what would happen; at most 1000 keys")] = False,
) -> Response:
    """Warm up to 1000 keys, each with one outcome and its reason; a longer list, up to 100,000 keys, becomes a job.
    Nothing that is cached already is replaced."""
    context = context_of(request)
    service = context.backend.fleet.service(body.service_name)
    state = await known_state(context)
    if dry_run:
        return await _dry_run(context, service, body)
    if state.paused:
        raise ApiError(
            409, "changes are paused, so nothing is warmed; resume first", details={"pause_reason": state.pause_reason}
        )
    operation = Operation(operation_id=str(uuid4()), service=service.name, caller=caller_of(request).name)
    if not wait or len(body.cache_keys) > PART_KEYS:
        return await _begin(context, operation, body)
    started_s = time.perf_counter()
    report = await warm_part(context.backend, operation, body.cache_keys, WarmCourse())
    context.telemetry.warmed(report.counts())
    return json_answer(_response(report, operation.operation_id, started_s))


def _response(report: WarmReport, operation_id: str, started_s: float) -> WarmResponse:
    return WarmResponse(
        service_name=report.service,
        operation_id=operation_id,
        dry_run=not operation_id,
        keys=[
            WarmedKey(
                key=k.key,
                outcome=k.outcome.value,
                reason=k.reason,
                ttl_s=None if k.ttl_ms is None else k.ttl_ms / 1000,
            )
            for k in report.keys
        ],
        counts=report.counts(),
        performance_metrics={"warming_duration_ms": (time.perf_counter() - started_s) * 1000},
    )


async def _dry_run(context: Context, service: Service, body: WarmRequest) -> Response:
    if len(body.cache_keys) > PART_KEYS:
        raise ApiError(422, f"a dry run takes at most {PART_KEYS} keys, ask about a part of the list")
    started_s = time.perf_counter()
    report = await context.backend.warm(service.name, body.cache_keys, WarmCourse(dry_run=True))
    return json_answer(_response(report, "", started_s))


async def _begin(context: Context, operation: Operation, body: WarmRequest) -> Response:
    keys = list(dict.fromkeys(body.cache_keys))
    try:
        other = await context.warming.begin(context.backend, context.telemetry, operation, keys)
    except WarmDeskFull:
        raise ApiError(
            429,
            f"{JOBS_MAX} warming jobs run here already, ask again when one has ended",
            headers={"Retry-After": "10"},
        ) from None
    if other is not None:
        raise ApiError(
            409,
            f"`{operation.service}` is being warmed already, wait for that job or cancel it",
            details={"job_id": other},
        )
    found = await _job(context, operation.operation_id)
    return json_answer(found, 202)


async def _job(context: Context, job_id: str) -> WarmJobView:
    status, cancelled_by, _ = await context.backend.warm_jobs.read(job_id)
    if not status:
        raise ApiError(404, f"no warming job `{clip(job_id, 64)}` is remembered, they are kept for some hours")
    return job_view(status, cancelled_by, context.backend.now_ms())


@router.get(
    "/api/v1/cache/warm/{job_id}",
    response_model=WarmJobView,
    responses=ERRORS,
    openapi_extra=needs("read"),
    summary="How a warming job stands",
)
async def job(request: Request, job_id: _JobId) -> Response:
    return json_answer(await _job(context_of(request), job_id))


@router.get(
    "/api/v1/cache/warm/{job_id}/outcomes",
    response_model=OutcomesResponse,
    responses=ERRORS,
    openapi_extra=needs("read"),
    summary="What became of each key of a warming job",
)
async def outcomes(
    request: Request,
    job_id: _JobId,
    after: Annotated[int, Query(ge=0, description="place of the first key")] = 0,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1_000,
) -> Response:
    """By the place of the key in the list as it was asked, each key counted once: names of keys are not kept."""
    context = context_of(request)
    status, _, codes = await context.backend.warm_jobs.read(job_id, after, limit)
    if not status:
        raise ApiError(404, f"no warming job `{clip(job_id, 64)}` is remembered, they are kept for some hours")
    kept = json.loads(status)
    shown = []
    for place, code in enumerate(codes, start=after):
        outcome, reason = outcome_of(kept, code)
        shown.append(KeyOutcomeView(index=place, outcome=outcome, reason=reason))
    end = after + len(shown)
    more = len(shown) == limit and end < kept["total"]
    return json_answer(OutcomesResponse(job_id=job_id, outcomes=shown, next_after=end if more else None))


@router.post(
    "/api/v1/cache/warm/{job_id}/cancel",
    response_model=WarmJobView,
    responses=ERRORS,
    openapi_extra=needs("operate"),
    summary="End a warming job; what is loaded stays",
)
async def cancel(request: Request, job_id: _JobId) -> Response:
    context = context_of(request)
    await context.backend.warm_jobs.cancel(job_id, caller_of(request).name)
    return json_answer(await _job(context, job_id))


@router.get(
    "/api/v1/cache/warm/{job_id}/events",
    responses={**ERRORS, 200: {"content": {"text/event-stream": {}}, "description": "server-sent events"}},
    openapi_extra=needs("read"),
    summary="Progress of a warming job as server-sent events",
)
async def events(request: Request, job_id: _JobId) -> Response:
    """An event `progress` with the job whenever something has changed, and `end` with its last state."""
    context = context_of(request)
    first = await _job(context, job_id)
    if context.streams >= _STREAMS_MAX:
        raise ApiError(429, f"{_STREAMS_MAX} streams are open here already", headers={"Retry-After": "10"})
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_stream(context, job_id, first), media_type="text/event-stream", headers=headers)


async def _stream(context: Context, job_id: str, first: WarmJobView) -> AsyncIterator[str]:
    context.streams += 1
    end_s = time.perf_counter() + _STREAM_S
    try:
        found, told = first, ""
        while True:
            ended = found.state != "running"
            body = found.model_dump_json()
            if body != told or ended:
                yield f"event: {'end' if ended else 'progress'}\ndata: {body}\n\n"
                told = body
            if ended or time.perf_counter() > end_s:
                return
            await asyncio.sleep(_STREAM_POLL_S)
            found = await _job(context, job_id)
    except (OperatingError, ApiError):
        # The stream has begun, so there is no status to answer with; the client connects again.
        yield "event: interrupted\ndata: {}\n\n"
    finally:
        context.streams -= 1
