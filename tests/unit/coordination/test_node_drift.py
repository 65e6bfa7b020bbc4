"""Settings that differ between the nodes of a service: told once, when it is sure, and when it is over."""

from __future__ import annotations

from dataclasses import replace

from cachewarden.observation import NodeLook
from coordination.fleet_memory import FleetMemory
from coordination.settings_watch import SettingsWatch
from tests.unit.agents.actuator_world import FLEET, RULE, SETTINGS, T0, proposal
from tests.unit.coordination.test_settings_watch import AFTER, OURS, Watched, kept, record, seen

REPLICA = "cache-2:6379"


def both(there, knobs=AFTER, problem="", **other):
    return replace(seen(knobs), nodes=(NodeLook(node=REPLICA, knobs=there, problem=problem),), **other)


def drift(watched):
    return watched.watch.drift("sessions")


def test_nodes_with_the_same_settings_are_not_spoken_of():
    watched = Watched(both(AFTER), both(AFTER))
    assert (watched.kinds, drift(watched)) == ([], {})


def test_a_difference_is_told_with_the_second_look_and_only_once():
    other = {**AFTER, "maxmemory-samples": "9"}
    watched = Watched(both(other))
    assert (watched.kinds, drift(watched)) == ([], {})
    watched.look(both(other)).look(both(other))
    assert watched.kinds == ["setting_drift"]
    assert drift(watched) == {"maxmemory-samples": {REPLICA: "9"}}
    (one,) = watched.records
    assert one.payload["service_value"] == "5"
    assert one.payload["proposal_id"] is None


def test_a_value_of_ours_that_a_replica_does_not_have_names_our_plan_and_nothing_is_set():
    other = {**AFTER, "maxmemory-policy": "noeviction"}
    watched = Watched(both(other), both(other))
    (one,) = watched.records
    assert one.payload["proposal_id"] == OURS.proposal_id
    assert watched.lost == {}
    assert watched.watch.by_hand("sessions") == {}


def test_a_difference_that_is_gone_is_told_too():
    other = {**AFTER, "maxmemory-samples": "9"}
    watched = Watched(both(other), both(other), both(AFTER))
    assert [r.payload["differs"] for r in watched.records] == [True, False]
    assert drift(watched) == {}


def test_a_node_that_does_not_answer_says_neither():
    other = {**AFTER, "maxmemory-samples": "9"}
    watched = Watched(both(other), both(other), both({}, problem="connection refused"))
    assert len(watched.records) == 1
    assert drift(watched) == {"maxmemory-samples": {REPLICA: "9"}}
    assert Watched(both({}, problem="connection refused"), both({}, problem="connection refused")).kinds == []


def test_a_node_that_has_a_knob_which_the_other_does_not_know_is_no_difference():
    other = {**AFTER, "hotkey-top-k": "10"}
    assert Watched(both(other), both(other)).kinds == []


def test_while_a_change_of_ours_is_under_way_nothing_is_compared():
    other = {**AFTER, "maxmemory-samples": "9"}
    watched = Watched(both(other)).look(both(other), busy=["sessions"])
    assert watched.kinds == []


def test_what_was_told_is_known_in_the_next_life_and_not_told_again():
    other = {**AFTER, "maxmemory-samples": "9"}
    first = Watched(both(other), both(other))
    watch = SettingsWatch(1)
    watch.replay([record(1, "setting_drift", first.records[0].payload)])
    assert watch.drift("sessions") == drift(first)
    assert watch.look([both(other)], frozenset(), T0) == ()
    assert watch.look([both(other)], frozenset(), T0) == ()


def test_the_history_that_others_see_has_it():
    memory = FleetMemory(FLEET, SETTINGS)
    other = {**AFTER, "maxmemory-samples": "9"}
    for _ in range(2):
        memory.watch.look([both(other)], frozenset(), T0)
    assert memory.history(T0)["sessions"].drift == {"maxmemory-samples": {REPLICA: "9"}}


def test_an_older_change_that_is_told_again_does_not_bring_its_rule_back():
    """A rule that rests is told again and again; a newer one for the same pattern stays in force meanwhile."""
    memory = FleetMemory(FLEET, SETTINGS)
    older = proposal(rules=(RULE,), playbook="ttl_rule")
    newer = replace(older, proposal_id="p-newer", ttl_rules=(replace(RULE, extended_ttl_ms=RULE.extended_ttl_ms - 1),))
    for wanted in (older, newer, older):
        memory.note_execution(kept(wanted), T0)
    (rule,) = memory.history(T0)["sessions"].ttl_rules
    assert rule == newer.ttl_rules[0]
