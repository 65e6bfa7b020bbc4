"""Several services want the same memory: who gets it, who gives it, and what everybody else is told."""

from __future__ import annotations

from cachewarden.messages import Mode, ResolutionOutcome
from tests.unit.agents.settlements import Table
from tests.unit.policy.builders import MIB, proposal, resize

GO, WAIT, YIELD, ADVISE = (
    ResolutionOutcome.GO,
    ResolutionOutcome.WAIT,
    ResolutionOutcome.YIELD,
    ResolutionOutcome.ADVISE,
)


def outcomes(resolutions):
    return {name: r.outcome for name, r in resolutions.items()}


def test_two_services_want_the_last_free_memory__more_hits_per_byte_wins_and_the_loser_is_told():
    # Given 4 MiB that nobody holds
    table = Table("a", "b", budget_mib=36)
    # When both want them and `b` gains more
    resolutions = table.settle(resize("a", gain=0.02, proposal_id="pa"), resize("b", gain=0.05, proposal_id="pb"))
    # Then `b` gets them, and `a` is told who has them and how many are left
    assert outcomes(resolutions) == {"pa": YIELD, "pb": GO}
    assert resolutions["pa"].conflicts_with == ("pb",)
    assert "0 of the budget" in resolutions["pa"].reason


def test_two_services_gain_the_same_per_byte__the_name_decides_and_not_the_order():
    table = Table("a", "b", budget_mib=36)
    one, two = resize("a", proposal_id="z"), resize("b", proposal_id="y")
    assert outcomes(table.settle(one, two)) == outcomes(table.settle(two, one)) == {"z": GO, "y": YIELD}


def test_a_small_efficient_growth_goes_before_a_large_one_with_more_hits_in_total():
    table = Table("a", "b", budget_mib=40)
    large, small = (
        resize("a", 16, 24, gain=0.06, proposal_id="large"),
        resize("b", 16, 18, gain=0.02, proposal_id="small"),
    )
    assert outcomes(table.settle(large, small)) == {"large": YIELD, "small": GO}


def test_what_the_owner_weighs_more_wins():
    table = Table("a", "b", budget_mib=36)
    table.weights["a"] = 10.0
    assert outcomes(table.settle(resize("a", gain=0.02), resize("b", gain=0.05))) == {"p-a": GO, "p-b": YIELD}


def test_a_receiver_needs_a_donor__the_donor_goes_first_and_the_receiver_waits():
    table = Table("a", "b")
    donor = resize("a", 16, 12, gain=-0.01, proposal_id="d")
    receiver = resize("b", 16, 20, proposal_id="r", needs=("d",))
    resolutions = table.settle(donor, receiver)
    assert outcomes(resolutions) == {"d": GO, "r": WAIT}
    assert resolutions["r"].conflicts_with == ("d",)


def test_the_donor_is_being_shrunk__memory_that_is_only_promised_cannot_be_taken():
    table = Table("a", "b")
    table.happened("a", in_flight="d")
    assert table.settle(resize("b", 16, 20, proposal_id="r", needs=("d",)))["r"].outcome is WAIT
    assert table.settle(resize("b", 16, 20, proposal_id="r"))["r"].outcome is WAIT


def test_the_donor_has_given__the_receiver_takes_just_that():
    table = Table("a", "b", budget_mib=32)
    table.memory_bytes["a"], table.kept = 12 * MIB, {"d"}
    assert table.settle(resize("b", 16, 20, proposal_id="r", needs=("d",)))["r"].outcome is GO
    assert table.settle(resize("b", 16, 21, proposal_id="r", needs=("d",)))["r"].outcome is WAIT


def test_the_donor_is_denied__its_receivers_yield_and_are_told_why():
    table = Table("a", "b", "c", budget_mib=60)
    table.deny("d", "nobody-falls-below-the-floor")
    donor = resize("a", 16, 12, gain=-0.01, proposal_id="d")
    first, second = resize("b", proposal_id="r1", needs=("d",)), resize("c", proposal_id="r2", needs=("r1",))
    resolutions = table.settle(donor, first, second)
    assert outcomes(resolutions) == {"d": YIELD, "r1": YIELD, "r2": YIELD}
    assert "nobody-falls-below-the-floor" in resolutions["r1"].reason


def test_the_receiver_is_denied__the_donor_keeps_its_memory():
    table = Table("a", "b")
    table.deny("r", "the-budget")
    donor = resize("a", 16, 12, gain=-0.01, proposal_id="d")
    resolutions = table.settle(donor, resize("b", proposal_id="r", needs=("d",)))
    assert outcomes(resolutions) == {"d": YIELD, "r": YIELD}
    assert "nobody is left who would take them" in resolutions["d"].reason


def test_one_of_two_receivers_is_denied__the_donor_still_gives():
    table = Table("a", "b", "c")
    table.deny("r1", "rule")
    donor = resize("a", 16, 12, gain=-0.01, proposal_id="d")
    receivers = (resize("b", proposal_id="r1", needs=("d",)), resize("c", proposal_id="r2", needs=("d",)))
    assert outcomes(table.settle(donor, *receivers)) == {"d": GO, "r1": YIELD, "r2": WAIT}


def test_memory_that_is_hardly_used_is_given_before_anyone_asks():
    assert Table("a").settle(resize("a", 16, 12, gain=-0.004))["p-a"].outcome is GO
    assert Table("a").settle(resize("a", 16, 12, gain=-0.006))["p-a"].outcome is YIELD


def test_the_donor_only_gets_advice__the_receiver_does_not_wait_for_ever():
    table = Table("a", "b")
    table.modes["a"] = Mode.ADVISE
    donor = resize("a", 16, 12, gain=-0.01, proposal_id="d")
    assert outcomes(table.settle(donor, resize("b", proposal_id="r", needs=("d",)))) == {"d": ADVISE, "r": YIELD}


def test_two_proposals_need_each_other__both_wait_and_nothing_moves():
    table = Table("a", "b", budget_mib=60)
    one, two = resize("a", proposal_id="x", needs=("y",)), resize("b", proposal_id="y", needs=("x",))
    assert outcomes(table.settle(one, two)) == {"x": WAIT, "y": WAIT}


def test_growth_is_on_its_way__it_counts_before_the_cache_has_it():
    table = Table("a", "b", budget_mib=36)
    table.is_on_its_way("a", 4)
    assert table.settle(resize("b"))["p-b"].outcome is WAIT


def test_the_fleet_is_over_its_budget_already__nobody_grows_but_others_may_act():
    table = Table("a", "b", budget_mib=30)
    assert outcomes(table.settle(resize("a"), proposal("b"))) == {"p-a": WAIT, "p-b": GO}


def test_a_cache_is_unreachable__nobody_grows_on_memory_that_cannot_be_counted():
    table = Table("a", "b", budget_mib=60)
    del table.memory_bytes["b"]
    resolutions = table.settle(resize("a"))
    assert resolutions["p-a"].outcome is WAIT
    assert "no maxmemory of b" in resolutions["p-a"].reason


def test_growth_that_awaits_approval_does_not_hold_memory_back_from_others():
    table = Table("a", "b", budget_mib=36)
    table.modes["a"] = Mode.APPROVE
    assert outcomes(table.settle(resize("a", gain=0.3), resize("b"))) == {"p-a": WAIT, "p-b": GO}
