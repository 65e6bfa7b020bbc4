"""Cache-aside over one link: ask, and load what was missing.

It decides what a real application would: a miss is loaded at once with the application's TTL, a write goes straight
to the cache, a refused store is only counted. INVARIANT: a key that misses twice in one pipeline is two misses and
one load.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable

from cachewarden.cachemodel.trace import Op
from cluster.demo.link import Answer, Link, encode
from cluster.demo.stats import ServiceCounters
from simulation.workload import Arrivals, key_name

__all__ = ["CacheAside", "Requests"]

_VALUES = random.Random(0).randbytes(1 << 17)
"""Where values are cut from; what they say does not matter, only that they do not compress to nothing."""


class Requests:
    """Arrivals of one service, encoded once for both fleets: names, lookups, and how to store each."""

    __slots__ = ("lookups", "names", "sizes", "ttls", "writes")

    def __init__(self, arrivals: Arrivals, *, verb: bytes = b"GET") -> None:
        prefixes = arrivals.prefixes
        self.sizes: dict[bytes, int] = {}
        self.ttls: dict[bytes, int] = {}
        self.names: list[bytes] = []
        self.writes: list[bytes] = []
        columns = zip(
            arrivals.key.tolist(),
            arrivals.op.tolist(),
            arrivals.size_bytes.tolist(),
            arrivals.ttl_ms.tolist(),
            arrivals.prefix.tolist(),
            strict=True,
        )
        for key, op, size, ttl_ms, prefix in columns:
            name = key_name(prefixes[prefix], key).encode()
            self.sizes[name] = size
            self.ttls[name] = ttl_ms
            (self.writes if op == Op.WRITE else self.names).append(name)
        self.lookups = [b"*2\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(verb), verb, len(name), name) for name in self.names]

    def store(self, name: bytes) -> bytes:
        """Return the encoded SET of the key."""
        size, ttl_ms = self.sizes[name], self.ttls[name]
        start = zlib.crc32(name) % (len(_VALUES) - size)
        value = _VALUES[start : start + size]
        if ttl_ms <= 0:
            return encode(b"SET", name, value)
        if ttl_ms % 1000 == 0:
            return encode(b"SET", name, value, b"EX", b"%d" % (ttl_ms // 1000))
        return encode(b"SET", name, value, b"PX", b"%d" % ttl_ms)


class CacheAside:
    """The client of one cache. `counters` is what it has seen so far."""

    def __init__(self, link: Link, *, pending_limit: int, behind_s: float) -> None:
        self.link = link
        self.counters = ServiceCounters()
        self._pending_limit = pending_limit
        self._behind_s = behind_s

    def send(self, requests: Requests, finished: Callable[[], None] | None = None) -> None:
        """Send lookups and writes as one pipeline each; misses are loaded when the answers come. Never waits.

        `finished`, if given, is called once everything, loads included, is answered, lost or was not sent.
        """
        link, counters = self.link, self.counters
        total = len(requests.names) + len(requests.writes)
        if link.connected and (link.pending + total > self._pending_limit or link.oldest_wait_s > self._behind_s):
            counters.dropped += total
            self._end(finished)
            return
        if requests.writes:
            written = len(requests.writes)
            stores = [requests.store(name) for name in requests.writes]
            if link.send(stores, lambda answers, _seconds: self._stored(answers, written)):
                counters.writes += written
            else:
                counters.errors += written
        if not requests.names:
            self._end(finished)
            return

        def answered(answers: list[Answer] | None, seconds: float) -> None:
            self._answered(requests, answers, seconds, finished)

        if not link.send(requests.lookups, answered):
            counters.errors += len(requests.names)
            self._end(finished)

    def store_all(self, requests: Requests, finished: Callable[[], None]) -> None:
        """Store every key without asking first, as one pipeline."""
        names = [*requests.names, *requests.writes]

        def stored(answers: list[Answer] | None, _seconds: float) -> None:
            self._stored(answers, len(names))
            finished()

        if not names or not self.link.send([requests.store(name) for name in names], stored):
            finished()

    def _answered(
        self, requests: Requests, answers: list[Answer] | None, seconds: float, finished: Callable[[], None] | None
    ) -> None:
        counters = self.counters
        if answers is None:
            counters.errors += len(requests.names)
            self._end(finished)
            return
        missing: dict[bytes, None] = {}
        failed = misses = 0
        for name, answer in zip(requests.names, answers, strict=True):
            # TOUCH, which the prefill asks with, says 0 where GET says nil.
            if answer is None or answer == 0:
                missing[name] = None
                misses += 1
            elif isinstance(answer, Exception):
                failed += 1
        counted = len(answers) - failed
        counters.errors += failed
        counters.lookups += counted
        counters.hits += counted - misses
        counters.add_latency(seconds * 1e6, counted)
        if not missing:
            self._end(finished)
            return

        def loaded(stored: list[Answer] | None, _seconds: float) -> None:
            self._stored(stored, len(missing))
            self._end(finished)

        if self.link.send([requests.store(name) for name in missing], loaded):
            counters.loads += len(missing)
        else:
            counters.errors += len(missing)
            self._end(finished)

    def _stored(self, answers: list[Answer] | None, sent: int) -> None:
        if answers is None:
            self.counters.errors += sent
            return
        for answer in answers:
            if isinstance(answer, Exception):
                if str(answer).startswith("OOM"):
                    self.counters.refused += 1
                else:
                    self.counters.errors += 1

    @staticmethod
    def _end(finished: Callable[[], None] | None) -> None:
        if finished is not None:
            finished()
