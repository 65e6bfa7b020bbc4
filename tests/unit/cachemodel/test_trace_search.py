"""The search over configurations of a trace: what it finds, and that it says so when there is nothing to find."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from cachewarden.cachemodel.candidates import SearchSpace
from cachewarden.cachemodel.replay_study import ReplayCandidate
from cachewarden.cachemodel.search import Conclusion, SearchOutcome, run_search
from cachewarden.cachemodel.trace_files import TraceFile, read_trace
from cachewarden.cachemodel.trace_search import TraceSearch

POLICIES = SearchSpace(eviction_policies=("allkeys-lru", "allkeys-lfu", "allkeys-random"), lfu_log_factors=(1,))


def file_of(keys: npt.NDArray[np.int64], directory: Path, rate: float = 1.0) -> TraceFile:
    path = directory / "ids.trace"
    path.write_bytes(keys.astype(">i8").tobytes())
    return read_trace(path, rate_per_s=20.0, sampling_rate=rate)


def zipf(requests: int, keys: int, skew: float) -> npt.NDArray[np.int64]:
    weights = np.arange(1, keys + 1) ** -skew
    return np.random.default_rng(3).choice(keys, requests, p=weights / weights.sum())


def searched(file: TraceFile, capacity: int, budget: int = 10**9) -> SearchOutcome[ReplayCandidate]:
    search = TraceSearch(file, ReplayCandidate(capacity), POLICIES, budget_accesses=budget, warm_up=0.2)
    return run_search(search.search, search.evaluator_at)


def test_a_steady_skewed_workload_is_better_off_with_lfu(tmp_path: Path) -> None:
    outcome = searched(file_of(zipf(60_000, 5_000, 0.9), tmp_path), 300)
    assert outcome.conclusion is Conclusion.CHANGE
    assert outcome.best.eviction_policy == "allkeys-lfu"
    assert outcome.gain.low > 0.02


def test_a_uniform_workload_gains_nothing_from_another_policy(tmp_path: Path) -> None:
    keys = np.random.default_rng(3).integers(0, 3_000, 60_000)
    outcome = searched(file_of(keys, tmp_path), 600)
    assert outcome.conclusion is Conclusion.NO_CHANGE
    assert outcome.best == ReplayCandidate(600)


def test_a_cache_with_room_to_spare_gains_nothing_from_another_policy(tmp_path: Path) -> None:
    outcome = searched(file_of(zipf(20_000, 1_000, 0.9), tmp_path), 2_000)
    assert outcome.conclusion is Conclusion.NO_CHANGE
    assert "less than the 0.50" in outcome.reason


def test_a_sample_of_a_few_keys_is_not_enough_evidence(tmp_path: Path) -> None:
    outcome = searched(file_of(zipf(30_000, 5_000, 0.9), tmp_path, rate=0.01), 300)
    assert outcome.conclusion is Conclusion.NOT_ENOUGH_EVIDENCE
    assert "the sample holds only" in outcome.reason
    assert outcome.best == ReplayCandidate(300)


def test_halving_finds_what_full_enumeration_finds_with_less_work(tmp_path: Path) -> None:
    file = file_of(zipf(60_000, 5_000, 0.9), tmp_path)
    whole, halved = searched(file, 300), searched(file, 300, budget=150_000)
    assert whole.exhaustive
    assert not halved.exhaustive
    assert halved.accesses < whole.accesses
    assert halved.best.eviction_policy == whole.best.eviction_policy == "allkeys-lfu"


def test_more_memory_is_a_candidate_like_any_other(tmp_path: Path) -> None:
    file = file_of(zipf(30_000, 3_000, 0.9), tmp_path)
    space = SearchSpace(eviction_policies=("allkeys-lru",))
    now = ReplayCandidate(1)
    sized = TraceSearch(
        file, now, space, at=lambda whole: whole // 20, sizes=[lambda whole: whole // 5], budget_accesses=10**9
    )
    outcome = run_search(sized.search, sized.evaluator_at)
    assert outcome.best.capacity_bytes == sized.study.footprint_bytes // 5
    assert outcome.gain.low > 0.05


def test_the_turnover_is_known_where_something_is_evicted_and_only_there(tmp_path: Path) -> None:
    file = file_of(zipf(20_000, 1_000, 0.9), tmp_path)
    full = TraceSearch(file, ReplayCandidate(100), POLICIES, budget_accesses=10**9)
    roomy = TraceSearch(file, ReplayCandidate(2_000), POLICIES, budget_accesses=10**9)
    assert full.turnover_ms == pytest.approx(1000 * 100 / (20 * full.now.miss_ratio), rel=0.05)
    assert roomy.turnover_ms is None
