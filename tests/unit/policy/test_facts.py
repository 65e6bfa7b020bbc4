"""What the facts say of a proposal, whatever its author says."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from cachewarden.messages import ActionClass
from cachewarden.observation import Capabilities
from cachewarden.policy.facts import facts_of, knob_problems_of, required_action_class
from cachewarden.policy.surroundings import server_address, surroundings_of
from cachewarden.policy.vocabulary import EXAMPLE, FACTS, TIME_FACTS
from tests.unit.policy.builders import MIB, SETTINGS, fleet, knob, proposal, resize, service, snapshot, ttl_rule

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "CONSTITUTION.md"


BOTH = (service(), service("search"))


def facts(given, *others, services=BOTH, looks=None, settings=SETTINGS, total=None, found=None):
    own_fleet = fleet(*services, total_memory_bytes=total)
    looks = tuple(snapshot(s.name) for s in services) if looks is None else looks
    around = surroundings_of((given, *others), looks, own_fleet, settings, found)
    own = next((s for s in looks if s.service == given.service), snapshot(given.service))
    return facts_of(given, own, own_fleet, around)


def test_facts_and_the_facts_of_time_are_exactly_the_vocabulary():
    assert sorted([*facts(proposal()), *TIME_FACTS]) == sorted(FACTS)


def test_facts_are_plain_json_of_the_type_that_the_vocabulary_shows():
    found = facts(resize())
    assert json.loads(json.dumps(found)) == found
    for name, value in found.items():
        if value is None:
            assert FACTS[name].nullable, name
        else:
            assert type(value) is type(EXAMPLE[name]), name


def test_every_fact_is_documented_and_every_documented_fact_exists():
    rows = re.findall(r"^\| `(\w+)` \| (\w+(?: or null)?) \| (.+) \|$", DOCUMENT.read_text(), re.MULTILINE)
    names = {bool: "bool", int: "int", float: "double", str: "string", list: "list"}
    expected = {
        name: (names[type(fact.example)] + (" or null" if fact.nullable else ""), fact.meaning)
        for name, fact in FACTS.items()
    }
    assert {name: (kind, meaning) for name, kind, meaning in rows} == expected


@pytest.mark.parametrize(
    ("change", "required"),
    [
        (knob("latency-monitor-threshold", 0, 100), ActionClass.OBSERVE),
        (knob("maxmemory-samples", 5, 10), ActionClass.REVERSIBLE),
        (knob("maxmemory", 10 * MIB, 20 * MIB), ActionClass.GROWTH),
        (knob("maxmemory", 20 * MIB, 10 * MIB), ActionClass.LOSSY),
        (knob("maxmemory", 0, 20 * MIB), ActionClass.GROWTH),
        (knob("maxmemory", 0, 10 * MIB), ActionClass.LOSSY),
        (knob("maxmemory", "20mb", "10mb"), ActionClass.FORBIDDEN),
        (knob("maxmemory-policy", "allkeys-lru", "allkeys-lfu"), ActionClass.LOSSY),
        (knob("save", "", "900 1"), ActionClass.FORBIDDEN),
    ],
)
def test_the_class_follows_from_the_change_and_not_from_the_author(change, required):
    assert required_action_class(proposal("cart", change), used_memory_bytes=15 * MIB) is required


def test_a_ttl_rule_is_of_class_1():
    assert required_action_class(proposal(ttl_rules=(ttl_rule(),)), 0) is ActionClass.REVERSIBLE


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ((knob("bind", "", "*"),), "not in the knob table"),
        ((knob("maxmemory", MIB, 1),), "1048576..17592186044416 bytes"),
        ((knob("maxmemory", MIB, "64mb"),), "must be written as CONFIG GET prints it: `67108864`"),
        ((knob("maxmemory", "1mb", 64 * MIB),), "before must be in bytes"),
        ((knob("maxmemory-samples", 5, 6), knob("maxmemory-samples", 5, 7)), "stands twice"),
    ],
)
def test_what_is_wrong_with_a_knob_is_told_in_words(changes, said):
    (problem,) = knob_problems_of(changes)
    assert said in problem


def test_nonsense_gets_facts_that_say_so_instead_of_an_exception():
    found = facts(proposal("cart", knob("maxmemory", "lots", "more"), knob("port", "6379", "1")))
    assert found["knobs_valid"] is False
    assert found["action_class_required"] == ActionClass.FORBIDDEN
    assert found["memory_delta_bytes"] == 0


def test_a_service_that_nobody_declared_is_off_and_has_no_namespace():
    found = facts(proposal("stranger"))
    assert (found["mode"], found["namespaces"], found["shares_blackboard_server"]) == ("off", [], True)


@pytest.mark.parametrize(
    ("policy", "keys_with_ttl", "resident", "share"),
    [("allkeys-lru", 0, 10, 1.0), ("volatile-lru", 0, 10, 0.0), ("volatile-ttl", 5, 10, 0.5), ("noeviction", 9, 10, 0.0),
     ("volatile-lru", 0, 0, 0.0)],
)  # fmt: skip
def test_a_volatile_policy_without_ttls_behaves_as_noeviction(policy, keys_with_ttl, resident, share):
    look = snapshot(eviction_policy=policy, keys_with_ttl=keys_with_ttl, resident_keys=resident)
    assert facts(proposal(), looks=(look, snapshot("search")))["evictable_share_after"] == share


def test_a_first_limit_below_what_is_used_is_a_shrink():
    look = snapshot(maxmemory_bytes=0)
    assert facts(resize("cart", 0, 8), looks=(look,))["shrinks_memory"] is True
    assert facts(resize("cart", 0, 64), looks=(look,))["shrinks_memory"] is False


def test_who_needs_each_other_is_one_group_however_long_the_chain():
    donor = resize("a", 16, 12, gain=-0.01, proposal_id="d")
    second = resize("b", 16, 18, proposal_id="r1", needs=("d",))
    third = resize("c", 16, 18, proposal_id="r2", needs=("r1", "gone"))
    alone = resize("e", proposal_id="x")
    services = tuple(service(name) for name in "abce")
    found = facts(third, donor, second, alone, services=services)
    assert found["group_size"] == 3
    assert (found["group_gives"], found["group_gains"]) == (["a"], ["b", "c"])
    assert found["group_memory_delta_bytes"] == 0
    assert found["group_gain_hits_per_s"] == pytest.approx(1000 * (0.05 + 0.05 - 0.01))
    assert found["group_gain_hits_per_s_low"] < found["group_gain_hits_per_s"]
    assert found["needs_missing"] == ["gone"]
    assert facts(alone, donor, second, third, services=services)["group_size"] == 1


def test_a_gain_is_worth_what_the_owner_says():
    heavy = (service(weight=10.0), service("search"))
    assert facts(resize(), services=heavy)["group_gain_hits_per_s"] == pytest.approx(500.0)


def test_a_proposal_that_is_not_the_one_at_hand_is_grouped_by_its_own_content():
    at_hand = resize(proposal_id="p")
    own_fleet = fleet(service())
    around = surroundings_of((at_hand,), (snapshot(),), own_fleet, SETTINGS)
    changed = replace(at_hand, knob_changes=(knob("maxmemory", 16 * MIB, 32 * MIB),))
    assert facts_of(changed, snapshot(), own_fleet, around)["group_memory_delta_bytes"] == 16 * MIB


def test_the_budget_is_declared_or_as_first_found_or_as_it_is_now():
    assert facts(resize(), total=100 * MIB, found=50 * MIB)["fleet_budget_bytes"] == 100 * MIB
    assert facts(resize(), found=50 * MIB)["fleet_budget_bytes"] == 50 * MIB
    assert facts(resize())["fleet_budget_bytes"] == 32 * MIB


def test_memory_of_the_fleet_is_unknown_while_a_service_was_not_seen():
    assert facts(resize(), looks=(snapshot(),))["fleet_memory_known"] is False


def test_a_service_that_is_off_shares_a_declared_budget_but_not_one_that_was_found():
    services = (service(), service("search", mode="off"))
    assert facts(resize(), services=services, looks=(snapshot(),))["fleet_memory_known"] is True
    assert facts(resize(), services=services, looks=(snapshot(),), total=64 * MIB)["fleet_memory_known"] is False


def test_the_blast_radius_is_the_share_of_the_lookups_and_the_whole_where_nothing_is_known():
    looks = (snapshot(lookups_per_s=100.0), snapshot("search", lookups_per_s=300.0))
    assert facts(proposal(), looks=looks)["blast_radius"] == 0.25
    assert facts(proposal(), looks=(snapshot(lookups_per_s=0.0),))["blast_radius"] == 1.0


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://user:secret@Host:6380/3", "host:6380"),
        ("redis://127.0.0.1", "localhost:6379"),
        ("redis://[::1]:6379/0", "localhost:6379"),
        ("unix:///run/redis.sock?db=2", "/run/redis.sock"),
        ("redis://host:port", "host:invalid"),
    ],
)
def test_one_server_has_one_address_however_it_is_spelt(url, address):
    assert server_address(url) == address


def test_a_cache_on_the_journal_s_server_is_recognised_in_any_db():
    settings = SETTINGS.model_copy(update={"journal_url": "redis://localhost:7000/2"})
    near = (service(url="redis://127.0.0.1:7000/0"), service("search"))
    assert facts(proposal(), services=near, settings=settings)["shares_blackboard_server"] is True
    assert facts(proposal("search"), services=near, settings=settings)["shares_blackboard_server"] is False


def test_a_knob_that_the_server_does_not_have_is_named():
    look = snapshot(capabilities=Capabilities(server="redis", version="5.0.7", config_set=True))
    change = knob("active-expire-effort", 1, 2)
    assert facts(proposal("cart", change), looks=(look,))["knobs_unsupported"] == ["active-expire-effort"]
