"""The modes of all services: those of the fleet file, and what persons have changed since, here or elsewhere.

It takes orders, writes them into the journal and tells every agent. A mode that permits less is in force at once and
is written down again and again until the journal has it; one that permits more is in force only once the journal has
it, and is dropped where the journal is gone. What another deployment has ordered is followed in the journal. It never
judges who may give an order.

INVARIANT: `modes` never permits more than the journal, as far as it was read, and the fleet file do. Of one service one
order is on its way to the journal at a time, so the journal has them in the order in which they were given.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

from cachewarden.fleet import Fleet
from cachewarden.machine import Effect, EffectFailed, Record, Recorded, Send, SetTimer, TimerFired
from cachewarden.messages import AuditRecord, Mode, RecordKind
from cachewarden.modes import ACTING, RANK, modes_of
from cachewarden.protocol import CancelExecution, ModesChanged, SetMode

__all__ = ["ModeDesk"]

MODE_REF: Final = "mode:"

_AGAIN_MS: Final = 1_000
_LISTENERS: Final = ("planner", "validator", "consensus", "actuator")


@dataclass(slots=True)
class _Order:
    """One order until the journal has it. `raises`: it permits more than what was in force, so it waits."""

    record: Record
    message: SetMode
    raises: bool
    sent: bool = False


class ModeDesk:
    """Mutable state of one coordinator."""

    replay_kinds = (RecordKind.MODE_CHANGED.value,)

    def __init__(self, fleet: Fleet) -> None:
        self._filed = fleet
        self._written: dict[str, Mode] = {}
        """Modes by the journal, where they differ from the fleet file."""
        self._seq: dict[str, int] = {}
        """Service to the newest record of its mode that was taken."""
        self._written_here: dict[str, tuple[_Order, int]] = {}
        """Service to the newest order that the journal has taken from here, and where it stands."""
        self._queues: dict[str, deque[_Order]] = {}
        self._orders = 0
        self._ever = False
        self.overrides: dict[str, str] = {}
        """Modes that differ from the fleet file, as text."""
        self.modes: dict[str, Mode] = {s.name: s.mode for s in fleet.services}
        """By service; the same object for the life of the coordinator, so that others may look into it."""

    @property
    def looked_at(self) -> tuple[str, ...]:
        """Services that are observed."""
        return tuple(s.name for s in self._filed.services if self.modes[s.name] is not Mode.OFF)

    # --- The journal ------------------------------------------------------------------------------------------------

    def replay(self, records: Iterable[AuditRecord]) -> tuple[Effect, ...]:
        """Take over what the journal says, and tell it."""
        records = tuple(records)
        self._written = modes_of(records, self._filed)
        self._seq = {r.service: r.seq for r in records if r.kind == RecordKind.MODE_CHANGED and r.service}
        self._take()
        return self.tell()

    def follow(self, records: Iterable[AuditRecord]) -> tuple[Effect, ...]:
        """Take what the journal was read on for: orders that another deployment has written since.

        A mode that forbids writing takes back what is in flight, as one that was ordered here does.
        """
        effects: list[Effect] = []
        found = False
        for record in records:
            service = record.service
            if record.kind != RecordKind.MODE_CHANGED or service is None or record.seq <= self._seq.get(service, 0):
                continue
            if service not in self.modes:
                continue
            found = True
            self._seq[service] = record.seq
            self._written = modes_of((record,), self._filed, self._written)
            self._take()
            if self.modes[service] not in ACTING:
                by, why = (str(record.payload.get(name, "")) for name in ("by", "reason"))
                effects.append(_stop(service, self.modes[service], by, why))
        return (*effects, *self.tell()) if found else ()

    def read_again(self, after_seq: int) -> tuple[Effect, ...]:
        """Let what stands behind `after_seq` count anew, since the journal has lost its tail.

        What we wrote there and permits no more than was in force before is written again and holds until then. What may
        have been lost permits no more than the fleet file until it is read again.
        """
        lost = {service for service, seq in self._seq.items() if seq > after_seq}
        self._seq = {service: min(taken, after_seq) for service, taken in self._seq.items()}
        effects: list[Effect] = []
        for service in sorted(lost):
            order, seq = self._written_here.get(service, (None, 0))
            in_force = order is not None and self.modes[service] is order.message.mode
            if order is not None and in_force and seq > after_seq and not order.raises and service not in self._queues:
                self._queues[service] = deque((replace(order, sent=False),))
                effects += self._send_next(service)
            filed = self._filed.service(service).mode
            self._written[service] = min(filed, self._written.get(service, filed), key=RANK.__getitem__)
        self._take()
        return (*effects, *self.tell()) if lost else ()

    # --- Orders -----------------------------------------------------------------------------------------------------

    def order(self, message: SetMode, now_ms: int) -> tuple[Effect, ...]:
        """Take an order; one that is about no service of the fleet changes nothing."""
        before = self.modes.get(message.service)
        if before is None:
            return ()
        self._orders += 1
        record = Record(
            ref=f"{MODE_REF}{now_ms}:{self._orders}",
            kind=RecordKind.MODE_CHANGED.value,
            service=message.service,
            subject_id=message.service,
            payload={
                "mode": message.mode.value,
                "before": before.value,
                "file_mode": self._filed.service(message.service).mode.value,
                "by": message.by,
                "reason": message.reason,
            },
        )
        order = _Order(record, message, raises=RANK[message.mode] > RANK[before])
        queue = self._queues.setdefault(message.service, deque())
        # The newest order counts. What has not left yet and permits as much or more than it is overtaken by it.
        overtaken = [o for o in queue if not o.sent and (o.raises or not order.raises)]
        for other in overtaken:
            queue.remove(other)
        queue.append(order)
        sent = self._send_next(message.service)
        return sent if order.raises else (*sent, *self._enforce(message))

    @staticmethod
    def concerns(event: Any) -> bool:
        """Whether an event answers what this desk has asked for."""
        answers = isinstance(event, (Recorded, EffectFailed, TimerFired))
        return answers and event.ref.startswith(MODE_REF)

    def step(self, event: Any, now_ms: int) -> tuple[Effect, ...]:
        """Take the journal's answer to an order.

        What is in force already is recorded again and again, whatever is ordered after it; what would permit more is
        dropped, and whoever ordered it is not told that it was taken.
        """
        service, order = next(
            ((s, queue[0]) for s, queue in self._queues.items() if queue and queue[0].record.ref == event.ref),
            ("", None),
        )
        if order is None:
            return ()
        queue = self._queues[service]
        if isinstance(event, TimerFired):
            return self._send_next(service)
        if isinstance(event, Recorded):
            queue.popleft()
            self._written_here[service] = order, event.record.seq
            return (*self._on_recorded(order.message, event.record), *self._send_next(service))
        order.sent = False
        # The journal is gone: what would permit more may not wait for it, since nobody would know when it comes.
        for other in [o for o in queue if o.raises]:
            queue.remove(other)
        if queue and queue[0] is order:
            return (SetTimer(ref=event.ref, due_ms=now_ms + _AGAIN_MS),)
        return self._send_next(service)

    def _send_next(self, service: str) -> tuple[Effect, ...]:
        queue = self._queues[service]
        if not queue:
            del self._queues[service]
            return ()
        if queue[0].sent:
            return ()
        queue[0].sent = True
        return (queue[0].record,)

    def _on_recorded(self, message: SetMode, record: AuditRecord) -> tuple[Effect, ...]:
        late = record.seq <= self._seq.get(message.service, 0)
        self._seq[message.service] = record.seq
        now = self._written.get(message.service, self._filed.service(message.service).mode)
        # Late: a later record was read before this answer came, or the journal has lost its tail. What is behind this
        # one is read again, and until then the stricter of both counts.
        if not late or RANK[message.mode] <= RANK[now]:
            self._written = modes_of((record,), self._filed, self._written)
        return self._enforce(message)

    def tell(self) -> tuple[Effect, ...]:
        """Return what every agent has to know; said again with every cycle, since a message may be lost."""
        if not self._ever:
            return ()
        news = ModesChanged(modes={name: Mode(mode) for name, mode in self.overrides.items()})
        return tuple(Send(to=name, message=news) for name in _LISTENERS)

    def _enforce(self, message: SetMode) -> tuple[Effect, ...]:
        self._take()
        mode = self.modes[message.service]
        if mode in ACTING:
            return self.tell()
        # What is in flight is taken back first, and its agent told of the mode after that.
        return (_stop(message.service, mode, message.by, message.reason), *self.tell())

    def _take(self) -> None:
        """Work out the modes in force: those of the journal, or what is stricter and on its way there."""
        for service in self._filed.services:
            waiting = (o.message.mode for o in self._queues.get(service.name, ()) if not o.raises)
            written = self._written.get(service.name, service.mode)
            self.modes[service.name] = min((written, *waiting), key=RANK.__getitem__)
        filed = {s.name: s.mode for s in self._filed.services}
        self.overrides = {name: mode.value for name, mode in sorted(self.modes.items()) if mode is not filed[name]}
        self._ever = self._ever or bool(self.overrides)


def _stop(service: str, mode: Mode, by: str, reason: str) -> Send:
    why = f"the mode became `{mode.value}`, set by `{by}`: {reason}"
    return Send(to="actuator", message=CancelExecution(service=service, reason=why, in_flight_only=True))
