"""What the planner drafts passes the shipped constitution and the consensus, as far as it should."""

from __future__ import annotations

import pytest

from agents.choice import Choice
from agents.drafting import draft
from agents.settlement import settle
from agents.validator import judge
from cachewarden.cachemodel.whatif import CacheConfiguration
from cachewarden.estimate import Estimate
from cachewarden.messages import ResolutionOutcome
from tests.unit.agents.settlements import Table
from tests.unit.policy.builders import MIB, NOW_MS, SETTINGS, SHIPPED, fleet, service, snapshot, ttl_rule

pytestmark = pytest.mark.constitutional
SERVICES = (service("cart"), service("search"), service("users"))


def drafted(maxmemory_mib=16, eviction_policy="allkeys-lru", gain=0.05, ttl_rules=(), look=None):
    choice = Choice(
        configuration=CacheConfiguration(
            maxmemory_bytes=maxmemory_mib * MIB, eviction_policy=eviction_policy, maxmemory_samples=5, lfu_log_factor=10,
            lfu_decay_time_min=1, ttl_ms=None,
        ),
        ttl_rules=ttl_rules, before=Estimate(0.8, 0.8, 0.8), after=Estimate.around(0.8 + gain, 0.015, 0.0, 1.0),
        words="another configuration", method="popularity mixture",
    )  # fmt: skip
    return draft(look or snapshot("cart"), choice, SERVICES[0], "", SETTINGS, NOW_MS)


def outcome(proposal, look=None, budget_mib=64):
    looks = (look or snapshot("cart"), snapshot("search"), snapshot("users"))
    own_fleet = fleet(*SERVICES, total_memory_bytes=budget_mib * MIB)
    verdicts = judge(SHIPPED, own_fleet, SETTINGS, (proposal,), looks, NOW_MS)
    assert verdicts[0].denied_by == (), verdicts[0]
    table = Table("cart", "search", "users", budget_mib=budget_mib)
    return settle((proposal,), verdicts, table.situation, SETTINGS, NOW_MS)[0].outcome


def test_a_refusing_cache_is_cured():
    look = snapshot("cart", eviction_policy="noeviction", refused_per_s=50.0)
    assert outcome(drafted(look=look), look) is ResolutionOutcome.GO


def test_a_volatile_cache_without_ttls_is_cured():
    look = snapshot("cart", eviction_policy="volatile-lru", refused_per_s=50.0)
    assert outcome(drafted(look=look), look) is ResolutionOutcome.GO


def test_free_memory_is_taken():
    assert outcome(drafted(20)) is ResolutionOutcome.GO


def test_spare_memory_is_given():
    assert outcome(drafted(12, gain=-0.001)) is ResolutionOutcome.GO


def test_a_switch_to_lfu_keeps_the_hot_set():
    assert outcome(drafted(eviction_policy="allkeys-lfu")) is ResolutionOutcome.GO


def test_ttls_are_extended_within_the_staleness():
    assert outcome(drafted(ttl_rules=(ttl_rule(),))) is ResolutionOutcome.GO
