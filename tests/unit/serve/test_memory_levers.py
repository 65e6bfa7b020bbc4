"""Levers side by side: each shows its gain on a cache made for it, and nothing where it gives nothing."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import numpy as np
import pytest
from serve_world import snapshot

from cachewarden.cachemodel.value_model import copies_share
from cachewarden.estimate import Estimate
from cachewarden.messages import Execution, ExecutionState
from cachewarden.observation import KeyspaceSample, Snapshot
from serve.memory_levers import LeverView, levers_of, parts_of, pulled_of
from tests.unit.agents.actuator_world import change, proposal
from tests.unit.serve.memory_looks import measured

MIB = 1 << 20
FIGURES = {
    "used_memory": 40.0 * MIB,
    "used_memory_rss": 50.0 * MIB,
    "used_memory_dataset": 30.0 * MIB,
    "used_memory_overhead": 10.0 * MIB,
    "used_memory_startup": 1.0 * MIB,
    "mem_clients_normal": 2.0 * MIB,
    "mem_replication_backlog": 1.0 * MIB,
    "allocator_frag_bytes": 8.0 * MIB,
}


def residents(idle_ms: list[int], ttl_ms: list[int]) -> KeyspaceSample:
    n = len(idle_ms)
    return KeyspaceSample(
        key=np.arange(n, dtype=np.uint64),
        idle_ms=np.array(idle_ms, np.int64),
        frequency=np.full(n, -1, np.int32),
        size_bytes=np.full(n, 1_000, np.int64),
        ttl_ms=np.array(ttl_ms, np.int64),
        pattern=np.full(n, -1, np.int32),
        encoding=np.full(n, -1, np.int32),
        patterns=(),
        encodings=(),
    )


def lever(seen: Snapshot, name: str) -> LeverView:
    return next(found for found in levers_of(seen, (), None) if found.lever == name)


def test_the_parts_add_up_to_the_memory_of_the_process():
    parts = parts_of(snapshot(memory_figures=FIGURES))
    assert sum(part.bytes for part in parts) == 50 * MIB
    assert parts[0].name == "keys and values"
    assert {part.name: part.bytes // MIB for part in parts}["fragmentation and memory kept by the allocator"] == 10


def test_without_figures_nothing_is_told():
    assert parts_of(snapshot()) == []
    assert lever(snapshot(), "fragmentation").bytes is None


def test_memory_that_nobody_reads_is_a_lever_where_it_is_large():
    dead = snapshot(sample=residents([3_600_000] * 300 + [1_000] * 300, [-1] * 600))
    found = lever(dead, "keys that nobody reads")
    assert found.worth_it
    assert found.bytes[0] == pytest.approx(19 * MIB, rel=0.1)
    alive = snapshot(sample=residents([1_000] * 600, [-1] * 600))
    assert not lever(alive, "keys that nobody reads").worth_it


def test_expired_keys_are_a_lever_only_where_the_server_finds_many():
    sample = residents([1_000] * 600, [5_000] * 600)
    assert lever(snapshot(sample=sample, expired_stale_share=0.3), "expired and not yet freed").worth_it
    assert not lever(snapshot(sample=sample, expired_stale_share=0.0), "expired and not yet freed").worth_it


def test_fragmentation_counts_where_the_allocator_says_so():
    assert lever(snapshot(memory_figures=FIGURES), "fragmentation").worth_it
    little = {**FIGURES, "allocator_frag_bytes": 100.0}
    assert not lever(snapshot(memory_figures=little), "fragmentation").worth_it


def test_copies_count_only_where_the_sample_met_them():
    values = measured().values
    apart = dataclasses.replace(values, twin=np.arange(len(values.value_row), dtype=np.int32))
    assert "no two" in copies_share(apart)
    alike = dataclasses.replace(values, twin=np.zeros(len(values.value_row), dtype=np.int32))
    assert copies_share(alike).low > 0
    assert lever(measured(values=alike), "copies of large values").bytes is not None
    assert lever(measured(values=apart), "copies of large values").bytes is None


def test_what_is_surely_worth_it_comes_first():
    seen = snapshot(memory_figures=FIGURES, sample=residents([3_600_000] * 300 + [1_000] * 300, [-1] * 600))
    worth = [found.worth_it for found in levers_of(seen, (), None)]
    assert worth == sorted(worth, reverse=True)
    assert all(found.reason for found in levers_of(seen, (), None))


def test_what_a_pulled_lever_promised_stands_beside_what_came_of_it():
    freed = Estimate(5_000.0, 4_000.0, 6_000.0)
    plan = proposal(change("hash-max-listpack-entries", 512, 128), playbook="reencode")
    plan = replace(plan, prediction=replace(plan.prediction, freed_bytes=freed))
    done = Execution(
        execution_id="e-1",
        proposal=plan,
        state=ExecutionState.KEPT,
        started_at_ms=0,
        updated_at_ms=1,
        freed_bytes=4_700.0,
    )
    other = replace(done, proposal=replace(plan, prediction=replace(plan.prediction, freed_bytes=None)))
    (pulled,) = pulled_of((other, done), plan.service)
    assert (pulled.predicted_bytes, pulled.realised_bytes) == ((5_000.0, 4_000.0, 6_000.0), 4_700.0)
    assert pulled.what == ["hash-max-listpack-entries"]
    assert pulled_of((done,), "another") == []
