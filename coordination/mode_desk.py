"""The modes of all services: those of the fleet file, and what persons have changed since.

It takes orders, writes them into the journal and tells every agent. A mode that permits less is in force at once and
written down as soon as the journal takes it; one that permits more is in force only once the journal has it. It never
judges who may give the order.

INVARIANT: `modes` never permits more than the journal and the fleet file do.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from cachewarden.fleet import Fleet
from cachewarden.machine import Effect, EffectFailed, Record, Recorded, Send, SetTimer, TimerFired
from cachewarden.messages import AuditRecord, Mode, RecordKind
from cachewarden.modes import ACTING, RANK, modes_of, with_modes
from cachewarden.protocol import CancelExecution, ModesChanged, SetMode

__all__ = ["ModeDesk"]

MODE_REF: Final = "mode:"

_AGAIN_MS: Final = 1_000
_LISTENERS: Final = ("planner", "validator", "consensus", "actuator")


class ModeDesk:
    """Mutable state of one coordinator."""

    replay_kinds = (RecordKind.MODE_CHANGED.value,)

    def __init__(self, fleet: Fleet) -> None:
        self._filed = fleet
        self._overrides: dict[str, Mode] = {}
        self._recording: dict[str, tuple[Record, SetMode]] = {}
        self._orders = 0
        self._ever = False
        self.modes: dict[str, Mode] = {s.name: s.mode for s in fleet.services}
        """By service; the same object for the life of the coordinator, so that others may look into it."""

    @property
    def overrides(self) -> dict[str, str]:
        """Modes that differ from the fleet file, as text."""
        return {name: mode.value for name, mode in sorted(self._overrides.items())}

    @property
    def looked_at(self) -> tuple[str, ...]:
        """Services that are observed."""
        return tuple(s.name for s in self._filed.services if self.modes[s.name] is not Mode.OFF)

    def replay(self, records: Iterable[AuditRecord]) -> tuple[Effect, ...]:
        """Take over what the journal says, and tell it."""
        self._overrides = modes_of(records, self._filed)
        self._take()
        return self.tell()

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
        # The newest order counts: one that is still being recorded may not come into force after it.
        self._recording = {ref: kept for ref, kept in self._recording.items() if kept[1].service != message.service}
        self._recording[record.ref] = (record, message)
        if RANK[message.mode] > RANK[before]:
            return (record,)
        return (record, *self._enforce(message))

    @staticmethod
    def concerns(event: Any) -> bool:
        """Whether an event answers what this desk has asked for."""
        answers = isinstance(event, (Recorded, EffectFailed, TimerFired))
        return answers and event.ref.startswith(MODE_REF)

    def step(self, event: Any, now_ms: int) -> tuple[Effect, ...]:
        """Take the journal's answer to an order.

        What is in force already is recorded again and again; what would permit more is dropped, and whoever ordered it
        is not told that it was taken.
        """
        kept = self._recording.get(event.ref)
        if kept is None:
            return ()
        record, message = kept
        if isinstance(event, TimerFired):
            return (record,)
        if isinstance(event, EffectFailed) and self.modes.get(message.service) is message.mode:
            return (SetTimer(ref=event.ref, due_ms=now_ms + _AGAIN_MS),)
        del self._recording[event.ref]
        return self._enforce(message) if isinstance(event, Recorded) else ()

    def tell(self) -> tuple[Effect, ...]:
        """Return what every agent has to know; said again with every cycle, since a message may be lost."""
        if not self._ever:
            return ()
        news = ModesChanged(modes={name: Mode(mode) for name, mode in self.overrides.items()})
        return tuple(Send(to=name, message=news) for name in _LISTENERS)

    def _enforce(self, message: SetMode) -> tuple[Effect, ...]:
        filed = self._filed.service(message.service).mode
        self._overrides.pop(message.service, None)
        if message.mode is not filed:
            self._overrides[message.service] = message.mode
        self._take()
        if message.mode in ACTING:
            return self.tell()
        why = f"the mode became `{message.mode.value}`, set by `{message.by}`: {message.reason}"
        # What is in flight is taken back first, and its agent told of the mode after that.
        stop = Send(to="actuator", message=CancelExecution(service=message.service, reason=why, in_flight_only=True))
        return (stop, *self.tell())

    def _take(self) -> None:
        self._ever = self._ever or bool(self._overrides)
        self.modes.update({s.name: s.mode for s in with_modes(self._filed, self._overrides).services})
