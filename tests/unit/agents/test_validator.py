"""The validator answers every question about every proposal, and approves nothing that it could not look at."""

from __future__ import annotations

import pickle

import pytest

from agents.validator import Validator
from cachewarden.codec import digest
from cachewarden.machine import Agent, Received, Send, Started, TimerFired
from cachewarden.messages import Decision
from cachewarden.protocol import Judge, Judged, RunCycle
from tests.unit.policy.builders import MIB, NOW_MS, SETTINGS, SHIPPED, fleet, proposal, resize, service, snapshot

pytestmark = pytest.mark.constitutional


def validator(*services, total=None):
    return Validator(
        SHIPPED, fleet(*(services or (service("cart"), service("search"))), total_memory_bytes=total), SETTINGS
    )


BOTH = (snapshot("cart"), snapshot("search"))


def ask(agent, *proposals, snapshots=BOTH, now_ms=NOW_MS, cycle=7, budget_bytes=None):
    question = Judge(cycle=cycle, proposals=proposals, snapshots=snapshots, budget_bytes=budget_bytes)
    (effect,) = agent.step(Received(sender="coordinator", message=question), now_ms)
    assert isinstance(effect, Send)
    assert effect.to == "coordinator"
    assert isinstance(effect.message, Judged)
    assert effect.message.cycle == cycle
    assert [v.proposal_id for v in effect.message.verdicts] == [p.proposal_id for p in proposals]
    return effect.message.verdicts


def test_it_is_an_agent_that_can_be_sent_to_another_process():
    agent = pickle.loads(pickle.dumps(validator()))
    assert isinstance(agent, Agent)
    assert ask(agent, proposal())[0].decision is Decision.ALLOW


def test_each_proposal_gets_a_verdict_on_its_own_content():
    first, second = proposal("cart"), proposal("search", rationale="")
    verdicts = ask(validator(), first, second)
    assert [v.decision for v in verdicts] == [Decision.ALLOW, Decision.DENY]
    assert [v.proposal_digest for v in verdicts] == [digest(first), digest(second)]
    assert {v.constitution_digest for v in verdicts} == {SHIPPED.digest}


def test_no_proposals_are_an_answer_too():
    assert ask(validator()) == ()


@pytest.mark.parametrize(
    "event", [Started(), TimerFired(ref="x"), Received(sender="api", message=RunCycle()), object()]
)
def test_other_events_change_nothing(event):
    assert validator().step(event, NOW_MS) == ()


def test_a_service_without_a_snapshot_is_denied_unevaluated():
    (verdict,) = ask(validator(), proposal("search"), snapshots=(snapshot("cart"),))
    assert verdict.decision is Decision.DENY
    assert not any(f.evaluated for f in verdict.findings)
    assert "there is no snapshot of `search`" in verdict.findings[0].reason


def test_a_snapshot_of_an_earlier_round_does_not_stand_in_for_the_missing_one():
    agent = validator()
    ask(agent, proposal("search"))
    (verdict,) = ask(agent, proposal("search"), snapshots=(snapshot("cart"),))
    assert verdict.decision is Decision.DENY


def test_a_service_outside_the_fleet_is_denied_even_with_a_snapshot():
    (verdict,) = ask(validator(), proposal("stranger"), snapshots=(snapshot("stranger"),))
    assert not verdict.findings[0].evaluated
    assert "not in the fleet file" in verdict.findings[0].reason


def test_what_an_unseen_service_was_last_seen_to_have_still_counts_against_the_budget():
    agent = validator(total=34 * MIB)
    assert ask(agent, resize("cart", 16, 18))[0].decision is Decision.ALLOW
    alone = (snapshot("cart"),)
    assert ask(agent, resize("cart", 16, 18), snapshots=alone)[0].decision is Decision.ALLOW
    assert ask(agent, resize("cart", 16, 20), snapshots=alone)[0].denied_by == ("the-budget-is-never-exceeded",)


def test_without_a_declared_total_memory_once_given_may_be_taken_again():
    # Given a fleet without a total that was found with 16 MiB each, of which one has given 4 MiB
    after = (snapshot("cart"), snapshot("search", maxmemory_bytes=12 * MIB))

    def ask_for(mib, found_bytes=32 * MIB):
        return ask(validator(), resize("cart", 16, mib), snapshots=after, budget_bytes=found_bytes)[0]

    # Then the other may have just these
    assert ask_for(20).decision is Decision.ALLOW
    assert ask_for(21).denied_by == ("the-budget-is-never-exceeded",)
    # And nothing where nobody knows what was found
    assert ask_for(20, found_bytes=None).denied_by == ("the-budget-is-never-exceeded",)
