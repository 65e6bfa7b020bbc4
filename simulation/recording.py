"""What a report draws of one run: hit ratios, memory, messages and decisions over virtual time.

It looks every ten seconds and changes nothing: a run that is recorded has the same trace as one that is not.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field

from cachewarden.messages import RecordKind
from simulation.facts import Appended, Fact, FaultBegan
from simulation.world import START_MS, World

__all__ = ["DECISIONS", "Recording"]

DECISIONS = {
    RecordKind.CHANGE_INTENDED.value: "begun",
    RecordKind.CHANGE_KEPT.value: "kept",
    RecordKind.CHANGE_ROLLED_BACK.value: "rolled back",
    RecordKind.CHANGE_ABANDONED.value: "abandoned",
    RecordKind.ROLLBACK_FAILED.value: "failed",
}


@dataclass(slots=True, kw_only=True)
class Recording:
    """Times are in milliseconds since the beginning; series hold one number for each of `at_ms`."""

    at_ms: list[int] = field(default_factory=list)
    hit_ratio: dict[str, list[float]] = field(default_factory=dict)
    maxmemory_bytes: dict[str, list[int]] = field(default_factory=dict)
    messages: list[int] = field(default_factory=list)
    """Messages between agents so far."""
    decisions: list[tuple[int, str, str]] = field(default_factory=list)
    """(time, service, what)."""
    faults: list[tuple[int, str]] = field(default_factory=list)
    hostile_ms: int = 0
    """When all faults were over."""

    def take(self, world: World) -> None:
        """Look once."""
        self.at_ms.append(world.elapsed_ms)
        self.messages.append(world.network.messages)
        for name, cache in world.caches.items():
            # A copy is asked, since asking lets its time pass and rounds.
            self.hit_ratio.setdefault(name, []).append(round(copy.copy(cache).hit_ratio_now, 5))
            self.maxmemory_bytes.setdefault(name, []).append(int(cache.knobs()["maxmemory"]))

    def close(self, facts: Iterable[Fact], hostile_ms: int) -> None:
        """Take over what happened between the looks."""
        self.hostile_ms = hostile_ms
        for fact in facts:
            if isinstance(fact, FaultBegan):
                self.faults.append((fact.at_ms - START_MS, fact.fault))
            elif isinstance(fact, Appended):
                self.decisions += [
                    (fact.at_ms - START_MS, r.service or "", DECISIONS[r.kind])
                    for r in fact.records
                    if r.kind in DECISIONS
                ]
