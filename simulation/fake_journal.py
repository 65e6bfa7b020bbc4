"""A journal in memory: the Journal port for tests and for the simulator, with the real hash chain.

Several writers may share one `FakeJournal`. `available` and `lose_answer` are the faults that a server can have: gone,
and gone after it has written. It passes the same suite as the Redis journal (`tests/contract/test_journal.py`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from cachewarden import chain
from cachewarden.errors import JournalUnavailable, LeaseLost
from cachewarden.messages import AuditRecord
from cachewarden.ports import RecordDraft
from simulation.fake_leases import FakeLeaseStore

__all__ = ["FakeJournal"]


class FakeJournal:
    """The Journal port on a list. `records` may be looked at, and tampered with, by tests; `leases` is the store on the
    same server."""

    def __init__(self, leases: FakeLeaseStore | None = None) -> None:
        self._leases = leases
        self.records: list[AuditRecord] = []
        self.available = True
        self.lose_answer = False
        """The next append is written but not confirmed."""

    async def append(self, drafts: Sequence[RecordDraft]) -> list[AuditRecord]:
        """Append all of `drafts`; raises JournalUnavailable while not `available`, LeaseLost for a stale fence."""
        self._require_available()
        for name, epoch in (fence for d in drafts for fence in d.fences):
            if self._leases is not None and self._leases.epoch_of(name) > epoch:
                raise LeaseLost(name, None, epoch)
        seq, head_hash = self._head()
        sealed = chain.seal_all(drafts, seq + 1, head_hash)
        self.records.extend(sealed)
        if self.lose_answer:
            self.lose_answer = False
            raise JournalUnavailable("the connection was lost before the answer came")
        return sealed

    async def read(self, after_seq: int = 0, limit: int = 1_000, *, skimmed: Sequence[str] = ()) -> list[AuditRecord]:
        """Return up to `limit` records with seq > `after_seq`, in the order in which they stand."""
        self._require_available()
        first = bisect_right(self.records, after_seq, key=lambda r: r.seq)
        found = self.records[first : first + limit]
        return [chain.bare(r) if r.kind in skimmed else r for r in found] if skimmed else found

    async def read_back(self, kinds: Sequence[str] = (), limit: int | None = None) -> list[AuditRecord]:
        """Return the records of the given kinds (all if empty) among the newest `limit` or all, oldest first."""
        self._require_available()
        newest = self.records if limit is None else self.records[-limit:] if limit > 0 else []
        return [r for r in newest if not kinds or r.kind in kinds]

    async def head(self) -> tuple[int, str]:
        """Return (seq, hash) of the newest record, (0, genesis hash) when there is none."""
        self._require_available()
        return self._head()

    async def close(self) -> None:
        """Nothing to give back."""

    def _head(self) -> tuple[int, str]:
        return (self.records[-1].seq, self.records[-1].hash) if self.records else (0, chain.GENESIS_HASH)

    def _require_available(self) -> None:
        if not self.available:
            raise JournalUnavailable("the server does not answer")
