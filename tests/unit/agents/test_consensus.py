"""Settling: one resolution for each proposal, the budget is never exceeded, and the order of the input changes nothing."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.consensus import Consensus
from agents.obstacles import DAMPING_MS, DAMPING_MS_MAX, damping_ms
from agents.settlement import settle
from cachewarden.claims import touched
from cachewarden.machine import Agent, Received, Started
from cachewarden.messages import AGENT_ID, Decision, Intent, Mode, ResolutionOutcome
from cachewarden.protocol import History, RunCycle, Settle, Settled
from tests.unit.agents.settlements import Table, verdict
from tests.unit.policy.builders import MIB, NOW_MS, SETTINGS, fleet, knob, proposal, resize, service, ttl_rule

GO, WAIT, YIELD, ADVISE = (
    ResolutionOutcome.GO,
    ResolutionOutcome.WAIT,
    ResolutionOutcome.YIELD,
    ResolutionOutcome.ADVISE,
)
MINUTE_MS = 60_000


def alone(table, given=None, **where):
    given = given or proposal()
    return table.settle(given, **where)[given.proposal_id]


# --- One proposal by itself ----------------------------------------------------------------------------------------


def test_an_allowed_proposal_without_rivals_goes_ahead():
    resolution = alone(Table("cart"))
    assert (resolution.outcome, resolution.service, resolution.resolved_at_ms) == (GO, "cart", NOW_MS)


def test_a_denied_proposal_yields_with_the_names_of_the_principles():
    table = Table("cart")
    table.deny("p-cart", "the-floor", "the-budget")
    assert alone(table).outcome is YIELD
    assert "the-floor, the-budget" in alone(table).reason


def test_a_proposal_without_a_verdict_yields():
    assert alone(Table("cart"), verdicts=[]).outcome is YIELD


def test_a_verdict_on_another_content_does_not_count():
    given = proposal()
    resolution = alone(Table("cart"), given, verdicts=[verdict(replace(given, rationale="another"))])
    assert resolution.outcome is YIELD
    assert "another content" in resolution.reason


def test_of_two_verdicts_on_one_proposal_the_denying_one_counts():
    given = proposal()
    for verdicts in ([verdict(given), verdict(given, "rule")], [verdict(given, "rule"), verdict(given)]):
        assert alone(Table("cart"), given, verdicts=verdicts).outcome is YIELD


def test_another_hash_and_another_fleet_and_a_stale_proposal_yield():
    assert alone(Table("cart"), proposal(constitutional_hash="0" * 16)).outcome is YIELD
    assert alone(Table("search")).outcome is YIELD
    assert alone(Table("cart"), now_ms=NOW_MS + 300_000).outcome is YIELD


@pytest.mark.parametrize(("mode", "outcome"), [("off", ADVISE), ("advise", ADVISE), ("approve", WAIT), ("auto", GO)])
def test_the_mode_decides_what_an_allowed_proposal_becomes(mode, outcome):
    resolution = alone(Table("cart", mode=mode))
    assert resolution.outcome is outcome
    assert ("awaits approval" in resolution.reason) == (mode == "approve")


def test_a_change_in_flight_is_waited_for():
    table = Table("cart")
    table.happened("cart", in_flight="p-earlier")
    resolution = alone(table)
    assert (resolution.outcome, resolution.conflicts_with) == (WAIT, ("p-earlier",))


def test_a_service_cools_down_after_a_change_unless_forced():
    table = Table("cart")
    table.happened("cart", last_change_ms=NOW_MS - SETTINGS.cool_down_ms + 1)
    assert alone(table).outcome is WAIT
    assert "cools down for 120 s" in alone(table).reason
    assert alone(table, now_ms=NOW_MS + 1).outcome is GO
    table.force.add("cart")
    assert alone(table).outcome is GO


def test_the_words_stay_the_same_while_the_situation_does():
    table = Table("cart")
    table.happened("cart", last_change_ms=NOW_MS)
    assert alone(table, now_ms=NOW_MS + 10_000).reason == alone(table, now_ms=NOW_MS + 20_000).reason


def test_the_change_budget_is_never_skipped():
    table = Table("cart")
    table.happened("cart", changes_last_hour=SETTINGS.changes_per_hour)
    table.force.add("cart")
    resolution = alone(table)
    assert resolution.outcome is WAIT
    assert f"change budget is {SETTINGS.changes_per_hour}" in resolution.reason


def test_a_change_that_was_taken_back_rests_longer_each_time():
    given, table = proposal(), Table("cart")
    table.happened("cart", rolled_back={given.signature: NOW_MS})
    table.force.add("cart")
    assert alone(table, now_ms=NOW_MS + DAMPING_MS - 1, given=replace(given, expires_at_ms=2 * NOW_MS)).outcome is WAIT
    assert alone(table, now_ms=NOW_MS + DAMPING_MS, given=replace(given, expires_at_ms=2 * NOW_MS)).outcome is GO
    table.rollback_counts["cart", given.signature] = 3
    assert alone(table, now_ms=NOW_MS + DAMPING_MS).outcome is YIELD  # expired by then
    lasting = replace(given, expires_at_ms=2 * NOW_MS)
    assert alone(table, lasting, now_ms=NOW_MS + 4 * DAMPING_MS - 1).outcome is WAIT
    assert "3 times" in alone(table, lasting, now_ms=NOW_MS + DAMPING_MS).reason


def test_another_change_than_the_one_taken_back_need_not_rest():
    table = Table("cart")
    table.happened("cart", rolled_back={"maxmemory-samples=3": NOW_MS})
    assert alone(table).outcome is GO


def test_damping_doubles_up_to_a_day():
    assert [damping_ms(n) // MINUTE_MS for n in (0, 1, 2, 3, 4)] == [10, 10, 20, 40, 80]
    assert damping_ms(50) == DAMPING_MS_MAX


def test_what_a_proposal_touches_has_a_direction():
    given = proposal(
        "cart",
        knob("maxmemory", 2 * MIB, MIB),
        knob("maxmemory-policy", "noeviction", "allkeys-lru"),
        ttl_rules=(ttl_rule(),),
    )
    assert touched(given) == {"maxmemory": -1, "maxmemory-policy": 0, "ttl:session:": 1}


# --- The machine ----------------------------------------------------------------------------------------------------


def question(*proposals, memory_mib=16, services=("cart", "search"), **fields):
    given = {
        "cycle": 3, "verdicts": tuple(verdict(p) for p in proposals), "history": {}, "intents": (),
        "memory_bytes": dict.fromkeys(services, memory_mib * MIB), **fields,
    }  # fmt: skip
    return Settle(proposals=proposals, **given)


def answer(agent, asked, now_ms=NOW_MS):
    (effect,) = agent.step(Received(sender="coordinator", message=asked), now_ms)
    assert effect.to == "coordinator"
    assert isinstance(effect.message, Settled)
    assert effect.message.cycle == asked.cycle
    return {r.proposal_id: r.outcome for r in effect.message.resolutions}


def consensus(total_mib=None):
    services = (service("cart"), service("search"))
    return Consensus(fleet(*services, total_memory_bytes=None if total_mib is None else total_mib * MIB), SETTINGS)


def test_it_is_an_agent_that_can_be_sent_to_another_process():
    agent = pickle.loads(pickle.dumps(consensus()))
    assert isinstance(agent, Agent)
    assert answer(agent, question(proposal())) == {"p-cart": GO}


@pytest.mark.parametrize("event", [Started(), Received(sender="api", message=RunCycle()), object()])
def test_other_events_change_nothing(event):
    assert consensus().step(event, NOW_MS) == ()


def test_a_declared_total_is_the_budget():
    assert answer(consensus(36), question(resize("cart", 16, 20))) == {"p-cart": GO}
    assert answer(consensus(35), question(resize("cart", 16, 20))) == {"p-cart": WAIT}


def test_without_a_total_the_budget_is_what_the_question_says():
    assert answer(consensus(), question(resize("cart", 16, 20), budget_bytes=32 * MIB)) == {"p-cart": WAIT}
    given_away = {"cart": 16 * MIB, "search": 12 * MIB}
    asked = question(resize("cart", 16, 20), memory_bytes=given_away, budget_bytes=32 * MIB)
    assert answer(consensus(), asked) == {"p-cart": GO}
    assert answer(consensus(), question(resize("cart", 16, 20), memory_bytes=given_away)) == {"p-cart": WAIT}


def test_how_often_a_change_was_taken_back_is_forgotten_with_the_history():
    agent, given = consensus(36), resize("cart", 16, 20)
    for at_ms in range(NOW_MS, NOW_MS + 3):
        answer(agent, question(given, history={"cart": History(rolled_back={given.signature: at_ms})}))
    assert agent._rollbacks
    answer(agent, question(given))
    assert not agent._rollbacks


def test_a_need_counts_as_met_once_its_change_was_kept():
    receiver = resize("cart", 16, 20, proposal_id="r", needs=("d",))
    assert answer(consensus(36), question(receiver)) == {"r": WAIT}
    assert answer(consensus(36), question(receiver, kept=("another",))) == {"r": WAIT}
    assert answer(consensus(36), question(receiver, kept=("another", "d"))) == {"r": GO}


def test_roll_backs_are_counted_by_their_times():
    agent, given = consensus(), replace(proposal(), expires_at_ms=2 * NOW_MS)
    once, twice = NOW_MS, NOW_MS + DAMPING_MS
    for at_ms in (once, once, twice):
        asked = question(given, history={"cart": History(rolled_back={given.signature: at_ms})})
        answer(agent, asked, at_ms)
    assert answer(agent, asked, twice + 2 * DAMPING_MS - 1) == {"p-cart": WAIT}
    assert answer(agent, asked, twice + 2 * DAMPING_MS) == {"p-cart": GO}


# --- Invariants -----------------------------------------------------------------------------------------------------

NAMES = ("a", "b", "c", "d", "e")


@st.composite
def rounds(draw):
    """Any table and any proposals, also with needs in circles, doubled services, and memory that is over the budget already."""
    table = Table(*NAMES, budget_mib=draw(st.integers(40, 130)))
    for name in NAMES:
        table.modes[name] = draw(
            st.sampled_from([Mode.AUTO, Mode.AUTO, Mode.AUTO, Mode.APPROVE, Mode.ADVISE, Mode.OFF])
        )
        table.memory_bytes[name] = draw(st.integers(4, 24)) * MIB
        if draw(st.integers(0, 5)) == 0:
            table.happened(name, in_flight="p-other", last_change_ms=NOW_MS - draw(st.integers(0, 200_000)))
    if draw(st.integers(0, 4)) == 0:
        del table.memory_bytes["e"]
    for _ in range(draw(st.integers(0, 2))):
        table.intents.append(
            Intent(
                holder=draw(st.sampled_from([AGENT_ID, "other"])), service=draw(st.sampled_from(NAMES)),
                resource=draw(st.sampled_from(["budget", "maxmemory", "maxmemory-policy"])),
                direction=draw(st.sampled_from([-1, 0, 1])), amount=draw(st.integers(0, 8)) * MIB,
                until_ms=draw(st.sampled_from([0, NOW_MS - 1, NOW_MS + 1])),
            )
        )  # fmt: skip
    count = draw(st.integers(1, 8))
    ids = [f"p{i}" for i in range(count)]
    proposals = []
    for proposal_id in ids:
        name = draw(st.sampled_from(NAMES))
        before = table.memory_bytes.get(name, 8 * MIB) // MIB
        gain = draw(st.sampled_from([-0.02, 0.0, 0.01, 0.05, 0.2]))
        needs = tuple(draw(st.lists(st.sampled_from([*ids, "gone"]), max_size=2, unique=True)))
        if draw(st.booleans()):
            made = resize(name, before, draw(st.integers(2, 40)), gain=gain, proposal_id=proposal_id, needs=needs)
        else:
            made = proposal(name, gain=gain, proposal_id=proposal_id, needs=needs)
        proposals.append(made)
        if draw(st.integers(0, 6)) == 0:
            table.deny(proposal_id, "rule")
    return table, proposals, draw(st.permutations(proposals))


@pytest.mark.slow
@given(rounds())
def test_the_invariants_of_every_settlement(case):
    table, proposals, permuted = case
    resolutions = table.settle(*proposals)
    going = [p for p in proposals if resolutions[p.proposal_id].outcome is GO]

    # At most one change per service, and only of services that act by themselves and of proposals that were allowed.
    assert len({p.service for p in going}) == len(going)
    assert all(table.modes[p.service] is Mode.AUTO and p.proposal_id not in table.denied for p in going)

    # Growth counts at once, a donor's shrink not at all; a sum that is over the budget already never grows.
    in_flight = sum(
        i.amount for i in table.intents if i.resource == "budget" and i.direction > 0 and not 0 < i.until_ms <= NOW_MS
    )
    in_force = sum(table.memory_bytes.values()) + in_flight
    growth = sum(max(0, p.memory_delta_bytes) for p in going)
    assert growth == 0 or in_force + growth <= table.budget_bytes

    # Nothing that needs something goes before it was kept.
    assert all(not p.needs for p in going)

    # The order of proposals, verdicts and intents is nobody's business.
    table.intents.reverse()
    assert table.settle(*permuted) == resolutions


@pytest.mark.slow
@given(rounds())
def test_nothing_is_refused_for_lack_of_memory_that_would_have_fitted(case):
    table, proposals, _ = case
    resolutions = table.settle(*proposals)
    going = [p for p in proposals if resolutions[p.proposal_id].outcome is GO]
    left = table.budget_bytes - sum(table.memory_bytes.values()) - sum(max(0, p.memory_delta_bytes) for p in going)
    for given_up in proposals:
        reason = resolutions[given_up.proposal_id].reason
        if "bytes more, but" in reason and "not known" not in reason:
            assert given_up.memory_delta_bytes > left - sum(i.amount for i in table.intents if i.resource == "budget")


def test_two_proposals_with_one_id_are_both_refused():
    one, two = proposal("cart", proposal_id="p"), proposal("search", proposal_id="p")
    resolutions = settle((one, two), (verdict(one), verdict(two)), Table("cart", "search").situation, SETTINGS, NOW_MS)
    assert [(r.service, r.outcome) for r in resolutions] == [("cart", YIELD), ("search", YIELD)]


def test_a_denied_verdict_has_a_reason_even_if_no_principle_could_be_asked():
    given = proposal()
    empty = replace(verdict(given, "rule"), findings=())
    assert empty.decision is Decision.DENY
    assert "no principle could be asked" in alone(Table("cart"), given, verdicts=[empty]).reason
