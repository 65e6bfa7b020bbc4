"""The ports of an agent in the simulated world: each call goes over the network to a simulated server.

The other ends are the fakes that pass the contract suites; what is added here is distance. Errors are those that the
adapters on redis-py raise in the same place: a read that nobody answered is unavailable, a write that nobody answered
has an unknown outcome.

It decides nothing. INVARIANT: no state of a server is touched but by a call that arrived there.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any

from cachewarden.chain import GENESIS_HASH
from cachewarden.errors import BlackboardUnavailable, JournalUnavailable, TargetTimeout, TargetUnavailable
from cachewarden.messages import AuditRecord, KnobChange, Lease, TtlRule
from cachewarden.observation import Observation
from cachewarden.ports import BoardPage, RecordDraft, ReencodePass, Spread, TtlPass
from simulation.fake_blackboard import EventStream, FakeBlackboard
from simulation.fake_leases import FakeLeaseStore
from simulation.model_cache import ModelCache
from simulation.network import Host, Network, NoAnswer, Unreachable, Work
from simulation.stores import CrashingJournal
from simulation.virtual_time import Pending

__all__ = ["Link", "LinkedBlackboard", "LinkedJournal", "LinkedLeases", "LinkedTarget"]

_APPENDS_MAX = 50
_REFUSED = "the server refuses connections"
_SILENT = "the server gave no answer in time"
_NO_JOURNAL = partial(JournalUnavailable, _REFUSED), partial(JournalUnavailable, _SILENT)
_NO_BOARD = partial(BlackboardUnavailable, _REFUSED), partial(BlackboardUnavailable, _SILENT)


class Link:
    """From one node to one server."""

    def __init__(self, network: Network, node: str, host: Host, timeout_ms: int) -> None:
        self._network = network
        self._node = node
        self._host = host
        self._timeout_ms = timeout_ms

    def call(
        self,
        work: Work,
        unreachable: Callable[[], Exception] = Unreachable,
        no_answer: Callable[[], Exception] = NoAnswer,
    ) -> Pending:
        """Have `work` done at the server; awaiting it raises what the two say where there is no answer."""
        return self._network.call(self._node, self._host, work, self._timeout_ms, unreachable, no_answer)

    def told(self, news: Pending) -> Callable[[], None]:
        """Return what the server calls where it has something to send by itself: `news` is there once it arrives."""
        return lambda: self._network.push(self._host, self._node, lambda: news.resolve(None))

    @property
    def downs(self) -> int:
        """How often the server went down."""
        return self._host.downs


class LinkedJournal:
    """The Journal port over a link."""

    def __init__(self, link: Link, journal: CrashingJournal) -> None:
        self._link = link
        self._journal = journal
        self._known: tuple[int, str] = (0, GENESIS_HASH)
        """Where the journal ended when it was last heard of."""

    async def append(self, drafts: Sequence[RecordDraft]) -> list[AuditRecord]:
        """Append; without an answer none or all were written.

        What comes late finds another end of the journal and is refused, so nothing is ever written after what followed
        it. Raises JournalUnavailable.
        """
        for _ in range(_APPENDS_MAX):
            head = self._known
            written: list[AuditRecord] | None = await self._call(partial(self._journal.append_at, head, drafts))
            if written is not None:
                self._known = (written[-1].seq, written[-1].hash) if written else head
                return written
            self._known = await self.head()
        raise JournalUnavailable("others are always faster")

    async def read(self, after_seq: int = 0, limit: int = 1_000, *, skimmed: Sequence[str] = ()) -> list[AuditRecord]:
        """Read on from a place."""
        records: list[AuditRecord] = await self._call(partial(self._journal.read, after_seq, limit, skimmed=skimmed))
        return records

    async def read_back(self, kinds: Sequence[str] = (), limit: int | None = None) -> list[AuditRecord]:
        """Read the records of some kinds."""
        records: list[AuditRecord] = await self._call(partial(self._journal.read_back, kinds, limit))
        return records

    async def head(self) -> tuple[int, str]:
        """Return (seq, hash) of the newest record."""
        seq, head_hash = await self._call(self._journal.head)
        return int(seq), str(head_hash)

    async def close(self) -> None:
        """Nothing to give back."""

    def _call(self, work: Work) -> Pending:
        return self._link.call(work, *_NO_JOURNAL)


class LinkedLeases:
    """The LeaseStore port over a link."""

    def __init__(self, link: Link, store: FakeLeaseStore) -> None:
        self._link = link
        self._store = store

    async def acquire(self, service: str, holder: str, ttl_ms: int) -> Lease | None:
        """Take or renew."""
        lease: Lease | None = await self._call(lambda: self._store.acquire(service, holder, ttl_ms))
        return lease

    async def release(self, lease: Lease) -> None:
        """Give back."""
        await self._call(lambda: self._store.release(lease))

    async def holder(self, service: str) -> Lease | None:
        """Return the lease in force."""
        lease: Lease | None = await self._call(lambda: self._store.holder(service))
        return lease

    def _call(self, work: Work) -> Pending:
        return self._link.call(work, *_NO_BOARD)


class LinkedBlackboard:
    """The Blackboard port over a link: every method of the fake, carried there and back."""

    def __init__(self, link: Link, blackboard: FakeBlackboard) -> None:
        self._link = link
        self._blackboard = blackboard

    def __getattr__(self, operation: str) -> Any:
        # What it returns can be awaited once, which is all that is done with what a port returns.
        call = partial(self._call, getattr(self._blackboard, operation))
        self.__dict__[operation] = call
        return call

    def _call(self, method: Callable[..., Coroutine[Any, Any, Any]], *positional: Any, **named: Any) -> Pending:
        return self._link.call(partial(method, *positional, **named), *_NO_BOARD)

    async def pages(self, cursors: Mapping[str, str]) -> dict[str, BoardPage]:
        """Ask which areas hold anything, then read those: a round trip each, as with the adapter."""
        held = await self.__getattr__("held")(tuple(cursors))
        page, empty = self.__getattr__("page"), BoardPage(records=())
        return {a: await page(a, c) if a in held or c else empty for a, c in cursors.items()}

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Subscribe; the stream fails where the server went down in between."""
        # Not by `__getattr__`, which would put the fake's own stream, one that ends, in the place of this method.
        return _LinkedEvents(self._link, await self._call(self._blackboard.events))


class _LinkedEvents:
    """A subscription over a link.

    It listens only while somebody waits, so that one that nobody holds any more has no part in what happens, whenever
    it is collected.
    """

    def __init__(self, link: Link, stream: EventStream) -> None:
        self._link = link
        self._stream = stream
        self._downs = link.downs

    def __aiter__(self) -> _LinkedEvents:
        return self

    async def __anext__(self) -> dict[str, Any]:
        while not self._stream.waiting:
            news = Pending()
            self._stream.on_event = self._link.told(news)
            try:
                await news
            finally:
                self._stream.on_event = None
            if self._link.downs != self._downs:
                raise BlackboardUnavailable("the connection is lost")
        return self._stream.waiting.popleft()


class LinkedTarget:
    """The TargetCache port over a link."""

    def __init__(self, link: Link, cache: ModelCache) -> None:
        self._link = link
        self._cache = cache
        self.service = cache.service
        self._refused = partial(TargetUnavailable, cache.service, "connection refused")
        self._silent = partial(TargetUnavailable, cache.service, "no answer in time")

    async def observe(
        self, *, sample_keys: int, capture_ms: int, capture_lines: int, capture_rate: float, value_keys: int = 0
    ) -> Observation:
        """Look once."""
        seen: Observation = await self._read(
            lambda: self._cache.observe(
                sample_keys=sample_keys,
                capture_ms=capture_ms,
                capture_lines=capture_lines,
                capture_rate=capture_rate,
                value_keys=value_keys,
            )
        )
        return seen

    async def counters(self) -> Observation:
        """INFO only."""
        seen: Observation = await self._read(self._cache.counters)
        return seen

    async def read_knobs(self, knobs: Sequence[str]) -> dict[str, str]:
        """CONFIG GET."""
        return dict(await self._read(lambda: self._cache.read_knobs(knobs)))

    async def raise_fence(self, lease: Lease) -> None:
        """Write the epoch."""
        await self._write("EVAL", lambda: self._cache.raise_fence(lease))

    async def write_knobs(self, lease: Lease, changes: Sequence[KnobChange]) -> dict[str, str]:
        """One fenced CONFIG SET."""
        work = await self._watched(lease, lambda: self._cache.write_knobs(lease, changes))
        return dict(await self._write("CONFIG SET", work))

    async def collect_hot_keys(self, limit: int) -> int:
        """Remember hot keys."""
        return int(await self._read(lambda: self._cache.collect_hot_keys(limit)))

    async def touch_hot_keys(self, lease: Lease, times: int, keys_per_s: int) -> int:
        """Touch them."""
        work = await self._watched(lease, lambda: self._cache.touch_hot_keys(lease, times, keys_per_s))
        return int(await self._write("TOUCH", work))

    async def measure_spread(self, limit: int) -> Spread:
        """Look at their frequencies."""
        found: Spread = await self._read(lambda: self._cache.measure_spread(limit))
        return found

    async def reencode_keys(self, lease: Lease, cursor: int, max_keys: int, keys_per_s: int) -> ReencodePass:
        """One pass of storing keys again."""
        work = await self._watched(lease, lambda: self._cache.reencode_keys(lease, cursor, max_keys, keys_per_s))
        done: ReencodePass = await self._write("RESTORE", work)
        return done

    async def rewrite_config(self, lease: Lease) -> str | None:
        """CONFIG REWRITE."""
        work = await self._watched(lease, lambda: self._cache.rewrite_config(lease))
        why: str | None = await self._write("CONFIG REWRITE", work)
        return why

    async def extend_ttls(
        self,
        lease: Lease,
        rule: TtlRule,
        cursor: int,
        max_keys: int,
        restore: bool = False,
        idle_known_ms: int = 0,
    ) -> TtlPass:
        """One pass of a rule."""
        work = await self._watched(
            lease, lambda: self._cache.extend_ttls(lease, rule, cursor, max_keys, restore, idle_known_ms)
        )
        done: TtlPass = await self._write("PEXPIREAT", work)
        return done

    async def close(self) -> None:
        """Nothing to give back."""

    async def _watched(self, lease: Lease, work: Work) -> Work:
        """WATCH the fence in a round trip of its own, as the adapter does, and return `work` held to what it saw: a
        command that comes late, after the fence was written again, does nothing."""
        seen = int(await self._read(self._cache.watch_fence))

        async def held() -> Any:
            self._cache.require_watched(lease, seen)
            return await work()

        return held

    def _read(self, work: Work) -> Pending:
        return self._link.call(work, self._refused, self._silent)

    def _write(self, command: str, work: Work) -> Pending:
        return self._link.call(work, self._refused, partial(TargetTimeout, self.service, command))
