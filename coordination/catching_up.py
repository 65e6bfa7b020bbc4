"""What the coordinator was not told: the journal is read on, so that a report that got lost is not lost for good.

Reports of the actuator are delivered at most once. The journal has every beginning and every ending of a change, so the
coordinator reads what was added to it, every few seconds, and takes what it has not heard of as if it had been told.
So it learns what other deployments have ordered, too: pauses and modes.

It decides nothing. INVARIANT: every record that stands in the journal is read at least once per life of the
coordinator, also after the journal lost its tail.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cachewarden.journal_tail import JournalTail, Reading
from cachewarden.machine import Effect, JournalRead, SetTimer
from cachewarden.messages import AuditRecord

__all__ = ["CATCH_UP", "CatchingUp"]

CATCH_UP: Final = "catch-up"
"""Ref of its timer and of its question."""


class CatchingUp:
    """How far the journal was read; `interval_ms` lies between two looks."""

    def __init__(self, interval_ms: int) -> None:
        self._interval_ms = interval_ms
        self._tail = JournalTail()

    def begin(self, replayed: Sequence[AuditRecord], now_ms: int) -> Effect:
        """Go on behind what was replayed at the start."""
        self._tail.begin(replayed)
        return SetTimer(ref=CATCH_UP, due_ms=now_ms + self._interval_ms)

    def ask(self, now_ms: int) -> tuple[Effect, ...]:
        """Read on, and again after the interval."""
        return (self._tail.question(CATCH_UP), SetTimer(ref=CATCH_UP, due_ms=now_ms + self._interval_ms))

    def read(self, event: JournalRead, now_ms: int) -> tuple[Reading, tuple[Effect, ...]]:
        """Return what is new, and the timer that brings the next question at once where there is more."""
        reading = self._tail.take(event.records)
        return reading, (SetTimer(ref=CATCH_UP, due_ms=now_ms),) if reading.again else ()
