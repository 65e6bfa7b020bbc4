"""While it is paused nothing is begun that was decided after the pause.

What was agreed just before may still begin: the order was on its way. Where two deployments share a journal a pause is
that of one of them, so this is asked of one deployment only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cachewarden.messages import AuditRecord, RecordKind
from simulation.checkers.checker import Checker, WorldView
from simulation.facts import Appended, Fact

__all__ = ["Pauses"]


class Pauses(Checker):
    """Compares the places of pause, resolution and beginning in the journal."""

    name = "pauses"
    sees: tuple[type[Fact], ...] = (Appended,)

    def __init__(self) -> None:
        self._paused_seq: int | None = None
        self._resolved: dict[str, int] = {}

    def see(self, fact: Any, world: WorldView) -> Sequence[str]:
        """Judge each beginning by the pause before it."""
        return () if len(world.deployments) > 1 else [w for record in fact.records for w in self._judge(record)]

    def _judge(self, record: AuditRecord) -> list[str]:
        if record.kind == RecordKind.PAUSED:
            self._paused_seq = record.seq
        elif record.kind == RecordKind.RESUMED:
            self._paused_seq = None
        elif record.kind == RecordKind.RESOLVED:
            self._resolved[record.subject_id] = record.seq
        elif record.kind == RecordKind.CHANGE_INTENDED and self._paused_seq is not None:
            decided = self._resolved.get(record.subject_id, 0)
            if decided > self._paused_seq:
                return [f"`{record.subject_id}` was decided (record {decided}) and begun while it was paused"]
        return []
