"""Whole traces replayed under other configurations, sampled and not."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cachewarden.cachemodel.replay_study import ReplayCandidate, ReplayStudy
from cachewarden.cachemodel.trace_files import TraceFile, read_trace
from cachewarden.estimate import Estimate


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
    found = study.outcome(ReplayCandidate(study.footprint_bytes))
    assert found.cold == pytest.approx(study.sampled_keys / 120_000)
    assert found.miss_ratio == pytest.approx(found.cold)
    # Without sampling the interval is what a server does otherwise than the replay: less than a point
    assert found.hit_ratio.high - found.hit_ratio.low < 0.01


def test_shares_of_hits_and_misses_add_up(tmp_path: Path):
    study = ReplayStudy(zipf_file(tmp_path, sampling_rate=0.5))
    found = study.outcome(ReplayCandidate(500, "allkeys-lfu", ttl_ms=60_000))
    total = found.hit_ratio.value + found.cold + found.expired + found.evicted + found.refused + found.deleted
    assert total == pytest.approx(1.0)
    assert found.expired > 0
    assert found.evicted > 0


def test_a_sample_tells_the_hit_ratio_within_its_interval(tmp_path: Path):
    whole, sampled = ReplayStudy(zipf_file(tmp_path)), ReplayStudy(zipf_file(tmp_path, sampling_rate=0.3))
    assert sampled.footprint_bytes == pytest.approx(whole.footprint_bytes, rel=0.05)
    for size in (500, 2000):
        truth, found = (study.outcome(ReplayCandidate(size)).hit_ratio for study in (whole, sampled))
        assert found.holds(truth.value)
        assert truth.high - truth.low < found.high - found.low < 0.06


def test_the_share_of_the_keys_is_counted_and_not_believed(tmp_path: Path):
    file = zipf_file(tmp_path, sampling_rate=0.3)
    everything = zipf_file(tmp_path).trace.distinct_keys()
    study = ReplayStudy(file)
    assert file.distinct_keys == pytest.approx(everything, rel=0.005)
    assert study.rate == pytest.approx(study.sampled_keys / everything, rel=0.005)
    assert ReplayStudy(replace(file, distinct_keys=None)).rate == 0.3


def test_a_candidate_differs_from_itself_by_nothing(tmp_path: Path):
    study = ReplayStudy(zipf_file(tmp_path, sampling_rate=0.3))
    assert study.difference(ReplayCandidate(500), ReplayCandidate(500)) == Estimate(0.0, 0.0, 0.0)


def test_differences_are_surer_than_levels(tmp_path: Path):
    whole, study = ReplayStudy(zipf_file(tmp_path)), ReplayStudy(zipf_file(tmp_path, sampling_rate=0.3))
    lru, random = ReplayCandidate(500), ReplayCandidate(500, "allkeys-random")
    found = study.difference(random, lru)
    unpaired = study.outcome(random).hit_ratio.minus(study.outcome(lru).hit_ratio)
    assert found.holds(whole.difference(random, lru).value)
    assert found.high < 0.0
    assert found.high - found.low < 0.8 * (unpaired.high - unpaired.low)


def test_more_memory_never_hits_less_along_an_lru_curve(tmp_path: Path):
    study = ReplayStudy(zipf_file(tmp_path))
    sizes = study.curve_sizes(8)
    misses = [outcome.miss_ratio for outcome in study.curve(ReplayCandidate(0), sizes)]
    assert sizes == sorted(sizes)
    assert all(later <= earlier + 0.002 for earlier, later in itertools.pairwise(misses))


def test_the_warm_up_is_not_counted(tmp_path: Path):
    file = zipf_file(tmp_path)
    cold = ReplayStudy(file).outcome(ReplayCandidate(10**9))
    warm = ReplayStudy(file, warm_up=0.5).outcome(ReplayCandidate(10**9))
    assert warm.hit_ratio.value > cold.hit_ratio.value


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
