"""Looking before acting: whether the cache is still the one that the proposal was made for, and what will be done.

Nothing has been written to the cache in this part, so whatever is wrong ends the change without touching anything.

INVARIANT: the record `change_intended` holds the whole proposal, the backup of every touched knob and the plan, so that
a later life can finish or take back the change from the journal alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from agents.execution_rollback import abandon, end
from agents.execution_run import Run
from agents.execution_stepping import next_step
from agents.execution_table import Phase
from agents.info_facts import InfoFacts, facts_of
from agents.playbook_tables.book import refusal_of_plan, steps_of
from cachewarden.codec import to_jsonable
from cachewarden.machine import Effect, EffectFailed, ReadCounters
from cachewarden.messages import ExecutionState, RecordKind

__all__ = ["on_intending", "on_reading_counters", "on_reading_knobs"]

Effects = tuple[Effect, ...]

_NOT_SEEN = "the server shows neither its role nor its memory in use, so nothing can be watched"


def on_reading_knobs(run: Run, event: Any, _now_ms: int) -> Effects:
    """Compare every touched knob with what the proposal was made for."""
    if isinstance(event, EffectFailed):
        return abandon(run, f"the knobs cannot be read: {event.reason}; nothing had been applied")
    found = {knob: event.values.get(knob) for knob in run.before}
    missing = [k for k in sorted(found) if found[k] is None]
    if missing:
        return abandon(run, f"the server does not know `{'`, `'.join(missing)}`; nothing had been applied")
    if found == run.after and not run.proposal.ttl_rules:
        return end(
            run,
            ExecutionState.KEPT,
            RecordKind.CHANGE_KEPT,
            "already so, nothing had to be written",
            {"knobs": run.after},
        )
    wrong = [k for k in sorted(found) if found[k] != run.before[k]]
    if wrong:
        told = ", ".join(f"`{k}` is `{found[k]}`, the proposal was made for `{run.before[k]}`" for k in wrong)
        return abandon(run, f"precondition changed: {told}; nothing had been applied", {"found": found})
    run.current = dict(run.before)
    return (run.ask(ReadCounters(service=run.service), Phase.READING_COUNTERS),)


def on_reading_counters(run: Run, event: Any, now_ms: int) -> Effects:
    """See whether this server may be changed now, make the plan, and write the intention down."""
    if isinstance(event, EffectFailed):
        return abandon(run, f"the counters cannot be read: {event.reason}; nothing had been applied")
    facts = facts_of(event.observation)
    run.seen, run.seen_knobs = facts, dict(event.observation.knobs)
    why = _unfit(facts) or (_NOT_SEEN if facts.used_memory_bytes is None or facts.role is None else None)
    try:
        why = why or refusal_of_plan(run.proposal, run.ground)
        run.steps = steps_of(run.proposal, run.ground)
    except ValueError as error:
        why = why or str(error)
    if why is not None:
        return abandon(run, f"{why}; nothing had been applied")
    run.promise = replace(run.promise, refused_per_s_before=_refused_before(run, facts))
    run.intended = True
    payload = {
        "proposal": to_jsonable(run.proposal),
        **run.judged_by,
        "backup": run.before,
        "plan": to_jsonable(run.steps),
        "baseline": {
            "hit_ratio": run.promise.hit_ratio_before,
            "latency_us_p99": run.promise.latency_us_p99_before,
            "refused_per_s": run.promise.refused_per_s_before,
            "run_id": facts.run_id,
            "used_memory_bytes": facts.used_memory_bytes,
            "at_ms": now_ms,
            "series": to_jsonable(run.promise.baseline),
        },
    }
    intention = run.record(RecordKind.CHANGE_INTENDED, payload)
    return (run.ask(replace(intention, fences=(*intention.fences, *run.intent_fences)), Phase.INTENDING),)


def _unfit(facts: InfoFacts) -> str | None:
    """Return why this server may not be changed now, None if it may."""
    if facts.loading:
        return "the server is loading its data"
    if facts.role is not None and facts.role != "master":
        return f"the server's role is `{facts.role}`, only a primary is changed"
    return None


def _refused_before(run: Run, facts: InfoFacts) -> float | None:
    """Return refused writes per second before the change: 0 if there never was one, else as the planner measured it,
    if it did."""
    if facts.refused == 0:
        return 0.0
    measured = next((e.value for e in run.proposal.evidence if e.name == "refused_per_s"), None)
    return float(measured) if isinstance(measured, (int, float)) else None


def on_intending(run: Run, event: Any, now_ms: int) -> Effects:
    """Begin with the first step once the intention is durable."""
    if isinstance(event, EffectFailed):
        return abandon(run, f"the journal does not take the intention, nothing was touched: {event.reason}")
    return next_step(run, now_ms)
