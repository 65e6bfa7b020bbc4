"""The server of journal and leases as it may fail: what it confirmed within the last second can be gone after a crash.

With `appendfsync everysec` a crash of the machine takes what was not on the disk yet (docs/OPERATIONS.md). The stores
are the fakes of the contract suites; what is added is the memory of when something was written, and the crash.

It decides nothing. INVARIANT: what is lost is always a tail, the same moment for journal and leases.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence

from cachewarden.messages import AuditRecord, Lease
from cachewarden.ports import Clock, RecordDraft
from simulation.facts import Appended, Fact, LeaseTaken, RecordsLost
from simulation.fake_journal import FakeJournal
from simulation.fake_leases import FakeLeaseStore

__all__ = ["LOSS_MS_MAX", "CrashingJournal", "CrashingLeases"]

LOSS_MS_MAX = 1_000
"""What `appendfsync everysec` may lose."""


class CrashingJournal(FakeJournal):
    """A journal whose newest records a crash may take."""

    def __init__(self, name: str, clock: Clock, note: Callable[[Fact], None], leases: FakeLeaseStore) -> None:
        super().__init__(leases)
        self.name = name
        self._clock = clock
        self._note = note
        self._written_ms: list[int] = []

    async def append(self, drafts: Sequence[RecordDraft]) -> list[AuditRecord]:
        """Append and note it, also where the answer is going to be lost."""
        before = len(self.records)
        try:
            return await super().append(drafts)
        finally:
            now_ms, fresh = self._clock.now_ms(), tuple(self.records[before:])
            self._written_ms += [now_ms] * len(fresh)
            if fresh:
                self._note(Appended(at_ms=now_ms, journal=self.name, records=fresh))

    async def append_at(self, head: tuple[int, str], drafts: Sequence[RecordDraft]) -> list[AuditRecord] | None:
        """Append if the journal still ends where the writer believes, as the script of the real one does; else None."""
        return await self.append(drafts) if await self.head() == head else None

    def crash(self, lost_ms: int) -> None:
        """Lose what was written within the last `lost_ms` (at most `LOSS_MS_MAX`)."""
        now_ms = self._clock.now_ms()
        place = bisect_left(self._written_ms, now_ms - min(lost_ms, LOSS_MS_MAX))
        lost = tuple(self.records[place:])
        del self.records[place:], self._written_ms[place:]
        if lost:
            self._note(RecordsLost(at_ms=now_ms, journal=self.name, records=lost))


class CrashingLeases(FakeLeaseStore):
    """Leases whose newest changes a crash may take."""

    def __init__(self, clock: Clock, note: Callable[[Fact], None]) -> None:
        super().__init__(clock)
        self._note = note
        self._past: deque[tuple[int, dict[str, Lease], dict[str, int], dict[str, str]]] = deque()

    async def acquire(self, service: str, holder: str, ttl_ms: int) -> Lease | None:
        """Take or renew; a new holder or epoch is noted."""
        self._remember()
        before = self._leases.get(service)
        lease = await super().acquire(service, holder, ttl_ms)
        if lease is not None and (before is None or (before.holder, before.epoch) != (lease.holder, lease.epoch)):
            self._note(LeaseTaken(at_ms=self._clock.now_ms(), lease=lease))
        return lease

    async def release(self, lease: Lease) -> None:
        """Give back if holder and epoch are those in force."""
        self._remember()
        await super().release(lease)

    def crash(self, lost_ms: int) -> None:
        """Go back to how it was `lost_ms` ago (at most `LOSS_MS_MAX`)."""
        since_ms = self._clock.now_ms() - min(lost_ms, LOSS_MS_MAX)
        for at_ms, leases, epochs, tenures in self._past:
            if at_ms >= since_ms:
                self._leases, self._epochs, self._tenures = dict(leases), dict(epochs), dict(tenures)
                break
        self._past.clear()

    def _remember(self) -> None:
        now_ms = self._clock.now_ms()
        self._past.append((now_ms, dict(self._leases), dict(self._epochs), dict(self._tenures)))
        while self._past and self._past[0][0] < now_ms - 2 * LOSS_MS_MAX:
            self._past.popleft()
