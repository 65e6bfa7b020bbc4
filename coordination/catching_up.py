"""What the coordinator was not told: the journal is read on, so that a report that got lost is not lost for good.

Reports of the actuator are delivered at most once. The journal has every beginning and every ending of a change, so the
coordinator reads what was added to it, every few seconds, and takes what it has not heard of as if it had been told.
So it learns what other deployments have ordered, too: pauses and modes.

It decides nothing. INVARIANT: every record is read at least once per life of the coordinator, also after the journal
lost its tail.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from cachewarden.machine import Effect, JournalRead, ReadJournal, SetTimer
from cachewarden.messages import AuditRecord

__all__ = ["CATCH_UP", "CatchingUp"]

CATCH_UP: Final = "catch-up"
"""Ref of its timer and of its question."""
_PAGE: Final = 1_000


class CatchingUp:
    """How far the journal was read; `interval_ms` lies between two looks."""

    def __init__(self, interval_ms: int) -> None:
        self._interval_ms = interval_ms
        self._seq = 0

    def begin(self, replayed: Iterable[AuditRecord], now_ms: int) -> Effect:
        """Go on behind what was replayed at the start."""
        self._seq = max((record.seq for record in replayed), default=0)
        return SetTimer(ref=CATCH_UP, due_ms=now_ms + self._interval_ms)

    def ask(self, now_ms: int) -> tuple[Effect, ...]:
        """Read on, and again after the interval."""
        again = SetTimer(ref=CATCH_UP, due_ms=now_ms + self._interval_ms)
        return (ReadJournal(ref=CATCH_UP, after_seq=self._seq, limit=_PAGE), again)

    def note_own(self, seq: int) -> None:
        """Take note of a record of ours: where it is not behind what was read, the journal had lost some."""
        self._seq = min(self._seq, seq)

    def read(self, event: JournalRead, now_ms: int) -> tuple[Effect, ...]:
        """Note how far it was read; a page that is full has another behind it, which is read at once."""
        self._seq = max((record.seq for record in event.records), default=self._seq)
        return (SetTimer(ref=CATCH_UP, due_ms=now_ms),) if len(event.records) >= _PAGE else ()
