"""Deltas of looks: what is counted, and when two looks cannot be compared."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.info_facts import facts_of_info
from agents.windows import elapsed_between, guardrail_window, latency_quantile, window_between
from tests.unit.agents.looks import INFO, look


def test_a_window_counts_what_happened_between_two_looks():
    before = look(0, keyspace_hits=100, keyspace_misses=50, evicted_keys=7, expired_keys=1)
    after = look(
        10_000, keyspace_hits=1_000, keyspace_misses=150, evicted_keys=57, expired_keys=21, errorstat_OOM="count=4"
    )
    window = window_between(before, after)
    assert (window.window_ms, window.hits, window.misses) == (10_000, 900, 100)
    assert (window.evicted, window.expired, window.refused) == (50, 20, 4)
    assert window.hit_ratio == pytest.approx(0.9)
    assert window.per_s(window.lookups) == pytest.approx(100.0)


def test_our_own_lookups_are_not_counted():
    window = window_between(look(0, own=(5, 5)), look(1_000, keyspace_hits=300, keyspace_misses=80, own=(205, 15)))
    assert (window.hits, window.misses) == (100, 70)


def test_a_window_without_lookups_has_no_hit_ratio():
    assert window_between(look(0), look(1_000)).hit_ratio is None


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ({}, {"run_id": "b" * 40}, "restart"),
        ({}, {"role": "slave"}, "role"),
        ({"keyspace_hits": 10}, {"keyspace_hits": 9}, "keyspace_hits"),
        ({"expired_keys": 10}, {"expired_keys": 0}, "expired_keys"),
        ({"errorstat_OOM": "count=3"}, {"errorstat_OOM": "count=1"}, "refused writes"),
        ({"total_commands_processed": 99}, {"total_commands_processed": 3}, "reset"),
    ],
)
def test_a_restart_or_reset_begins_a_new_window_and_says_so(before, after, says):
    window = window_between(look(0, **before), look(10_000, **after))
    assert says in window.problem
    assert (window.window_ms, window.hit_ratio, window.evicted) == (0, None, None)


def test_an_adapter_made_anew_begins_a_new_window():
    assert "own lookups" in window_between(look(0, own=(9, 9)), look(1_000, own=(0, 0))).problem


@pytest.mark.parametrize("blind", ["first", "last"])
def test_a_window_that_begins_or_ends_with_unknown_lookups_of_our_own_gives_no_hit_ratio(blind):
    unknown = {"own_lookups": "`collector` was looking at the cache"}
    window = window_between(
        look(0, incomplete=unknown if blind == "first" else {}),
        look(1_000, keyspace_hits=300, incomplete=unknown if blind == "last" else {}),
    )
    assert "`collector` was looking" in window.problem
    assert window.hit_ratio is None


def test_a_new_account_of_our_own_lookups_begins_a_new_window():
    first, later = look(0), replace(look(1_000, keyspace_hits=300), own_lookups_basis="2")
    assert "began anew" in window_between(first, later).problem


def test_guardrails_still_see_latency_and_refusals_where_hits_are_unknown():
    first = look(0, errorstat_OOM="count=0")
    later = look(
        1_000,
        keyspace_hits=300,
        errorstat_OOM="count=7",
        latency={"get": ((8, 100),)},
        incomplete={"own_lookups": "the ledger does not answer"},
    )
    window = guardrail_window(first, later)
    assert (window.problem, window.hit_ratio, window.refused, window.window_ms) == (None, None, 7, 1_000)
    assert window.latency.commands == 100
    assert guardrail_window(first, look(1_000, keyspace_hits=300)).hits == 300


def test_a_lower_uptime_is_a_restart_only_where_there_is_no_run_id():
    set_back = window_between(look(0, server_ms=50_000), look(10_000, server_ms=20_000))
    assert set_back.problem is None
    nameless = window_between(
        look(0, server_ms=50_000, without=("run_id",)), look(10_000, server_ms=20_000, without=("run_id",))
    )
    assert "uptime_in_seconds" in nameless.problem


def test_a_server_without_hit_counters_gives_no_window_instead_of_zero():
    assert "keyspace_hits" in window_between(look(0), look(1_000, without=("keyspace_hits",))).problem


@pytest.mark.parametrize(
    ("ours_ms", "server_ms", "taken_ms", "noted"),
    [
        (10_000, 10_300, 10_000, False),
        (-3_600_000, 10_000, 10_000, True),
        (86_400_000, 10_000, 10_000, True),
        (0, 10_000, 10_000, True),
        (10_000, -5_000, 10_000, True),
    ],
)
def test_a_clock_that_jumped_is_not_believed(ours_ms, server_ms, taken_ms, noted):
    elapsed = elapsed_between(look(10**8, server_ms=10**7), look(10**8 + ours_ms, server_ms=10**7 + server_ms))
    assert elapsed.ms == taken_ms
    assert (elapsed.note is not None) == noted


def test_uptime_judges_the_clock_where_the_server_does_not_tell_its_time():
    without = ("server_time_usec",)
    elapsed = elapsed_between(
        look(10**8, server_ms=0, without=without), look(10**8 + 9 * 10**7, server_ms=12_000, without=without)
    )
    assert elapsed.ms == 12_000


def test_two_clocks_that_stand_still_give_no_window():
    assert "no clock" in window_between(look(5_000), look(5_000)).problem


def test_p99_comes_from_new_entries_only_and_lies_in_its_bucket():
    before = {"get": ((4, 1_000), (1056, 2_000)), "set": ((8, 5),)}
    after = {"get": ((4, 1_000), (8, 1_980), (16, 2_000), (1056, 3_000)), "set": ((8, 9_999),)}
    quantile = latency_quantile(look(0, latency=before), look(1_000, latency=after))
    assert quantile.commands == 1_000
    assert (quantile.low_us, quantile.high_us) == (8.0, 16.0)
    assert quantile.value_us == pytest.approx(8.0 + 8.0 * 10 / 20)


def test_p99_takes_all_read_commands_together():
    after = {"GET": ((2, 90),), "hget": ((2, 0), (128, 10))}
    quantile = latency_quantile(look(0), look(1_000, latency=after))
    assert (quantile.low_us, quantile.high_us, quantile.commands) == (64.0, 128.0, 100)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (look(0, latency={"get": ((2, 50),)}), look(1, latency={"get": ((2, 20),)})),
        (look(0, latency={"get": ((2, 50),)}), look(1, latency={"get": ((2, 50),)})),
        (look(0, incomplete={"latency": "denied"}), look(1, latency={"get": ((2, 50),)})),
        (look(0), look(1, latency={"set": ((2, 50),)})),
    ],
)
def test_p99_is_unknown_after_a_reset_or_without_entries(before, after):
    assert latency_quantile(before, after) is None


@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=200),
    st.lists(st.integers(0, 12), max_size=200),
    st.floats(0.01, 1.0),
)
def test_a_latency_quantile_is_never_outside_the_true_bucket(new, old, quantile):
    def histogram(entries):
        bounds = [2**k for k in sorted(set(entries))]
        return {"get": tuple((b, sum(2**e <= b for e in entries)) for b in bounds)}

    got = latency_quantile(look(0, latency=histogram(old)), look(1, latency=histogram(old + new)), quantile=quantile)
    truth = sorted(new)[max(1, math.ceil(quantile * len(new))) - 1]
    assert got.low_us <= got.value_us <= got.high_us == 2**truth


def test_missing_or_unreadable_fields_are_unknown_and_never_zero():
    facts = facts_of_info({"used_memory": "lots", "db0": "garbage", "run_id": ""})
    assert all(getattr(facts, name) is None for name in facts.__slots__)
    assert facts.memory_usage is None
    assert facts.memory_efficiency is None


@given(st.dictionaries(st.sampled_from([*INFO, "errorstat_OOM", "cmdstat_set", "db1"]), st.text(max_size=20)))
def test_no_info_makes_the_parser_raise(info):
    facts = facts_of_info(info)
    assert facts.memory_efficiency is None or 0.0 <= facts.memory_efficiency <= 1.0


def test_an_empty_server_has_zero_keys():
    assert facts_of_info({k: v for k, v in INFO.items() if k != "db0"}).resident_keys == 0


def test_keys_of_all_databases_are_counted():
    facts = facts_of_info({**INFO, "db3": "keys=10,expires=5,avg_ttl=7,subexpiry=0"})
    assert (facts.resident_keys, facts.keys_with_ttl) == (1_010, 255)


def test_refused_writes_of_an_old_server_are_its_rejected_write_calls():
    info = {k: v for k, v in INFO.items() if k != "total_error_replies"}
    info |= {"cmdstat_set": "calls=9,rejected_calls=4,failed_calls=0", "cmdstat_get": "calls=9,rejected_calls=100"}
    assert facts_of_info(info).refused == 4
    assert facts_of_info(info | {"errorstat_OOM": "count=3"}).refused == 3
    assert facts_of_info({k: v for k, v in info.items() if not k.startswith("cmdstat")}).refused is None


def test_memory_follows_the_definitions():
    facts = facts_of_info(INFO)
    assert facts.memory_usage == pytest.approx(0.8)
    assert facts.memory_efficiency == pytest.approx(2_500_000 / 5_000_000)
    assert facts.fixed_overhead_bytes == 1_030_000


def test_memory_usage_without_maxmemory_is_of_the_host():
    assert facts_of_info({**INFO, "maxmemory": "0"}).memory_usage == pytest.approx(4e6 / 16e9)
