"""Whether an origin may be asked now: a circuit breaker with one trial at a time; pure, the time is an argument.

An origin that is slow or down is left alone, longer each time, so that warming never makes its trouble worse. A key
that it answers badly for (too large, another type, 4xx) says nothing about the origin and leaves the circuit alone.
INVARIANT: while the circuit is open no load begins, and while it is half open at most one is on its way.
"""

from __future__ import annotations

from typing import Final

from cachewarden.circuit import Circuit, CircuitRules, CircuitState, Signal

__all__ = ["GIVE_UP_OPENINGS", "ORIGIN_RULES", "OriginGate"]

ORIGIN_RULES: Final = CircuitRules(failures_max=8, open_ms=2_000, open_ms_max=60_000)
GIVE_UP_OPENINGS: Final = 6
"""Openings in a row after which nobody waits for the origin any more: about two minutes of pauses."""
_TRIAL_ASK_AGAIN_MS: Final = 100


class OriginGate:
    """State of one origin. Each load that was let in must be `ended`, whatever became of it."""

    def __init__(self, rules: CircuitRules = ORIGIN_RULES) -> None:
        self._circuit = Circuit(rules=rules)
        self._trial = False

    @property
    def state(self) -> CircuitState:
        return self._circuit.state

    @property
    def given_up(self) -> bool:
        """Whether so many trials failed in a row that waiting is of no use."""
        return self._circuit.openings >= GIVE_UP_OPENINGS

    def blocked(self, now_ms: int) -> bool:
        """Say whether `enter` would refuse now."""
        if self._circuit.state is CircuitState.HALF_OPEN:
            return self._trial
        return not self._circuit.ready(now_ms)

    def enter(self, now_ms: int) -> int:
        """Return 0 where a load may begin, which then counts as begun, else after how many milliseconds to ask
        again."""
        circuit = self._circuit
        if self.blocked(now_ms):
            return max(1, circuit.pause_ms(now_ms)[0]) if circuit.state is CircuitState.OPEN else _TRIAL_ASK_AGAIN_MS
        self._circuit = circuit.trying(now_ms)
        self._trial = self._circuit.state is CircuitState.HALF_OPEN
        return 0

    def ended(self, now_ms: int, *, outage: bool) -> None:
        """Take how a load ended; `outage`: the origin gave no usable answer at all."""
        self._circuit = self._circuit.after(Signal.FAILED if outage else Signal.SUCCEEDED, now_ms)
        if self._circuit.state is not CircuitState.HALF_OPEN:
            self._trial = False

    def reason(self) -> str:
        """Return in words why no load begins."""
        return f"the origin failed {self._circuit.failures} times in a row and is left alone for now"
