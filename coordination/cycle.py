"""The coordinator: what runs when, and what is known.

It runs one cycle after the other (observe, plan, judge, settle), hands agreed proposals to the actuator, keeps the
standing decision of every service, asks persons for approval where it is needed (`approvals.py`), pauses and resumes,
mirrors what happened onto the blackboard and heeds what other agents write there (`peer_desk.py`). It never decides
what a proposal is worth, never judges, and never writes to a cache.

INVARIANT: at most one question of a cycle is open; an answer that is late, doubled or of an earlier cycle changes
nothing. No order leaves before proposal, verdict, resolution and approval, where one is needed, are in the journal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cachewarden.approval import DecideApproval, SubmitProposal
from cachewarden.counterfactual import Counterfactual
from cachewarden.fleet import Fleet
from cachewarden.machine import (
    Effect,
    EffectFailed,
    JournalRead,
    Received,
    Recorded,
    Send,
    SetTimer,
    Started,
    TimerFired,
)
from cachewarden.messages import (
    Execution,
    ExecutionState,
    Proposal,
    Resolution,
    ResolutionOutcome,
    Verdict,
)
from cachewarden.observation import Snapshot
from cachewarden.protocol import (
    ChainChecked,
    Execute,
    ExecutionReport,
    FleetBeat,
    FleetDelta,
    FleetObserved,
    FleetPlanned,
    FleetState,
    Judge,
    Judged,
    ObserveFleet,
    PauseUnread,
    PlanFleet,
    RunCycle,
    SetMode,
    SetPaused,
    Settle,
    Settled,
)
from cachewarden.settings import CacheOptimizerSettings
from coordination import projection
from coordination.approvals import REF_PREFIX, ApprovalBook
from coordination.ballot_records import BALLOT_HANDLERS
from coordination.catching_up import CATCH_UP, CatchingUp
from coordination.cycle_pace import CyclePace
from coordination.decision_log import DecisionLog
from coordination.fleet_memory import FleetMemory
from coordination.mode_desk import ModeDesk
from coordination.orders import born, decision_of, order_of
from coordination.pausing import PauseDesk
from coordination.peer_desk import PeerDesk
from coordination.release_gate import held_back
from coordination.stages import AGENT_OF_STAGE, StageDeadlines
from coordination.state_feed import StateFeed

__all__ = ["Coordinator"]

_AFTER_CHANGE_MS = 1_000
"""Pause between a finished change and the next cycle: whoever waited for it should not wait a whole interval."""


class Coordinator:
    """States: idle -> observing -> planning -> judging -> settling -> idle; a stage that is not answered in time
    ends in idle. `life` names this life among all that work under our agent's name on the blackboard."""

    name = "coordinator"
    replay_kinds = tuple(sorted({kind for part in (FleetMemory, ApprovalBook, ModeDesk) for kind in part.replay_kinds}))

    def __init__(self, fleet: Fleet, settings: CacheOptimizerSettings, life: str = "") -> None:
        self._fleet = fleet
        self._settings = settings
        self._life = life
        self._memory = FleetMemory(fleet, settings)
        self._approvals = ApprovalBook(fleet, settings)
        # As often as those who stand by look: a restriction of another deployment reaches us as fast as its changes.
        self._catching_up = CatchingUp(min(settings.lease_ttl_ms, 60_000))
        self._hurry = False
        """Whether somebody waits for the next cycle."""
        self._pace = CyclePace(settings.cycle_interval_ms, settings.idle_factor, settings.cool_down_ms)
        self._cycle = self._life_ms = 0
        self._stage, self._deadlines = "idle", StageDeadlines()
        self._force: tuple[str, ...] = ()
        self._snapshots: tuple[Snapshot, ...] = ()
        self._proposals: dict[str, Proposal] = {}
        self._counterfactuals: dict[str, Counterfactual] = {}
        self._verdicts: dict[str, Verdict] = {}
        self._log = DecisionLog()
        self._peers = PeerDesk(fleet, settings, life)
        self._pauses = PauseDesk(life)
        self._modes = ModeDesk(fleet)
        self._approvals.use_modes(self._modes.modes)
        self._peers.use_modes(self._modes.modes)
        self._feed = StateFeed()
        self._handlers: Mapping[type, Callable[[Any, str, int], tuple[Effect, ...]]] = {
            FleetObserved: self._on_observed,
            FleetPlanned: self._on_planned,
            Judged: self._on_judged,
            Settled: self._on_settled,
            ExecutionReport: self._on_execution,
            RunCycle: self._on_run_cycle,
            SetPaused: self._on_set_paused,
            PauseUnread: lambda message, _sender, now_ms: self._pauses.hear(message.order, self._memory, now_ms),
            SetMode: lambda message, _sender, now_ms: (*self._modes.order(message, now_ms), *self._hasten(now_ms)),
            Execute: self._on_execute,
            DecideApproval: lambda message, _sender, now_ms: self._approvals.decide(message, now_ms),
            SubmitProposal: self._on_submit,
            ChainChecked: self._on_chain_checked,
            **BALLOT_HANDLERS,
        }

    def state(self, now_ms: int) -> FleetState:
        """Return everything that is known, as one value."""
        return self._memory.state(now_ms, self._cycle, self._stage, self._life_ms)

    @property
    def progress(self) -> tuple[int, int, str]:
        """Return (when this life began, number of the newest cycle, its stage)."""
        return self._life_ms, self._cycle, self._stage

    def has_news(self, seen: tuple[int, int]) -> bool:
        """Whether a watcher that has seen (life, version) lacks something; never before the journal was replayed."""
        return self._life_ms > 0 and seen != (self._life_ms, self._memory.version)

    def news(self, seen: tuple[int, int], now_ms: int) -> FleetState | FleetDelta | FleetBeat | None:
        """Return what a watcher that has seen (life, version) lacks; None before the journal was replayed."""
        return self._feed.news(self.state(now_ms), seen) if self._life_ms > 0 else None

    def step(self, event: Any, now_ms: int) -> tuple[Effect, ...]:
        """Take one event; unknown messages change nothing, and a sign of life is nothing else."""
        if isinstance(event, Received) and self._memory.hear(event.message, event.sender, now_ms):
            return ()
        effects = self._stepped(event, now_ms)
        self._memory.note_modes(self._modes.overrides)
        self._memory.note_approvals(self._approvals.known, self._approvals.answers, now_ms)
        return effects

    def _stepped(self, event: Any, now_ms: int) -> tuple[Effect, ...]:
        if isinstance(event, Started):
            return self._on_started(event, now_ms)
        if self._peers.concerns(event):
            effects = (*self._peers.step(event, self._memory, now_ms), *self._released(now_ms))
            return (*effects, *self._hasten(now_ms)) if self._peers.take_hurry(now_ms) else effects
        if self._modes.concerns(event):
            if isinstance(event, Recorded):
                self._memory.note_journal(event.record.seq)
            return (*self._modes.step(event, now_ms), *self._hasten(now_ms))
        if isinstance(event, TimerFired):
            return self._on_timer(event.ref, now_ms)
        if isinstance(event, Recorded):
            return self._on_recorded(event, now_ms)
        if isinstance(event, EffectFailed):
            return self._on_not_recorded(event, now_ms) if event.effect == "Record" else ()
        if isinstance(event, JournalRead):
            return self._on_journal_read(event, now_ms)
        if isinstance(event, Received):
            handler = self._handlers.get(type(event.message))
            return () if handler is None else handler(event.message, event.sender, now_ms)
        return ()

    # --- Journal ----------------------------------------------------------------------------------------------------

    def _on_journal_read(self, event: JournalRead, now_ms: int) -> tuple[Effect, ...]:
        reading, again = self._catching_up.read(event, now_ms)
        if reading.lost_after is not None:
            again += self._modes.read_again(reading.lost_after)
            again += self._pauses.read_again(reading.lost_after, self._memory)
        lost = self._memory.unheard(reading.records)
        effects = [e for x in lost for e in self._on_execution(ExecutionReport(execution=x), self.name, now_ms)]
        moded, resumed = self._modes.follow(reading.records), self._pauses.follow(reading.records, self._memory)
        return (*effects, *moded, *(self._hasten(now_ms) if moded or resumed else ()), *again)

    def _on_recorded(self, event: Recorded, now_ms: int) -> tuple[Effect, ...]:
        self._memory.note_journal(event.record.seq)
        if event.ref.startswith(REF_PREFIX):
            asked, effects = self._approvals.recorded(event.ref)
            return (*effects, *self._hasten(now_ms)) if asked else effects
        paused = self._pauses.recorded(event.ref, event.record)
        order = self._log.recorded(event.ref)
        return paused if order is None else (*paused, *self._send_order(order, now_ms))

    def _hindrance(self, order: Execute, now_ms: int) -> str | None:
        """Return what has come between since the decision: a peer, a pause, the end of the approval."""
        if holder := self._peers.holder_of(order.proposal, self._memory, now_ms):
            return f"`{holder}` holds what it touches"
        paused = f"all changes are paused: {self._memory.pause_reason}" if self._memory.paused else None
        return paused or self._approvals.missing(order.proposal, now_ms)

    def _send_order(self, order: Execute, now_ms: int) -> tuple[Effect, ...]:
        why = self._hindrance(order, now_ms)
        if why is not None:
            self._memory.note_not_handed_over(order.proposal)
            return held_back(order, now_ms, why, now_ms)
        return (*self._peers.announce(order, now_ms), *self._released(now_ms))

    def _released(self, now_ms: int) -> tuple[Effect, ...]:
        """Hand over what was announced, unless the look after that has found something."""
        effects: list[Effect] = []
        for passed in self._peers.take_passed():
            order = passed.order
            why = passed.trouble or self._hindrance(order, now_ms)
            if why:
                self._memory.note_not_handed_over(order.proposal)
                effects += held_back(order, passed.since_ms, why, now_ms)
                continue
            self._approvals.note_sent(order.proposal)
            effects.append(Send(to="actuator", message=order))
        return tuple(effects)

    def _hasten(self, now_ms: int) -> tuple[Effect, ...]:
        self._pace.rouse(now_ms)
        self._hurry = self._stage != "idle"
        return () if self._hurry else (SetTimer(ref="cycle", due_ms=now_ms),)

    def _on_not_recorded(self, event: EffectFailed, now_ms: int) -> tuple[Effect, ...]:
        self._memory.journal_trouble = event.reason
        if event.ref.startswith(REF_PREFIX):
            self._approvals.not_recorded(event.ref)
            return ()
        order = self._log.not_recorded(event.ref)
        if order is not None:
            self._memory.note_not_handed_over(order.proposal)
        return self._pauses.not_recorded(event.ref, now_ms)

    # --- Time -------------------------------------------------------------------------------------------------------

    def _on_started(self, event: Started, now_ms: int) -> tuple[Effect, ...]:
        self._memory.replay(event.records)
        self._life_ms = now_ms
        self._approvals.replay(event.records)
        self._pauses.replay(event.records)
        return (
            *self._modes.replay(event.records),
            *projection.register(now_ms),
            *self._peers.step(event, self._memory, now_ms),
            born(self.name, len(event.records), self._fleet.names),
            self._catching_up.begin(event.records, now_ms),
            SetTimer(ref="cycle", due_ms=now_ms + 500),
            self._next_beat(now_ms),
        )

    def _next_beat(self, now_ms: int) -> SetTimer:
        return SetTimer(ref="heartbeat", due_ms=now_ms + self._settings.agent_heartbeat_interval * 1000)

    def _on_timer(self, ref: str, now_ms: int) -> tuple[Effect, ...]:
        if ref == "cycle":
            return self._begin(now_ms) if self._stage == "idle" else ()
        if ref == CATCH_UP:
            return self._catching_up.ask(now_ms)
        if ref == "heartbeat":
            interval_ms = self._settings.agent_heartbeat_interval * 1000
            told = projection.heartbeat(now_ms, interval_ms, self._settings.blackboard_kept_ms, self._life)
            return (*told, self._next_beat(now_ms))
        if ref == f"deadline:{self._cycle}:{self._stage}":
            self._memory.lives.note_trouble(AGENT_OF_STAGE[self._stage], self._deadlines.missed(self._cycle))
            self._pace.rouse(now_ms)
            return self._end(now_ms)
        return self._pauses.again(ref)

    def _begin(self, now_ms: int) -> tuple[Effect, ...]:
        self._cycle += 1
        self._memory.journal_trouble = ""
        self._proposals, self._verdicts = {}, {}
        self._force = tuple(sorted({*self._force, *self._peers.begin_cycle(self._cycle, now_ms)}))
        return (
            *self._modes.tell(),
            *self._approvals.sweep(now_ms),
            Send(to="collector", message=ObserveFleet(cycle=self._cycle, services=self._modes.looked_at)),
            *self._enter("observing", now_ms),
        )

    def _enter(self, stage: str, now_ms: int) -> tuple[Effect, ...]:
        self._stage = stage
        return (SetTimer(ref=f"deadline:{self._cycle}:{stage}", due_ms=self._deadlines.begin(stage, now_ms)),)

    def _end(self, now_ms: int, pause_ms: int | None = None) -> tuple[Effect, ...]:
        self._deadlines.end(now_ms)
        if pause_ms is None:
            said = {p.service: self._log.gist(p.service) for p in self._proposals.values()}
            pause_ms = self._pace.pause_ms(self._snapshots, said, now_ms, busy=self._is_busy(now_ms))
        pause_ms = 0 if self._hurry else pause_ms
        self._stage, self._force, self._hurry = "idle", (), False
        told = self._peers.end_cycle(self._cycle, self._memory, now_ms)
        return (*told, SetTimer(ref="cycle", due_ms=now_ms + pause_ms))

    def _is_busy(self, now_ms: int) -> bool:
        """Whether the next cycle may find something else although no cache shows it: then it comes after the usual
        pause."""
        waits = self._hurry or self._force or self._approvals.open or any(map(self._memory.missing, self._fleet.names))
        return bool(waits or self._memory.anything_in_flight(now_ms) or self._peers.intents(now_ms))

    def _answers(self, message: Any, stage: str) -> bool:
        return (self._stage, self._cycle) == (stage, message.cycle) or self._deadlines.note_late(stage, message.cycle)

    # --- One cycle --------------------------------------------------------------------------------------------------

    def _on_observed(self, message: FleetObserved, _sender: str, now_ms: int) -> tuple[Effect, ...]:
        if not self._answers(message, "observing"):
            return ()
        self._snapshots = message.snapshots
        self._memory.note_snapshots(message.snapshots, message.missing, now_ms)
        busy = frozenset(name for name in self._fleet.names if self._memory.in_flight(name, now_ms))
        told = self._memory.watch.look(message.snapshots, busy, now_ms, self._peers.announced(now_ms))
        if self._memory.paused:
            why = f"paused: {self._memory.pause_reason}"
            self._memory.note_idle({s.service: why for s in message.snapshots}, now_ms)
        if self._memory.paused or not message.snapshots:
            return (*told, *self._end(now_ms))
        question = PlanFleet(
            cycle=self._cycle,
            snapshots=message.snapshots,
            history=self._memory.history(now_ms),
            memory_bytes=self._memory.reserved_memory_bytes(),
            budget_bytes=self._memory.budget_bytes,
            force=self._force,
            interval_factor=self._memory.score.interval_factor,
        )
        return (*told, Send(to="planner", message=question), *self._enter("planning", now_ms))

    def _on_planned(self, message: FleetPlanned, _sender: str, now_ms: int) -> tuple[Effect, ...]:
        if not self._answers(message, "planning"):
            return ()
        busy = frozenset(name for name in self._fleet.names if self._memory.in_flight(name, now_ms))
        proposals, ended = self._approvals.arrange(message.proposals, self._snapshots, busy, now_ms)
        placed = {p.service for p in proposals}
        self._memory.sizings.update(message.sizings)
        self._counterfactuals |= {x.service: x for x in message.counterfactuals}
        told = tuple(Send(to="actuator", message=x) for x in message.counterfactuals if x.service in busy)
        self._memory.note_idle({s: why for s, why in message.idle_reasons.items() if s not in placed}, now_ms)
        if not proposals:
            return (*told, *ended, *self._end(now_ms))
        self._proposals = {p.proposal_id: p for p in proposals}
        # All snapshots, not only those of the services concerned: budget and blast radius are the fleet's.
        question = Judge(
            cycle=self._cycle,
            proposals=proposals,
            snapshots=tuple(s.light() for s in self._snapshots),
            budget_bytes=self._memory.budget_bytes,
        )
        return (*told, *ended, Send(to="validator", message=question), *self._enter("judging", now_ms))

    def _on_judged(self, message: Judged, _sender: str, now_ms: int) -> tuple[Effect, ...]:
        if not self._answers(message, "judging"):
            return ()
        self._verdicts = {v.proposal_id: v for v in message.verdicts if v.proposal_id in self._proposals}
        self._memory.note_verdicts(self._proposals, self._verdicts)
        told = self._peers.meet(self._proposals.values(), self._verdicts, self._memory, now_ms)
        question = Settle(
            cycle=self._cycle,
            proposals=tuple(self._proposals.values()),
            verdicts=tuple(self._verdicts.values()),
            history=self._memory.history(now_ms),
            memory_bytes=self._memory.reserved_memory_bytes(),
            intents=self._peers.intents(now_ms),
            budget_bytes=self._memory.budget_bytes,
            force=tuple(sorted({*self._force, *self._approvals.in_haste()})),
            approvals=self._approvals.open,
            rests=self._approvals.rests(now_ms),
            kept=self._memory.kept,
        )
        return (*told, Send(to="consensus", message=question), *self._enter("settling", now_ms))

    def _on_settled(self, message: Settled, _sender: str, now_ms: int) -> tuple[Effect, ...]:
        if not self._answers(message, "settling"):
            return ()
        effects: list[Effect] = []
        for resolution in message.resolutions:
            proposal = self._proposals.get(resolution.proposal_id)
            verdict = self._verdicts.get(resolution.proposal_id)
            if proposal is None or verdict is None:
                continue
            self._memory.note_standing(decision_of(proposal, verdict, resolution, now_ms))
            order = None
            consented = self._approvals.missing(proposal, now_ms) is None
            if resolution.outcome is ResolutionOutcome.GO and not self._memory.paused and consented:
                order = self._order(proposal, verdict, resolution)
            effects += self._log.tell(proposal, verdict, resolution, order, now_ms)
            if resolution.awaits_approval:
                effects += self._approvals.request(proposal, now_ms)
        return (*effects, *self._end(now_ms))

    def _order(self, proposal: Proposal, verdict: Verdict, resolution: Resolution) -> Execute:
        """Return the order, from now on remembered as handed over, so that the service counts as busy."""
        twin = self._fleet.service(proposal.service).twin
        told, approval = self._counterfactuals.get(proposal.service), self._approvals.of(proposal)
        order = order_of(self._memory, twin, proposal, verdict, resolution, approval, told)
        self._memory.note_handed_over(proposal)
        return order

    # --- Everything else --------------------------------------------------------------------------------------------

    def _on_execution(self, message: ExecutionReport, _sender: str, now_ms: int) -> tuple[Effect, ...]:
        execution: Execution = message.execution
        before = self._memory.execution(execution.proposal.proposal_id)
        self._memory.note_execution(execution, now_ms)
        self._approvals.note_execution(execution)
        verdict = self._memory.verdict(execution.proposal)
        effects: list[Effect] = list(projection.execution_changed(before, execution, now_ms, verdict))
        effects += self._peers.note_execution(execution, self._memory, now_ms)
        if execution.state.final:
            self._log.forget(execution.proposal.service)
            self._pace.rouse(now_ms, changed=True)
            if self._stage == "idle" and execution.state is not ExecutionState.ABANDONED:
                effects += self._end(now_ms, pause_ms=_AFTER_CHANGE_MS)
        return tuple(effects)

    def _on_run_cycle(self, message: RunCycle, _sender: str, now_ms: int) -> tuple[Effect, ...]:
        self._pace.rouse(now_ms)
        self._force = tuple(sorted({*self._force, *message.force}))
        return self._begin(now_ms) if self._stage == "idle" else ()

    def _on_execute(self, message: Execute, sender: str, now_ms: int) -> tuple[Effect, ...]:
        # From the API, which has recorded its decision: the same hand-over as after a cycle, so that history and
        # budgets see it.
        if self._memory.paused or self._memory.in_flight(message.proposal.service) or sender == self.name:
            return ()
        self._memory.note_standing(decision_of(message.proposal, message.verdict, message.resolution, now_ms))
        return self._send_order(self._order(message.proposal, message.verdict, message.resolution), now_ms)

    def _on_submit(self, message: SubmitProposal, _sender: str, now_ms: int) -> tuple[Effect, ...]:
        subject = message.proposal or message.takes_back
        busy = None if subject is None else self._memory.in_flight(subject.service, now_ms)
        return self._approvals.submit(message, busy, now_ms)

    def _on_set_paused(self, message: SetPaused, _sender: str, now_ms: int) -> tuple[Effect, ...]:
        effects = self._pauses.order(message, self._memory, now_ms)
        at_once = not message.paused and self._stage == "idle"
        return (*effects, SetTimer(ref="cycle", due_ms=now_ms)) if at_once else effects

    def _on_chain_checked(self, message: ChainChecked, _sender: str, now_ms: int) -> tuple[Effect, ...]:
        return (*self._peers.note_chain(message, now_ms), *self._pauses.heed(message, self._memory, now_ms))
