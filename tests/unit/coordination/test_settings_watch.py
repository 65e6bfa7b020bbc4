"""What we last set: still there, lost with a restart, or set by somebody else."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from agents.obstacles import find_obstacle
from agents.planner import plan_fleet
from agents.reapplying import reapplied
from cachewarden.codec import canonical_json
from cachewarden.machine import Record
from cachewarden.messages import AuditRecord, Execution, ExecutionState, ResolutionOutcome
from cachewarden.protocol import History, PlanFleet
from coordination.fleet_memory import FleetMemory
from coordination.settings_watch import SettingsWatch
from tests.unit.agents.actuator_world import FLEET, MIB, SETTINGS, T0, change, proposal
from tests.unit.agents.settlements import Table, verdict
from tests.unit.policy.builders import snapshot as built

HOUR_MS = 3_600_000
REST_MS = 24 * HOUR_MS
OURS = proposal(change("maxmemory-policy", "allkeys-lru"), change("maxmemory", 50 * MIB))
AFTER = {"maxmemory-policy": "allkeys-lru", "maxmemory": str(50 * MIB), "maxmemory-samples": "5"}
BEFORE = {"maxmemory-policy": "noeviction", "maxmemory": str(40 * MIB), "maxmemory-samples": "5"}


def seen(knobs, run_id="r1", **other):
    return built("sessions", **{"knobs": knobs, "run_id": run_id, "role": "master", "taken_at_ms": T0 + 1, **other})


def kept(wanted=OURS, state=ExecutionState.KEPT):
    return Execution(
        execution_id="e", proposal=wanted, state=state, started_at_ms=T0, updated_at_ms=T0, step=1, steps=1
    )


def record(seq, kind, payload, subject="p-1"):
    payload = json.loads(canonical_json(payload))
    return AuditRecord(
        seq=seq, at_ms=T0 + seq, kind=kind, agent="a", service="sessions", subject_id=subject, payload=payload
    )


class Watched:
    """A watch with its looks; `records` is what it wanted written down."""

    def __init__(self, *looks, wanted=OURS):
        self.watch = SettingsWatch(REST_MS)
        self.now_ms = T0
        self.records: list[Record] = []
        if wanted is not None:
            self.watch.note_execution(kept(wanted))
        for look in looks:
            self.look(look)

    def look(self, snapshot, busy=(), announced=None):
        self.now_ms += 10_000
        self.records += self.watch.look([snapshot], frozenset(busy), self.now_ms, announced or {})
        return self

    @property
    def kinds(self):
        return [r.kind for r in self.records]

    @property
    def lost(self):
        return {one.knob: one.value for one in self.watch.lost("sessions")}


def test_a_look_that_began_before_a_change_of_ours_ended_says_nothing_of_other_hands():
    world = Watched(seen(AFTER))
    world.watch.note_execution(
        replace(
            kept(proposal(change("maxmemory-samples", 7), proposal_id="p-2"), ExecutionState.ROLLED_BACK),
            updated_at_ms=T0 + 60_000,
        )
    )
    world.look(seen({**AFTER, "maxmemory-samples": "7"}, taken_at_ms=T0 + 59_000))
    for _ in range(3):
        world.look(seen(AFTER, taken_at_ms=T0 + 61_000))
    assert world.records == []


def test_a_suspicion_that_was_none_is_lifted():
    world = Watched(seen(AFTER), seen({**AFTER, "maxmemory-samples": "9"}), seen(AFTER))
    assert (world.records, world.watch.by_hand("sessions")) == ([], {})


def test_a_kept_change_that_is_told_again_does_not_undo_a_hand():
    by_hand = {**AFTER, "maxmemory": str(60 * MIB)}
    world = Watched(seen(AFTER), seen(by_hand), seen(by_hand))
    assert "maxmemory" in world.watch.by_hand("sessions")
    world.watch.note_execution(kept())
    assert "maxmemory" in world.watch.by_hand("sessions")


def test_settings_that_stand_are_no_news():
    world = Watched(*[seen(AFTER)] * 3)
    assert (world.records, world.lost, world.watch.by_hand("sessions")) == ([], {}, {})


def test_a_value_that_a_person_sets_is_left_alone_at_once_and_told_once_it_is_sure():
    theirs = {**AFTER, "maxmemory": str(60 * MIB)}
    world = Watched(seen(AFTER), seen(theirs))
    assert set(world.watch.by_hand("sessions")) == {"maxmemory"}
    assert world.records == []
    world.look(seen(theirs)).look(seen(theirs))
    assert world.kinds == ["setting_changed_by_hand"]
    assert world.records[0].payload == {
        "knob": "maxmemory", "was": str(50 * MIB), "now": str(60 * MIB), "proposal_id": "p-1"
    }  # fmt: skip


BY_PEER = {**AFTER, "maxmemory": str(60 * MIB)}
ANNOUNCED = {("sessions", "maxmemory", str(60 * MIB)): "tuner"}


def test_what_a_peer_had_announced_is_the_peers_and_rests_for_nobody():
    world = Watched(seen(AFTER)).look(seen(BY_PEER), announced=ANNOUNCED).look(seen(BY_PEER), announced=ANNOUNCED)
    assert world.kinds == ["setting_changed_by_peer"]
    assert world.records[0].payload["peer"] == "tuner"
    assert (world.watch.by_hand("sessions"), world.watch.by_peer("sessions")) == ({}, {"maxmemory": "tuner"})
    # It is the last word: what we had set is not ours to put back after a restart.
    assert world.look(seen(BEFORE, "r2")).lost.keys() == {"maxmemory-policy"}


def test_a_value_that_was_seen_before_its_announcement_is_the_peers_once_that_is_read():
    world = Watched(seen(AFTER), seen(BY_PEER))
    assert set(world.watch.by_hand("sessions")) == {"maxmemory"}
    world.look(seen(BY_PEER), announced=ANNOUNCED)
    assert (world.kinds, world.watch.by_hand("sessions")) == (["setting_changed_by_peer"], {})


@pytest.mark.parametrize(
    "other", [("pages", "maxmemory", str(60 * MIB)), ("sessions", "maxmemory", "1"), ("sessions", "maxclients", "1")]
)
def test_an_announcement_of_something_else_credits_nobody(other):
    world = Watched(seen(AFTER))
    for _ in range(2):
        world.look(seen(BY_PEER), announced={other: "tuner"})
    assert world.kinds == ["setting_changed_by_hand"]


def test_a_rest_that_a_person_has_set_off_outlives_what_a_peer_sets_after_it():
    theirs = {**AFTER, "maxmemory": str(45 * MIB)}
    world = Watched(seen(AFTER), seen(theirs), seen(theirs)).look(seen(BY_PEER), announced=ANNOUNCED)
    assert set(world.watch.by_hand("sessions")) == {"maxmemory"}


THEIRS = {**AFTER, "maxmemory": str(45 * MIB)}


def test_a_rest_that_a_person_has_set_off_outlives_a_suspicion_that_turns_out_to_be_a_peer():
    world = Watched(seen(AFTER), seen(THEIRS), seen(THEIRS))
    since_ms = world.watch.by_hand("sessions")["maxmemory"]
    world.look(seen(BY_PEER)).look(seen(BY_PEER), announced=ANNOUNCED)
    assert world.kinds == ["setting_changed_by_hand", "setting_changed_by_peer"]
    assert world.watch.by_hand("sessions") == {"maxmemory": since_ms}


def test_a_rest_that_a_person_has_set_off_outlives_a_suspicion_that_was_none():
    world = Watched(seen(AFTER), seen(THEIRS), seen(THEIRS), seen(BY_PEER), seen(THEIRS))
    assert (world.kinds, set(world.watch.by_hand("sessions"))) == (["setting_changed_by_hand"], {"maxmemory"})


def test_a_suspicion_of_one_value_after_another_still_ends_with_the_announcement():
    world = Watched(seen(AFTER), seen(THEIRS), seen(BY_PEER)).look(seen(BY_PEER), announced=ANNOUNCED)
    assert (world.kinds, world.watch.by_hand("sessions")) == (["setting_changed_by_peer"], {})


def test_a_new_life_knows_from_the_journal_what_a_peer_has_set():
    memory = FleetMemory(FLEET, SETTINGS)
    memory.replay(
        [INTENDED, KEPT, record(3, "setting_changed_by_peer", {"knob": "maxmemory", "peer": "t"}, "sessions")]
    )
    memory.watch.look([seen(BEFORE, "r2")], frozenset(), T0 + HOUR_MS)
    history = memory.history(T0 + HOUR_MS)["sessions"]
    assert ({one.knob for one in history.lost}, history.by_peer) == ({"maxmemory-policy"}, {"maxmemory": "t"})


def test_a_knob_that_we_never_set_is_respected_too():
    theirs = {**AFTER, "maxmemory-samples": "10"}
    world = Watched(seen(AFTER), seen(theirs), seen(theirs), wanted=None)
    assert world.kinds == ["setting_changed_by_hand"]
    assert world.records[0].payload["proposal_id"] is None


def test_what_another_deployment_has_set_is_no_hand_once_its_record_is_read():
    theirs = {**AFTER, "maxmemory-samples": "10"}
    world = Watched(seen(AFTER), seen(theirs))
    world.watch.note_execution(kept(proposal(change("maxmemory-samples", 10), proposal_id="p-theirs")))
    world.look(seen(theirs)).look(seen(theirs))
    assert (world.kinds, world.watch.by_hand("sessions")) == ([], {})


def test_values_of_a_change_that_is_under_way_are_the_actuators_business():
    world = Watched(seen(AFTER))
    world.watch.note_execution(kept(proposal(change("maxmemory", 30 * MIB, 50 * MIB)), ExecutionState.STEPPING))
    world.look(seen({**AFTER, "maxmemory": str(43 * MIB)}), busy=("sessions",))
    world.look(seen(AFTER))
    assert world.kinds == []


def test_what_a_restart_took_away_is_lost_and_may_be_set_again():
    world = Watched(seen(AFTER), seen(BEFORE, "r2"), seen(BEFORE, "r2"))
    assert world.kinds == ["setting_lost", "setting_lost"]
    assert world.lost == {"maxmemory-policy": "allkeys-lru", "maxmemory": str(50 * MIB)}
    assert world.watch.by_hand("sessions") == {}


def test_after_two_changes_a_restart_brings_the_oldest_value_back_and_that_is_no_hand():
    world = Watched(seen(AFTER))
    world.watch.note_execution(kept(proposal(change("maxmemory", 55 * MIB, 50 * MIB), proposal_id="p-2")))
    world.look(seen({**AFTER, "maxmemory": str(55 * MIB)})).look(seen(BEFORE, "r2"))
    assert world.lost["maxmemory"] == str(55 * MIB)


def test_a_file_that_somebody_edited_is_a_hand_although_the_server_restarted():
    edited = {**AFTER, "maxmemory": str(20 * MIB)}
    world = Watched(seen(AFTER), seen(edited, "r2"), seen(edited, "r2"))
    assert world.kinds == ["setting_changed_by_hand"]
    assert world.lost == {}


def test_what_a_person_set_before_the_restart_ends_our_claim():
    theirs = {**AFTER, "maxmemory": str(60 * MIB)}
    world = Watched(seen(AFTER), seen(theirs), seen(theirs), seen(BEFORE, "r2"))
    assert world.lost == {"maxmemory-policy": "allkeys-lru"}


def test_what_a_person_sets_after_the_restart_ends_our_claim():
    world = Watched(seen(AFTER), seen(BEFORE, "r2"))
    theirs = {**BEFORE, "maxmemory": str(45 * MIB)}
    world.look(seen(theirs, "r2")).look(seen(theirs, "r2"))
    assert world.lost == {"maxmemory-policy": "allkeys-lru"}


def test_a_newer_decision_of_ours_takes_the_place_of_the_older_one():
    world = Watched(seen(AFTER), seen(BEFORE, "r2"))
    world.watch.note_execution(kept(proposal(change("maxmemory", 45 * MIB), proposal_id="p-2")))
    assert world.lost == {"maxmemory-policy": "allkeys-lru"}


def test_a_hand_is_respected_for_its_time_and_not_for_ever():
    theirs = {**AFTER, "maxmemory": str(60 * MIB)}
    world = Watched(seen(AFTER), seen(theirs), seen(theirs))
    world.now_ms += REST_MS
    assert world.look(seen(theirs)).watch.by_hand("sessions") == {}


def test_a_plan_of_a_person_that_was_carried_out_ends_the_rest():
    theirs = {**AFTER, "maxmemory": str(60 * MIB)}
    world = Watched(seen(AFTER), seen(theirs), seen(theirs))
    world.watch.note_execution(kept(proposal(change("maxmemory", 64 * MIB, 60 * MIB), proposal_id="p-3")))
    assert world.watch.by_hand("sessions") == {}


# --- A new life --------------------------------------------------------------------------------------------------------


INTENDED = record(1, "change_intended", {"proposal": OURS, "baseline": {"hit_ratio": 0.8}})
KEPT = record(2, "change_kept", {"reason": "", "run_id": "r1"})


@pytest.mark.parametrize(
    ("knobs", "run_id", "lost", "hand"),
    [
        (AFTER, "r1", set(), set()),
        (BEFORE, "r2", {"maxmemory", "maxmemory-policy"}, set()),
        (BEFORE, "r1", set(), {"maxmemory", "maxmemory-policy"}),
        ({**AFTER, "maxmemory": str(60 * MIB)}, "r2", set(), {"maxmemory"}),
    ],
)
def test_a_new_life_knows_from_the_journal_what_was_ours(knobs, run_id, lost, hand):
    memory = FleetMemory(FLEET, SETTINGS)
    memory.replay([INTENDED, KEPT])
    memory.watch.look([seen(knobs, run_id)], frozenset(), T0 + HOUR_MS)
    history = memory.history(T0 + HOUR_MS)["sessions"]
    assert {one.knob for one in history.lost} == lost
    assert set(history.by_hand) == hand


def test_a_new_life_knows_from_the_journal_what_a_person_had_set():
    by_hand = record(3, "setting_changed_by_hand", {"knob": "maxmemory"}, "sessions")
    memory = FleetMemory(FLEET, SETTINGS)
    assert "setting_changed_by_hand" in memory.replay_kinds
    memory.replay([INTENDED, KEPT, by_hand])
    memory.watch.look([seen(BEFORE, "r2")], frozenset(), T0 + HOUR_MS)
    history = memory.history(T0 + HOUR_MS)["sessions"]
    assert {one.knob for one in history.lost} == {"maxmemory-policy"}
    assert set(history.by_hand) == {"maxmemory"}


# --- What follows ------------------------------------------------------------------------------------------------------


def lost_now():
    return Watched(seen(AFTER), seen(BEFORE, "r2")).watch.lost("sessions")


def test_what_was_lost_is_proposed_again_as_it_was_decided_and_promises_nothing():
    again = reapplied(lost_now(), seen(BEFORE, "r2"), FLEET.service("sessions"), SETTINGS, T0)
    assert again is not None
    assert {(c.knob, c.before, c.after) for c in again.knob_changes} == {
        (c.knob, c.before, c.after) for c in OURS.knob_changes
    }
    assert again.reapplies == "p-1"
    assert again.prediction == OURS.prediction


def test_what_has_another_value_by_now_is_not_proposed():
    assert reapplied(lost_now(), seen(AFTER, "r2"), FLEET.service("sessions"), SETTINGS, T0) is None


def test_the_planner_puts_what_was_agreed_before_what_might_be_better():
    question = PlanFleet(
        cycle=1, snapshots=(seen(BEFORE, "r2"),), history={"sessions": History(lost=lost_now())}, memory_bytes={}
    )
    planned = plan_fleet(question, FLEET, SETTINGS, T0)
    assert [p.reapplies for p in planned.proposals] == ["p-1"]
    for hindered in (seen(BEFORE, "r2", incomplete={"loading": "x"}), replace(seen(BEFORE, "r2"), role="slave")):
        assert not plan_fleet(replace(question, snapshots=(hindered,)), FLEET, SETTINGS, T0).proposals


def obstacle(wanted, **history):
    table = Table("sessions")
    table.happened("sessions", **history)
    return find_obstacle(wanted, verdict(wanted), table.situation, SETTINGS, T0 + 1)


def test_our_planner_never_fights_a_hand_and_a_person_may_change_the_mind_through_a_plan():
    hindrance = obstacle(OURS, by_hand={"maxmemory": T0})
    assert hindrance.outcome is ResolutionOutcome.WAIT
    assert "set by hand" in hindrance.reason
    assert obstacle(OURS, by_hand={"maxmemory-samples": T0}) is None
    assert obstacle(replace(OURS, author="bob"), by_hand={"maxmemory": T0}) is None
    assert obstacle(OURS, by_hand={"maxmemory": T0 - REST_MS}) is None
