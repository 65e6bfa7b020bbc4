"""The collector's machine: one answer per question, windows that can be trusted, captures that stay in bounds."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.collector import Collector
from cachewarden.fleet import Fleet, Service
from cachewarden.machine import EffectFailed, Observe, Observed, Received, Recorded, Send, SetTimer, Started, TimerFired
from cachewarden.observation import ProbeCost
from cachewarden.protocol import FleetObserved, ObserveFleet
from cachewarden.settings import CacheOptimizerSettings
from tests.unit.agents.looks import capture, keyspace, look

SETTINGS = CacheOptimizerSettings(
    _env_file=None,
    cycle_interval_ms=10_000,
    observation_window_ms=30_000,
    capture_ms=20_000,
    capture_history_ms=240_000,
)
NAMES = ("cart", "search")


def collector(*, captured=(), settings=SETTINGS, names=NAMES, **kwargs):
    services = tuple(Service(name=n, url=f"redis://{n}:6379", capture=n in captured) for n in names)
    return Collector(Fleet(services=services), settings, **kwargs)


def ask(agent, cycle, now_ms, services=NAMES):
    return agent.step(Received(sender="coordinator", message=ObserveFleet(cycle=cycle, services=services)), now_ms)


def looks(effects):
    return {e.service: e for e in effects if isinstance(e, Observe) and e.ref.startswith("look:")}


def captures(effects):
    return {e.service: e for e in effects if isinstance(e, Observe) and e.ref.startswith("capture:")}


def answer(effects):
    (sent,) = [e for e in effects if isinstance(e, Send)]
    assert sent.to == "coordinator"
    return sent.message


def round_of(agent, cycle, now_ms, **fields):
    """Ask about `cart` alone and answer the look; returns its snapshot."""
    asked = ask(agent, cycle, now_ms, ("cart",))
    effects = agent.step(
        Observed(ref=looks(asked)["cart"].ref, service="cart", observation=look(now_ms, **fields)), now_ms
    )
    (snapshot,) = answer(effects).snapshots
    return snapshot


def test_every_service_is_looked_at_and_a_deadline_is_set():
    effects = ask(collector(), 1, 1_000)
    assert {name: e.sample_keys for name, e in looks(effects).items()} == {"cart": 1_000, "search": 1_000}
    assert [e.due_ms for e in effects if isinstance(e, SetTimer)] == [9_000]


def test_the_answer_comes_with_the_last_look():
    agent = collector()
    asked = looks(ask(agent, 1, 0))
    assert (
        agent.step(Observed(ref=asked["search"].ref, service="search", observation=look(5, service="search")), 5) == ()
    )
    told = answer(agent.step(Observed(ref=asked["cart"].ref, service="cart", observation=look(9)), 9))
    assert (told.cycle, [s.service for s in told.snapshots], told.missing) == (1, ["cart", "search"], {})


def test_the_first_look_gives_a_snapshot_without_a_window():
    snapshot = round_of(collector(), 1, 0, keyspace_hits=900, keyspace_misses=100)
    assert (snapshot.window_ms, snapshot.hit_ratio, snapshot.miss_split) == (0, None, None)
    assert "first look" in snapshot.incomplete["window"]
    assert (snapshot.memory_usage, snapshot.resident_keys) == (pytest.approx(0.8), 1_000)


def test_the_second_look_gives_the_ratio_of_the_time_between():
    agent = collector()
    round_of(agent, 1, 0, keyspace_hits=900, keyspace_misses=100)
    snapshot = round_of(agent, 2, 10_000, keyspace_hits=1_000, keyspace_misses=400, evicted_keys=300)
    assert (snapshot.window_ms, snapshot.hit_ratio) == (10_000, pytest.approx(0.25))
    assert snapshot.miss_split.binding == "evicted"
    assert "window" not in snapshot.incomplete


def test_a_window_grows_up_to_the_observation_window():
    agent = collector()
    windows = [round_of(agent, n, n * 10_000, keyspace_hits=n * 1_000).window_ms for n in range(1, 8)]
    assert windows == [0, 10_000, 20_000, 30_000, 30_000, 30_000, 30_000]


def test_a_look_whose_hits_cannot_be_told_from_our_own_gives_no_window_and_spoils_none():
    agent = collector()
    round_of(agent, 1, 0, keyspace_hits=900, keyspace_misses=100)
    unknown = {"own_lookups": "`actuator` was looking at the cache"}
    blind = round_of(agent, 2, 10_000, keyspace_hits=5_000, keyspace_misses=100, incomplete=unknown)
    assert (blind.hit_ratio, blind.window_ms) == (None, 0)
    assert "`actuator`" in blind.incomplete["window"]
    snapshot = round_of(agent, 3, 20_000, keyspace_hits=1_000, keyspace_misses=400)
    assert (snapshot.window_ms, snapshot.hit_ratio) == (20_000, pytest.approx(0.25))


def test_a_first_look_whose_own_lookups_are_unknown_begins_no_window():
    agent = collector()
    round_of(agent, 1, 0, incomplete={"own_lookups": "the ledger does not answer"})
    assert "first look" in round_of(agent, 2, 10_000, keyspace_hits=300).incomplete["window"]


def test_a_changed_knob_begins_a_new_window():
    agent = collector()
    for n in (1, 2):
        round_of(agent, n, n * 10_000, keyspace_hits=n * 100)
    changed = {"maxmemory": "6000000", "maxmemory-policy": "allkeys-lru"}
    snapshot = round_of(agent, 3, 30_000, keyspace_hits=300, knobs=changed)
    assert snapshot.hit_ratio is None
    assert "maxmemory 5000000 -> 6000000" in snapshot.incomplete["window"]
    assert round_of(agent, 4, 40_000, keyspace_hits=400, knobs=changed).window_ms == 10_000


def test_a_knob_that_does_not_bear_on_hits_leaves_the_window_alone():
    agent = collector()
    knobs = {"maxmemory": "5000000", "maxmemory-policy": "allkeys-lru", "slowlog-log-slower-than": "10000"}
    round_of(agent, 1, 0, knobs=knobs)
    assert (
        round_of(agent, 2, 10_000, keyspace_hits=5, knobs=knobs | {"slowlog-log-slower-than": "500"}).window_ms
        == 10_000
    )


def test_a_change_is_seen_in_info_where_config_is_denied():
    agent = collector()
    round_of(agent, 1, 0, knobs={})
    snapshot = round_of(agent, 2, 10_000, knobs={}, maxmemory_policy="allkeys-lfu")
    assert "maxmemory-policy" in snapshot.incomplete["window"]
    assert snapshot.knobs["maxmemory-policy"] == "allkeys-lfu"


def test_a_restarted_server_begins_a_new_window():
    agent = collector()
    round_of(agent, 1, 0, keyspace_hits=1_000)
    snapshot = round_of(agent, 2, 10_000, run_id="c" * 40, keyspace_hits=2)
    assert snapshot.hit_ratio is None
    assert "restart" in snapshot.incomplete["window"]


def test_two_looks_in_quick_succession_give_no_window_of_their_own():
    agent = collector()
    round_of(agent, 1, 0)
    assert "too recent" in round_of(agent, 2, 1_000, keyspace_hits=10).incomplete["window"]
    assert round_of(agent, 3, 6_000, keyspace_hits=20).window_ms == 6_000


def test_a_window_survives_a_clock_that_jumps_an_hour_back():
    agent = collector()
    round_of(agent, 1, 10**7)
    round_of(agent, 2, 10**7 + 10_000, keyspace_hits=100)
    snapshot = round_of(agent, 3, 10**7 - 3_580_000, server_ms=10**7 + 20_000, keyspace_hits=200)
    assert (snapshot.window_ms, snapshot.hits) == (20_000, 200)
    assert "clock" in snapshot.incomplete["clock"]
    assert round_of(agent, 4, 10**7 - 3_570_000, server_ms=10**7 + 30_000, keyspace_hits=300).window_ms == 30_000


def test_a_dead_cache_does_not_hold_up_the_others():
    agent = collector()
    asked = ask(agent, 1, 0)
    agent.step(Observed(ref=looks(asked)["cart"].ref, service="cart", observation=look(5)), 5)
    (deadline,) = [e for e in asked if isinstance(e, SetTimer)]
    told = answer(agent.step(TimerFired(ref=deadline.ref), 8_000))
    assert [s.service for s in told.snapshots] == ["cart"]
    assert told.missing == {"search": "no answer within 8000 ms"}
    assert agent.step(TimerFired(ref=deadline.ref), 8_001) == ()


def test_a_failed_look_is_missing_with_its_reason():
    agent = collector()
    asked = looks(ask(agent, 1, 0, ("search",)))
    failed = EffectFailed(
        ref=asked["search"].ref, effect="Observe", kind="TargetUnavailable", reason="connection refused"
    )
    assert answer(agent.step(failed, 3)).missing == {"search": "connection refused"}


def test_a_look_without_info_is_missing_with_the_servers_reason():
    agent = collector()
    asked = looks(ask(agent, 1, 0, ("cart",)))
    blind = look(1, incomplete={"info": "NOPERM"}, without=list(look().info))
    assert answer(agent.step(Observed(ref=asked["cart"].ref, service="cart", observation=blind), 3)).missing == {
        "cart": "NOPERM"
    }


def test_a_service_that_is_not_in_the_fleet_file_is_answered_as_missing():
    assert "fleet file" in answer(ask(collector(), 1, 0, ("nobody",))).missing["nobody"]


def test_a_late_look_is_used_for_windows_but_not_answered_twice():
    agent = collector()
    late = looks(ask(agent, 1, 0, ("cart",)))["cart"]
    agent.step(TimerFired(ref="deadline:1"), 8_000)
    assert agent.step(Observed(ref=late.ref, service="cart", observation=look(9_000)), 9_000) == ()
    assert round_of(agent, 2, 19_000, keyspace_hits=7).window_ms == 10_000


def test_a_look_that_was_overtaken_is_answered_with_the_newer_one():
    agent = collector()
    first, second = (looks(ask(agent, n, 0, ("cart",)))["cart"] for n in (1, 2))
    agent.step(Observed(ref=second.ref, service="cart", observation=look(2_000, keyspace_hits=9)), 2_000)
    told = answer(agent.step(Observed(ref=first.ref, service="cart", observation=look(1_000, keyspace_hits=5)), 2_100))
    assert (told.cycle, told.snapshots[0].taken_at_ms) == (1, 2_000)


def test_a_question_asked_twice_is_answered_once():
    agent = collector()
    asked = looks(ask(agent, 1, 0, ("cart",)))
    assert ask(agent, 1, 10, ("cart",)) == ()
    assert answer(agent.step(Observed(ref=asked["cart"].ref, service="cart", observation=look(5)), 20)).cycle == 1


def test_sampling_pauses_while_it_would_exceed_its_share_of_the_server():
    agent = collector()
    costly = {"sample": keyspace([1_000] * 50), "cost": ProbeCost(commands=4_000, wall_ms=900.0, server_us=150_000)}
    round_of(agent, 1, 0, **costly)
    assert looks(ask(agent, 2, 10_000, ("cart",)))["cart"].sample_keys == 0
    assert looks(ask(agent, 3, 15_000, ("cart",)))["cart"].sample_keys == 1_000


def test_an_old_sample_is_kept_for_two_looks_and_then_dropped():
    agent = collector()
    round_of(agent, 1, 0, sample=keyspace([1_000] * 50))
    kept = [round_of(agent, n, n * 10_000).sample is not None for n in (2, 3, 4)]
    assert kept == [True, True, False]
    assert "sample" in round_of(agent, 5, 50_000).incomplete


BUSY = 60_000
"""Lines of a capture of 20 s with which MONITOR would take 3.9 % of a core, twice what it may."""


def _captured(agent, service, now_ms, *, rows=1_000, aborted=None, span_ms=20_000, from_ms=0, lines=BUSY):
    """End a capture whose rows begin at `from_ms` of the server's clock."""
    taken = [(from_ms + t * span_ms // rows, t % 50, 0, 0, 0) for t in range(rows)]
    access = capture(taken, aborted=aborted, lines=lines) if rows else None
    incomplete = {} if rows else {"access": aborted}
    seen = look(now_ms, service=service, access=access, incomplete=incomplete)
    return agent.step(Observed(ref=f"capture:{service}", service=service, observation=seen), now_ms)


def test_a_capture_begins_where_it_is_permitted_and_possible():
    agent = collector(captured=("cart",))
    asked = looks(ask(agent, 1, 0))
    begun = agent.step(Observed(ref=asked["cart"].ref, service="cart", observation=look(1, monitor=True)), 1)
    assert captures(begun)["cart"].capture_ms == 20_000
    assert captures(begun)["cart"].sample_keys == 0
    other = agent.step(
        Observed(ref=asked["search"].ref, service="search", observation=look(1, service="search", monitor=True)), 1
    )
    assert not captures(other)
    told = answer(other).snapshots
    assert told[1].incomplete["access"] == "the fleet file permits no captures"


def test_a_captured_access_sample_is_kept_until_it_is_too_old():
    agent = collector(captured=("cart",))
    round_of(agent, 1, 0, monitor=True)
    assert not captures(_captured(agent, "cart", 20_500))
    snapshot = round_of(agent, 2, 30_000, monitor=True)
    assert (len(snapshot.access.trace), snapshot.hotspot_count) == (1_000, 50)
    assert "access" not in snapshot.incomplete
    assert round_of(agent, 3, 20_500 + 240_001, monitor=True).access is None


def test_the_look_of_a_capture_forms_no_window():
    agent = collector(captured=("cart",))
    round_of(agent, 1, 0, monitor=True)
    _captured(agent, "cart", 20_500)
    assert round_of(agent, 2, 30_000, monitor=True, keyspace_hits=3).window_ms == 30_000


def test_a_busy_cache_is_captured_again_after_a_pause():
    agent = collector(captured=("cart",))
    round_of(agent, 1, 0, monitor=True)
    _captured(agent, "cart", 20_500)
    assert not captures(ask(agent, 2, 140_499, ("cart",)))
    assert captures(ask(agent, 3, 140_500, ("cart",)))


def test_captures_of_a_quiet_cache_follow_upon_each_other_and_make_one_history():
    agent = collector(captured=("cart",))
    round_of(agent, 1, 0, monitor=True)
    for n in range(1, 5):
        assert captures(_captured(agent, "cart", n * 20_000, from_ms=(n - 1) * 20_000, lines=1_000))
    snapshot = round_of(agent, 2, 81_000, monitor=True)
    assert snapshot.access.trace.duration_ms > 79_000
    assert len(snapshot.access.trace) == 4_000


def test_what_monitor_costs_decides_how_long_it_rests():
    # 13 us a command: at 10,000 a second 13 % of a core, of which 2 % may be taken: 20 s in 130 s.
    agent = collector(captured=("cart",))
    round_of(agent, 1, 0, monitor=True)
    _captured(agent, "cart", 20_000, lines=200_000)
    round_of(agent, 2, 30_000, monitor=True, knobs={"maxmemory": "7000000", "maxmemory-policy": "allkeys-lru"})
    assert not captures(ask(agent, 3, 129_000, ("cart",)))
    assert captures(ask(agent, 4, 131_000, ("cart",)))


def test_a_changed_knob_calls_for_a_new_capture_but_not_at_once():
    agent = collector(captured=("cart",))
    round_of(agent, 1, 0, monitor=True)
    _captured(agent, "cart", 20_500)
    round_of(agent, 2, 30_000, monitor=True, knobs={"maxmemory": "7000000", "maxmemory-policy": "allkeys-lru"})
    assert not captures(ask(agent, 3, 40_499, ("cart",)))
    assert captures(ask(agent, 4, 40_500, ("cart",)))


def test_captures_that_fail_are_tried_again_ever_later():
    agent = collector(captured=("cart",))
    round_of(agent, 1, 0, monitor=True)
    now, pauses = 0, []
    for n in range(2, 6):
        agent.step(
            EffectFailed(ref="capture:cart", effect="Observe", kind="TargetRefused", reason="NOPERM monitor"), now
        )
        failed = now
        while not captures(ask(agent, n * 1_000 + now // 1_000, now, ("cart",))):
            now += 1_000
        pauses.append(now - failed)
    assert pauses == [20_000, 40_000, 80_000, 160_000]
    assert round_of(agent, 99_999, now, monitor=True).incomplete["access"] == "NOPERM monitor"


def test_an_aborted_capture_is_used_but_does_not_push_out_a_longer_fresh_one():
    agent = collector(captured=("cart",))
    round_of(agent, 1, 0, monitor=True)
    _captured(agent, "cart", 10_000, aborted="server slowed", span_ms=9_000)
    snapshot = round_of(agent, 2, 20_000, monitor=True)
    assert snapshot.access is not None
    assert snapshot.incomplete["access"] == "server slowed"
    round_of(agent, 3, 200_000, monitor=True)
    _captured(agent, "cart", 205_000, aborted="server slowed", span_ms=1_000)
    assert round_of(agent, 4, 206_000, monitor=True).access.trace.duration_ms > 8_000


def test_a_capture_that_never_comes_back_is_given_up():
    agent = collector(captured=("cart",))
    round_of(agent, 1, 0, monitor=True)
    agent.step(TimerFired(ref="capture-deadline:cart"), 35_000)
    assert "in time" in round_of(agent, 2, 36_000, monitor=True).incomplete["access"]
    assert captures(ask(agent, 3, 56_000, ("cart",)))


def test_only_so_many_captures_run_at_once():
    names = tuple(f"cache{n}" for n in range(6))
    agent = collector(captured=names, names=names, max_parallel_captures=2)
    begun = {}
    for name, effect in looks(ask(agent, 1, 0, names)).items():
        begun |= captures(
            agent.step(Observed(ref=effect.ref, service=name, observation=look(1, service=name, monitor=True)), 1)
        )
    assert len(begun) == 2
    assert set(captures(_captured(agent, min(begun), 20_000))).isdisjoint(begun)


def test_a_busy_cache_with_many_keys_is_captured_at_a_lower_spatial_rate():
    agent = collector(captured=("cart",))
    big = {"monitor": True, "db0": "keys=1000000,expires=0"}
    round_of(agent, 1, 0, **big)
    _captured(agent, "cart", 20_000)
    round_of(agent, 2, 30_000, keyspace_hits=3_000_000, **big)
    rate = captures(ask(agent, 3, 150_000, ("cart",)))["cart"].capture_rate
    assert rate == pytest.approx(0.05)


def test_a_light_snapshot_has_no_arrays():
    snapshot = round_of(collector(), 1, 0, sample=keyspace([1_000] * 50))
    assert snapshot.sample is not None
    assert (snapshot.light().sample, snapshot.light().access) == (None, None)
    assert snapshot.light().resident_keys == snapshot.resident_keys


_EVENTS = st.lists(
    st.tuples(
        st.sampled_from(("ask", "look", "look", "look", "fail", "deadline", "capture", "broken", "lost", "strange")),
        st.integers(0, 5),
        st.integers(0, 12_000),
        st.integers(-50, 400),
    ),
    max_size=60,
)


@pytest.mark.slow
@given(events=_EVENTS)
@settings(max_examples=150, deadline=None)
def test_whatever_happens_in_whatever_order_each_cycle_is_answered_exactly_once(events):
    agent = collector(captured=("cart",))
    asked, refs, answers, open_timers = [], [], [], []
    now = hits = 0

    def take(effects):
        refs.extend(e.ref for e in effects if isinstance(e, Observe))
        open_timers.extend(e.ref for e in effects if isinstance(e, SetTimer))
        answers.extend(e.message for e in effects if isinstance(e, Send))

    take(agent.step(Started(), now))
    for kind, pick, pause_ms, gained in events:
        now, hits = now + pause_ms, hits + gained
        ref = refs[pick % len(refs)] if refs else "look:1:cart"
        service = ref.rpartition(":")[2]
        seen = look(now - pick * 3_000, service=service, keyspace_hits=hits, monitor=pick % 2 == 0, own=(0, pick))
        if kind == "ask":
            asked.append(len(asked))
            take(ask(agent, asked[-1], now, (*NAMES, "nobody")))
        elif kind == "look":
            take(agent.step(Observed(ref=ref, service=service, observation=seen), now))
        elif kind == "fail":
            take(agent.step(EffectFailed(ref=ref, effect="Observe", kind="TargetTimeout", reason="late"), now))
        elif kind == "deadline" and open_timers:
            take(agent.step(TimerFired(ref=open_timers[pick % len(open_timers)]), now))
        elif kind == "capture":
            take(_captured(agent, "cart", now, rows=pick * 100, aborted="slow" if pick % 2 else None))
        elif kind == "broken":
            take(
                agent.step(
                    Observed(
                        ref=ref, service=service, observation="nonsense" if pick % 2 else look(without=list(seen.info))
                    ),
                    now,
                )
            )
        elif kind == "lost":
            take(agent.step(Observed(ref="look:999:cart", service="nobody", observation=seen), now))
        else:
            take(agent.step(Recorded(ref=ref, record=None), now))
    for ref in open_timers:
        take(agent.step(TimerFired(ref=ref), now + 60_000))
    assert sorted(a.cycle for a in answers) == asked
    for told in answers:
        assert isinstance(told, FleetObserved)
        assert sorted([*(s.service for s in told.snapshots), *told.missing]) == ["cart", "nobody", "search"]


def test_the_newest_look_can_be_asked_for_with_its_samples_and_without_a_cycle():
    agent = collector()
    assert agent.snapshot("cart") is None
    assert agent.snapshot("nobody") is None
    told = round_of(agent, 1, 1_000, sample=keyspace([1_000, 2_000]))
    assert agent.snapshot("cart") is told
    assert told.sample is not None


def test_where_more_wait_than_can_be_captured_side_by_side_each_gets_a_whole_history_in_turn():
    names = tuple(f"s{n}" for n in range(3))
    fleet = Fleet(services=tuple(Service(name=n, url="redis://127.0.0.1:1", capture=True) for n in names))
    agent = Collector(fleet, SETTINGS, max_parallel_captures=1)
    running, turns, now_ms = "", [], 0
    asked = looks(ask(agent, 1, 0, names))
    for name in names:
        seen = look(1, service=name, monitor=True)
        begun = captures(agent.step(Observed(ref=asked[name].ref, service=name, observation=seen), 1))
        running = next(iter(begun), running)
    for _ in range(200):
        now_ms += 20_000
        begun = captures(_captured(agent, running, now_ms, from_ms=now_ms - 20_000, lines=1_000))
        turns.append(running)
        running = next(iter(begun))
    lengths = {name: [len(list(same)) for key, same in itertools.groupby(turns) if key == name] for name in names}
    assert all(max(found) == 45 for found in lengths.values()), lengths
