"""Nothing is kept that was not measured: what was applied has a window in the journal before it is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cachewarden.messages import RecordKind
from simulation.checkers.checker import Checker, WorldView
from simulation.facts import Appended, Fact

__all__ = ["Measured"]


class Measured(Checker):
    """Remembers which executions have applied a step, and which have been observed since."""

    name = "measured"
    sees: tuple[type[Fact], ...] = (Appended,)

    def __init__(self) -> None:
        self._applied: set[str] = set()
        self._observed: set[str] = set()

    def see(self, fact: Any, world: WorldView) -> Sequence[str]:
        """Judge each keeping by the windows before it."""
        del world
        found: list[str] = []
        for record in fact.records:
            key = str(record.payload.get("execution_id", ""))
            if record.kind == RecordKind.STEP_APPLIED:
                self._applied.add(key)
                self._observed.discard(key)
            elif record.kind == RecordKind.OBSERVED:
                self._observed.add(key)
            elif record.kind == RecordKind.CHANGE_KEPT and key in self._applied and key not in self._observed:
                found.append(f"`{key}` is kept (record {record.seq}) without a window that shows what it did")
        return found
