"""A change that is watched beside a replay of the same requests without it: waiting for it, ruling by it, doing without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest

from agents.replay_watch import lag_max_ms
from cachewarden import machine as m
from cachewarden.baseline import Baseline
from cachewarden.cachemodel.scoring import outcome_of, outcomes_from_records
from cachewarden.counterfactual import Counterfactual
from cachewarden.messages import AuditRecord, ExecutionState
from cachewarden.observation import Observation
from tests.unit.agents.actuator_world import SETTINGS, T0, UNAVAILABLE, World, change, order, proposal

BEFORE = Baseline(parts=((10_000, 2_000),), from_ms=T0 - 60_000, until_ms=T0)
"""A minute at 0.80 before the change."""
BUCKET_MS = 1_000
PER_BUCKET = 1_000
LAG_MS = 12_000


def replay(ratio: Callable[[int], float], until_ms: int, **other) -> Counterfactual:
    """What the requests would have hit second by second, from a minute before the change on."""
    hits = [0]
    for at_ms in range(T0 - 60_000, until_ms, BUCKET_MS):
        hits.append(hits[-1] + round(PER_BUCKET * ratio(at_ms)))
    values = {
        "service": "sessions",
        "proposal_id": "p-1",
        "from_ms": T0 - 60_000,
        "bucket_ms": BUCKET_MS,
        "lookups": tuple(PER_BUCKET * n for n in range(len(hits))),
        "hits": tuple(hits),
        "spatial_rate": 1.0,
        "distinct_keys": 5_000,
    }
    return Counterfactual(**{**values, **other})


def watched(
    own: Callable[[int], float],
    without: Callable[[int], float] | None,
    *,
    world: World | None = None,
    told_until_ms: int = 10**15,
    wanted=None,
    **other,
) -> World:
    """Carry a change out on a cache that hits `own` by the time since T0; a replay without it (`without`) is told every
    ten seconds, `LAG_MS` behind, up to `told_until_ms` after T0."""
    world = world or World()
    world.cache.ratio = lambda _: own(world.now_ms - T0)
    wanted = wanted or proposal(change("maxmemory-policy", "allkeys-lfu"))
    known = (
        None
        if without is None or "proposal_id" in other or "service" in other
        else replay(lambda at_ms: without(at_ms - T0), T0 - LAG_MS, **other)
    )
    world.tell(order(wanted, baseline=BEFORE, counterfactual=known))
    for _ in range(60):
        if world.reports and world.last.state.final:
            break
        behind_ms = world.now_ms - LAG_MS
        if without is not None and world.now_ms - T0 <= told_until_ms:
            world.tell(replay(lambda at_ms: without(at_ms - T0), behind_ms, **other))
        world.run(10_000)
    return world


def burst(since_ms: int, depth: float, level: float) -> Callable[[int], float]:
    return lambda at_ms: level - depth if at_ms >= since_ms else level


def observed(world: World) -> list[dict]:
    return [dict(r.payload) for r in world.journal if r.kind == "observed"]


def test_a_burst_in_the_traffic_takes_no_change_back_that_helps():
    without_replay = watched(burst(5_000, 0.40, 0.95), None)
    assert without_replay.last.state is ExecutionState.ROLLED_BACK
    world = watched(burst(5_000, 0.40, 0.95), burst(5_000, 0.40, 0.80))
    assert world.last.state is ExecutionState.KEPT, world.last.reason
    assert "the same requests without the change" in world.last.reason
    assert world.last.realised_gain == pytest.approx(0.15, abs=0.02)
    assert observed(world)[-1]["control_drift"] < -0.2
    assert observed(world)[-1]["control_drift_by"] == "the same requests without the change"
    assert "same requests" in observed(world)[-1]["effect"]["basis"]


def test_a_fall_that_only_the_change_can_have_made_is_taken_back():
    world = watched(burst(5_000, 0.40, 0.80), lambda _: 0.80)
    assert world.last.state is ExecutionState.ROLLED_BACK
    assert "the hit ratio fell" in world.last.reason
    assert "(the same requests without the change: " in world.last.reason
    assert world.cache.knobs["maxmemory-policy"] == "noeviction"
    (begun,) = [r for r in world.journal if r.kind == "rollback_intended"]
    # The look that showed it came up to 5 s after, and the replay of it up to 22 s later.
    assert begun.at_ms - T0 < 45_000


def test_a_gain_that_the_traffic_would_have_brought_anyway_is_none():
    assert watched(lambda _: 0.95, None).last.state is ExecutionState.KEPT
    world = watched(lambda _: 0.95, burst(0, -0.15, 0.80))
    assert world.last.state is ExecutionState.ROLLED_BACK
    assert "less than promised" in world.last.reason


def test_a_replay_that_stops_coming_is_waited_for_as_long_as_it_may_take_and_no_longer():
    world = watched(burst(15_000, 0.40, 0.95), burst(15_000, 0.40, 0.80), told_until_ms=25_000)
    assert world.last.state is ExecutionState.ROLLED_BACK
    (begun,) = [r for r in world.journal if r.kind == "rollback_intended"]
    settings = world.settings
    longest_ms = settings.capture_ms + 2 * settings.cycle_interval_ms + 10_000 + settings.observation_window_ms // 2
    assert 50_000 < begun.at_ms - T0 < 15_000 + longest_ms


def test_what_the_server_itself_shows_waits_for_no_replay():
    world = World()
    world.cache.ratio = lambda _: 0.80
    world.tell(order(proposal(change("maxmemory-policy", "allkeys-lfu")), baseline=BEFORE))
    world.tell(replay(lambda _: 0.80, T0))
    world.run(until=lambda: bool(world.reports) and world.last.state is ExecutionState.OBSERVING)
    world.run(6_000)
    world.cache.refused = 500
    world.run(6_000)
    assert world.last.state in (ExecutionState.ROLLING_BACK, ExecutionState.ROLLED_BACK)
    assert "writes are refused" in world.run().last.reason


@pytest.mark.parametrize(
    "other",
    [{"proposal_id": "p-0"}, {"service": "pages"}, {"from_ms": T0 - 30_000}],
    ids=["of another change", "of another cache", "not of the time before the change"],
)
def test_a_replay_of_something_else_changes_nothing(other):
    alone = watched(burst(5_000, 0.40, 0.95), None)
    world = watched(burst(5_000, 0.40, 0.95), burst(5_000, 0.40, 0.80), **other)
    assert world.last.state is ExecutionState.ROLLED_BACK
    assert [r.at_ms for r in world.journal] == [r.at_ms for r in alone.journal]


def test_looks_that_wait_for_a_replay_are_judged_before_a_silent_cache_makes_them_forgotten():
    def faults(_number, effect):
        late = isinstance(effect, m.ReadCounters) and world.now_ms - T0 > 12_000
        return UNAVAILABLE if late else None

    world = World(faults)
    watched(burst(5_000, 0.60, 0.95), burst(5_000, 0.60, 0.80), world=world, told_until_ms=0)
    assert any(r.kind == "rollback_intended" and "the hit ratio fell" in r.payload["reason"] for r in world.journal)


def test_each_window_ends_where_the_replay_told_of_it_and_the_next_begins_there():
    slow = proposal(change("maxmemory-policy", "allkeys-lfu"))
    slow = replace(slow, prediction=replace(slow.prediction, settle_ms=55_000))
    world = watched(lambda at_ms: 0.80 + min(at_ms, 60_000) / 400_000, lambda _: 0.80, wanted=slow)
    assert world.last.state is ExecutionState.KEPT
    seen = observed(world)
    assert [o["window"] for o in seen] == list(range(1, len(seen) + 1))
    assert len(seen) > 1
    assert all(0 <= o["window_ms"] - world.settings.observation_window_ms < 100 for o in seen)
    times = [o["observed_ms"] for o in seen]
    assert all(0 <= b - a - world.settings.observation_window_ms < 100 for a, b in pairwise(times))


def test_an_outcome_is_scored_without_what_the_traffic_did():
    world = watched(burst(5_000, 0.40, 0.95), burst(5_000, 0.40, 0.80))
    (by_journal,) = outcomes_from_records(world.journal)
    by_report = outcome_of(world.last)
    assert by_report is not None
    for outcome in (by_report, by_journal):
        assert outcome.comparable
        assert outcome.realised == pytest.approx(0.95, abs=0.02)
    assert by_report.realised == by_journal.realised
    assert by_report.noise == by_journal.noise


# --- When clocks, caches and replays misbehave ------------------------------------------------------------------------


def fall(world: World) -> AuditRecord:
    (begun,) = [r for r in world.journal if r.kind == "rollback_intended"]
    return begun


def test_a_server_whose_clock_is_set_back_is_watched_all_the_same():
    world = World()
    plain = world.cache.observe
    shift_ms = 0

    def observe(service: str, now_ms: int) -> Observation:
        seen = plain(service, now_ms)
        return replace(seen, info={**seen.info, "server_time_usec": str((now_ms + shift_ms) * 1000)})

    world.cache.observe = observe
    world.cache.ratio = lambda _: 0.95 if world.now_ms - T0 < 8_000 else 0.20
    world.tell(
        order(
            proposal(change("maxmemory-policy", "allkeys-lfu")),
            baseline=BEFORE,
            counterfactual=replay(lambda _: 0.80, T0 - LAG_MS),
        )
    )
    for _ in range(60):
        if world.reports and world.last.state.final:
            break
        shift_ms = -3_600_000 if world.now_ms - T0 > 12_000 else 0
        if world.now_ms - T0 < 12_000:
            world.tell(replay(lambda _: 0.80, world.now_ms - LAG_MS))
        world.run(10_000)
    assert world.last.state is ExecutionState.ROLLED_BACK
    assert fall(world).at_ms - T0 < 120_000


def test_what_was_judged_stays_as_it_was_judged_though_the_replay_forgets_the_time_before():
    world = World()
    forgot = False

    def faults(_number, effect):
        nonlocal forgot
        if isinstance(effect, m.Record) and effect.kind == "observed" and not forgot:
            forgot = True
            world.tell(replay(lambda _: 0.80, world.now_ms, from_ms=T0 + 10_000))

    world.faults = faults
    watched(burst(5_000, 0.40, 0.95), burst(5_000, 0.40, 0.80), world=world)
    assert forgot
    assert world.last.state is ExecutionState.KEPT, world.last.reason
    assert world.last.control_drift == observed(world)[-1]["control_drift"]
    kept = next(r for r in world.journal if r.kind == "change_kept")
    assert kept.payload["control_drift"] == world.last.control_drift


def test_a_change_is_not_kept_while_looks_that_wait_show_a_fall():
    world = watched(burst(22_000, 0.75, 0.95), lambda _: 0.80, told_until_ms=34_000)
    assert world.last.state is ExecutionState.ROLLED_BACK
    assert "the hit ratio fell" in world.last.reason


def test_a_burst_after_the_first_window_is_waited_out_and_the_change_kept():
    world = watched(burst(22_000, 0.40, 0.95), burst(22_000, 0.40, 0.80))
    assert world.last.state is ExecutionState.KEPT, world.last.reason
    assert len(observed(world)) >= 1


def test_looks_at_a_fall_are_not_forgotten_with_the_silence_that_follows():
    def faults(_number, effect):
        return UNAVAILABLE if isinstance(effect, m.ReadCounters) and world.now_ms - T0 > 36_000 else None

    world = World(faults)
    watched(burst(21_000, 0.75, 0.95), lambda _: 0.80, world=world, told_until_ms=20_000)
    assert "the hit ratio fell" in fall(world).payload["reason"]


def test_cycles_of_ten_minutes_let_no_fall_wait_for_longer_than_a_minute():
    slow = SETTINGS.model_copy(update={"cycle_interval_ms": 600_000, "capture_ms": 600_000})
    assert lag_max_ms(slow) == 60_000
    assert lag_max_ms(SETTINGS) == SETTINGS.capture_ms + 2 * SETTINGS.cycle_interval_ms + 10_000
    world = World(settings=slow)
    watched(burst(5_000, 0.75, 0.95), lambda _: 0.80, world=world, told_until_ms=0)
    assert fall(world).at_ms - T0 < 80_000


def test_a_replay_of_too_few_requests_is_not_waited_for():
    sparse = {"lookups": (0, *[40] * 200), "hits": (0, *[30] * 200)}
    world = World()
    world.cache.ratio = lambda _: 0.95 if world.now_ms - T0 < 5_000 else 0.20
    few = replay(lambda _: 0.80, T0, **sparse)
    world.tell(order(proposal(change("maxmemory-policy", "allkeys-lfu")), baseline=BEFORE, counterfactual=few))
    world.run()
    assert fall(world).at_ms - T0 < 15_000


def test_a_window_that_shows_nothing_has_no_drift():
    def faults(_number, effect):
        silent = 40_000 < world.now_ms - T0 < 75_000
        return UNAVAILABLE if isinstance(effect, m.ReadCounters) and silent else None

    world = World(faults)
    slow = proposal(change("maxmemory-policy", "allkeys-lfu"))
    slow = replace(slow, prediction=replace(slow.prediction, settle_ms=300_000))
    watched(lambda _: 0.86, lambda _: 0.84, world=world, wanted=slow)
    silent = [o for o in observed(world) if o["problem"]]
    assert silent
    assert all(o["control_drift"] is None for o in silent)
    assert any(o["control_drift"] is not None for o in observed(world))


@pytest.mark.parametrize(
    "wrong",
    [
        {"hits": (0, 1)},
        {"lookups": (), "hits": ()},
        {"lookups": (0, 5, 3), "hits": (0, 1, 1)},
        {"lookups": (0, 5), "hits": (0, 9)},
        {"bucket_ms": 0},
        {"spatial_rate": 1.5},
        {"spatial_rate": 0.0},
    ],
)
def test_what_cannot_have_been_counted_is_no_counterfactual(wrong):
    with pytest.raises(ValueError, match="counted up side by side"):
        replay(lambda _: 0.5, T0, **wrong)
