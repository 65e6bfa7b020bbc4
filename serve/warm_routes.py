"""POST /api/v1/cache/warm: load keys of one service from its origin, audited as one operation.

Which keys may be warmed is `coordination.warm_rules`' business, loading them `coordination.warmer`'s. Names of keys
are in the answer only; the journal holds their keyed hashes. INVARIANT: nothing is written to a cache before the
intent is durable in the journal.
"""

from __future__ import annotations

import asyncio
import time
from uuid import uuid4

from fastapi import APIRouter, Request, Response

from cachewarden.messages import CONSTITUTIONAL_HASH, RecordKind
from cachewarden.ports import RecordDraft
from serve.context import ERRORS, context_of, json_answer, known_state
from serve.errors import ApiError
from serve.gate import GovernedRoute, caller_of, needs
from serve.schemas import WarmedKey, WarmRequest, WarmResponse

__all__ = ["router"]

router = APIRouter(route_class=GovernedRoute, tags=["optimisation"])


@router.post(
    "/api/v1/cache/warm",
    response_model=WarmResponse,
    responses=ERRORS,
    openapi_extra=needs("operate"),
    summary="Load keys from the service's origin",
)
async def warm(request: Request, body: WarmRequest) -> Response:
    """Warm up to 1000 keys; each gets one outcome with a reason. Nothing that is cached already is replaced."""
    started_s = time.perf_counter()
    context = context_of(request)
    backend, caller, operation_id = context.backend, caller_of(request).name, str(uuid4())
    service = backend.fleet.service(body.service_name)
    state = await known_state(context)
    if state.paused:
        raise ApiError(
            409, "changes are paused, so nothing is warmed; resume first", details={"pause_reason": state.pause_reason}
        )
    hashes = [backend.key_hash(key) for key in body.cache_keys]

    def draft(payload: dict[str, object]) -> RecordDraft:
        return RecordDraft(
            at_ms=backend.now_ms(),
            kind=RecordKind.KEYS_WARMED.value,
            agent="api",
            service=service.name,
            subject_id=operation_id,
            payload={"constitutional_hash": CONSTITUTIONAL_HASH, "caller": caller, **payload},
        )

    await backend.record([draft({"phase": "intended", "keys": hashes})])
    try:
        report = await backend.warm(service.name, body.cache_keys)
    except BaseException as error:
        # Also where the caller goes away: what was begun has an ending in the journal, if the journal takes it.
        reason = f"{type(error).__name__}: some keys may have been stored"
        await asyncio.shield(backend.record([draft({"phase": "failed", "keys": hashes, "reason": reason})]))
        raise
    counts = report.counts()
    outcomes = {h: {"outcome": k.outcome.value, "ttl_ms": k.ttl_ms} for h, k in zip(hashes, report.keys, strict=True)}
    await backend.record([draft({"phase": "finished", "keys": outcomes, "counts": counts})])
    context.telemetry.warmed(counts)
    return json_answer(
        WarmResponse(
            service_name=service.name,
            operation_id=operation_id,
            keys=[
                WarmedKey(
                    key=k.key,
                    outcome=k.outcome.value,
                    reason=k.reason,
                    ttl_s=None if k.ttl_ms is None else k.ttl_ms / 1000,
                )
                for k in report.keys
            ],
            counts=counts,
            performance_metrics={"warming_duration_ms": (time.perf_counter() - started_s) * 1000},
        )
    )
