"""Levers that are pulled for memory or for the origin's sake, and when none is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from agents.lever_drafting import UNREAD_MS, lever_proposal
from agents.planner import plan_fleet
from agents.ttl_governor import idle_known_ms
from cachewarden.fleet import Fleet, KeyPattern, Service
from cachewarden.messages import ActionClass, Mode, TtlRule
from cachewarden.observation import KeyspaceSample
from cachewarden.policy.constitution import load_constitution
from cachewarden.policy.engine import evaluate
from cachewarden.policy.facts import facts_of
from cachewarden.policy.surroundings import surroundings_of
from cachewarden.protocol import PlanFleet
from cachewarden.settings import load_settings
from tests.unit.agents.caches import MIB, NOW, PATTERN, snapshot_of, traffic
from tests.unit.cachemodel.value_samples import big_hash, small_string, value_sample

SETTINGS = load_settings(_env_file=None, cycle_interval_ms=5_000)
DICE = np.random.default_rng(7)
N = 800


def sample(ttl_ms, idle_ms=None):
    n = len(ttl_ms)
    return KeyspaceSample(
        key=DICE.integers(1, 1 << 63, n).astype(np.uint64),
        idle_ms=np.asarray(idle_ms if idle_ms is not None else np.zeros(n), dtype=np.int64),
        frequency=np.full(n, -1, dtype=np.int32),
        size_bytes=np.full(n, 1_000, dtype=np.int64),
        ttl_ms=np.asarray(ttl_ms, dtype=np.int64),
        pattern=np.zeros(n, dtype=np.int32),
        encoding=np.zeros(n, dtype=np.int32),
        patterns=(PATTERN,),
        encodings=("raw",),
        idle_known_ms=10 * UNREAD_MS,
    )


TOGETHER = np.where(np.arange(N) % 2 == 0, 200_000 + DICE.integers(0, 400, N), DICE.integers(0, 300_000, N))
APART = DICE.integers(0, 300_000, N)
BASE = snapshot_of("shop", traffic(3_000, rate_per_s=50, ttl_ms=300_000), 12 * MIB, ttl_ms=300_000)


def seen(ttl_ms, idle_ms=None, **fields):
    found = replace(BASE, sample=sample(ttl_ms, idle_ms), resident_keys=20_000, keys_with_ttl=20_000)
    capabilities = replace(BASE.capabilities, object_idletime=True)
    return replace(found, **{"hit_ratio": 0.9, "hits": 900, "misses": 100, "capabilities": capabilities, **fields})


def shop(staleness_s=600.0, **fields):
    pattern = KeyPattern(prefix=PATTERN, max_staleness_s=staleness_s, shorten_ttl=fields.pop("shorten_ttl", False))
    return Service(name="shop", url="redis://127.0.0.1:1", mode=Mode.AUTO, patterns=(pattern,), **fields)


def lever(snapshot, service, rules=()):
    return lever_proposal(snapshot, service, SETTINGS, rules, NOW)


def denied_by(proposal, snapshot, service):
    fleet = Fleet(services=(service,))
    others = surroundings_of((proposal,), (snapshot,), fleet, SETTINGS)
    facts = facts_of(proposal, snapshot, fleet, others)
    return evaluate(load_constitution(SETTINGS.constitution_path), proposal, facts, NOW).denied_by


def test_expiries_that_come_together_are_spread_within_the_staleness_and_nothing_ends_sooner():
    found = lever(seen(TOGETHER), shop())
    (rule,) = found.ttl_rules
    assert rule.jitter_ms > 0
    assert not rule.shortens
    assert rule.extended_ttl_ms <= 600_000
    assert found.action_class is ActionClass.REVERSIBLE
    assert found.prediction.peak_share < 0.1
    assert next(e.value for e in found.evidence if e.name == "busiest_second_share") > 0.4


def test_expiries_that_lie_apart_are_left_alone():
    assert lever(seen(APART), shop()) is None


def test_an_onrush_that_the_origin_would_not_notice_is_left_alone():
    assert lever(seen(TOGETHER, resident_keys=12, keys_with_ttl=12), shop()) is None


def test_without_declared_staleness_or_room_in_it_nothing_is_spread():
    assert lever(seen(TOGETHER), shop(None)) is None
    assert lever(seen(TOGETHER), shop(300.0)) is None


def test_where_the_staleness_leaves_no_room_keys_end_sooner_by_consent_only_and_a_person_decides():
    found = lever(seen(TOGETHER), shop(300.0, shorten_ttl=True))
    (rule,) = found.ttl_rules
    assert rule.shortens
    assert rule.extended_ttl_ms <= 300_000
    assert found.action_class is ActionClass.LOSSY
    assert not found.reversible
    assert found.prediction.gain.low < 0
    assert "come back only as the application loads them" in found.rollback


def test_what_is_being_spread_is_not_spread_again():
    (rule,) = lever(seen(TOGETHER), shop()).ttl_rules
    assert lever(seen(TOGETHER), shop(), (rule,)) is None


def test_a_standing_rule_that_lengthens_goes_on_lengthening_when_it_also_spreads():
    standing = TtlRule(pattern=PATTERN, written_ttl_ms=300_000, extended_ttl_ms=500_000, max_staleness_ms=600_000)
    (rule,) = lever(seen(TOGETHER), shop(), (standing,)).ttl_rules
    assert rule.extended_ttl_ms >= 500_000
    assert not rule.shortens


IDLE = np.where(np.arange(N) % 2 == 0, 5 * UNREAD_MS, 1_000)
FOR_EVER = np.full(N, -1)
ROOM = {"evicted_per_s": 0.0, "maxmemory_bytes": 2 * BASE.used_memory_bytes}


def test_keys_that_nobody_reads_end_by_consent_only_and_a_person_decides():
    assert lever(seen(FOR_EVER, IDLE, **ROOM), shop()) is None
    found = lever(seen(FOR_EVER, IDLE, **ROOM), shop(shorten_ttl=True))
    (rule,) = found.ttl_rules
    assert (rule.unread_ms, rule.written_ttl_ms) == (UNREAD_MS, 0)
    assert rule.extended_ttl_ms <= 600_000
    assert found.action_class is ActionClass.LOSSY
    assert found.prediction.freed_bytes.low > 0
    # Whoever carries it out has not looked meanwhile, and would have to wait for as long again.
    assert idle_known_ms(found, found.created_at_ms) >= UNREAD_MS


def test_keys_that_are_read_do_not_end_and_without_idle_times_none_does():
    busy = np.full(N, 1_000)
    assert lever(seen(FOR_EVER, busy, **ROOM), shop(shorten_ttl=True)) is None
    blind = replace(BASE.capabilities, object_idletime=False)
    assert lever(seen(FOR_EVER, IDLE, capabilities=blind, **ROOM), shop(shorten_ttl=True)) is None


@pytest.mark.parametrize("known_ms", [None, 0, UNREAD_MS - 1])
def test_no_key_ends_by_an_idle_time_that_may_be_left_from_lfu(known_ms):
    switched = seen(FOR_EVER, IDLE, **ROOM)
    switched = replace(switched, sample=replace(switched.sample, idle_known_ms=known_ms))
    assert lever(switched, shop(shorten_ttl=True)) is None


@pytest.mark.parametrize("full", [{"evicted_per_s": 1.0}, {"maxmemory_bytes": BASE.used_memory_bytes}])
def test_no_key_ends_for_memory_that_a_full_cache_takes_up_again(full):
    assert lever(seen(FOR_EVER, IDLE, **{**ROOM, **full}), shop(shorten_ttl=True)) is None


def test_overdue_keys_are_looked_for_more_often_only_where_they_hold_much():
    knobs = {**BASE.knobs, "active-expire-effort": "1"}
    found = lever(seen(APART, expired_stale_share=0.3, knobs=knobs), shop(None))
    assert [(c.knob, c.after) for c in found.knob_changes] == [("active-expire-effort", "4")]
    assert found.playbook == "tune"
    assert lever(seen(APART, expired_stale_share=0.01, knobs=knobs), shop(None)) is None


def test_fragments_are_put_together_only_where_they_waste_much():
    knobs = {**BASE.knobs, "activedefrag": "no"}
    wasted = {"allocator_frag_bytes": 400.0 * MIB}
    found = lever(seen(APART, knobs=knobs, memory_figures=wasted, used_memory_bytes=1_000 * MIB), shop(None))
    assert [(c.knob, c.after) for c in found.knob_changes] == [("activedefrag", "yes")]
    # A small heap is always ragged, and servers themselves begin at 100 MiB only.
    ragged = {"allocator_frag_bytes": 0.4 * BASE.used_memory_bytes}
    assert lever(seen(APART, knobs=knobs, memory_figures=ragged), shop(None)) is None


@pytest.mark.parametrize(
    ("snapshot", "service"),
    [
        (seen(TOGETHER), shop()),
        (seen(TOGETHER), shop(300.0, shorten_ttl=True)),
        (seen(FOR_EVER, IDLE, **ROOM), shop(shorten_ttl=True)),
    ],
    ids=["spread", "spread by shortening", "unread"],
)
def test_what_is_drafted_is_lawful_and_without_the_owners_consent_it_is_not(snapshot, service):
    snapshot = replace(snapshot, knobs={**snapshot.knobs})
    found = lever(snapshot, service)
    assert denied_by(found, snapshot, service) == ()
    stern = shop(300.0 if found.action_class is ActionClass.LOSSY else 300.5)
    why = denied_by(found, snapshot, stern)
    if found.action_class is ActionClass.LOSSY:
        assert "keys-end-sooner-only-by-consent" in why
    else:
        assert "staleness-is-never-exceeded" in why


def test_the_planner_pulls_a_lever_where_nothing_is_to_be_gained_in_hits_and_says_why_not_otherwise():
    service = shop()
    planned = plan_fleet(
        PlanFleet(cycle=1, snapshots=(seen(TOGETHER),), history={}), Fleet(services=(service,)), SETTINGS, NOW
    )
    assert [p.ttl_rules[0].jitter_ms > 0 for p in planned.proposals] == [True]
    quiet = plan_fleet(
        PlanFleet(cycle=1, snapshots=(seen(APART),), history={}), Fleet(services=(shop(None),)), SETTINGS, NOW
    )
    assert quiet.proposals == ()
    assert "shop" in quiet.idle_reasons


LIMITS = {
    "hash-max-listpack-entries": "128",
    "hash-max-listpack-value": "64",
    "set-max-intset-entries": "512",
    "zset-max-listpack-entries": "128",
    "zset-max-listpack-value": "64",
}


def large_hashes(count):
    values = value_sample(*[big_hash() for _ in range(count)], *[small_string() for _ in range(100 - count)])
    redis = replace(BASE.capabilities, server="redis", version="7.0.15")
    return seen(
        APART, values=values, capabilities=redis, knobs={**BASE.knobs, **LIMITS}, allocator="jemalloc-5.2.1",
        resident_keys=1_000, used_memory_bytes=12 * MIB, maxmemory_bytes=20 * MIB,
    )  # fmt: skip


def test_large_collections_are_made_compact_and_stored_again_where_the_owner_permits_that():
    found = lever(large_hashes(60), shop(None, reencode=True))
    assert found.playbook == "reencode"
    assert "hash-max-listpack-entries" in [c.knob for c in found.knob_changes]
    assert found.prediction.freed_bytes.low > SETTINGS.minimum_memory_gain * 12 * MIB
    assert found.cost["keys_touched"] == 1_000
    assert found.action_class is ActionClass.LOSSY
    assert lever(large_hashes(60), shop(None)).playbook == "encoding"


def test_few_large_collections_are_left_as_they_are():
    assert lever(large_hashes(3), shop(None, reencode=True)) is None


@pytest.mark.parametrize("reencode", [True, False])
def test_compact_collections_are_lawful(reencode):
    snapshot, service = large_hashes(60), shop(None, reencode=reencode)
    # Encoding without storing again is no staged playbook, so a person decides in a small fleet too.
    assert denied_by(lever(snapshot, service), snapshot, service) == ()
