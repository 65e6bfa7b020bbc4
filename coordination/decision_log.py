"""What journal and blackboard have been told of each service's decision, and which order waits until it is durable.

The same advice comes out of every cycle while nothing changes, with other figures each time; it is told once, but
everything that is going to be done is told each time. It decides nothing. INVARIANT: an order is given out once, after
the journal has confirmed the resolution that it rests on, or never.
"""

from __future__ import annotations

from typing import Any

from cachewarden.codec import to_jsonable
from cachewarden.machine import Effect, Record
from cachewarden.messages import Proposal, RecordKind, Resolution, ResolutionOutcome, Verdict
from cachewarden.protocol import Execute
from coordination import projection

__all__ = ["DecisionLog"]


class DecisionLog:
    """Mutable state of one coordinator."""

    def __init__(self) -> None:
        self._told: dict[str, str] = {}
        self._recording: dict[str, tuple[str, Execute | None]] = {}
        """Ref of a resolution that is not durable yet, to its service and the order that waits for it."""

    def tell(
        self, proposal: Proposal, verdict: Verdict, resolution: Resolution, order: Execute | None, now_ms: int
    ) -> tuple[Effect, ...]:
        """Return records and plan of a decision; nothing where just this was told of the service before."""
        knobs = sorted(c.knob for c in proposal.knob_changes) + sorted(r.pattern for r in proposal.ttl_rules)
        gist = f"{knobs} {verdict.decision} {verdict.denied_by} {resolution.outcome}"
        if self._told.get(proposal.service) == gist and resolution.outcome is not ResolutionOutcome.GO:
            return ()
        self._told[proposal.service] = gist
        # All three are written together; the order leaves once the journal has confirmed the last.
        ref = f"resolved:{proposal.proposal_id}"
        self._recording[ref] = (proposal.service, order)
        common: dict[str, Any] = {"service": proposal.service, "subject_id": proposal.proposal_id}
        return (
            Record(kind=RecordKind.PROPOSED, payload=to_jsonable(proposal), **common),
            Record(kind=RecordKind.JUDGED, payload=to_jsonable(verdict), **common),
            Record(kind=RecordKind.RESOLVED, payload=to_jsonable(resolution), ref=ref, **common),
            *projection.plan_settled(proposal, verdict, resolution, now_ms),
        )

    def gist(self, service: str) -> str:
        """Return what was told of a service last, without figures; empty before anything was."""
        return self._told.get(service, "")

    def recorded(self, ref: str) -> Execute | None:
        """Return the order that waited for this record, None where none did."""
        return self._recording.pop(ref, ("", None))[1]

    def not_recorded(self, ref: str) -> Execute | None:
        """Return the order that will not leave now.

        What the journal does not hold was not told, and is not done: the next cycle decides it anew.
        """
        service, order = self._recording.pop(ref, ("", None))
        self._told.pop(service, None)
        return order

    def forget(self, service: str) -> None:
        """Tell of the service anew, whatever comes."""
        self._told.pop(service, None)
