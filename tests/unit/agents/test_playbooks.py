"""Step plans: the order and the sizes by which a known hazard does not happen."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.info_facts import facts_of_info
from agents.playbooks import StepKind, headroom_bytes, ladder, steps_back, steps_of
from tests.unit.agents.actuator_world import KNOBS, MIB, RULE, change, proposal

SEEN = facts_of_info({"used_memory": str(38 * MIB), "db0": "keys=20000,expires=0", "keyspace_hits": "1"})
SHARE = 0.15


def plan(wanted):
    return steps_of(wanted, SEEN, SHARE)


def kinds(steps):
    return [s.kind.value for s in steps]


def memory_of(steps):
    return [int(c.after) for s in steps for c in s.changes if c.knob == "maxmemory"]


def test_a_direct_change_is_one_atomic_write_of_all_knobs():
    (step,) = plan(proposal(change("maxmemory-policy", "allkeys-lru"), change("maxmemory", 50 * MIB)))
    assert step.kind is StepKind.WRITE_KNOBS
    assert {c.knob for c in step.changes} == {"maxmemory-policy", "maxmemory"}
    assert step.settle_to_bytes == 0


def test_shrinking_goes_in_bounded_steps_and_waits_after_each():
    steps = plan(proposal(change("maxmemory", 20 * MIB), playbook="shrink"))
    values = memory_of(steps)
    assert values[-1] == 20 * MIB
    assert all(s.settle_to_bytes for s in steps)
    for before, after in zip([40 * MIB, *values], values, strict=False):
        assert after >= before * (1 - SHARE) - 1


def test_the_policy_that_can_evict_is_set_no_later_than_the_first_step_down():
    steps = plan(proposal(change("maxmemory", 20 * MIB), change("maxmemory-policy", "allkeys-lru"), playbook="shrink"))
    assert "maxmemory-policy" in {c.knob for c in steps[0].changes}
    assert all(len(s.changes) == 1 for s in steps[1:])


def test_memory_falls_in_steps_even_if_the_playbook_is_called_direct():
    assert len(plan(proposal(change("maxmemory", 20 * MIB)))) > 1


def test_a_hot_set_is_collected_before_the_switch_and_touched_after_it_and_the_headroom_is_taken_back_last():
    wanted = proposal(
        change("maxmemory-policy", "allkeys-lfu", "allkeys-lru"),
        change("maxmemory", 50 * MIB),
        playbook="keep_hot_set",
        cost={"headroom_bytes": 3 * MIB},
    )
    steps = plan(wanted)
    assert kinds(steps) == ["collect_hot_keys", "write_knobs", "touch_hot_keys", "write_knobs"]
    assert memory_of(steps) == [53 * MIB, 50 * MIB]
    assert steps[2].times >= 12


def test_without_permitted_headroom_none_is_taken():
    wanted = proposal(change("maxmemory-policy", "allkeys-lfu"), change("maxmemory", 50 * MIB), playbook="keep_hot_set")
    assert headroom_bytes(wanted) == 0
    assert memory_of(plan(wanted)) == [50 * MIB]


def test_headroom_is_never_more_than_a_tenth_of_the_cache():
    wanted = proposal(
        change("maxmemory-policy", "allkeys-lfu"),
        change("maxmemory", 50 * MIB),
        playbook="keep_hot_set",
        cost={"headroom_bytes": 30 * MIB},
    )
    assert headroom_bytes(wanted) == 4 * MIB


def test_a_cache_that_shrinks_and_switches_to_lfu_keeps_its_size_until_the_hot_set_is_learnt():
    steps = plan(proposal(change("maxmemory-policy", "allkeys-lfu"), change("maxmemory", 30 * MIB), playbook="shrink"))
    assert kinds(steps)[:3] == ["collect_hot_keys", "write_knobs", "touch_hot_keys"]
    assert memory_of(steps[:3]) == []
    assert memory_of(steps)[-1] == 30 * MIB


def test_a_switch_away_from_lfu_needs_no_touching():
    steps = plan(proposal(change("maxmemory-policy", "allkeys-lru", "allkeys-lfu"), playbook="keep_hot_set"))
    assert kinds(steps) == ["write_knobs"]


def test_ttl_rules_come_after_the_knobs():
    assert kinds(plan(proposal(change("maxmemory-samples", 10), rules=(RULE,)))) == ["write_knobs", "ttl_rule"]


@pytest.mark.parametrize("playbook", ["", "smart", "Direct"])
def test_an_unknown_playbook_is_refused_with_the_known_ones(playbook):
    with pytest.raises(ValueError, match="known are: direct, keep_hot_set, shrink, ttl_rule"):
        plan(proposal(change("maxmemory-samples", 10), playbook=playbook))


def test_a_proposal_that_changes_nothing_has_no_plan():
    with pytest.raises(ValueError, match="no steps"):
        plan(proposal())


def test_an_unlimited_cache_is_limited_step_by_step_from_what_it_uses():
    values = memory_of(plan(proposal(change("maxmemory", 20 * MIB, 0), playbook="shrink")))
    assert values[0] < 38 * MIB
    assert values[-1] == 20 * MIB


@given(st.integers(1, 1 << 40), st.integers(1, 1 << 40), st.floats(0.01, 1.0))
def test_every_ladder_ends_at_its_target_with_bounded_steps(start, target, share):
    values = ladder(start, target, share)
    assert values[-1] == target
    for before, after in zip((start, *values), values, strict=False):
        assert after < before or start <= target
        assert before - after <= max(1, int(before * share))


def test_taking_back_ends_with_one_write_of_everything_to_what_it_was():
    wanted = proposal(change("maxmemory-policy", "allkeys-lru"), change("maxmemory", 50 * MIB), rules=(RULE,))
    steps = steps_back(wanted, {"maxmemory": str(50 * MIB), "maxmemory-policy": "allkeys-lru"}, (RULE,), SEEN, SHARE)
    assert steps[0].rule == RULE
    assert {c.knob: c.after for c in steps[-1].changes} == {k: KNOBS[k] for k in ("maxmemory", "maxmemory-policy")}


def test_growth_is_taken_back_in_steps_while_the_new_policy_still_evicts():
    wanted = proposal(change("maxmemory-policy", "allkeys-lru"), change("maxmemory", 80 * MIB))
    steps = steps_back(wanted, {"maxmemory": str(80 * MIB), "maxmemory-policy": "allkeys-lru"}, (), SEEN, SHARE)
    assert len(steps) > 2
    assert all(s.settle_to_bytes and {c.knob for c in s.changes} == {"maxmemory"} for s in steps[:-1])


def test_revoking_rules_only_leaves_the_knobs_alone():
    wanted = proposal(change("maxmemory-samples", 10), rules=(RULE,))
    assert [s.rule for s in steps_back(wanted, {}, (RULE,), SEEN, SHARE, rules_only=True)] == [RULE]
