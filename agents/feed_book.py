"""The accesses that the recorders of one service reported, put onto one clock and into one order.

Each recorder has a clock of its own; it is set against ours by the shortest way that a batch has taken lately, so a
wrong time of day does not matter and a slow network only where it always is. Batches that come twice count once. What
is held is bounded: by time, by recorders, and by rows, where the spatial rate falls so that keys go and not moments.

It decides nothing (`observation_sources` does). INVARIANT: never more than `rows_max` rows; the sample of a time has
the lowest rate that any recorder used within it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cachewarden.cachemodel.shards import MODULUS, SpatialFilter
from cachewarden.cachemodel.trace import AccessTrace
from cachewarden.fed_accesses import FeedBatch
from cachewarden.feed import KEEP_ALIVE_MS
from cachewarden.observation import AccessSample

__all__ = ["FEED_SOURCE", "FedCounts", "FeedBook"]

FEED_SOURCE: Final = "client feed"
_SEQS_REMEMBERED: Final = 64
_WAYS_REMEMBERED: Final = 16
_CLOCK_STOOD_MS: Final = 10_000
"""A way that is longer than the shortest one by this much means that the recorder's clock stood still, e.g. asleep."""
_RECORDERS_MAX: Final = 256
_SILENT_MS: Final = 3 * KEEP_ALIVE_MS


@dataclass(frozen=True, slots=True)
class FedCounts:
    """Lookups of some time as the recorders saw them; what is neither hit nor miss is unknown."""

    lookups: float
    hits: float
    misses: float

    @property
    def hit_ratio(self) -> float | None:
        """Return the hit ratio of the lookups whose outcome is known, 0..1; None without any."""
        known = self.hits + self.misses
        return self.hits / known if known > 0 else None


@dataclass(slots=True)
class _Recorder:
    newest_ms: int
    seqs: deque[int] = field(default_factory=lambda: deque(maxlen=_SEQS_REMEMBERED))
    ways_ms: deque[int] = field(default_factory=lambda: deque(maxlen=_WAYS_REMEMBERED))
    """Our time of arrival minus its time of sending, batch by batch."""

    def offset_ms(self, batch: FeedBatch, now_ms: int) -> int:
        """Return what to add to the recorder's times to get ours."""
        way_ms = now_ms - batch.sent_ms
        if self.ways_ms and way_ms - min(self.ways_ms) > _CLOCK_STOOD_MS:
            self.ways_ms.clear()
        self.ways_ms.append(way_ms)
        return min(self.ways_ms)

    def knows(self, seq: int) -> bool:
        return seq in self.seqs or (len(self.seqs) == _SEQS_REMEMBERED and seq < min(self.seqs))


@dataclass(slots=True)
class _Chunk:
    """One batch on our clock. `columns`: time_ms, key, op, size_bytes, ttl_ms, pattern, missed."""

    from_ms: int
    to_ms: int
    rate: float
    counts: tuple[int, int, int]
    columns: tuple[npt.NDArray[Any], ...]

    def __len__(self) -> int:
        return len(self.columns[0])

    def thin(self, rate: float) -> None:
        """Drop the rows of keys that a filter of `rate` drops."""
        if rate < self.rate:
            kept = SpatialFilter(rate).keeps_each(self.columns[1])
            self.columns, self.rate = tuple(column[kept] for column in self.columns), rate

    def share_within(self, from_ms: int, to_ms: int) -> float:
        """Return which part of its time, 0..1, lies within from_ms to to_ms."""
        length = self.to_ms - self.from_ms
        if length <= 0:
            return 1.0 if from_ms <= self.to_ms < to_ms else 0.0
        return max(0, min(to_ms, self.to_ms) - max(from_ms, self.from_ms)) / length


class FeedBook:
    """See the module. `patterns` are the service's prefixes, `history_ms` is how long accesses are remembered."""

    def __init__(self, patterns: Sequence[str], *, history_ms: int, rows_max: int = 200_000) -> None:
        self.patterns = tuple(patterns)
        self.batches = 0
        self.dropped: Counter[str] = Counter()
        self._history_ms = history_ms
        self._rows_max = rows_max
        self._recorders: dict[str, _Recorder] = {}
        self._chunks: deque[_Chunk] = deque()
        self._rows = 0

    @property
    def rows_held(self) -> int:
        return self._rows

    def recorders(self, now_ms: int) -> int:
        """Return how many recorders have reported lately."""
        return sum(now_ms - r.newest_ms <= _SILENT_MS for r in self._recorders.values())

    def take(self, batch: FeedBatch, now_ms: int) -> str | None:
        """Take a batch in; returns why it was dropped instead, which is also counted."""
        self.forget(now_ms)
        why = self._take(batch, now_ms)
        if why is not None:
            self.dropped[why] += 1
        return why

    def _take(self, batch: FeedBatch, now_ms: int) -> str | None:
        if len(batch) and int(batch.pattern.max()) >= len(self.patterns):
            return "names a pattern that the fleet file does not have"
        recorder = self._recorders.get(batch.recorder)
        if recorder is None:
            if len(self._recorders) >= _RECORDERS_MAX:
                return f"more than {_RECORDERS_MAX} recorders"
            recorder = self._recorders[batch.recorder] = _Recorder(newest_ms=now_ms)
        if recorder.knows(batch.seq):
            return "came twice"
        recorder.seqs.append(batch.seq)
        recorder.newest_ms = now_ms
        offset_ms = recorder.offset_ms(batch, now_ms)
        if batch.to_ms + offset_ms < now_ms - self._history_ms:
            return "too old"
        self._chunks.append(
            _Chunk(
                from_ms=batch.from_ms + offset_ms,
                to_ms=batch.to_ms + offset_ms,
                rate=batch.spatial_rate,
                counts=(batch.lookups, batch.hits, batch.misses),
                columns=(
                    batch.at_ms + offset_ms, batch.key, batch.op, batch.size_bytes, batch.ttl_ms, batch.pattern,
                    batch.missed,
                ),
            )
        )  # fmt: skip
        self.batches += 1
        self._rows += len(batch)
        self._stay_within_bound()
        return None

    def _stay_within_bound(self) -> None:
        while self._rows > self._rows_max:
            rate = max(chunk.rate for chunk in self._chunks if len(chunk)) / 2
            if rate < 1.0 / MODULUS:
                # All rows are of a handful of keys that no filter tells apart: time has to go after all.
                self._rows -= len(self._chunks.popleft())
                continue
            for chunk in self._chunks:
                chunk.thin(rate)
            self._rows = sum(len(chunk) for chunk in self._chunks)

    def forget(self, now_ms: int) -> None:
        """Drop what is older than the history; a clock that was set back drops what lies ahead of it."""
        kept = deque(c for c in self._chunks if now_ms - self._history_ms <= c.to_ms <= now_ms + _CLOCK_STOOD_MS)
        if len(kept) < len(self._chunks):
            self._chunks, self._rows = kept, sum(len(chunk) for chunk in kept)
        gone = [name for name, r in self._recorders.items() if abs(now_ms - r.newest_ms) > self._history_ms]
        for name in gone:
            del self._recorders[name]

    def counts(self, from_ms: int, to_ms: int) -> FedCounts:
        """Return the lookups that were reported of a time; a batch that reaches over its ends counts in part."""
        totals = [0.0, 0.0, 0.0]
        for chunk in self._chunks:
            share = chunk.share_within(from_ms, to_ms)
            for part, count in enumerate(chunk.counts):
                totals[part] += share * count
        return FedCounts(*totals)

    def steady_from(self, from_ms: int, to_ms: int, needed_ms: int) -> int:
        """Return the earliest time from `from_ms` on since which no batch had a lower rate than the last `needed_ms`.

        A sample has the lowest rate of its time: a short while of a low one, as at the start, is better left out.
        """
        recent = [c.rate for c in self._chunks if c.to_ms > to_ms - needed_ms and c.from_ms < to_ms]
        lower = [c.to_ms for c in self._chunks if c.from_ms < to_ms and c.rate < min(recent, default=0.0)]
        return max([from_ms, *lower])

    def sample(self, from_ms: int, to_ms: int) -> AccessSample | None:
        """Return the accesses of from_ms <= time < to_ms of all recorders in time order; None without any batch."""
        chunks = [c for c in self._chunks if c.from_ms < to_ms and c.to_ms >= from_ms]
        if not chunks:
            return None
        rate = min(chunk.rate for chunk in chunks)
        columns = [np.concatenate(parts) for parts in zip(*(chunk.columns for chunk in chunks), strict=True)]
        wanted = (columns[0] >= from_ms) & (columns[0] < to_ms) & SpatialFilter(rate).keeps_each(columns[1])
        columns = [column[wanted] for column in columns]
        # Stable, so that accesses of one recorder within a millisecond stay in its order.
        order = np.argsort(columns[0], kind="stable")
        time, key, op, size, ttl, pattern, missed = (np.ascontiguousarray(column[order]) for column in columns)
        return AccessSample(
            trace=AccessTrace(time, key, op, size, ttl),
            pattern=pattern,
            patterns=self.patterns,
            spatial_rate=rate,
            lines_seen=len(time),
            source=FEED_SOURCE,
            missed=missed,
        )
