"""Following a journal to its end, and noticing that it has lost what was already read.

A server that syncs its file once a second may lose the newest records when it dies, and others then stand under their
numbers. Each question asks for the last record once more: where another stands in its place, or none, the tail was
lost, and it is read again from the last place that still holds.

Of requests that were decided only the place in the journal is read (`chain.skim`).

It decides nothing. INVARIANT: every record that stands in the journal is returned at least once, in the journal's
order, whatever the journal has lost before; answers that come late or twice return nothing wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cachewarden.machine import ReadJournal
from cachewarden.messages import AuditRecord, RecordKind

__all__ = ["JournalTail", "Reading"]

_PAGE: Final = 1_000
_MARKS_MAX: Final = 64
_SKIMMED: Final = (RecordKind.REQUEST_DECIDED.value,)
"""What was answered changes nothing that is followed here, and there may be a thousand of them in a second."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What an answer has brought: `records` are new, in order; `again` says that the question is to be asked again at
    once; records behind `lost_after` are not those any more that were read before (None: nothing was lost)."""

    records: tuple[AuditRecord, ...] = ()
    again: bool = False
    lost_after: int | None = None


class JournalTail:
    """How far a journal was read. The ends of the last 64 answers are remembered as places to step back to."""

    def __init__(self) -> None:
        self._marks: dict[int, str] = {}
        """Number to hash of records that were read, oldest first; the newest is how far it was read."""

    @property
    def seq(self) -> int:
        """Number of the newest record that was read."""
        return next(reversed(self._marks), 0)

    def begin(self, replayed: Sequence[AuditRecord]) -> None:
        """Go on behind what was read by other means, oldest first."""
        for record in replayed[-_MARKS_MAX:]:
            self._mark(record)

    def question(self, ref: str) -> ReadJournal:
        """Ask for what comes next, and for the last record once more."""
        return ReadJournal(ref=ref, after_seq=max(0, self.seq - 1), limit=_PAGE + 1, skimmed=_SKIMMED)

    def take(self, records: Sequence[AuditRecord]) -> Reading:
        """Take an answer to any question that was asked; oldest first."""
        tip = self.seq
        torn = next((r.seq for r in records if self._marks.get(r.seq, r.hash) != r.hash), None)
        if tip and (torn is not None or not records or records[0].seq > tip):
            # Also where the very last record was taken out while later ones stand; or, harmless, an answer that was
            # asked for before a step back.
            since = tip if torn is None else torn
            self._marks = {seq: mark for seq, mark in self._marks.items() if seq < since}
            return Reading(again=True, lost_after=self.seq)
        if tip and records[-1].seq < tip:
            # The answer to an older question.
            return Reading(again=True)
        new = tuple(record for record in records if record.seq > tip)
        if new:
            self._mark(new[-1])
        return Reading(new, again=len(records) > _PAGE)

    def _mark(self, record: AuditRecord) -> None:
        self._marks[record.seq] = record.hash
        if len(self._marks) > _MARKS_MAX:
            del self._marks[next(iter(self._marks))]
