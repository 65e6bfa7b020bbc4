"""The approval book: which plans await consent, which have it, and which rest because a person turned them down.

One open plan per service at most. It asks for consent, takes decisions on exactly one content, puts the open plan in
the place of the planner's newer one, and lets plans die: by time, by another plan, by a cache that is not as the plan
found it. It never judges a plan, never settles it with others and never hands it over; the coordinator does.

INVARIANT: a consent counts only once the journal has it; what ends a plan counts at once. After a restart the journal
gives back exactly what is in force; a record that cannot be read ends the plan that it is about.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from cachewarden.approval import (
    Approval,
    ApprovalOrigin,
    ApprovalState,
    DecideApproval,
    Rest,
    SubmitProposal,
    alike,
    moved,
    needs_approval,
    refusal_of_approval,
    refusal_of_decision,
    requested,
)
from cachewarden.fleet import Fleet
from cachewarden.machine import Effect, Send
from cachewarden.messages import AuditRecord, Execution, ExecutionState, Mode, Proposal, RecordKind
from cachewarden.observation import Snapshot
from cachewarden.protocol import CancelExecution
from cachewarden.settings import CacheOptimizerSettings
from coordination.approval_records import (
    APPROVAL_KINDS,
    KIND_OF_END,
    Entry,
    begun_proposal_of,
    read_entry,
    record_of,
)

__all__ = ["REF_PREFIX", "ApprovalBook"]

REF_PREFIX: Final = "approval:"
"""How the refs of the book's records begin."""

_CLOSED_KEPT: Final = 100
_ANSWERS_KEPT: Final = 100
_RESTS_KEPT: Final = 1_000


class ApprovalBook:
    """Mutable state of one coordinator; see `cachewarden/approval.py` for the states and the table."""

    replay_kinds = tuple(sorted(kind.value for kind in (*APPROVAL_KINDS, RecordKind.CHANGE_INTENDED)))

    def __init__(self, fleet: Fleet, settings: CacheOptimizerSettings) -> None:
        self._settings = settings
        self._modes: Mapping[str, Mode] = {s.name: s.mode for s in fleet.services}
        self._open: dict[str, Approval] = {}
        self._closed: dict[str, Approval] = {}
        self._rests: list[Rest] = []
        self._sent: set[str] = set()
        """Proposals whose order has left, and whose first report is not there yet."""
        self._recording: dict[str, Entry] = {}
        self._refs = 0
        self.answers: dict[str, str] = {}
        """Decision or submission to why it was not taken; empty where it was."""

    def use_modes(self, modes: Mapping[str, Mode]) -> None:
        """Look into `modes` from now on, whatever stands in it at the time."""
        self._modes = modes

    # --- Telling ----------------------------------------------------------------------------------------------------

    @property
    def open(self) -> tuple[Approval, ...]:
        """Plans that await consent or have it, by service."""
        return tuple(self._open[service] for service in sorted(self._open)) if self._open else ()

    @property
    def known(self) -> tuple[Approval, ...]:
        """Open ones, then those that ended lately, newest first."""
        return (*self.open, *reversed(self._closed.values())) if self._open or self._closed else ()

    def rests(self, now_ms: int) -> tuple[Rest, ...]:
        """Return the changes that the agents may not propose again yet."""
        self._rests = [rest for rest in self._rests if now_ms < rest.until_ms]
        return tuple(self._rests)

    def in_haste(self) -> tuple[str, ...]:
        """Return the services that need not cool down: a person wants their last change back."""
        return tuple(a.service for a in self.open if a.origin is ApprovalOrigin.ROLLBACK)

    def missing(self, proposal: Proposal, now_ms: int) -> str | None:
        """Return why a proposal may not go ahead for want of consent; None where it has it or needs none."""
        mode = self._modes.get(proposal.service, Mode.OFF)
        approval = self._open.get(proposal.service)
        if any(entry.subject_id == proposal.proposal_id for entry in self._recording.values()):
            return "a decision on it is being recorded"
        if not needs_approval(proposal.action_class, mode, self._settings):
            return None
        return refusal_of_approval(approval, proposal, now_ms)

    def of(self, proposal: Proposal) -> Approval | None:
        """Return what is open for exactly this proposal."""
        approval = self._open.get(proposal.service)
        return approval if approval is not None and approval.proposal_id == proposal.proposal_id else None

    # --- One cycle --------------------------------------------------------------------------------------------------

    def sweep(self, now_ms: int) -> tuple[Effect, ...]:
        """End what has expired, and what the fleet file has made meaningless since."""
        effects: list[Effect] = []
        for approval in self.open:
            mode = self._modes.get(approval.service, Mode.OFF)
            needed = needs_approval(approval.proposal.action_class, mode, self._settings)
            if now_ms >= approval.expires_at_ms:
                effects.append(self._end(approval, ApprovalState.EXPIRED, "nobody decided in time", now_ms))
            elif mode in (Mode.OFF, Mode.ADVISE):
                why = f"`{approval.service}` is in mode `{mode.value}` now"
                effects.append(self._end(approval, ApprovalState.WITHDRAWN, why, now_ms))
            elif needed != approval.required:
                why = "whether it needs approval was changed in fleet file or settings"
                effects.append(self._end(approval, ApprovalState.WITHDRAWN, why, now_ms))
        return tuple(effects)

    def arrange(
        self, proposals: Sequence[Proposal], snapshots: Iterable[Snapshot], busy: frozenset[str], now_ms: int
    ) -> tuple[tuple[Proposal, ...], tuple[Effect, ...]]:
        """Return this cycle's proposals with each open plan in the place of the planner's newer one.

        Whoever waits for a plan that was replaced waits for the one in its place. An open plan that the cache or the
        planner has overtaken is superseded.
        """
        seen = {s.service: s for s in snapshots}
        planned = {p.service: p for p in proposals}
        placed: dict[str, Proposal] = {}
        effects: list[Effect] = []
        for approval in self.open:
            snapshot = seen.get(approval.service)
            if snapshot is None or approval.service in busy or now_ms >= approval.expires_at_ms:
                continue
            why = _overtaken(approval, planned.get(approval.service), snapshot)
            if why is not None:
                effects.append(self._end(approval, ApprovalState.SUPERSEDED, why, now_ms))
            else:
                placed[approval.service] = approval.proposal
        renamed = {planned[s].proposal_id: p.proposal_id for s, p in placed.items() if s in planned}
        arranged = [placed.pop(p.service, p) for p in proposals] + [placed[s] for s in sorted(placed)]
        return tuple(_renamed(p, renamed) for p in arranged), tuple(effects)

    def request(self, proposal: Proposal, now_ms: int) -> tuple[Effect, ...]:
        """Ask for consent to a proposal that lacks nothing else; a service has one open plan at most."""
        asked = any(e.approval is not None and e.approval.service == proposal.service for e in self._recording.values())
        if proposal.service in self._open or asked:
            return ()
        approval = requested(proposal, now_ms, self._settings.approval_ttl_ms)
        why = f"it is to be approved by someone other than `{proposal.author}`"
        entry = Entry(subject_id=proposal.proposal_id, approval=approval)
        return (self._write(RecordKind.APPROVAL_REQUESTED, entry, proposal, why, {"by": proposal.author}),)

    def note_sent(self, proposal: Proposal) -> None:
        """Note that the order to carry a plan out has left."""
        self._sent.add(proposal.proposal_id)

    def note_execution(self, execution: Execution) -> None:
        """Take a report: a plan that was begun is used up; one that was refused before anything was done is not."""
        proposal = execution.proposal
        self._sent.discard(proposal.proposal_id)
        approval = self.of(proposal)
        if approval is None or (execution.state is ExecutionState.ABANDONED and execution.steps == 0):
            return
        self._used(approval, execution.updated_at_ms)

    # --- Decisions and submissions of persons -------------------------------------------------------------------------

    def decide(self, message: DecideApproval, now_ms: int) -> tuple[Effect, ...]:
        """Take a decision, or note why it is not taken."""
        approval = next((a for a in self.known if a.proposal_id == message.proposal_id), None)
        why = refusal_of_decision(approval, message, now_ms) or self._engaged(message.proposal_id)
        if approval is None or why is not None:
            return self._answer(message.decision_id, why or "it is not known")
        own = message.by == approval.proposal.author
        end = ApprovalState.WITHDRAWN if own else ApprovalState.REJECTED
        after = moved(
            approval,
            ApprovalState.APPROVED if message.approve else end,
            now_ms,
            by=message.by,
            reason=message.reason,
            decision_id=message.decision_id,
        )
        rest = None
        if after.state is ApprovalState.REJECTED:
            rest = self._rest(approval.proposal, message.by, message.reason, now_ms)
        kind = RecordKind.APPROVED if message.approve else KIND_OF_END[end]
        entry = Entry(subject_id=approval.proposal_id, approval=after, rest=rest, decision_id=message.decision_id)
        who = {"by": message.by, "token": message.token, "decision_id": message.decision_id}
        return (self._write(kind, entry, after.proposal, message.reason, who),)

    def submit(self, message: SubmitProposal, busy: str | None, now_ms: int) -> tuple[Effect, ...]:
        """Take a person's own plan, or note why it is not taken; `busy` is the proposal in flight on its service."""
        subject = message.proposal or message.takes_back
        why = "it names no plan" if subject is None else self._refusal_of_submission(message, subject, busy, now_ms)
        if subject is None or why is not None:
            return self._answer(message.decision_id, why or "it names no plan")
        approval = None
        if message.proposal is not None:
            mode = self._modes[subject.service]
            approval = requested(
                message.proposal,
                now_ms,
                self._settings.approval_ttl_ms,
                origin=message.origin,
                required=needs_approval(subject.action_class, mode, self._settings),
                replaces=message.replaces,
                reason=message.reason,
            )
        rest: Rest | None = None
        effects: tuple[Effect, ...] = ()
        if message.takes_back is not None:
            rest = self._rest(message.takes_back, message.by, message.reason, now_ms)
            if message.stop:
                effects = (Send(to="actuator", message=_stop(message.takes_back, message)),)
        kind = RecordKind.EDITED if message.origin is ApprovalOrigin.EDIT else RecordKind.ROLLBACK_REQUESTED
        entry = Entry(
            subject_id=subject.proposal_id,
            approval=approval,
            rest=rest,
            decision_id=message.decision_id,
            effects=effects,
        )
        who = {
            "by": message.by,
            "token": message.token,
            "decision_id": message.decision_id,
            "replaces": message.replaces,
            "replaces_digest": message.replaces_digest,
            "stops": message.stop,
        }
        return (self._write(kind, entry, subject, message.reason, who),)

    def _refusal_of_submission(
        self, message: SubmitProposal, subject: Proposal, busy: str | None, now_ms: int
    ) -> str | None:
        mode = self._modes.get(subject.service, Mode.OFF)
        if mode in (Mode.OFF, Mode.ADVISE):
            return f"`{subject.service}` is in mode `{mode.value}`, nothing is changed there"
        current = self._open.get(subject.service)
        for proposal_id in (message.replaces, "" if current is None else current.proposal_id):
            engaged = self._engaged(proposal_id)
            if engaged is not None:
                return engaged
        if message.proposal is not None and busy is not None:
            return f"`{busy}` is being carried out on `{subject.service}`, one change at a time"
        if message.origin is not ApprovalOrigin.EDIT:
            return None
        if current is None or current.proposal_id != message.replaces or now_ms >= current.expires_at_ms:
            return f"`{message.replaces}` does not await approval any more"
        if current.proposal_digest != message.replaces_digest:
            return "the plan has changed since it was looked at, look again"
        return None

    def _engaged(self, proposal_id: str) -> str | None:
        if proposal_id in self._sent:
            return "the plan is being handed over, take it back by a rollback"
        if any(proposal_id == entry.subject_id for entry in self._recording.values()):
            return "another decision on the plan is being recorded"
        return None

    def _answer(self, decision_id: str, why: str = "") -> tuple[Effect, ...]:
        self.answers[decision_id] = why
        while len(self.answers) > _ANSWERS_KEPT:
            self.answers.pop(next(iter(self.answers)))
        return ()

    def _rest(self, proposal: Proposal, by: str, reason: str, now_ms: int) -> Rest:
        until_ms = now_ms + self._settings.rejection_rest_ms
        return Rest(proposal=proposal, until_ms=until_ms, by=by, reason=reason or "no reason given")

    # --- Journal ----------------------------------------------------------------------------------------------------

    def recorded(self, ref: str) -> tuple[bool, tuple[Effect, ...]]:
        """Put into force what the journal has taken; returns whether a person has given the next cycle work to do."""
        entry = self._recording.pop(ref, None)
        if entry is None:
            return False, ()
        if entry.decision_id:
            self._answer(entry.decision_id)
        if entry.rest is not None:
            self._note_rest(entry.rest)
        approval = entry.approval
        if approval is None:
            return False, entry.effects
        self._apply(approval, approval.decided_at_ms or approval.requested_at_ms)
        asked = approval.state is ApprovalState.APPROVED or approval.origin is not ApprovalOrigin.PLANNER
        return asked and approval.state.open, entry.effects

    def _apply(self, approval: Approval, at_ms: int) -> None:
        current = self._open.get(approval.service)
        same = current is not None and current.proposal_id == approval.proposal_id
        if approval.state is ApprovalState.PENDING:
            if current is not None and not same and approval.origin is ApprovalOrigin.PLANNER:
                # A person's own plan came in while the agents' question was on its way into the journal.
                self._close(moved(approval, ApprovalState.SUPERSEDED, at_ms, reason=f"by `{current.proposal_id}`"))
                return
            if current is not None and not same:
                self._close(moved(current, ApprovalState.SUPERSEDED, at_ms, reason=f"by `{approval.proposal_id}`"))
            self._open[approval.service] = approval
        elif not approval.state.open:
            self._close(approval)
        elif current is not None and same:
            # A consent to what has ended meanwhile puts nothing into force.
            self._open[approval.service] = approval

    def not_recorded(self, ref: str) -> None:
        """Forget what the journal did not take: it was not decided."""
        entry = self._recording.pop(ref, None)
        if entry is not None and entry.decision_id:
            self._answer(entry.decision_id, "the journal did not take it, so it is not decided: ask again")

    def replay(self, records: Iterable[AuditRecord]) -> None:
        """Take over from the journal what was open, what ended and what rests."""
        for record in records:
            if record.kind == RecordKind.CHANGE_INTENDED:
                self._replay_begun(record)
            elif record.kind in APPROVAL_KINDS:
                self._replay_entry(record)

    def _replay_begun(self, record: AuditRecord) -> None:
        approval = self._open.get(record.service or "")
        if approval is not None and approval.proposal_id == begun_proposal_of(record):
            self._used(approval, record.at_ms)

    def _replay_entry(self, record: AuditRecord) -> None:
        entry = read_entry(record)
        if entry is None:
            # Written by a newer version. What it decided is not known, so nothing that it is about stays in force.
            self._open.pop(record.service or "", None)
            return
        if entry.rest is not None:
            self._note_rest(entry.rest)
        if entry.approval is not None:
            self._apply(entry.approval, record.at_ms)

    def _write(self, kind: RecordKind, entry: Entry, proposal: Proposal, reason: str, who: Mapping[str, Any]) -> Effect:
        self._refs += 1
        ref = f"{REF_PREFIX}{self._refs}"
        self._recording[ref] = entry
        return record_of(ref, kind, entry, proposal, reason, who)

    def _end(self, approval: Approval, to: ApprovalState, why: str, now_ms: int) -> Effect:
        """End a plan at once: not acting is safe, and after a crash the same reason ends it again."""
        after = moved(approval, to, now_ms, reason=why)
        self._close(after)
        entry = Entry(subject_id=after.proposal_id, approval=after)
        return record_of(f"{REF_PREFIX}end", KIND_OF_END[to], entry, after.proposal, why, {"by": "coordinator"})

    def _used(self, approval: Approval, at_ms: int) -> None:
        if approval.state is ApprovalState.APPROVED or not approval.required:
            self._close(moved(approval, ApprovalState.HANDED_OVER, at_ms, reason="it was begun"))

    def _close(self, approval: Approval) -> None:
        current = self._open.get(approval.service)
        if current is not None and current.proposal_id == approval.proposal_id:
            del self._open[approval.service]
        self._closed.pop(approval.proposal_id, None)
        self._closed[approval.proposal_id] = approval
        while len(self._closed) > _CLOSED_KEPT:
            self._closed.pop(next(iter(self._closed)))

    def _note_rest(self, rest: Rest) -> None:
        self._rests = [*self._rests, rest][-_RESTS_KEPT:]


def _stop(taken_back: Proposal, message: SubmitProposal) -> CancelExecution:
    why = f"taken back by `{message.by}`: {message.reason or 'no reason given'}"
    return CancelExecution(service=taken_back.service, reason=why, proposal_id=taken_back.proposal_id)


def _renamed(proposal: Proposal, renamed: Mapping[str, str]) -> Proposal:
    if not any(needed in renamed for needed in proposal.needs):
        return proposal
    return proposal.waiting_for(tuple(renamed.get(needed, needed) for needed in proposal.needs))


def _overtaken(approval: Approval, planned: Proposal | None, snapshot: Snapshot) -> str | None:
    """Return why an open plan does not fit any more; what a person approved or wrote outranks a newer idea of the
    planner, but nothing outranks what the cache says."""
    for change in approval.proposal.knob_changes:
        now = snapshot.knobs.get(change.knob)
        if now != change.before:
            return f"`{change.knob}` of `{approval.service}` is `{now}` now, the plan was made for `{change.before}`"
    agents_own = approval.origin is ApprovalOrigin.PLANNER and approval.state is ApprovalState.PENDING
    if not agents_own or planned is None or alike(approval.proposal, planned):
        return None
    # The best of several good plans changes with every look; a person needs one that stands still.
    promised, better = approval.proposal.prediction.gain, planned.prediction.gain
    if approval.proposal.memory_delta_bytes * planned.memory_delta_bytes < 0:
        return f"the fleet's memory is divided another way now: {planned.signature}"
    if better.value > promised.high:
        return f"something clearly better is proposed now, {better.value:+.4f} in hit ratio: {planned.signature}"
    return None
