"""A change is announced, then the blackboard is read once more, and only then it begins: two sides never both miss."""

from __future__ import annotations

import itertools

import pytest

from cachewarden.machine import Effect, EffectFailed, Publish, SetTimer, Started, TimerFired
from cachewarden.messages import AGENT_ID, Resolution, ResolutionOutcome
from cachewarden.peer_input import IntentPublished, PeersRead, PublishIntent, ReadPeers, peer_input_performers
from cachewarden.protocol import Execute
from coordination.blackboard_records import PLAN_TYPES, knowledge_item, time_ms
from coordination.fleet_memory import FleetMemory
from coordination.peer_desk import PeerDesk
from simulation.fake_blackboard import FakeBlackboard
from tests.unit.agents.settlements import verdict
from tests.unit.policy.builders import SETTINGS, fleet, proposal, resize, service, snapshot

NOW = 1_800_000_000_000
FLEET = fleet(service("cart"), service("pages"), total_memory_bytes=40 << 20)


def order(given) -> Execute:
    go = Resolution(
        proposal_id=given.proposal_id,
        service=given.service,
        outcome=ResolutionOutcome.GO,
        reason="nothing is in its way",
    )
    return Execute(
        proposal=given, verdict=verdict(given), resolution=go, hit_ratio_before=0.8, latency_us_p99_before=None
    )


def done(work):
    """Run a coroutine of the fake, which never waits."""
    try:
        work.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("the fake has waited")


class Side:
    """A desk on a blackboard in memory. Effects wait until a test lets them happen."""

    def __init__(self, poll_ms: int = 5_000) -> None:
        self.board = FakeBlackboard()
        settings = SETTINGS.model_copy(update={"blackboard_poll_ms": poll_ms})
        self.memory = FleetMemory(FLEET, settings)
        self.memory.note_snapshots([snapshot(name) for name in FLEET.names], {}, NOW)
        self.desk = PeerDesk(FLEET, settings)
        self.now = NOW
        self.take(self.desk.step(Started(), self.memory, NOW))
        self.waiting: list[Effect] = []
        if poll_ms:
            self.fire("peers:poll")
            self.happen(ReadPeers)

    def take(self, effects) -> None:
        self.waiting = [*getattr(self, "waiting", []), *effects]

    def fire(self, ref: str) -> None:
        self.take(self.desk.step(TimerFired(ref=ref), self.memory, self.now))

    def announce(self, given) -> None:
        self.take(self.desk.announce(order(given), self.now))

    def happen(self, kind: type, event=None) -> None:
        """Let the oldest waiting effect of a kind happen and be answered."""
        effect = next(e for e in self.waiting if isinstance(e, kind))
        self.waiting.remove(effect)
        event = event or done(peer_input_performers(self.board)[kind](effect))
        self.take(self.desk.step(event, self.memory, self.now))

    def fail(self, kind: type) -> None:
        effect = next(e for e in self.waiting if isinstance(e, kind))
        self.happen(kind, EffectFailed(ref=effect.ref, effect=kind.__name__, kind="BlackboardUnavailable", reason="r"))

    def polls(self) -> list[int]:
        return [e.due_ms for e in self.waiting if isinstance(e, SetTimer) and e.ref == "peers:poll"]

    def look(self) -> None:
        self.fire("peers:poll")
        self.happen(ReadPeers)

    def verdicts(self) -> list[str | None]:
        """Return for each order that has left the gate why it must not begin; None where it may."""
        found = []
        for passed in self.desk.take_passed():
            holder = self.desk.holder_of(passed.order.proposal, self.memory, self.now)
            found.append(passed.trouble or holder)
        return found

    def peer_writes(self, name: str = "peer", **content) -> None:
        content = {"affected_services": ["cart"], "status": "planned"} | content
        item = knowledge_item(
            item_id=f"plan-of-{name}",
            space="performance",
            agent_id=name,
            knowledge_type="cache_optimization_plan",
            content=content,
            at_ms=self.now,
            ttl_ms=600_000,
        )
        done(self.board.add_knowledge(item))

    def peer_sees_us(self) -> bool:
        items = done(self.board.query_knowledge("performance"))
        return any(i["agent_id"] == AGENT_ID and i["content"]["status"] == "approved" for i in items)


def test_nothing_begins_before_the_announcement_is_confirmed_and_a_look_after_it_is_over():
    side = Side()
    side.announce(proposal("cart"))
    assert side.verdicts() == []
    side.look()
    assert side.verdicts() == []
    side.happen(PublishIntent)
    assert side.polls()[-1] == NOW
    assert side.verdicts() == []
    side.look()
    assert side.verdicts() == [None]
    assert side.verdicts() == []


def test_the_announcement_is_the_plan_itself_with_when_it_was_wanted_first():
    side = Side()
    side.announce(proposal("cart"))
    side.happen(PublishIntent)
    items = done(side.board.query_knowledge("performance"))
    assert {i["knowledge_type"] for i in items} == set(PLAN_TYPES)
    assert {(i["content"]["plan_id"], i["content"]["status"]) for i in items} == {("p-cart", "approved")}
    assert {time_ms(i["content"]["since"]) for i in items} == {NOW}


def test_a_look_that_was_under_way_when_it_was_announced_does_not_count():
    side = Side()
    side.announce(proposal("cart"))
    side.fire("peers:poll")
    side.happen(PublishIntent)
    side.happen(ReadPeers)
    assert side.verdicts() == []
    assert side.polls()[-1] == NOW
    side.look()
    assert side.verdicts() == [None]


def test_a_round_that_began_before_it_was_announced_does_not_count():
    side = Side()
    for number in range(600):
        side.peer_writes(f"peer-{number:03}", affected_services=["pages"], changes=[])
    side.look()
    side.announce(proposal("cart"))
    side.happen(PublishIntent)
    side.look()
    assert side.verdicts() == []
    side.look()
    assert side.verdicts() == []
    side.look()
    assert side.verdicts() == [None]


STEPS = [("ours", 0), ("ours", 1), ("theirs", 0), ("theirs", 1)]
ORDERS = [o for o in itertools.permutations(STEPS) if o.index(STEPS[0]) < o.index(STEPS[1])]
ORDERS = [o for o in ORDERS if o.index(STEPS[2]) < o.index(STEPS[3])]


@pytest.mark.parametrize("steps", ORDERS, ids=lambda o: "-".join(f"{who}{n}" for who, n in o))
def test_in_whichever_order_two_sides_write_and_look_at_least_one_sees_the_other(steps):
    side = Side()
    side.announce(proposal("cart"))
    theirs_free = None
    for step in steps:
        if step == ("ours", 0):
            side.happen(PublishIntent)
        elif step == ("ours", 1):
            side.look()
        elif step == ("theirs", 0):
            side.peer_writes()
        else:
            theirs_free = not side.peer_sees_us()
    [ours] = side.verdicts()
    assert not (ours is None and theirs_free), "both have begun"
    assert len(ORDERS) == 6


def test_memory_that_a_peer_claims_between_our_decision_and_the_look_is_seen_too():
    side = Side()
    given = resize("cart", 16, 20)
    side.announce(given)
    side.peer_writes(affected_services=["pages"], changes=[], memory_delta_bytes=6 << 20)
    side.happen(PublishIntent)
    side.look()
    assert side.verdicts() == ["peer"]


def test_what_cannot_be_announced_or_not_be_read_again_does_not_begin():
    side = Side()
    side.announce(proposal("cart"))
    side.fail(PublishIntent)
    assert side.verdicts() == ["it could not be announced on the blackboard"]
    side.announce(proposal("cart"))
    side.happen(PublishIntent)
    side.fire("peers:poll")
    side.fail(ReadPeers)
    assert side.verdicts() == ["the blackboard could not be read again"]


def test_what_has_waited_for_ten_seconds_does_not_begin_and_a_late_answer_changes_nothing():
    side = Side()
    side.announce(proposal("cart"))
    [late] = [e for e in side.waiting if isinstance(e, SetTimer) and e.ref == "release:late:p-cart"]
    assert late.due_ms == NOW + 10_000
    side.fire(late.ref)
    assert side.verdicts() == ["the blackboard was not read again in time"]
    side.happen(PublishIntent, IntentPublished(ref="release:publish:p-cart"))
    side.look()
    assert side.verdicts() == []


def test_who_runs_without_a_blackboard_announces_nothing():
    side = Side(poll_ms=0)
    side.announce(proposal("cart"))
    assert not any(isinstance(e, (PublishIntent, Publish)) for e in side.waiting)
    assert side.verdicts() == [None]


def test_looks_that_find_nothing_new_keep_their_pace():
    side = Side()
    side.waiting.clear()
    side.look()
    assert side.polls() == [NOW + 5_000]
    assert not any(isinstance(e, PeersRead) for e in side.waiting)
