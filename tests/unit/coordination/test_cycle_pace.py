"""How long the coordinator waits between cycles while nothing happens, and what brings its pace back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cachewarden.pauses import longest_pause_ms
from coordination.cycle_pace import CyclePace
from tests.unit.policy.builders import snapshot

NOW = 1_800_000_000_000
INTERVAL_MS = 10_000
REST_MS = 120_000


class Loop:
    """Cycles of one fleet, each as long after the one before as the pace says."""

    def __init__(self, idle_factor=4, interval_ms=INTERVAL_MS):
        self.pace = CyclePace(interval_ms, idle_factor, REST_MS)
        self.now_ms = NOW
        self.seen = [snapshot("cart", hit_ratio=0.8, lookups_per_s=100.0)]

    def cycle(self, *, said=None, busy=False):
        """Return the pause after one more cycle, in intervals."""
        pause_ms = self.pace.pause_ms(self.seen, said or {}, self.now_ms, busy=busy)
        self.now_ms += pause_ms
        return pause_ms // INTERVAL_MS

    def calm(self):
        while self.cycle() < 4:
            pass
        return self

    def change(self, **fields):
        self.seen = [replace(self.seen[0], **fields)]
        return self


def test_pauses_grow_step_by_step_up_to_the_bound_while_every_cycle_says_the_same():
    loop = Loop()
    assert [loop.cycle() for _ in range(8)] == [1, 1, 1, 2, 4, 4, 4, 4]


def test_a_bound_that_is_no_power_of_two_is_kept_and_one_keeps_the_pace():
    loop = Loop(idle_factor=3)
    assert [loop.cycle() for _ in range(7)] == [1, 1, 1, 2, 3, 3, 3]
    loop = Loop(idle_factor=1)
    assert {loop.cycle() for _ in range(20)} == {1}


@pytest.mark.parametrize(
    "fields",
    [
        {"lookups_per_s": 130.0},
        {"lookups_per_s": 70.0},
        {"hit_ratio": 0.75},
        {"hit_ratio": None},
        {"knobs": {"maxmemory": "1"}},
        {"run_id": "another"},
        {"role": "slave"},
        {"incomplete": {"access": "denied"}},
    ],
)
def test_whatever_a_decision_depends_on_brings_the_usual_pace_back(fields):
    assert Loop().calm().change(**fields).cycle() == 1


def test_noise_of_the_traffic_does_not():
    assert Loop().calm().change(lookups_per_s=110.0, hit_ratio=0.81).cycle() == 4


def test_a_slow_drift_adds_up():
    loop = Loop().calm()
    pauses = [loop.change(hit_ratio=0.8 - 0.009 * step).cycle() for step in range(1, 4)]
    assert pauses == [4, 4, 1]


def test_another_decision_brings_it_back():
    loop = Loop().calm()
    assert loop.cycle(said={"cart": "[maxmemory] deny"}) == 1


def test_while_something_is_in_flight_the_pace_is_the_usual_one():
    loop = Loop()
    assert {loop.cycle(busy=True) for _ in range(20)} == {1}


def test_after_a_change_it_stays_until_the_service_has_cooled_down():
    loop = Loop().calm()
    loop.pace.rouse(loop.now_ms, changed=True)
    changed_ms = loop.now_ms
    while (pause := loop.cycle()) == 1:
        assert loop.now_ms < changed_ms + 2 * REST_MS
    assert pause == 2
    assert loop.now_ms - changed_ms > REST_MS


def test_a_clock_that_goes_back_keeps_nobody_awake_for_ever():
    loop = Loop().calm()
    loop.pace.rouse(loop.now_ms, changed=True)
    loop.now_ms -= 10 * REST_MS
    loop.calm()


def test_whoever_asks_for_a_cycle_brings_it_back():
    loop = Loop().calm()
    loop.pace.rouse(loop.now_ms)
    assert loop.cycle() == 1


def test_a_service_more_brings_it_back():
    loop = Loop().calm()
    loop.seen.append(snapshot("pages"))
    assert loop.cycle() == 1


def test_no_look_grows_too_old_for_the_constitution_by_it():
    loop = Loop(interval_ms=60_000)
    assert [loop.cycle() for _ in range(6)][-1] * INTERVAL_MS == 90_000
    loop = Loop(interval_ms=600_000)
    assert {loop.cycle() * INTERVAL_MS for _ in range(6)} == {600_000}


@pytest.mark.parametrize(
    ("interval_ms", "factor", "longest_ms"),
    [(10_000, 4, 40_000), (10_000, 60, 90_000), (10_000, 1, 10_000), (3_600_000, 4, 3_600_000), (1_000, 60, 60_000)],
)
def test_pauses_grow_to_what_the_setting_permits_and_a_look_may_be_old(interval_ms: int, factor: int, longest_ms: int):
    assert longest_pause_ms(interval_ms, factor) == longest_ms
