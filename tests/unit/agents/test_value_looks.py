"""When values are looked into: only where permitted, rarely, one at a time."""

from __future__ import annotations

import pytest
from looks import look

from agents.collector import Collector
from agents.value_looks import ValueLook
from cachewarden.fleet import Fleet, Service
from cachewarden.machine import EffectFailed, Observe, Observed, Received, TimerFired
from cachewarden.protocol import ObserveFleet
from cachewarden.settings import CacheOptimizerSettings
from tests.unit.cachemodel.value_samples import small_string, value_sample

PAUSE_MS = 600_000
VALUES = value_sample(*[small_string()] * 40)


def collector(*, permitted: bool = True) -> Collector:
    service = Service(name="cart", url="redis://cart", value_samples=permitted)
    return Collector(Fleet(services=(service,)), CacheOptimizerSettings(probe_sample_keys=0))


def asked(machine: Collector, cycle: int, now_ms: int) -> list[Observe]:
    effects = machine.step(
        Received(sender="coordinator", message=ObserveFleet(cycle=cycle, services=("cart",))), now_ms
    )
    return [effect for effect in effects if isinstance(effect, Observe) and effect.value_keys]


def seen(machine: Collector, number: int, now_ms: int):
    machine.step(Observed(ref=f"look:{number}:cart", service="cart", observation=look(now_ms)), now_ms)
    return machine.snapshot("cart")


def brought(**fields) -> Observed:
    from dataclasses import replace

    return Observed(ref="values:cart", service="cart", observation=replace(look(0), **fields))


def test_without_permission_values_are_never_asked_for_and_the_snapshot_says_why():
    machine = collector(permitted=False)
    assert asked(machine, 1, 0) == []
    snapshot = seen(machine, 1, 10)
    assert snapshot.values is None
    assert "`value_samples: true`" in snapshot.incomplete["values"]


def test_what_a_look_into_values_brought_is_in_the_next_snapshots_but_never_in_a_light_one():
    machine = collector()
    (effect,) = asked(machine, 1, 0)
    assert (effect.ref, effect.value_keys) == ("values:cart", 400)
    assert "no look into values" in seen(machine, 1, 10).incomplete["values"]
    machine.step(brought(values=VALUES), 2_000)
    assert asked(machine, 2, 10_000) == []
    snapshot = seen(machine, 2, 10_010)
    assert snapshot.values is VALUES
    assert "values" not in snapshot.incomplete
    assert snapshot.light().values is None


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (brought(incomplete={"values": "no permission for getrange"}), "no permission for getrange"),
        (EffectFailed(ref="values:cart", effect="Observe", kind="TargetUnavailable", reason="gone"), "gone"),
        (TimerFired(ref="values-deadline:cart"), "did not come back"),
    ],
    ids=["refused", "failed", "late"],
)
def test_a_look_that_brings_nothing_is_not_repeated_before_its_time(event, reason):
    machine = collector()
    asked(machine, 1, 0)
    machine.step(event, 130_000)
    assert asked(machine, 2, 140_000) == []
    assert reason in seen(machine, 2, 140_010).incomplete["values"]
    assert len(asked(machine, 3, PAUSE_MS)) == 1


def test_while_one_look_is_under_way_there_is_no_second_one():
    values = ValueLook("cart", permitted=True, keys=10, pause_ms=60_000)
    assert values.start(0)
    assert values.start(100_000) == ()
    values.failed("gone")
    assert values.start(100_001)


def test_an_old_sample_is_forgotten_when_no_newer_one_comes():
    machine = collector()
    asked(machine, 1, 0)
    machine.step(brought(values=VALUES), 1_000)
    asked(machine, 2, PAUSE_MS)
    machine.step(EffectFailed(ref="values:cart", effect="Observe", kind="TargetUnavailable", reason="gone"), PAUSE_MS)
    assert seen(machine, 2, PAUSE_MS + 10).values is VALUES
    asked(machine, 3, 4 * PAUSE_MS)
    assert seen(machine, 3, 4 * PAUSE_MS).values is None


def test_answers_for_strangers_change_nothing():
    machine = collector()
    stranger = Observed(ref="values:nobody", service="nobody", observation=look(0))
    assert machine.step(stranger, 0) == ()
