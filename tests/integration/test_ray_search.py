"""A search on a real Ray: the same outcome as in one process, a bound on what runs at once, and a deadline that ends it."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import ray

from cachewarden.cachemodel.candidates import SearchSpace
from cachewarden.cachemodel.replay_study import ReplayCandidate
from cachewarden.cachemodel.search import Evaluation, Finding, Search, run_search
from cachewarden.cachemodel.trace_files import TraceFile, read_trace
from cachewarden.cachemodel.trace_search import TraceSearch
from cachewarden.estimate import Estimate
from cluster.ray_runtime import start_ray, stop_ray
from cluster.ray_search import run_search_on_ray

pytestmark = [pytest.mark.integration, pytest.mark.ray]


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory):
    start_ray(temporary=tmp_path_factory.mktemp("ray"))
    yield
    stop_ray()


@pytest.fixture
def trace(tmp_path: Path) -> TraceFile:
    rng = np.random.default_rng(5)
    weights = 1.0 / np.arange(1, 8_001) ** 0.9
    keys = rng.choice(8_000, 60_000, p=weights / weights.sum())
    path = tmp_path / "requests.trace"
    path.write_bytes(keys.astype(">i8").tobytes())
    return read_trace(path, rate_per_s=50.0)


def searched(trace: TraceFile, budget: int) -> TraceSearch:
    space = SearchSpace(eviction_policies=("allkeys-lru", "allkeys-lfu", "allkeys-random"), decays_min=(1, 10))
    return TraceSearch(trace, ReplayCandidate(800), space, budget_accesses=budget)


@pytest.mark.parametrize("budget", [10**9, 150_000])
def test_tasks_on_ray_find_bit_for_bit_what_one_process_finds(joined, trace: TraceFile, budget: int):
    here, there = searched(trace, budget), searched(trace, budget)
    alone = run_search(here.search, here.evaluator_at)
    spread = run_search_on_ray(there.search, there.evaluator_at, deadline_s=110)
    assert spread == alone
    assert alone.exhaustive is (budget == 10**9)


def test_at_the_deadline_the_rest_is_cancelled_and_what_is_known_decides(joined):
    # Defined here, so that it travels by value: workers cannot import a test.
    def sleepy(evaluation: Evaluation[str]) -> Finding[str]:
        if evaluation.candidate == "slow":
            time.sleep(3_600)
        if evaluation.candidate == "broken":
            raise ValueError("cannot be evaluated")
        return Finding(evaluation, Estimate(0.1, 0.1, 0.1))

    search = Search(("now", "quick", "broken", "slow"), accesses=1, budget_accesses=100)
    outcome = run_search_on_ray(search, lambda share, baseline: sleepy, deadline_s=15, in_flight=1)
    assert outcome.best == "quick"
    fates = {one.candidate: one.fate for one in outcome.trail}
    assert fates["slow"] == "not evaluated: the deadline of 15 s has passed"
    assert "failed" in fates["broken"]

    @ray.remote(num_cpus=ray.cluster_resources()["CPU"])
    def everything() -> bool:
        return True

    # All CPUs can be had at once only when nothing of the search runs any more.
    assert ray.get(everything.remote(), timeout=60)
