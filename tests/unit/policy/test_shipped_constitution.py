"""The constitution in `config/`: a lawful change passes, and each principle says no to what it is there for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agents.validator import judge
from cachewarden.fleet import KeyPattern
from cachewarden.messages import ActionClass, Decision, Evidence
from cachewarden.observation import Capabilities
from tests.unit.policy.builders import (
    COST,
    MIB,
    NOW_MS,
    SETTINGS,
    SHIPPED,
    fleet,
    knob,
    prediction,
    proposal,
    resize,
    service,
    snapshot,
    ttl_rule,
    with_prediction,
)

pytestmark = pytest.mark.constitutional
THREE = (service("cart"), service("search"), service("users"))
LOOKS = (snapshot("cart"), snapshot("search"), snapshot("users"))
BUDGET = 64 * MIB


def verdicts(*proposals, services=THREE, snapshots=LOOKS, now_ms=NOW_MS, total=BUDGET, settings=SETTINGS):
    return judge(SHIPPED, fleet(*services, total_memory_bytes=total), settings, proposals, snapshots, now_ms)


def denied_by(*proposals, **where):
    """The principles that say no to the first proposal; all of them were evaluated."""
    verdict = verdicts(*proposals, **where)[0]
    assert all(finding.evaluated for finding in verdict.findings), verdict
    assert len(verdict.findings) == len(SHIPPED.principles)
    return verdict.denied_by


def looks(**changed):
    """The three snapshots with that of `cart` changed."""
    return (snapshot("cart", **changed), *LOOKS[1:])


def services(**changed):
    return (service("cart", **changed), *THREE[1:])


def test_a_change_that_samples_more_is_allowed():
    assert denied_by(proposal()) == ()


def test_growth_within_the_budget_is_allowed():
    assert denied_by(resize()) == ()


def test_a_transfer_that_gains_as_a_whole_is_allowed_for_both_sides():
    donor = resize("search", 16, 12, gain=-0.01, proposal_id="d")
    receiver = resize("cart", 16, 20, gain=0.08, proposal_id="r", needs=("d",))
    assert [v.decision for v in verdicts(donor, receiver, total=48 * MIB)] == [Decision.ALLOW] * 2


def test_a_refusing_cache_that_becomes_evicting_is_allowed():
    cure = proposal(
        "cart", knob("maxmemory-policy", "noeviction", "allkeys-lru"), action_class=ActionClass.LOSSY, reversible=False
    )
    assert denied_by(cure, snapshots=looks(eviction_policy="noeviction")) == ()


def test_a_ttl_extension_within_the_declared_staleness_is_allowed():
    assert denied_by(proposal(ttl_rules=(ttl_rule(),), kinds=("ttl",), playbook="ttl_rule")) == ()


def test_a_switch_to_lfu_with_the_playbook_that_keeps_the_hot_set_is_allowed():
    switch = proposal(
        "cart",
        knob("maxmemory-policy", "allkeys-lru", "allkeys-lfu"),
        action_class=ActionClass.LOSSY,
        playbook="keep_hot_set",
    )
    assert denied_by(switch) == ()


DONOR = resize("search", 16, 12, gain=-0.01, proposal_id="d")
RECEIVER = resize("cart", 16, 20, gain=0.08, proposal_id="r", needs=("d",))
UNREAD = proposal(
    ttl_rules=(replace(ttl_rule(), unread_ms=600_000),),
    kinds=("ttl",), playbook="ttl_rule", action_class=ActionClass.LOSSY, reversible=False,
)  # fmt: skip
SPREAD_EARLY = replace(UNREAD, ttl_rules=(replace(ttl_rule(written_ms=599_000), jitter_ms=60_000),))
TTL = proposal(ttl_rules=(ttl_rule(),), kinds=("ttl",), playbook="ttl_rule")
TO_NOEVICTION = proposal(
    "cart", knob("maxmemory-policy", "allkeys-lru", "noeviction"), action_class=ActionClass.LOSSY, reversible=False
)
LOSSY = proposal("cart", knob("maxmemory-policy", "allkeys-lru", "allkeys-random"), action_class=ActionClass.LOSSY)
TO_LFU = proposal("cart", knob("maxmemory-policy", "allkeys-lru", "allkeys-lfu"), action_class=ActionClass.LOSSY)
BUSY = looks(lookups_per_s=50_000.0)

CASES = [
    # sovereignty
    ("memory-stays-with-its-owners", (RECEIVER, DONOR), {"services": services(tenant="other", region="us")}),
    ("memory-stays-with-its-owners", (DONOR, RECEIVER), {"services": services(tenant="other", region="us")}),
    (
        "patterns-stay-in-the-namespace",
        (TTL,),
        {"services": services(patterns=(KeyPattern(prefix="x:", max_staleness_s=600.0),))},
    ),
    # performance
    ("latency-stays-acceptable", (with_prediction(resize(), latency_us_p99_after=3_000.0),), {}),
    ("latency-stays-acceptable", (resize(),), {"snapshots": looks(latency_us_p99=2_500.0)}),
    ("cost-is-bounded", (proposal(cost=COST | {"server_cpu_ms": 6_000.0}),), {}),
    ("cost-is-bounded", (proposal(cost=COST | {"commands": 1e6}),), {}),
    ("cost-is-bounded", (proposal(cost=COST | {"keys_touched": 3e6}),), {}),
    ("cost-is-bounded", (proposal(cost={"commands": 1.0}),), {}),
    ("cost-is-bounded", (proposal(cost=COST | {"commands": -1.0}),), {}),
    ("one-decision-is-one-step", (resize("cart", 16, 65),), {"total": 999 * MIB}),
    ("one-decision-is-one-step", (resize("cart", 16, 3, gain=0.0),), {}),
    ("lossy-changes-spare-the-fleet", (LOSSY,), {"snapshots": BUSY}),
    # fairness
    (
        "nobody-falls-below-the-floor",
        (proposal(prediction=prediction(0.05, before=0.45, margin=0.2)),),
        {"services": services(hit_ratio_floor=0.4)},
    ),
    ("nobody-falls-below-the-floor", (proposal(prediction=prediction(-0.01, before=0.45)),), {}),
    (
        "nobody-falls-below-the-minimum",
        (resize("cart", 16, 12, gain=0.0),),
        {"services": services(minimum_memory_bytes=13 * MIB)},
    ),
    ("the-budget-is-never-exceeded", (resize("cart", 16, 33),), {}),
    ("the-budget-is-never-exceeded", (resize(),), {"snapshots": LOOKS[:2]}),
    ("the-budget-is-never-exceeded", (resize(),), {"total": None}),
    ("the-fleet-gains", (resize("cart", 16, 12, gain=-0.02),), {}),
    ("the-fleet-gains", (resize(gain=0.0),), {}),
    ("the-fleet-gains", (DONOR, replace(RECEIVER, prediction=prediction(0.005))), {}),
    # transparency
    ("every-change-says-why", (proposal(rationale=" "),), {}),
    ("every-change-says-why", (proposal(rollback=""),), {}),
    ("every-change-says-why", (proposal(evidence=()),), {}),
    ("every-change-says-why", (proposal(evidence=(Evidence(name="hit_ratio", value=None, source="INFO"),)),), {}),
    ("every-change-says-why", (proposal(constitutional_hash="0" * 16),), {}),
    ("every-change-says-why", (resize(),), {"snapshots": looks(hits=50, misses=49)}),
    ("every-prediction-owns-its-doubt", (with_prediction(proposal(), method=""),), {}),
    ("every-prediction-owns-its-doubt", (resize(prediction=prediction(margin=0.0)),), {}),
    ("every-prediction-owns-its-doubt", (resize(prediction=prediction(0.05, before=0.5, margin=0.3)),), {}),
    ("classes-are-honest", (resize(action_class=ActionClass.REVERSIBLE),), {}),
    ("classes-are-honest", (resize("cart", 16, 12, gain=0.0, reversible=True),), {}),
    # safety
    ("only-known-knobs-in-range", (proposal("cart", knob("maxmemory-samples", 5, 64)),), {}),
    ("only-known-knobs-in-range", (proposal("cart", knob("maxmemory-samples", 7, 10)),), {}),
    (
        "only-known-knobs-in-range",
        (proposal(),),
        {"snapshots": looks(capabilities=Capabilities(server="valkey", version="9"))},
    ),
    (
        "only-known-knobs-in-range",
        (proposal(),),
        {"snapshots": looks(capabilities=Capabilities(server="kvrocks", version="9", config_set=True))},
    ),
    (
        "out-of-bounds-stays-out",
        (proposal("cart", knob("appendonly", "no", "yes"), action_class=ActionClass.FORBIDDEN),),
        {},
    ),
    ("out-of-bounds-stays-out", (proposal(),), {"snapshots": looks(role="slave")}),
    ("out-of-bounds-stays-out", (proposal(),), {"services": services(mode="off")}),
    ("out-of-bounds-stays-out", (proposal(),), {"services": services(url="redis://blackboard:6379/3")}),
    ("a-full-cache-keeps-taking-writes", (TO_NOEVICTION,), {}),
    (
        "a-full-cache-keeps-taking-writes",
        (resize("cart", 16, 12, gain=0.0),),
        {"snapshots": looks(eviction_policy="volatile-lru")},
    ),
    (
        "a-full-cache-keeps-taking-writes",
        (resize("cart", 0, 32),),
        {"snapshots": looks(maxmemory_bytes=0, eviction_policy="noeviction")},
    ),
    ("hazards-have-their-playbook", (TO_LFU,), {}),
    ("hazards-have-their-playbook", (replace(resize("cart", 16, 12, gain=0.0), playbook="direct"),), {}),
    ("staleness-is-never-exceeded", (proposal(ttl_rules=(ttl_rule(extended_ms=700_000, staleness_ms=700_000),)),), {}),
    ("staleness-is-never-exceeded", (TTL,), {"services": services(patterns=(KeyPattern(prefix="session:"),))}),
    ("keys-end-sooner-only-by-consent", (UNREAD,), {}),
    ("keys-end-sooner-only-by-consent", (SPREAD_EARLY,), {}),
    ("decisions-rest-on-fresh-facts", (proposal(),), {"snapshots": looks(taken_at_ms=NOW_MS - 120_001)}),
    ("decisions-rest-on-fresh-facts", (proposal(),), {"snapshots": looks(taken_at_ms=NOW_MS + 5_001)}),
    ("decisions-rest-on-fresh-facts", (proposal(),), {"snapshots": looks(incomplete={"knobs": "refused"})}),
    ("decisions-rest-on-fresh-facts", (proposal(),), {"now_ms": NOW_MS + 300_000}),
    ("decisions-rest-on-fresh-facts", (resize("cart", 16, 20),), {"snapshots": looks(host_memory_bytes=24 * MIB)}),
]


@pytest.mark.parametrize(("principle", "proposals", "where"), CASES, ids=[f"{i}-{c[0]}" for i, c in enumerate(CASES)])
def test_a_principle_says_no_to_what_it_is_there_for(principle, proposals, where):
    assert principle in denied_by(*proposals, **where)


def test_every_principle_is_put_to_the_test():
    assert {case[0] for case in CASES} == {p.id for p in SHIPPED.principles}


def test_a_denial_names_numbers_and_names():
    verdict = verdicts(resize("cart", 16, 33))[0]
    reason = next(f.reason for f in verdict.findings if f.principle_id == "the-budget-is-never-exceeded")
    assert str(65 * MIB) in reason
    assert str(BUDGET) in reason


def test_tenants_of_one_region_may_share_if_every_owner_is_named():
    shared = (service("cart", tenant="other"), *THREE[1:])
    assert denied_by(RECEIVER, DONOR, services=shared, total=48 * MIB) == ()


def test_a_service_below_its_floor_may_get_better():
    poor = proposal(prediction=prediction(0.05, before=0.3))
    assert denied_by(poor) == ()


def test_memory_that_is_hardly_used_may_be_given_before_anyone_asks():
    assert denied_by(resize("cart", 16, 12, prediction=prediction(-0.004))) == ()


def test_growth_of_a_refusing_cache_is_no_new_hazard():
    assert denied_by(resize(), snapshots=looks(eviction_policy="noeviction")) == ()


def test_the_owner_s_staleness_counts_and_not_the_one_that_the_rule_carries():
    strict = services(patterns=(KeyPattern(prefix="session:", max_staleness_s=60.0),))
    assert denied_by(TTL, services=strict) == ("staleness-is-never-exceeded",)


def test_a_ttl_rule_is_judged_whatever_its_proposal_calls_itself():
    smuggled = replace(TTL, kinds=("memory",), playbook="direct")
    strict = services(patterns=(KeyPattern(prefix="session:", max_staleness_s=60.0),))
    assert "staleness-is-never-exceeded" in denied_by(smuggled, services=strict)
