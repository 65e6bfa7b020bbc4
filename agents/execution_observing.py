"""Watching a change: window after window beside what was predicted, until it is kept or taken back.

Looks come four times per window, so that a guardrail does not wait for the window's end. What the server itself shows
is judged at once; hits and misses are the traffic's as well, so where the requests are captured they are judged when a
replay of them without the change has come, which takes seconds, and without it when it does not come.

A look that shows another process, another role or values that are not ours ends the comparison: a server that
restarted with its old settings is reported as such, and a value that somebody else set is left alone.

INVARIANT: predicted and measured stand side by side in the journal for every window, before the change is kept or
taken back for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from agents.effect import Drift, control_drift, measured_effect
from agents.execution_keeping import persist
from agents.execution_promises import freed_bytes, judge_promises, peaks, promises_seen
from agents.execution_rollback import abandon, begin_rollback
from agents.execution_run import RECORD_TRIES_NOTED, Run
from agents.execution_table import Phase
from agents.guardrails import Judgement, Ruling, alarm, alarm_of_hits, alarm_of_server, judge, traffic_shifted
from agents.info_facts import facts_of
from agents.replay_watch import replay_comes, replayed_between
from agents.windows import Window, guardrail_window, own_lookups_unknown, window_between
from cachewarden.codec import to_jsonable
from cachewarden.errors import InvariantViolation
from cachewarden.machine import Effect, EffectFailed, Observed, ReadCounters, TimerFired
from cachewarden.messages import RecordKind
from cachewarden.observation import Observation

__all__ = ["begin_observing", "on_observing", "on_observing_control", "on_window_recording"]

Effects = tuple[Effect, ...]

_LOOKS_PER_WINDOW = 4


def begin_observing(run: Run, now_ms: int) -> Effects:
    """Take the first look; the windows are counted from there."""
    run.forget_windows(now_ms)
    run.tries = 0
    return (run.ask(ReadCounters(service=run.service), Phase.OBSERVING),)


def _next_look(run: Run, now_ms: int) -> Effects:
    run.enter(Phase.OBSERVING)
    return (run.pause(now_ms, max(1, run.settings.observation_window_ms // _LOOKS_PER_WINDOW)),)


def on_observing(run: Run, event: Any, now_ms: int) -> Effects:
    """Take one look."""
    if isinstance(event, TimerFired):
        return (run.ask(ReadCounters(service=run.service), Phase.OBSERVING),)
    if isinstance(event, EffectFailed):
        return _missed_look(run, f"the cache does not answer: {event.reason}", now_ms)
    assert isinstance(event, Observed)
    seen: Observation = event.observation
    changed = _somebody_else(run, seen)
    if changed is not None:
        return changed
    control = run.promise.baseline.control
    if control is not None:
        run.pending_look = seen
        return (run.ask(ReadCounters(service=control), Phase.OBSERVING_CONTROL),)
    return _take_look(run, seen, now_ms)


def on_observing_control(run: Run, event: Any, now_ms: int) -> Effects:
    """Take the look at the unchanged twin that belongs to our own."""
    seen, run.pending_look = run.pending_look, None
    if seen is None:
        raise InvariantViolation("a twin was looked at without a look of our own")
    _note_control(run, event.observation if isinstance(event, Observed) else None)
    return _take_look(run, seen, now_ms)


def _note_control(run: Run, twin: Observation | None) -> None:
    """Keep the window of the twin beside ours. One that was changed, or cannot be compared, is no control."""
    if twin is None:
        run.control = None
        return
    if not run.looks or run.control_first is None:
        run.control_first, run.control = twin, None
        return
    was = run.promise.baseline.control_knobs or run.control_first.knobs
    unchanged = all(twin.knobs.get(knob) == value for knob, value in was.items())
    window = window_between(run.control_first, twin)
    run.control = window if unchanged and window.problem is None else None


def _take_look(run: Run, seen: Observation, now_ms: int) -> Effects:
    unknown = own_lookups_unknown(seen)
    if unknown is not None:
        return _look_without_lookups(run, seen, unknown, now_ms)
    if not run.looks:
        _begin_window(run, (seen,))
        run.last_look = seen
        return _next_look(run, now_ms)
    piece, window = window_between(run.looks[-1], seen), window_between(run.looks[0], seen)
    if window.problem is not None:
        late = _sound_of_the_rest(run, now_ms)
        _begin_window(run, (seen,))
        run.last_look, run.control_first = seen, None
        return late or _window_done(run, window, now_ms)
    run.looks.append(seen)
    run.pieces.append(piece)
    run.last_look = seen
    trouble = alarm_of_server(piece, run.promise, run.settings) or alarm_of_server(window, run.promise, run.settings)
    if trouble is not None:
        return _sound(run, trouble, len(run.looks) - 1, now_ms)
    return _judge_looks(run, now_ms) or _next_look(run, now_ms)


def _begin_window(run: Run, looks: Sequence[Observation], pieces: Sequence[Window] = ()) -> None:
    run.looks, run.pieces, run.judged_looks = list(looks), list(pieces), 0


def _window_up_to(run: Run, number: int) -> Window:
    pieces = (piece for piece in run.pieces[:number] if piece.problem is None)
    parts = tuple((piece.lookups, piece.misses) for piece in pieces)
    return replace(window_between(run.looks[0], run.looks[number]), parts=parts)


def _drift_of(run: Run, first: int, last: int, lookups: int) -> Drift | None:
    """Return what the traffic did between two looks of the window, by the twin or by the replay."""
    baseline, looks = run.promise.baseline, run.looks
    if baseline.control is not None:
        return control_drift(baseline, run.control)
    return replayed_between(baseline, run.counterfactual, looks[first], looks[last], lookups)


def _hits_alarm(run: Run, number: int, window: Window, expected: Drift | None = None) -> str | None:
    """Return what is wrong with the hits up to a look, of its piece or of the window so far; None if nothing is.

    Where it is not known what the traffic did, `expected` stands for it.
    """
    piece, drift = run.pieces[number - 1], _drift_of(run, 0, number, window.lookups) or expected
    of_piece = _drift_of(run, number - 1, number, piece.lookups) or drift
    trouble = alarm_of_hits(piece, run.promise, run.settings, of_piece)
    return trouble or alarm_of_hits(window, run.promise, run.settings, drift)


def _judge_looks(run: Run, now_ms: int) -> Effects | None:
    """Judge the hits up to each look of which a replay tells, or that it need not be waited for; None where they give
    no reason to do anything."""
    while run.judged_looks + 1 < len(run.looks):
        number = run.judged_looks + 1
        baseline, told, look = run.promise.baseline, run.counterfactual, run.looks[number]
        if replay_comes(baseline, told, look, run.looks[-1], run.settings):
            return None
        run.judged_looks = number
        window = _window_up_to(run, number)
        trouble = _hits_alarm(run, number, window)
        if trouble is not None:
            return _sound(run, trouble, number, now_ms)
        if window.window_ms >= run.settings.observation_window_ms:
            run.drift = _drift_of(run, 0, number, window.lookups)
            _begin_window(run, run.looks[number:], run.pieces[number:])
            return _window_done(run, window, now_ms)
    return None


def _trouble_of_the_rest(run: Run) -> tuple[str, int] | None:
    """Return what is wrong with the hits of a look that was not judged yet, and its number; where no replay tells what
    the traffic has done up to it, as if that had stayed what it was in the window before."""
    for number in range(run.judged_looks + 1, len(run.looks)):
        trouble = _hits_alarm(run, number, _window_up_to(run, number), run.drift)
        if trouble is not None:
            return trouble, number
    return None


def _sound_of_the_rest(run: Run, now_ms: int) -> Effects | None:
    """Take the change back if a look says so that waits for a replay and is about to be forgotten."""
    found = _trouble_of_the_rest(run)
    return None if found is None else _sound(run, *found, now_ms)


def _sound(run: Run, trouble: str, number: int, now_ms: int) -> Effects:
    """Take the change back at once: a guardrail does not wait for a record of its own, what was seen goes into the one
    that announces the rollback."""
    window = _window_up_to(run, number)
    run.drift = _drift_of(run, 0, number, window.lookups)
    run.windows.append(window)
    run.hit_ratio_after = window.hit_ratio
    run.observed_ms = now_ms - run.observing_since_ms - max(run.looks[-1].at_ms - run.looks[number].at_ms, 0)
    return begin_rollback(run, trouble, observed=_seen_in(run, window))


def _missed_look(run: Run, problem: str, now_ms: int) -> Effects:
    """Look again, and after a whole window of missed looks record one that shows nothing."""
    run.missed_looks += 1
    if run.missed_looks % _LOOKS_PER_WINDOW:
        return _next_look(run, now_ms)
    late = _sound_of_the_rest(run, now_ms)
    _begin_window(run, ())
    return late or _window_done(run, Window(problem=problem), now_ms)


def _look_without_lookups(run: Run, seen: Observation, unknown: str, now_ms: int) -> Effects:
    """Take a look whose hits cannot be told from our own: it says nothing for or against the promise, but latency and
    refused writes may still raise an alarm.
    """
    if run.last_look is None:
        run.last_look = seen
    else:
        window = guardrail_window(run.last_look, seen)
        trouble = alarm(window, run.promise, run.settings)
        if trouble is not None:
            run.windows.append(window)
            run.drift = None
            run.observed_ms = now_ms - run.observing_since_ms
            return begin_rollback(run, trouble, observed=_seen_in(run, window))
    return _missed_look(run, unknown, now_ms)


def _somebody_else(run: Run, seen: Observation) -> Effects | None:
    """End where the cache is no longer the one that was changed; None where it is."""
    facts = facts_of(seen)
    known = facts_of(run.last_look) if run.last_look is not None else run.seen
    restarted = known is not None and None not in (known.run_id, facts.run_id) and known.run_id != facts.run_id
    found = {k: seen.knobs[k] for k in sorted(run.current) if k in seen.knobs and seen.knobs[k] != run.current[k]}
    told = ", ".join(f"`{k}` is `{v}`" for k, v in found.items())
    if facts.role is not None and facts.role != "master":
        return abandon(
            run,
            f"the server's role is `{facts.role}` now, its values are left as they are",
            {"knobs": dict(run.current)},
        )
    if not found:
        return None
    if restarted and all(seen.knobs.get(k) == v for k, v in run.before.items()):
        return abandon(run, f"the server restarted with other settings: {told}", {"found": found})
    if restarted:
        # A mixture of old and new values is nobody's wish: it is what a restart left of ours.
        run.current.update(found)
        return begin_rollback(run, f"the server restarted with a part of the settings: {told}")
    return abandon(run, f"somebody else has changed the cache, it is left alone: {told}", {"found": found})


def _window_done(run: Run, window: Window, now_ms: int) -> Effects:
    run.windows.append(window)
    if window.problem is not None:
        run.drift = None
    # Looks that came while a replay was waited for are not of this window.
    later_ms = run.last_look.at_ms - run.looks[0].at_ms if run.looks and run.last_look is not None else 0
    run.observed_ms = now_ms - run.observing_since_ms - max(later_ms, 0)
    run.tries = run.missed_looks = 0
    if window.hit_ratio is not None:
        run.hit_ratio_after = window.hit_ratio
    run.freed_bytes, (_, run.peak_share) = freed_bytes(run), peaks(run)
    return (run.ask(run.record(RecordKind.OBSERVED, _seen_in(run, window)), Phase.WINDOW_RECORDING),)


def _seen_in(run: Run, window: Window) -> dict[str, Any]:
    """Return predicted and measured side by side."""
    prediction, drift = run.proposal.prediction, run.drift
    shifted = window.problem is None and traffic_shifted(window, run.promise)
    effect = measured_effect(
        run.promise.hit_ratio_before, run.promise.baseline, window, run.control, shifted=shifted, drift=drift
    )
    return {
        "window": len(run.windows),
        "window_ms": window.window_ms,
        "lookups": window.lookups,
        "hit_ratio": window.hit_ratio,
        "hit_ratio_before": run.promise.hit_ratio_before,
        "predicted_hit_ratio": to_jsonable(prediction.hit_ratio_after),
        "predicted_gain": to_jsonable(prediction.gain),
        "latency_us_p99": None if window.latency is None else window.latency.value_us,
        "evicted": window.evicted,
        "cpu_share": window.cpu_share,
        "effect": to_jsonable(effect),
        "control": run.promise.baseline.control,
        "control_drift": None if drift is None else drift.value,
        "control_drift_error": None if drift is None else drift.error,
        "control_drift_by": None if drift is None else drift.words,
        "refused": window.refused,
        "problem": window.problem,
        "clock_note": window.clock_note,
        "traffic_shifted": shifted,
        "ttl_rounds": [
            {"pattern": r.rule.pattern, "rounds": r.rounds, "extended": r.extended, "keeps_up": r.keeps_up}
            for r in run.rules
        ],
        **promises_seen(run),
        "observed_ms": run.observed_ms,
    }


def on_window_recording(run: Run, event: Any, now_ms: int) -> Effects:
    """Rule once the window is in the journal."""
    if isinstance(event, TimerFired):
        return (run.ask_again(),)
    if isinstance(event, EffectFailed):
        if run.tries >= RECORD_TRIES_NOTED:
            run.reason = f"waits for the journal, nothing is decided until it is back: {event.reason}"
        return (run.back_off(now_ms),)
    run.tries = 0
    judgement = judge(run.windows, run.promise, run.settings, run.observed_ms, run.drift)
    judgement = judge_promises(run, judgement, more=len(run.windows) < run.settings.observation_windows_max)
    rest = _trouble_of_the_rest(run) if judgement.ruling is Ruling.KEEP else None
    if rest is not None and len(run.windows) >= run.settings.observation_windows_max:
        return _sound(run, *rest, now_ms)
    if rest is not None:
        # It may be the traffic's: a replay will tell before the next window ends.
        judgement = Judgement(Ruling.CONTINUE, f"{judgement.reason}; but since then {rest[0]}")
    run.reason = judgement.reason
    if judgement.ruling is Ruling.ROLL_BACK:
        return begin_rollback(run, judgement.reason)
    if judgement.ruling is Ruling.CONTINUE:
        # The twin's next window begins with ours; what it did so far has been judged by.
        run.control_first = None
        return _next_look(run, now_ms)
    return persist(run, judgement.reason, now_ms)
