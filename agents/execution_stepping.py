"""The way forward of a change: step after step, each written into the journal, done, read back, and written into the
journal again.

A write whose outcome is unknown is never repeated blindly: first the fence is written again, which makes a command
that is still on its way fail, then the values are read. Equal to what was wanted: done. Equal to what they were: one
more try. Anything else is somebody else's value, which is left alone.

INVARIANT: no write leaves without a durable `step_intended` record of exactly this step, and none while the lease is
not believed to be good.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from agents.execution_observing import begin_observing
from agents.execution_rollback import abandon, begin_rollback, foreign_values, has_settled
from agents.execution_run import RECORD_TRIES_NOTED, WRITES, Passes, Run, fence_found_higher, fence_missing
from agents.execution_table import Phase
from agents.guardrails import alarm, limits_of
from agents.info_facts import facts_of
from agents.playbook_tables.steps import Step, StepKind
from agents.ttl_governor import RuleRounds, idle_known_ms
from agents.windows import Window, guardrail_window
from cachewarden.codec import to_jsonable
from cachewarden.errors import InvariantViolation
from cachewarden.machine import (
    CollectHotKeys,
    Effect,
    EffectFailed,
    ExtendTtls,
    HotKeysCollected,
    KeysReencoded,
    KnobsRead,
    KnobsWritten,
    LeaseDenied,
    LeaseGranted,
    MeasureSpread,
    Observed,
    ReadCounters,
    ReadKnobs,
    ReencodeKeys,
    SpreadMeasured,
    TimerFired,
    TouchHotKeys,
    TtlsExtended,
    WriteKnobs,
)
from cachewarden.messages import RecordKind

__all__ = [
    "give_up",
    "next_step",
    "on_fencing",
    "on_pacing",
    "on_reading_back",
    "on_settling",
    "on_step_intending",
    "on_step_recording",
    "on_work",
]

Effects = tuple[Effect, ...]

_WRITES_MAX = 4
_REFENCES_MAX = 5
_READS_MAX = 10
_SETTLE_POLL_MS = 500
_SETTLE_LOOKS_MAX = 40
_PACE_MS = 250
_REENCODE_KEYS = 1_000
_SPREAD_KEYS = 1_000

_PHASE_OF = {
    StepKind.WRITE_KNOBS: Phase.WRITING,
    StepKind.COLLECT_HOT_KEYS: Phase.COLLECTING,
    StepKind.TOUCH_HOT_KEYS: Phase.TOUCHING,
    StepKind.CHECK_SPREAD: Phase.CHECKING_SPREAD,
    StepKind.REENCODE_KEYS: Phase.REENCODING,
    StepKind.TTL_RULE: Phase.EXTENDING,
}


def give_up(run: Run, reason: str) -> Effects:
    """Take back what may have been done; where nothing was, say so and end."""
    return begin_rollback(run, reason) if run.dirty else abandon(run, f"{reason}; nothing had been applied")


def next_step(run: Run, now_ms: int) -> Effects:
    """Write down the intention of the next step, or begin to observe after the last."""
    run.tries = run.writes_tried = run.refences = 0
    run.reencoded = Passes()
    if run.step >= len(run.steps):
        return begin_observing(run, now_ms)
    # A plan may take minutes: what somebody else has set since the last step is not ours to write over.
    run.values_unsure = run.step > 0
    return (run.ask(run.record(RecordKind.STEP_INTENDED, _step_payload(run)), Phase.STEP_INTENDING),)


def _step_payload(run: Run) -> dict[str, Any]:
    return {"step": run.step, "steps": len(run.steps), "what": to_jsonable(run.steps[run.step])}


def _retry_record(run: Run, event: Any, now_ms: int) -> Effects | None:
    """Return what to do while the journal does not take a record, None once it has."""
    if isinstance(event, TimerFired):
        return (run.ask_again(),)
    if isinstance(event, EffectFailed):
        if run.tries >= RECORD_TRIES_NOTED:
            run.reason = f"waits for the journal, nothing is written until it is back: {event.reason}"
        return (run.back_off(now_ms),)
    run.tries = 0
    run.reason = ""
    return None


def on_step_intending(run: Run, event: Any, now_ms: int) -> Effects:
    return _retry_record(run, event, now_ms) or _do(run, _effect_of(run, run.steps[run.step], now_ms), now_ms)


def _effect_of(run: Run, step: Step, now_ms: int) -> Effect:
    if run.lease is None:
        raise InvariantViolation("a step needs a lease")
    if step.kind is StepKind.COLLECT_HOT_KEYS:
        return CollectHotKeys(service=run.service, limit=step.limit)
    if step.kind is StepKind.TOUCH_HOT_KEYS:
        return TouchHotKeys(service=run.service, lease=run.lease, times=step.times, keys_per_s=step.keys_per_s)
    if step.kind is StepKind.CHECK_SPREAD:
        return MeasureSpread(service=run.service, limit=_SPREAD_KEYS)
    if step.kind is StepKind.REENCODE_KEYS:
        left = step.limit - run.reencoded.examined
        return ReencodeKeys(
            service=run.service,
            lease=run.lease,
            cursor=run.reencoded.cursor,
            max_keys=max(1, min(_REENCODE_KEYS, left)),
            keys_per_s=step.keys_per_s,
        )
    if step.rule is not None:
        keys = RuleRounds(rule=step.rule, keys_per_s=run.settings.ttl_keys_per_s).pass_keys
        known_ms = idle_known_ms(run.proposal, now_ms)
        return ExtendTtls(service=run.service, lease=run.lease, rule=step.rule, max_keys=keys, idle_known_ms=known_ms)
    return WriteKnobs(service=run.service, lease=run.lease, changes=step.changes)


def _do(run: Run, effect: Effect, now_ms: int, phase: Phase | None = None) -> Effects:
    """Let an effect go under a lease that is believed to be good and over values that are ours; otherwise see to that
    first."""
    phase = phase or _PHASE_OF[run.steps[run.step].kind]
    run.deferred, run.deferred_phase = effect, phase
    if isinstance(effect, WRITES):
        if now_ms >= run.lease_until_ms:
            return (run.ask(run.acquire(now_ms), Phase.REFENCING),)
        if run.values_unsure and run.current:
            return (run.ask(ReadKnobs(service=run.service, knobs=tuple(sorted(run.current))), Phase.VERIFYING),)
        if run.lease is None:
            raise InvariantViolation("a write needs a lease")
        effect = replace(effect, lease=run.lease)
        if isinstance(effect, ExtendTtls) and all(r.rule != effect.rule for r in run.rules):
            run.rules.append(
                RuleRounds(rule=effect.rule, keys_per_s=run.settings.ttl_keys_per_s, round_started_ms=now_ms)
            )
    return (run.ask(effect, phase),)


def on_work(run: Run, event: Any, now_ms: int) -> Effects:
    """Take the answer to a step: done, or one of the ways in which it failed."""
    step = run.steps[run.step]
    if isinstance(event, TimerFired):
        return _do(run, _effect_of(run, step, now_ms), now_ms)
    if isinstance(event, EffectFailed):
        return _work_failed(run, event, now_ms)
    run.dirty = run.dirty or step.writes
    if isinstance(event, KnobsWritten):
        return _compare(run, dict(event.values))
    if isinstance(event, TtlsExtended):
        rounds = next(r for r in run.rules if r.rule == step.rule)
        rounds.note_pass(event, now_ms)
        return _applied(run, {"examined": event.examined, "extended": event.extended})
    if isinstance(event, KeysReencoded):
        return _reencoded(run, event, now_ms)
    if isinstance(event, SpreadMeasured):
        return _spread(run, step, event)
    if isinstance(event, HotKeysCollected):
        if step.kind is StepKind.COLLECT_HOT_KEYS:
            run.hot_keys = event.keys
        return _applied(run, {"keys": event.keys})
    raise InvariantViolation(f"`{type(event).__name__}` is no answer to a step")


def _compare(run: Run, values: dict[str, str]) -> Effects:
    changes = run.steps[run.step].changes
    run.current.update({c.knob: values[c.knob] for c in changes if c.knob in values})
    wrong = [c for c in changes if values.get(c.knob) != c.after]
    if wrong:
        told = ", ".join(f"`{c.knob}` is `{values.get(c.knob)}` instead of `{c.after}`" for c in wrong)
        return begin_rollback(run, f"the server has other values than were written: {told}")
    return _applied(run, {"values": {c.knob: values[c.knob] for c in changes}})


def _applied(run: Run, payload: dict[str, Any]) -> Effects:
    run.tries = 0
    return (run.ask(run.record(RecordKind.STEP_APPLIED, {**_step_payload(run), **payload}), Phase.STEP_RECORDING),)


def _spread(run: Run, step: Step, event: SpreadMeasured) -> Effects:
    """Let pressure return only if the hot keys outrank new ones."""
    payload = {"examined": event.examined, "above": event.above, "collected": run.hot_keys}
    if run.hot_keys and event.above < step.share * max(event.examined, 1):
        told = f"{event.above} of {event.examined} hot keys count more than a new key"
        return begin_rollback(run, f"the hot set would be lost: {told}, wanted are {step.share:.0%}")
    return _applied(run, payload)


def _reencoded(run: Run, event: KeysReencoded, now_ms: int) -> Effects:
    """Note a pass; look at the cache before the next one."""
    done, step = run.reencoded, run.steps[run.step]
    run.tries = run.writes_tried = run.refences = 0
    done.cursor = event.cursor
    done.examined += event.examined
    done.reencoded += event.reencoded
    done.bytes_moved += event.bytes_moved
    if event.cursor == 0 or done.examined >= step.limit:
        told = {"examined": done.examined, "reencoded": done.reencoded, "bytes_moved": done.bytes_moved}
        return _applied(run, {**told, "complete": event.cursor == 0})
    run.enter(Phase.PACING)
    return (run.pause(now_ms, _PACE_MS),)


def on_pacing(run: Run, event: Any, now_ms: int) -> Effects:
    """Between two passes over keys: go on as long as no guardrail is crossed."""
    if isinstance(event, TimerFired):
        return (run.ask(ReadCounters(service=run.service), Phase.PACING),)
    if isinstance(event, EffectFailed):
        if run.tries < _READS_MAX:
            return (run.back_off(now_ms),)
        return begin_rollback(run, f"keys are not stored again unwatched: {event.reason}")
    run.tries = 0
    trouble = None
    if run.last_look is not None:
        trouble = alarm(guardrail_window(run.last_look, event.observation), run.promise, run.settings)
    run.last_look = event.observation
    if trouble is not None:
        return begin_rollback(run, f"while keys were stored again {trouble}")
    return _do(run, _effect_of(run, run.steps[run.step], now_ms), now_ms)


def _work_failed(run: Run, event: EffectFailed, now_ms: int) -> Effects:
    step = run.steps[run.step]
    if step.kind is StepKind.COLLECT_HOT_KEYS:
        return give_up(run, f"the hot keys could not be collected: {event.reason}")
    if step.kind is StepKind.CHECK_SPREAD:
        return give_up(run, f"whether the hot keys are kept could not be seen: {event.reason}")
    if fence_missing(event.kind, event.details) or fence_found_higher(event.kind, event.details):
        # Evicted, or somebody newer is there: whoever asks for the lease finds out.
        run.values_unsure = run.values_unsure or not fence_missing(event.kind, event.details)
        run.refences += 1
        if run.refences > _REFENCES_MAX:
            return give_up(run, "the fence in the cache was evicted again and again, raise its memory first")
        return (run.ask(run.acquire(now_ms), Phase.REFENCING),)
    if step.kind is StepKind.REENCODE_KEYS and (event.outcome_unknown or event.kind == "TargetUnavailable"):
        # Storing a key again gives the same key, so a pass may be repeated; under a fence that is written anew.
        run.dirty = True
        run.distrust_lease()
        run.writes_tried += 1
        if run.writes_tried < _WRITES_MAX:
            return (run.back_off(now_ms),)
        return begin_rollback(run, f"keys cannot be stored again: {event.reason}")
    if event.outcome_unknown:
        run.dirty = True
        run.distrust_lease()
        if step.kind is not StepKind.WRITE_KNOBS:
            return begin_rollback(
                run, f"step {run.step + 1} of {len(run.steps)} has an unknown outcome: {event.reason}"
            )
        knobs = tuple(sorted(c.knob for c in step.changes))
        run.deferred, run.deferred_phase = ReadKnobs(service=run.service, knobs=knobs), Phase.READING_BACK
        return (run.ask(run.acquire(now_ms), Phase.REFENCING),)
    run.writes_tried += 1
    # A pass over many keys may have changed some before the connection broke; one CONFIG SET has not.
    run.dirty = run.dirty or (event.kind == "TargetUnavailable" and step.kind is not StepKind.WRITE_KNOBS)
    if (
        event.kind == "TargetUnavailable"
        and step.kind is not StepKind.TOUCH_HOT_KEYS
        and run.writes_tried < _WRITES_MAX
    ):
        return (run.back_off(now_ms),)
    return give_up(run, f"step {run.step + 1} of {len(run.steps)} failed: {event.reason}")


def on_reading_back(run: Run, event: Any, now_ms: int) -> Effects:
    """Find out what became of a write with an unknown outcome."""
    if isinstance(event, TimerFired):
        return (run.ask_again(),)
    if isinstance(event, EffectFailed):
        if run.tries < _READS_MAX:
            return (run.back_off(now_ms),)
        return begin_rollback(run, f"a write has an unknown outcome and cannot be read back: {event.reason}")
    changes = run.steps[run.step].changes
    found = {c.knob: event.values.get(c.knob) for c in changes}
    if all(found[c.knob] == c.after for c in changes):
        return _compare(run, {k: v for k, v in found.items() if v is not None})
    if all(found[c.knob] == c.before for c in changes):
        run.dirty = any(s.writes for s in run.steps[: run.step])
        run.writes_tried += 1
        if run.writes_tried < 2:
            return _do(run, _effect_of(run, run.steps[run.step], now_ms), now_ms)
        return give_up(run, "a write has twice not arrived")
    told = ", ".join(f"`{c.knob}` is `{found[c.knob]}`" for c in changes)
    return abandon(
        run,
        f"somebody else has changed the cache, it is left alone: {told}",
        {"found": found, "knobs": dict(run.current)},
    )


def on_fencing(run: Run, event: Any, now_ms: int) -> Effects:
    """Get the lease again, and make sure that the values are still ours, before the deferred effect goes."""
    if isinstance(event, TimerFired):
        return (run.ask(run.acquire(now_ms), run.phase),) if run.phase is Phase.REFENCING else (run.ask_again(),)
    if isinstance(event, EffectFailed):
        if run.tries < _READS_MAX:
            return (run.back_off(now_ms),)
        return give_up(run, f"the lease could not be renewed: {event.reason}")
    if isinstance(event, LeaseDenied):
        return abandon(run, f"superseded: {event.reason}", {"holder": event.holder, "knobs": dict(run.current)})
    if run.deferred is None:
        raise InvariantViolation("nothing was deferred")
    if isinstance(event, LeaseGranted):
        run.note_lease(event.lease, run.lease_asked_ms)
        if isinstance(run.deferred, WRITES) and now_ms >= run.lease_until_ms:
            # It was longer on its way than it lasts (a slow network, a process that was paused): not for ever.
            if run.tries < _READS_MAX:
                return (run.back_off(now_ms),)
            return give_up(run, "the lease runs out before it arrives, again and again")
        run.tries = 0
        return _do(run, run.deferred, now_ms, run.deferred_phase)
    if isinstance(event, KnobsRead):
        foreign = {k: v for k, v in event.values.items() if run.current.get(k, v) != v}
        if foreign:
            told = foreign_values(run, foreign) or ", ".join(f"`{k}` is `{v}`" for k, v in sorted(foreign.items()))
            return abandon(
                run,
                f"superseded, somebody else has changed the cache: {told}",
                {"found": foreign, "knobs": dict(run.current)},
            )
        run.values_unsure = False
        return _do(run, run.deferred, now_ms, run.deferred_phase)
    raise InvariantViolation(f"`{type(event).__name__}` is no answer to a question about the lease")


def on_step_recording(run: Run, event: Any, now_ms: int) -> Effects:
    waiting = _retry_record(run, event, now_ms)
    if waiting is not None:
        return waiting
    settles = run.steps[run.step].settle_to_bytes > 0
    run.step += 1
    if not settles:
        return next_step(run, now_ms)
    run.last_look = None
    run.enter(Phase.SETTLING)
    return (run.pause(now_ms, _SETTLE_POLL_MS),)


def on_settling(run: Run, event: Any, now_ms: int) -> Effects:
    """After memory was lowered: wait until what is in use is down too, as long as nobody is refused a write."""
    if isinstance(event, TimerFired):
        return (run.ask(ReadCounters(service=run.service), Phase.SETTLING),)
    run.tries += 1
    if isinstance(event, Observed):
        facts = facts_of(event.observation)
        window = None if run.last_look is None else guardrail_window(run.last_look, event.observation)
        run.last_look = event.observation
        if window is not None:
            # That keys are evicted is what was asked for; how fast decides when the next step may follow.
            trouble = alarm(replace(window, evicted=None), run.promise, run.settings)
            if trouble is not None:
                return begin_rollback(run, f"while memory was being lowered {trouble}")
        if has_settled(facts, run.steps[run.step - 1].settle_to_bytes) and _calm(run, window):
            return next_step(run, now_ms)
    if run.tries >= _SETTLE_LOOKS_MAX:
        return begin_rollback(
            run,
            f"memory is not coming down: {_SETTLE_LOOKS_MAX} looks in a row it was above the new maxmemory, or keys "
            "were evicted in a burst",
        )
    return (run.pause(now_ms, _SETTLE_POLL_MS),)


def _calm(run: Run, window: Window | None) -> bool:
    """Say whether evictions are back within their guardrail; where they were not measured before, nobody can tell."""
    baseline = run.promise.baseline
    if baseline.evicted_per_s is None or baseline.misses_per_s is None:
        return True
    if window is None or window.problem is not None or window.evicted is None:
        return window is not None
    limits = run.promise.limits or limits_of(run.wishes, run.settings)
    allowed = limits.evictions_factor * max(baseline.evicted_per_s, baseline.misses_per_s, 1.0)
    return window.per_s(window.evicted) <= allowed
