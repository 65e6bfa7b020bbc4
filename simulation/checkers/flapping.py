"""No flapping: no more changes per hour than the budget, and what was taken back rests for as long as damping says.

Agents measure time by their nodes' clocks, so a clock that was wrong in the last two hours, or a journal that lost the
history, excuses them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from agents.obstacles import DAMPING_MS
from cachewarden.codec import decode
from cachewarden.messages import AuditRecord, Proposal, RecordKind
from simulation.checkers.checker import Checker, WorldView
from simulation.facts import Appended, Fact, FaultBegan, RecordsLost

__all__ = ["Flapping"]

_HOUR_MS = 3_600_000


class Flapping(Checker):
    """Counts the changes that were begun, and remembers which were taken back when."""

    name = "flapping"
    sees: tuple[type[Fact], ...] = (Appended, RecordsLost, FaultBegan)

    def __init__(self) -> None:
        self._begun: dict[tuple[str, str], deque[int]] = {}
        self._taken_back: dict[tuple[str, str, str], int] = {}
        self._signatures: dict[str, str] = {}
        self._excused_until_ms = 0

    def see(self, fact: Any, world: WorldView) -> Sequence[str]:
        """Judge each beginning by those before it."""
        if isinstance(fact, FaultBegan):
            if "clock" in fact.fault:
                self._excused_until_ms = fact.at_ms + 2 * _HOUR_MS
            return ()
        if isinstance(fact, RecordsLost):
            self._excused_until_ms = fact.at_ms + 2 * _HOUR_MS
            return ()
        return [words for record in fact.records for words in self._judge(fact, record, world)]

    def _judge(self, fact: Appended, record: AuditRecord, world: WorldView) -> list[str]:
        if record.kind == RecordKind.CHANGE_ROLLED_BACK and record.service is not None:
            signature = self._signatures.get(record.subject_id)
            if signature is not None:
                self._taken_back[fact.journal, record.service, signature] = fact.at_ms
            return []
        if record.kind != RecordKind.CHANGE_INTENDED or record.service is None:
            return []
        signature = decode(Proposal, record.payload["proposal"]).signature
        self._signatures[record.subject_id] = signature
        begun = self._begun.setdefault((fact.journal, record.service), deque())
        while begun and begun[0] <= fact.at_ms - _HOUR_MS:
            begun.popleft()
        begun.append(fact.at_ms)
        if fact.at_ms < self._excused_until_ms:
            return []
        found: list[str] = []
        limit = world.settings.changes_per_hour * len(world.deployments)
        if len(begun) > limit:
            found.append(f"{len(begun)} changes of `{record.service}` were begun within an hour, {limit} are allowed")
        back_ms = self._taken_back.get((fact.journal, record.service, signature))
        if back_ms is not None and fact.at_ms - back_ms < DAMPING_MS and len(world.deployments) == 1:
            rested_s = (fact.at_ms - back_ms) / 1000
            found.append(f"`{signature}` of `{record.service}` was taken back and begun again after {rested_s:.0f} s")
        return found
