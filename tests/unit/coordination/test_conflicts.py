"""Clashes between our changes and plans of peers, who goes first, and the life of a conflict."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from cachewarden.machine import Publish, Record, Send
from cachewarden.messages import AGENT_ID, RecordKind
from cachewarden.protocol import CancelExecution
from coordination.blackboard_records import iso_utc
from coordination.conflict_desk import ConflictDesk
from coordination.conflicts import ClashKind, by_priority, clash_of, clash_with_kept, find_clashes, own_rule
from coordination.peer_plans import PeerPlan, PlanState, Touch, read_plan
from tests.unit.policy.builders import MIB, knob, proposal, resize, ttl_rule

NOW = 1_800_000_000_000
WAIT_MS = 30_000
SAMPLES = Touch(service="cart", resource="maxmemory-samples", before="5", after="3", direction=-1)


def plan(*touches, state=PlanState.WANTED, priority=3, at_ms=NOW, **more):
    fields = {"agent_id": "peer", "plan_id": "theirs", "item_id": "i", "until_ms": NOW + 600_000, **more}
    return PeerPlan(state=state, priority=priority, at_ms=at_ms, touches=touches or (SAMPLES,), **fields)


def clash(ours=None, theirs=None, **more):
    return clash_of(ours or proposal("cart"), theirs or plan(), None, NOW, **more)


def kind(*arguments, **more):
    found = clash(*arguments, **more)
    return None if found is None else found.kind


# --- What clashes -----------------------------------------------------------------------------------------------------


def test_opposite_directions_clash():
    assert kind() is ClashKind.OPPOSITE


def test_the_same_knob_with_another_value_clashes():
    assert kind(None, plan(replace(SAMPLES, after="7", direction=1))) is ClashKind.OTHER_VALUE


def test_the_same_value_is_no_clash_not_even_while_one_is_measured():
    agreed = plan(replace(SAMPLES, after="10", direction=1))
    assert kind(None, agreed) is None
    assert kind(None, replace(agreed, state=PlanState.ACTIVE)) is None
    assert kind(None, agreed, in_flight=True) is None


def test_another_knob_clashes_only_while_one_of_both_is_measured():
    other = plan(Touch(service="cart", resource="hz", after="20"))
    assert kind(None, other) is None
    assert kind(None, replace(other, state=PlanState.ACTIVE)) is ClashKind.OBSERVATION_WINDOW
    assert kind(None, other, in_flight=True) is ClashKind.OBSERVATION_WINDOW


def test_another_cache_never_clashes():
    assert kind(proposal("pages"), plan(state=PlanState.ACTIVE)) is None


def test_a_plan_that_does_not_say_what_it_changes_clashes_with_everything_of_its_cache():
    assert kind(None, plan(Touch(service="cart", resource="*"))) is ClashKind.SAME_CACHE


def test_overlapping_patterns_of_keys_clash():
    ours = proposal("cart", ttl_rules=(ttl_rule("session:"),))
    assert kind(ours, plan(Touch(service="cart", resource="ttl:session:vip:*"))) is ClashKind.OTHER_VALUE


def test_growth_clashes_with_growth_of_another_cache_only_beyond_the_budget():
    theirs = plan(Touch(service="pages", resource="budget", direction=1, amount=6 * MIB))
    ours = resize("cart", 16, 20)
    assert clash_of(ours, theirs, 10 * MIB, NOW) is None
    assert clash_of(ours, theirs, 9 * MIB, NOW).kind is ClashKind.BUDGET
    assert clash_of(ours, theirs, None, NOW) is None


def growing(name, amount, priority=3, **more):
    touch = Touch(service="pages", resource="budget", direction=1, amount=amount * MIB)
    return plan(touch, plan_id=name, priority=priority, **more)


def test_plans_that_only_together_are_too_much_clash_in_the_order_of_their_priority():
    ours = resize("cart", 16, 19)
    plans = [growing("late", 5, 4), growing("first", 5, 1), growing("over", 50, 1, state=PlanState.DONE)]
    assert [c.plan.plan_id for c in find_clashes([ours], plans, 13 * MIB, NOW)] == []
    [found] = find_clashes([ours], plans, 12 * MIB, NOW)
    assert (found.kind, found.plan.plan_id, found.spare_bytes) == (ClashKind.BUDGET, "late", 4 * MIB)
    both = find_clashes([ours], plans, 7 * MIB, NOW)
    assert {c.plan.plan_id: c.spare_bytes for c in both} == {"first": 4 * MIB, "late": 0}


def test_what_is_won_over_several_plans_leaves_room_for_ours_and_no_more():
    plans = [growing("a", 5, 4), growing("b", 5, 5)]
    desk = ConflictDesk(WAIT_MS)
    desk.meet(find_clashes([resize("cart", 16, 22)], plans, 10 * MIB, NOW), NOW)
    desk.decide(NOW + WAIT_MS)
    assert sum(i.amount for i in desk.intents(plans, NOW + WAIT_MS)) == 4 * MIB


def test_setting_back_a_size_is_seen_in_whichever_units_a_peer_wrote_it():
    done = read_plan(
        {
            "id": "i",
            "agent_id": "peer",
            "knowledge_type": "optimization_activity",
            "priority": 3,
            "timestamp": iso_utc(NOW),
            "expires_at": None,
            "content": {
                "service": "cart",
                "status": "completed",
                "changes": [{"knob": "MAXMEMORY", "before": "20MB", "after": "16mb"}],
            },
        },
        frozenset({"cart"}),
        NOW,
    )
    assert kind(resize("cart", 16, 20), done) is ClashKind.UNDOES


def test_setting_back_what_a_peer_has_done_clashes_and_so_does_a_plan_to_set_back_ours():
    done = plan(Touch(service="cart", resource="maxmemory-samples", before="10", after="5"), state=PlanState.DONE)
    assert kind(None, done) is ClashKind.UNDOES
    assert kind(None, plan(replace(SAMPLES, before="6"), state=PlanState.DONE)) is None
    kept = proposal("cart")
    back = plan(Touch(service="cart", resource="maxmemory-samples", before="10", after="5"))
    assert clash_with_kept(kept, back, NOW).kind is ClashKind.UNDOES
    assert clash_with_kept(kept, plan(), NOW) is None


@pytest.mark.parametrize("over", [{"state": PlanState.ENDED}, {"until_ms": NOW}])
def test_a_plan_that_is_over_clashes_with_nothing(over):
    assert kind(None, replace(plan(), **over)) is None


def test_the_order_in_which_things_come_changes_nothing():
    ours = [proposal("cart"), proposal("pages", proposal_id="p-2")]
    theirs = [plan(), plan(replace(SAMPLES, service="pages"), plan_id="more"), plan(agent_id="a")]
    assert find_clashes(ours, theirs, 0, NOW) == find_clashes(ours[::-1], theirs[::-1], 0, NOW)


def test_a_matter_keeps_its_id_from_cycle_to_cycle_and_a_changed_plan_is_a_new_matter():
    again = clash(proposal("cart", proposal_id="p-later"))
    assert again.conflict_id == clash().conflict_id == clash(None, plan(state=PlanState.ACTIVE)).conflict_id
    assert clash(None, plan(replace(SAMPLES, after="4"))).conflict_id != again.conflict_id


def test_another_value_of_ours_is_another_matter_and_a_size_measured_anew_is_not():
    other = proposal("cart", knob("maxmemory-samples", "5", "9"))
    assert clash(other).conflict_id != clash().conflict_id
    theirs = plan(Touch(service="cart", resource="maxmemory", before="1", after="2"))
    sizes = [
        clash(proposal("cart", knob("maxmemory", 16 * MIB, size)), theirs).conflict_id
        for size in (20 * MIB, 20 * MIB + 4_096, 30 * MIB, 8 * MIB)
    ]
    assert sizes[0] == sizes[1]
    assert len(set(sizes)) == 3


# --- Who goes first ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("theirs", "since_ms", "for_us"),
    [
        (plan(priority=2), NOW, False),
        (plan(priority=4), NOW, True),
        (plan(), NOW - 1, True),
        (plan(), NOW + 1, False),
        (plan(), NOW, True),
        (plan(agent_id="a_peer"), NOW, False),
        (plan(since_ms=NOW - 2), NOW - 1, False),
        (plan(priority=5, state=PlanState.ACTIVE), NOW - 1, False),
    ],
)
def test_the_smaller_number_then_the_older_goes_first_and_nothing_goes_against_what_is_under_way(
    theirs, since_ms, for_us
):
    assert own_rule(clash(None, theirs), since_ms, 0)[0] is for_us


@pytest.mark.parametrize(("priority", "for_us"), [(1, False), (3, True), (5, True)])
def test_an_answer_by_priorities_may_take_back_even_what_is_under_way(priority, for_us):
    desk, found, _ = opened(plan(priority=priority), in_flight=True)
    effects = desk.read(
        answered(found, allocation_decision="highest_priority_wins"), [], NOW + 1, {"cart": proposal("cart")}
    )
    assert desk.counts.get("won", 0) == for_us
    assert any(isinstance(e, Send) for e in effects) is not for_us
    assert by_priority(clash(None, plan(priority=5, state=PlanState.ACTIVE)), NOW, 0)[0] is False


def test_setting_back_and_forth_is_left_to_people_after_the_first_time():
    done = plan(
        Touch(service="cart", resource="maxmemory-samples", before="10", after="5"), state=PlanState.DONE, priority=5
    )
    assert own_rule(clash(None, done), NOW, 0)[0] is True
    assert own_rule(clash(None, done), NOW, 1)[0] is False


# --- The life of a conflict -------------------------------------------------------------------------------------------


def operations(effects):
    return [e.operation for e in effects if isinstance(e, Publish)]


def kinds(effects):
    return [e.kind for e in effects if isinstance(e, Record)]


def opened(theirs=None, **more):
    desk = ConflictDesk(WAIT_MS)
    found = clash(None, theirs or plan(), **more)
    return desk, found, desk.meet([found], NOW)


def test_a_conflict_is_reported_once_with_both_plans_and_their_priorities():
    desk, found, effects = opened()
    assert (operations(effects), kinds(effects)) == (["report_conflict"], [RecordKind.CONFLICT_REPORTED])
    conflict = effects[0].arguments["conflict"]
    assert [(p["agent_id"], p["priority"]) for p in conflict["resolution_data"]["plans"]] == [
        (AGENT_ID, 3),
        ("peer", 3),
    ]
    assert desk.meet([clash(proposal("cart", proposal_id="p-2"))], NOW + 5) == ()
    assert desk.open == (found.conflict_id,)


def test_while_it_is_open_the_plan_holds_and_nothing_is_decided_before_the_wait_is_over():
    desk, _, _ = opened(plan(priority=5))
    assert desk.intents([plan(priority=5)], NOW)
    assert desk.decide(NOW + WAIT_MS - 1) == ()
    effects = desk.decide(NOW + WAIT_MS)
    assert operations(effects) == ["add_knowledge", "resolve_conflict"]
    assert desk.intents([plan(priority=5)], NOW + WAIT_MS) == ()
    assert desk.decide(NOW + 2 * WAIT_MS) == ()


def test_a_conflict_that_was_lost_leaves_the_plan_in_force():
    desk, _, _ = opened(plan(priority=1))
    desk.decide(NOW + WAIT_MS)
    assert desk.counts == {"reported": 1, "lost": 1}
    [told] = desk.told()
    assert told.startswith("lost: `peer` plans `maxmemory-samples` of `cart` = 3, ours is 10; decided by")
    assert desk.intents([plan(priority=1)], NOW + WAIT_MS)


def answered(found, **data):
    return {
        found.conflict_id: {
            "status": "resolved",
            "resolution_strategy": "coordinator_override",
            "resolution_data": data,
        }
    }


@pytest.mark.parametrize(
    ("data", "outcome"),
    [
        ({"winner": AGENT_ID}, "won"),
        ({"winning_plan": "p-cart"}, "won"),
        ({"winner": "peer"}, "lost"),
        ({"decision": "escalate_to_human"}, "lost"),
        ({"decision": "defer_to_constitutional_principles"}, "lost"),
        ({"winner": AGENT_ID, "winning_plan": "theirs"}, "lost"),
        ({}, "lost"),
    ],
)
def test_an_answer_counts_for_us_only_if_it_names_us_alone(data, outcome):
    desk, found, _ = opened()
    effects = desk.read(answered(found, **data), [], NOW + 1, {})
    assert desk.counts[outcome] == 1
    # It is closed already, so it is not closed again.
    assert operations(effects) == ["add_knowledge"]


def test_an_answer_with_another_hash_is_counted_once_and_our_own_rule_decides_in_the_end():
    desk, found, _ = opened(plan(priority=5))
    for at_ms in (NOW + 1, NOW + 2):
        assert desk.read(answered(found, winner="peer", constitutional_hash="0"), [], at_ms, {}) == ()
    assert desk.counts["refused"] == 1
    desk.decide(NOW + WAIT_MS)
    assert desk.counts["won"] == 1


def test_a_conflict_that_was_evicted_is_reported_again():
    desk, found, _ = opened()
    assert operations(desk.read({found.conflict_id: None}, [], NOW + 1, {})) == ["report_conflict"]


def test_a_plan_that_is_gone_or_was_changed_makes_its_conflict_moot():
    desk, _, _ = opened()
    assert desk.forget([plan()], NOW) == ()
    effects = desk.forget([plan(replace(SAMPLES, after="4"))], NOW)
    assert kinds(effects) == [RecordKind.CONFLICT_SETTLED]
    assert effects[-1].arguments["strategy"] == "withdrawn"
    assert desk.open == ()


def test_a_matter_that_comes_up_again_after_it_was_moot_is_another_conflict_and_is_not_lost():
    desk, found, _ = opened()
    [closed] = [e for e in desk.forget([], NOW) if isinstance(e, Publish) and e.operation == "resolve_conflict"]
    desk.meet([found], NOW + 1)
    # The record of the first one stays as it was closed.
    data = closed.arguments
    record = {"status": "resolved", "resolution_strategy": data["strategy"], "resolution_data": data["data"]}
    effects = desk.read({found.conflict_id: record}, [], NOW + 2, {})
    [anew] = [e.arguments["conflict"] for e in effects if isinstance(e, Publish)]
    assert desk.open == (anew["id"],)
    assert anew["id"] != found.conflict_id
    assert [e.subject_id for e in effects if isinstance(e, Record)] == [anew["id"]]
    desk.read({anew["id"]: answered(found, winner=AGENT_ID)[found.conflict_id]}, [], NOW + 3, {})
    assert desk.counts == {"reported": 2, "moot": 1, "won": 1}
    assert desk.knows(anew["id"])


def test_a_peer_that_withdraws_a_conflict_again_and_again_has_answered_in_the_end():
    desk, _, _ = opened()
    for _ in range(3):
        [open_id] = desk.open
        withdrawn = {"status": "resolved", "resolution_strategy": "withdrawn", "resolution_data": None}
        assert desk.read({open_id: withdrawn}, [], NOW + 1, {})
    [open_id] = desk.open
    desk.read({open_id: withdrawn}, [], NOW + 1, {})
    assert desk.counts["lost"] == 1


def test_an_objection_has_one_id_on_the_blackboard_and_in_the_journal():
    desk = ConflictDesk(WAIT_MS)
    effects = desk.hear_objection("theirs-1", clash(), NOW)
    effects += desk.decide(NOW + WAIT_MS)
    assert {e.subject_id for e in effects if isinstance(e, Record)} == {"theirs-1"}
    assert [e.arguments["conflict_id"] for e in effects if getattr(e, "operation", "") == "resolve_conflict"] == [
        "theirs-1"
    ]


def test_where_peers_may_not_answer_only_our_own_rule_decides():
    desk = ConflictDesk(WAIT_MS, answered=False)
    found = clash(None, plan(priority=1))
    desk.meet([found], NOW)
    assert desk.read(answered(found, winner=AGENT_ID), [], NOW + 1, {}) == ()
    desk.decide(NOW + WAIT_MS)
    assert desk.counts["lost"] == 1


def test_two_that_go_by_the_rule_come_to_opposite_ends():
    """Each side tells the other since when it wants what it wants, so the rule is the same seen from both."""
    for our_priority, theirs, ours_ms, theirs_ms in itertools.product((3,), (2, 3, 4), (NOW, NOW + 1), (NOW, NOW + 1)):
        met = clash(None, plan(priority=theirs, at_ms=NOW + 9, since_ms=theirs_ms))
        for_us, _ = own_rule(met, ours_ms, 0)
        mine, other = (our_priority, ours_ms, AGENT_ID), (theirs, theirs_ms, "peer")
        assert for_us is (mine < other)


def test_an_answer_against_a_change_under_way_takes_it_back_and_our_own_rule_never_does():
    ours = proposal("cart")
    desk, found, _ = opened(in_flight=True)
    effects = desk.read(answered(found, winner="peer"), [], NOW + 1, {"cart": ours})
    [order] = [e.message for e in effects if isinstance(e, Send)]
    assert isinstance(order, CancelExecution)
    assert order.proposal_id == ours.proposal_id
    desk, _, _ = opened(plan(priority=1), in_flight=True)
    assert not any(isinstance(e, Send) for e in desk.decide(NOW + WAIT_MS))
    assert desk.counts["won"] == 1


def test_what_a_peer_has_done_is_not_set_back_before_that_was_decided():
    done = plan(Touch(service="cart", resource="maxmemory-samples", before="10", after="5"), state=PlanState.DONE)
    desk, _, _ = opened(done)
    [held] = desk.intents([done], NOW)
    assert (held.service, held.resource, held.holder) == ("cart", "maxmemory-samples", "peer")


def test_what_was_won_over_a_plan_that_was_wanted_ends_once_the_plan_is_being_carried_out():
    desk, _, _ = opened(plan(priority=5))
    desk.decide(NOW + WAIT_MS)
    active = plan(priority=5, state=PlanState.ACTIVE)
    assert desk.forget([active], NOW + WAIT_MS) == ()
    assert {i.resource for i in desk.intents([active], NOW + WAIT_MS)} == {"maxmemory-samples", "*"}


def test_an_answer_for_one_value_frees_nothing_for_another():
    desk, found, _ = opened()
    desk.read(answered(found, winner=AGENT_ID), [], NOW + 1, {})
    assert desk.intents([plan()], NOW + 1) == ()
    desk.meet([clash(proposal("cart", knob("maxmemory-samples", "5", "9")))], NOW + 2)
    assert [i.resource for i in desk.intents([plan()], NOW + 2)] == ["maxmemory-samples"]


def test_a_plan_that_lost_the_budget_gives_way_by_what_ours_lacks_and_only_until_ours_is_done():
    theirs = plan(Touch(service="pages", resource="budget", direction=1, amount=6 * MIB), priority=5)
    desk = ConflictDesk(WAIT_MS)
    desk.meet([clash_of(resize("cart", 16, 20), theirs, 9 * MIB, NOW)], NOW)
    desk.decide(NOW + WAIT_MS)
    assert [i.amount for i in desk.intents([theirs], NOW + WAIT_MS)] == [5 * MIB]
    desk.note_started("cart")
    assert [i.amount for i in desk.intents([theirs], NOW + WAIT_MS)] == [6 * MIB]


def test_winning_over_one_knob_overrules_nothing_else_of_the_plan():
    theirs = plan(SAMPLES, Touch(service="cart", resource="hz", after="20"), priority=5)
    desk, _, _ = opened(theirs)
    desk.decide(NOW + WAIT_MS)
    assert [i.resource for i in desk.intents([theirs], NOW + WAIT_MS)] == ["hz"]


def test_a_flood_of_plans_is_not_reported_without_bound_and_what_is_not_reported_goes_on_holding():
    desk = ConflictDesk(WAIT_MS)
    many = [plan(plan_id=f"n{number}") for number in range(300)]
    clashes = find_clashes([proposal("cart")], many, None, NOW)
    open_after = []
    for minute in range(8):
        desk.meet(clashes, NOW + minute * 60_000)
        open_after.append(len(desk.open))
    assert open_after == [30, 60, 90, 120, 150, 180, 200, 200]
    assert desk.counts["reported"] == 200
    assert len(desk.intents(many, NOW)) == len({i for p in many for i in desk.intents([p], NOW)})
