"""The table of one execution: in which phase which event is legal, and where it may lead.

It decides nothing; `agents/execution.py` asks it before an event is handled and checks the outcome against it
afterwards. What is not in the table raises InvariantViolation before anything has changed.

A phase is finer than an `ExecutionState`: it says which one answer is being waited for. In every phase that asks for
something over again after a failure, `TimerFired` is the end of the pause before the next try.

INVARIANT: no phase before `STEP_INTENDING` and none after `ENDING` but `GOVERNING` writes to a cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from cachewarden.errors import InvariantViolation
from cachewarden.machine import (
    ConfigRewritten,
    EffectFailed,
    HotKeysCollected,
    KeysReencoded,
    KnobsRead,
    KnobsWritten,
    LeaseDenied,
    LeaseGranted,
    Observed,
    Recorded,
    SpreadMeasured,
    TimerFired,
    TtlsExtended,
)
from cachewarden.messages import ExecutionState

__all__ = ["BEFORE_STEPS", "OUT", "STATE_OF", "TABLE", "Phase", "check_arrival", "check_event"]


class Phase(StrEnum):
    """What an execution is waiting for."""

    LEASING = "leasing"
    READING_KNOBS = "reading_knobs"
    READING_COUNTERS = "reading_counters"
    INTENDING = "intending"
    STEP_INTENDING = "step_intending"
    WRITING = "writing"
    READING_BACK = "reading_back"
    COLLECTING = "collecting"
    TOUCHING = "touching"
    CHECKING_SPREAD = "checking_spread"
    REENCODING = "reencoding"
    PACING = "pacing"
    EXTENDING = "extending"
    STEP_RECORDING = "step_recording"
    SETTLING = "settling"
    REFENCING = "refencing"
    VERIFYING = "verifying"
    RECOVERING = "recovering"
    OBSERVING = "observing"
    OBSERVING_CONTROL = "observing_control"
    WINDOW_RECORDING = "window_recording"
    PERSIST_INTENDING = "persist_intending"
    PERSISTING = "persisting"
    REVOKING = "revoking"
    UNDO_WRITING = "undo_writing"
    UNDO_SETTLING = "undo_settling"
    UNDO_EXTENDING = "undo_extending"
    UNDO_REFENCING = "undo_refencing"
    UNDO_VERIFYING = "undo_verifying"
    UNDO_PERSISTING = "undo_persisting"
    ENDING = "ending"
    GOVERNING = "governing"
    DONE = "done"


_P = Phase
_S = ExecutionState

BEFORE_STEPS = frozenset({_P.LEASING, _P.READING_KNOBS, _P.READING_COUNTERS, _P.INTENDING})
"""The phases before an intention is known to be durable."""

STATE_OF: Mapping[Phase, ExecutionState | None] = MappingProxyType(
    {
        _P.LEASING: _S.LEASING,
        _P.READING_KNOBS: _S.CHECKING,
        _P.READING_COUNTERS: _S.CHECKING,
        _P.INTENDING: _S.CHECKING,
        _P.RECOVERING: _S.CHECKING,
        _P.STEP_INTENDING: _S.STEPPING,
        _P.WRITING: _S.STEPPING,
        _P.READING_BACK: _S.STEPPING,
        _P.COLLECTING: _S.STEPPING,
        _P.TOUCHING: _S.STEPPING,
        _P.CHECKING_SPREAD: _S.STEPPING,
        _P.REENCODING: _S.STEPPING,
        _P.PACING: _S.STEPPING,
        _P.EXTENDING: _S.STEPPING,
        _P.STEP_RECORDING: _S.STEPPING,
        _P.SETTLING: _S.STEPPING,
        _P.REFENCING: _S.STEPPING,
        _P.VERIFYING: _S.STEPPING,
        _P.OBSERVING: _S.OBSERVING,
        _P.OBSERVING_CONTROL: _S.OBSERVING,
        _P.WINDOW_RECORDING: _S.OBSERVING,
        _P.PERSIST_INTENDING: _S.OBSERVING,
        _P.PERSISTING: _S.OBSERVING,
        _P.REVOKING: _S.ROLLING_BACK,
        _P.UNDO_WRITING: _S.ROLLING_BACK,
        _P.UNDO_SETTLING: _S.ROLLING_BACK,
        _P.UNDO_EXTENDING: _S.ROLLING_BACK,
        _P.UNDO_REFENCING: _S.ROLLING_BACK,
        _P.UNDO_VERIFYING: _S.ROLLING_BACK,
        _P.UNDO_PERSISTING: _S.ROLLING_BACK,
        # The outcome counts once it is in the journal; until then the state is what it was.
        _P.ENDING: None,
        _P.GOVERNING: None,
        _P.DONE: None,
    }
)
"""State that others are told; None leaves it as it is."""

Row = Mapping[type, frozenset[Phase]]


def _row(*legal: tuple[type, tuple[Phase, ...]]) -> Row:
    return MappingProxyType({kind: frozenset(targets) for kind, targets in legal})


OUT = frozenset({_P.REVOKING, _P.ENDING})
"""Where an execution goes that was stopped from outside, from whatever phase."""
_STOP = tuple(sorted(OUT))
"""Every phase after the first write may end in a rollback or, where a newer writer owns the cache, at once."""
_NEXT_STEP = (_P.STEP_INTENDING, _P.OBSERVING)
_UNDO_NEXT = (
    _P.UNDO_WRITING,
    _P.UNDO_EXTENDING,
    _P.UNDO_REFENCING,
    _P.UNDO_VERIFYING,
    _P.UNDO_SETTLING,
    _P.UNDO_PERSISTING,
    _P.REVOKING,
    _P.ENDING,
)
_WORK = (_P.WRITING, _P.TOUCHING, _P.EXTENDING, _P.COLLECTING, _P.CHECKING_SPREAD, _P.REENCODING)
_FENCED = (*_WORK, _P.REFENCING, _P.VERIFYING, _P.READING_BACK)


def _fencing(work: tuple[Phase, ...], again: Phase, verify: Phase, stop: tuple[Phase, ...]) -> Row:
    return _row(
        # A lease that was so long on its way that it has run out is asked for again.
        (LeaseGranted, (*work, verify, again, *stop)),
        (LeaseDenied, stop),
        (EffectFailed, (again, *stop)),
        (TimerFired, (again, *stop)),
    )


TABLE: Mapping[Phase, Row] = MappingProxyType(
    {
        _P.LEASING: _row(
            (LeaseGranted, (_P.READING_KNOBS, _P.READING_COUNTERS, _P.RECOVERING, _P.GOVERNING, _P.OBSERVING, *_STOP)),
            (LeaseDenied, (_P.ENDING, _P.LEASING)),
            (EffectFailed, (_P.ENDING, _P.LEASING)),
            (TimerFired, (_P.LEASING, _P.ENDING)),
        ),
        _P.READING_KNOBS: _row((KnobsRead, (_P.READING_COUNTERS, _P.ENDING)), (EffectFailed, (_P.ENDING,))),
        _P.READING_COUNTERS: _row((Observed, (_P.INTENDING, _P.ENDING)), (EffectFailed, (_P.ENDING,))),
        _P.INTENDING: _row((Recorded, (_P.STEP_INTENDING, _P.ENDING)), (EffectFailed, (_P.ENDING,))),
        _P.STEP_INTENDING: _row(
            (Recorded, (*_FENCED, *_STOP)),
            (EffectFailed, (_P.STEP_INTENDING, *_STOP)),
            (TimerFired, (_P.STEP_INTENDING, *_STOP)),
        ),
        _P.WRITING: _row(
            (KnobsWritten, (_P.STEP_RECORDING, *_STOP)),
            (EffectFailed, (_P.WRITING, _P.REFENCING, *_STOP)),
            (TimerFired, (*_FENCED, *_STOP)),
        ),
        _P.READING_BACK: _row(
            (KnobsRead, (_P.STEP_RECORDING, *_FENCED, *_STOP)),
            (EffectFailed, (_P.READING_BACK, *_STOP)),
            (TimerFired, (_P.READING_BACK, *_STOP)),
        ),
        _P.COLLECTING: _row((HotKeysCollected, (_P.STEP_RECORDING, *_STOP)), (EffectFailed, _STOP)),
        _P.TOUCHING: _row((HotKeysCollected, (_P.STEP_RECORDING, *_STOP)), (EffectFailed, (_P.REFENCING, *_STOP))),
        _P.CHECKING_SPREAD: _row((SpreadMeasured, (_P.STEP_RECORDING, *_STOP)), (EffectFailed, _STOP)),
        _P.REENCODING: _row(
            (KeysReencoded, (_P.PACING, _P.STEP_RECORDING, *_STOP)),
            (EffectFailed, (_P.REENCODING, _P.REFENCING, *_STOP)),
            (TimerFired, (*_FENCED, *_STOP)),
        ),
        _P.PACING: _row(
            (Observed, (*_FENCED, *_STOP)),
            (EffectFailed, (_P.PACING, *_STOP)),
            (TimerFired, (_P.PACING, *_STOP)),
        ),
        _P.EXTENDING: _row(
            (TtlsExtended, (_P.STEP_RECORDING, *_STOP)),
            (EffectFailed, (_P.EXTENDING, _P.REFENCING, *_STOP)),
            (TimerFired, (*_FENCED, *_STOP)),
        ),
        _P.STEP_RECORDING: _row(
            (Recorded, (_P.SETTLING, *_NEXT_STEP, *_STOP)),
            (EffectFailed, (_P.STEP_RECORDING, *_STOP)),
            (TimerFired, (_P.STEP_RECORDING, *_STOP)),
        ),
        _P.SETTLING: _row(
            (Observed, (_P.SETTLING, *_NEXT_STEP, *_STOP)),
            (EffectFailed, (_P.SETTLING, *_STOP)),
            (TimerFired, (_P.SETTLING, *_STOP)),
        ),
        _P.REFENCING: _fencing((*_WORK, _P.READING_BACK), _P.REFENCING, _P.VERIFYING, _STOP),
        _P.VERIFYING: _row(
            (KnobsRead, (*_FENCED, *_STOP)),
            (EffectFailed, (_P.VERIFYING, *_STOP)),
            (TimerFired, (_P.VERIFYING, *_STOP)),
        ),
        _P.RECOVERING: _row(
            (KnobsRead, (_P.OBSERVING, *_STOP)),
            (EffectFailed, (_P.RECOVERING, _P.ENDING)),
            (TimerFired, (_P.RECOVERING, _P.ENDING)),
        ),
        _P.OBSERVING: _row(
            (Observed, (_P.OBSERVING, _P.OBSERVING_CONTROL, _P.WINDOW_RECORDING, *_STOP)),
            (EffectFailed, (_P.OBSERVING, _P.WINDOW_RECORDING, *_STOP)),
            (TimerFired, (_P.OBSERVING, *_STOP)),
        ),
        # A twin that does not answer ends the comparison with it, never the observation.
        _P.OBSERVING_CONTROL: _row(
            (Observed, (_P.OBSERVING, _P.WINDOW_RECORDING, *_STOP)),
            (EffectFailed, (_P.OBSERVING, _P.WINDOW_RECORDING, *_STOP)),
        ),
        _P.WINDOW_RECORDING: _row(
            (Recorded, (_P.OBSERVING, _P.PERSIST_INTENDING, *_STOP)),
            (EffectFailed, (_P.WINDOW_RECORDING, *_STOP)),
            (TimerFired, (_P.WINDOW_RECORDING, *_STOP)),
        ),
        _P.PERSIST_INTENDING: _row(
            (Recorded, (_P.PERSISTING, _P.ENDING)),
            (EffectFailed, (_P.PERSIST_INTENDING,)),
            (TimerFired, (_P.PERSIST_INTENDING,)),
        ),
        _P.PERSISTING: _row((ConfigRewritten, (_P.ENDING,)), (EffectFailed, (_P.ENDING,))),
        _P.REVOKING: _row(
            (Recorded, _UNDO_NEXT), (EffectFailed, (_P.REVOKING, _P.ENDING)), (TimerFired, (_P.REVOKING, _P.ENDING))
        ),
        _P.UNDO_WRITING: _row((KnobsWritten, _UNDO_NEXT), (EffectFailed, _UNDO_NEXT), (TimerFired, _UNDO_NEXT)),
        _P.UNDO_SETTLING: _row((Observed, _UNDO_NEXT), (EffectFailed, _UNDO_NEXT), (TimerFired, _UNDO_NEXT)),
        _P.UNDO_EXTENDING: _row((TtlsExtended, _UNDO_NEXT), (EffectFailed, _UNDO_NEXT), (TimerFired, _UNDO_NEXT)),
        _P.UNDO_REFENCING: _fencing(_UNDO_NEXT, _P.UNDO_REFENCING, _P.UNDO_VERIFYING, _UNDO_NEXT),
        _P.UNDO_VERIFYING: _row(
            (KnobsRead, _UNDO_NEXT),
            (EffectFailed, _UNDO_NEXT),
            (TimerFired, (_P.UNDO_VERIFYING, _P.ENDING)),
        ),
        _P.UNDO_PERSISTING: _row((ConfigRewritten, (_P.ENDING,)), (EffectFailed, (_P.ENDING,))),
        _P.ENDING: _row(
            (Recorded, (_P.DONE, _P.GOVERNING)),
            (EffectFailed, (_P.ENDING, _P.DONE)),
            (TimerFired, (_P.ENDING,)),
        ),
        # A kept TTL rule is governed on the side; only somebody's wish to take it back moves it on.
        _P.GOVERNING: _row(),
        _P.DONE: _row(),
    }
)


def check_event(phase: Phase, event: Any) -> None:
    """Raise InvariantViolation if this kind of answer is not one that the phase can be waiting for."""
    if type(event) not in TABLE[phase]:
        raise InvariantViolation(f"`{type(event).__name__}` is no answer to what `{phase}` asked for")


def check_arrival(before: Phase, event: Any, after: Phase, *, halted: bool = False) -> None:
    """Raise InvariantViolation if the event may not lead from `before` to `after`; what was stopped leads out."""
    legal = OUT if halted else TABLE[before][type(event)]
    if after not in legal:
        raise InvariantViolation(f"`{type(event).__name__}` must not lead from `{before}` to `{after}`")
