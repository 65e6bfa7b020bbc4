"""What we last set on each cache, and what has become of it: still there, lost with a restart, or set by somebody else.

A value that a person sets by hand is respected: it is written down, shown, and the knob is left alone for a while. One
that another agent had announced is that agent's: written down and shown as such, and no reason to rest. A
value that a restart or failover took away is set again, but only while our own decision is the last word on it: the
server has the very value that it had before that decision, and nobody has set the knob since. It compares looks and
remembers; it never writes to a cache and never decides whether a setting is set again (the planner proposes that, and
constitution and consensus are asked as for every other change).

INVARIANT: of one knob of one cache either our decision or somebody else's is the last word, never both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from pydantic import ValidationError

from cachewarden.codec import decode
from cachewarden.machine import Effect, Record
from cachewarden.messages import AuditRecord, Execution, ExecutionState, Proposal, RecordKind
from cachewarden.observation import Snapshot
from cachewarden.protocol import LostSetting
from coordination.node_drift import NodeDrift

__all__ = ["SettingsWatch"]

_PROPOSALS_KEPT = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ours:
    """A value that stands because of a decision of ours. `run_id` is of the process that has it; empty if not known.
    `before` are the values that a restart may bring back: those from before our decisions on this knob."""

    value: str
    before: frozenset[str]
    proposal_id: str
    run_id: str


class SettingsWatch:
    """Mutable memory of one coordinator, rebuilt from the journal."""

    replay_kinds = (
        RecordKind.CHANGE_INTENDED.value,
        RecordKind.CHANGE_KEPT.value,
        RecordKind.SETTING_CHANGED_BY_HAND.value,
        RecordKind.SETTING_CHANGED_BY_PEER.value,
        RecordKind.SETTING_DRIFT.value,
    )

    def __init__(self, rest_ms: int) -> None:
        """`rest_ms` is how long a knob that was set by hand is left alone."""
        self._rest_ms = rest_ms
        self._ours: dict[str, dict[str, _Ours]] = {}
        self._by_hand: dict[str, dict[str, int]] = {}
        self._by_peer: dict[str, dict[str, str]] = {}
        self._announced: Mapping[tuple[str, str, str], str] = {}
        """(service, knob, value) to the peer that says it sets it, as of this look."""
        self._lost: dict[str, dict[str, _Ours]] = {}
        self._drift = NodeDrift()
        self._suspected: dict[str, dict[str, tuple[str, str, bool]]] = {}
        """Per service and knob (was, is, rests): a value that is not ours in one look, and not confirmed by a second;
        `rests` where the knob rests because of it alone."""
        self._last: dict[str, tuple[str, Mapping[str, str]]] = {}
        """Service to run id and knobs of its last look."""
        self._touched: dict[str, dict[str, set[str]]] = {}
        """Values that changes of ours may have left since the last look at which none was under way."""
        self._proposals: dict[str, Proposal] = {}
        self._kept: dict[str, None] = {}
        """Proposals known to have been kept, oldest first."""
        self._ended_ms: dict[str, int] = {}
        """When the newest change of a service ended: a look that began before may show what is no more."""

    # --- Learning ---

    def replay(self, records: Iterable[AuditRecord]) -> None:
        """Take over what the journal says of our settings and of those of other hands."""
        for record in records:
            if record.kind == RecordKind.CHANGE_INTENDED and record.service:
                try:
                    self._remember(decode(Proposal, record.payload.get("proposal")))
                except (ValidationError, ValueError, TypeError):
                    # Written by a newer version: what it set is not known to be ours, so it is never set again.
                    continue
            elif record.kind == RecordKind.CHANGE_KEPT and record.subject_id in self._proposals:
                self._keep(self._proposals[record.subject_id], str(record.payload.get("run_id") or ""))
            elif record.kind == RecordKind.SETTING_CHANGED_BY_HAND and record.service:
                self._note_hand(record.service, str(record.payload["knob"]), record.at_ms)
            elif record.kind == RecordKind.SETTING_CHANGED_BY_PEER and record.service:
                self._note_peer(record.service, str(record.payload["knob"]), str(record.payload["peer"]))
            elif record.kind == RecordKind.SETTING_DRIFT and record.service:
                self._drift.replay(record)

    def note_execution(self, execution: Execution) -> None:
        """Take what a change does, or has done, to its knobs."""
        proposal = execution.proposal
        touched = self._touched.setdefault(proposal.service, {})
        for change in proposal.knob_changes:
            touched.setdefault(change.knob, set()).update((change.before, change.after))
        if execution.state.final:
            ended_ms = self._ended_ms.get(proposal.service, 0)
            self._ended_ms[proposal.service] = max(ended_ms, execution.updated_at_ms)
        # Told again by a new life of the actuator it is no news, and whoever set the knob since stays respected.
        if execution.state is ExecutionState.KEPT and proposal.proposal_id not in self._kept:
            self._remember(proposal)
            self._keep(proposal, execution.run_id)

    def _remember(self, proposal: Proposal) -> None:
        self._proposals.pop(proposal.proposal_id, None)
        self._proposals[proposal.proposal_id] = proposal
        while len(self._proposals) > _PROPOSALS_KEPT:
            self._proposals.pop(next(iter(self._proposals)))

    def _keep(self, proposal: Proposal, run_id: str) -> None:
        self._kept[proposal.proposal_id] = None
        while len(self._kept) > _PROPOSALS_KEPT:
            self._kept.pop(next(iter(self._kept)))
        ours = self._ours.setdefault(proposal.service, {})
        for change in proposal.knob_changes:
            known = ours.get(change.knob)
            if known is not None and known.proposal_id == proposal.proposal_id:
                continue
            before = frozenset({change.before, *(known.before if known is not None else ())})
            ours[change.knob] = _Ours(
                value=change.after, before=before, proposal_id=proposal.proposal_id, run_id=run_id
            )
            self._by_hand.get(proposal.service, {}).pop(change.knob, None)
            self._by_peer.get(proposal.service, {}).pop(change.knob, None)
            self._suspected.get(proposal.service, {}).pop(change.knob, None)
            self._lost.get(proposal.service, {}).pop(change.knob, None)

    def _note_hand(self, service: str, knob: str, at_ms: int) -> None:
        self._by_hand.setdefault(service, {})[knob] = at_ms
        self._by_peer.get(service, {}).pop(knob, None)
        self._ours.get(service, {}).pop(knob, None)
        self._lost.get(service, {}).pop(knob, None)

    def _note_peer(self, service: str, knob: str, peer: str) -> None:
        self._by_peer.setdefault(service, {})[knob] = peer
        self._ours.get(service, {}).pop(knob, None)
        self._lost.get(service, {}).pop(knob, None)

    # --- Looking ---

    def look(
        self,
        snapshots: Iterable[Snapshot],
        busy: frozenset[str],
        now_ms: int,
        announced: Mapping[tuple[str, str, str], str] = MappingProxyType({}),
    ) -> tuple[Effect, ...]:
        """Compare new looks with what should be; returns the records of what is not as we left it.

        `busy` names the services with a change of ours under way: the actuator watches their knobs itself. `announced`
        is (service, knob, value) to the peer that has said it sets that value.
        """
        self._announced = announced
        effects: list[Effect] = []
        for snapshot in snapshots:
            if "knobs" in snapshot.incomplete or not snapshot.knobs or snapshot.service in busy:
                continue
            if snapshot.taken_at_ms < self._ended_ms.get(snapshot.service, 0):
                continue
            effects += self._look_at(snapshot, now_ms)
            effects += self._drift.look(snapshot, {k: o.proposal_id for k, o in self._ours[snapshot.service].items()})
            self._last[snapshot.service] = snapshot.run_id, dict(snapshot.knobs)
            self._touched.pop(snapshot.service, None)
        for service, knobs in self._by_hand.items():
            self._by_hand[service] = {k: at for k, at in knobs.items() if now_ms - at < self._rest_ms}
        return tuple(effects)

    def _look_at(self, snapshot: Snapshot, now_ms: int) -> list[Effect]:
        service, effects = snapshot.service, list[Effect]()
        last_run, last = self._last.get(service, ("", {}))
        ours, touched = self._ours.setdefault(service, {}), self._touched.get(service, {})
        for knob, value in sorted(snapshot.knobs.items()):
            mine, suspected = ours.get(knob), self._suspected.get(service, {}).get(knob)
            if mine is not None:
                effects += self._look_at_ours(snapshot, knob, value, mine, now_ms)
            elif suspected is not None and value == suspected[0]:
                # It is as it was, so there is nothing new of another hand to respect.
                self._unsuspect(service, knob)
            elif value in touched.get(knob, ()) or last_run != snapshot.run_id or last.get(knob, value) == value:
                if suspected is not None and suspected[1] == value:
                    effects += self._suspect(service, knob, suspected[0], value, None, now_ms)
            else:
                effects += self._suspect(service, knob, last[knob], value, None, now_ms)
        return effects

    def _suspect(self, service: str, knob: str, was: str, now: str, ours: str | None, now_ms: int) -> list[Effect]:
        """Leave a knob alone at once, and say so once a second look finds the same value: another deployment may have
        set it, and its records are read a little later than its value."""
        suspected = self._suspected.setdefault(service, {})
        if (peer := self._announced.get((service, knob, now))) is not None:
            self._unsuspect(service, knob)
            self._note_peer(service, knob, peer)
            payload = {"knob": knob, "was": was, "now": now, "proposal_id": ours, "peer": peer}
            kind = RecordKind.SETTING_CHANGED_BY_PEER.value
            return [Record(kind=kind, service=service, subject_id=service, payload=payload)]
        by_hand, last = self._by_hand.setdefault(service, {}), suspected.get(knob)
        if last is None or last[1] != now:
            suspected[knob] = was, now, knob not in by_hand if last is None else last[2]
            by_hand.setdefault(knob, now_ms)
            return []
        del suspected[knob]
        return [self._hand(service, knob, was, now, ours, now_ms)]

    def _unsuspect(self, service: str, knob: str) -> None:
        """Forget a suspicion, and the rest that it alone has set off: a hand that is sure keeps its own."""
        _, _, rests = self._suspected.get(service, {}).pop(knob, ("", "", False))
        if rests:
            self._by_hand.get(service, {}).pop(knob, None)

    def _look_at_ours(self, snapshot: Snapshot, knob: str, value: str, mine: _Ours, now_ms: int) -> list[Effect]:
        service = snapshot.service
        if value == mine.value:
            # Whichever process has it has it from us, or from a file that agrees with us.
            self._ours[service][knob] = replace(mine, run_id=snapshot.run_id)
            self._unsuspect(service, knob)
            self._lost.get(service, {}).pop(knob, None)
            return []
        another = bool(mine.run_id) and bool(snapshot.run_id) and mine.run_id != snapshot.run_id
        if not another or value not in mine.before:
            return self._suspect(service, knob, mine.value, value, mine.proposal_id, now_ms)
        if mine.proposal_id not in self._proposals or knob in self._lost.get(service, {}):
            return []
        self._lost.setdefault(service, {})[knob] = mine
        payload = {"knob": knob, "ours": mine.value, "now": value, "proposal_id": mine.proposal_id}
        return [Record(kind=RecordKind.SETTING_LOST.value, service=service, subject_id=service, payload=payload)]

    def _hand(self, service: str, knob: str, was: str, now: str, ours: str | None, now_ms: int) -> Effect:
        self._note_hand(service, knob, now_ms)
        payload = {"knob": knob, "was": was, "now": now, "proposal_id": ours}
        return Record(
            kind=RecordKind.SETTING_CHANGED_BY_HAND.value, service=service, subject_id=service, payload=payload
        )

    # --- Telling ---

    def by_hand(self, service: str) -> dict[str, int]:
        """Return the knobs that other hands have set to when that was seen."""
        return dict(self._by_hand.get(service, {}))

    def by_peer(self, service: str) -> dict[str, str]:
        """Return the knobs that other agents have set as they had announced, to those agents."""
        return dict(self._by_peer.get(service, {}))

    def drift(self, service: str) -> dict[str, dict[str, str]]:
        """Return the knobs that other nodes of the service have with another value: knob to node to that value."""
        return self._drift.of(service)

    def lost(self, service: str) -> tuple[LostSetting, ...]:
        """Return the settings of ours that a restart or failover took away and nobody has set since."""
        last = self._last.get(service, ("", {}))[1]
        return tuple(
            LostSetting(knob=knob, value=mine.value, now=last[knob], proposal=self._proposals[mine.proposal_id])
            for knob, mine in sorted(self._lost.get(service, {}).items())
            if knob in last and mine.proposal_id in self._proposals
        )
