"""A point of the curve of one real server, against a second real server that has that memory."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.replay_accuracy import Cell, drive, value_lengths, zipf
from cachewarden.cachemodel.curves import MemoryCurve, MemoryForTarget, curve, memory_for
from cachewarden.cachemodel.evidence import CacheConfiguration, Evidence, TtlStats
from cachewarden.cachemodel.shards import mix
from cachewarden.cachemodel.trace import AccessTrace
from cachewarden.cachemodel.whatif import Inquiry

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(180)]

SECONDS, PER_S, MEMORY = 40, 450, 1_500_000
# Both have to be full within the run: a server that still fills up is no steady cache.
SMALLER = 900_000


def test_the_curve_of_a_server_tells_what_a_second_one_with_that_memory_measures():
    keys = zipf(SECONDS * PER_S, 15_000, 0.9, seed=11)
    cells = [Cell("valkey", "allkeys-lru", MEMORY), Cell("valkey", "allkeys-lru", SMALLER)]
    now, other = drive(cells, keys, value_lengths(keys), float(SECONDS))
    time_ms = np.arange(len(keys)) * 1000 // PER_S
    inquiry = Inquiry(
        Evidence(
            lookups_per_s=PER_S,
            hit_ratio=now.server_hit_ratio,
            maxmemory_bytes=MEMORY,
            used_memory_bytes=MEMORY,
            fixed_overhead_bytes=0,
            resident_keys=now.resident_keys,
            mean_entry_bytes=MEMORY / now.resident_keys,
            current=CacheConfiguration(MEMORY),
            trace=AccessTrace.of(time_ms, mix(keys.astype(np.uint64))),
            capture_end_ms=SECONDS * 1000,
            ttl=TtlStats(0.0),
        ),
        1,
    )
    found = curve(inquiry)
    assert isinstance(found, MemoryCurve)
    point = next(p for p in found.points if p.maxmemory_bytes == SMALLER)
    print(f"predicted {point.hit_ratio}, measured {other.server_hit_ratio:.4f}")  # noqa: T201
    assert point.hit_ratio.holds(other.server_hit_ratio)
    assert point.hit_ratio.value == pytest.approx(other.server_hit_ratio, abs=0.03)
    least = memory_for(inquiry, other.server_hit_ratio)
    assert isinstance(least, MemoryForTarget)
    assert least.maxmemory_bytes == pytest.approx(SMALLER, rel=0.3)
