"""The order to carry out a proposal, with what the coordinator knows that whoever carries it out will need, and what
is noted of a decision and of a new life.

It is put together from one moment's memory and sends nothing. INVARIANT: the memory of the fleet in an order counts
every change under way at the larger of its sizes.
"""

from __future__ import annotations

from collections.abc import Iterable

from cachewarden.approval import Approval
from cachewarden.baseline import baseline_of
from cachewarden.counterfactual import Counterfactual
from cachewarden.machine import Record
from cachewarden.messages import Proposal, RecordKind, Resolution, Verdict
from cachewarden.protocol import Execute, StandingDecision
from coordination.fleet_memory import FleetMemory

__all__ = ["born", "decision_of", "order_of"]


def born(agent: str, replayed: int, services: Iterable[str]) -> Record:
    """Return the record of a life that begins after so many records of the journal."""
    payload = {"replayed_records": replayed, "services": list(services)}
    return Record(kind=RecordKind.AGENT_STARTED, service=None, subject_id=agent, payload=payload)


def decision_of(proposal: Proposal, verdict: Verdict, resolution: Resolution, now_ms: int) -> StandingDecision:
    """Return what stands for a service from now on."""
    return StandingDecision(
        service=proposal.service, decided_at_ms=now_ms, proposal=proposal, verdict=verdict, resolution=resolution
    )


def order_of(
    memory: FleetMemory,
    twin: str | None,
    proposal: Proposal,
    verdict: Verdict,
    resolution: Resolution,
    approval: Approval | None,
    counterfactual: Counterfactual | None,
) -> Execute:
    """Return the order; `twin` is the service whose cache serves as the control of this one, if there is one, and
    `counterfactual` the newest of this service, which may be of another change."""
    snapshot = memory.snapshot(proposal.service)
    told = counterfactual if counterfactual is not None and counterfactual.proposal_id == proposal.proposal_id else None
    return Execute(
        proposal=proposal,
        verdict=verdict,
        resolution=resolution,
        hit_ratio_before=None if snapshot is None else snapshot.hit_ratio,
        latency_us_p99_before=None if snapshot is None else snapshot.latency_us_p99,
        approval=approval,
        memory_bytes=memory.reserved_memory_bytes(),
        budget_bytes=memory.budget_bytes,
        baseline=baseline_of(snapshot, memory.snapshot(twin or "")),
        counterfactual=told,
    )
