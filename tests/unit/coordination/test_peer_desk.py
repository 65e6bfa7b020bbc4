"""What the coordinator may do while it is not known what other agents hold."""

from __future__ import annotations

import json

import pytest

from agents.consensus import Consensus
from cachewarden.claims import UNREAD_BOARD
from cachewarden.machine import EffectFailed, Received, SetTimer, Started, TimerFired
from cachewarden.messages import Execution, ExecutionState, ResolutionOutcome
from cachewarden.peer_input import PeersRead, ReadPeers
from cachewarden.ports import BOARD_AREAS, BoardPage
from cachewarden.protocol import Settle
from coordination.blackboard_records import knowledge_item, parse_knowledge
from coordination.fleet_memory import FleetMemory
from coordination.peer_desk import PeerDesk
from tests.unit.agents.settlements import verdict
from tests.unit.policy.builders import SETTINGS, fleet, proposal, service

NOW = 1_800_000_000_000
FLEET = fleet(service("cart"), service("pages"))
BOUND_MS = 3 * SETTINGS.blackboard_poll_ms + int(SETTINGS.redis_timeout * 1000)


def item(item_id, *, agent, **content):
    record = knowledge_item(
        item_id=item_id,
        space="performance",
        agent_id=agent,
        knowledge_type="cache_optimization_plan",
        content=content,
        at_ms=NOW,
        ttl_ms=600_000,
    )
    return parse_knowledge(json.dumps(record))


class Life:
    """One life of a desk and what its looks bring."""

    def __init__(self, poll_ms=SETTINGS.blackboard_poll_ms, **settings):
        self.settings = SETTINGS.model_copy(update={"blackboard_poll_ms": poll_ms} | settings)
        self.memory = FleetMemory(FLEET, self.settings)
        self.desk = PeerDesk(FLEET, self.settings)
        self.desk.step(Started(), self.memory, NOW)

    def look(self, now_ms=NOW, *, fails=False, cursor="", records=()):
        [read] = [
            e for e in self.desk.step(TimerFired(ref="peers:poll"), self.memory, now_ms) if isinstance(e, ReadPeers)
        ]
        if fails:
            event = EffectFailed(ref=read.ref, effect="ReadPeers", kind="BlackboardUnavailable", reason="r")
        else:
            pages = {area: BoardPage(records=(), cursor=cursor, bad=0) for area in BOARD_AREAS}
            pages["knowledge:performance"] = BoardPage(records=tuple(records), cursor=cursor, bad=0)
            event = PeersRead(ref=read.ref, pages=pages)
        return next_look(self.desk.step(event, self.memory, now_ms))

    def looks(self, count):
        """Return when the look after each of so many is due."""
        return [due for _ in range(count) for due in self.look()]

    def holder(self, now_ms=NOW):
        return self.desk.holder_of(proposal("cart"), self.memory, now_ms)


def test_before_the_first_whole_look_everything_is_held_and_after_it_nothing():
    life = Life()
    assert life.holder() == UNREAD_BOARD
    assert {i.service for i in life.memory.state(NOW, 0, "idle", NOW).intents} == {"cart", "pages"}
    life.look(cursor="5")
    assert life.holder() == UNREAD_BOARD
    life.look()
    assert (life.holder(), life.desk.intents(NOW)) == (None, ())


def test_a_blackboard_that_was_never_readable_is_not_clear():
    life = Life()
    life.look(fails=True)
    assert life.holder() == UNREAD_BOARD


def test_a_short_outage_holds_nothing_and_a_long_one_everything_until_a_whole_round():
    life = Life()
    life.look()
    life.look(NOW + 1, fails=True)
    assert life.holder(NOW + BOUND_MS) is None
    assert life.holder(NOW + BOUND_MS + 1) == UNREAD_BOARD
    later = NOW + BOUND_MS + 2
    life.look(later, cursor="5")
    assert life.holder(later) == UNREAD_BOARD
    life.look(later)
    assert life.holder(later) is None


def test_a_look_that_never_ends_is_an_outage_too():
    life = Life()
    life.look()
    life.desk.step(TimerFired(ref="peers:poll"), life.memory, NOW + 5_000)
    assert life.holder(NOW + BOUND_MS + 1) == UNREAD_BOARD


def test_who_does_not_poll_runs_without_a_blackboard():
    life = Life(poll_ms=0)
    assert (life.holder(), life.desk.intents(NOW)) == (None, ())


def test_ours_waits_for_the_blackboard_and_is_told_the_way_out():
    life, given = Life(), proposal("cart")
    question = Settle(
        cycle=1,
        proposals=(given,),
        verdicts=(verdict(given),),
        history={},
        memory_bytes={},
        intents=life.desk.intents(given.created_at_ms),
        budget_bytes=None,
    )
    [reply] = Consensus(FLEET, life.settings).step(
        Received(sender="coordinator", message=question), given.created_at_ms
    )
    [resolution] = reply.message.resolutions
    assert resolution.outcome is ResolutionOutcome.WAIT
    assert "cannot be read" in resolution.reason
    assert "BLACKBOARD_POLL_MS=0" in resolution.reason


def test_where_there_are_too_many_plans_those_that_are_being_carried_out_are_kept():
    life = Life()
    crowd = [item(f"n{n}", agent="loud", status="planned", priority=1, service="pages") for n in range(600)]
    late = item("z", agent="zealous", status="in_progress", priority=5, service="cart")
    life.look(records=(*crowd, late))
    assert life.holder() == "zealous"


def test_what_peers_say_that_they_set_is_known_as_the_server_reads_it_for_as_long_as_the_plan_counts():
    life = Life()
    changes = [{"knob": "maxmemory", "before": "32mb", "after": "64mb"}]
    kept = item("k", agent="tuner", status="completed", service="cart", changes=changes)
    begun, undone = (
        item("u", agent="other", status=status, service="pages", changes=changes)
        for status in ("in_progress", "rolled_back")
    )
    whole = item("w", agent="vague", status="in_progress", service="pages")
    life.look(records=(begun,))
    assert life.desk.announced(NOW) == {("pages", "maxmemory", str(64 << 20)): "other"}
    life.look(records=(kept, undone, whole))
    assert life.desk.announced(NOW) == {
        ("cart", "maxmemory", str(64 << 20)): "tuner",
        ("pages", "maxmemory", str(32 << 20)): "other",
    }
    assert life.desk.announced(NOW + 600_000) == {}


def stages(*statuses):
    """What is announced after looks at a plan that goes through `statuses`."""
    life = Life()
    for status in statuses:
        changes = [{"knob": "maxmemory-samples", "before": "5", "after": "7"}]
        life.look(records=(item("p", agent="tuner", status=status, service="cart", changes=changes),))
    return {value for _, _, value in life.desk.announced(NOW)}


@pytest.mark.parametrize("status", ["", "proposed", "pending", "planned", "approved", "waiting"])
def test_a_plan_that_is_only_wanted_has_set_nothing(status: str):
    assert stages(status) == set()
    assert stages("in_progress", status, "failed") == set()


@pytest.mark.parametrize("status", ["rejected", "denied", "withdrawn", "advised", "skipped", "rolled_back", "failed"])
def test_a_plan_that_ended_without_having_been_carried_out_has_put_nothing_back(status: str):
    assert stages(status) == set()
    assert stages("approved", status) == set()


@pytest.mark.parametrize("status", ["rolled_back", "reverted", "failed", "aborted"])
def test_a_plan_that_was_carried_out_and_given_up_puts_the_old_value_back(status: str):
    assert stages("in_progress", status) == {"5"}
    assert stages("in_progress", "completed", status) == {"5"}
    assert stages("in_progress", status, status) == {"5"}


def test_a_plan_that_was_carried_out_and_ended_otherwise_puts_nothing_back():
    assert stages("in_progress", "denied") == set()


def next_look(effects):
    return [e.due_ms for e in effects if isinstance(e, SetTimer) and e.ref == "peers:poll"]


def test_after_any_number_of_empty_looks_the_first_plan_holds_and_its_end_frees():
    life = Life()
    for _ in range(12):
        life.look()
    assert life.holder() is None
    plan = item("p", agent="tuner", status="in_progress", priority=5, service="cart")
    life.look(records=(plan,))
    assert life.holder() == "tuner"
    life.look()
    assert life.holder() is None
    life.look()
    assert life.holder() is None
    life.look(records=(plan,))
    assert life.holder() == "tuner"


def test_from_the_beginning_of_a_change_on_no_look_is_left_out():
    life = Life()
    for _ in range(12):
        life.look()
    change = Execution(
        execution_id="e",
        proposal=proposal("cart"),
        state=ExecutionState.OBSERVING,
        started_at_ms=NOW,
        updated_at_ms=NOW,
    )
    life.memory.note_execution(change, NOW)
    due = next_look(life.desk.note_execution(change, life.memory, NOW))
    assert due == [NOW + SETTINGS.blackboard_poll_ms]
    for _ in range(12):
        [read] = [e for e in life.desk.step(TimerFired(ref="peers:poll"), life.memory, NOW) if isinstance(e, ReadPeers)]
        empty = {area: BoardPage(records=(), cursor="", bad=0) for area in BOARD_AREAS}
        seen = life.desk.step(PeersRead(ref=read.ref, pages=empty), life.memory, NOW)
        assert next_look(seen) == [NOW + SETTINGS.blackboard_poll_ms]


def test_where_peers_may_vote_no_look_is_ever_left_out():
    life = Life(ballot_voters="judge:validator:1.0")
    for _ in range(20):
        assert life.look() == [NOW + SETTINGS.blackboard_poll_ms]
    assert Life().looks(20)[-1] == NOW + SETTINGS.idle_factor * SETTINGS.blackboard_poll_ms
