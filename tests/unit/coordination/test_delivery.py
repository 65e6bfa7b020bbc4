"""Delivery to the Integrity Service: whatever fails, nothing is lost and nothing overtakes anything."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cachewarden.circuit import CircuitState
from cachewarden.machine import EffectFailed, JournalRead, SetTimer, Started
from cachewarden.peering import CursorClaim, CursorClaimed, CursorMoved, Deliver, Delivered, Mark
from coordination.delivery import Delivery, Phase
from tests.unit.coordination.delivery_world import START_MS, World

HOUR_MS = 3_600_000


def test_every_record_arrives_once_and_in_order():
    world = World()
    world.write(37)
    world.start()
    world.run(5_000)
    assert world.received == world.expected
    assert world.cursors.marks["integrity"].seq == 37


def test_what_is_written_later_arrives_too():
    world = World()
    world.start()
    world.run(2_000)
    for _ in range(5):
        world.write(3)
        world.run(1_500)
    assert world.received == world.expected


def test_an_event_holds_our_id_and_no_word_of_the_content():
    world = World()
    world.write(1)
    world.start()
    world.run(1_000)
    (event,) = world.integrity.events
    assert event["request_id"] == event["metadata"]["request_id"] == world.expected[0]
    assert "payload" not in event["metadata"]


@pytest.mark.parametrize("fault", ["dead", "error", "refused", "wrong_hash"])
def test_while_the_service_does_not_take_a_record_the_next_is_not_sent(fault):
    world = World(fault=lambda: fault)
    world.write(5)
    delivery = world.start()
    world.run(HOUR_MS)
    assert world.received == []
    assert "integrity" not in world.cursors.marks
    health = delivery.health(world.clock.at_ms)
    assert not health.healthy
    assert health.lag_records == 5
    assert health.lag_ms == HOUR_MS
    assert "5 records wait" in health.detail
    assert health.violations == (health.failures if fault == "wrong_hash" else 0)


def test_a_dead_service_is_asked_at_most_about_once_a_minute():
    world = World(fault=lambda: "dead")
    world.write(1)
    world.start()
    world.run(HOUR_MS)
    assert 40 <= world.integrity.calls <= 75


def test_after_a_long_outage_all_arrives_within_two_minutes():
    world = World()
    down_until_ms = world.clock.at_ms + HOUR_MS
    world.integrity.fault = lambda: "dead" if world.clock.at_ms < down_until_ms else "ok"
    world.write(300)
    delivery = world.start()
    world.run(HOUR_MS + 120_000)
    assert world.received == world.expected
    assert delivery.circuit.state is CircuitState.CLOSED
    assert delivery.health(world.clock.at_ms).healthy


def test_an_answer_that_was_cut_off_repeats_the_record_under_the_same_id():
    world = World()
    faults = iter(["cut_after", "ok"])
    world.integrity.fault = lambda: next(faults, "ok")
    world.write(3)
    world.start()
    world.run(10_000)
    assert world.received == [world.expected[0], *world.expected]


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    up_ms=st.integers(20, 10_000),
    crashes=st.lists(st.integers(1, 60_000), max_size=6),
    kinds=st.lists(st.sampled_from(["dead", "error", "refused", "wrong_hash", "cut_after"]), min_size=1, max_size=4),
)
@example(seed=1, up_ms=20, crashes=[1, 2, 3], kinds=["cut_after"])
def test_a_service_that_is_up_a_tenth_of_the_time_loses_nothing_and_reorders_nothing(seed, up_ms, crashes, kinds):
    world = World(seed)
    period_ms = 10 * up_ms
    dice = world.dice
    world.integrity.fault = lambda: "ok" if (world.clock.at_ms % period_ms) < up_ms else dice.choice(kinds)
    world.write(20)
    world.start()
    for pause_ms in crashes:
        world.run(pause_ms)
        world.write(1)
        world.crash()
        world.start()
    world.run(10 * period_ms)
    # From here on it is up, so that the end is reached whatever the dice say.
    world.integrity.fault = lambda: "ok"
    world.run(180_000)
    assert world.first_seen == world.expected
    assert world.cursors.marks["integrity"].seq == len(world.expected)


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32))
def test_of_ten_calls_nine_failing_at_random_nothing_is_lost_and_order_is_kept_to_the_letter(seed):
    world = World(seed)
    world.integrity.fault = lambda: "ok" if world.dice.random() < 0.1 else "error"
    world.write(5)
    world.start()
    # A day, or until it is done: what polls for nothing takes time here too.
    for _ in range(24 * 12):
        world.run(HOUR_MS // 12)
        if len(world.received) == len(world.expected):
            break
    # None was done without being confirmed, so there are no repetitions either.
    assert world.received == world.expected


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32), moments=st.lists(st.integers(0, 300), min_size=1, max_size=20))
def test_crashes_at_any_moment_repeat_at_most_the_record_that_was_on_its_way(seed, moments):
    world = World(seed)
    world.write(30)
    world.start()
    for pause_ms in moments:
        world.run(pause_ms)
        world.crash()
        world.start()
    world.run(300_000)
    assert world.first_seen == world.expected
    assert len(world.received) <= len(world.expected) + len(moments)
    # A repetition follows directly behind its first arrival: nothing newer was let by.
    places = [world.expected.index(name) for name in world.received]
    assert places == sorted(places)


def test_of_two_deployments_one_delivers_and_the_other_takes_over_when_it_dies():
    world = World()
    world.write(5)
    world.start("one")
    world.start("two")
    world.run(3_000)
    assert world.received == world.expected
    world.crash("one")
    world.write(5)
    world.run(90_000)
    assert world.received == world.expected
    assert world.lives["two"].health(world.clock.at_ms).healthy


def test_one_that_was_paused_and_comes_back_moves_nothing():
    world = World()
    world.write(4)
    delivery = Delivery()
    (claim, *_) = delivery.step(Started(), START_MS)
    effects = delivery.step(
        CursorClaimed(ref=claim.ref, claim=CursorClaim(granted=True, mark=Mark(), holder="one")), START_MS
    )
    effects = delivery.step(JournalRead(ref=effects[0].ref, records=tuple(world.journal.records)), START_MS)
    assert isinstance(effects[0], Deliver)
    effects = delivery.step(Delivered(ref=effects[0].ref, event_id="e"), START_MS + HOUR_MS)
    effects = delivery.step(CursorMoved(ref=effects[0].ref, moved=False), START_MS + HOUR_MS)
    assert [type(e) for e in effects] == [SetTimer]
    assert delivery.phase is Phase.RESTING
    assert delivery.mark == Mark()


def test_a_move_whose_answer_was_lost_is_read_back_and_not_repeated():
    world = World()
    world.write(3)
    world.cursors.lose_answer = True
    world.start()
    world.run(10_000)
    assert world.received == world.expected


def test_without_the_server_of_the_mark_nothing_is_sent():
    world = World()
    world.write(3)
    world.cursors.reachable = False
    delivery = world.start()
    world.run(60_000)
    assert world.received == []
    assert delivery.health(world.clock.at_ms).detail.startswith("the journal's server does not answer")
    world.cursors.reachable = True
    world.run(10_000)
    assert world.received == world.expected
    assert delivery.health(world.clock.at_ms).healthy


def test_a_journal_that_was_begun_anew_is_delivered_from_its_beginning():
    world = World()
    world.write(10)
    delivery = world.start()
    world.run(3_000)
    before = list(world.received)
    world.journal.records.clear()
    world.write(4, kind="resolved")
    world.run(5_000)
    assert delivery.rewound == 1
    assert "delivered anew" in delivery.health(world.clock.at_ms).detail
    assert world.received == [*before, *world.expected]


def test_a_journal_that_is_gone_for_a_moment_changes_nothing():
    world = World()
    world.write(5)
    world.start()
    world.run(3_000)
    world.journal.available = False
    world.run(3_000)
    world.journal.available = True
    world.write(2)
    world.run(5_000)
    assert world.received == world.expected


def test_late_and_foreign_answers_change_nothing():
    delivery = Delivery()
    (claim, *_) = delivery.step(Started(), START_MS)
    for event in (
        Delivered(ref=claim.ref, event_id="e"),
        CursorMoved(ref=claim.ref, moved=True),
        JournalRead(ref="another", records=()),
        EffectFailed(ref="another", effect="Deliver", kind="PeerUnavailable", reason="x"),
        object(),
    ):
        assert delivery.step(event, START_MS) == ()
    assert delivery.phase is Phase.CLAIMING


def test_its_lag_is_zero_when_all_is_delivered_and_not_known_before_it_has_read_its_mark():
    delivery = Delivery()
    assert delivery.health(START_MS).lag_records is None
    world = World()
    world.write(2)
    delivery = world.start()
    world.run(10_000)
    health = delivery.health(world.clock.at_ms)
    assert (health.lag_records, health.lag_ms, health.done) == (0, 0, 2)


def test_it_can_be_sent_to_another_process():
    assert pickle.loads(pickle.dumps(Delivery())).phase is Phase.RESTING
