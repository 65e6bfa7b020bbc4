"""Keeping a change: writing it to the server's configuration file where its owner permits that, and the last record.

CONFIG SET is lost at the next restart unless a file carries it. Where there is a file and a permission, CONFIG REWRITE
is announced in the journal, done under the fence, and its outcome stands in the last record. A refusal, an answer that
was lost, or the want of a file change nothing about the change: it is kept as long as the process lives, and
`coordination/settings_watch.py` sees when it is gone.

INVARIANT: a change that was judged to be kept is kept whatever becomes of the file, unless it is stopped before its
last record is on its way: then no rewrite is begun any more, and the change is taken back.
"""

from __future__ import annotations

from typing import Any

from agents.effect import measured_effect
from agents.execution_promises import promises_seen
from agents.execution_rollback import end
from agents.execution_run import RECORD_TRIES_NOTED, Run
from agents.execution_table import Phase
from agents.guardrails import traffic_shifted
from agents.recovery import PERSIST
from cachewarden.codec import to_jsonable
from cachewarden.errors import InvariantViolation
from cachewarden.machine import ConfigRewritten, Effect, EffectFailed, RewriteConfig, TimerFired
from cachewarden.messages import ExecutionState, RecordKind

__all__ = ["note_rewritten", "on_persist_intending", "on_persisting", "persist"]

Effects = tuple[Effect, ...]


def persist(run: Run, reason: str, now_ms: int) -> Effects:
    """Announce that the file will be rewritten, or end where it may not."""
    run.reason = reason
    why_not = _why_not(run, now_ms)
    if why_not is not None:
        run.persisted = {"rewritten": False, "reason": why_not}
        return _kept(run)
    payload = {"step": len(run.steps), "steps": len(run.steps), "what": {"kind": PERSIST, "changes": [], "rule": None}}
    return (run.ask(run.record(RecordKind.STEP_INTENDED, payload), Phase.PERSIST_INTENDING),)


def _why_not(run: Run, now_ms: int) -> str | None:
    if not run.proposal.knob_changes:
        return "no setting was changed"
    if run.wishes is None or not run.wishes.config_rewrite:
        return "the fleet file does not permit CONFIG REWRITE, set `config_rewrite: true` for the service"
    if run.lease is None or now_ms >= run.lease_until_ms:
        return "the lease had run out"
    return None


def on_persist_intending(run: Run, event: Any, now_ms: int) -> Effects:
    """Rewrite once the announcement is durable."""
    if isinstance(event, TimerFired):
        return (run.ask_again(),)
    if isinstance(event, EffectFailed):
        if run.tries >= RECORD_TRIES_NOTED:
            run.reason = f"waits for the journal, nothing is written until it is back: {event.reason}"
        return (run.back_off(now_ms),)
    run.tries = 0
    why_not = _why_not(run, now_ms)
    if why_not is not None or run.lease is None:
        run.persisted = {"rewritten": False, "reason": why_not or "without a lease"}
        return _kept(run)
    return (run.ask(RewriteConfig(service=run.service, lease=run.lease), Phase.PERSISTING),)


def on_persisting(run: Run, event: Any, _now_ms: int) -> Effects:
    """Take the server's answer, whatever it is."""
    note_rewritten(run, event)
    return _kept(run)


def note_rewritten(run: Run, event: Any) -> None:
    """Note what has become of the file; raises InvariantViolation for what is no answer to CONFIG REWRITE."""
    if isinstance(event, ConfigRewritten):
        run.persisted = {"rewritten": event.rewritten, "reason": event.reason}
    elif isinstance(event, EffectFailed):
        unknown = "it is not known whether the file was rewritten: " if event.outcome_unknown else ""
        run.persisted = {"rewritten": False, "reason": f"{unknown}{event.reason}"}
    else:
        raise InvariantViolation(f"`{type(event).__name__}` is no answer to CONFIG REWRITE")


def _kept(run: Run) -> Effects:
    before, last = run.promise.hit_ratio_before, run.windows[-1]
    shifted = last.problem is None and traffic_shifted(last, run.promise)
    effect = measured_effect(before, run.promise.baseline, last, run.control, shifted=shifted, drift=run.drift)
    payload = {
        "predicted_gain": to_jsonable(run.proposal.prediction.gain),
        "realised_gain": None if effect.gain is None else effect.gain.value,
        "effect": to_jsonable(effect),
        "knobs": dict(run.current),
        "run_id": None if run.last_look is None else run.last_look.info.get("run_id"),
        "ttl_rules": to_jsonable(run.proposal.ttl_rules),
        "persisted": dict(run.persisted),
        **promises_seen(run),
    }
    reason = run.reason
    return end(run, ExecutionState.KEPT, RecordKind.CHANGE_KEPT, reason, payload)
