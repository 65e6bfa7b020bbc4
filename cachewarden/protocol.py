"""Requests and answers between agents: who asks whom for what in one cycle.

coordinator -> collector ObserveFleet -> FleetObserved; -> planner PlanFleet -> FleetPlanned; -> validator Judge ->
Judged; -> consensus Settle -> Settled; -> actuator Execute -> ExecutionReport, several times. `cycle` ties an answer to
its question, so that a late answer of an earlier cycle is recognised and dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cachewarden.approval import Approval, Rest
from cachewarden.baseline import Baseline
from cachewarden.cachemodel.scoring import Score
from cachewarden.counterfactual import Counterfactual
from cachewarden.messages import Execution, Intent, Message, Mode, Proposal, Resolution, TtlRule, Verdict
from cachewarden.observation import Snapshot
from cachewarden.peer_messages import PeerHealth

__all__ = [
    "AgentBeat",
    "AgentHealth",
    "CancelExecution",
    "ChainChecked",
    "Execute",
    "ExecutionReport",
    "FleetBeat",
    "FleetDelta",
    "FleetObserved",
    "FleetPlanned",
    "FleetState",
    "History",
    "Judge",
    "Judged",
    "LostSetting",
    "ModesChanged",
    "ObserveFleet",
    "PauseUnread",
    "PlanFleet",
    "RunCycle",
    "SetMode",
    "SetPaused",
    "Settle",
    "Settled",
    "Sizing",
    "StandingDecision",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class LostSetting(Message):
    """A value that `proposal` had set and that a restart or failover took away; the knob has the value `now`."""

    knob: str
    value: str
    now: str
    proposal: Proposal


@dataclass(frozen=True, slots=True, kw_only=True)
class History(Message):
    """What happened to one service lately, as far as it bears on what may be done next."""

    last_change_ms: int | None = None
    changes_last_hour: int = 0
    in_flight: str | None = None
    """Proposal id of a change that is not finished."""
    in_flight_before: Mapping[str, str] = field(default_factory=dict)
    """What its knobs were before it; empty where it changes anything else as well."""
    ttl_rules: tuple[TtlRule, ...] = ()
    """Rules that are in force, one per pattern."""
    rolled_back: Mapping[str, int] = field(default_factory=dict)
    """Change signature (`knob=after`, sorted, joined by `;`) to when it was taken back."""
    led_by: str | None = None
    """Another deployment that held the lease when we last tried, and until when it is not tried again."""
    led_until_ms: int = 0
    by_hand: Mapping[str, int] = field(default_factory=dict)
    """Knob that somebody else than us has set to when that was seen; it is left alone for a while."""
    by_peer: Mapping[str, str] = field(default_factory=dict)
    """Knob that another agent has set, as it had announced, to that agent."""
    lost: tuple[LostSetting, ...] = ()
    """Settings of ours that a restart or failover took away and nobody has set since."""
    drift: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Knob to the other nodes of the service that have another value than it, and that value."""
    kept: tuple[str, ...] = ()
    """Signatures of the changes that were kept on this service."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StandingDecision(Message):
    """The last word on one service: a judged and agreed proposal, or the reason why there is nothing to do."""

    service: str
    decided_at_ms: int
    proposal: Proposal | None = None
    verdict: Verdict | None = None
    resolution: Resolution | None = None
    idle_reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ObserveFleet(Message):
    cycle: int
    services: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FleetObserved(Message):
    """`missing` says why a service has no snapshot."""

    cycle: int
    snapshots: tuple[Snapshot, ...]
    missing: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlanFleet(Message):
    """`force` names services for which cool-down and minimum gain are skipped.

    `memory_bytes` is the maxmemory that each service has or may still need, those included that were not seen this
    time; `budget_bytes` what all together may have, None where the asker does not know it.
    """

    cycle: int
    snapshots: tuple[Snapshot, ...]
    history: Mapping[str, History]
    memory_bytes: Mapping[str, int] = field(default_factory=dict)
    budget_bytes: int | None = None
    force: tuple[str, ...] = ()
    interval_factor: float = 1.0
    """By how much intervals are to be stretched so that nine of ten past outcomes would have been inside; below 1 where
    they have proved too wide (`cachewarden.cachemodel.scoring`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizing(Message):
    """What one cache is predicted to hit at other sizes, with everything else as it is in force.

    All three have the same length, at least two: `maxmemory_bytes` ascending, `hit_ratio` 0..1 and `low`, the low end
    of its 90 % interval, neither ever falling.
    """

    at_ms: int
    maxmemory_bytes: tuple[int, ...]
    hit_ratio: tuple[float, ...]
    low: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetPlanned(Message):
    """Proposals, for each service without one the reason, and sizings of those whose memory can be imagined."""

    cycle: int
    proposals: tuple[Proposal, ...]
    idle_reasons: Mapping[str, str]
    sizings: Mapping[str, Sizing] = field(default_factory=dict)
    counterfactuals: tuple[Counterfactual, ...] = ()
    """What services that are being changed, or may be, would hit without it, as far as it was captured."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judge(Message):
    """`budget_bytes` as in `PlanFleet`."""

    cycle: int
    proposals: tuple[Proposal, ...]
    snapshots: tuple[Snapshot, ...]
    budget_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged(Message):
    cycle: int
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settle(Message):
    """`memory_bytes` and `budget_bytes` as in `PlanFleet`; `intents` is what is already on its way (ours and
    others')."""

    cycle: int
    proposals: tuple[Proposal, ...]
    verdicts: tuple[Verdict, ...]
    history: Mapping[str, History]
    memory_bytes: Mapping[str, int]
    intents: tuple[Intent, ...]
    budget_bytes: int | None = None
    force: tuple[str, ...] = ()
    approvals: tuple[Approval, ...] = ()
    """Those that are open, one per service at most."""
    rests: tuple[Rest, ...] = ()
    kept: tuple[str, ...] = ()
    """Proposals that were carried out lately and kept; what needs one of them may go ahead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled(Message):
    cycle: int
    resolutions: tuple[Resolution, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Execute(Message):
    """Carry out a judged and agreed proposal. `hit_ratio_before` and `latency_us_p99_before` are the baseline it is
    compared with."""

    proposal: Proposal
    verdict: Verdict
    resolution: Resolution
    hit_ratio_before: float | None
    latency_us_p99_before: float | None
    approval: Approval | None = None
    """The consent under which it goes ahead, where one is needed."""
    memory_bytes: Mapping[str, int] | None = None
    """maxmemory of every service as it was known when this was sent, for a change under way the larger size."""
    budget_bytes: int | None = None
    """As in `PlanFleet`. Without these two a cache is not let grow."""
    baseline: Baseline = field(default_factory=Baseline)
    counterfactual: Counterfactual | None = None
    """What the cache would hit without it, as far as it was captured up to now; more follows while it is observed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelExecution(Message):
    """Stop and take back whatever is in flight for a service (`*` for all), or only one proposal of it."""

    service: str
    reason: str
    proposal_id: str | None = None
    in_flight_only: bool = False
    """Leave kept TTL rules as they stand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionReport(Message):
    execution: Execution


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCycle(Message):
    """Run a cycle now, with cool-down and minimum gain skipped for the services in `force`."""

    force: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SetPaused(Message):
    """Pause or resume; `kill` also takes back what is in flight. `order_id` finds the order in the journal again; the
    coordinator gives it."""

    paused: bool
    by: str
    reason: str
    kill: bool = False
    order_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PauseUnread(Message):
    """The actuator goes by an order of pause that it has never read in the journal: whoever gave it may be gone."""

    order: SetPaused


@dataclass(frozen=True, slots=True, kw_only=True)
class SetMode(Message):
    """Change the mode of one service until it is changed again, here or in the fleet file."""

    service: str
    mode: Mode
    by: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModesChanged(Message):
    """The coordinator tells every agent which modes differ from the fleet file; all others are as in the file."""

    modes: Mapping[str, Mode]


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentHealth(Message):
    """`restarts` counts lives after the first; `last_seen_ms` is the coordinator's clock."""

    name: str
    alive: bool
    last_seen_ms: int
    restarts: int = 0
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FleetState(Message):
    """What the coordinator knows, as one versioned value, rebuilt and never edited; snapshots without their samples."""

    version: int
    at_ms: int
    cycle: int
    phase: str
    """What the coordinator is doing now, in words, e.g. `observing 5 services`."""
    paused: bool
    pause_reason: str
    snapshots: Mapping[str, Snapshot]
    missing: Mapping[str, str]
    """Service to the reason why it has no snapshot."""
    first_hit_ratio: Mapping[str, float]
    """Hit ratio of the first complete window of each service, for a now-and-before view."""
    standing: Mapping[str, StandingDecision]
    executions: tuple[Execution, ...]
    """Newest last, at most 200."""
    agents: Mapping[str, AgentHealth]
    journal_seq: int
    decisions: int
    """Verdicts on proposals and requests since the start, and how many of them were valid and complete."""
    decisions_compliant: int
    last_change_ms: int | None = None
    budget_bytes: int | None = None
    """What all limits may add up to: declared, or the sum as first found; None before the first look."""
    score: Score | None = None
    """How past predictions turned out; None where nobody keeps count."""
    handed_over: Mapping[str, StandingDecision] = field(default_factory=dict)
    """Proposal that went to the actuator to the decision under which it went, as far as it is remembered."""
    history: Mapping[str, History] = field(default_factory=dict)
    """What bears on the next change of each service: the change in flight, cool-down, change budget, damping."""
    intents: tuple[Intent, ...] = ()
    """What is already on its way, ours and others'."""
    life_ms: int = 0
    """When this life of the coordinator began; `version` counts within a life. 0 where nobody counts lives."""
    peers: Mapping[str, PeerHealth] = field(default_factory=dict)
    """HTTP peers that are configured, and the blackboard."""
    approvals: tuple[Approval, ...] = ()
    """Open ones first, then those that ended lately, newest first."""
    modes: Mapping[str, str] = field(default_factory=dict)
    """Service to the mode that a person has set at run time, where it differs from the fleet file."""
    approval_answers: Mapping[str, str] = field(default_factory=dict)
    """Decision or submission id to the reason why the coordinator did not take it, empty where it did; the newest."""
    sizings: Mapping[str, Sizing] = field(default_factory=dict)
    """Newest of each service, as old as they say."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FleetBeat(Message):
    """The state is still version `version` of life `life_ms`; these are the parts that move without a new version."""

    life_ms: int
    version: int
    at_ms: int
    cycle: int
    phase: str
    agents: Mapping[str, AgentHealth]
    journal_seq: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FleetDelta(Message):
    """What leads from version `since` to that of `changes`, in which maps and executions hold only what is new.

    `gone` has the keys that each map lost, `order` the proposals of all executions, newest last.
    """

    since: int
    changes: FleetState
    gone: Mapping[str, tuple[str, ...]]
    order: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentBeat(Message):
    """Every shell tells the coordinator so, at its start and every few seconds."""

    name: str
    started_at_ms: int
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainChecked(Message):
    """The auditor has verified the journal; `ok` False is an alarm and stays so until a person has looked.

    A check that could not be made (journal down) is not reported as one.
    """

    ok: bool
    checked_at_ms: int
    height: int
    """Newest record that was seen."""
    checkpoint_seq: int
    """Newest record up to which everything is proven intact, and its hash."""
    checkpoint_hash: str
    checked: int
    """Records looked at in this check."""
    problems: tuple[str, ...] = ()
    """The first ones, in words; `problems_total` counts all."""
    problems_total: int = 0
