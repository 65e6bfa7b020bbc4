"""What a new life of the actuator owes to the ones before: unfinished changes and standing TTL rules, read from the
journal.

`read_journal` rebuilds how far each change had come; `decide` says, once the real values are known, whether it is
observed on, taken back or left alone. Neither does anything.

INVARIANT: every `change_intended` without an ending is among the unfinished, and no ended change ever is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pydantic import ValidationError

from agents.playbook_tables.steps import Step
from cachewarden.baseline import Baseline
from cachewarden.codec import decode, kept
from cachewarden.messages import AuditRecord, Execution, ExecutionState, Proposal, RecordKind, TtlRule

__all__ = ["PERSIST", "REPLAY_KINDS", "Found", "NextMove", "Unfinished", "decide", "read_journal"]

REPLAY_KINDS: tuple[str, ...] = tuple(
    kind.value
    for kind in (
        RecordKind.CHANGE_INTENDED,
        RecordKind.STEP_INTENDED,
        RecordKind.STEP_APPLIED,
        RecordKind.OBSERVED,
        RecordKind.ROLLBACK_INTENDED,
        RecordKind.CHANGE_KEPT,
        RecordKind.CHANGE_ROLLED_BACK,
        RecordKind.CHANGE_ABANDONED,
        RecordKind.ROLLBACK_FAILED,
        RecordKind.PAUSED,
        RecordKind.RESUMED,
    )
)

PERSIST = "rewrite_config"
"""What the last `step_intended` of a kept change announces where its file may be rewritten."""

_INTENTIONS_KEPT = 256
ENDINGS = {
    RecordKind.CHANGE_KEPT.value: ExecutionState.KEPT,
    RecordKind.CHANGE_ROLLED_BACK.value: ExecutionState.ROLLED_BACK,
    RecordKind.CHANGE_ABANDONED.value: ExecutionState.ABANDONED,
    RecordKind.ROLLBACK_FAILED.value: ExecutionState.FAILED,
}


@dataclass(slots=True, kw_only=True)
class Unfinished:
    """How far a change had come. `outcome` is None while it has no ending; KEPT with rules is a standing change."""

    execution_id: str
    proposal: Proposal
    started_ms: int
    updated_ms: int
    steps: tuple[Step, ...]
    hit_ratio_before: float | None
    latency_us_p99_before: float | None
    refused_per_s_before: float | None
    rules: list[TtlRule] = field(default_factory=list)
    """TTL rules that may have changed keys."""
    applied: set[int] = field(default_factory=set)
    rollback_reason: str | None = None
    rules_only: bool = False
    outcome: ExecutionState | None = None
    reason: str = ""
    hit_ratio_after: float | None = None
    comparable: bool | None = None
    hit_ratio_step: float | None = None
    control_drift: float | None = None
    baseline: Baseline = field(default_factory=Baseline)
    persist_intended: bool = False
    """The server's configuration file may hold the new values."""
    epoch: int = 0
    """Highest fencing token under which a record of it was written."""

    @property
    def all_applied(self) -> bool:
        return len(self.applied) == len(self.steps) > 0

    @property
    def standing(self) -> bool:
        return self.outcome is ExecutionState.KEPT and bool(self.rules)

    @property
    def execution(self) -> Execution:
        """What others were told at the end."""
        return Execution(
            execution_id=self.execution_id,
            proposal=self.proposal,
            state=self.outcome or ExecutionState.LEASING,
            started_at_ms=self.started_ms,
            updated_at_ms=self.updated_ms,
            step=len(self.applied),
            steps=len(self.steps),
            reason=self.reason,
            hit_ratio_before=self.hit_ratio_before,
            hit_ratio_after=self.hit_ratio_after,
            comparable=self.comparable,
            hit_ratio_step=self.hit_ratio_step,
            control_drift=self.control_drift,
        )


@dataclass(slots=True, kw_only=True)
class Found:
    """What the journal says. `unreadable` maps the proposal id of an open change that this version cannot read to
    (service, why)."""

    unfinished: tuple[Unfinished, ...] = ()
    standing: tuple[Unfinished, ...] = ()
    finished: tuple[Unfinished, ...] = ()
    unreadable: Mapping[str, tuple[str | None, str]] = field(default_factory=dict)
    paused: bool = False


def read_journal(records: Iterable[AuditRecord]) -> Found:
    """Rebuild all changes from the records of earlier lives; the records may hold doubles, since a record may be
    written twice."""
    changes: dict[str, Unfinished] = {}
    unreadable: dict[str, tuple[str | None, str]] = {}
    paused = False
    for record in sorted(records, key=lambda r: r.seq):
        if record.kind in (RecordKind.PAUSED.value, RecordKind.RESUMED.value):
            paused = record.kind == RecordKind.PAUSED.value
            continue
        key = str(record.payload.get("execution_id", record.subject_id))
        if record.kind == RecordKind.CHANGE_INTENDED.value:
            try:
                changes.setdefault(key, _opened(key, record))
            except (ValidationError, ValueError, KeyError, TypeError) as error:
                unreadable[key] = (record.service, f"{type(error).__name__}")
        elif key in changes:
            _follow(changes[key], record)
        elif record.kind in ENDINGS:
            unreadable.pop(key, None)
    standing = _one_rule_per_pattern([c for c in changes.values() if c.standing])
    return Found(
        unfinished=tuple(c for c in changes.values() if c.outcome is None),
        standing=standing,
        finished=tuple(c for c in changes.values() if c.outcome is not None),
        unreadable=unreadable,
        paused=paused,
    )


@kept(_INTENTIONS_KEPT)
def _intended(record: AuditRecord) -> tuple[Proposal, tuple[Step, ...], Baseline]:
    """Return proposal, plan and baseline of a record: whoever follows the journal reads it again and again."""
    payload = record.payload
    baseline = payload["baseline"]
    return (
        decode(Proposal, payload["proposal"]),
        tuple(decode(Step, s) for s in payload["plan"]),
        decode(Baseline, baseline["series"]) if "series" in baseline else Baseline(),
    )


def _opened(key: str, record: AuditRecord) -> Unfinished:
    baseline = record.payload["baseline"]
    proposal, steps, series = _intended(record)
    return Unfinished(
        execution_id=key,
        proposal=proposal,
        started_ms=record.at_ms,
        updated_ms=record.at_ms,
        steps=steps,
        hit_ratio_before=baseline["hit_ratio"],
        latency_us_p99_before=baseline["latency_us_p99"],
        refused_per_s_before=baseline["refused_per_s"],
        baseline=series,
    )


def _follow(change: Unfinished, record: AuditRecord) -> None:
    payload: Mapping[str, Any] = record.payload
    epoch = payload.get("epoch")
    if isinstance(epoch, int):
        if epoch < change.epoch:
            # The last word of a writer that was fenced off; the newer one has the change now.
            return
        change.epoch = epoch
    change.updated_ms = record.at_ms
    if record.kind == RecordKind.STEP_INTENDED.value:
        number = int(payload["step"])
        change.persist_intended = change.persist_intended or payload["what"]["kind"] == PERSIST
        rule = change.steps[number].rule if number < len(change.steps) else None
        if rule is not None and rule not in change.rules:
            change.rules.append(rule)
    elif record.kind == RecordKind.STEP_APPLIED.value:
        change.applied.add(int(payload["step"]))
    elif record.kind == RecordKind.OBSERVED.value:
        change.hit_ratio_after = payload.get("hit_ratio")
    elif record.kind == RecordKind.ROLLBACK_INTENDED.value:
        change.rollback_reason = str(payload.get("reason", ""))
        change.rules_only = bool(payload.get("rules_only", False))
        # A kept change whose rules are being revoked is open again until that is done.
        change.outcome = None
    elif record.kind in ENDINGS:
        change.outcome = ENDINGS[record.kind]
        change.comparable = payload.get("comparable")
        change.hit_ratio_step, change.control_drift = payload.get("hit_ratio_step"), payload.get("control_drift")
        change.reason = str(payload.get("reason", ""))


def _one_rule_per_pattern(standing: list[Unfinished]) -> tuple[Unfinished, ...]:
    """The newest kept change that names a pattern governs it; an older one keeps what is left to it."""
    taken: set[tuple[str, str]] = set()
    result: list[Unfinished] = []
    for change in reversed(standing):
        change.rules = [r for r in change.rules if (change.proposal.service, r.pattern) not in taken]
        taken |= {(change.proposal.service, r.pattern) for r in change.rules}
        if change.rules:
            result.append(change)
    return tuple(reversed(result))


class NextMove(StrEnum):
    """What becomes of an unfinished change."""

    OBSERVE = "observe"
    TAKE_BACK = "take_back"
    ABANDON = "abandon"


def decide(change: Unfinished, values: Mapping[str, str]) -> tuple[NextMove, str]:
    """Say what to do with an unfinished change whose knobs have these values now, and why.

    A value that is neither the one before nor any that a step was to set is somebody else's: the change is left
    alone. A change that is complete and was being observed is observed afresh; everything else goes back to how it
    was, which is always safe.
    """
    before = {c.knob: c.before for c in change.proposal.knob_changes}
    after = {c.knob: c.after for c in change.proposal.knob_changes}
    known = {knob: {before[knob], after[knob]} for knob in before}
    for step in change.steps:
        for c in step.changes:
            known[c.knob] |= {c.before, c.after}
    if change.rules_only:
        return NextMove.TAKE_BACK, change.rollback_reason or "revoked"
    strange = [
        k for k in sorted(known) if values.get(k) not in known[k] and not _on_the_way_back(change, k, values.get(k))
    ]
    if strange:
        told = ", ".join(f"`{k}` is `{values.get(k)}`" for k in strange)
        return NextMove.ABANDON, f"somebody else has changed the cache while nobody watched, it is left alone: {told}"
    if change.rollback_reason is not None:
        return NextMove.TAKE_BACK, change.rollback_reason
    if not change.rules and all(values.get(k) == v for k, v in before.items()):
        return NextMove.ABANDON, "interrupted before anything was done; nothing had been applied"
    if change.all_applied and all(values.get(k) == v for k, v in after.items()):
        return NextMove.OBSERVE, "interrupted while it was being observed, observed afresh"
    return NextMove.TAKE_BACK, "crashed in the middle"


def _on_the_way_back(change: Unfinished, knob: str, value: str | None) -> bool:
    """Say whether a memory size is a rung of a rollback that was under way: between the old size and the new."""
    if change.rollback_reason is None or knob != "maxmemory" or value is None or not value.isdigit():
        return False
    memory = next(c for c in change.proposal.knob_changes if c.knob == knob)
    highest = max(int(c.after) for s in change.steps for c in s.changes if c.knob == knob)
    return int(memory.before) <= int(value) <= max(highest, int(memory.after))
