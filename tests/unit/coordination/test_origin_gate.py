"""When an origin in trouble is left alone, and when it is tried again."""

from __future__ import annotations

from cachewarden.circuit import CircuitRules
from coordination.origin_gate import OriginGate

RULES = CircuitRules(failures_max=3, open_ms=1_000, open_ms_max=4_000)


def failed(gate: OriginGate, now_ms: int, times: int = 3) -> None:
    for _ in range(times):
        gate.ended(now_ms, outage=True)


def test_a_well_origin_is_asked_at_once():
    assert OriginGate(RULES).enter(0) == 0


def test_failures_in_a_row_close_the_gate_for_a_while():
    gate = OriginGate(RULES)
    failed(gate, 0)
    assert gate.enter(10) == 990
    assert gate.enter(1_000) == 0


def test_a_success_in_between_begins_the_count_anew():
    gate = OriginGate(RULES)
    failed(gate, 0, 2)
    gate.ended(0, outage=False)
    failed(gate, 0, 2)
    assert gate.enter(1) == 0


def test_one_trial_at_a_time_is_let_in_after_the_pause():
    gate = OriginGate(RULES)
    failed(gate, 0)
    assert gate.enter(1_000) == 0
    assert gate.enter(1_000) > 0
    gate.ended(1_100, outage=False)
    assert gate.enter(1_100) == gate.enter(1_100) == 0


def test_a_failed_trial_makes_the_pause_longer_until_nobody_waits_any_more():
    gate = OriginGate(RULES)
    failed(gate, 0)
    now_ms, pauses = 0, []
    while not gate.given_up:
        wait_ms = gate.enter(now_ms)
        pauses.append(wait_ms)
        now_ms += wait_ms
        assert gate.enter(now_ms) == 0
        gate.ended(now_ms, outage=True)
    assert pauses == [1_000, 2_000, 4_000, 4_000, 4_000]
