"""The Actuator: carries out judged and agreed changes safely, checks that they helped, and takes them back if they
did not.

It decides how to change a cache, and when to keep or take back; never whether a change is a good idea. It acts only
on a verdict that allows exactly this proposal, a resolution to go, a lease with a fencing token, and a durable record
of the intention. Several services may be changed at once, each by one change at a time; a kept TTL rule goes on
beside later changes.

After a crash a new instance is told by the journal what was under way, and finishes it or takes it back before
anything else happens to that cache. So it is with a change whose lease was somebody else's meanwhile: it is let go of
and left to whoever holds the cache; taken up again only under a new lease, by what the journal says then (`standby`).
`holder` must be unique per life, so that the lease of a life that still lingers cannot be mistaken for ours.

INVARIANT: at most one change per service is between its lease and its end.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from agents import execution
from agents.admission import refusal_of
from agents.execution_run import Run
from agents.execution_table import BEFORE_STEPS, Phase
from agents.growth_gate import GROWTH_REF, Admitted, GrowthGate, grows, sizes_of
from agents.lease_queue import LeaseQueue
from agents.recovery import REPLAY_KINDS, Unfinished, read_journal
from agents.replay_watch import newer_of
from agents.standby import GROWTH, LEAD_REF, STANDBY_REF, Endings, Leads, Standby
from cachewarden.counterfactual import Counterfactual
from cachewarden.fleet import Fleet
from cachewarden.machine import (
    Effect,
    EffectFailed,
    JournalRead,
    LeaseGranted,
    Received,
    Record,
    Recorded,
    ReleaseLease,
    Send,
    SetTimer,
    Started,
    TimerFired,
)
from cachewarden.messages import Execution, ExecutionState, Intent, Lease, RecordKind
from cachewarden.modes import acts, modes_of, with_modes
from cachewarden.pausing import PAUSE_KINDS, OrdersOfPause
from cachewarden.protocol import CancelExecution, Execute, ExecutionReport, ModesChanged, PauseUnread, SetPaused
from cachewarden.settings import CacheOptimizerSettings

__all__ = ["Actuator"]

_FINISHED_KEPT = 500
_TELL_AGAIN_MS = 60_000
_REST_MS = 5_000
_NOT_YET = (ExecutionState.LEASING, ExecutionState.CHECKING)
"""Before the intention of a change is durable."""


class Actuator:
    """Machine of all executions; see `agents/execution_table.py` for the states and the table."""

    replay_kinds = (*REPLAY_KINDS, RecordKind.MODE_CHANGED.value)

    def __init__(self, name: str = "actuator", *, holder: str, settings: CacheOptimizerSettings, fleet: Fleet) -> None:
        self.name = name
        self.holder = holder
        self._settings = settings
        self._filed = self._fleet = fleet
        self._held: dict[str, Unfinished] = {}
        """Changes that an earlier life left, of services that may not be written to now."""
        self._paused = False
        self._pauses = OrdersOfPause()
        self._killed = 0, ""
        """What began before that moment is taken back, and why."""
        self._runs: dict[str, Run] = {}
        self._finished: dict[str, Execution] = {}
        self._passed_on: dict[str, Execution] = {}
        """Changes that were ours and are another's now, as we last knew them."""
        self._lease_queue = LeaseQueue()
        self._growth = GrowthGate(settings, fleet)
        self._growing: Run | None = None
        """The change under whose intention the budget is held."""
        self._endings = Endings()
        self._standby = Standby(
            settings.lease_ttl_ms,
            fleet.names,
            self._is_working,
            self._is_running,
            self._endings.ended_ms,
            self._is_closed,
        )
        self._leads = Leads(settings.lead_ms, self._holds)

    def step(self, event: Any, now_ms: int) -> tuple[Effect, ...]:
        """Take one event and return what to do. Raises InvariantViolation for an event that nothing asked for."""
        effects = self._stepped(event, now_ms)
        follow = self._lease_queue.answered(event)
        return (*follow, *self._lease_queue.admit((*effects, *self._let_next_grow())))

    def _stepped(self, event: Any, now_ms: int) -> tuple[Effect, ...]:
        if isinstance(event, Started):
            return self._on_started(event, now_ms)
        if isinstance(event, Received):
            return self._on_message(event.message, now_ms)
        if isinstance(event, Recorded):
            self._endings.note(event.record, now_ms)
        if event.ref.startswith(STANDBY_REF):
            return self._on_standby(event, now_ms)
        if event.ref.startswith(LEAD_REF):
            if self._silent(event.ref.removeprefix(LEAD_REF)):
                self._leads.forget(event.ref.removeprefix(LEAD_REF))
            return self._unneeded(self._leads.step(event, now_ms))
        if event.ref.startswith(GROWTH_REF):
            effects, admitted = self._growth.step(event, now_ms)
            read = (self._standby.look(GROWTH),) if isinstance(event, LeaseGranted) and self._growth.reading else ()
            return (*effects, *read, *self._admit(admitted, now_ms))
        run = self._runs.get(event.ref.rpartition("#")[0])
        if run is None:
            return self._on_stray(event)
        if run.governed and isinstance(event, TimerFired) and self._silent(run.service):
            # Neither pass nor renewal: the rule rests, and goes on where the mode permits it again.
            return (SetTimer(ref=event.ref, due_ms=now_ms + _REST_MS),)
        if run.lost_by(event):
            if run.intended:
                return self._pass_on(run, now_ms)
            # Nothing of it is in the journal yet: nobody else can know it, and nothing was written.
            stopped = execution.cancel(run, "the cache was somebody else's meanwhile", now_ms, superseded=True)
            return self._settle(run, (*stopped, *execution.step(run, event, now_ms)), now_ms)
        if isinstance(event, LeaseGranted) and run.phase is Phase.LEASING and run.resumed is None:
            # Whoever began it has lost the lease, and nobody has ended it yet: first that, then something new.
            unended = self._standby.unended(run.service)
            if unended is not None:
                execution.cancel(run, f"`{unended}` on this cache has not ended yet", now_ms)
        return self._settle(run, execution.step(run, event, now_ms), now_ms)

    def intents(self, now_ms: int) -> tuple[Intent, ...]:
        """Return what is in flight or stands, as others have to respect it."""
        found: list[Intent] = []
        for run in self._runs.values():
            for change in () if run.governed else run.proposal.knob_changes:
                numeric = change.before.isdigit() and change.after.isdigit()
                amount = int(change.after) - int(change.before) if numeric else 0
                found.append(self._intent(run, change.knob, amount, now_ms))
                if change.knob == "maxmemory" and amount > 0:
                    found.append(self._intent(run, "budget", amount, now_ms))
            found += [self._intent(run, f"ttl:{rule.pattern}", 1, now_ms, amount=0) for rule in run.proposal.ttl_rules]
        return tuple(found)

    def _intent(self, run: Run, resource: str, signed: int, now_ms: int, amount: int | None = None) -> Intent:
        return Intent(
            holder=self.holder,
            service=run.service,
            resource=resource,
            direction=(signed > 0) - (signed < 0),
            amount=abs(signed) if amount is None else amount,
            until_ms=now_ms + self._settings.observation_window_ms * self._settings.observation_windows_max,
        )

    # --- Life -------------------------------------------------------------------------------------------------------

    def _on_started(self, event: Started, now_ms: int) -> tuple[Effect, ...]:
        found = read_journal(event.records)
        self._paused = found.paused
        for record in event.records:
            if record.kind in PAUSE_KINDS:
                self._pauses.counts(record)
            self._endings.note(record, record.at_ms)
        self._fleet = with_modes(self._filed, modes_of(event.records, self._filed))
        effects: list[Effect] = [self._standby.start(event.records, now_ms)]
        for change in found.finished:
            self._remember(change.execution)
            if now_ms - change.updated_ms < _TELL_AGAIN_MS:
                # The ending is in the journal, but the life that wrote it may not have lived to tell it.
                effects.append(Send(to="coordinator", message=ExecutionReport(execution=change.execution)))
        for change in (*found.unfinished, *found.standing):
            if self._silent(change.proposal.service):
                self._held[change.execution_id] = change
                continue
            run, first = execution.resume(change, self._settings, now_ms, self._fleet.find(change.proposal.service))
            self._runs[run.key] = run
            effects += first
        for key in sorted(found.unreadable):
            service, why = found.unreadable[key]
            reason = f"its intention cannot be read by this version ({why}), look at the cache before changing it again"
            payload = {"execution_id": key, "reason": reason}
            effects.append(
                Record(kind=RecordKind.ROLLBACK_FAILED.value, service=service, subject_id=key, payload=payload)
            )
        return tuple(effects)

    def _on_message(self, message: Any, now_ms: int) -> tuple[Effect, ...]:
        if isinstance(message, Execute):
            return self._on_execute(message, now_ms)
        if isinstance(message, CancelExecution):
            return self._on_cancel(
                message.service,
                message.reason,
                now_ms,
                message.proposal_id,
                in_flight_only=message.in_flight_only,
            )
        if isinstance(message, Counterfactual):
            for run in self._runs.values():
                if (run.service, run.proposal.proposal_id) == (message.service, message.proposal_id):
                    run.counterfactual = newer_of(run.promise.baseline, run.counterfactual, message)
            return ()
        if isinstance(message, ModesChanged):
            return self._on_modes(message, now_ms)
        if isinstance(message, SetPaused):
            if not self._pauses.tell(message):
                return ()
            self._paused = message.paused
            if message.paused and message.kill:
                self._killed = now_ms, f"kill switch, pulled by `{message.by}`: {message.reason}"
                return self._on_cancel("*", self._killed[1], now_ms)
        return ()

    def _on_modes(self, message: ModesChanged, now_ms: int) -> tuple[Effect, ...]:
        self._fleet = with_modes(self._filed, message.modes)
        effects: list[Effect] = []
        # Told again in each cycle, so a lost order to stop is made up for here.
        for service in sorted({r.service for r in self._runs.values() if not r.governed and self._silent(r.service)}):
            why = "the mode of the service permits no writes any more"
            effects += self._on_cancel(service, why, now_ms, in_flight_only=True)
        freed = [key for key, change in self._held.items() if not self._silent(change.proposal.service)]
        for key in freed:
            del self._held[key]
        # Another deployment may have ended it meanwhile: it is taken up under a new lease, by the journal of then.
        return (*effects, self._standby.look()) if freed else tuple(effects)

    def _silent(self, service: str) -> bool:
        """Whether the mode of a service forbids that its cache is written to."""
        return not acts(self._fleet, service)

    def _is_closed(self, service: str) -> bool:
        return self._is_busy(service) or self._silent(service)

    def _on_execute(self, order: Execute, now_ms: int) -> tuple[Effect, ...]:
        known = self._known(order.proposal.proposal_id, now_ms)
        if known is not None:
            # The same order again, e.g. repeated by whoever lost the first answer: it is not carried out twice.
            if known.state in _NOT_YET:
                # Nothing is told before the intention is in the journal: nobody could ever end it.
                return ()
            return (Send(to="coordinator", message=ExecutionReport(execution=known)),)
        if any(o.proposal.proposal_id == order.proposal.proposal_id for o in self._growth.orders):
            return ()
        refusal = self._refusal(order, now_ms)
        if refusal is None and grows(order.proposal):
            return self._growth.take(order)
        return self._begin(Admitted(order=order, refusal=refusal), now_ms)

    def _refusal(self, order: Execute, now_ms: int) -> str | None:
        if self._paused:
            return "paused, nothing is changed until it is resumed"
        busy = next((r for r in self._runs.values() if r.service == order.proposal.service and not r.governed), None)
        if busy is not None:
            return f"`{order.proposal.service}` is busy with `{busy.proposal.proposal_id}`"
        return refusal_of(order, self._fleet, self._settings, now_ms)

    def _begin(self, admitted: Admitted, now_ms: int) -> tuple[Effect, ...]:
        wishes = self._fleet.find(admitted.order.proposal.service)
        run, effects = execution.begin(admitted.order, self._settings, now_ms, admitted.refusal, wishes)
        if admitted.lease is not None:
            run.intent_fences = ((admitted.lease.service, admitted.lease.epoch),)
            self._growing = run
        self._runs[run.key] = run
        return effects

    # --- Growth -----------------------------------------------------------------------------------------------------

    def _admit(self, admitted: Admitted | None, now_ms: int) -> tuple[Effect, ...]:
        """Begin, or write down the refusal of, an order that has come through the gate for growth."""
        if admitted is None:
            return ()
        refusal = admitted.refusal or self._refusal(admitted.order, now_ms)
        effects = self._begin(replace(admitted, refusal=refusal), now_ms)
        return (*effects, *self._growth.done()) if admitted.lease is None else effects

    def _let_next_grow(self) -> tuple[Effect, ...]:
        """Give the budget to the next one once the intention of the last is durable, or never will be."""
        run = self._growing
        if run is None or (run.key in self._runs and run.phase in BEFORE_STEPS):
            return ()
        self._growing = None
        return self._growth.done()

    # --- Stopping ---------------------------------------------------------------------------------------------------

    def _on_cancel(
        self,
        service: str,
        reason: str,
        now_ms: int,
        proposal_id: str | None = None,
        begun_before_ms: int | None = None,
        in_flight_only: bool = False,
    ) -> tuple[Effect, ...]:
        effects: list[Effect] = []
        if begun_before_ms is None:
            self._growth.cancel(service, proposal_id, reason)
        for run in list(self._runs.values()):
            if begun_before_ms is not None and run.started_ms >= begun_before_ms:
                continue
            if in_flight_only and run.governed:
                continue
            if service in ("*", run.service) and proposal_id in (None, run.proposal.proposal_id):
                effects += self._settle(run, execution.cancel(run, reason, now_ms), now_ms)
        return tuple(effects)

    def _on_stray(self, event: Any) -> tuple[Effect, ...]:
        # A renewal that was granted after its change had ended would keep the cache closed to others until it expires.
        if isinstance(event, LeaseGranted) and not self._holds(event.lease.service):
            if self._leads.leads(event.lease) or self._lease_queue.waits(event.lease.service):
                return ()
            return (ReleaseLease(lease=event.lease),)
        return ()

    def _on_standby(self, event: Any, now_ms: int) -> tuple[Effect, ...]:
        turn = self._standby.step(event, now_ms)
        effects = list(self._unneeded(turn.effects, leading=True))
        if turn.through:
            effects += self._admit(self._growth.judge(sizes_of(self._standby.lately(now_ms))), now_ms)
        elif isinstance(event, EffectFailed) and event.ref == f"{STANDBY_REF}{GROWTH}":
            again, admitted = self._growth.failed(event.reason, now_ms)
            effects += (*again, *self._admit(admitted, now_ms))
        if turn.lost_after is not None:
            self._pauses.read_again(turn.lost_after)
        pauses = tuple(record for record in turn.pauses if self._pauses.counts(record))
        for number, record in enumerate(pauses):
            # Of whichever deployment: a pause stops all optimizers of the fleet. In their order, since what was killed
            # stays killed although all was resumed before we read of it.
            self._paused = record.kind == RecordKind.PAUSED.value
            if self._paused and record.payload.get("kill"):
                later = pauses[number + 1 :]
                resumed_ms = next((r.at_ms for r in later if r.kind == RecordKind.RESUMED.value), None)
                why = f"kill switch: {record.payload.get('reason', '')}"
                self._killed = now_ms if resumed_ms is None else resumed_ms, why
                effects += self._on_cancel("*", why, now_ms, begun_before_ms=resumed_ms)
        ending = self._endings.again(turn)
        if ending is not None:
            effects += self._unneeded(ending, leading=True)
        elif turn.adopt is not None and not self._silent(turn.adopt.proposal.service):
            wishes = self._fleet.find(turn.adopt.proposal.service)
            run, first = execution.resume(turn.adopt, self._settings, now_ms, wishes)
            self._runs[run.key] = run
            effects += first
            if run.started_ms < self._killed[0] and not run.governed:
                # It was nobody's when all was killed, and is taken back as what was under way then.
                effects += self._settle(run, execution.cancel(run, self._killed[1], now_ms), now_ms)
        if isinstance(event, JournalRead) and (order := self._pauses.unread) is not None:
            effects.append(Send(to="coordinator", message=PauseUnread(order=order)))
        return tuple(effects)

    def _pass_on(self, run: Run, now_ms: int) -> tuple[Effect, ...]:
        """Let go of a change whose cache is, or was meanwhile, somebody else's: he may have ended it.

        Nothing is written or recorded of it any more by this run: what it has sent is stopped by the fence in the
        cache and by that of the journal. Whoever gets the lease next goes by the journal, and that may be us.
        """
        del self._runs[run.key]
        self._lease_queue.forget(run.key)
        self._finished.pop(run.proposal.proposal_id, None)
        self._endings.forget(run.execution_id)
        if run.state not in _NOT_YET:
            self._passed_on[run.proposal.proposal_id] = run.execution(now_ms)
        while len(self._passed_on) > _FINISHED_KEPT:
            self._passed_on.pop(next(iter(self._passed_on)))
        return (self._standby.look(),)

    # --- Bookkeeping ------------------------------------------------------------------------------------------------

    def _settle(self, run: Run, effects: tuple[Effect, ...], now_ms: int) -> tuple[Effect, ...]:
        """Forget what is done, and let go of a lease only if no other change or rule on this cache needs it."""
        if run.governed or run.phase is Phase.DONE:
            self._remember(run.execution(now_ms))
        if run.governed:
            self._displace(run)
        if run.phase is Phase.DONE:
            self._runs.pop(run.key, None)
        if self._holds(run.service):
            return tuple(e for e in effects if not isinstance(e, ReleaseLease))
        if run.state in (ExecutionState.KEPT, ExecutionState.ROLLED_BACK):
            return tuple(self._leads.keep(e) if isinstance(e, ReleaseLease) else e for e in effects)
        return effects

    def _unneeded(self, effects: tuple[Effect, ...], leading: bool = False) -> tuple[Effect, ...]:
        """Leave out the release of a lease that a run, or with `leading` our leading, still needs."""

        def needed(lease: Lease) -> bool:
            return self._holds(lease.service) or (leading and self._leads.leads(lease))

        return tuple(e for e in effects if not (isinstance(e, ReleaseLease) and needed(e.lease)))

    def _holds(self, service: str) -> bool:
        return any(
            r.service == service and (r.lease is not None or r.phase is Phase.LEASING) for r in self._runs.values()
        )

    def _is_working(self, execution_id: str) -> bool:
        return any(run.execution_id == execution_id and not run.governed for run in self._runs.values())

    def _is_running(self, execution_id: str) -> bool:
        return any(run.execution_id == execution_id for run in self._runs.values())

    def _is_busy(self, service: str) -> bool:
        return any(r.service == service and not r.governed for r in self._runs.values())

    def _displace(self, newer: Run) -> None:
        """A newly kept rule takes the place of an older one for the same pattern, as `recovery` reads it from the
        journal too."""
        patterns = {r.rule.pattern for r in newer.rules}
        for run in list(self._runs.values()):
            if run is newer or not run.governed or run.service != newer.service or run.started_ms > newer.started_ms:
                continue
            for rounds in run.rules:
                rounds.retired = rounds.retired or rounds.rule.pattern in patterns
            if all(r.retired for r in run.rules):
                self._runs.pop(run.key)

    def _known(self, proposal_id: str, now_ms: int) -> Execution | None:
        for run in self._runs.values():
            if run.proposal.proposal_id == proposal_id:
                return run.execution(now_ms)
        return self._finished.get(proposal_id) or self._passed_on.get(proposal_id)

    def _remember(self, done: Execution) -> None:
        # A refusal changed nothing and may be asked for again under another circumstance, e.g. once the service is
        # free.
        if done.state is ExecutionState.ABANDONED and done.steps == 0:
            return
        self._finished.pop(done.proposal.proposal_id, None)
        self._finished[done.proposal.proposal_id] = done
        while len(self._finished) > _FINISHED_KEPT:
            self._finished.pop(next(iter(self._finished)))
