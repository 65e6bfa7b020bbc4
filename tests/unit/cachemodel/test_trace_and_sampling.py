"""Traces, the spatial filter, and what an entry costs."""

from __future__ import annotations

import lzma
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachewarden.cachemodel.eviction import EvictionConfig, exact_lru, replay
from cachewarden.cachemodel.memory_accounting import (
    Encoding,
    allocation_bytes,
    encoding_of,
    entry_bytes,
    resident_capacity,
)
from cachewarden.cachemodel.shards import MODULUS, SpatialFilter, adjust_hits, hash_key, keys_needed, mix
from cachewarden.cachemodel.trace import AccessTrace
from cachewarden.cachemodel.trace_files import load

from .workloads import zipf_requests


def test_time_may_not_run_backwards() -> None:
    with pytest.raises(ValueError, match="backwards"):
        AccessTrace.of([2, 1], [1, 1])


def test_columns_must_have_one_length() -> None:
    with pytest.raises(ValueError, match="rows"):
        AccessTrace.of([1, 2], [1])


def test_an_unknown_operation_is_refused() -> None:
    with pytest.raises(ValueError, match="known are"):
        AccessTrace.of([1], [1], [3])


def test_slices_and_concatenation_give_back_the_trace() -> None:
    trace = AccessTrace.of([0, 5, 5, 9], [1, 2, 3, 1], None, 10)
    joined = AccessTrace.concat([trace.slice_time(0, 5), trace.slice_time(5, 100)])
    assert np.array_equal(joined.key, trace.key)
    assert (trace.duration_ms, trace.distinct_keys(), len(trace.slice_time(5, 9))) == (9, 3, 2)


def test_thinning_keeps_all_accesses_of_a_key_or_none() -> None:
    trace = zipf_requests(500, 0.8, 5, seed=1)
    thin = trace.thin(0.3)
    for key in np.unique(thin.key):
        assert np.sum(thin.key == key) == np.sum(trace.key == key)
    assert len(thin.thin(0.3)) == len(thin)


@given(st.floats(0.001, 1.0), st.floats(0.001, 1.0), st.integers(0, 2**64 - 1))
def test_a_sparser_filter_keeps_a_subset(one: float, other: float, hashed: int) -> None:
    low, high = sorted([one, other])
    assert not SpatialFilter(low).keeps(hashed) or SpatialFilter(high).keeps(hashed)


def test_the_vectorised_filter_agrees_with_the_scalar_one() -> None:
    hashes = mix(np.arange(2000, dtype=np.uint64))
    kept = SpatialFilter(0.1).keeps_each(hashes)
    assert [SpatialFilter(0.1).keeps(int(hashed)) for hashed in hashes] == list(kept)
    assert 150 < kept.sum() < 250


def test_the_hash_needs_the_secret() -> None:
    assert hash_key(b"one", b"user:1") == hash_key(b"one", b"user:1")
    assert hash_key(b"one", b"user:1") != hash_key(b"two", b"user:1")
    assert 0 <= hash_key(b"", b"") < 2**64


def test_more_precision_needs_quadratically_more_keys() -> None:
    assert keys_needed(0.004) == pytest.approx(20_000, rel=0.05)
    assert keys_needed(0.01) == pytest.approx(4 * keys_needed(0.02), rel=0.01)


def test_the_count_correction_brings_a_sampled_zipf_near_the_truth() -> None:
    # Given a skewed workload, of which a tenth of the keys was sampled
    trace = zipf_requests(30_000, 1.0, 200, seed=3)
    sample = trace.thin(0.1)
    truth = float(exact_lru(trace, 5000)) / len(trace)
    # When the hot keys that were caught or missed are made up for
    hits = float(exact_lru(sample, 500))
    # Then the hit ratio is right within a point, and nearer than without
    assert adjust_hits(hits, len(sample), len(trace), 0.1) == pytest.approx(truth, abs=0.012)
    assert abs(hits / len(sample) - truth) > abs(adjust_hits(hits, len(sample), len(trace), 0.1) - truth)


def test_an_impossible_rate_is_refused() -> None:
    with pytest.raises(ValueError, match="sampling rate"):
        SpatialFilter(0.0)
    assert SpatialFilter(1.0).threshold == MODULUS


@pytest.mark.parametrize(
    ("wanted", "given_bytes"), [(1, 8), (8, 8), (9, 16), (24, 32), (128, 128), (129, 160), (257, 320), (4097, 5120)]
)
def test_allocations_round_up_to_size_classes(wanted: int, given_bytes: int) -> None:
    assert allocation_bytes(wanted) == given_bytes


def test_encodings_are_those_of_redis() -> None:
    assert encoding_of(b"12345") is Encoding.INT
    assert encoding_of(b"012") is Encoding.EMBSTR
    assert encoding_of(b"9223372036854775808") is Encoding.EMBSTR
    assert encoding_of(b"x" * 45) is Encoding.RAW


def test_an_entry_costs_key_value_dict_entry_and_slot() -> None:
    # key 10+2 -> 16, object 16, value 500+6 -> 512, dict entry 24 -> 32, slot 8/ln 2 = 11.5
    assert entry_bytes(10, 500, has_ttl=False) == round(16 + 16 + 512 + 32 + 11.54)
    assert entry_bytes(10, 500, has_ttl=True) - entry_bytes(10, 500, has_ttl=False) == pytest.approx(43.5, abs=1)
    assert entry_bytes(10, 8, has_ttl=False, encoding=Encoding.INT) < entry_bytes(10, 8, has_ttl=False)


def test_capacity_is_what_the_overhead_leaves() -> None:
    assert resident_capacity(10_000_000, 1_000_000, 900.0) == 10_000
    assert resident_capacity(1_000, 1_000_000, 900.0) == 0


def test_a_file_without_times_needs_a_rate(tmp_path: Path) -> None:
    path = tmp_path / "cache2k_shop.trace.xz"
    path.write_bytes(lzma.compress(np.array([7, 8, 7], ">u4").tobytes()))
    with pytest.raises(ValueError, match="rate_per_s"):
        load(path)
    trace = load(path, rate_per_s=2.0)
    assert list(trace.time_ms) == [0, 500, 1000]
    assert trace.key[0] == trace.key[2] != trace.key[1]


def test_disk_and_plain_csv_files_carry_their_own_times(tmp_path: Path) -> None:
    disk = tmp_path / "disk.csv.xz"
    disk.write_bytes(lzma.compress(b"version,time,op,size,lbn\n1,10,2a,512,5\n1,11,28,4096,5\n"))
    trace = load(disk)
    assert (list(trace.time_ms), list(trace.op), list(trace.size_bytes)) == ([10_000, 11_000], [1, 0], [512, 4096])
    plain = tmp_path / "plain.csv"
    plain.write_text("time_ms,key,size,ttl\n5,1,100,0\n3,2,50,9000\n")
    assert list(load(plain).ttl_ms) == [9000, 0]
    other = tmp_path / "what.parquet"
    other.write_bytes(b"PAR1\x15\x04\x15\x10")
    with pytest.raises(ValueError, match="unknown trace format"):
        load(other)


def test_unknown_sizes_are_stood_in_for() -> None:
    result = replay(AccessTrace.of([0], [1]), EvictionConfig(None, unknown_entry_bytes=77))
    assert result.resident_bytes == 77
