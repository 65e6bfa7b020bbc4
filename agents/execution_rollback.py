"""The two ways out of a change: taking it back, and ending it.

Taking back is a state with a plan of its own (`book.steps_back`), not an error handler: it is written into the
journal before anything is written to the cache, every value is read back, and what cannot be put back ends as FAILED
with knob, wanted and observed value, which pages a person. Nothing is ever taken back without a lease: whoever has it
owns the cache, and their values are not ours to undo.

What cannot be undone is said in the last record: keys that were evicted, and counters that were learnt anew. Memory
that a receiver has got is taken back without asking: receivers are only started once the donor's change was kept, so
the budget for it cannot have been given away.

While the journal cannot be written a rollback waits too, since write-ahead holds for it as for every other write.
INVARIANT: an ending that is shown to anybody is in the journal, unless the change never got as far as an intention.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agents.execution_run import RECORD_TRIES_NOTED, Ending, Run
from agents.execution_table import Phase
from agents.info_facts import InfoFacts, facts_of
from agents.playbook_tables.book import steps_back
from agents.playbook_tables.steps import Step
from cachewarden.codec import to_jsonable
from cachewarden.errors import InvariantViolation
from cachewarden.machine import (
    ConfigRewritten,
    Effect,
    EffectFailed,
    ExtendTtls,
    KnobsRead,
    KnobsWritten,
    LeaseDenied,
    LeaseGranted,
    Observed,
    ReadCounters,
    ReadKnobs,
    ReleaseLease,
    RewriteConfig,
    TimerFired,
    TtlsExtended,
    WriteKnobs,
)
from cachewarden.messages import ExecutionState, RecordKind

__all__ = [
    "UNDO_TRIES_MAX",
    "abandon",
    "begin_rollback",
    "end",
    "foreign_values",
    "has_settled",
    "on_ending",
    "on_revoking",
    "on_undo",
    "on_undo_fencing",
    "on_undo_persisting",
    "rules_resting",
]

UNDO_TRIES_MAX = 12
"""With the growing pauses between them these take about three minutes; then a person is called."""

_SETTLE_POLL_MS = 500
_UNDO_SETTLE_LOOKS = 20
_SETTLED_SHARE = 1.01

Effects = tuple[Effect, ...]


# --- Ending ----------------------------------------------------------------------------------------------------------


def end(
    run: Run, state: ExecutionState, kind: RecordKind, reason: str, payload: Mapping[str, Any] | None = None
) -> Effects:
    """Write the last record; the state changes once it is durable."""
    run.reason = reason
    run.tries = 0
    run.ending = Ending(state, reason)
    own = {
        "reason": reason,
        "hit_ratio_before": run.promise.hit_ratio_before,
        "hit_ratio_after": run.hit_ratio_after,
        "comparable": run.comparable,
        "hit_ratio_step": run.hit_ratio_step,
        "control_drift": None if run.drift is None else run.drift.value,
        "step": run.step,
        "steps": len(run.steps),
    }
    return (run.ask(run.record(kind, {**own, **(payload or {})}), Phase.ENDING),)


def abandon(run: Run, reason: str, payload: Mapping[str, Any] | None = None) -> Effects:
    """End without taking anything back, either since nothing was done or since the cache is somebody else's now."""
    return end(run, ExecutionState.ABANDONED, RecordKind.CHANGE_ABANDONED, reason, payload)


def on_ending(run: Run, event: Any, now_ms: int) -> Effects:
    """Wait until the last record is durable, then let go of the lease unless a TTL rule stands."""
    if run.ending is None:
        raise InvariantViolation("an execution ends without knowing how")
    if isinstance(event, TimerFired):
        return (run.ask_again(),)
    if isinstance(event, EffectFailed):
        if run.intended:
            return (_wait_for_journal(run, event, now_ms),)
        run.reason = f"{run.ending.reason} (not confirmed by the journal: {event.reason})"
    else:
        run.reason = run.ending.reason
    run.state = run.ending.state
    run.stop_waiting()
    if run.state is ExecutionState.KEPT and run.rules:
        run.enter(Phase.GOVERNING)
        return ()
    run.enter(Phase.DONE)
    return (ReleaseLease(lease=run.lease),) if run.lease is not None else ()


def _wait_for_journal(run: Run, event: EffectFailed, now_ms: int) -> Effect:
    if run.tries >= RECORD_TRIES_NOTED:
        run.reason = f"waits for the journal, nothing is written until it is back: {event.reason}"
    return run.back_off(now_ms)


# --- Taking back -----------------------------------------------------------------------------------------------------


def begin_rollback(
    run: Run, reason: str, *, rules_only: bool = False, observed: Mapping[str, Any] | None = None
) -> Effects:
    """Write down that and how the change is taken back; nothing is written to the cache before that is durable.

    `rules_only`: revoke the standing TTL rules of a change that was kept; its knobs may have been changed again since
    and stay. `observed`: the window, or the piece of one, that crossed a guardrail.
    """
    run.undo_rules_only = rules_only
    run.undo_reason = reason
    run.reason = f"being taken back: {reason}"
    run.halt = None
    run.tries = run.writes_tried = run.refences = 0
    run.undo_step = 0
    # Values are read before they are overwritten: one that is not of our making is never taken back.
    run.values_unsure = True
    run.undo = steps_back(
        run.proposal,
        run.current,
        (r.rule for r in run.rules if not r.retired),
        run.ground,
        rules_only=rules_only,
    )
    payload = {
        "reason": reason,
        "steps": to_jsonable(run.undo),
        "wanted": {} if rules_only else run.before,
        "current": dict(run.current),
        "rules_only": rules_only,
        "observed": dict(observed or {}),
    }
    return (run.ask(run.record(RecordKind.ROLLBACK_INTENDED, payload), Phase.REVOKING),)


def on_revoking(run: Run, event: Any, now_ms: int) -> Effects:
    """Wait for the intention to be durable, however long that takes."""
    if isinstance(event, TimerFired):
        return (run.ask_again(),)
    if isinstance(event, EffectFailed):
        return (_wait_for_journal(run, event, now_ms),)
    run.tries = 0
    run.reason = f"being taken back: {run.undo_reason}"
    return _next_undo(run, now_ms)


def rules_resting(run: Run, now_ms: int) -> Effects:
    """Go on with a rollback that waited for the last pass of a TTL rule, which may not run beside the pass that
    restores."""
    return _next_undo(run, now_ms)


def _next_undo(run: Run, now_ms: int) -> Effects:
    if run.halt is not None and run.halt.superseded:
        return abandon(run, f"superseded while it was being taken back: {run.halt.reason}", _left(run))
    if any(r.in_flight for r in run.rules):
        run.stop_waiting()
        run.enter(Phase.REVOKING)
        return ()
    if run.undo_step < len(run.undo):
        return _undo_write(run, _undo_effect(run, run.undo[run.undo_step], 0), now_ms)
    if run.undo_failures:
        worst = run.undo_failures[0]
        wanted = f"should be `{worst['wanted']}` again but is `{worst['observed']}`"
        reason = f"`{worst['knob']}` of `{run.service}` {wanted}: {worst['reason']}"
        return end(
            run,
            ExecutionState.FAILED,
            RecordKind.ROLLBACK_FAILED,
            reason,
            {"failures": run.undo_failures, **_left(run)},
        )
    if run.persisted and run.lease is not None and not run.undo_rules_only:
        # The file may hold the values that were just taken back; the next restart would bring them again.
        return (run.ask(RewriteConfig(service=run.service, lease=run.lease), Phase.UNDO_PERSISTING),)
    return end(run, ExecutionState.ROLLED_BACK, RecordKind.CHANGE_ROLLED_BACK, run.undo_reason, _left(run))


def on_undo_persisting(run: Run, event: Any, _now_ms: int) -> Effects:
    """End the rollback; a file that could not be rewritten is told, since a restart would bring the new values back."""
    done = isinstance(event, ConfigRewritten) and event.rewritten
    run.persisted = {"rewritten": done, "reason": "" if done else event.reason}
    reason = run.undo_reason
    if not done:
        reason += f"; the configuration file may still hold the new values: {event.reason}"
    return end(run, ExecutionState.ROLLED_BACK, RecordKind.CHANGE_ROLLED_BACK, reason, _left(run))


def _left(run: Run) -> dict[str, Any]:
    cannot = "" if run.proposal.reversible else f"not undone: {run.proposal.rollback}"
    return {"knobs": dict(run.current), "cannot_be_undone": cannot, "persisted": dict(run.persisted)}


def _undo_effect(run: Run, step: Step, cursor: int) -> Effect:
    if run.lease is None:
        raise InvariantViolation("a rollback needs a lease")
    if step.rule is not None:
        keys = next((r.pass_keys for r in run.rules if r.rule == step.rule), 1)
        return ExtendTtls(
            service=run.service, lease=run.lease, rule=step.rule, cursor=cursor, max_keys=keys, restore=True
        )
    return WriteKnobs(service=run.service, lease=run.lease, changes=step.changes)


def _undo_write(run: Run, effect: Effect, now_ms: int) -> Effects:
    """Write under a lease that is believed to be good and over values that are ours; otherwise see to that first."""
    phase = Phase.UNDO_EXTENDING if isinstance(effect, ExtendTtls) else Phase.UNDO_WRITING
    run.deferred, run.deferred_phase = effect, phase
    if now_ms >= run.lease_until_ms:
        return (run.ask(run.acquire(now_ms), Phase.UNDO_REFENCING),)
    if run.values_unsure and run.current and not run.undo_rules_only:
        return (run.ask(ReadKnobs(service=run.service, knobs=tuple(sorted(run.current))), Phase.UNDO_VERIFYING),)
    return (run.ask(effect, phase),)


def on_undo(run: Run, event: Any, now_ms: int) -> Effects:
    """Take the answer to one step of the plan back."""
    if run.halt is not None and run.halt.superseded:
        return _next_undo(run, now_ms)
    if isinstance(event, Observed):
        return _undo_settled(run, facts_of(event.observation), now_ms)
    if isinstance(event, TimerFired):
        return _undo_timer(run, now_ms)
    if isinstance(event, KnobsWritten):
        return _undo_values(run, dict(event.values), now_ms)
    if isinstance(event, TtlsExtended):
        if event.cursor:
            # The pass that restores has the same budget as the one that extended.
            run.tries = 0
            run.deferred = _undo_effect(run, run.undo[run.undo_step], event.cursor)
            return (run.pause(now_ms, 1 + event.examined * 1000 // run.settings.ttl_keys_per_s),)
        return _undo_done(run, now_ms)
    return _undo_failed(run, event, now_ms)


def _undo_timer(run: Run, now_ms: int) -> Effects:
    if run.phase is Phase.UNDO_SETTLING:
        return (run.ask(ReadCounters(service=run.service), Phase.UNDO_SETTLING),)
    if run.deferred is None:
        raise InvariantViolation("a rollback retries nothing")
    return _undo_write(run, _with_lease(run, run.deferred), now_ms)


def _with_lease(run: Run, effect: Effect) -> Effect:
    if isinstance(effect, WriteKnobs) and run.lease is not None:
        return WriteKnobs(service=effect.service, lease=run.lease, changes=effect.changes)
    if isinstance(effect, ExtendTtls) and run.lease is not None:
        return ExtendTtls(
            service=effect.service,
            lease=run.lease,
            rule=effect.rule,
            cursor=effect.cursor,
            max_keys=effect.max_keys,
            restore=True,
        )
    return effect


def _undo_values(run: Run, values: dict[str, str], now_ms: int) -> Effects:
    step = run.undo[run.undo_step]
    run.current.update({k: v for k, v in values.items() if k in run.before})
    wrong = [c for c in step.changes if values.get(c.knob) != c.after]
    if not wrong:
        return _undo_done(run, now_ms)
    first = wrong[0]
    return _undo_retry(
        run, first.knob, first.after, values.get(first.knob), "the server has another value after the write", now_ms
    )


def _undo_failed(run: Run, event: EffectFailed, now_ms: int) -> Effects:
    if run.phase is Phase.UNDO_SETTLING:
        return _undo_settled(run, None, now_ms)
    run.values_unsure = True
    step = run.undo[run.undo_step]
    if event.kind == "StaleFencingToken" or event.outcome_unknown:
        # Writing the fence again makes a write that is still on its way fail, so what is written next is the last word.
        run.tries += 1
        if run.tries <= UNDO_TRIES_MAX:
            return (run.ask(run.acquire(now_ms), Phase.UNDO_REFENCING),)
    if step.rule is not None:
        return _undo_retry(run, f"ttl:{step.rule.pattern}", f"{step.rule.written_ttl_ms}", None, event.reason, now_ms)
    change = step.changes[0]
    return _undo_retry(run, change.knob, change.after, run.current.get(change.knob), event.reason, now_ms)


def _undo_retry(run: Run, knob: str, wanted: str, observed: str | None, reason: str, now_ms: int) -> Effects:
    if run.tries < UNDO_TRIES_MAX:
        back = Phase.UNDO_EXTENDING if run.undo[run.undo_step].rule is not None else Phase.UNDO_WRITING
        run.enter(back)
        return (run.back_off(now_ms),)
    # What can still be put back is put back before a person is called.
    run.undo_failures.append({"knob": knob, "wanted": wanted, "observed": observed, "reason": reason})
    return _undo_done(run, now_ms, settle=False)


def _undo_done(run: Run, now_ms: int, *, settle: bool = True) -> Effects:
    step = run.undo[run.undo_step]
    run.tries = 0
    if settle and step.settle_to_bytes:
        run.enter(Phase.UNDO_SETTLING)
        return (run.pause(now_ms, _SETTLE_POLL_MS),)
    run.undo_step += 1
    return _next_undo(run, now_ms)


def has_settled(facts: InfoFacts, target_bytes: int) -> bool:
    """Say whether memory in use is down to a maxmemory, with 1 % for what is being freed. A server that does not say
    is never settled."""
    return facts.used_memory_bytes is not None and facts.used_memory_bytes <= target_bytes * _SETTLED_SHARE


def _undo_settled(run: Run, facts: InfoFacts | None, now_ms: int) -> Effects:
    """Go on when memory has come down, or after ten seconds anyway: a rollback does not stop half-way for slow
    eviction."""
    run.tries += 1
    settled = facts is not None and has_settled(facts, run.undo[run.undo_step].settle_to_bytes)
    if settled or run.tries >= _UNDO_SETTLE_LOOKS:
        return _undo_done(run, now_ms, settle=False)
    return (run.pause(now_ms, _SETTLE_POLL_MS),)


def on_undo_fencing(run: Run, event: Any, now_ms: int) -> Effects:
    """Get the lease, and make sure that the values are still ours, before a rollback writes on."""
    if run.halt is not None and run.halt.superseded:
        return _next_undo(run, now_ms)
    if isinstance(event, TimerFired):
        return (run.ask(run.acquire(now_ms), run.phase),) if run.phase is Phase.UNDO_REFENCING else (run.ask_again(),)
    if isinstance(event, EffectFailed):
        if run.tries < UNDO_TRIES_MAX:
            return (run.back_off(now_ms),)
        return _undo_failed(run, event, now_ms)
    if isinstance(event, LeaseDenied):
        return abandon(run, f"superseded while it was being taken back: {event.reason}", _left(run))
    if run.deferred is None:
        raise InvariantViolation("a rollback was interrupted before it wrote anything")
    if isinstance(event, LeaseGranted):
        run.note_lease(event.lease, run.lease_asked_ms)
        return _undo_write(run, _with_lease(run, run.deferred), now_ms)
    if isinstance(event, KnobsRead):
        foreign = foreign_values(run, dict(event.values))
        if foreign:
            return abandon(run, f"superseded while the lease had lapsed: {foreign}", _left(run))
        run.current.update({k: v for k, v in event.values.items() if k in run.before})
        run.values_unsure = False
        if isinstance(run.deferred, WriteKnobs) and all(
            run.current.get(c.knob) == c.after for c in run.deferred.changes
        ):
            return _undo_done(run, now_ms)
        return _undo_write(run, _with_lease(run, run.deferred), now_ms)
    raise InvariantViolation(f"`{type(event).__name__}` is no answer to a question about the lease")


def foreign_values(run: Run, values: Mapping[str, str]) -> str:
    """Name the knobs whose value is neither the one before nor any that this change has set or will set; empty if
    there is none."""
    known: dict[str, set[str]] = {c.knob: {c.before, c.after} for c in run.proposal.knob_changes}
    for step in (*run.steps, *run.undo):
        for change in step.changes:
            known.setdefault(change.knob, set()).update((change.before, change.after))
    strange = [k for k in sorted(known) if k in values and values[k] not in known[k]]
    return ", ".join(f"`{k}` is `{values[k]}`, which is not of our making" for k in strange)
