"""What a scenario says must be seen in the end: how many changes ended in which way, and how much was written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from cachewarden.messages import RecordKind
from simulation.checkers.checker import Checker, WorldView
from simulation.facts import Appended, Fact, FencedWrite

__all__ = ["Expectations"]

_COUNTED = {
    RecordKind.CHANGE_KEPT.value: "kept",
    RecordKind.CHANGE_ROLLED_BACK.value: "rolled_back",
    RecordKind.CHANGE_ABANDONED.value: "abandoned",
    RecordKind.ROLLBACK_FAILED.value: "failed",
}


class Expectations(Checker):
    """Counts, and compares with `expect` of the scenario."""

    name = "expectations"
    sees: tuple[type[Fact], ...] = (Appended, FencedWrite)

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._ended: set[tuple[str, str]] = set()

    def see(self, fact: Any, world: WorldView) -> Sequence[str]:
        """Count; an ending that was written twice counts once."""
        del world
        if isinstance(fact, FencedWrite):
            self._counts["writes"] += 1
            return ()
        for record in fact.records:
            state = _COUNTED.get(record.kind)
            if state is not None and (record.subject_id, state) not in self._ended:
                self._ended.add((record.subject_id, state))
                self._counts[state] += 1
        return ()

    def at_end(self, world: WorldView) -> Sequence[str]:
        """Compare."""
        found: list[str] = []
        for name, bound in world.scenario.expect.model_dump(exclude_none=True).items():
            what, _, side = name.rpartition("_")
            count = self._counts[what]
            if count < bound if side == "min" else count > bound:
                least_or_most = "least" if side == "min" else "most"
                found.append(f"{count} changes were {what.replace('_', ' ')}, expected at {least_or_most} {bound}")
        return found
