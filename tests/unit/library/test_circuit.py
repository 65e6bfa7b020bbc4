"""The circuit breaker: its table, its pauses, and what it refuses."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachewarden.circuit import TABLE, Circuit, CircuitRules, CircuitState, Signal
from cachewarden.errors import InvariantViolation

NOW = 1_000_000
RULES = CircuitRules(failures_max=3, open_ms=1_000, open_ms_max=8_000, backoff_ms=100, backoff_ms_max=400)
CLOSED = Circuit(rules=RULES)


def opened() -> Circuit:
    circuit = CLOSED
    for _ in range(3):
        circuit = circuit.after(Signal.FAILED, NOW)
    return circuit


def in_state(state: CircuitState) -> Circuit:
    return {
        CircuitState.CLOSED: CLOSED,
        CircuitState.OPEN: opened(),
        CircuitState.HALF_OPEN: opened().trying(NOW + 1_000),
    }[state]


@pytest.mark.parametrize(("state", "signal"), list(itertools.product(CircuitState, Signal)))
def test_each_transition_is_that_of_the_table_and_any_other_raises_and_changes_nothing(state, signal):
    circuit = in_state(state)
    if (state, signal) in TABLE:
        assert circuit.after(signal, NOW).state is TABLE[state, signal]
        return
    with pytest.raises(InvariantViolation):
        circuit.after(signal, NOW)
    assert circuit == in_state(state)


def test_it_opens_with_the_failure_that_reaches_the_limit_and_a_success_begins_the_count_anew():
    twice = CLOSED.after(Signal.FAILED, NOW).after(Signal.FAILED, NOW)
    assert twice.state is CircuitState.CLOSED
    assert twice.after(Signal.SUCCEEDED, NOW) == CLOSED
    assert twice.after(Signal.FAILED, NOW).state is CircuitState.OPEN


def test_another_constitutional_hash_opens_it_at_once():
    assert CLOSED.after(Signal.VIOLATED, NOW).state is CircuitState.OPEN


def test_an_open_one_lets_one_trial_through_once_its_pause_is_over():
    circuit = opened()
    assert not circuit.ready(NOW + 999)
    with pytest.raises(InvariantViolation):
        circuit.trying(NOW + 999)
    assert circuit.trying(NOW + 1_000).state is CircuitState.HALF_OPEN


def test_each_failed_trial_doubles_the_pause_up_to_its_limit():
    circuit, now_ms, pauses = opened(), NOW, []
    for _ in range(6):
        pauses.append(circuit.open_until_ms - now_ms)
        now_ms = circuit.open_until_ms
        circuit = circuit.trying(now_ms).after(Signal.FAILED, now_ms)
    assert pauses == [1_000, 2_000, 4_000, 8_000, 8_000, 8_000]


def test_a_clock_that_goes_back_by_a_year_keeps_nobody_waiting():
    assert opened().ready(NOW - 365 * 86_400_000)


@given(failures=st.integers(1, 10_000))
def test_the_ceiling_of_a_pause_grows_and_stays_bounded(failures):
    circuit = Circuit(rules=RULES, failures=failures)
    earliest_ms, spread_ms = circuit.pause_ms(NOW)
    assert earliest_ms == 0
    assert spread_ms == min(100 * 2 ** min(failures - 1, 20), 400)
