"""Everything that is only looked at: metrics, plans, services, agents, audit, health, Prometheus.

Nothing here changes anything, and nothing here is recorded. INVARIANT: an answer is made from one state, so its parts
belong together.
"""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Final

from fastapi import APIRouter, Path, Query, Request, Response

from cachewarden import __version__
from cachewarden.cachemodel.scoring import score
from cachewarden.codec import to_jsonable
from cachewarden.errors import OperatingError
from cachewarden.messages import CONSTITUTIONAL_HASH
from coordination.envoy import ENVOY
from serve.context import ERRORS, Context, context_of, json_answer, known_state, require_understood
from serve.decision import StateTooOld, fresh_state, max_age_ms_of
from serve.errors import SERVICE_NAME, ApiError, clip, near_miss
from serve.gate import GovernedRoute, needs
from serve.gauges import Moment
from serve.peer_views import DEGRADED, peer_components
from serve.schemas import (
    AgentsResponse,
    AuditPage,
    AuditVerifyResponse,
    FleetMetricsResponse,
    HealthResponse,
    PlanResponse,
    PlansResponse,
    ServiceResponse,
    ServicesResponse,
)
from serve.score_views import ScoreResponse, score_view
from serve.telemetry import CONTENT_TYPE
from serve.timestamps import iso
from serve.views import agents_view, compliance_rate, fleet_metrics, plan_view, plans_view, service_view

__all__ = ["router"]

router = APIRouter(route_class=GovernedRoute)
_HEALTH_WAIT_S: Final = 2.0


@router.get(
    "/api/v1/cache/metrics",
    response_model=FleetMetricsResponse,
    responses=ERRORS,
    openapi_extra=needs("read"),
    tags=["observation"],
    summary="The fleet's performance, and each service's",
)
async def metrics(request: Request) -> Response:
    context = context_of(request)
    telemetry = context.telemetry
    state = await known_state(context)
    return json_answer(
        fleet_metrics(
            context.backend.fleet,
            state,
            context.backend.now_ms(),
            requests_per_s=telemetry.requests_per_s(time.perf_counter()),
            decisions=telemetry.decisions,
            compliant=telemetry.decisions_compliant,
        )
    )


@router.get(
    "/api/v1/cache/services",
    response_model=ServicesResponse,
    responses=ERRORS,
    openapi_extra=needs("read"),
    tags=["observation"],
    summary="All services as last seen",
)
async def services(request: Request) -> Response:
    context = context_of(request)
    state = await known_state(context)
    score = compliance_rate(state, context.telemetry.decisions, context.telemetry.decisions_compliant)
    return json_answer(
        ServicesResponse(services=[service_view(s, state, score) for s in context.backend.fleet.services])
    )


@router.get(
    "/api/v1/cache/services/{name}",
    response_model=ServiceResponse,
    responses=ERRORS,
    openapi_extra=needs("read"),
    tags=["observation"],
    summary="One service as last seen",
)
async def service(request: Request, name: Annotated[str, Path(max_length=200)]) -> Response:
    context = context_of(request)
    found = context.backend.fleet.service(name)
    state = await known_state(context)
    score = compliance_rate(state, context.telemetry.decisions, context.telemetry.decisions_compliant)
    return json_answer(ServiceResponse(service=service_view(found, state, score)))


@router.get(
    "/api/v1/cache/plans",
    response_model=PlansResponse,
    responses=ERRORS,
    openapi_extra=needs("read"),
    tags=["plans"],
    summary="Plans at hand and carried out, newest first",
)
async def plans(request: Request, limit: Annotated[int, Query(ge=1, le=500)] = 100) -> Response:
    return json_answer(PlansResponse(plans=plans_view(await known_state(context_of(request)))[:limit]))


@router.get(
    "/api/v1/cache/plans/{plan_id}",
    response_model=PlanResponse,
    responses=ERRORS,
    openapi_extra=needs("read"),
    tags=["plans"],
    summary="One plan, predicted and realised side by side",
)
async def plan(request: Request, plan_id: Annotated[str, Path(max_length=200)]) -> Response:
    context = context_of(request)
    state = await known_state(context)
    execution = await context.backend.execution(plan_id)
    if execution is None:
        execution = next((e for e in reversed(state.executions) if e.proposal.proposal_id == plan_id), None)
    standing = state.handed_over.get(plan_id) or next(
        (d for d in state.standing.values() if d.proposal is not None and d.proposal.proposal_id == plan_id), None
    )
    if standing is not None and standing.proposal is not None:
        return json_answer(
            PlanResponse(plan=plan_view(standing.proposal, execution, standing.verdict, standing.resolution))
        )
    if execution is not None:
        return json_answer(PlanResponse(plan=plan_view(execution.proposal, execution)))
    ended = next((a for a in state.approvals if a.proposal_id == plan_id), None)
    if ended is not None:
        view = plan_view(ended.proposal, None)
        return json_answer(PlanResponse(plan=view.model_copy(update={"state": ended.state, "reason": ended.reason})))
    known = {e.proposal.proposal_id for e in state.executions} | {
        d.proposal.proposal_id for d in state.standing.values() if d.proposal
    }
    raise ApiError(
        404,
        f"unknown plan `{clip(plan_id)}`, /api/v1/cache/plans lists those that are known",
        details={"did_you_mean": near_miss(plan_id, known)},
    )


@router.get(
    "/api/v1/cache/score",
    response_model=ScoreResponse,
    responses=ERRORS,
    openapi_extra=needs("read"),
    tags=["plans"],
    summary="How past predictions turned out",
)
async def prediction_score(request: Request) -> Response:
    state = await known_state(context_of(request))
    return json_answer(score_view(state.score or score(())))


@router.get(
    "/api/v1/agents",
    response_model=AgentsResponse,
    responses=ERRORS,
    openapi_extra=needs("read"),
    tags=["agents"],
    summary="The agents and whether they live",
)
async def agents(request: Request) -> Response:
    return json_answer(agents_view(await known_state(context_of(request))))


@router.get(
    "/api/v1/audit",
    response_model=AuditPage,
    responses=ERRORS,
    openapi_extra=needs("read"),
    tags=["audit"],
    summary="Records of the journal, oldest first",
)
async def audit(
    request: Request,
    after_seq: Annotated[int, Query(ge=0, le=2**53, description="last seq already seen")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Response:
    records = await context_of(request).backend.audit_page(after_seq, limit)
    following = records[-1].seq if len(records) == limit else None
    return json_answer(AuditPage(records=[to_jsonable(r) for r in records], next_after_seq=following))


@router.get(
    "/api/v1/audit/verify",
    response_model=AuditVerifyResponse,
    responses=ERRORS,
    openapi_extra=needs("read"),
    tags=["audit"],
    summary="Verify the hash chain of the journal from its beginning",
)
async def audit_verify(request: Request) -> Response:
    report = await context_of(request).backend.audit_verify()
    return json_answer(
        AuditVerifyResponse(
            ok=report.ok,
            height=report.height,
            head_hash=report.head_hash,
            checked=report.checked,
            problems_total=report.problems_total,
            problems=[{"seq": p.seq, "kind": p.kind, "detail": p.detail} for p in report.problems[:100]],
        )
    )


async def _components(context: Context) -> dict[str, str]:
    """Return each part with `healthy` or what is wrong with it, in words that a stranger may read."""
    parts: dict[str, str] = {"constitution": "healthy" if context.backend.constitution.principles else "empty"}
    try:
        async with asyncio.timeout(_HEALTH_WAIT_S):
            parts.update(await context.backend.components())
            state = await context.backend.state()
    except TimeoutError:
        return {**parts, "coordinator": "gives no answer"}
    except OperatingError:
        return {**parts, "coordinator": "does not answer"}
    try:
        require_understood(context)
        known = fresh_state(state, context.backend.now_ms(), max_age_ms_of(context.backend.settings))
    except StateTooOld as error:
        return {**parts, "coordinator": error.public_reason}
    parts["coordinator"] = "healthy"
    parts.update({f"agent:{a.name}": "healthy" if a.alive else "down" for _, a in sorted(known.agents.items())})
    if parts.get(f"agent:{ENVOY}") == "down":
        # It only speaks to peers; decisions are made without it.
        parts[f"agent:{ENVOY}"] = f"{DEGRADED}: down, nothing is delivered"
    return {**parts, **peer_components(known)}


@router.get(
    "/health",
    response_model=HealthResponse,
    responses={**ERRORS, 503: {"model": HealthResponse, "description": "unhealthy"}},
    openapi_extra=needs(None),
    tags=["operation"],
    summary="Whether decisions can be made now; needs no token",
)
async def health(request: Request) -> Response:
    context = context_of(request)
    parts = await _components(context)
    healthy = all(word == "healthy" or word.startswith(DEGRADED) for word in parts.values())
    answer = HealthResponse(
        status="healthy" if healthy else "unhealthy",
        service=SERVICE_NAME,
        version=__version__,
        timestamp=iso(context.backend.now_ms()),
        uptime_seconds=time.perf_counter() - context.started_s,
        components=parts,
        constitutional_compliance={
            "hash": CONSTITUTIONAL_HASH,
            "constitution_digest": context.backend.constitution.digest,
            "principles": len(context.backend.constitution.principles),
        },
    )
    return json_answer(answer, 200 if healthy else 503)


@router.get(
    "/metrics",
    responses={**ERRORS, 200: {"content": {"text/plain": {}}, "description": "Prometheus text"}},
    openapi_extra=needs("read"),
    tags=["operation"],
    summary="Prometheus metrics",
)
async def prometheus(request: Request) -> Response:
    context = context_of(request)
    telemetry = context.telemetry
    try:
        state = await context.backend.state()
    except OperatingError:
        state = None
    rate = None if state is None else compliance_rate(state, telemetry.decisions, telemetry.decisions_compliant)
    moment = Moment(
        state=state,
        now_ms=context.backend.now_ms(),
        compliance_rate=rate,
        state_age_s=context.backend.state_age_s(),
        journal_waiting=context.backend.journal_waiting(),
        deciding=context.admission.deciding,
        waiting=context.admission.waiting,
        refused={"rate": context.admission.limited, "room": context.admission.shed},
    )
    return Response(telemetry.render(moment), media_type=CONTENT_TYPE)
