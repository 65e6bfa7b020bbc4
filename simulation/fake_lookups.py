"""A ledger of our own lookups in memory, behind the `LookupLedger` port.

`LookupBook` is what its server would hold; every `FakeLookupLedger` on it speaks for one adapter. Marks run out by the
clock that the book is given. INVARIANT: as in `coordination.redis_lookup_ledger`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from cachewarden.errors import BlackboardUnavailable
from cachewarden.ports import Clock, LookupAccount

__all__ = ["FakeLookupLedger", "LookupBook"]


@dataclass(slots=True)
class _Page:
    born: int
    tears: int = 0
    hits: Counter[str] = field(default_factory=Counter)
    misses: Counter[str] = field(default_factory=Counter)
    busy: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Adapter to (until when in milliseconds, mark)."""


class LookupBook:
    """Set `reachable` to False to cut everybody off; `lose` forgets everything."""

    def __init__(self, clock: Clock, *, busy_ms: int = 2_000) -> None:
        self.clock = clock
        self.busy_ms = busy_ms
        self.reachable = True
        self._pages: dict[str, _Page] = {}
        self._numbers = 0

    def number(self) -> int:
        """Return a number that was never given before."""
        self._numbers += 1
        return self._numbers

    def page(self, service: str) -> _Page:
        """Return the page of one cache; raises BlackboardUnavailable where the book is out of reach."""
        if not self.reachable:
            raise BlackboardUnavailable("cut off by the simulation")
        if service not in self._pages:
            self._pages[service] = _Page(born=self.number())
        return self._pages[service]

    def lose(self) -> None:
        """Lose all data, as a server without persistence does when it restarts."""
        self._pages.clear()


class FakeLookupLedger:
    """What one adapter has of a book."""

    def __init__(self, book: LookupBook, *, adapter: str) -> None:
        self._book = book
        self._adapter = adapter

    async def begin(self, service: str, *, torn: bool = False) -> str:
        """Announce a batch; see the port."""
        page, number = self._book.page(service), self._book.number()
        page.tears += torn or self._adapter in page.busy
        page.busy[self._adapter] = (self._book.clock.now_ms() + self._book.busy_ms, str(number))
        return str(number)

    async def settle(self, service: str, mark: str, hits: int, misses: int) -> None:
        """Settle a batch; see the port."""
        page = self._book.page(service)
        _, standing = page.busy.pop(self._adapter, (0, ""))
        page.tears += standing != mark
        page.hits[self._adapter] += hits
        page.misses[self._adapter] += misses

    async def read(self, service: str, *, torn: bool = False) -> LookupAccount:
        """Return the account of one cache; see the port."""
        page, now_ms = self._book.page(service), self._book.clock.now_ms()
        page.tears += (page.busy.pop(self._adapter, None) is not None) or torn
        running = sorted(name for name, (until_ms, _) in page.busy.items() if until_ms > now_ms)
        lost = sorted(f"{name}@{mark}" for name, (until_ms, mark) in page.busy.items() if until_ms <= now_ms)
        return LookupAccount(
            hits=page.hits.total(),
            misses=page.misses.total(),
            busy=tuple(running),
            basis="/".join((str(page.born), str(page.tears), *lost)),
        )

    async def close(self) -> None:
        """Nothing to close."""
