"""Bugs that somebody could make, each as a patch, and the promise that it must be seen to break.

A checker that never fails proves nothing. `test_mutants.py` plants them one by one; the simulation has to find each
within the stated number of seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import agents.actuator
import agents.admission
import agents.ballot_box
import agents.execution
import agents.execution_checking
import agents.execution_observing
import agents.execution_rollback
import agents.execution_run
import agents.execution_stepping
import agents.obstacles
import agents.recovery
import agents.standby
import cachewarden.chain
import coordination.cycle
import coordination.projection
from agents.execution_table import Phase
from agents.recovery import Found, NextMove
from cachewarden.errors import JournalUnavailable
from cachewarden.machine import EffectFailed, Recorded, Send
from cachewarden.messages import ExecutionState, RecordKind
from coordination.catching_up import CatchingUp
from coordination.cycle import Coordinator
from simulation.fake_leases import FakeLeaseStore
from simulation.model_cache import ModelCache

Patch = Callable[[Any], None]


@dataclass(frozen=True)
class Mutant:
    """A planted bug: `promises` one of which must break, in `scenario` under `mix`, within `seeds` seeds."""

    name: str
    patch: Patch
    promises: tuple[str, ...]
    scenario: str = "default"
    mix: str | None = None
    seeds: int = 5


def _no_table(monkeypatch):
    # The table of the machine would stop these bugs before they do harm; the point is that the checkers see the harm.
    monkeypatch.setattr(agents.execution, "check_arrival", lambda *_, **__: None)
    monkeypatch.setattr(agents.execution, "check_event", lambda *_: None)
    monkeypatch.setattr(agents.execution_run, "check_event", lambda *_: None)


def fence_is_ignored(monkeypatch):
    monkeypatch.setattr(ModelCache, "_check_fence", lambda self, lease: None)
    monkeypatch.setattr(ModelCache, "require_watched", lambda self, lease, seen: None)
    # Whoever thinks that a lease never runs out writes whenever it wakes up.
    monkeypatch.setattr(agents.execution_run.Run, "distrust_lease", lambda self: None)
    note_lease = agents.execution_run.Run.note_lease

    def for_ever(self, lease, asked_ms):
        note_lease(self, lease, asked_ms)
        self.lease_until_ms = asked_ms + 10**9

    monkeypatch.setattr(agents.execution_run.Run, "note_lease", for_ever)


def write_before_its_record(monkeypatch):
    _no_table(monkeypatch)
    stepping = agents.execution_stepping

    def next_step(run, now_ms):
        run.tries = run.writes_tried = run.refences = 0
        if run.step >= len(run.steps):
            return stepping.begin_observing(run, now_ms)
        return stepping._do(run, stepping._effect_of(run, run.steps[run.step], now_ms), now_ms)

    monkeypatch.setattr(stepping, "next_step", next_step)
    monkeypatch.setattr(agents.execution_checking, "next_step", next_step)


def unfinished_changes_are_forgotten(monkeypatch):
    read = agents.recovery.read_journal

    def forgetful(records):
        found = read(records)
        return Found(finished=found.finished, standing=found.standing, paused=found.paused)

    # Who stands by would take up what the actuator forgets.
    monkeypatch.setattr(agents.actuator, "read_journal", forgetful)
    monkeypatch.setattr(agents.standby, "read_journal", forgetful)


def what_crashed_in_the_middle_is_left_so(monkeypatch):
    decide = agents.execution.decide

    def lazy(change, values):
        move, reason = decide(change, values)
        return (NextMove.ABANDON if move is NextMove.TAKE_BACK else move), reason

    monkeypatch.setattr(agents.execution, "decide", lazy)


def any_order_is_admitted(monkeypatch):
    monkeypatch.setattr(agents.actuator, "refusal_of", lambda *_: None)


def order_leaves_before_the_journal(monkeypatch):
    order_of = Coordinator._order

    def early(self, proposal, verdict, resolution):
        order = order_of(self, proposal, verdict, resolution)
        self._early = (*getattr(self, "_early", ()), Send(to="actuator", message=order))
        return order

    settled = Coordinator._on_settled

    def on_settled(self, message, sender, now_ms):
        self._early = ()
        effects = settled(self, message, sender, now_ms)
        return (*self._early, *effects)

    monkeypatch.setattr(Coordinator, "_order", early)
    monkeypatch.setattr(Coordinator, "_on_settled", on_settled)


def kept_without_a_window(monkeypatch):
    _no_table(monkeypatch)

    def keep(run, now_ms):
        payload = {"knobs": dict(run.current)}
        return agents.execution_rollback.end(run, ExecutionState.KEPT, RecordKind.CHANGE_KEPT, "surely good", payload)

    monkeypatch.setattr(agents.execution_stepping, "begin_observing", keep)


def nothing_is_damped(monkeypatch):
    monkeypatch.setattr(agents.obstacles, "damping_ms", lambda times: 0)


def epoch_stays_when_the_lease_changes_hands(monkeypatch):
    acquire = FakeLeaseStore.acquire

    async def same_epoch(self, service, holder, ttl_ms):
        known = self._epochs.get(service)
        lease = await acquire(self, service, holder, ttl_ms)
        if lease is None or known is None:
            return lease
        self._epochs[service] = known
        self._leases[service] = replace(lease, epoch=known)
        return self._leases[service]

    monkeypatch.setattr(FakeLeaseStore, "acquire", same_epoch)


def lease_is_given_to_everybody(monkeypatch):
    acquire = FakeLeaseStore.acquire

    async def generous(self, service, holder, ttl_ms):
        present = self._leases.get(service)
        if present is not None and present.holder != holder:
            return replace(present, holder=holder)
        return await acquire(self, service, holder, ttl_ms)

    monkeypatch.setattr(FakeLeaseStore, "acquire", generous)


def chain_link_is_broken(monkeypatch):
    seal = cachewarden.chain.seal_all

    def sloppy(drafts, seq, prev_hash):
        return seal(drafts, seq, cachewarden.chain.GENESIS_HASH if seq % 17 == 0 else prev_hash)

    monkeypatch.setattr(cachewarden.chain, "seal_all", sloppy)


def lost_reports_stay_lost(monkeypatch):
    monkeypatch.setattr(CatchingUp, "ask", lambda self, now_ms: ())


def a_stage_has_no_deadline(monkeypatch):
    def enter(self, stage, now_ms):
        self._stage = stage
        return ()

    monkeypatch.setattr(Coordinator, "_enter", enter)


def failed_record_counts_as_durable(monkeypatch):
    _no_table(monkeypatch)
    step = agents.execution.step

    def trusting(run, event, now_ms):
        if (
            isinstance(event, EffectFailed)
            and event.kind == JournalUnavailable.__name__
            and run.phase is Phase.STEP_INTENDING
        ):
            event = Recorded(ref=event.ref, record=None)
        return step(run, event, now_ms)

    monkeypatch.setattr(agents.execution, "step", trusting)


def unknown_outcome_counts_as_not_done(monkeypatch):
    failed = agents.execution_stepping._work_failed

    def hasty(run, event, now_ms):
        if event.outcome_unknown:
            return agents.execution_rollback.abandon(run, "the write failed; nothing had been applied")
        return failed(run, event, now_ms)

    monkeypatch.setattr(agents.execution_stepping, "_work_failed", hasty)
    _no_table(monkeypatch)


def rollback_writes_nothing(monkeypatch):
    monkeypatch.setattr(agents.execution_rollback, "steps_back", lambda *_, **__: ())


def pause_is_not_heeded(monkeypatch):
    monkeypatch.setattr(coordination.cycle.FleetMemory, "note_pause", lambda self, reason, *, paused: None)
    take = agents.actuator.Actuator._on_message

    def on_message(self, message, now_ms):
        effects = take(self, message, now_ms)
        self._paused = False
        return effects

    monkeypatch.setattr(agents.actuator.Actuator, "_on_message", on_message)


def read_back_is_not_compared(monkeypatch):
    def believe(run, values):
        changes = run.steps[run.step].changes
        run.current.update({c.knob: c.after for c in changes})
        return agents.execution_stepping._applied(run, {"values": {c.knob: c.after for c in changes}})

    def on_reading_back(run, event, now_ms):
        return believe(run, {}) if hasattr(event, "values") else original(run, event, now_ms)

    original = agents.execution_stepping.on_reading_back
    handlers = {**agents.execution._HANDLERS, Phase.READING_BACK: on_reading_back}
    monkeypatch.setattr(agents.execution, "_HANDLERS", handlers)
    monkeypatch.setattr(agents.execution_observing, "_somebody_else", lambda run, seen: None)


def no_sign_of_life_on_the_blackboard(monkeypatch):
    monkeypatch.setattr(coordination.projection, "heartbeat", lambda *_: ())


def consent_is_not_needed(monkeypatch):
    import agents.settlement
    import coordination.approvals

    for module in (agents.settlement, agents.admission, coordination.approvals):
        monkeypatch.setattr(module, "needs_approval", lambda *_: False)


def votes_in_our_name_count(monkeypatch):
    monkeypatch.setattr(agents.ballot_box, "is_own", lambda voter_id: False)


def a_writer_that_was_fenced_off_goes_on(monkeypatch):
    monkeypatch.setattr(agents.execution_run.Run, "lost_by", lambda self, event: False)
    monkeypatch.setattr(FakeLeaseStore, "epoch_of", lambda self, service: 0)


def growth_asks_nobody(monkeypatch):
    monkeypatch.setattr(agents.actuator, "grows", lambda proposal: False)


TWO = "two-optimizers-on-the-same-caches"
EVICTED = "fence-evicted-between-the-steps"
MUTANTS = (
    Mutant("fence_is_ignored", fence_is_ignored, ("single-writer",), EVICTED),
    Mutant("write_before_its_record", write_before_its_record, ("write-ahead",), "two-caches-on-a-calm-day", seeds=1),
    Mutant("unfinished_changes_are_forgotten", unfinished_changes_are_forgotten, ("endings",), mix="crashes"),
    Mutant("what_crashed_in_the_middle_is_left_so", what_crashed_in_the_middle_is_left_so, ("outcomes",), "actuator-dies-between-the-steps"),
    Mutant("any_order_is_admitted", any_order_is_admitted, ("lawful",)),
    Mutant("order_leaves_before_the_journal", order_leaves_before_the_journal, ("lawful", "expectations"), "coordinator-cut-off-from-the-journal", seeds=2),
    Mutant("kept_without_a_window", kept_without_a_window, ("measured",), "two-caches-on-a-calm-day", seeds=1),
    Mutant("nothing_is_damped", nothing_is_damped, ("flapping",), mix="people", seeds=10),
    Mutant("epoch_stays_when_the_lease_changes_hands", epoch_stays_when_the_lease_changes_hands, ("single-writer",), mix="crashes"),
    Mutant("lease_is_given_to_everybody", lease_is_given_to_everybody, ("single-writer",), TWO),
    Mutant("chain_link_is_broken", chain_link_is_broken, ("chain",), "two-caches-on-a-calm-day", seeds=1),
    Mutant("lost_reports_stay_lost", lost_reports_stay_lost, ("convergence", "liveness"), mix="network", seeds=40),
    Mutant("a_stage_has_no_deadline", a_stage_has_no_deadline, ("liveness",), mix="network"),
    Mutant("failed_record_counts_as_durable", failed_record_counts_as_durable, ("write-ahead",), "journal-gone-between-the-steps"),
    Mutant("unknown_outcome_counts_as_not_done", unknown_outcome_counts_as_not_done, ("outcomes",), "answers-lost-between-the-steps"),
    Mutant("rollback_writes_nothing", rollback_writes_nothing, ("outcomes",), mix="people"),
    Mutant("pause_is_not_heeded", pause_is_not_heeded, ("pauses",), mix="people"),
    Mutant("read_back_is_not_compared", read_back_is_not_compared, ("outcomes",), "answers-lost-between-the-steps"),
    Mutant("no_sign_of_life_on_the_blackboard", no_sign_of_life_on_the_blackboard, ("convergence",), "blackboard-lost-while-a-change-runs", seeds=1),
    Mutant("votes_in_our_name_count", votes_in_our_name_count, ("ballots",), "votes-of-honest-slow-and-forging-peers", seeds=2),
    Mutant("a_writer_that_was_fenced_off_goes_on", a_writer_that_was_fenced_off_goes_on, ("write-ahead", "endings"), "leader-paused-in-the-middle-of-a-step"),
    Mutant("consent_is_not_needed", consent_is_not_needed, ("expectations",), "nobody-approves", seeds=1),
    Mutant("growth_asks_nobody", growth_asks_nobody, ("budget",), "two-optimizers-that-both-want-to-grow"),
)  # fmt: skip
