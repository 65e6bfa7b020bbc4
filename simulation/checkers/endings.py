"""Every change ends: it is kept, rolled back, abandoned or handed to a person, once, and in good time.

Judged on the journals as they stand in the end, since that is what a person would read. A kept change may be opened
again by a rollback (its TTL rules are revoked), and then ends again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cachewarden.messages import AuditRecord, RecordKind
from simulation.checkers.checker import Checker, WorldView

__all__ = ["Endings"]

_ENDINGS = frozenset(
    {
        RecordKind.CHANGE_KEPT.value,
        RecordKind.CHANGE_ROLLED_BACK.value,
        RecordKind.CHANGE_ABANDONED.value,
        RecordKind.ROLLBACK_FAILED.value,
    }
)
_YOUNG_MS = 1_500_000
"""A change may still be under way that long after it began: four windows, settling, and a rollback in small steps."""


class Endings(Checker):
    """Reads each journal once, in the end."""

    name = "endings"

    def at_end(self, world: WorldView) -> Sequence[str]:
        """Return what has no ending, or two that contradict each other."""
        journals = {s.journal.name: s.journal.records for s in map(world.servers_of, sorted(world.deployments))}
        return [words for records in journals.values() for words in _judged(records, world.now_ms)]


def _judged(records: Iterable[AuditRecord], now_ms: int) -> list[str]:
    begun: dict[str, AuditRecord] = {}
    ended: dict[str, str] = {}
    found: list[str] = []
    for record in records:
        key = str(record.payload.get("execution_id", record.subject_id))
        if record.kind == RecordKind.CHANGE_INTENDED:
            begun.setdefault(key, record)
        elif record.kind == RecordKind.ROLLBACK_INTENDED:
            ended.pop(key, None)
        elif record.kind in _ENDINGS and key in begun:
            before = ended.setdefault(key, record.kind)
            if before != record.kind:
                found.append(f"`{key}` ended as {before} and as {record.kind} (record {record.seq})")
    for key, record in begun.items():
        if key not in ended and now_ms - record.at_ms > _YOUNG_MS:
            found.append(f"`{key}` on `{record.service}` was begun (record {record.seq}) and never ended")
    return found
