"""Which lookups of one cache are ours: an adapter's own count, and the account that it shares with the others.

An adapter announces each batch that counts as lookups, and settles it with what the replies say. It never lets a look
or a write fail because the ledger does not answer: it remembers that it owes an explanation and gives it as soon as
the ledger is back.

INVARIANT: a batch whose lookups are not in the account, for whatever reason, changes the account's basis.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from cachewarden.errors import OperatingError
from cachewarden.ports import LookupAccount, LookupLedger

__all__ = ["OwnLookups", "SharedLookups"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnLookups:
    """Our lookups up to one INFO. `problem` says why they may not be all, None where they are exact."""

    hits: int
    misses: int
    basis: str = ""
    problem: str | None = None


class SharedLookups:
    """What one adapter does with the ledger of one cache. Its caller has one batch under way at a time."""

    def __init__(self, ledger: LookupLedger, service: str) -> None:
        self._ledger = ledger
        self._service = service
        self._torn = False
        """A batch of ours is missing in the account, and the ledger has not been told yet."""

    @asynccontextmanager
    async def batch(self, count: Callable[[], tuple[int, int]]) -> AsyncIterator[None]:
        """Announce a batch, let the body send it, and settle it; `count` returns this adapter's totals (hits, misses).

        A body that fails leaves replies unread, and with them lookups that nobody can count. Its mark is left to run
        out, since the server may carry them out later still; whatever this adapter does next takes it away, and begins
        with a connection that has just answered, so the server has then read all that was sent before.
        """
        hits, misses = count()
        mark = await self._begin()
        try:
            yield
        except BaseException:
            self._torn = True
            raise
        now_hits, now_misses = count()
        await self._settle(mark, now_hits - hits, now_misses - misses)

    async def _begin(self) -> str | None:
        try:
            mark = await self._ledger.begin(self._service, torn=self._torn)
        except OperatingError:
            self._torn = True
            return None
        self._torn = False
        return mark

    async def _settle(self, mark: str | None, hits: int, misses: int) -> None:
        if mark is None:
            return
        try:
            await self._ledger.settle(self._service, mark, hits, misses)
        except OperatingError:
            self._torn = True

    async def read(self) -> LookupAccount | str:
        """Return the account, or why there is none; only while no batch of ours is under way."""
        try:
            account = await self._ledger.read(self._service, torn=self._torn)
        except OperatingError as error:
            return str(error)
        self._torn = False
        return account
