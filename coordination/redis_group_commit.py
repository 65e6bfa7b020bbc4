"""Many appends at once become one: whatever waits while a batch is on its way goes out together with the next.

One writer at a time, in the order in which the appends came, so that records of one process keep their order. It
bounds what may wait and refuses the rest at once. It knows no server: `write` sends a batch and tells each append its
outcome. INVARIANT: an append is told exactly one outcome, and one that was given up before its batch was put together
is never written.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

from cachewarden.chain import Sealed
from cachewarden.errors import CachewardenError, JournalUnavailable
from cachewarden.ports import RecordDraft

__all__ = ["Group", "GroupCommit", "JournalBusy"]

_BATCH_RECORDS: Final = 256
"""More in one script would hold up the server, and everybody else's append, for milliseconds."""


class JournalBusy(JournalUnavailable):
    """More records wait for the journal than may; nothing of this append was or will be written."""

    public_reason = "too many decisions wait for the journal, ask again later"


class Group:
    """The records of one append, which are written together or not at all, and whoever waits for them."""

    __slots__ = ("drafts", "told")

    def __init__(self, drafts: tuple[RecordDraft, ...], told: asyncio.Future[list[Sealed]]) -> None:
        self.drafts = drafts
        self.told = told

    def succeed(self, records: list[Sealed]) -> bool:
        """Tell that the records are durable; False where nobody waits any more."""
        if self.told.done():
            return False
        self.told.set_result(records)
        return True

    def fail(self, error: Exception) -> None:
        """Tell that there is no confirmation."""
        if not self.told.done():
            self.told.set_exception(error)


class GroupCommit:
    """`write` is given up to `_BATCH_RECORDS` records (one larger append goes alone) and settles every group of them.

    `waiting_max` bounds the records that wait, those on their way not counted.
    """

    def __init__(self, write: Callable[[list[Group]], Awaitable[None]], *, waiting_max: int) -> None:
        self._write = write
        self._waiting_max = waiting_max
        self._waiting: deque[Group] = deque()
        self._records = 0
        self._writer: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Records that wait for their batch."""
        return self._records

    def begin(self, drafts: tuple[RecordDraft, ...]) -> asyncio.Future[list[Sealed]]:
        """Return what will have the records once they are durable; raises JournalBusy where too many wait.

        They are sent as soon as the caller gives way to the loop, or with the next batch where one is on its way.
        Whoever wants no outcome any more cancels what was returned.
        """
        if self._waiting and self._records + len(drafts) > self._waiting_max:
            raise JournalBusy(f"{self._records} records wait already, at most {self._waiting_max} may")
        group = Group(drafts, asyncio.get_running_loop().create_future())
        self._waiting.append(group)
        self._records += len(drafts)
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_all())
        return group.told

    async def append(self, drafts: tuple[RecordDraft, ...]) -> list[Sealed]:
        """Return the records once they are durable; raises JournalBusy at once where too many wait."""
        return await self.begin(drafts)

    async def close(self) -> None:
        """Fail what waits; what is on its way stays unknown."""
        if self._writer is not None:
            self._writer.cancel()
            await asyncio.wait((self._writer,))
        for group in self._waiting:
            group.fail(JournalUnavailable("the journal was closed"))
        self._waiting.clear()
        self._records = 0

    def _take(self) -> list[Group]:
        batch: list[Group] = []
        size = 0
        while self._waiting and (not batch or size + len(self._waiting[0].drafts) <= _BATCH_RECORDS):
            group = self._waiting.popleft()
            self._records -= len(group.drafts)
            if not group.told.done():
                batch.append(group)
                size += len(group.drafts)
        return batch

    async def _write_all(self) -> None:
        while self._waiting:
            batch = self._take()
            if not batch:
                continue
            try:
                await self._write(batch)
            except CachewardenError as error:
                for group in batch:
                    group.fail(error)
            except BaseException as error:
                # A bug, or the end of the loop: whoever waits must not wait for ever.
                for group in batch:
                    group.fail(JournalUnavailable(f"the append was broken off: {type(error).__name__}"))
                raise
