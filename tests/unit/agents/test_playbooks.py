"""Step plans: the order and the sizes by which a known hazard does not happen."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.info_facts import facts_of_info
from agents.playbook_tables.book import PLAYBOOKS, playbook_for, refusal_of_plan, steps_back, steps_of
from agents.playbook_tables.keep_hot_set import headroom_bytes
from agents.playbook_tables.steps import Ground, StepKind, ladder
from agents.playbook_tables.table import COMMON, OBSERVE, Failure, flaws, strays
from tests.unit.agents.actuator_world import KNOBS, MIB, RULE, change, proposal

SEEN = facts_of_info({"used_memory": str(38 * MIB), "db0": "keys=20000,expires=0", "keyspace_hits": "1"})
SHARE = 0.15


GROUND = Ground(facts=SEEN, knobs=KNOBS, step_share=SHARE)


def plan(wanted, **ground):
    return steps_of(wanted, replace(GROUND, **ground))


def refusal(wanted, **ground):
    return refusal_of_plan(wanted, replace(GROUND, **ground))


def seen(**info):
    return facts_of_info({"used_memory": str(38 * MIB), "db0": "keys=20000,expires=0", "keyspace_hits": "1", **info})


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
    assert kinds(steps) == ["collect_hot_keys", "write_knobs", "touch_hot_keys", "check_spread", "write_knobs"]
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


def test_room_is_made_under_the_old_policy_and_given_back_with_the_switch():
    wanted = proposal(
        change("maxmemory-policy", "allkeys-lfu", "allkeys-lru"),
        change("maxmemory", 40 * MIB, 40 * MIB),
        playbook="keep_hot_set",
        cost={"room_bytes": 8 * MIB},
    )
    steps = plan(wanted)
    assert [s.stage for s in steps] == ["room", "room", "collect", "switch", "touch", "spread"]
    assert memory_of(steps) == [34 * MIB, 32 * MIB, 40 * MIB]
    assert {c.knob: c.after for c in steps[3].changes} == {
        "maxmemory-policy": "allkeys-lfu",
        "maxmemory": str(40 * MIB),
    }
    assert all(c.knob == "maxmemory" for s in steps[:2] for c in s.changes)


def test_a_policy_that_evicts_nothing_is_replaced_by_its_lru_sibling_while_room_is_made():
    wanted = proposal(
        change("maxmemory-policy", "allkeys-lfu"),
        change("maxmemory", 40 * MIB, 40 * MIB),
        playbook="keep_hot_set",
        cost={"room_bytes": 4 * MIB},
    )
    steps = plan(wanted)
    policies = [(c.before, c.after) for s in steps for c in s.changes if c.knob == "maxmemory-policy"]
    assert policies == [("noeviction", "allkeys-lru"), ("allkeys-lru", "allkeys-lfu")]


def test_no_room_is_made_below_what_cannot_be_evicted():
    wanted = proposal(
        change("maxmemory-policy", "volatile-lfu", "volatile-lru"),
        change("maxmemory", 40 * MIB, 40 * MIB),
        playbook="keep_hot_set",
        cost={"room_bytes": 8 * MIB},
    )
    knobs = {**KNOBS, "maxmemory-policy": "volatile-lru"}
    told = refusal(wanted, facts=seen(db0="keys=20000,expires=1000"), knobs=knobs)
    assert told is not None
    assert "not enough of what is in use can be evicted" in told
    assert refusal(wanted, facts=seen(db0="keys=20000,expires=19000"), knobs=knobs) is None


@given(start=st.integers(1, 2**40), target=st.integers(-(2**40), 2**40))
def test_a_ladder_never_goes_below_nothing(start, target):
    assert min(ladder(start, target, SHARE)) >= 0


def test_a_cache_that_grows_as_it_switches_to_lfu_evicts_nothing_for_room():
    wanted = proposal(
        change("maxmemory-policy", "allkeys-lfu", "allkeys-lru"),
        change("maxmemory", 50 * MIB),
        playbook="keep_hot_set",
        cost={"room_bytes": 8 * MIB},
    )
    assert memory_of(plan(wanted)) == [50 * MIB]


def test_a_cache_that_shrinks_and_switches_to_lfu_shrinks_first_while_the_coldest_keys_still_go():
    wanted = proposal(
        change("maxmemory-policy", "allkeys-lfu", "allkeys-lru"), change("maxmemory", 30 * MIB), playbook="shrink"
    )
    steps = plan(wanted)
    assert [s.stage for s in steps[-4:]] == ["collect", "switch", "touch", "spread"]
    assert memory_of(steps)[-1] == 30 * MIB


def test_a_switch_away_from_lfu_needs_no_touching():
    steps = plan(proposal(change("maxmemory-policy", "allkeys-lru", "allkeys-lfu"), playbook="keep_hot_set"))
    assert kinds(steps) == ["write_knobs"]


def test_ttl_rules_come_after_the_knobs():
    assert kinds(plan(proposal(change("maxmemory-samples", 10), rules=(RULE,)))) == ["write_knobs", "ttl_rule"]


@pytest.mark.parametrize("playbook", ["", "smart", "Direct"])
def test_an_unknown_playbook_is_refused_with_the_known_ones(playbook):
    with pytest.raises(
        ValueError, match="known are: direct, encoding, grow, keep_hot_set, reencode, shrink, ttl_rule, tune"
    ):
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
    steps = steps_back(wanted, {"maxmemory": str(50 * MIB), "maxmemory-policy": "allkeys-lru"}, (RULE,), GROUND)
    assert steps[0].rule == RULE
    assert {c.knob: c.after for c in steps[-1].changes} == {k: KNOBS[k] for k in ("maxmemory", "maxmemory-policy")}


def test_growth_is_taken_back_in_steps_while_the_new_policy_still_evicts():
    wanted = proposal(change("maxmemory-policy", "allkeys-lru"), change("maxmemory", 80 * MIB))
    steps = steps_back(wanted, {"maxmemory": str(80 * MIB), "maxmemory-policy": "allkeys-lru"}, (), GROUND)
    assert len(steps) > 2
    assert all(s.settle_to_bytes and {c.knob for c in s.changes} == {"maxmemory"} for s in steps[:-1])


def test_revoking_rules_only_leaves_the_knobs_alone():
    wanted = proposal(change("maxmemory-samples", 10), rules=(RULE,))
    assert [s.rule for s in steps_back(wanted, {}, (RULE,), GROUND, rules_only=True)] == [RULE]


# --- The tables -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLAYBOOKS)
def test_each_table_is_whole_and_every_stage_has_a_way_out_and_names_its_rollback(name):
    assert flaws(PLAYBOOKS[name]) == []
    for stage in (*PLAYBOOKS[name].stages, *COMMON):
        assert stage.rollback
        assert stage.lost
        assert stage.then


@pytest.mark.parametrize(
    ("spoilt", "told"),
    [
        ({"then": ()}, "no way out"),
        ({"then": ("nowhere",)}, "which is no stage"),
        ({"rollback": " "}, "does not say `rollback`"),
    ],
)
def test_a_table_with_a_hole_is_found_out(spoilt, told):
    table = PLAYBOOKS["grow"]
    broken = replace(table, stages=(replace(table.stages[0], **spoilt),))
    assert told in "; ".join(flaws(broken))


def test_a_stage_that_abandons_after_something_was_written_is_found_out():
    table = PLAYBOOKS["tune"]
    broken = replace(table, stages=(table.stages[0], replace(table.stages[1], fails=Failure.ABANDON)))
    assert "abandons although" in "; ".join(flaws(broken))


PLANS = {
    "direct": proposal(change("maxmemory-policy", "allkeys-lru")),
    "grow": proposal(change("maxmemory", 50 * MIB), playbook="grow"),
    "shrink": proposal(change("maxmemory-policy", "allkeys-lru"), change("maxmemory", 20 * MIB), playbook="shrink"),
    "keep_hot_set": proposal(
        change("maxmemory-policy", "allkeys-lfu"),
        change("maxmemory", 40 * MIB, 40 * MIB),
        playbook="keep_hot_set",
        cost={"room_bytes": 4 * MIB},
    ),
    "tune": proposal(change("maxmemory-samples", 10), playbook="tune"),
    "encoding": proposal(change("hash-max-listpack-entries", 512, 128), playbook="encoding"),
    "reencode": proposal(
        change("hash-max-listpack-entries", 512, 128), playbook="reencode", cost={"keys_touched": 5_000.0}
    ),
    "ttl_rule": proposal(rules=(RULE,), playbook="ttl_rule"),
}


@pytest.mark.parametrize("name", PLAYBOOKS)
def test_the_plan_of_each_playbook_is_a_walk_through_its_table(name):
    ground = replace(GROUND, may_reencode=True, staleness_ms={"user:": 600_000})
    steps = steps_of(PLANS[name], ground)
    assert strays(PLAYBOOKS[name], steps) is None
    assert refusal_of_plan(PLANS[name], ground) is None
    if len({s.stage for s in steps}) > 1:
        assert strays(PLAYBOOKS[name], steps[::-1]) is not None
    assert OBSERVE in PLAYBOOKS[name].stage(steps[-1].stage).then


@pytest.mark.parametrize("name", PLAYBOOKS)
def test_each_playbook_ends_with_what_was_wanted_and_its_way_back_with_what_was(name):
    wanted = PLANS[name]
    ground = replace(GROUND, may_reencode=True)
    values = {c.knob: c.before for c in wanted.knob_changes}
    for step in steps_of(wanted, ground):
        for c in step.changes:
            assert values[c.knob] == c.before
            values[c.knob] = c.after
    assert values == {c.knob: c.after for c in wanted.knob_changes}
    for step in steps_back(wanted, values, wanted.ttl_rules, ground):
        values.update({c.knob: c.after for c in step.changes})
    assert values == {c.knob: c.before for c in wanted.knob_changes}


def test_the_playbook_follows_from_the_changes():
    for name in ("shrink", "keep_hot_set", "tune", "encoding", "ttl_rule", "grow"):
        assert playbook_for(PLANS[name].knob_changes) == name
    assert playbook_for((change("maxmemory-policy", "allkeys-lru"),)) == "direct"


def test_a_knob_is_tried_with_the_value_that_it_has_before_it_is_set():
    probe, setting = plan(PLANS["tune"])
    assert all(c.before == c.after for c in probe.changes)
    assert not probe.writes
    assert setting.writes


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        (proposal(change("maxmemory", 50 * MIB), playbook="tune"), "needs another playbook"),
        (proposal(change("maxmemory-samples", 10), playbook="encoding"), "needs another playbook"),
        (PLANS["reencode"], "set `reencode: true`"),
    ],
)
def test_a_playbook_refuses_what_it_is_not_made_for(wanted, told):
    assert told in refusal(wanted)


def test_storing_keys_again_needs_a_bound():
    wanted = proposal(change("hash-max-listpack-entries", 512, 128), playbook="reencode")
    assert "permits no key" in refusal(wanted, may_reencode=True)


# --- What is refused --------------------------------------------------------------------------------------------------


HOST = {"total_system_memory": str(100 * MIB), "used_memory_rss": str(40 * MIB)}
QUIET = {"aof_enabled": "0", "rdb_saves": "0", "latest_fork_usec": "0", "connected_slaves": "0"}


def grown(size, **info):
    return refusal(proposal(change("maxmemory", size * MIB), playbook="grow"), facts=seen(**{**HOST, **QUIET, **info}))


def test_memory_grows_into_what_the_host_has():
    assert grown(77) is None
    assert "host's" in grown(79)


def test_what_a_fork_may_copy_has_to_fit_too():
    assert "copied while the server forks" in grown(60, aof_enabled="1")
    assert grown(60, aof_enabled="1", aof_last_cow_size=str(4 * MIB)) is None
    assert "host's" in grown(60, rdb_saves="3", rdb_last_cow_size=str(20 * MIB))


def test_a_server_that_does_not_tell_whether_it_forks_may_fork():
    facts = seen(**HOST)
    assert "copied" in refusal(proposal(change("maxmemory", 60 * MIB), playbook="grow"), facts=facts)


def test_buffers_that_are_not_counted_have_to_fit_too():
    assert "host's" in grown(70, mem_not_counted_for_evict=str(20 * MIB))


def test_the_container_that_the_owner_names_is_a_limit_that_the_server_does_not_know():
    wanted, facts = proposal(change("maxmemory", 70 * MIB), playbook="grow"), seen(**{**HOST, **QUIET})
    assert refusal(wanted, facts=facts) is None
    assert "memory_limit" in refusal(wanted, facts=facts, memory_limit_bytes=64 * MIB)


@pytest.mark.parametrize("playbook", ["direct", "keep_hot_set", "grow"])
def test_growth_is_checked_whatever_the_playbook_is_called(playbook):
    changes = (change("maxmemory", 90 * MIB),)
    if playbook == "keep_hot_set":
        changes = (change("maxmemory-policy", "allkeys-lfu", "allkeys-lru"), *changes)
    assert "host's" in refusal(proposal(*changes, playbook=playbook), facts=seen(**{**HOST, **QUIET}))


def test_memory_does_not_fall_below_what_cannot_be_evicted():
    assert "cannot be evicted" in refusal(proposal(change("maxmemory", 20 * MIB), playbook="shrink"))
    assert "cannot be evicted" in refusal(proposal(change("maxmemory", 20 * MIB)))
    evicts = proposal(change("maxmemory", 20 * MIB), change("maxmemory-policy", "allkeys-lru"), playbook="shrink")
    assert refusal(evicts) is None


@pytest.mark.parametrize(("with_ttl", "refused"), [(0, True), (6_000, True), (12_000, False), (20_000, False)])
def test_under_a_volatile_policy_only_keys_with_a_ttl_make_room(with_ttl, refused):
    wanted = proposal(change("maxmemory", 20 * MIB), change("maxmemory-policy", "volatile-lru"), playbook="shrink")
    assert bool(refusal(wanted, facts=seen(db0=f"keys=20000,expires={with_ttl}"))) is refused


def test_memory_that_is_not_in_use_may_be_taken_under_any_policy():
    assert refusal(proposal(change("maxmemory", 39 * MIB), playbook="shrink")) is None


def test_a_cache_whose_policy_nobody_knows_is_not_shrunk_below_its_use():
    assert "not known what may be evicted" in refusal(
        proposal(change("maxmemory", 20 * MIB), playbook="shrink"), knobs={}
    )
