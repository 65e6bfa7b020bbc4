"""Several proposals, or several agents, for one service: one change at a time, and the reason says which."""

from __future__ import annotations

from cachewarden.messages import ResolutionOutcome
from tests.unit.agents.settlements import Table
from tests.unit.policy.builders import NOW_MS, knob, proposal, resize, ttl_rule

GO, WAIT, YIELD = ResolutionOutcome.GO, ResolutionOutcome.WAIT, ResolutionOutcome.YIELD


def outcomes(resolutions):
    return {name: r.outcome for name, r in resolutions.items()}


def samples(after, gain, proposal_id):
    return proposal("a", knob("maxmemory-samples", 5, after), gain=gain, proposal_id=proposal_id)


def test_two_planners_set_one_knob_differently__the_larger_gain_wins_and_the_loser_is_told():
    resolutions = Table("a").settle(samples(3, 0.01, "low"), samples(10, 0.02, "high"))
    assert outcomes(resolutions) == {"low": YIELD, "high": GO}
    assert resolutions["low"].conflicts_with == ("high",)
    assert "`maxmemory-samples` of `a` to 3, `high` sets it to 10" in resolutions["low"].reason


def test_two_planners_want_the_same_of_one_service__one_goes_and_the_other_waits():
    resolutions = Table("a").settle(samples(10, 0.01, "p1"), samples(10, 0.01, "p2"))
    assert outcomes(resolutions) == {"p1": GO, "p2": WAIT}


def test_two_compatible_changes_of_one_service__the_second_waits_for_the_first():
    ttl = proposal("a", ttl_rules=(ttl_rule(),), kinds=("ttl",), playbook="ttl_rule", gain=0.1, proposal_id="ttl")
    resolutions = Table("a").settle(samples(10, 0.01, "samples"), ttl)
    assert outcomes(resolutions) == {"samples": WAIT, "ttl": GO}
    assert "`ttl` changes `a` first" in resolutions["samples"].reason


def test_the_best_change_does_not_fit__the_next_best_of_the_service_goes():
    resolutions = Table("a", budget_mib=16).settle(
        resize("a", gain=0.2, proposal_id="grow"), samples(10, 0.01, "samples")
    )
    assert outcomes(resolutions) == {"grow": WAIT, "samples": GO}


def test_another_agent_shrinks_what_we_would_grow__we_yield_and_name_it():
    table = Table("a", budget_mib=99)
    table.intends("a", "maxmemory", -1, until_ms=NOW_MS + 60_000)
    resolution = table.settle(resize("a"))["p-a"]
    assert (resolution.outcome, resolution.conflicts_with) == (YIELD, ("other_agent",))
    assert "`other_agent` intends to shrink `maxmemory` of `a` until" in resolution.reason


def test_another_agent_grows_the_same__we_wait():
    table = Table("a", budget_mib=99)
    table.intends("a", "maxmemory", 1)
    assert table.settle(resize("a"))["p-a"].outcome is WAIT


def test_another_agent_switches_the_eviction_policy_that_we_would_switch__we_yield():
    table = Table("a")
    table.intends("a", "maxmemory-policy", 0)
    switch = proposal("a", knob("maxmemory-policy", "allkeys-lru", "allkeys-lfu"))
    assert table.settle(switch)["p-a"].outcome is YIELD


def test_an_intent_that_has_run_out__stands_in_nobody_s_way():
    table = Table("a", budget_mib=99)
    table.intends("a", "maxmemory", -1, until_ms=NOW_MS)
    assert table.settle(resize("a"))["p-a"].outcome is GO


def test_another_agent_works_on_another_knob_or_service__we_go():
    table = Table("a", "b", budget_mib=99)
    table.intends("b", "maxmemory", -1)
    table.intends("a", "ttl:session:", 1)
    assert table.settle(resize("a"))["p-a"].outcome is GO


def test_force_does_not_beat_another_agent_s_intent():
    table = Table("a", budget_mib=99)
    table.intends("a", "maxmemory", -1)
    table.force.add("a")
    assert table.settle(resize("a"))["p-a"].outcome is YIELD


def test_two_agents_intend_opposite_things__the_answer_does_not_depend_on_who_spoke_first():
    table = Table("a", budget_mib=99)
    table.intends("a", "maxmemory", 1, holder="first")
    table.intends("a", "maxmemory", -1, holder="second")
    spoken = table.settle(resize("a"))
    table.intents.reverse()
    assert table.settle(resize("a")) == spoken
