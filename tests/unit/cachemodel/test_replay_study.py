"""Whole traces replayed under other configurations, sampled and not."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from cachewarden.cachemodel.replay_study import ReplayCandidate, ReplayStudy
from cachewarden.cachemodel.trace_files import TraceFile, read_trace


def zipf_file(tmp_path: Path, **options: object) -> TraceFile:
    ids = np.random.default_rng(5).zipf(1.2, 120_000) % 20_000
    path = tmp_path / "zipf.trace"
    path.write_bytes(ids.astype(">i8").tobytes())
    return read_trace(path, rate_per_s=200.0, **options)


def test_a_cache_for_everything_misses_each_key_once(tmp_path: Path):
    file = zipf_file(tmp_path)
    study = ReplayStudy(file)
    assert study.in_keys
    assert study.footprint_bytes == study.sampled_keys == file.trace.distinct_keys()
    found = study.replay(ReplayCandidate(study.footprint_bytes))
    assert found.cold == pytest.approx(study.sampled_keys / 120_000)
    assert found.miss_ratio == pytest.approx(found.cold)
    assert found.sampling_error == 0.0


def test_shares_of_hits_and_misses_add_up(tmp_path: Path):
    study = ReplayStudy(zipf_file(tmp_path, sampling_rate=0.5))
    found = study.replay(ReplayCandidate(500, "allkeys-lfu", ttl_ms=60_000))
    total = found.hit_ratio + found.cold + found.expired + found.evicted + found.refused + found.deleted
    assert total == pytest.approx(1.0)
    assert found.expired > 0
    assert found.evicted > 0


def test_a_sample_tells_the_hit_ratio_within_a_few_of_its_errors(tmp_path: Path):
    whole, sampled = ReplayStudy(zipf_file(tmp_path)), ReplayStudy(zipf_file(tmp_path, sampling_rate=0.3))
    assert sampled.footprint_bytes == pytest.approx(whole.footprint_bytes, rel=0.05)
    assert 0.0 < sampled.sampling_error < 0.02
    for size in (500, 2000):
        truth = whole.replay(ReplayCandidate(size)).hit_ratio
        assert sampled.replay(ReplayCandidate(size)).hit_ratio == pytest.approx(truth, abs=4 * sampled.sampling_error)


def test_more_memory_never_hits_less_along_an_lru_curve(tmp_path: Path):
    study = ReplayStudy(zipf_file(tmp_path))
    sizes = study.curve_sizes(8)
    misses = [outcome.miss_ratio for outcome in study.curve(ReplayCandidate(0), sizes)]
    assert sizes == sorted(sizes)
    assert all(later <= earlier + 0.002 for earlier, later in itertools.pairwise(misses))


def test_the_warm_up_is_not_counted(tmp_path: Path):
    file = zipf_file(tmp_path)
    cold = ReplayStudy(file).replay(ReplayCandidate(10**9))
    warm = ReplayStudy(file, warm_up=0.5).replay(ReplayCandidate(10**9))
    assert warm.hit_ratio > cold.hit_ratio


def test_unknown_sizes_take_the_given_entry_or_the_mean_of_the_known(tmp_path: Path):
    path = tmp_path / "plain.csv"
    path.write_text("time_ms,key,size,ttl\n0,1,100,0\n1,2,300,0\n2,3,0,0\n")
    assert ReplayStudy(read_trace(path)).footprint_bytes == 600
    assert ReplayStudy(read_trace(path), entry_bytes=50).footprint_bytes == 450


@pytest.mark.parametrize("options", [{"warm_up": 1.0}, {"entry_bytes": 0}])
def test_options_out_of_range_are_refused(tmp_path: Path, options: dict):
    with pytest.raises(ValueError):
        ReplayStudy(zipf_file(tmp_path), **options)


def test_the_name_says_what_differs():
    assert ReplayCandidate(1, "allkeys-lfu", 5, 1, 10, 60_000).name == "allkeys-lfu 1:10, TTL 60 s"
    assert ReplayCandidate(1, ttl_ms=0).name == "allkeys-lru, no TTL"
