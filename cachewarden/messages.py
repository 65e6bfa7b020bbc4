"""What the agents say to each other: frozen, versioned, each carrying the constitutional hash.

A snapshot is what was seen; an intent what is wanted; a proposal the exact change with its predicted effect and
evidence; a verdict what the constitution says of it; a resolution who goes first; an execution what became of it; an
audit record what is remembered.

Nothing here decides anything. INVARIANT: a message is never changed after it was made, and holds no key or value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum, StrEnum
from typing import Any, Final

from cachewarden.estimate import Estimate

__all__ = [
    "AGENT_ID",
    "CAPABILITIES",
    "CONSTITUTIONAL_HASH",
    "SCHEMA_VERSION",
    "ActionClass",
    "AuditRecord",
    "Decision",
    "Evidence",
    "Execution",
    "ExecutionState",
    "Finding",
    "Intent",
    "KnobChange",
    "Lease",
    "Message",
    "Mode",
    "Prediction",
    "Proposal",
    "RecordKind",
    "Resolution",
    "ResolutionOutcome",
    "TtlRule",
    "Verdict",
]

CONSTITUTIONAL_HASH: Final = "cdd01ef066bc6cf2"
SCHEMA_VERSION: Final = 1
AGENT_ID: Final = "cache_performance_optimizer"
CAPABILITIES: Final = (
    "cache_performance_analysis",
    "memory_optimization",
    "latency_reduction",
    "constitutional_cache_validation",
)


class ActionClass(IntEnum):
    """What may happen without a person (`docs/CONSTITUTION.md`)."""

    OBSERVE = 0
    REVERSIBLE = 1
    GROWTH = 2
    LOSSY = 3
    FORBIDDEN = 4


class Mode(StrEnum):
    """How far cachewarden may go for one service."""

    OFF = "off"
    ADVISE = "advise"
    APPROVE = "approve"
    AUTO = "auto"


class Decision(StrEnum):
    ALLOW = "allow"
    DENY = "deny"


class ResolutionOutcome(StrEnum):
    """GO: act now; WAIT: agreed, but something else first; YIELD: another intent won; ADVISE: nobody asked us to
    act."""

    GO = "go"
    WAIT = "wait"
    YIELD = "yield"
    ADVISE = "advise"


class ExecutionState(StrEnum):
    """States of one change; `agents/actuator.py` holds the table of legal transitions."""

    LEASING = "leasing"
    CHECKING = "checking"
    STEPPING = "stepping"
    OBSERVING = "observing"
    ROLLING_BACK = "rolling_back"
    KEPT = "kept"
    ROLLED_BACK = "rolled_back"
    ABANDONED = "abandoned"
    FAILED = "failed"

    @property
    def final(self) -> bool:
        return self in (
            ExecutionState.KEPT,
            ExecutionState.ROLLED_BACK,
            ExecutionState.ABANDONED,
            ExecutionState.FAILED,
        )


class RecordKind(StrEnum):
    """Kinds of audit records, in the order in which a change writes them."""

    AGENT_STARTED = "agent_started"
    PROPOSED = "proposed"
    JUDGED = "judged"
    RESOLVED = "resolved"
    CHANGE_INTENDED = "change_intended"
    STEP_INTENDED = "step_intended"
    STEP_APPLIED = "step_applied"
    STEP_FAILED = "step_failed"
    OBSERVED = "observed"
    ROLLBACK_INTENDED = "rollback_intended"
    CHANGE_KEPT = "change_kept"
    CHANGE_ROLLED_BACK = "change_rolled_back"
    CHANGE_ABANDONED = "change_abandoned"
    ROLLBACK_FAILED = "rollback_failed"
    APPROVAL_REQUESTED = "approval_requested"
    APPROVED = "approved"
    REJECTED = "rejected"
    EDITED = "edited"
    ROLLBACK_REQUESTED = "rollback_requested"
    APPROVAL_EXPIRED = "approval_expired"
    APPROVAL_SUPERSEDED = "approval_superseded"
    APPROVAL_WITHDRAWN = "approval_withdrawn"
    CONFLICT_REPORTED = "conflict_reported"
    CONFLICT_SETTLED = "conflict_settled"
    PEER_TASK_TAKEN = "peer_task_taken"
    PEER_TASK_ENDED = "peer_task_ended"
    BALLOT_OPENED = "ballot_opened"
    BALLOT_CLOSED = "ballot_closed"
    REQUEST_DECIDED = "request_decided"
    REQUEST_REFUSED = "request_refused"
    KEYS_WARMED = "keys_warmed"
    SETTING_CHANGED_BY_HAND = "setting_changed_by_hand"
    SETTING_CHANGED_BY_PEER = "setting_changed_by_peer"
    SETTING_DRIFT = "setting_drift"
    SETTING_LOST = "setting_lost"
    MODE_CHANGED = "mode_changed"
    PAUSED = "paused"
    RESUMED = "resumed"
    CHECKPOINT = "checkpoint"


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """Base of all messages."""

    constitutional_hash: str = CONSTITUTIONAL_HASH
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class KnobChange(Message):
    """One knob from one value to another, both as CONFIG GET prints them (maxmemory in bytes)."""

    knob: str
    before: str
    after: str

    def reversed(self) -> KnobChange:
        """Return the change that takes this one back."""
        return KnobChange(knob=self.knob, before=self.after, after=self.before)


@dataclass(frozen=True, slots=True, kw_only=True)
class TtlRule(Message):
    """How long keys of `pattern` live that the application writes with `written_ttl_ms`.

    Without `unread_ms`: `extended_ttl_ms` from the write, less a draw from 0..`jitter_ms` of each key's own, so that
    what was written together ends apart; with `only_read`, only keys that were used again since they were written.
    With `unread_ms`: keys that nobody touched for so long, also those without a TTL, end `extended_ttl_ms` from then.

    INVARIANT: extended_ttl_ms <= max_staleness_ms, the staleness that the owner declared for the pattern.
    """

    pattern: str
    written_ttl_ms: int
    extended_ttl_ms: int
    max_staleness_ms: int
    only_read: bool = False
    jitter_ms: int = 0
    unread_ms: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.extended_ttl_ms <= self.max_staleness_ms or not 0 <= self.jitter_ms < self.extended_ttl_ms:
            raise ValueError(
                f"a TTL rule needs 0 < extended `{self.extended_ttl_ms}` <= max staleness `{self.max_staleness_ms}` "
                f"milliseconds, and a jitter `{self.jitter_ms}` below extended"
            )
        if self.unread_ms:
            if self.unread_ms < 0 or self.written_ttl_ms < 0 or self.jitter_ms or self.only_read:
                raise ValueError("a TTL rule for keys that nobody reads has neither jitter nor `only_read`")
            return
        spread = self.written_ttl_ms == self.extended_ttl_ms and self.jitter_ms > 0
        if not (0 < self.written_ttl_ms < self.extended_ttl_ms or (spread and self.written_ttl_ms > 0)):
            raise ValueError(
                f"a TTL rule needs 0 < written `{self.written_ttl_ms}` < extended `{self.extended_ttl_ms}` "
                "milliseconds, or a jitter"
            )

    @property
    def shortens(self) -> bool:
        """Whether a key may end sooner than the application asked for; what ends is gone, so it is lossy."""
        return self.unread_ms > 0 or self.extended_ttl_ms - self.jitter_ms < self.written_ttl_ms

    @property
    def action_class(self) -> ActionClass:
        return ActionClass.LOSSY if self.shortens else ActionClass.REVERSIBLE

    @property
    def revisit_ms(self) -> int:
        """Within which each key has to be looked at again: the TTL that it is written with, or the time unread."""
        return self.unread_ms or self.written_ttl_ms

    @property
    def terms(self) -> str:
        """Which keys it is about, and how they differ, in words; empty where all of the pattern live equally long."""
        if self.unread_ms:
            return f"for keys that nobody touched for {self.unread_ms / 1000:g} s, from then on"
        if self.jitter_ms:
            return f"less up to {self.jitter_ms / 1000:g} s, another part for each key"
        return "for keys that were used since they were written" if self.only_read else ""

    @property
    def name(self) -> str:
        """Return `ttl:<pattern>` with what tells one kind of rule from another, so that no consent covers both."""
        spread, least = f"-{self.jitter_ms}" if self.jitter_ms else "", f"@{self.unread_ms}" if self.unread_ms else ""
        return f"ttl:{self.pattern}{spread}{least}{'+used' if self.only_read else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction(Message):
    """What a change is expected to do to one service once it has settled."""

    hit_ratio_before: Estimate
    hit_ratio_after: Estimate
    gain: Estimate
    """Hit ratio after minus before; negative for a service that gives memory away."""
    lookups_per_s: float
    memory_bytes_after: int
    latency_us_p99_after: float | None
    method: str
    """How the numbers were come by, in words that an operator understands."""
    settle_ms: int
    """Time until the effect should show, e.g. to refill a cache at its miss rate."""
    freed_bytes: Estimate | None = None
    """Memory that the same keys will need less (of used_memory); None where it promises none."""
    peak_share: float | None = None
    """Of the deadlines of the touched keys, those in the busiest second, 0..1, at most; None where it promises none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence(Message):
    """One fact that a proposal rests on: what was measured, how, over which window."""

    name: str
    value: float | int | str | None
    source: str
    window_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent(Message):
    """What somebody wants to touch, in which direction, until when; the thing that conflicts are found between."""

    holder: str
    service: str
    resource: str
    """A knob's name, `ttl:<pattern>`, or `budget` for the fleet's memory."""
    direction: int
    """+1 grows, -1 shrinks, 0 switches to another value."""
    amount: int = 0
    until_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal(Message):
    """An exact change to one service, with everything that is needed to judge it."""

    proposal_id: str
    service: str
    author: str
    created_at_ms: int
    expires_at_ms: int
    kinds: tuple[str, ...]
    """Which of `memory`, `ttl`, `hotspot` this is an answer to."""
    knob_changes: tuple[KnobChange, ...]
    ttl_rules: tuple[TtlRule, ...]
    action_class: ActionClass
    reversible: bool
    playbook: str
    """Name of the table in `agents/playbook_tables/`."""
    rollback: str
    """How it is taken back, and what cannot be."""
    rationale: str
    evidence: tuple[Evidence, ...]
    prediction: Prediction
    cost: Mapping[str, float]
    """Predicted cost of carrying it out: `server_cpu_ms`, `commands`, `keys_touched`, `bytes_moved`."""
    needs: tuple[str, ...] = ()
    """Proposals that must have been kept first (whoever gives memory goes before whoever gets it)."""
    takes_back: str | None = None
    """Id of the kept proposal that a person wants back, where this one sets its old values again."""
    reapplies: str | None = None
    """Id of the kept proposal whose values a restart or failover took away and this one sets again."""

    @property
    def memory_delta_bytes(self) -> int:
        """Change of `maxmemory`; 0 where the proposal leaves it alone."""
        return sum(int(c.after) - int(c.before) for c in self.knob_changes if c.knob == "maxmemory")

    @property
    def signature(self) -> str:
        """What it wants, without when and why: `knob=after` and `ttl:pattern=ms`, sorted, joined by `;`."""
        parts = [f"{c.knob}={c.after}" for c in self.knob_changes]
        parts += [f"{r.name}={r.extended_ttl_ms}" for r in self.ttl_rules]
        return ";".join(sorted(parts))

    def waiting_for(self, needs: tuple[str, ...]) -> Proposal:
        """Return the same proposal, to be carried out only after all of `needs` were kept."""
        return replace(self, needs=needs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding(Message):
    """What one principle says of one proposal."""

    principle_id: str
    title: str
    severity: str
    decision: Decision
    reason: str
    evaluated: bool = True
    """False where the expression could not be evaluated, which denies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict(Message):
    """What the constitution says of exactly one proposal. INVARIANT: ALLOW only if every finding allows and there is
    one."""

    proposal_id: str
    proposal_digest: str
    decision: Decision
    findings: tuple[Finding, ...]
    constitution_digest: str
    judged_at_ms: int

    def __post_init__(self) -> None:
        allowed = bool(self.findings) and all(f.decision is Decision.ALLOW for f in self.findings)
        if (self.decision is Decision.ALLOW) != allowed:
            raise ValueError("a verdict allows exactly if it has findings and all of them allow")

    @property
    def denied_by(self) -> tuple[str, ...]:
        """Ids of the principles that said no."""
        return tuple(f.principle_id for f in self.findings if f.decision is Decision.DENY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution(Message):
    """What becomes of one proposal among the others."""

    proposal_id: str
    service: str
    outcome: ResolutionOutcome
    reason: str
    conflicts_with: tuple[str, ...] = ()
    resolved_at_ms: int = 0
    awaits_approval: bool = False
    """Whether nothing is missing but the consent of another identity than the author."""
    awaits_ballot: bool = False
    """Whether nothing is missing but the vote of those who are entitled to one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease(Message):
    """The right to write to one cache until `expires_at_ms`; `epoch` is the fencing token in the cache itself."""

    service: str
    holder: str
    epoch: int
    expires_at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution(Message):
    """How far a change has come, and in the end what it was worth."""

    execution_id: str
    proposal: Proposal
    state: ExecutionState
    started_at_ms: int
    updated_at_ms: int
    step: int = 0
    steps: int = 0
    reason: str = ""
    hit_ratio_before: float | None = None
    hit_ratio_after: float | None = None
    """Measured over the observation window; None until then."""
    comparable: bool | None = None
    """Whether the last window can be held against the prediction: enough lookups, same traffic; None before one."""
    hit_ratio_step: float | None = None
    """How far the traffic alone moves it from window to window; None where not known, or a twin tells it."""
    control_drift: float | None = None
    """By how much the hit ratio of the unchanged twin moved meanwhile; None where there was no twin to go by."""
    held_by: str | None = None
    """Who leads the cache, where the change was abandoned for want of a lease."""
    freed_bytes: float | None = None
    """Memory that the same keys need less than before the change, as measured; None where none was promised."""
    peak_share: float | None = None
    """Of the deadlines that the last passes of the TTL rules met, those in the busiest second; None if not measured."""
    run_id: str = ""
    """Of the server process that was last looked at; empty before the first look."""

    @property
    def realised_gain(self) -> float | None:
        """Measured hit ratio after minus before, less what the unchanged twin gained too; None while not known."""
        if self.hit_ratio_before is None or self.hit_ratio_after is None:
            return None
        return self.hit_ratio_after - self.hit_ratio_before - (self.control_drift or 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecord(Message):
    """One entry of the journal; `hash` covers all else, `prev_hash` chains it to the one before; `seq` is from 1."""

    seq: int
    at_ms: int
    kind: str
    agent: str
    service: str | None
    subject_id: str
    payload: Mapping[str, Any] = field(default_factory=dict)
    prev_hash: str = ""
    hash: str = ""
