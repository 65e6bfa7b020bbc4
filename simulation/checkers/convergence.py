"""After the quiet the coordinator knows what the journal knows, and the blackboard shows that we live.

A projection may lag while things fail; once nothing fails any more it must agree with the truth, or others plan by what
is not so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cachewarden.messages import AGENT_ID, AuditRecord, RecordKind
from simulation.checkers.checker import Checker, WorldView

__all__ = ["Convergence"]

_STATES = {
    RecordKind.CHANGE_KEPT.value: "kept",
    RecordKind.CHANGE_ROLLED_BACK.value: "rolled_back",
    RecordKind.CHANGE_ABANDONED.value: "abandoned",
    RecordKind.ROLLBACK_FAILED.value: "failed",
}
_LATELY = 50


class Convergence(Checker):
    """Asks in the end."""

    name = "convergence"

    def at_end(self, world: WorldView) -> Sequence[str]:
        """Compare what each coordinator says of the newest changes with the journal."""
        found: list[str] = []
        for name in sorted(world.deployments):
            deployment, servers = world.deployments[name], world.servers_of(name)
            state = deployment.fleet_state()
            if state is None:
                found.append(f"{name}: the coordinator does not live")
                continue
            known = {e.proposal.proposal_id: e.state.value for e in state.executions}
            # A deployment reads what others did once in a lease's time.
            since_ms = world.now_ms - world.settings.lease_ttl_ms
            unread = {r.subject_id for r in servers.journal.records if r.at_ms >= since_ms}
            for proposal_id, ending in list(_endings(servers.journal.records).items())[-_LATELY:]:
                if proposal_id not in unread and known.get(proposal_id, ending) != ending:
                    found.append(f"{name}: `{proposal_id}` is {ending}, the coordinator shows {known[proposal_id]}")
            if AGENT_ID not in servers.blackboard.active:
                found.append(f"{name}: the blackboard does not show that we live")
        return found


def _endings(records: Iterable[AuditRecord]) -> dict[str, str]:
    endings: dict[str, str] = {}
    for record in records:
        if record.kind in (RecordKind.CHANGE_INTENDED, RecordKind.ROLLBACK_INTENDED):
            endings.pop(record.subject_id, None)
        elif record.kind in _STATES:
            endings[record.subject_id] = _STATES[record.kind]
    return endings
