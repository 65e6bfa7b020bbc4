"""The demo's fleet, its plans and its traces say what they should."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cachewarden.cachemodel.trace import AccessTrace, Op
from cachewarden.errors import ConfigurationError
from cachewarden.fleet import load_fleet
from cachewarden.messages import Mode
from cluster.demo.fleet import (
    CACHE_BYTES,
    CONTROL,
    MANAGED,
    SERVICES,
    blackboard_options,
    demo_fleet,
    driver_plan,
    server_options,
    workloads,
)
from cluster.demo.plan import DriverPlan, PlannedService, TracePlan, load_plan, save_plan
from cluster.demo.player import TraceSource, load_trace_source

ROOT = Path(__file__).resolve().parents[3]
URLS = {name: f"redis://:secret@127.0.0.1:{7000 + i}/0" for i, name in enumerate(SERVICES)}


def test_the_demo_fleet_is_managed_automatically_with_captures_and_an_equal_split():
    fleet = demo_fleet(URLS)
    assert fleet.names == SERVICES
    assert {s.mode for s in fleet.services} == {Mode.AUTO}
    assert all(s.capture and s.weight == 1.0 and s.hit_ratio_floor > 0 for s in fleet.services)
    assert fleet.total_memory_bytes == sum(o.maxmemory_bytes for o in server_options()) == CACHE_BYTES * 5


def test_each_service_starts_with_its_own_fault():
    policies = {o.name: o.eviction_policy for o in server_options()}
    written_ttls = {spec.service: {p.ttl_ms for p in spec.prefixes} for spec in workloads(1)}
    assert policies["constitutional_ai"] == "volatile-lru"
    assert written_ttls["constitutional_ai"] == {0}
    assert policies["integrity_service"] == "noeviction"
    assert policies["api_gateway"] == "allkeys-lfu"
    assert written_ttls["multi_agent_coordinator"] == {15_000}


def test_only_patterns_written_with_a_ttl_promise_a_staleness_beyond_it():
    for service, spec in zip(demo_fleet(URLS).services, workloads(1), strict=True):
        for pattern, prefix in zip(service.patterns, spec.prefixes, strict=True):
            assert pattern.prefix == prefix.prefix
            assert (pattern.max_staleness_s is None) == (prefix.ttl_ms == 0)
            assert pattern.max_staleness_s is None or pattern.max_staleness_s * 1000 > prefix.ttl_ms


def test_blackboard_and_journal_lose_nothing_to_eviction():
    assert blackboard_options().eviction_policy == "noeviction"
    assert blackboard_options().append_only


@pytest.mark.parametrize("seed", range(8))
def test_seeds_move_the_traffic_within_bounds_and_reproducibly(seed):
    assert workloads(seed) == workloads(seed)
    assert workloads(seed) != workloads(seed + 1)
    for spec, base in zip(workloads(seed), workloads(0), strict=True):
        assert 0.9 < spec.rate_per_s / base.rate_per_s < 1.11
        assert abs(spec.zipf_skew - base.zipf_skew) <= 0.04
        assert 300 <= spec.rate_per_s <= 900


def test_a_plan_survives_its_file_and_is_for_its_owner_only(tmp_path):
    plan = driver_plan({MANAGED: URLS, CONTROL: URLS}, 3, "-", duration_s=5.0)
    trace = PlannedService(
        name="t", urls={"a": "redis://h:1/0"}, traffic=TracePlan(service="t", path="x.csv", ttl_ms=5)
    )
    plan = replace(plan, services=(*plan.services, trace))
    path = tmp_path / "plan.json"
    save_plan(plan, path)
    assert load_plan(path) == plan
    assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"services": [{}]}', '{"services": [], "sed": 1, "stats_path": "-"}']
)
def test_a_plan_that_cannot_be_used_names_its_file(tmp_path, text):
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=r"plan\.json"):
        load_plan(path)


def test_the_example_fleet_file_parses():
    fleet = load_fleet(ROOT / "config" / "fleet.example.yaml")
    assert {s.mode for s in fleet.services} == {Mode.AUTO, Mode.APPROVE, Mode.ADVISE}


def small_trace() -> AccessTrace:
    return AccessTrace.of([100, 110, 150], [1, 2, 1], [Op.READ, Op.DELETE, Op.WRITE], [0, 10, 700], [0, 0, 9_000])


def test_a_trace_is_played_from_its_first_row_with_stand_ins_for_what_it_lacks():
    rows = TraceSource(small_trace(), ttl_ms=4_000, value_bytes=300).between(0, 1_000)
    assert rows.time_ms.tolist() == [0, 50]
    assert rows.size_bytes.tolist() == [300, 700]
    assert rows.ttl_ms.tolist() == [4_000, 9_000]
    assert rows.op.tolist() == [Op.READ, Op.WRITE]


def test_a_trace_ends_unless_it_is_repeated():
    once, again = TraceSource(small_trace()), TraceSource(small_trace(), repeat=True)
    assert once.ended_ms == 51
    assert len(once.between(51, 10_000)) == 0
    assert again.ended_ms is None
    assert again.between(0, 153).time_ms.tolist() == [0, 50, 51, 101, 102, 152]
    assert again.between(40, 60).time_ms.tolist() == [50, 51]


def test_an_empty_trace_is_refused():
    with pytest.raises(ValueError, match="empty"):
        TraceSource(AccessTrace.of([], []))


def test_a_users_csv_is_played_with_its_sizes_and_ttls(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("time_ms,key,size,ttl\n0,5,100,0\n20,6,200,3000\n")
    rows = load_trace_source(TracePlan(service="x", path=str(path))).between(0, 100)
    assert rows.size_bytes.tolist() == [100, 200]
    assert rows.ttl_ms.tolist() == [0, 3_000]
    assert len(np.unique(rows.key)) == 2


def test_plans_have_bounds_by_default():
    plan = DriverPlan(seed=1, services=(), stats_path="-")
    assert 10 <= plan.tick_ms <= 20
    assert plan.late_ms > plan.tick_ms
