"""The actuator on a bad day: everything fails at every place, and the cache is never left half changed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.execution_rollback import UNDO_TRIES_MAX
from cachewarden import machine as m
from cachewarden.messages import ExecutionState
from cachewarden.protocol import CancelExecution
from tests.unit.agents.actuator_world import (
    FENCE_EVICTED,
    JOURNAL_DOUBTFUL,
    JOURNAL_DOWN,
    KNOBS,
    LOST,
    LOST_AND_LATE,
    LOST_BUT_DONE,
    MIB,
    REFUSED,
    SETTINGS,
    T0,
    UNAVAILABLE,
    Fault,
    World,
    order,
)
from tests.unit.agents.test_actuator_crashes import RUNS, assert_whole

SWITCH = RUNS["direct"]
SHRINK = RUNS["shrink"]


def nth(kind, number, fault, times=1):
    """Fail the effects `number`.. (from 1) of one kind."""
    seen = [0]

    def faults(_index, effect):
        if not isinstance(effect, kind) or effect.ref.endswith("#renew"):
            return None
        seen[0] += 1
        return fault if number <= seen[0] < number + times else None

    return faults


def play(wanted, faults, ratio=0.95):
    world = World(faults)
    world.cache.ratio = lambda c: ratio
    world.tell(order(wanted))
    return world.run(3_600_000)


# --- The journal -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [JOURNAL_DOWN, JOURNAL_DOUBTFUL])
def test_an_intention_that_cannot_be_recorded_touches_nothing(fault):
    world = play(SWITCH, nth(m.Record, 1, fault))
    assert world.last.state is ExecutionState.ABANDONED
    assert world.written == []
    assert world.kinds[-1] == "change_abandoned"


@pytest.mark.parametrize("number", range(2, 6))
def test_a_journal_that_comes_back_lets_the_change_go_on(number):
    world = play(SWITCH, nth(m.Record, number, JOURNAL_DOWN, times=4))
    assert world.last.state is ExecutionState.KEPT


def test_nothing_is_written_while_the_journal_is_down_and_others_are_told_why():
    world = World(nth(m.Record, 3, JOURNAL_DOWN, times=10_000))
    world.tell(order(SHRINK))
    world.run(600_000, until=lambda: False)
    assert len(world.written) == 1
    assert world.last.state is ExecutionState.STEPPING
    assert "waits for the journal" in world.last.reason
    world.faults = lambda *_: None
    world.run()
    assert world.last.state is ExecutionState.KEPT


def test_a_rollback_waits_for_the_journal_too():
    world = World(lambda _i, e: JOURNAL_DOWN if isinstance(e, m.Record) and e.kind == "rollback_intended" else None)
    world.cache.ratio = lambda c: 0.60
    world.tell(order(SWITCH))
    world.run(120_000, until=lambda: False)
    assert len(world.written) == 1
    assert world.last.state is ExecutionState.ROLLING_BACK
    world.faults = lambda *_: None
    world.run()
    assert world.last.state is ExecutionState.ROLLED_BACK


# --- The lease and the fence -----------------------------------------------------------------------------------------


def test_a_lease_that_somebody_else_holds_ends_the_change_before_it_begins():
    world = World()
    world.foreign_lease = "other"
    world.tell(order(SWITCH))
    world.run()
    assert world.last.state is ExecutionState.ABANDONED
    assert "held by `other`" in world.last.reason
    assert world.written == []


@pytest.mark.parametrize("after_ms", [500, 5_000])
def test_a_lease_that_is_lost_on_the_way_stops_all_writes(after_ms):
    world = World()
    world.cache.ratio = lambda c: 0.60 if world.now_ms > T0 + 5_500 else 0.95
    world.tell(order(SHRINK))
    world.run(after_ms, until=lambda: False)
    world.foreign_lease = "other"
    written = len(world.written)
    world.run(60_000)
    # Whoever has the cache ends the change; here he does not, so it stays open, and nothing is recorded by us.
    assert not world.last.state.final
    assert not {"change_abandoned", "rollback_intended"} & set(world.kinds)
    # What left before the loss could be known is fenced off by the cache itself.
    assert len(world.written) - written <= SETTINGS.lease_ttl_ms // 3 // 500 + 1


def test_a_newer_writer_in_the_cache_itself_stops_all_writes():
    world = World()
    world.tell(order(SHRINK))
    world.run(until=lambda: len(world.written) == 2)
    world.cache.fence = 99
    world.run()
    assert world.last.state is ExecutionState.ABANDONED
    assert "superseded" in world.last.reason
    assert len(world.written) == 3


def test_a_fence_that_was_evicted_is_written_again():
    world = play(SHRINK, nth(m.WriteKnobs, 3, FENCE_EVICTED))
    assert world.last.state is ExecutionState.KEPT


def test_a_fence_that_is_evicted_again_and_again_takes_the_change_back():
    world = play(SHRINK, nth(m.WriteKnobs, 3, FENCE_EVICTED, times=6))
    assert world.last.state is ExecutionState.ROLLED_BACK
    assert "evicted again and again" in world.last.reason
    assert world.cache.knobs == KNOBS


def test_a_lease_that_lapsed_is_taken_again_and_the_values_are_verified_before_the_next_write():
    world = World()
    world.faults = lambda _i, e: (
        Fault("BlackboardUnavailable")
        if isinstance(e, m.AcquireLease) and T0 + 600 < world.now_ms < T0 + 20_000
        else JOURNAL_DOWN
        if isinstance(e, m.Record) and T0 + 600 < world.now_ms < T0 + 20_000
        else None
    )
    world.tell(order(SHRINK))
    world.run()
    assert world.last.state is ExecutionState.KEPT
    # Nobody else had it in between, so it is the same tenure.
    assert world.cache.fence == 1
    assert world.count(m.ReadKnobs) >= 2


def test_a_change_whose_lease_was_anothers_meanwhile_goes_by_what_the_journal_says_under_the_new_one():
    world = World()
    world.tell(order(SHRINK))
    world.run(until=lambda: len(world.written) == 2)
    world.foreign_lease = "other"
    world.run(10_000, until=lambda: False)
    # The other one has taken it over, put everything back, said so, and let go.
    world.cache.knobs = dict(KNOBS)
    world.append("change_rolled_back", epoch=7, reason="put back")
    world.foreign_lease, world._lease["sessions"] = None, ("other", 7, 0)
    world._epochs["sessions"] = world.cache.fence = 7
    written = len(world.written)
    world.run(120_000, until=lambda: world.last.state.final)
    assert world.last.state is ExecutionState.ROLLED_BACK
    world.run(60_000, until=lambda: False)
    assert len(world.written) == written
    assert world.kinds.count("change_rolled_back") == 1


def test_a_change_that_nobody_ended_meanwhile_is_taken_up_again_under_the_new_lease():
    world = World()
    world.tell(order(SHRINK))
    world.run(until=lambda: len(world.written) == 2)
    world.foreign_lease = "other"
    world.run(10_000, until=lambda: False)
    world.foreign_lease, world._lease["sessions"] = None, ("other", 7, 0)
    world._epochs["sessions"] = world.cache.fence = 7
    world.run()
    assert world.last.state is ExecutionState.ROLLED_BACK
    assert world.cache.knobs == KNOBS
    assert world.cache.fence == 8


def test_nothing_new_begins_on_a_cache_whose_last_change_nobody_has_ended_yet():
    world = World()
    world.tell(order(SHRINK))
    world.run(until=lambda: len(world.written) == 2)
    world.foreign_lease = "other"
    world.run(10_000, until=lambda: False)
    # The other one lets go without a word, and the next order comes before anybody has looked.
    world.foreign_lease, world._lease["sessions"] = None, ("other", 7, 0)
    world._epochs["sessions"] = world.cache.fence = 7
    world.tell(order(replace(SWITCH, proposal_id="p-next")))
    world.run(until=lambda: any(r.proposal.proposal_id == "p-next" and r.state.final for r in world.reports))
    refused = next(r for r in reversed(world.reports) if r.proposal.proposal_id == "p-next")
    assert refused.state is ExecutionState.ABANDONED
    assert "has not ended yet" in refused.reason
    world.run(until=lambda: world.last.proposal.proposal_id == "p-1" and world.last.state.final)
    assert world.cache.knobs == KNOBS


def test_a_record_that_the_journal_refuses_under_an_old_lease_is_the_last_that_we_say():
    world = World()
    world.faults = lambda _i, e: (
        Fault("LeaseLost", details={"service": "sessions"})
        if isinstance(e, m.Record) and len(world.written) == 2
        else None
    )
    world.foreign_lease = None
    world.tell(order(SHRINK))
    world.run(until=lambda: len(world.written) == 2)
    world.foreign_lease = "other"
    world.run(60_000)
    assert len(world.written) == 2
    assert not world.last.state.final


def test_values_that_changed_while_the_lease_had_lapsed_belong_to_somebody_else():
    world = World()
    world.faults = lambda _i, e: (
        Fault("BlackboardUnavailable")
        if isinstance(e, m.AcquireLease) and T0 + 600 < world.now_ms < T0 + 20_000
        else JOURNAL_DOWN
        if isinstance(e, m.Record) and T0 + 600 < world.now_ms < T0 + 20_000
        else None
    )
    world.tell(order(SHRINK))
    world.run(15_000, until=lambda: False)
    world.cache.knobs["maxmemory"] = str(77 * MIB)
    world.run()
    assert world.last.state is ExecutionState.ABANDONED
    assert world.cache.knobs["maxmemory"] == str(77 * MIB)


def test_no_step_is_written_under_a_lease_that_has_run_out():
    world = World()
    world.faults = lambda _i, e: (
        Fault("BlackboardUnavailable")
        if isinstance(e, m.AcquireLease) and T0 + 600 < world.now_ms < T0 + 60_000
        else JOURNAL_DOWN
        if isinstance(e, m.Record) and T0 + 600 < world.now_ms < T0 + 20_000
        else None
    )
    world.tell(order(SHRINK))
    world.run(55_000, until=lambda: False)
    assert len(world.written) <= 2
    world.run()
    assert world.last.state in (ExecutionState.KEPT, ExecutionState.ROLLED_BACK)
    assert world.cache.fence == 1


# --- Writes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [LOST, LOST_BUT_DONE, LOST_AND_LATE, UNAVAILABLE])
@pytest.mark.parametrize("number", [1, 2, 5])
def test_a_write_with_an_unknown_outcome_is_read_back_and_the_change_goes_on(fault, number):
    world = play(SHRINK, nth(m.WriteKnobs, number, fault))
    world.run(5_000, until=lambda: False)
    assert world.last.state is ExecutionState.KEPT
    assert_whole(world, SHRINK)


def test_an_unknown_write_that_did_arrive_is_not_repeated():
    assert len(play(SWITCH, nth(m.WriteKnobs, 1, LOST_BUT_DONE)).written) == 1


def test_an_unknown_write_is_repeated_once_and_no_more():
    world = play(SWITCH, nth(m.WriteKnobs, 1, LOST, times=2))
    assert world.last.state is ExecutionState.ABANDONED
    assert len(world.written) == 2


def test_an_unknown_write_over_which_somebody_else_wrote_is_left_alone():
    world = World(nth(m.WriteKnobs, 1, LOST))
    world.tell(order(SWITCH))
    world.run(until=lambda: len(world.written) == 1)
    world.cache.knobs["maxmemory-policy"] = "volatile-ttl"
    world.run()
    assert world.last.state is ExecutionState.ABANDONED
    assert "somebody else" in world.last.reason
    assert world.cache.knobs["maxmemory-policy"] == "volatile-ttl"


@pytest.mark.parametrize("number", range(1, 6))
def test_a_refusal_at_any_step_takes_back_what_was_done_so_far(number):
    world = play(SHRINK, nth(m.WriteKnobs, number, REFUSED))
    assert world.last.state is (ExecutionState.ABANDONED if number == 1 else ExecutionState.ROLLED_BACK)
    assert "NOPERM" in world.last.reason
    assert world.cache.knobs == KNOBS


def test_a_server_that_stores_another_value_than_was_written_takes_the_change_back():
    world = World()
    honest = world._do_WriteKnobs

    def rounded(effect):
        answer = honest(effect)
        if {c.after for c in effect.changes} == {"allkeys-lru"}:
            world.cache.knobs["maxmemory-policy"] = "volatile-lru"
            return m.KnobsWritten(ref=effect.ref, service=effect.service, values={"maxmemory-policy": "volatile-lru"})
        return answer

    world._do_WriteKnobs = rounded
    world.tell(order(SWITCH))
    world.run()
    assert world.last.state is ExecutionState.ROLLED_BACK
    assert "`maxmemory-policy` is `volatile-lru` instead of `allkeys-lru`" in world.last.reason
    assert world.cache.knobs == KNOBS


@pytest.mark.parametrize("kind", [m.CollectHotKeys, m.TouchHotKeys])
def test_a_hot_set_that_cannot_be_carried_over_takes_the_switch_back(kind):
    world = play(RUNS["keep_hot_set"], nth(kind, 1, REFUSED))
    assert world.last.state is (ExecutionState.ABANDONED if kind is m.CollectHotKeys else ExecutionState.ROLLED_BACK)
    assert world.cache.knobs == KNOBS


@pytest.mark.parametrize("kind", [m.ReadKnobs, m.ReadCounters])
@pytest.mark.parametrize("fault", [UNAVAILABLE, LOST, REFUSED])
def test_a_cache_that_cannot_be_looked_at_is_not_written_to(kind, fault):
    world = play(SWITCH, nth(kind, 1, fault))
    assert world.last.state is ExecutionState.ABANDONED
    assert world.written == []


def test_a_cache_that_vanishes_while_it_is_observed_is_taken_back_when_it_returns():
    world = World()
    world.faults = lambda _i, e: (
        UNAVAILABLE
        if isinstance(e, (m.ReadCounters, m.WriteKnobs, m.ReadKnobs)) and T0 + 3_000 < world.now_ms < T0 + 120_000
        else None
    )
    world.tell(order(SWITCH))
    world.run()
    assert world.last.state is ExecutionState.ROLLED_BACK
    assert "could not be shown" in world.last.reason
    assert world.cache.knobs == KNOBS


# --- Taking back -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [LOST, LOST_BUT_DONE, LOST_AND_LATE, UNAVAILABLE, REFUSED, FENCE_EVICTED])
def test_a_rollback_is_tried_again_until_it_is_done(fault):
    world = play(SWITCH, nth(m.WriteKnobs, 2, fault, times=3), ratio=0.60)
    world.run(5_000, until=lambda: False)
    assert world.last.state is ExecutionState.ROLLED_BACK
    assert world.cache.knobs == KNOBS


def test_a_rollback_that_cannot_be_done_fails_loudly_with_knob_wanted_and_observed():
    world = play(SWITCH, nth(m.WriteKnobs, 2, REFUSED, times=1_000), ratio=0.60)
    assert world.last.state is ExecutionState.FAILED
    assert "`maxmemory-policy` of `sessions` should be `noeviction` again but is `allkeys-lru`" in world.last.reason
    assert world.kinds[-1] == "rollback_failed"
    assert world.journal[-1].payload["failures"][0]["observed"] == "allkeys-lru"
    assert len(world.written) == UNDO_TRIES_MAX + 2


def test_a_failed_rollback_is_not_tried_again_behind_a_persons_back():
    world = play(SWITCH, nth(m.WriteKnobs, 2, REFUSED, times=1_000), ratio=0.60)
    written = len(world.written)
    world.start()
    world.run(60_000, until=lambda: False)
    assert len(world.written) == written


def test_a_lease_that_is_lost_while_taking_back_stops_the_rollback():
    world = World(nth(m.WriteKnobs, 2, REFUSED, times=1_000))
    world.cache.ratio = lambda c: 0.60
    world.tell(order(SWITCH))
    world.run(until=lambda: bool(world.reports) and world.last.state is ExecutionState.ROLLING_BACK)
    world.foreign_lease = "other"
    world.run(until=lambda: not world.actuator._runs)
    tried = len(world.written)
    world.run(60_000)
    assert len(world.written) == tried
    assert world.last.state is ExecutionState.ROLLING_BACK
    assert "change_rolled_back" not in world.kinds


# --- Anything --------------------------------------------------------------------------------------------------------

FAULTS = {
    m.Record: (JOURNAL_DOWN, JOURNAL_DOUBTFUL),
    m.WriteKnobs: (REFUSED, UNAVAILABLE, LOST, LOST_BUT_DONE, LOST_AND_LATE, FENCE_EVICTED),
    m.AcquireLease: (UNAVAILABLE, Fault("TargetTimeout", applied=True, unknown=True)),
    m.ExtendTtls: (REFUSED, UNAVAILABLE, LOST, LOST_BUT_DONE, LOST_AND_LATE, FENCE_EVICTED),
    m.TouchHotKeys: (REFUSED, UNAVAILABLE, LOST, LOST_BUT_DONE, FENCE_EVICTED),
    m.ReadKnobs: (UNAVAILABLE, LOST, REFUSED),
    m.ReadCounters: (UNAVAILABLE, LOST, REFUSED),
    m.CollectHotKeys: (UNAVAILABLE, LOST, REFUSED),
}


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(
    name=st.sampled_from(sorted(RUNS)),
    ratio=st.sampled_from((0.95, 0.60)),
    script=st.lists(st.integers(0, 11), max_size=60),
    crash_at=st.none() | st.integers(0, 120),
    cancel_at=st.none() | st.integers(0, 40),
)
def test_no_schedule_of_failures_leaves_a_half_changed_cache_once_they_stop(name, ratio, script, crash_at, cancel_at):
    def faults(index, effect):
        possible = FAULTS.get(type(effect), ())
        number = script[index] if index < len(script) else 11
        return possible[number] if number < len(possible) else None

    world = World(faults, crash_at)
    world.cache.ratio = lambda c: ratio
    world.tell(order(RUNS[name]))
    if cancel_at is not None:
        world.run(600_000, until=lambda: len(world.performed) >= cancel_at)
        if _open(world):
            world.tell(CancelExecution(service="*", reason="stop"))
    world.run(3_600_000, until=lambda: bool(world.reports) and world.last.state.final and not _open(world))
    world.run(3_000, until=lambda: False)
    if world.reports and world.last.state is ExecutionState.FAILED:
        assert world.kinds[-1] == "rollback_failed"
        return
    assert_whole(world, RUNS[name])


def _open(world):
    return any(not r.governed for r in world.actuator._runs.values())


def test_a_stop_that_comes_while_the_lease_is_being_renewed_after_a_lost_answer_takes_the_change_back():
    world = World(nth(m.WriteKnobs, 1, LOST_BUT_DONE))
    world.tell(order(SWITCH))
    world.run(until=lambda: len(world.written) == 1)
    world.run(until=lambda: isinstance(world.performed[-1], m.AcquireLease))
    world.tell(CancelExecution(service="sessions", reason="stop"))
    world.run()
    assert world.last.state is ExecutionState.ROLLED_BACK
    assert world.cache.knobs == KNOBS


def test_a_stop_while_a_write_is_on_its_way_takes_back_even_what_arrives_late():
    world = World(nth(m.WriteKnobs, 1, LOST_AND_LATE))
    world.tell(order(SWITCH))
    world.run(until=lambda: len(world.written) == 1)
    world.tell(CancelExecution(service="sessions", reason="stop"))
    world.run(2_000, until=lambda: False)
    assert world.last.state is ExecutionState.ROLLED_BACK
    assert world.cache.knobs == KNOBS


def test_a_ttl_pass_that_arrives_late_is_not_left_behind_by_the_rollback():
    world = play(RUNS["ttl_rule"], nth(m.ExtendTtls, 1, LOST_AND_LATE))
    world.run(2_000, until=lambda: False)
    assert world.last.state is ExecutionState.ROLLED_BACK
    assert world.cache.extended == set()


def test_a_value_that_somebody_sets_between_two_tries_to_take_back_is_left_alone():
    world = World(nth(m.WriteKnobs, 2, REFUSED))
    world.cache.ratio = lambda c: 0.60
    world.tell(order(SWITCH))
    world.run(until=lambda: len(world.written) == 2)
    world.cache.knobs["maxmemory-policy"] = "volatile-ttl"
    world.run()
    assert world.last.state is ExecutionState.ABANDONED
    assert "not of our making" in world.last.reason
    assert world.cache.knobs["maxmemory-policy"] == "volatile-ttl"


def test_nothing_is_taken_back_under_a_lease_that_has_run_out():
    world = World()
    world.cache.ratio = lambda c: 0.60 if world.now_ms > T0 + 10_000 else 0.95
    world.faults = lambda _i, e: (
        Fault("BlackboardUnavailable")
        if isinstance(e, m.AcquireLease) and T0 + 3_000 < world.now_ms < T0 + 60_000
        else None
    )
    world.tell(order(SWITCH))
    world.run()
    assert world.last.state is ExecutionState.ROLLED_BACK
    assert world.now_ms > T0 + 60_000
    assert world.cache.fence == 1
