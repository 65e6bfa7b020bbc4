"""One execution: the order of its parts, its lease, its TTL rules at the side, and the table that every event has to
pass.

leasing -> checking -> stepping -> observing -> kept | rolling back -> rolled back; abandoned where nothing was done
or the cache is somebody else's now, failed where a value could not be put back. The parts are in
`execution_stepping`, `execution_observing`, `execution_rollback`.

INVARIANT: an illegal event raises InvariantViolation and changes nothing; a late one is ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from agents.execution_checking import on_intending, on_reading_counters, on_reading_knobs
from agents.execution_keeping import note_rewritten, on_persist_intending, on_persisting
from agents.execution_observing import begin_observing, on_observing, on_observing_control, on_window_recording
from agents.execution_rollback import (
    abandon,
    begin_rollback,
    on_ending,
    on_revoking,
    on_undo,
    on_undo_fencing,
    on_undo_persisting,
    rules_resting,
)
from agents.execution_run import Halt, Run, backoff_ms, fence_found_higher, fence_missing
from agents.execution_stepping import (
    give_up,
    on_fencing,
    on_pacing,
    on_reading_back,
    on_settling,
    on_step_intending,
    on_step_recording,
    on_work,
)
from agents.execution_table import Phase, check_arrival, check_event
from agents.guardrails import promise_of
from agents.playbook_tables.ttl_rule import consent_missing
from agents.recovery import NextMove, Unfinished, decide
from agents.ttl_governor import RuleRounds, idle_known_ms
from cachewarden.codec import digest
from cachewarden.errors import InvariantViolation
from cachewarden.fleet import Service
from cachewarden.machine import (
    Effect,
    EffectFailed,
    ExtendTtls,
    HotKeysCollected,
    KeysReencoded,
    KnobsWritten,
    LeaseDenied,
    LeaseGranted,
    ReadCounters,
    ReadKnobs,
    SetTimer,
    TimerFired,
    TtlsExtended,
)
from cachewarden.messages import ExecutionState
from cachewarden.protocol import Execute
from cachewarden.settings import CacheOptimizerSettings

__all__ = ["begin", "cancel", "resume", "step"]

Effects = tuple[Effect, ...]

_FIRST_PASS_MS = 250
_UNDOING = frozenset(
    {
        Phase.REVOKING,
        Phase.UNDO_WRITING,
        Phase.UNDO_SETTLING,
        Phase.UNDO_EXTENDING,
        Phase.UNDO_REFENCING,
        Phase.UNDO_VERIFYING,
        Phase.UNDO_PERSISTING,
    }
)
_PERSISTS = frozenset({Phase.PERSIST_INTENDING, Phase.PERSISTING})
_LOOKS = frozenset({Phase.OBSERVING, Phase.OBSERVING_CONTROL})
_GOVERNED = frozenset({*_LOOKS, *_PERSISTS, Phase.WINDOW_RECORDING, Phase.GOVERNING})
_WRITING = frozenset({Phase.WRITING, Phase.TOUCHING, Phase.EXTENDING, Phase.REENCODING})
_RECOVERING = frozenset({Phase.LEASING, Phase.RECOVERING})


# --- Beginning -------------------------------------------------------------------------------------------------------


def begin(
    order: Execute,
    settings: CacheOptimizerSettings,
    now_ms: int,
    refusal: str | None,
    wishes: Service | None = None,
) -> tuple[Run, Effects]:
    """Begin a fresh order, or write down why it is refused. `wishes` is the service in the fleet file."""
    before = order.hit_ratio_before
    promise = promise_of(order.proposal, before, order.latency_us_p99_before, settings, order.baseline, wishes)
    run = Run(order.proposal, settings, promise, now_ms, wishes)
    run.counterfactual = order.counterfactual
    run.judged_by = {
        "verdict_digest": digest(order.verdict),
        "proposal_digest": order.verdict.proposal_digest,
        "constitution_digest": order.verdict.constitution_digest,
        "resolution_digest": digest(order.resolution),
    }
    if order.approval is not None:
        run.judged_by["approved_by"] = order.approval.decided_by
    if refusal is not None:
        return run, abandon(run, refusal)
    return run, (run.ask(run.acquire(now_ms), Phase.LEASING), *run.report(now_ms))


def resume(
    found: Unfinished, settings: CacheOptimizerSettings, now_ms: int, wishes: Service | None = None
) -> tuple[Run, Effects]:
    """Take up an unfinished change or a standing rule of an earlier life; first of all it needs a lease."""
    before = found.hit_ratio_before
    promise = promise_of(found.proposal, before, found.latency_us_p99_before, settings, found.baseline, wishes)
    promise = replace(promise, refused_per_s_before=found.refused_per_s_before)
    run = Run(found.proposal, settings, promise, now_ms, wishes)
    if found.persist_intended:
        run.persisted = {"rewritten": False, "reason": "interrupted while the configuration file was rewritten"}
    run.execution_id = found.execution_id
    run.started_ms = found.started_ms
    run.resumed = found
    run.steps = found.steps
    run.step = len(found.applied)
    run.intended = run.dirty = True
    run.hit_ratio_after = found.hit_ratio_after
    run.rules = [RuleRounds(rule=rule, keys_per_s=settings.ttl_keys_per_s) for rule in found.rules]
    if found.standing:
        run.state = ExecutionState.KEPT
        run.reason = found.reason
        return run, (run.ask(run.acquire(now_ms), Phase.LEASING),)
    run.reason = "taken up again after a restart"
    return run, (run.ask(run.acquire(now_ms), Phase.LEASING), *run.report(now_ms))


# --- Leasing and recovering ------------------------------------------------------------------------------------------


def _on_leasing(run: Run, event: Any, now_ms: int) -> Effects:
    if isinstance(event, TimerFired):
        return (run.ask(run.acquire(now_ms), Phase.LEASING),)
    if isinstance(event, (LeaseDenied, EffectFailed)):
        if run.resumed is not None:
            # What an earlier life left behind is never forgotten; whoever holds the lease lets go of it some time.
            run.reason = f"waits for the lease: {event.reason}"
            return (run.back_off(now_ms),)
        run.held_by = event.holder if isinstance(event, LeaseDenied) else None
        return abandon(run, f"no lease: {event.reason}")
    run.note_lease(event.lease, run.lease_asked_ms)
    run.tries = 0
    renewal = run.keep_lease(now_ms)
    knobs = tuple(sorted(run.before))
    if run.resumed is not None:
        if run.resumed.standing:
            run.stop_waiting()
            run.enter(Phase.GOVERNING)
            return (renewal, *_start_rules(run, now_ms))
        if not knobs:
            return (renewal, *_recover(run, {}, now_ms))
        return (renewal, run.ask(ReadKnobs(service=run.service, knobs=knobs), Phase.RECOVERING))
    run.execution_id = f"e-{run.proposal.proposal_id}-{event.lease.epoch}"
    if not knobs:
        return (renewal, run.ask(ReadCounters(service=run.service), Phase.READING_COUNTERS))
    return (renewal, run.ask(ReadKnobs(service=run.service, knobs=knobs), Phase.READING_KNOBS))


def _on_recovering(run: Run, event: Any, now_ms: int) -> Effects:
    if isinstance(event, TimerFired):
        return (run.ask_again(),)
    if isinstance(event, EffectFailed):
        run.reason = f"waits for the cache: {event.reason}"
        return (run.back_off(now_ms),)
    run.tries = 0
    return _recover(run, dict(event.values), now_ms)


def _recover(run: Run, values: dict[str, str], now_ms: int) -> Effects:
    if run.resumed is None:
        raise InvariantViolation("nothing to recover")
    run.current = values
    run.values_unsure = False
    move, reason = decide(run.resumed, values)
    if move is NextMove.ABANDON:
        return abandon(run, reason, {"knobs": values})
    if move is NextMove.TAKE_BACK:
        return begin_rollback(run, reason, rules_only=run.resumed.rules_only)
    run.reason = reason
    return begin_observing(run, now_ms)


# --- Being stopped ---------------------------------------------------------------------------------------------------


def cancel(run: Run, reason: str, now_ms: int, *, superseded: bool = False) -> Effects:
    """Stop a change: at once where it only waits, else as soon as the answer is there that it waits for."""
    if run.phase in (Phase.ENDING, Phase.DONE) or (superseded and run.phase in _PERSISTS):
        # It is decided that it is kept, only the record of that is not there yet.
        return ()
    if run.phase is Phase.GOVERNING:
        return () if superseded else (*begin_rollback(run, reason, rules_only=True), *run.report(now_ms))
    if run.halt is None or superseded:
        run.halt = Halt(reason, superseded=superseded)
    if not run.waiting or (run.resumed is not None and run.phase in _RECOVERING):
        return ()
    if run.phase in _UNDOING and not superseded:
        return ()
    run.stop_waiting()
    return (*_halted(run), *run.report(now_ms))


def _halted(run: Run) -> Effects:
    if run.halt is None:
        raise InvariantViolation("nobody has stopped this execution")
    if run.halt.superseded:
        when = " while it was being taken back" if run.phase in _UNDOING else ""
        return abandon(run, f"superseded{when}: {run.halt.reason}", {"knobs": dict(run.current)})
    return give_up(run, run.halt.reason)


def _absorb(run: Run, event: Any) -> None:
    """Take from an answer what a stopped execution has to know: whether something may have been written, and what."""
    if isinstance(event, KnobsWritten):
        run.dirty = True
        run.current.update({k: v for k, v in event.values.items() if k in run.before})
    elif isinstance(event, (TtlsExtended, KeysReencoded)) or (
        isinstance(event, HotKeysCollected) and run.phase is Phase.TOUCHING
    ):
        run.dirty = True
    elif run.phase is Phase.PERSISTING:
        # The file may hold the new values now, and is written again once they have been taken back.
        note_rewritten(run, event)
    elif isinstance(event, EffectFailed) and event.outcome_unknown and run.phase in _WRITING:
        run.dirty = True
        run.distrust_lease()
    elif isinstance(event, EffectFailed) and fence_found_higher(event.kind, event.details):
        run.distrust_lease()


# --- The step --------------------------------------------------------------------------------------------------------

_HANDLERS: Mapping[Phase, Callable[[Run, Any, int], Effects]] = {
    Phase.LEASING: _on_leasing,
    Phase.RECOVERING: _on_recovering,
    Phase.READING_KNOBS: on_reading_knobs,
    Phase.READING_COUNTERS: on_reading_counters,
    Phase.INTENDING: on_intending,
    Phase.STEP_INTENDING: on_step_intending,
    Phase.WRITING: on_work,
    Phase.COLLECTING: on_work,
    Phase.TOUCHING: on_work,
    Phase.CHECKING_SPREAD: on_work,
    Phase.REENCODING: on_work,
    Phase.PACING: on_pacing,
    Phase.EXTENDING: on_work,
    Phase.READING_BACK: on_reading_back,
    Phase.STEP_RECORDING: on_step_recording,
    Phase.SETTLING: on_settling,
    Phase.REFENCING: on_fencing,
    Phase.VERIFYING: on_fencing,
    Phase.OBSERVING: on_observing,
    Phase.OBSERVING_CONTROL: on_observing_control,
    Phase.WINDOW_RECORDING: on_window_recording,
    Phase.PERSIST_INTENDING: on_persist_intending,
    Phase.PERSISTING: on_persisting,
    Phase.REVOKING: on_revoking,
    Phase.UNDO_WRITING: on_undo,
    Phase.UNDO_SETTLING: on_undo,
    Phase.UNDO_EXTENDING: on_undo,
    Phase.UNDO_REFENCING: on_undo_fencing,
    Phase.UNDO_VERIFYING: on_undo_fencing,
    Phase.UNDO_PERSISTING: on_undo_persisting,
    Phase.ENDING: on_ending,
}


def step(run: Run, event: Any, now_ms: int) -> Effects:
    """Take one event that carries a ref of this run."""
    name = event.ref.rpartition("#")[2]
    if name in ("lease", "renew"):
        return _on_renewal(run, event, now_ms)
    if name.startswith("ttl"):
        return _on_rule(run, int(name.removeprefix("ttl")), event, now_ms)
    if not name.isdigit() or not run.issued(int(name)):
        raise InvariantViolation(f"`{event.ref}` was never asked for")
    if event.ref != run.awaiting:
        return ()
    check_event(run.phase, event)
    before = run.phase
    run.stop_waiting()
    halted = run.halt is not None and not _goes_on(run)
    if halted:
        _absorb(run, event)
        effects = _halted(run)
    else:
        effects = _HANDLERS[before](run, event, now_ms)
    check_arrival(before, event, run.phase, halted=halted)
    if run.phase is Phase.OBSERVING and before not in _LOOKS and not run.windows:
        effects = (*effects, *_start_rules(run, now_ms))
    if run.phase is Phase.GOVERNING and run.halt is not None:
        effects = (*effects, *begin_rollback(run, run.halt.reason, rules_only=True))
    return (*effects, *run.report(now_ms))


def _goes_on(run: Run) -> bool:
    """Say whether this phase handles being stopped itself, or is on its way out anyway."""
    return run.phase is Phase.ENDING or run.phase in _UNDOING or (run.resumed is not None and run.phase in _RECOVERING)


# --- The lease and the TTL rules, at the side ------------------------------------------------------------------------


def _on_renewal(run: Run, event: Any, now_ms: int) -> Effects:
    if run.phase is Phase.DONE:
        return ()
    if isinstance(event, TimerFired):
        if run.phase in (Phase.LEASING, Phase.REFENCING, Phase.UNDO_REFENCING):
            return (run.keep_lease(now_ms),)
        return (_renew(run, now_ms),)
    if isinstance(event, LeaseGranted):
        run.note_lease(event.lease, run.renewal_asked_ms)
        return (run.keep_lease(now_ms),)
    if isinstance(event, LeaseDenied):
        run.distrust_lease()
        return (run.keep_lease(now_ms), *cancel(run, event.reason, now_ms, superseded=True))
    if isinstance(event, EffectFailed):
        return (run.keep_lease(now_ms),)
    raise InvariantViolation(f"`{type(event).__name__}` is no answer to a renewal")


def _renew(run: Run, now_ms: int) -> Effect:
    asked = run.lease_asked_ms
    effect = replace(run.acquire(now_ms), ref=f"{run.key}#renew")
    run.renewal_asked_ms, run.lease_asked_ms = now_ms, asked
    return effect


def _start_rules(run: Run, now_ms: int) -> Effects:
    return tuple(SetTimer(ref=f"{run.key}#ttl{i}", due_ms=now_ms + _FIRST_PASS_MS) for i in range(len(run.rules)))


def _governs(run: Run) -> bool:
    kept = run.phase is Phase.ENDING and run.ending is not None and run.ending.state is ExecutionState.KEPT
    return kept or (run.phase in _GOVERNED and run.halt is None)


def _on_rule(run: Run, number: int, event: Any, now_ms: int) -> Effects:
    """Pass after pass of one standing rule, as long as the change is observed or kept."""
    if number >= len(run.rules):
        raise InvariantViolation(f"`{event.ref}` is no TTL rule")
    rounds = run.rules[number]
    timer = f"{run.key}#ttl{number}"
    if isinstance(event, TimerFired):
        if not _governs(run) or rounds.in_flight or rounds.retired:
            return ()
        withdrawn = consent_missing(rounds.rule, run.ground)
        if withdrawn is not None:
            # The fleet file of this life says less than that of the one that began the rule. While the last record is
            # on its way nothing can be begun, so it is looked at again.
            later = (SetTimer(ref=timer, due_ms=now_ms + backoff_ms(2)),) if run.phase is Phase.ENDING else ()
            return (*cancel(run, f"its owner permits its TTL rule no longer: {withdrawn}", now_ms), *later)
        if run.lease is None or now_ms >= run.lease_until_ms:
            # The renewal is under way at the side; without a lease no key is touched.
            return (SetTimer(ref=timer, due_ms=now_ms + backoff_ms(2)),)
        rounds.in_flight = True
        return (
            ExtendTtls(
                ref=timer,
                service=run.service,
                lease=run.lease,
                rule=rounds.rule,
                cursor=rounds.cursor,
                max_keys=rounds.pass_keys,
                idle_known_ms=idle_known_ms(run.proposal, now_ms),
            ),
        )
    if not rounds.in_flight:
        return ()
    effects: Effects = ()
    if isinstance(event, TtlsExtended):
        due_ms = rounds.note_pass(event, now_ms)
    elif isinstance(event, EffectFailed):
        due_ms = rounds.note_failure(now_ms, event.reason)
        if fence_missing(event.kind, event.details) or fence_found_higher(event.kind, event.details):
            # Evicted, or somebody newer is there: the answer to the renewal tells which.
            run.distrust_lease()
            effects = (_renew(run, now_ms),)
    else:
        raise InvariantViolation(f"`{type(event).__name__}` is no answer to a pass of a TTL rule")
    if _governs(run):
        return (*effects, SetTimer(ref=timer, due_ms=due_ms), *run.report(now_ms))
    if run.phase is Phase.REVOKING and run.awaiting is None:
        return (*effects, *rules_resting(run, now_ms), *run.report(now_ms))
    return effects
