"""Builders of batches for the tests of the client feed."""

from __future__ import annotations

from cachewarden.fed_accesses import FeedBatch

COLUMNS = ("at_ms", "key", "op", "size_bytes", "ttl_ms", "pattern", "missed")


def batch(rows=(), *, seq=1, recorder="a", from_ms=0, to_ms=2_000, sent_ms=None, rate=1.0, lookups=None, hits=None,
          misses=None, patterns=2, service="cart"):  # fmt: skip
    """A batch of (at_ms, key, op, size, ttl, pattern, missed) rows; counts are those of the rows unless given."""
    reads = [row for row in rows if row[2] == 0]
    return FeedBatch.of(
        columns={name: [row[n] for row in rows] for n, name in enumerate(COLUMNS)},
        patterns=patterns,
        service=service,
        recorder=recorder,
        seq=seq,
        spatial_rate=rate,
        from_ms=from_ms,
        to_ms=to_ms,
        sent_ms=to_ms if sent_ms is None else sent_ms,
        lookups=len(reads) if lookups is None else lookups,
        hits=sum(r[6] == 0 for r in reads) if hits is None else hits,
        misses=sum(r[6] == 1 for r in reads) if misses is None else misses,
    )


def read(at_ms, key, missed=0, pattern=-1):
    return (at_ms, key, 0, 0, 0, pattern, missed)


def write(at_ms, key, size=100, ttl_ms=0, pattern=-1):
    return (at_ms, key, 1, size, ttl_ms, pattern, -1)
