"""The order to carry out a proposal, with what the coordinator knows that whoever carries it out will need.

It is put together from one moment's memory and sends nothing. INVARIANT: the memory of the fleet in an order counts
every change under way at the larger of its sizes.
"""

from __future__ import annotations

from cachewarden.approval import Approval
from cachewarden.baseline import baseline_of
from cachewarden.messages import Proposal, Resolution, Verdict
from cachewarden.protocol import Execute
from coordination.fleet_memory import FleetMemory

__all__ = ["order_of"]


def order_of(
    memory: FleetMemory,
    twin: str | None,
    proposal: Proposal,
    verdict: Verdict,
    resolution: Resolution,
    approval: Approval | None,
) -> Execute:
    """Return the order; `twin` is the service whose cache serves as the control of this one, if there is one."""
    snapshot = memory.snapshot(proposal.service)
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
    )
