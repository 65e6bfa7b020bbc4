"""Pausing and resuming, until the journal has it: an order that the journal did not take is written down again.

It stops nothing by itself; the coordinator does, at once, whatever the journal says. INVARIANT: only the newest order
is written again, so an older one never comes after it.
"""

from __future__ import annotations

from typing import Final

from cachewarden.machine import Effect, Record, SetTimer
from cachewarden.messages import RecordKind
from cachewarden.protocol import SetPaused

__all__ = ["PauseRecords"]

_AGAIN_MS: Final = 1_000


class PauseRecords:
    """The last pause or resumption, while the journal has not taken it."""

    def __init__(self) -> None:
        self._record: Record | None = None
        self._orders = 0

    def note(self, order: SetPaused) -> Record:
        """Return the record of an order."""
        self._orders += 1
        self._record = Record(
            ref=f"pause:{self._orders}",
            kind=RecordKind.PAUSED if order.paused else RecordKind.RESUMED,
            service=None,
            subject_id=order.by,
            payload={"by": order.by, "reason": order.reason, "kill": order.kill},
        )
        return self._record

    def recorded(self, ref: str) -> None:
        """Take note that the journal has a record."""
        if self._record is not None and ref == self._record.ref:
            self._record = None

    def not_recorded(self, ref: str, now_ms: int) -> tuple[Effect, ...]:
        """Return the timer that brings it back, where the record is the newest order's."""
        mine = self._record is not None and ref == self._record.ref
        return (SetTimer(ref=ref, due_ms=now_ms + _AGAIN_MS),) if mine else ()

    def again(self, ref: str) -> tuple[Effect, ...]:
        """Return the record whose timer has fired; nothing for any other timer."""
        return (self._record,) if self._record is not None and ref == self._record.ref else ()
