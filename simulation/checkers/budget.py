"""The memory budget of the fleet is never over-committed by a write of ours.

The budget is what the fleet file declares, else what was found in the beginning. What a person or a restart has added
is not ours, so it is let pass; what it adds up to then may not grow by us.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from simulation.checkers.checker import Checker, WorldView
from simulation.facts import Fact, FencedWrite, HandWrite, Restarted

__all__ = ["Budget"]


class Budget(Checker):
    """Adds up maxmemory after each write that lets a cache grow."""

    name = "budget"
    sees: tuple[type[Fact], ...] = (FencedWrite, HandWrite, Restarted)

    def __init__(self) -> None:
        self._sizes: dict[str, int] = {}
        self._added_bytes = 0
        """What others than us have added since the beginning."""

    def see(self, fact: Any, world: WorldView) -> Sequence[str]:
        """Judge growth of ours; let growth of others pass."""
        self._sizes = self._sizes or dict(world.found_bytes)
        size = int(world.caches[fact.service].knobs()["maxmemory"])
        grown = size - self._sizes[fact.service]
        self._sizes[fact.service] = size
        if not isinstance(fact, FencedWrite):
            self._added_bytes += max(grown, 0)
            return ()
        total, budget = sum(self._sizes.values()), self._budget(world) + self._added_bytes
        if grown <= 0 or total <= budget:
            return ()
        return [f"`{fact.service}` grew by {grown} bytes: the fleet has {total}, its budget is {budget}"]

    def _budget(self, world: WorldView) -> int:
        declared = world.fleet.total_memory_bytes
        return sum(world.found_bytes.values()) if declared is None else max(declared, sum(world.found_bytes.values()))
