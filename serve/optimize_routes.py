"""POST /api/v1/cache/optimize: decide, record, hand over, and wait a little for the cache's own confirmation.

The decision itself is `serve.decision.decide`; here is only what waits. INVARIANT: the decision is durable in the
journal before it is carried out or answered, and the answer says of the change what the actuator has said of it,
nothing more.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Annotated, Final
from uuid import uuid4

from fastapi import APIRouter, Query, Request, Response

from cachewarden.messages import Execution, ExecutionState
from cachewarden.models import CacheOptimizationRequest, CacheOptimizationResponse
from cachewarden.protocol import FleetState, RunCycle
from serve.context import ERRORS, Context, context_of, json_answer
from serve.decision import Apply, Asked, DecisionOutcome, decide, with_execution
from serve.gate import GovernedRoute, caller_of, needs

__all__ = ["optimize_request", "router"]

router = APIRouter(route_class=GovernedRoute, tags=["optimisation"])

_POLL_FIRST_S: Final = 0.01
_POLL_MOST_S: Final = 0.2


def _decide(context: Context, asked: Asked, state: FleetState | None) -> DecisionOutcome:
    started_s = time.perf_counter()
    others = context.rounds.others(state, context.grounds)
    outcome = decide(asked, state, context.grounds, context.backend.now_ms(), others)
    now_s = time.perf_counter()
    context.telemetry.decided(
        outcome.response.state,
        now_s - started_s,
        now_s,
        judged=outcome.verdict is not None,
        complete=outcome.verdict_complete,
    )
    return outcome


async def _confirmation(context: Context, proposal_id: str) -> Execution | None:
    """Return the newest report, waiting until the cache has confirmed the change or it has ended, at most `wait_s`."""
    deadline_s, pause_s = time.perf_counter() + context.wait_s, _POLL_FIRST_S
    while True:
        execution = await context.backend.execution(proposal_id)
        settled = execution is not None and (execution.state is ExecutionState.OBSERVING or execution.state.final)
        if settled or time.perf_counter() + pause_s > deadline_s:
            return execution
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 1.5, _POLL_MOST_S)


async def _next_cycle(context: Context, service: str, after_ms: int) -> FleetState | None:
    """Return the state once the service has been decided on after `after_ms`; None if that did not come within
    `wait_s`."""
    deadline_s, pause_s = time.perf_counter() + context.wait_s, _POLL_FIRST_S
    while time.perf_counter() < deadline_s:
        state = await context.backend.state()
        standing = None if state is None else state.standing.get(service)
        if standing is not None and standing.decided_at_ms > after_ms:
            return state
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 1.5, _POLL_MOST_S)
    return None


async def _carry_out(context: Context, outcome: DecisionOutcome, apply: Apply) -> CacheOptimizationResponse:
    if outcome.execute is None:
        return outcome.response
    await context.backend.execute(outcome.execute)
    if apply == "async":
        return outcome.response
    execution = await _confirmation(context, outcome.execute.proposal.proposal_id)
    if execution is None:
        plan_id = outcome.execute.proposal.proposal_id
        reason = f"handed over, the actuator has not reported yet, see /api/v1/cache/plans/{plan_id}"
        return outcome.response.model_copy(
            update={"reason": reason, "recommendations": [*outcome.response.recommendations, reason]}
        )
    state = await context.backend.state()
    snapshot = None if state is None else state.snapshots.get(outcome.execute.proposal.service)
    return with_execution(outcome, execution, snapshot)


async def optimize_request(context: Context, asked: Asked) -> CacheOptimizationResponse:
    """Decide, record, hand over and wait: all of the route but HTTP, so that the embedding facade answers the same.

    Raises what `decide` raises, and JournalUnavailable where the decision cannot be recorded.
    """
    started_s = time.perf_counter()
    outcome = _decide(context, asked, await context.backend.state())
    decided_s = time.perf_counter()
    await context.backend.record([outcome.record])
    if outcome.wants_cycle:
        outcome = await _after_forced_cycle(context, asked, outcome)
    response = await _carry_out(context, outcome, asked.apply)
    measured = {
        "decision_ms": (decided_s - started_s) * 1000,
        "optimization_duration_ms": (time.perf_counter() - started_s) * 1000,
    }
    return response.model_copy(update={"performance_metrics": measured})


@router.post(
    "/api/v1/cache/optimize",
    response_model=CacheOptimizationResponse,
    responses=ERRORS,
    openapi_extra=needs("operate"),
    summary="Decide on one service, and carry the plan out if everything permits it",
)
async def optimize(
    request: Request,
    body: CacheOptimizationRequest,
    apply: Annotated[
        Apply, Query(description="auto: wait for the confirmation; async: do not wait; never: dry run")
    ] = "auto",
) -> Response:
    """Decide on the standing plan of a service.

    The constitution is evaluated on exactly this plan now; the decision is in the journal before it is answered.
    Nothing to do is a successful answer with the reason. `force_optimization` runs a cycle without cool-down and
    minimum gain for this service.
    """
    asked = Asked(request=body, decision_id=str(uuid4()), caller=caller_of(request).name, apply=apply)
    return json_answer(await optimize_request(context_of(request), asked))


async def _after_forced_cycle(context: Context, asked: Asked, outcome: DecisionOutcome) -> DecisionOutcome:
    """Run a cycle that skips cool-down and minimum gain for the service; decide again on what it found, under a record
    of its own."""
    service = asked.request.service_name
    asked_ms = outcome.record.at_ms
    await context.backend.run_cycle(RunCycle(force=(service,)))
    state = await _next_cycle(context, service, asked_ms) if asked.apply == "auto" else None
    if state is None:
        note = "a cycle without cool-down and minimum gain was started, ask again for what it found"
        told = outcome.response.model_copy(update={"recommendations": [*outcome.response.recommendations, note]})
        return replace(outcome, response=told)
    again = _decide(context, replace(asked, decision_id=str(uuid4())), state)
    await context.backend.record([again.record])
    return again
