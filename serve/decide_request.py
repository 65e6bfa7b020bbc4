"""One optimisation request, all of it but HTTP: decide, record, hand over, and wait for the cache's own confirmation.

The decision itself is `serve.decision.decide`; here is only what waits, and the watch. The route and the embedding
facade answer through the same function. INVARIANT: the decision is durable in the journal before it is carried out or
answered, and the answer says of the change what the actuator has said of it, nothing more.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import nullcontext
from dataclasses import replace
from typing import Final
from uuid import uuid4

from cachewarden.errors import JournalUnavailable
from cachewarden.messages import Execution, ExecutionState
from cachewarden.models import CacheOptimizationResponse
from cachewarden.protocol import RunCycle
from serve.context import Context, require_contact, require_understood
from serve.decision import Apply, Asked, DecisionOutcome, StateTooOld, decide, with_execution

__all__ = ["DECISION_STEPS", "Stopwatch", "optimize_request"]

DECISION_STEPS: Final = ("plan_ms", "constitution_ms", "settlement_ms", "answer_ms")
"""The steps of the pure decision; `docs/API.md` says what each is."""


class Stopwatch:
    """Times of the steps of one request, in milliseconds, in the order in which they ended."""

    __slots__ = ("began_s", "laps_ms", "last_s")

    def __init__(self) -> None:
        self.began_s = self.last_s = time.perf_counter()
        self.laps_ms: dict[str, float] = {}

    def lap(self, step: str) -> None:
        """End a step; one that happens twice is added up."""
        now_s = time.perf_counter()
        self.laps_ms[step] = self.laps_ms.get(step, 0.0) + (now_s - self.last_s) * 1000
        self.last_s = now_s

    @property
    def decision_ms(self) -> float:
        """What the pure decision has taken so far."""
        return sum(self.laps_ms.get(step, 0.0) for step in DECISION_STEPS)


async def _decide(context: Context, asked: Asked, watch: Stopwatch) -> DecisionOutcome:
    """Decide on the newest state; raises StateTooOld where there is none that may be decided on."""
    state = await context.backend.state()
    require_understood(context)
    if state is not None:
        require_contact(context)
    watch.lap("state_ms")
    return decide(asked, state, context.grounds, context.backend.now_ms(), context.docket_of(state), watch.lap)


async def _recorded(context: Context, outcome: DecisionOutcome, watch: Stopwatch) -> CacheOptimizationResponse:
    """Return the answer once the decision is durable; it is made while the journal is at work, or before where the
    record says that something will be done: an answer that cannot be made would leave that undone."""
    if outcome.execute is not None:
        _ = outcome.response
        watch.lap("answer_ms")
    recording = context.backend.begin_record([outcome.record])
    try:
        # The record leaves in this turn of the loop.
        await asyncio.sleep(0)
        watch.lap("journal_ms")
        response = outcome.response
        watch.lap("answer_ms")
        await recording
    finally:
        # Nobody waits for it any more where the answer could not be made or the request was cut off.
        if not recording.cancel() and not recording.cancelled():
            recording.exception()
    watch.lap("journal_ms")
    context.telemetry.decided(
        outcome.state,
        watch.decision_ms / 1000,
        watch.last_s,
        judged=outcome.verdict is not None,
        complete=outcome.verdict_complete,
    )
    return response


async def _confirmation(context: Context, proposal_id: str) -> Execution | None:
    """Return the newest report, waiting until the cache has confirmed the change or it has ended, at most `wait_s`."""
    deadline_s = time.perf_counter() + context.wait_s
    while True:
        execution = await context.backend.execution(proposal_id)
        settled = execution is not None and (execution.state is ExecutionState.OBSERVING or execution.state.final)
        left_s = deadline_s - time.perf_counter()
        if settled or left_s <= 0:
            return execution
        await context.backend.changed(left_s)


async def _next_cycle(context: Context, service: str, after_ms: int) -> bool:
    """Return whether the service was decided on after `after_ms`, waiting for it at most `wait_s`."""
    deadline_s = time.perf_counter() + context.wait_s
    while (left_s := deadline_s - time.perf_counter()) > 0:
        state = await context.backend.state()
        standing = None if state is None else state.standing.get(service)
        if standing is not None and standing.decided_at_ms > after_ms:
            return True
        await context.backend.changed(left_s)
    return False


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


async def optimize_request(context: Context, asked: Asked, watch: Stopwatch | None = None) -> CacheOptimizationResponse:
    """Decide, record, hand over and wait: all of the route but HTTP, so that the embedding facade answers the same.

    Raises what `decide` raises, and JournalUnavailable where the decision cannot be recorded.
    """
    try:
        return await _answered(context, asked, Stopwatch() if watch is None else watch)
    except StateTooOld:
        context.telemetry.undecided("state")
        raise
    except JournalUnavailable:
        context.telemetry.undecided("journal")
        raise


async def _answered(context: Context, asked: Asked, watch: Stopwatch) -> CacheOptimizationResponse:
    with context.admission:
        outcome = await _decide(context, asked, watch)
        response = await _recorded(context, outcome, watch)
    decision_ms = watch.decision_ms
    if outcome.wants_cycle or outcome.execute is not None:
        # Who is not to wait needs no place, and who finds none is answered as if he were not to.
        with context.admission.place_to_wait() if asked.apply == "auto" else nullcontext(enter_result=True) as room:
            response = await _seen_through(context, asked if room else replace(asked, apply="async"), outcome, watch)
    context.telemetry.steps(watch.laps_ms)
    measured = {
        **watch.laps_ms,
        "decision_ms": decision_ms,
        "optimization_duration_ms": (watch.last_s - watch.began_s) * 1000,
    }
    # The response was made for this request, and a copy of it costs more than a lookup.
    response.performance_metrics = measured
    return response


async def _seen_through(
    context: Context, asked: Asked, outcome: DecisionOutcome, watch: Stopwatch
) -> CacheOptimizationResponse:
    """Run the cycle that a decision asks for, and carry out the change that it has found."""
    if outcome.wants_cycle:
        outcome = await _after_forced_cycle(context, asked, outcome)
        watch.lap("cycle_ms")
    if outcome.execute is None:
        return outcome.response
    response = await _carry_out(context, outcome, asked.apply)
    watch.lap("actuation_ms")
    return response


async def _after_forced_cycle(context: Context, asked: Asked, outcome: DecisionOutcome) -> DecisionOutcome:
    """Run a cycle that skips cool-down and minimum gain for the service; decide again on what it found, under a record
    of its own."""
    service = asked.request.service_name
    asked_ms = outcome.record.at_ms
    await context.backend.run_cycle(RunCycle(force=(service,)))
    if asked.apply != "auto" or not await _next_cycle(context, service, asked_ms):
        note = "a cycle without cool-down and minimum gain was started, ask again for what it found"
        told = outcome.response.model_copy(update={"recommendations": [*outcome.response.recommendations, note]})
        return replace(outcome, respond=lambda: told)
    second = Stopwatch()
    again = await _decide(context, replace(asked, decision_id=str(uuid4())), second)
    await _recorded(context, again, second)
    return again
