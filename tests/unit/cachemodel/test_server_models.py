"""Entry layouts, hash tables and misread fields against what real servers showed."""

from __future__ import annotations

import numpy as np
import pytest

from cachewarden.cachemodel.access_field import counters_after_switch_to_lfu, idle_after_switch_to_lru
from cachewarden.cachemodel.eviction import EvictionConfig, replay
from cachewarden.cachemodel.memory_accounting import Encoding
from cachewarden.cachemodel.server_model import REDIS_7_0, REDIS_8_2, REDIS_8_6, VALKEY_9_1, Allocator
from cachewarden.cachemodel.trace import AccessTrace

# Key length, value length, bytes without TTL, bytes with TTL: growth of used_memory by one SET on Redis 7.0.15
# (jemalloc), MEMORY USAGE on Valkey 9.1.2 (libc) and Redis 8.2.3 (its own jemalloc).
REDIS_ENTRIES = [
    (9, 20, 96, 128),
    (9, 44, 112, 144),
    (9, 50, 128, 160),
    (9, 80, 160, 192),
    (9, 110, 192, 224),
    (9, 200, 288, 320),
    (9, 500, 576, 608),
    (20, 500, 592, 624),
    (40, 1000, 1120, 1152),
    (80, 100, 256, 288),
    (9, 5000, 5184, 5216),
]
VALKEY_ENTRIES = [
    (8, 8, 40, 40),
    (9, 20, 56, 56),
    (9, 40, 72, 72),
    (9, 44, 72, 88),
    (9, 50, 88, 88),
    (9, 60, 88, 104),
    (9, 80, 104, 120),
    (9, 90, 120, 136),
    (9, 100, 136, 136),
    (9, 110, 160, 160),
    (9, 120, 176, 176),
    (9, 200, 256, 256),
    (9, 500, 560, 560),
    (20, 500, 560, 576),
    (40, 1000, 1088, 1088),
    (80, 100, 208, 224),
    (9, 5000, 5056, 5056),
]
REDIS_8_2_ENTRIES = [
    (8, 8, 40, 48),
    (9, 20, 56, 64),
    (9, 44, 80, 88),
    (9, 50, 88, 96),
    (9, 60, 96, 104),
    (9, 80, 128, 136),
    (9, 100, 144, 152),
    (9, 110, 160, 168),
    (9, 200, 256, 264),
    (9, 500, 544, 552),
    (18, 20, 64, 72),
    (18, 44, 88, 96),
    (18, 300, 360, 368),
    (40, 10, 80, 96),
    (40, 1000, 1088, 1104),
    (60, 10, 112, 112),
    (80, 100, 224, 224),
    (140, 20, 216, 216),
    (9, 5000, 5152, 5160),
]


@pytest.mark.parametrize(("key_len", "value_len", "plain", "with_ttl"), REDIS_ENTRIES)
def test_an_entry_of_redis_takes_what_used_memory_grew_by(key_len, value_len, plain, with_ttl) -> None:
    assert REDIS_7_0.entry_bytes(key_len, value_len, has_ttl=False) == plain
    assert REDIS_7_0.entry_bytes(key_len, value_len, has_ttl=True) == with_ttl


@pytest.mark.parametrize(("key_len", "value_len", "plain", "with_ttl"), VALKEY_ENTRIES)
def test_an_entry_of_valkey_takes_what_memory_usage_says_and_its_share_of_chained_buckets(
    key_len, value_len, plain, with_ttl
) -> None:
    model = VALKEY_9_1.on(Allocator.LIBC)
    assert model.table is not None
    chained = model.table.overflow_bytes_per_key
    assert model.entry_bytes(key_len, value_len, has_ttl=False) == plain + chained
    assert model.entry_bytes(key_len, value_len, has_ttl=True) == with_ttl + 2 * chained


@pytest.mark.parametrize(("key_len", "value_len", "plain", "with_ttl"), REDIS_8_2_ENTRIES)
def test_an_entry_of_redis_8_takes_what_memory_usage_says_and_its_share_of_colliding_keys(
    key_len, value_len, plain, with_ttl
) -> None:
    assert REDIS_8_2.table is not None
    chained = REDIS_8_2.table.overflow_bytes_per_key
    assert REDIS_8_2.entry_bytes(key_len, value_len, has_ttl=False) == plain + chained
    assert REDIS_8_2.entry_bytes(key_len, value_len, has_ttl=True) == with_ttl + 2 * chained


def test_both_jemallocs_go_by_one_name_and_the_server_knows_which_is_its_own() -> None:
    assert REDIS_8_2.reporting("jemalloc-5.3.0").allocator is Allocator.JEMALLOC_FINE
    assert REDIS_7_0.reporting("jemalloc-5.3.0").allocator is Allocator.JEMALLOC
    assert REDIS_8_2.reporting("libc").allocator is Allocator.LIBC
    assert [Allocator.JEMALLOC_FINE.rounded(wanted) for wanted in (1, 33, 64, 65)] == [8, 40, 64, 80]


def test_an_integer_lies_in_its_object() -> None:
    assert REDIS_7_0.entry_bytes(9, 5, has_ttl=False, encoding=Encoding.INT) == 16 + 16 + 32


def test_an_entry_of_unknown_layout_is_refused_and_not_guessed() -> None:
    with pytest.raises(ValueError, match="measure entries with MEMORY USAGE"):
        REDIS_8_6.entry_bytes(9, 5, has_ttl=False)
    with pytest.raises(ValueError, match=r"hash tables of `redis-8\.6` are not known"):
        EvictionConfig(100, server=REDIS_8_6, counts_tables=True)
    with pytest.raises(ValueError, match="MEMORY USAGE"):
        REDIS_7_0.entry_bytes(9, 5, has_ttl=False, encoding=Encoding.LISTPACK)


def loads(keys: int, ttl_ms: int = 0) -> AccessTrace:
    return AccessTrace.of(np.arange(keys), np.arange(keys), None, 100, ttl_ms)


def test_counted_tables_double_when_full() -> None:
    unlimited = EvictionConfig(None, counts_tables=True)
    assert replay(loads(1024), unlimited).resident_bytes == 1024 * 100 + 1024 * 8
    assert replay(loads(1025), unlimited).resident_bytes == 1025 * 100 + 2048 * 8
    assert replay(loads(1025, ttl_ms=10**9), unlimited).resident_bytes == 1025 * 100 + 2 * 2048 * 8
    valkey = EvictionConfig(None, server=VALKEY_9_1, counts_tables=True)
    assert replay(loads(7 * 128), valkey).resident_bytes == 7 * 128 * 100 + 128 * 64
    assert replay(loads(7 * 128 + 1), valkey).resident_bytes == (7 * 128 + 1) * 100 + 256 * 64


def test_a_table_does_not_double_where_that_would_exceed_maxmemory() -> None:
    # After 1024 keys a table of 2048 slots would need 16384 bytes more; there is room for 100 keys and no table.
    tight = EvictionConfig(1024 * 108 + 10_000, counts_tables=True)
    result = replay(loads(1100), tight)
    assert (result.resident_keys, result.resident_bytes) == (1100, 1100 * 100 + 1024 * 8)


def test_a_crowded_table_doubles_even_above_maxmemory() -> None:
    # 64 slots with 64 * 1.618 keys or more are doubled although the memory is full.
    full = EvictionConfig(64 * 8 + 120 * 100, counts_tables=True, maxmemory_samples=1)
    result = replay(loads(120), full)
    assert result.resident_bytes == result.resident_keys * 100 + 128 * 8


def test_a_table_shrinks_when_hardly_anything_is_left_in_it() -> None:
    # 2,000 keys expire within the minute; then ten others come.
    keys = np.concatenate([np.arange(2000), 5000 + np.arange(10)])
    time_ms = np.concatenate([np.zeros(2000), 60_000 + 200 * np.arange(10)])
    trace = AccessTrace.of(time_ms, keys, None, 100, 1000)
    result = replay(trace, EvictionConfig(None, counts_tables=True))
    assert result.resident_bytes <= result.resident_keys * 100 + 2 * 16 * 8


def test_lfu_reads_seconds_of_lru_as_counter_and_minutes() -> None:
    # 0x123456 seconds: 0x1234 minutes and a counter of 0x56; the clock shows 0x1240 minutes.
    touched = np.array([0x123456 * 1000])
    counter, elapsed = counters_after_switch_to_lfu(touched, 0x1240 * 60_000, wrap_at=65_536)
    assert (counter[0], elapsed[0]) == (0x56, 0x0C)


def test_lfu_minutes_that_lie_ahead_wrap_around_once() -> None:
    touched = np.array([0x200000 * 1000])
    assert counters_after_switch_to_lfu(touched, 0x1000 * 60_000, 65_536)[1][0] == 65_536 - 0x1000
    assert counters_after_switch_to_lfu(touched, 0x1000 * 60_000, 65_535)[1][0] == 65_535 - 0x1000


def test_lru_reads_minutes_and_counter_of_lfu_as_seconds() -> None:
    # Minute 2 with counter 7 looks like second 519.
    assert idle_after_switch_to_lru(np.array([2]), np.array([7]), 1_000_000)[0] == (1000 - 519) * 1000
