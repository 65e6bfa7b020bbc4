"""Pausing and resuming: orders that were given here, and those of other deployments as the journal has them.

An order counts at once, whatever the journal says. Each is sent to the journal once, the newest until the journal has
it. Of itself it only stops, and only for a journal that does not verify. INVARIANT: one order at a time is on its way
to the journal, in the order in which they were given, so an older one never comes after a newer one; and what is read
in the journal never ends a pause that is newer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final

from cachewarden.machine import Effect, Record, Send, SetTimer
from cachewarden.messages import AuditRecord, RecordKind
from cachewarden.pausing import PAUSE_KINDS, OrdersOfPause
from cachewarden.protocol import CancelExecution, ChainChecked, SetPaused
from coordination.fleet_memory import FleetMemory

__all__ = ["PauseDesk"]

_AGAIN_MS: Final = 1_000
_HEARD_MAX: Final = 100


class PauseDesk:
    """The last pause or resumption, while the journal has not taken it. `life` names this life of the coordinator."""

    def __init__(self, life: str) -> None:
        self._life = life
        self._record: Record | None = None
        self._writing = ""
        """Ref of the record that is on its way. A slow journal may take it after what was sent later."""
        self._waiting: deque[Record] = deque()
        """What is sent next, oldest first. A kill switch stays in it though all was resumed since: others read it."""
        self._newest: tuple[str, dict[str, Any], int] | None = None
        """The newest order that the journal was known to hold, of whichever deployment: who, payload, number."""
        self._paused_in_it = False
        self._heard: dict[str, None] = {}
        self._orders = 0
        self._known = OrdersOfPause()

    def order(self, message: SetPaused, memory: FleetMemory, now_ms: int) -> tuple[Effect, ...]:
        """Take an order: it is in force, and its record and what the actuator has to know are returned."""
        memory.note_pause(message.reason, paused=message.paused)
        self._orders += 1
        told = replace(message, order_id=f"{self._life}:{now_ms}:{self._orders}")
        self._known.tell(told)
        self._record = Record(
            ref=f"pause:{self._orders}",
            kind=RecordKind.PAUSED if told.paused else RecordKind.RESUMED,
            service=None,
            subject_id=told.by,
            payload={"by": told.by, "reason": told.reason, "kill": told.kill, "order_id": told.order_id},
        )
        # The actuator must know even when nothing is in flight: an order may be on its way to it.
        effects: list[Effect] = [*self._send(self._record), Send(to="actuator", message=told)]
        if told.paused and told.kill:
            stop = CancelExecution(service="*", reason=f"kill switch, pulled by `{told.by}`: {told.reason}")
            effects.append(Send(to="actuator", message=stop))
        return tuple(effects)

    def heed(self, message: ChainChecked, memory: FleetMemory, now_ms: int) -> tuple[Effect, ...]:
        """Stop acting until a person has looked, where the journal does not verify: it cannot vouch for anything."""
        if message.ok or memory.paused:
            return ()
        order = SetPaused(paused=True, by="auditor", reason="the audit chain does not verify", kill=False)
        return self.order(order, memory, now_ms)

    def follow(self, records: Iterable[AuditRecord], memory: FleetMemory) -> bool:
        """Take what the journal was read on for; returns whether all goes on by it. The actuator reads by itself."""
        before = memory.paused
        for record in records:
            if record.kind in PAUSE_KINDS and self._known.counts(record):
                self._note(record)
                paused = record.kind == RecordKind.PAUSED
                memory.note_pause(str(record.payload.get("reason", "")), paused=paused)
        return before and not memory.paused

    def replay(self, records: Iterable[AuditRecord]) -> None:
        """Take note of the orders that earlier lives have written."""
        for record in records:
            if record.kind in PAUSE_KINDS:
                self._note(record)
                self._known.counts(record)

    def hear(self, order: SetPaused, memory: FleetMemory, now_ms: int) -> tuple[Effect, ...]:
        """Take what the actuator holds and has never read: an earlier life of ours told it, and died before the journal
        had it. A pause is in force again, and written down. A resumption nobody can vouch for ends no pause."""
        if order.order_id in self._heard or self._known.knows(order.order_id):
            return ()
        self._heard[order.order_id] = None
        while len(self._heard) > _HEARD_MAX:
            self._heard.pop(next(iter(self._heard)))
        if order.paused:
            return self.order(order, memory, now_ms)
        if not memory.paused:
            return ()
        why = f"{memory.pause_reason} (a resumption by `{order.by}` never reached the journal)"
        return self.order(SetPaused(paused=True, by=order.by, reason=why), memory, now_ms)

    def read_again(self, after_seq: int, memory: FleetMemory) -> tuple[Effect, ...]:
        """Let what stands behind `after_seq` count anew, since the journal has lost its tail.

        The pause in force, whoever ordered it, may have gone with it and is written again: twice does no harm, since it
        is known by its `order_id`.
        """
        self._known.read_again(after_seq)
        if self._newest is None or self._record is not None or not self._paused_in_it or not memory.paused:
            return ()
        by, payload, seq = self._newest
        if seq <= after_seq:
            return ()
        self._orders += 1
        ref = f"pause:{self._orders}"
        self._record = Record(ref=ref, kind=RecordKind.PAUSED, service=None, subject_id=by, payload=payload)
        return self._send(self._record)

    def _send(self, record: Record) -> tuple[Effect, ...]:
        self._waiting.append(record)
        return self._send_next()

    def _send_next(self) -> tuple[Effect, ...]:
        """Return the next order for the journal, unless another one is still on its way there."""
        if self._writing or not self._waiting:
            return ()
        record = self._waiting.popleft()
        self._writing = record.ref
        return (record,)

    def recorded(self, ref: str, record: AuditRecord) -> tuple[Effect, ...]:
        """Take note that the journal has a record; returns the order that has waited for that."""
        if ref != self._writing:
            return ()
        self._writing = ""
        if self._record is not None and ref == self._record.ref:
            self._record = None
            self._note(record)
        return self._send_next()

    def _note(self, record: AuditRecord) -> None:
        if self._newest is None or record.seq >= self._newest[2] or self._record is None:
            self._newest = record.subject_id, dict(record.payload), record.seq
            self._paused_in_it = record.kind == RecordKind.PAUSED

    def not_recorded(self, ref: str, now_ms: int) -> tuple[Effect, ...]:
        """Return the timer that brings it back, where the record is the newest order's, else the next order."""
        if ref != self._writing:
            return ()
        self._writing = ""
        mine = self._record is not None and ref == self._record.ref
        return (SetTimer(ref=ref, due_ms=now_ms + _AGAIN_MS),) if mine else self._send_next()

    def again(self, ref: str) -> tuple[Effect, ...]:
        """Return the record whose timer has fired; nothing for any other timer."""
        return self._send(self._record) if self._record is not None and ref == self._record.ref else ()
