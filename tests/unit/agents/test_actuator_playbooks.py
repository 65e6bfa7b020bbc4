"""Playbooks as the actuator carries them out: what is refused, what stops them, what is written to the file."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agents.recovery import PERSIST
from cachewarden import machine as m
from cachewarden.baseline import Baseline
from cachewarden.messages import ExecutionState
from cachewarden.protocol import CancelExecution
from tests.unit.agents.actuator_world import (
    FENCE_EVICTED,
    KNOBS,
    LOST,
    LOST_BUT_DONE,
    MIB,
    REFUSED,
    SETTINGS,
    T0,
    UNAVAILABLE,
    World,
    change,
    order,
    proposal,
)

TUNE = proposal(change("maxmemory-samples", 10), playbook="tune")
REENCODE = proposal(
    change("hash-max-listpack-entries", 512), playbook="reencode", cost={"keys_touched": 5_000.0}, service="pages"
)
TO_LFU = proposal(
    change("maxmemory-policy", "allkeys-lfu"),
    change("maxmemory", 40 * MIB, 40 * MIB),
    playbook="keep_hot_set",
    cost={"room_bytes": 6 * MIB},
)
REWRITTEN = proposal(change("maxmemory", 80 * MIB), playbook="grow", service="pages")


def failing(kind, fault, times=1, after=0):
    """Fail the effects of a kind, from number `after` on, so many times."""
    seen = []

    def faults(_number, effect):
        if not isinstance(effect, kind):
            return None
        seen.append(effect)
        return fault if after < len(seen) <= after + times else None

    return faults


def played(wanted, faults=None, ratio=0.95, **order_fields):
    world = World(faults) if faults else World()
    cache = world.caches[wanted.service]
    cache.ratio = lambda _: ratio
    cache.passes_per_round = 3
    world.tell(order(wanted, **order_fields))
    return world.run()


# --- tune -------------------------------------------------------------------------------------------------------------


def test_a_knob_that_the_server_does_not_take_is_found_out_by_trying_and_nothing_is_changed():
    world = played(TUNE, failing(m.WriteKnobs, REFUSED))
    assert world.last.state is ExecutionState.ABANDONED
    assert "nothing had been applied" in world.last.reason
    assert "rollback_intended" not in world.kinds


def test_a_value_that_is_refused_after_the_probe_has_changed_nothing_either():
    world = played(TUNE, failing(m.WriteKnobs, REFUSED, after=1))
    assert world.last.state is ExecutionState.ABANDONED
    assert world.cache.knobs == KNOBS


def test_the_probe_sets_what_is_there():
    world = played(TUNE)
    assert world.last.state is ExecutionState.KEPT
    assert world.written == [{"maxmemory-samples": "5"}, {"maxmemory-samples": "10"}]


# --- keep_hot_set -----------------------------------------------------------------------------------------------------


def test_pressure_returns_only_after_the_counters_were_looked_at():
    world = played(TO_LFU)
    assert world.last.state is ExecutionState.KEPT
    order_of = [type(e).__name__ for e in world.performed]
    assert order_of.index("TouchHotKeys") < order_of.index("MeasureSpread")
    sizes = [int(w["maxmemory"]) for w in world.written]
    assert min(sizes) == 34 * MIB
    assert sizes[-1] == 40 * MIB
    assert world.cache.knobs["maxmemory"] == str(40 * MIB)


def test_hot_keys_that_do_not_outrank_new_ones_take_the_switch_back():
    world = World()
    world.cache.ratio = lambda _: 0.95
    world._do_MeasureSpread = lambda e: m.SpreadMeasured(ref=e.ref, service=e.service, examined=100, above=90)
    world.tell(order(TO_LFU))
    world.run()
    assert world.last.state is ExecutionState.ROLLED_BACK
    assert "90 of 100 hot keys" in world.last.reason
    assert world.cache.knobs == KNOBS


def test_counters_that_cannot_be_read_take_the_switch_back():
    world = played(TO_LFU, failing(m.MeasureSpread, REFUSED))
    assert world.last.state is ExecutionState.ROLLED_BACK
    assert world.cache.knobs == KNOBS


def test_room_that_cannot_be_made_leaves_the_policy_as_it_was():
    world = World()
    world.cache.evicts = False
    world.tell(order(TO_LFU))
    world.run()
    assert world.last.state is ExecutionState.ROLLED_BACK
    assert world.cache.knobs == KNOBS
    assert not world.cache.touches


def test_steps_down_wait_until_evictions_are_no_burst():
    world = World()
    storm = iter(range(0, 10**9, 50_000))
    calm_at = T0 + 4_000
    plain = world.cache.observe

    def observe(service, now_ms):
        seen = plain(service, now_ms)
        return replace(seen, info={**seen.info, "evicted_keys": str(next(storm) if now_ms < calm_at else 10**9)})

    world.cache.observe = observe
    wanted = proposal(change("maxmemory-policy", "allkeys-lru"), change("maxmemory", 35 * MIB), playbook="shrink")
    world.tell(order(wanted, baseline=Baseline(evicted_per_s=10.0, misses_per_s=100.0)))
    world.run(3_500, until=lambda: False)
    assert len(world.written) == 1
    world.run(until=lambda: bool(world.reports) and world.last.state is ExecutionState.OBSERVING)
    assert world.now_ms > calm_at


# --- reencode ---------------------------------------------------------------------------------------------------------


def test_keys_are_stored_again_pass_by_pass_with_a_look_at_the_cache_in_between():
    world = played(REENCODE)
    assert world.last.state is ExecutionState.KEPT
    passes = [e for e in world.performed if isinstance(e, m.ReencodeKeys)]
    assert [p.cursor for p in passes] == [0, 1, 2]
    applied = [r.payload for r in world.journal if r.kind == "step_applied"][-1]
    assert (applied["examined"], applied["reencoded"], applied["complete"]) == (3_000, 30, True)


def test_no_more_keys_are_looked_at_than_the_proposal_was_permitted():
    world = World()
    world.caches["pages"].passes_per_round = 100
    world.tell(order(replace(REENCODE, cost={"keys_touched": 2_500.0})))
    world.run()
    passes = [e.max_keys for e in world.performed if isinstance(e, m.ReencodeKeys)]
    assert passes == [1_000, 1_000, 500]


def test_a_guardrail_stops_the_passes_and_takes_the_thresholds_back():
    world = World()
    cache = world.caches["pages"]
    cache.passes_per_round = 100
    world.tell(order(REENCODE))
    world.run(until=lambda: world.count(m.ReencodeKeys) == 2)
    world.run(300, until=lambda: False)
    cache.refused = 500
    world.run()
    assert world.last.state is ExecutionState.ROLLED_BACK
    assert "while keys were stored again" in world.last.reason
    assert world.count(m.ReencodeKeys) < 6
    assert cache.knobs == KNOBS


@pytest.mark.parametrize("fault", [LOST, LOST_BUT_DONE, UNAVAILABLE, FENCE_EVICTED])
def test_a_pass_that_nobody_answered_for_is_done_again(fault):
    world = played(REENCODE, failing(m.ReencodeKeys, fault, after=1))
    assert world.last.state is ExecutionState.KEPT, world.last.reason


def test_a_pass_that_is_refused_takes_the_thresholds_back():
    world = played(REENCODE, failing(m.ReencodeKeys, REFUSED))
    assert world.last.state is ExecutionState.ROLLED_BACK
    assert world.caches["pages"].knobs == KNOBS


def test_keys_are_never_stored_again_where_the_owner_does_not_permit_it():
    world = played(replace(REENCODE, service="sessions"))
    assert world.last.state is ExecutionState.ABANDONED
    assert "reencode: true" in world.last.reason
    assert not world.written


# --- The server's file ------------------------------------------------------------------------------------------------


def test_a_kept_change_is_written_to_the_servers_file_where_its_owner_permits_it():
    world = played(REWRITTEN)
    assert world.last.state is ExecutionState.KEPT
    assert world.caches["pages"].file["maxmemory"] == str(80 * MIB)
    assert world.journal[-1].payload["persisted"] == {"rewritten": True, "reason": ""}


def test_without_permission_nothing_is_rewritten_and_the_record_says_why():
    world = played(replace(REWRITTEN, service="sessions"))
    assert world.last.state is ExecutionState.KEPT
    assert not world.count(m.RewriteConfig)
    assert "config_rewrite: true" in world.journal[-1].payload["persisted"]["reason"]


@pytest.mark.parametrize("fault", [REFUSED, LOST, UNAVAILABLE])
def test_a_file_that_cannot_be_rewritten_is_told_and_the_change_stays(fault):
    world = played(REWRITTEN, failing(m.RewriteConfig, fault))
    assert world.last.state is ExecutionState.KEPT
    assert world.journal[-1].payload["persisted"]["rewritten"] is False
    assert world.journal[-1].payload["persisted"]["reason"]


def test_a_change_that_is_taken_back_is_never_written_to_the_file():
    world = played(REWRITTEN, ratio=0.60)
    assert world.last.state is ExecutionState.ROLLED_BACK
    assert not world.count(m.RewriteConfig)


def announced(world: World) -> bool:
    """Whether a rewrite of the file was announced and its record is not durable yet."""
    newest = world.performed[-1]
    return isinstance(newest, m.Record) and newest.payload.get("what", {}).get("kind") == PERSIST


@pytest.mark.parametrize("sent", [False, True])
def test_a_kill_before_the_last_record_takes_the_change_back_and_begins_no_rewrite(sent):
    world = World()
    world.tell(order(REWRITTEN))
    world.run(until=lambda: bool(world.count(m.RewriteConfig)) if sent else announced(world))
    before = world.count(m.RewriteConfig)
    world.tell(CancelExecution(service="*", reason="kill switch"))
    world.run()
    assert world.last.state is ExecutionState.ROLLED_BACK
    assert world.caches["pages"].knobs["maxmemory"] == str(40 * MIB)
    # What had left already is put right: the file holds the old values again.
    assert world.count(m.RewriteConfig) == (before + 1 if sent else 0)
    assert (world.caches["pages"].file or {}).get("maxmemory") == (str(40 * MIB) if sent else None)


def test_a_file_that_may_hold_the_new_values_is_rewritten_when_they_are_taken_back_after_all():
    world = World()
    cache = world.caches["pages"]
    world.tell(order(REWRITTEN))
    world.run(until=lambda: world.count(m.RewriteConfig) == 1)
    assert cache.file["maxmemory"] == str(80 * MIB)
    # The process dies before the record; the next life observes afresh, and the traffic is another.
    world.start()
    cache.ratio = lambda _: 0.60
    world.run()
    assert world.last.state is ExecutionState.ROLLED_BACK
    assert cache.file == KNOBS


# --- The twin ---------------------------------------------------------------------------------------------------------


TWIN = Baseline(control="pages", control_hit_ratio=0.80, control_parts=((1_000, 200),) * 4, control_knobs=KNOBS)


def observed_with_twin(own, twin, touch=None):
    world = World()
    world.cache.ratio = lambda _: own
    world.caches["pages"].ratio = lambda _: twin
    world.tell(order(proposal(change("maxmemory-policy", "allkeys-lru")), baseline=TWIN))
    if touch:
        world.run(until=lambda: bool(world.reports) and world.last.state is ExecutionState.OBSERVING)
        touch(world)
    return world.run()


def test_a_gain_that_the_unchanged_twin_has_too_is_taken_back():
    world = observed_with_twin(0.95, 0.95)
    assert world.last.state is ExecutionState.ROLLED_BACK
    assert "twin" in world.last.reason


def test_a_fall_that_the_unchanged_twin_has_too_is_not_blamed_and_the_gain_beyond_it_counts():
    world = observed_with_twin(0.65, 0.50)
    assert world.last.state is ExecutionState.KEPT, world.last.reason
    assert world.last.realised_gain == pytest.approx(0.15, abs=0.01)
    assert world.journal[-1].payload["effect"]["gain"]["value"] == pytest.approx(0.15, abs=0.01)


def test_a_twin_that_is_changed_meanwhile_is_no_control_any_more():
    world = observed_with_twin(0.95, 0.95, lambda w: w.caches["pages"].knobs.update({"maxmemory": str(9 * MIB)}))
    seen = [r.payload for r in world.journal if r.kind == "observed"]
    assert seen[0]["control_drift"] is None
    assert world.last.state is ExecutionState.KEPT


def test_a_twin_that_does_not_answer_ends_the_comparison_and_not_the_observation():
    def faults(_number, effect):
        return UNAVAILABLE if isinstance(effect, m.ReadCounters) and effect.service == "pages" else None

    world = World(faults)
    world.tell(order(proposal(change("maxmemory-policy", "allkeys-lru")), baseline=TWIN))
    world.run()
    assert world.last.state is ExecutionState.KEPT
    assert world.last.control_drift is None


def test_a_twin_whose_traffic_shifts_with_ours_keeps_the_comparison_good():
    world = World()
    for cache in world.caches.values():
        cache.lookups_per_s = 5_000.0
    world.cache.ratio = lambda _: 0.95
    world.caches["pages"].ratio = lambda _: 0.80
    world.tell(order(proposal(change("maxmemory-policy", "allkeys-lru")), baseline=TWIN))
    world.run()
    assert world.last.state is ExecutionState.KEPT
    assert world.last.comparable


# --- Times in which nothing is changed --------------------------------------------------------------------------------


def test_an_order_that_comes_in_a_freeze_window_is_refused():
    world = World(settings=SETTINGS.model_copy(update={"freeze": "daily 00:00 - 24:00"}))
    world.tell(order(TUNE))
    world.run(1_000, until=lambda: False)
    assert not world.written
    assert "frozen" in world.journal[-1].payload["reason"]
