"""The memory of one execution, and the few things that every part of it does: ask, wait, record, report.

It decides nothing. The parts that do (`execution.py`, `execution_stepping.py`, `execution_observing.py`,
`execution_rollback.py`) are functions over a `Run`. A run asks for one thing at a time on its main line; keeping the
lease and governing TTL rules go on at the side.

INVARIANT: at most one answer is awaited on the main line, and an answer that nobody waits for any more changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from agents.effect import Drift
from agents.execution_table import STATE_OF, Phase, check_event
from agents.guardrails import Promise, traffic_shifted, traffic_step
from agents.info_facts import InfoFacts, facts_of_info
from agents.playbook_tables.steps import Ground, Step
from agents.recovery import Unfinished
from agents.ttl_governor import RuleRounds
from agents.windows import Window
from cachewarden.cachemodel.scoring import comparable_window
from cachewarden.counterfactual import Counterfactual
from cachewarden.errors import LeaseLost
from cachewarden.fleet import Service
from cachewarden.machine import (
    AcquireLease,
    Effect,
    EffectFailed,
    ExtendTtls,
    LeaseDenied,
    LeaseGranted,
    Record,
    ReencodeKeys,
    Send,
    SetTimer,
    TouchHotKeys,
    WriteKnobs,
)
from cachewarden.messages import Execution, ExecutionState, Lease, Proposal, RecordKind
from cachewarden.observation import Observation
from cachewarden.protocol import ExecutionReport
from cachewarden.settings import CacheOptimizerSettings

__all__ = [
    "RECORD_TRIES_NOTED",
    "WRITES",
    "Ending",
    "Halt",
    "Passes",
    "Run",
    "backoff_ms",
    "fence_found_higher",
    "fence_missing",
]

WRITES = (WriteKnobs, TouchHotKeys, ExtendTtls, ReencodeKeys)
RECORD_TRIES_NOTED = 1
"""After so many failed tries to record, others are told what the change is waiting for."""

_BACKOFF_MIN_MS = 250
_BACKOFF_MAX_MS = 30_000


@dataclass(frozen=True, slots=True)
class Halt:
    """Why the main line has to stop at the next safe point. `superseded`: a newer writer owns the cache, nothing more
    is written."""

    reason: str
    superseded: bool


@dataclass(frozen=True, slots=True)
class Ending:
    """What the last record says."""

    state: ExecutionState
    reason: str


@dataclass(slots=True)
class Passes:
    """How far the passes of one step over the keyspace have come."""

    cursor: int = 0
    examined: int = 0
    reencoded: int = 0
    bytes_moved: int = 0


def backoff_ms(tries: int) -> int:
    """Return the pause before try number `tries` + 1: 250 ms, doubled each time, at most 30 s."""
    return int(min(_BACKOFF_MAX_MS, _BACKOFF_MIN_MS * 2 ** min(tries, 12)))


def fence_missing(kind: str, details: Mapping[str, Any]) -> bool:
    """Say whether a write failed though nobody newer is there: the lease only has to be written again.

    Either eviction took the fence away, or it was written anew with our own number between WATCH and EXEC (a renewal at
    the side does that), so that the server carried out nothing.
    """
    return kind == "StaleFencingToken" and details.get("found") in (None, details.get("ours"))


def fence_found_higher(kind: str, details: Mapping[str, Any]) -> bool:
    """Say whether a write failed because a newer writer has raised the fence."""
    return kind == "LeaseLost" or (kind == "StaleFencingToken" and not fence_missing(kind, details))


class Run:
    """One execution, from the order to its end (or, with TTL rules, until they are taken back)."""

    def __init__(
        self,
        proposal: Proposal,
        settings: CacheOptimizerSettings,
        promise: Promise,
        now_ms: int,
        wishes: Service | None = None,
    ) -> None:
        """`wishes` is the service in the fleet file; None where the file does not name it any more."""
        self.proposal = proposal
        self.settings = settings
        self.wishes = wishes
        self.promise = promise
        self.key = f"{proposal.proposal_id}@{now_ms}"
        self.held_by: str | None = None
        self.execution_id = f"e-{proposal.proposal_id}"
        self.phase = Phase.LEASING
        self.state = ExecutionState.LEASING
        self.started_ms = now_ms
        self.updated_ms = now_ms
        self.reason = ""
        self.judged_by: dict[str, Any] = {}
        self.intent_fences: tuple[tuple[str, int], ...] = ()
        """Leases on something else than the cache under which the intention has to be written."""

        self.lease: Lease | None = None
        self.lease_until_ms = 0
        self.lease_asked_ms = now_ms
        self.renewal_asked_ms = now_ms
        self.values_unsure = False
        """Somebody may have written since we last looked: the lease had lapsed before it was granted again."""

        self.steps: tuple[Step, ...] = ()
        self.step = 0
        self.undo: tuple[Step, ...] = ()
        self.undo_step = 0
        self.undo_reason = ""
        self.undo_rules_only = False
        self.undo_failures: list[dict[str, Any]] = []
        self.current: dict[str, str] = {}
        """Values of the touched knobs as last confirmed by the server."""
        self.seen: InfoFacts | None = None
        self.seen_knobs: Mapping[str, str] = {}
        self.hot_keys = 0
        """How many were collected."""
        self.reencoded = Passes()
        self.persisted: dict[str, Any] = {}
        """What became of CONFIG REWRITE; empty until it was decided on."""
        self.rules: list[RuleRounds] = []
        """TTL rules that were begun, i.e. that may have changed keys."""

        self.intended = False
        """The journal may hold our intention, so it must hold an ending as well."""
        self.dirty = False
        """A write may have reached the cache."""
        self.resumed: Unfinished | None = None
        """What recovery found in the journal; None for a fresh order."""
        self.halt: Halt | None = None
        self.ending: Ending | None = None
        self.deferred: Effect | None = None
        self.deferred_phase = Phase.WRITING
        self.tries = 0
        self.writes_tried = 0
        self.refences = 0

        self.hit_ratio_after: float | None = None
        self.forget_windows(now_ms)

        self._ask_nothing()

    def _ask_nothing(self) -> None:
        self.freed_bytes: float | None = None
        self.peak_share: float | None = None
        self.counterfactual: Counterfactual | None = None
        """What the cache would hit without the change, as far as that was replayed."""
        self.awaiting: str | None = None
        self.waiting = False
        """The main line waits for a timer, not for an answer."""
        self._again: Effect | None = None
        self._issued = 0
        self._reported: tuple[Any, ...] | None = None

    def forget_windows(self, now_ms: int) -> None:
        """Begin to observe anew."""
        self.last_look: Observation | None = None
        self.observing_since_ms = now_ms
        self.windows: list[Window] = []
        self.drift: Drift | None = None
        """What the traffic did to the hit ratio of the last of them, or of the one that raised an alarm, as known when
        it was judged; None where neither a twin nor a replay told."""
        self.observed_ms = 0
        """How long was observed up to then."""
        self.looks: list[Observation] = []
        """Those of the window under way, and of what follows it."""
        self.pieces: list[Window] = []
        """From look to look."""
        self.judged_looks = 0
        """The number of the last of them up to which hits were judged."""
        self.pending_look: Observation | None = None
        """Our own look, while the twin is being looked at."""
        self.control_first: Observation | None = None
        self.control: Window | None = None
        """The twin over the same time as the window that is under way; None without a twin that can be compared."""
        self.missed_looks = 0

    # --- Asking and waiting -------------------------------------------------------------------------------------------

    @property
    def service(self) -> str:
        return self.proposal.service

    @property
    def before(self) -> dict[str, str]:
        """The backup: what every touched knob was when the proposal was checked against the cache."""
        return {c.knob: c.before for c in self.proposal.knob_changes}

    @property
    def after(self) -> dict[str, str]:
        return {c.knob: c.after for c in self.proposal.knob_changes}

    @property
    def governed(self) -> bool:
        """Whether this is a kept change whose TTL rules still stand (or, in a new life, wait for their lease)."""
        return self.state is ExecutionState.KEPT and self.phase in (Phase.GOVERNING, Phase.LEASING)

    @property
    def told(self) -> str:
        """The reason, and which of its TTL rules rests and why."""
        resting = (f"the rule of `{r.rule.pattern}` rests: {r.resting}" for r in self.rules if r.resting)
        return "; ".join(filter(None, (self.reason, *resting)))

    @property
    def comparable(self) -> bool | None:
        """Whether the last window can be held against the prediction; None before the first."""
        if not self.windows:
            return None
        last = self.windows[-1]
        shifted = self.drift is None and traffic_shifted(last, self.promise)
        return comparable_window(last.lookups, last.problem, traffic_shifted=shifted)

    @property
    def hit_ratio_step(self) -> float | None:
        """How far the traffic alone moves the hit ratio from window to window; None where a twin tells what it did."""
        twin = self.promise.baseline.control is not None and self.drift is not None
        return None if twin else traffic_step(self.promise.baseline)

    @property
    def ground(self) -> Ground:
        """What a plan rests on: the look before the change, and what owner and operator permit."""
        wishes = self.wishes
        return Ground(
            facts=self.seen or facts_of_info({}),
            knobs=self.seen_knobs,
            step_share=self.settings.memory_step_share,
            memory_limit_bytes=None if wishes is None else wishes.memory_limit,
            keys_per_s=self.settings.ttl_keys_per_s,
            may_reencode=wishes is not None and wishes.reencode and bool(wishes.patterns),
            staleness_ms={} if wishes is None else wishes.staleness_ms,
            may_shorten=frozenset()
            if wishes is None
            else frozenset(p.prefix for p in wishes.patterns if p.shorten_ttl),
        )

    def enter(self, phase: Phase) -> None:
        """Go to a phase; the state that others see follows from it."""
        self.phase = phase
        state = STATE_OF[phase]
        if state is not None and not (phase is Phase.LEASING and self.state is ExecutionState.KEPT):
            self.state = state

    def ask(self, effect: Effect, phase: Phase) -> Effect:
        """Enter `phase`, waiting for the answer to `effect`."""
        self.enter(phase)
        self.waiting = False
        self._issued += 1
        self.awaiting = f"{self.key}#{self._issued}"
        self._again = effect
        return replace(effect, ref=self.awaiting)

    def ask_again(self) -> Effect:
        """Ask for the same thing again, in the same phase, with the lease as it is now."""
        if self._again is None:
            raise RuntimeError("nothing was asked before")
        effect = self._again
        if isinstance(effect, WRITES) and self.lease is not None:
            effect = replace(effect, lease=self.lease)
        return self.ask(effect, self.phase)

    def pause(self, now_ms: int, delay_ms: int) -> Effect:
        """Wait in the same phase."""
        self.waiting = True
        self._issued += 1
        self.awaiting = f"{self.key}#{self._issued}"
        return SetTimer(ref=self.awaiting, due_ms=now_ms + delay_ms)

    def back_off(self, now_ms: int) -> Effect:
        """Wait before the next try, longer each time."""
        self.tries += 1
        return self.pause(now_ms, backoff_ms(self.tries - 1))

    def stop_waiting(self) -> None:
        """Forget what is being waited for; its answer will find nobody."""
        self.awaiting = None
        self.waiting = False

    def issued(self, number: int) -> bool:
        """Say whether a ref of the main line was ever given out."""
        return 1 <= number <= self._issued

    # --- Effects that every part uses ---------------------------------------------------------------------------------

    def acquire(self, now_ms: int) -> Effect:
        self.lease_asked_ms = now_ms
        return AcquireLease(service=self.service, ttl_ms=self.settings.lease_ttl_ms)

    def note_lease(self, lease: Lease, asked_ms: int) -> None:
        """Take a granted lease over. Its end is counted from when it was asked for, so it is never believed longer
        than it is."""
        if self.lease is not None and lease.epoch != self.lease.epoch:
            self.values_unsure = True
        self.lease = lease
        self.lease_until_ms = asked_ms + self.settings.lease_ttl_ms

    def lost_by(self, event: Any) -> bool:
        """Say whether an answer shows that the cache is, or was meanwhile, another's who shares our journal.

        The epoch of a lease only changes where another had it in between (or it was given back), so a new one is as
        bad a sign as a refusal. A refusal without a holder comes from the cache: whoever fenced it has other leases
        and another journal, and will not end what is ours.
        """
        if event.ref == self.awaiting:
            check_event(self.phase, event)
        elif event.ref != f"{self.key}#renew":
            return False
        if isinstance(event, LeaseGranted):
            return self.lease is not None and event.lease.epoch != self.lease.epoch
        if isinstance(event, LeaseDenied):
            return event.holder is not None and (self.intended or self.lease is not None)
        lost = isinstance(event, EffectFailed) and event.kind == LeaseLost.__name__
        return lost and bool(event.details.get("service", self.service) == self.service)

    def distrust_lease(self) -> None:
        """Demand that the fence is written again before the next write, so that a command that is still on its way
        fails."""
        self.lease_until_ms = 0

    def keep_lease(self, now_ms: int) -> Effect:
        """Set the timer of the next renewal."""
        return SetTimer(ref=f"{self.key}#lease", due_ms=now_ms + self.settings.lease_ttl_ms // 3)

    def record(self, kind: RecordKind, payload: Mapping[str, Any]) -> Record:
        """Return a record of this execution; all of them carry its id and the epoch under which it writes."""
        own = {
            "execution_id": self.execution_id,
            "proposal_id": self.proposal.proposal_id,
            "epoch": None if self.lease is None else self.lease.epoch,
        }
        return Record(
            kind=kind.value,
            service=self.service,
            subject_id=self.proposal.proposal_id,
            payload={**own, **payload},
            # Once somebody else had the cache, the journal takes nothing more from us about it.
            fences=() if self.lease is None else ((self.service, self.lease.epoch),),
        )

    def execution(self, now_ms: int) -> Execution:
        """Return how far the change has come."""
        return Execution(
            execution_id=self.execution_id,
            proposal=self.proposal,
            state=self.state,
            started_at_ms=self.started_ms,
            updated_at_ms=now_ms,
            step=self.step,
            steps=len(self.steps),
            reason=self.told,
            hit_ratio_before=self.promise.hit_ratio_before,
            hit_ratio_after=self.hit_ratio_after,
            comparable=self.comparable,
            hit_ratio_step=self.hit_ratio_step,
            control_drift=None if self.drift is None else self.drift.value,
            held_by=self.held_by,
            freed_bytes=self.freed_bytes,
            run_id="" if self.last_look is None else self.last_look.info.get("run_id", ""),
            peak_share=self.peak_share,
        )

    def report(self, now_ms: int) -> tuple[Effect, ...]:
        """Tell the coordinator if there is something new to tell.

        Nothing is told before the intention is in the journal or the order is refused: a crash until then leaves
        nothing to be remembered by, and whoever waits must not have been told of a change that nobody will ever end.
        """
        if self.state in (ExecutionState.LEASING, ExecutionState.CHECKING) and self.resumed is None:
            return ()
        news = (self.state, self.step, self.told, self.hit_ratio_after)
        if news == self._reported:
            return ()
        self._reported = news
        self.updated_ms = now_ms
        return (Send(to="coordinator", message=ExecutionReport(execution=self.execution(now_ms))),)
