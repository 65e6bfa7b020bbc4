"""The planner: what it proposes for caches as they are found in the wild, and why it proposes nothing for others."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agents.planner import MEMORY_STEP_BYTES, Planner, plan_fleet
from cachewarden.fleet import Fleet
from cachewarden.machine import Received, Send, TimerFired
from cachewarden.messages import ActionClass, Proposal
from cachewarden.observation import Snapshot
from cachewarden.protocol import FleetPlanned, History, PlanFleet
from cachewarden.settings import CacheOptimizerSettings, load_settings
from tests.unit.agents.caches import MIB, NOW, PATTERN, fleet_of, snapshot_of, traffic, without_capture

SETTINGS: CacheOptimizerSettings = load_settings(cycle_interval_ms=5_000)

FULL = snapshot_of("api", traffic(5_000, turnover=0.8), 6 * MIB, "noeviction")
SMALL = snapshot_of("small", traffic(12_000, seed=3), 5 * MIB)
IDLE = snapshot_of("idle", traffic(1_500, rate_per_s=200, seed=4), 12 * MIB)
SHORT = snapshot_of("short", traffic(3_000, ttl_ms=15_000, seed=5), 12 * MIB, ttl_ms=15_000)


def _plan(
    fleet: Fleet, *snapshots: Snapshot, history: dict[str, History] | None = None, force: tuple[str, ...] = ()
) -> FleetPlanned:
    return plan_fleet(PlanFleet(cycle=3, snapshots=snapshots, history=history or {}, force=force), fleet, SETTINGS, NOW)


def _only(planned: FleetPlanned) -> Proposal:
    assert len(planned.proposals) == 1, planned.idle_reasons
    return planned.proposals[0]


def test_a_full_cache_that_refuses_writes_is_given_an_eviction_policy():
    proposal = _only(_plan(fleet_of("api"), FULL))
    assert [(c.knob, c.before, c.after) for c in proposal.knob_changes] == [
        ("maxmemory-policy", "noeviction", "allkeys-lru")
    ]
    assert proposal.prediction.gain.low > 0
    assert proposal.action_class is ActionClass.LOSSY
    assert "Writes are refused" in proposal.rationale


def test_a_volatile_policy_over_keys_without_ttl_is_recognised_as_refusing():
    snapshot = snapshot_of("api", traffic(5_000, turnover=0.8), 6 * MIB, "volatile-lru")
    proposal = _only(_plan(fleet_of("api"), snapshot))
    assert ("maxmemory-policy", "allkeys-lru") in [(c.knob, c.after) for c in proposal.knob_changes]


def test_ttls_far_below_the_declared_staleness_are_lengthened_but_never_beyond_it():
    proposal = _only(_plan(fleet_of("short", staleness_s=60), SHORT))
    assert [(r.pattern, r.written_ttl_ms) for r in proposal.ttl_rules] == [(PATTERN, 15_000)]
    assert 15_000 < proposal.ttl_rules[0].extended_ttl_ms <= 60_000
    assert proposal.action_class is ActionClass.REVERSIBLE
    assert proposal.prediction.gain.value > 0.03


def test_ttls_whose_owner_declared_no_staleness_are_left_alone():
    planned = _plan(fleet_of("short"), SHORT)
    assert planned.proposals == ()
    assert "short" in planned.idle_reasons


def test_a_rule_in_force_is_not_proposed_again_although_the_application_still_writes_short_ttls():
    fleet = fleet_of("short", staleness_s=60)
    rules = _only(_plan(fleet, SHORT)).ttl_rules
    lengthened = snapshot_of("short", traffic(3_000, ttl_ms=rules[0].extended_ttl_ms, seed=5), 12 * MIB, ttl_ms=15_000)
    planned = _plan(fleet, lengthened, history={"short": History(ttl_rules=rules)})
    assert planned.proposals == ()


def test_a_cache_with_room_to_spare_is_left_alone_and_the_reason_says_so():
    planned = _plan(fleet_of("idle"), IDLE)
    assert planned.proposals == ()
    assert planned.idle_reasons["idle"].startswith("nothing to change: hit ratio 0.9")


def test_memory_moves_from_the_cache_that_does_not_need_it_and_the_giver_goes_first():
    planned = _plan(fleet_of("idle", "small", total_bytes=17 * MIB), IDLE, SMALL)
    giver, taker = planned.proposals
    assert (giver.service, taker.service) == ("idle", "small")
    assert giver.memory_delta_bytes < 0 < taker.memory_delta_bytes
    assert taker.needs == (giver.proposal_id,)
    assert giver.playbook == "shrink"
    assert giver.memory_delta_bytes + taker.memory_delta_bytes <= 0


def test_what_other_sizes_would_hit_is_told_of_each_cache_that_may_change():
    fleet = fleet_of("idle", "small", total_bytes=17 * MIB)
    told = _plan(fleet, IDLE, SMALL).sizings
    assert sorted(told) == ["idle", "small"]
    small = told["small"]
    assert small.maxmemory_bytes[0] < SMALL.maxmemory_bytes < small.maxmemory_bytes[-1]
    assert list(small.maxmemory_bytes) == sorted(small.maxmemory_bytes)
    assert list(small.hit_ratio) == sorted(small.hit_ratio)
    assert list(small.low) == sorted(small.low)
    assert all(0.0 <= low <= ratio <= 1.0 for low, ratio in zip(small.low, small.hit_ratio, strict=True))
    resting = {"small": History(last_change_ms=NOW - 1_000)}
    assert sorted(_plan(fleet, IDLE, SMALL, history=resting).sizings) == ["idle"]


def test_other_sizes_are_told_under_the_policy_in_force_not_under_the_one_that_is_proposed():
    planned = _plan(fleet_of("api"), FULL)
    assert _only(planned).knob_changes
    # A full cache that refuses writes keeps what it happened to hold: no model tells other sizes of it.
    assert planned.sizings == {}


@pytest.mark.parametrize("resting", ["idle", "small"])
def test_no_memory_moves_to_or_from_a_cache_that_cools_down_since_it_would_lie_idle_until_then(resting):
    fleet = fleet_of("idle", "small", total_bytes=17 * MIB)
    changed = {resting: History(last_change_ms=NOW - 1_000)}
    assert all(p.memory_delta_bytes == 0 for p in _plan(fleet, IDLE, SMALL, history=changed).proposals)
    rested = {resting: History(last_change_ms=NOW - SETTINGS.cool_down_ms)}
    assert len(_plan(fleet, IDLE, SMALL, history=rested).proposals) == 2
    assert len(_plan(fleet, IDLE, SMALL, history=changed, force=(resting,)).proposals) == 2


def test_memory_that_nobody_holds_is_given_at_once():
    proposal = _only(_plan(fleet_of("small", total_bytes=9 * MIB), SMALL))
    assert 0 < proposal.memory_delta_bytes <= 4 * MIB
    assert proposal.needs == ()


def test_memory_of_a_cache_that_was_not_seen_this_time_is_nobody_s_to_give():
    fleet = fleet_of("api", "search", total_bytes=2 * FULL.maxmemory_bytes)
    question = PlanFleet(cycle=1, snapshots=(FULL,), history={})
    assert any(p.memory_delta_bytes > 0 for p in plan_fleet(question, fleet, SETTINGS, NOW).proposals)
    asleep = replace(question, memory_bytes=dict.fromkeys(("api", "search"), FULL.maxmemory_bytes))
    assert all(p.memory_delta_bytes == 0 for p in plan_fleet(asleep, fleet, SETTINGS, NOW).proposals)


def test_without_a_declared_total_memory_once_given_is_free_for_others_and_a_raised_limit_takes_nothing():
    question = PlanFleet(cycle=1, snapshots=(FULL,), history={})
    given = replace(question, budget_bytes=2 * FULL.maxmemory_bytes)
    assert any(p.memory_delta_bytes > 0 for p in plan_fleet(given, fleet_of("api"), SETTINGS, NOW).proposals)
    raised = replace(question, budget_bytes=FULL.maxmemory_bytes // 2)
    assert all(p.memory_delta_bytes == 0 for p in plan_fleet(raised, fleet_of("api"), SETTINGS, NOW).proposals)


def test_sizes_proposed_never_exceed_the_budget():
    snapshots = (IDLE, SMALL, FULL, SHORT)
    fleet = fleet_of("idle", "small", "api", "short", total_bytes=34 * MIB)
    planned = _plan(fleet, *snapshots)
    wanted = {s.service: s.maxmemory_bytes for s in snapshots}
    for proposal in planned.proposals:
        wanted[proposal.service] += proposal.memory_delta_bytes
        assert proposal.memory_delta_bytes == 0 or abs(proposal.memory_delta_bytes) >= MEMORY_STEP_BYTES
    assert sum(wanted.values()) <= 34 * MIB


def test_the_order_of_the_snapshots_changes_nothing():
    fleet = fleet_of("idle", "small", "api", total_bytes=22 * MIB)
    forwards, backwards = _plan(fleet, IDLE, SMALL, FULL), _plan(fleet, FULL, SMALL, IDLE)
    assert forwards == backwards


def test_the_same_question_gets_the_same_proposals():
    fleet = fleet_of("api")
    assert _plan(fleet, FULL) == _plan(fleet, FULL)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"incomplete": {"knobs": "CONFIG is denied"}}, "not enough evidence: knobs is missing (CONFIG is denied)"),
        ({"role": "slave"}, "changes go to its primary"),
        ({"hit_ratio": None}, "no lookups in the window"),
        ({"window_ms": 100}, "the window is only 0 s long yet"),
        ({"hits": 10, "misses": 3}, "not enough evidence: 13 lookups"),
        ({"resident_keys": 0}, "the cache is empty"),
    ],
)
def test_what_is_not_known_is_not_planned_for_and_the_reason_is_given(change: dict[str, object], words: str):
    planned = _plan(fleet_of("api"), replace(FULL, **change))
    assert planned.proposals == ()
    assert words in planned.idle_reasons["api"]


def test_without_captured_accesses_a_refusing_cache_gets_no_guess():
    planned = _plan(fleet_of("api"), without_capture(FULL))
    assert planned.proposals == ()
    assert planned.idle_reasons["api"].startswith("not enough evidence: ")


def test_a_service_whose_change_is_in_flight_is_left_alone():
    planned = _plan(fleet_of("api"), FULL, history={"api": History(in_flight="p-7")})
    assert planned.idle_reasons["api"] == "change p-7 is being carried out and observed"


def test_a_gain_below_the_minimum_is_no_reason_to_change():
    demanding = load_settings(cycle_interval_ms=5_000, minimum_gain=0.9)
    planned = plan_fleet(PlanFleet(cycle=1, snapshots=(FULL,), history={}), fleet_of("api"), demanding, NOW)
    assert planned.proposals == ()
    assert "but a change must promise 90.0" in planned.idle_reasons["api"]


def test_force_skips_the_minimum_gain_and_nothing_else():
    demanding = load_settings(cycle_interval_ms=5_000, minimum_gain=0.9)
    question = PlanFleet(cycle=1, snapshots=(FULL,), history={}, force=("api",))
    assert len(plan_fleet(question, fleet_of("api"), demanding, NOW).proposals) == 1
    busy = replace(question, history={"api": History(in_flight="p-7")})
    assert plan_fleet(busy, fleet_of("api"), demanding, NOW).proposals == ()


def test_every_proposal_says_what_it_rests_on_and_how_it_is_taken_back():
    for proposal in _plan(fleet_of("idle", "small", "api", total_bytes=22 * MIB), IDLE, SMALL, FULL).proposals:
        assert {"hit_ratio", "lookups_per_s", "captured_accesses"} <= {e.name for e in proposal.evidence}
        assert proposal.rollback.startswith("set back ")
        assert proposal.prediction.method
        assert proposal.prediction.settle_ms > 0
        assert proposal.expires_at_ms > proposal.created_at_ms


def test_every_observed_service_gets_a_proposal_or_a_reason():
    planned = _plan(fleet_of("idle", "small", "api", "short", total_bytes=34 * MIB), IDLE, SMALL, FULL, SHORT)
    assert {p.service for p in planned.proposals} | set(planned.idle_reasons) == {"idle", "small", "api", "short"}


def test_the_agent_answers_whoever_asked_and_ignores_everything_else():
    planner = Planner(fleet_of("api"), SETTINGS)
    (effect,) = planner.step(
        Received(sender="coordinator", message=PlanFleet(cycle=9, snapshots=(FULL,), history={})), NOW
    )
    assert isinstance(effect, Send)
    assert (effect.to, effect.message.cycle) == ("coordinator", 9)
    assert planner.step(TimerFired(ref="x"), NOW) == ()


# --- What a change will be measured against ---------------------------------------------------------------------------


def _under_way(**before: str) -> dict[str, History]:
    return {"small": History(in_flight="p-7", in_flight_before=before)}


def test_a_cache_in_the_middle_of_a_change_is_told_what_it_would_hit_without_it():
    planned = _plan(fleet_of("small"), SMALL, history=_under_way(maxmemory=str(4 * MIB)))
    (told,) = planned.counterfactuals
    assert (told.service, told.proposal_id) == ("small", "p-7")
    assert SMALL.access is not None
    # Up to the newest captured request, less than a bucket before it.
    assert 0 <= int(SMALL.access.trace.time_ms[-1]) - told.until_ms < told.bucket_ms
    hit_ratio = told.hits[-1] / told.lookups[-1]
    (larger,) = _plan(fleet_of("small"), SMALL, history=_under_way(maxmemory=str(6 * MIB))).counterfactuals
    assert hit_ratio < larger.hits[-1] / larger.lookups[-1] - 0.02


def test_whoever_is_proposed_something_is_told_as_much_with_the_order():
    planned = _plan(fleet_of("small", total_bytes=9 * MIB), SMALL)
    proposals = {p.proposal_id: p for p in planned.proposals}
    assert proposals
    assert {told.proposal_id for told in planned.counterfactuals} == set(proposals)


@pytest.mark.parametrize(
    "before",
    [{}, {"hash-max-listpack-entries": "128", "maxmemory": str(4 * MIB)}, {"maxmemory": "0"}],
    ids=["it changes TTLs as well", "a knob of which a replay knows nothing", "memory was not limited"],
)
def test_nothing_is_told_of_a_change_that_a_replay_cannot_leave_out(before: dict[str, str]):
    assert _plan(fleet_of("small"), SMALL, history=_under_way(**before)).counterfactuals == ()


def test_nothing_is_told_without_a_capture_of_the_server_or_where_keys_live_by_ttls():
    history = _under_way(maxmemory=str(4 * MIB))
    assert _plan(fleet_of("small"), without_capture(SMALL), history=history).counterfactuals == ()
    assert SMALL.access is not None
    fed = replace(SMALL, access=replace(SMALL.access, source="client feed"))
    assert _plan(fleet_of("small"), fed, history=history).counterfactuals == ()
    mortal = replace(SMALL, keys_with_ttl=SMALL.resident_keys)
    assert _plan(fleet_of("small"), mortal, history=history).counterfactuals == ()


def test_a_cache_that_is_left_alone_is_told_nothing():
    assert _plan(fleet_of("idle"), IDLE).counterfactuals == ()
