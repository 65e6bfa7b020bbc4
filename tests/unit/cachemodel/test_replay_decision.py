"""When a replayed trace advises a change, when none, and when it does not know."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from cachewarden.cachemodel.replay_decision import (
    Change,
    MemoryNeeded,
    NoChange,
    NotEnough,
    decide,
    shortage,
    smallest_memory,
)
from cachewarden.cachemodel.replay_study import ReplayCandidate, ReplayStudy
from cachewarden.cachemodel.trace_files import read_trace

POLICIES = ("allkeys-lfu", "allkeys-random", "allkeys-lru")


def study_of(tmp_path: Path, ids: npt.NDArray[np.int64], rate: float = 1.0) -> ReplayStudy:
    path = tmp_path / "ids.trace"
    path.write_bytes(ids.astype(">i8").tobytes())
    return ReplayStudy(read_trace(path, rate_per_s=200.0, sampling_rate=rate), warm_up=0.2)


def skewed(rows: int = 120_000) -> npt.NDArray[np.int64]:
    return np.random.default_rng(5).zipf(1.2, rows) % 20_000


def uniform(keys: int = 5_000) -> npt.NDArray[np.int64]:
    return np.random.default_rng(6).integers(0, keys, 120_000)


def choices(capacity: int) -> tuple[list[ReplayCandidate], ReplayCandidate]:
    others = [ReplayCandidate(capacity, policy) for policy in POLICIES]
    return [*others, ReplayCandidate(capacity, "allkeys-lfu", 5, 1, 10)], ReplayCandidate(capacity)


@pytest.mark.parametrize("rate", [1.0, 0.3])
def test_a_clear_gain_is_advised(tmp_path: Path, rate: float) -> None:
    found = decide(study_of(tmp_path, skewed(), rate), *choices(500))
    assert isinstance(found, Change)
    assert found.candidate.eviction_policy == "allkeys-lfu"
    assert found.gain.low > 0.003


@pytest.mark.parametrize("rate", [1.0, 0.3])
def test_a_uniform_workload_is_left_alone(tmp_path: Path, rate: float) -> None:
    found = decide(study_of(tmp_path, uniform(), rate), *choices(1_000))
    assert isinstance(found, NoChange), found
    assert found.reason.startswith("no change")


@pytest.mark.parametrize("rate", [1.0, 0.3])
def test_a_cache_with_room_to_spare_is_left_alone(tmp_path: Path, rate: float) -> None:
    study = study_of(tmp_path, skewed(), rate)
    others, now = choices(2 * study.footprint_bytes)
    more = ReplayCandidate(4 * study.footprint_bytes)
    found = decide(study, [*others, more], now)
    assert isinstance(found, NoChange)
    assert found.gain is not None
    assert found.gain.value == 0.0


def test_a_sample_of_a_few_keys_is_not_enough(tmp_path: Path) -> None:
    found = decide(study_of(tmp_path, uniform(), 0.02), *choices(1_000))
    assert isinstance(found, NotEnough)
    assert "200 are needed" in found.reason


def test_a_handful_of_reads_is_not_enough_even_if_all_are_there(tmp_path: Path) -> None:
    assert isinstance(decide(study_of(tmp_path, skewed(1_000)), *choices(100)), NotEnough)


def test_an_interval_wider_than_the_error_that_is_accepted_is_not_enough(tmp_path: Path) -> None:
    study = study_of(tmp_path, uniform(), 0.1)
    found = decide(study, *choices(1_000), error_max=0.002)
    assert isinstance(found, NotEnough)
    assert f"{study.sampled_keys} keys are sampled" in found.reason


def test_nothing_to_choose_from_is_no_change(tmp_path: Path) -> None:
    assert isinstance(decide(study_of(tmp_path, skewed()), [ReplayCandidate(500)], ReplayCandidate(500)), NoChange)


def test_how_many_keys_an_error_takes_is_told_from_the_sample_itself(tmp_path: Path) -> None:
    study = study_of(tmp_path, skewed(), 0.3)
    hit_ratio = study.outcome(ReplayCandidate(500)).hit_ratio
    assert shortage(study, hit_ratio, 0.5) is None
    told = shortage(study, hit_ratio, 0.006)
    assert told is not None
    needed = int(told.split("about ")[1].split()[0])
    assert study.sampled_keys < needed < study.sampled_keys / 0.3
    assert shortage(study_of(tmp_path, skewed()), hit_ratio, 0.001) is None


@pytest.mark.parametrize("rate", [1.0, 0.3])
def test_the_smallest_memory_for_a_target_reaches_it_and_a_smaller_one_does_not(tmp_path: Path, rate: float) -> None:
    study = study_of(tmp_path, skewed(), rate)
    found = smallest_memory(study, ReplayCandidate(0), 0.7)
    assert isinstance(found, MemoryNeeded)
    assert study.outcome(ReplayCandidate(found.capacity_bytes)).hit_ratio.value >= 0.7
    assert study.outcome(ReplayCandidate(int(found.capacity_bytes * 0.97))).hit_ratio.value < 0.7
    assert found.high_bytes is not None
    assert found.low_bytes <= found.capacity_bytes <= found.high_bytes


def test_a_target_that_no_memory_reaches_is_told_with_the_reason(tmp_path: Path) -> None:
    told = smallest_memory(study_of(tmp_path, skewed()), ReplayCandidate(0), 0.999)
    assert "come for the first time" in str(told)


def test_values_out_of_range_are_refused(tmp_path: Path) -> None:
    study = study_of(tmp_path, skewed())
    hit_ratio = study.outcome(ReplayCandidate(500)).hit_ratio
    with pytest.raises(ValueError, match="out of range"):
        smallest_memory(study, ReplayCandidate(0), 1.0)
    with pytest.raises(ValueError, match="out of range"):
        decide(study, [], ReplayCandidate(1), gain_min=-1)
    with pytest.raises(ValueError, match="out of range"):
        shortage(study, hit_ratio, 0.0)
