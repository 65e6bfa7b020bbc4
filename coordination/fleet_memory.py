"""What the coordinator remembers between two events: snapshots, standing decisions, executions, budgets, health.

Plain bookkeeping, rebuilt from the journal after a restart as far as it bears on what may be done (changes, roll-backs,
pause). It starts nothing and sends nothing. INVARIANT: memory that a change in flight may still need is reserved,
whichever way the change ends.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from contextlib import suppress

from pydantic import ValidationError

from cachewarden.approval import Approval
from cachewarden.cachemodel.scoring import OUTCOMES_MAX, Outcome, outcome_of, score
from cachewarden.codec import kept_digest
from cachewarden.counterfactual import knobs_before
from cachewarden.fleet import Fleet
from cachewarden.messages import AuditRecord, Execution, ExecutionState, Intent, Proposal, RecordKind, TtlRule, Verdict
from cachewarden.observation import Snapshot
from cachewarden.pausing import PAUSE_KINDS
from cachewarden.peer_messages import PeerHealth, PeerReport
from cachewarden.protocol import AgentBeat, FleetState, History, Sizing, StandingDecision
from cachewarden.settings import CacheOptimizerSettings
from coordination.execution_records import STATE_OF_RECORD, followed, kept_signatures, opened
from coordination.life_signs import LifeSigns
from coordination.settings_watch import SettingsWatch

__all__ = ["LED_REST_MS", "FleetMemory"]

_HOUR_MS = 3_600_000
_ROLLED_BACK_MS = 7 * 24 * _HOUR_MS
"""How long a change that was taken back is remembered; it rests for a day at most (`agents/obstacles.py`)."""
_EXECUTIONS_KEPT = 200
LED_REST_MS = 120_000
"""How long a cache that another deployment leads is left to it before its lease is tried again."""
_HANDED_OVER_MS = 30_000
"""How long a service counts as busy after its proposal was handed over, until the actuator says something."""


class FleetMemory:
    """Mutable state of one coordinator; `state` gives it out as one immutable value."""

    replay_kinds = tuple(str(kind) for kind in (*STATE_OF_RECORD, *sorted(PAUSE_KINDS), *SettingsWatch.replay_kinds))

    def __init__(self, fleet: Fleet, settings: CacheOptimizerSettings) -> None:
        self.paused = False
        self.pause_reason = ""
        self.journal_trouble = ""
        self._fleet = fleet
        self._settings = settings
        self._version = 0
        self._snapshots: dict[str, Snapshot] = {}
        self._missing: dict[str, str] = {}
        self._first: dict[str, float] = {}
        self._found_bytes: dict[str, int] = {}
        """maxmemory of each service when it was first seen: the budget of a fleet that declares none."""
        self._standing: dict[str, StandingDecision] = {}
        self.sizings: dict[str, Sizing] = {}
        self._executions: dict[str, Execution] = {}
        self._running: dict[str, Execution] = {}
        """Those of them that have not ended: few, however large the fleet is."""
        self._signatures: dict[str, tuple[str, ...]] | None = None
        """Service to what was kept of it, in order; None where that has to be worked out anew."""
        self._handed_over: dict[str, tuple[str, int]] = {}
        self._orders: dict[str, StandingDecision] = {}
        """Proposal to the decision under which it was handed over: a later cycle replaces the standing one."""
        self._changes: dict[str, dict[str, int]] = {}
        """Per service: proposal that changed it to when; by proposal, since an ending may be told twice."""
        self._rolled_back: dict[str, dict[str, int]] = {}
        self._led: dict[str, tuple[str, int]] = {}
        """Service to the other deployment that leads it, and until when it is left to that one."""
        self._rules: dict[str, dict[str, tuple[str, TtlRule]]] = {}
        """Per service and pattern: the TTL rule in force, and the proposal that brought it."""
        self.lives = LifeSigns()
        self._peers: dict[str, PeerHealth] = {}
        self._intents: tuple[Intent, ...] = ()
        self._approvals: tuple[Approval, ...] = ()
        self._approval_answers: dict[str, str] = {}
        self.watch = SettingsWatch(settings.manual_change_rest_ms)
        self._modes: dict[str, str] = {}
        self._outcomes: dict[str, Outcome] = {}
        self.score = score(())
        self._journal_seq = 0
        self._decisions = 0
        self._compliant = 0
        self._now_ms = 0

    # --- Learning ---------------------------------------------------------------------------------------------------

    def replay(self, records: Iterable[AuditRecord]) -> None:
        """Take history, changes in flight and pause state over from the journal of earlier lives."""
        changes: dict[str, Execution] = {}
        records = tuple(records)
        for record in records:
            self._journal_seq = max(self._journal_seq, record.seq)
            if record.kind in (RecordKind.PAUSED, RecordKind.RESUMED):
                self.note_pause(str(record.payload.get("reason", "")), paused=record.kind == RecordKind.PAUSED)
            elif record.kind == RecordKind.CHANGE_INTENDED and record.service:
                try:
                    changes[record.subject_id] = opened(record)
                except ValidationError:
                    # Written by a newer version: its time still counts against the budget.
                    self._changes.setdefault(record.service, {})[record.subject_id] = record.at_ms
                    continue
                self.note_execution(changes[record.subject_id], record.at_ms)
            elif record.kind in STATE_OF_RECORD and record.subject_id in changes:
                # Taken out, since a kept change whose rules are being revoked is open again until that is done.
                self._executions.pop(record.subject_id, None)
                self._running.pop(record.subject_id, None)
                changes[record.subject_id] = told = followed(changes[record.subject_id], record)
                self.note_execution(told, record.at_ms)
        # Last, and in their own order: what a hand has set after a change is the last word on it.
        self.watch = SettingsWatch(self._settings.manual_change_rest_ms)
        self.watch.replay(records)

    def unheard(self, records: Iterable[AuditRecord]) -> tuple[Execution, ...]:
        """Return what the journal says of changes and nobody has told: those never heard of, and endings that differ.

        A report may be lost on its way, and a service whose change has ended would be busy for ever.
        """
        found: dict[str, Execution] = {}
        for record in records:
            key = record.subject_id
            known = found.get(key) or self._executions.get(key)
            if record.kind == RecordKind.CHANGE_INTENDED and known is None and record.service in self._fleet.names:
                with suppress(ValidationError):
                    found[key] = opened(record)
            elif record.kind in STATE_OF_RECORD and record.kind != RecordKind.CHANGE_INTENDED and known is not None:
                found[key] = followed(known, record)
        heard = self._executions
        return tuple(
            e for key, e in found.items() if key not in heard or (e.state.final and e.state is not heard[key].state)
        )

    def _note_rules(self, proposal: Proposal, *, in_force: bool) -> None:
        rules = self._rules.setdefault(proposal.service, {})
        for rule in proposal.ttl_rules:
            if in_force:
                rules[rule.pattern] = (proposal.proposal_id, rule)
            elif rules.get(rule.pattern, ("",))[0] == proposal.proposal_id:
                del rules[rule.pattern]

    def note_snapshots(self, snapshots: Iterable[Snapshot], missing: Mapping[str, str], now_ms: int) -> None:
        self._missing = dict(missing)
        for service, reason in missing.items():
            self._standing[service] = StandingDecision(
                service=service, decided_at_ms=now_ms, idle_reason=f"not observed: {reason}"
            )
        for snapshot in snapshots:
            self._note_found(snapshot, now_ms)
            self._snapshots[snapshot.service] = snapshot.light()
            if snapshot.hit_ratio is not None and snapshot.window_ms >= self._settings.cycle_interval_ms // 2:
                self._first.setdefault(snapshot.service, snapshot.hit_ratio)
        self._touch(now_ms)

    def _note_found(self, snapshot: Snapshot, now_ms: int) -> None:
        """Take maxmemory as first found; what somebody else than us has set since then counts as found too."""
        service, size = snapshot.service, snapshot.maxmemory_bytes
        found, last = self._found_bytes.get(service), self._snapshots.get(service)
        if found is None or last is None:
            self._found_bytes[service] = size
            return
        sizes = [
            (int(c.before), int(c.after), e.updated_at_ms)
            for e in self._executions.values()
            for c in e.proposal.knob_changes
            if e.proposal.service == service and c.knob == "maxmemory"
        ]
        ours = {size for before, after, _ in sizes for size in (before, after)}
        if size != last.maxmemory_bytes and size not in ours and self.in_flight(service, now_ms) is None:
            # A change of ours may have come between the look before and the hand that set this: then what it set is
            # what the hand found, and no look has ever seen it.
            lately = (after for _, after, at_ms in sizes if at_ms >= last.taken_at_ms)
            self._found_bytes[service] = max(0, found + size - max(last.maxmemory_bytes, *lately, 0))

    def note_idle(self, reasons: Mapping[str, str], now_ms: int) -> None:
        for service, reason in reasons.items():
            if self.in_flight(service, now_ms):
                # What is being carried out stands until it has ended.
                continue
            self._standing[service] = StandingDecision(service=service, decided_at_ms=now_ms, idle_reason=reason)
        self._touch(now_ms)

    def note_verdicts(self, proposals: Mapping[str, Proposal], verdicts: Mapping[str, Verdict]) -> None:
        for proposal_id, proposal in proposals.items():
            verdict = verdicts.get(proposal_id)
            complete = (
                verdict is not None and bool(verdict.findings) and verdict.proposal_digest == kept_digest(proposal)
            )
            self._decisions += 1
            self._compliant += int(complete)

    def note_standing(self, decision: StandingDecision) -> None:
        self._standing[decision.service] = decision
        self._touch(decision.decided_at_ms)

    def note_pause(self, reason: str, *, paused: bool) -> None:
        self.paused, self.pause_reason = paused, reason if paused else ""
        self._touch(self._now_ms)

    def note_modes(self, modes: Mapping[str, str]) -> None:
        """Take the modes that differ from the fleet file."""
        if self._modes != modes:
            self._modes = dict(modes)
            self._touch(self._now_ms)

    def note_handed_over(self, proposal: Proposal) -> None:
        self._touch(self._now_ms)
        self._handed_over[proposal.service] = (proposal.proposal_id, self._now_ms)
        self._orders[proposal.proposal_id] = self._standing[proposal.service]
        while len(self._orders) > _EXECUTIONS_KEPT:
            self._orders.pop(next(iter(self._orders)))

    def note_not_handed_over(self, proposal: Proposal) -> None:
        """Take back that a service is busy: the order never left."""
        self._touch(self._now_ms)
        if self._handed_over.get(proposal.service, ("", 0))[0] == proposal.proposal_id:
            del self._handed_over[proposal.service]
        self._orders.pop(proposal.proposal_id, None)

    def note_execution(self, execution: Execution, now_ms: int) -> None:
        """Take a report; a report that goes back from a final state is a stray and changes nothing."""
        key = execution.proposal.proposal_id
        service = execution.proposal.service
        known = self._executions.pop(key, None)
        if known is not None and known.state.final and not execution.state.final:
            execution = known
        self._executions[key] = execution
        self._running.pop(key, None)
        self._signatures = None
        if not execution.state.final:
            self._running[key] = execution
        if len(self._executions) > _EXECUTIONS_KEPT:
            # What is not finished is never forgotten: its service is busy and its memory reserved.
            oldest = next((k for k, e in self._executions.items() if e.state.final), None)
            if oldest is not None:
                del self._executions[oldest]
        if self._handed_over.get(service, ("", 0))[0] == key:
            del self._handed_over[service]
        if execution.held_by is not None:
            self._led[service] = (execution.held_by, execution.updated_at_ms + LED_REST_MS)
        elif execution.state.final and (known is None or not known.state.final):
            # An attempt that was abandoned counts too: a server that refuses would else be tried every few seconds.
            self._changes.setdefault(service, {})[key] = execution.updated_at_ms
        if execution.state.final and (known is None or known.state is not execution.state):
            self._note_rules(execution.proposal, in_force=execution.state is ExecutionState.KEPT)
        self.watch.note_execution(execution)
        outcome = outcome_of(execution)
        # A kept change whose rules are revoked later is told twice; the outcome under which it was kept counts.
        if outcome is not None and key not in self._outcomes:
            self._outcomes[key] = outcome
            while len(self._outcomes) > OUTCOMES_MAX:
                self._outcomes.pop(next(iter(self._outcomes)))
            self.score = score(self._outcomes.values())
        if execution.state is ExecutionState.ROLLED_BACK:
            self._rolled_back.setdefault(service, {})[execution.proposal.signature] = execution.updated_at_ms
        self._touch(now_ms)

    def hear(self, message: object, sender: str, now_ms: int) -> bool:
        """Take note of who lives, whatever else the message means; return whether it means nothing else."""
        if isinstance(message, AgentBeat):
            self.lives.note_beat(message, sender, now_ms)
        elif isinstance(message, PeerReport):
            self.note_peers(message, now_ms)
        return isinstance(message, AgentBeat)

    def note_peers(self, report: PeerReport, now_ms: int) -> None:
        told = {peer.name: peer for peer in report.peers}
        if any(self._peers.get(name) != peer for name, peer in told.items()):
            self._peers |= told
            self._touch(now_ms)

    def note_intents(self, intents: tuple[Intent, ...], now_ms: int) -> None:
        """Take what peers hold now."""
        if intents != self._intents:
            self._intents = intents
            self._touch(now_ms)

    def note_approvals(self, known: tuple[Approval, ...], answers: Mapping[str, str], now_ms: int) -> None:
        """Take note of the approvals and of what became of decisions on them."""
        if not known and not answers and not self._approvals and not self._approval_answers:
            return
        # Approvals are immutable: what is the same object has not changed.
        same = len(known) == len(self._approvals) and all(map(operator.is_, known, self._approvals))
        if not same or answers != self._approval_answers:
            self._approvals, self._approval_answers = known, dict(answers)
            self._touch(now_ms)

    def note_journal(self, seq: int) -> None:
        self._journal_seq = max(self._journal_seq, seq)
        self.journal_trouble = ""

    def _touch(self, now_ms: int) -> None:
        self._version += 1
        self._now_ms = now_ms

    # --- Telling ----------------------------------------------------------------------------------------------------

    def snapshot(self, service: str) -> Snapshot | None:
        return self._snapshots.get(service)

    def standing(self, service: str) -> StandingDecision | None:
        return self._standing.get(service)

    def missing(self, service: str) -> str | None:
        """Return why a service has no snapshot from the last look, None where it has one."""
        return self._missing.get(service)

    @property
    def executions(self) -> tuple[Execution, ...]:
        """What is or was carried out lately, newest last."""
        return tuple(self._executions.values())

    @property
    def kept(self) -> tuple[str, ...]:
        """The proposals that were carried out lately and kept."""
        ended = (e for e in self._executions.values() if e.state is ExecutionState.KEPT)
        return tuple(e.proposal.proposal_id for e in ended)

    def execution(self, proposal_id: str) -> Execution | None:
        return self._executions.get(proposal_id)

    def verdict(self, proposal: Proposal) -> Verdict | None:
        """Return the verdict under which a proposal was handed over, as far as it is still remembered."""
        order = self._orders.get(proposal.proposal_id)
        return None if order is None else order.verdict

    def in_flight(self, service: str, now_ms: int | None = None) -> str | None:
        """Return the proposal that is being carried out for a service, if any."""
        for execution in reversed(self._running.values()):
            if execution.proposal.service == service:
                return execution.proposal.proposal_id
        handed = self._handed_over.get(service)
        if handed is not None and (now_ms or self._now_ms) - handed[1] < _HANDED_OVER_MS:
            return handed[0]
        return None

    def anything_in_flight(self, now_ms: int) -> bool:
        """Whether any service is being changed."""
        return bool(self._running) or any(self.in_flight(name, now_ms) for name in self._handed_over)

    def history(self, now_ms: int) -> dict[str, History]:
        """Return what bears on the next decision, for every service of the fleet."""
        self._now_ms = now_ms
        result: dict[str, History] = {}
        kept = self._kept_signatures()
        for service in self._fleet.names:
            recent = {p: t for p, t in self._changes.get(service, {}).items() if now_ms - t < _HOUR_MS}
            self._changes[service] = recent
            taken_back = self._rolled_back.get(service, {})
            self._rolled_back[service] = {s: t for s, t in taken_back.items() if now_ms - t < _ROLLED_BACK_MS}
            led_by, led_until_ms = self._led.get(service, (None, 0))
            running = self._running.get(self.in_flight(service, now_ms) or "")
            result[service] = History(
                last_change_ms=max(recent.values(), default=None),
                changes_last_hour=len(recent),
                in_flight=self.in_flight(service, now_ms),
                in_flight_before={} if running is None else knobs_before(running.proposal),
                ttl_rules=tuple(rule for _, rule in self._rules.get(service, {}).values()),
                rolled_back=dict(self._rolled_back[service]),
                led_by=led_by if now_ms < led_until_ms else None,
                led_until_ms=led_until_ms if now_ms < led_until_ms else 0,
                by_hand=self.watch.by_hand(service),
                by_peer=self.watch.by_peer(service),
                lost=self.watch.lost(service),
                drift=self.watch.drift(service),
                kept=kept.get(service, ()),
            )
        return result

    def _kept_signatures(self) -> dict[str, tuple[str, ...]]:
        if self._signatures is None:
            self._signatures = kept_signatures(self._executions.values())
        return self._signatures

    @property
    def version(self) -> int:
        """Counts every change of what may be decided on; begins anew with each life."""
        return self._version

    @property
    def budget_bytes(self) -> int | None:
        """What all limits may add up to: declared, else the sum as first found; None before the first look."""
        if self._fleet.total_memory_bytes is not None:
            return self._fleet.total_memory_bytes
        return sum(self._found_bytes.values()) if self._found_bytes else None

    def reserved_memory_bytes(self) -> dict[str, int]:
        """Return maxmemory per service, for a change in flight the larger of what was and what will be."""
        reserved = {s.service: s.maxmemory_bytes for s in self._snapshots.values()}
        for execution in self._running.values():
            for change in execution.proposal.knob_changes:
                if change.knob == "maxmemory":
                    service = execution.proposal.service
                    reserved[service] = max(reserved.get(service, 0), int(change.before), int(change.after))
        for proposal_id, _ in self._handed_over.values():
            # Handed over and not begun yet: it is on its way.
            order = self._orders.get(proposal_id)
            proposal = None if order is None else order.proposal
            if proposal is None or self.in_flight(proposal.service) != proposal_id:
                continue
            wanted = [int(c.after) for c in proposal.knob_changes if c.knob == "maxmemory"]
            reserved[proposal.service] = max([reserved.get(proposal.service, 0), *wanted])
        return reserved

    def _phase(self, stage: str, cycle: int) -> str:
        if self.paused:
            return f"paused: {self.pause_reason}"
        if stage != "idle":
            return f"{stage} {len(self._fleet.services)} services (cycle {cycle})"
        trouble = self.journal_trouble
        why = f"; the journal did not take the last records, so nothing was done: {trouble}" if trouble else ""
        return f"waiting for the next cycle (last was {cycle}){why}"

    def state(self, now_ms: int, cycle: int, stage: str, life_ms: int) -> FleetState:
        """Return everything as one value; `stage` is that of the cycle, `idle` between two."""
        last = [t for times in self._changes.values() for t in times.values()]
        return FleetState(
            version=self._version,
            at_ms=now_ms,
            cycle=cycle,
            phase=self._phase(stage, cycle),
            paused=self.paused,
            pause_reason=self.pause_reason,
            snapshots=dict(self._snapshots),
            missing=dict(self._missing),
            first_hit_ratio=dict(self._first),
            standing=dict(self._standing),
            executions=tuple(self._executions.values()),
            agents=self.lives.told(now_ms),
            journal_seq=self._journal_seq,
            decisions=self._decisions,
            decisions_compliant=self._compliant,
            last_change_ms=max(last, default=None),
            budget_bytes=self.budget_bytes,
            score=self.score,
            handed_over=dict(self._orders),
            history=self.history(now_ms),
            intents=self._intents,
            life_ms=life_ms,
            peers=dict(self._peers),
            approvals=self._approvals,
            modes=self._modes,
            approval_answers=self._approval_answers,
            sizings=dict(self.sizings),
        )
