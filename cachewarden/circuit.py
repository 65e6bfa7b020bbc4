"""A circuit breaker and its backoff schedule: whether a peer that failed lately may be asked now, and when next.

States and signals are a table; the value is immutable, so a caller keeps the old one by not taking the new one. It
never waits, never draws a random number and asks nobody: a shell draws where in a pause the next try lies ("full
jitter": uniformly between now and the ceiling, Brooker 2015, "Exponential Backoff And Jitter").

INVARIANT: while the state is `open`, `ready` is False until the pause has passed, and then one call is a trial.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from cachewarden.errors import InvariantViolation

__all__ = ["TABLE", "Circuit", "CircuitRules", "CircuitState", "Signal"]


class CircuitState(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Signal(StrEnum):
    """SUCCEEDED, FAILED: how a call ended. VIOLATED: it was answered by somebody who is not our peer (wrong hash).
    WAITED: the pause of an open circuit is over and a trial begins."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    VIOLATED = "violated"
    WAITED = "waited"


TABLE: Final[Mapping[tuple[CircuitState, Signal], CircuitState]] = {
    (CircuitState.CLOSED, Signal.SUCCEEDED): CircuitState.CLOSED,
    # Opens with the failure that reaches `failures_max`.
    (CircuitState.CLOSED, Signal.FAILED): CircuitState.CLOSED,
    (CircuitState.CLOSED, Signal.VIOLATED): CircuitState.OPEN,
    # Answers of calls that were on their way when it opened: they prove nothing about now.
    (CircuitState.OPEN, Signal.SUCCEEDED): CircuitState.OPEN,
    (CircuitState.OPEN, Signal.FAILED): CircuitState.OPEN,
    (CircuitState.OPEN, Signal.VIOLATED): CircuitState.OPEN,
    (CircuitState.OPEN, Signal.WAITED): CircuitState.HALF_OPEN,
    (CircuitState.HALF_OPEN, Signal.SUCCEEDED): CircuitState.CLOSED,
    (CircuitState.HALF_OPEN, Signal.FAILED): CircuitState.OPEN,
    (CircuitState.HALF_OPEN, Signal.VIOLATED): CircuitState.OPEN,
}
"""What is not in the table is a bug of the caller."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitRules:
    """`failures_max` failures in a row open it, for `open_ms`, twice as long after each failed trial up to
    `open_ms_max`; below that `backoff_ms` is the ceiling after the first failure, doubling up to `backoff_ms_max`."""

    failures_max: int = 5
    open_ms: int = 5_000
    open_ms_max: int = 60_000
    backoff_ms: int = 250
    backoff_ms_max: int = 8_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Circuit:
    """State, failures in a row, how often it opened in a row, and until when it stays so."""

    rules: CircuitRules = field(default_factory=CircuitRules)
    state: CircuitState = CircuitState.CLOSED
    failures: int = 0
    openings: int = 0
    open_until_ms: int = 0

    def after(self, signal: Signal, now_ms: int) -> Circuit:
        """Return the circuit after a signal; raises InvariantViolation for one that is not in the table."""
        state = TABLE.get((self.state, signal))
        if state is None:
            raise InvariantViolation(f"a circuit that is {self.state} cannot take the signal `{signal}`")
        if signal is Signal.WAITED:
            return replace(self, state=state)
        if self.state is CircuitState.OPEN:
            return self
        if signal is Signal.SUCCEEDED:
            return Circuit(rules=self.rules)
        failures = self.failures + 1
        if state is CircuitState.OPEN or failures >= self.rules.failures_max:
            return replace(
                self,
                state=CircuitState.OPEN,
                failures=failures,
                openings=self.openings + 1,
                open_until_ms=now_ms + self._open_ms(self.openings),
            )
        return replace(self, failures=failures)

    def ready(self, now_ms: int) -> bool:
        """Say whether a call may be made; of an open circuit, whether its pause is over."""
        if self.state is not CircuitState.OPEN:
            return True
        left_ms = self.open_until_ms - now_ms
        # More left than it was ever given: the clock went back, and nobody should wait for it.
        return left_ms <= 0 or left_ms > self.rules.open_ms_max

    def trying(self, now_ms: int) -> Circuit:
        """Return the circuit with a call under way; raises InvariantViolation where none may be made."""
        if not self.ready(now_ms):
            raise InvariantViolation("a circuit that is open cannot be called before its pause is over")
        return self.after(Signal.WAITED, now_ms) if self.state is CircuitState.OPEN else self

    def pause_ms(self, now_ms: int) -> tuple[int, int]:
        """Return (earliest, spread) of the next try from now: it lies uniformly in earliest..earliest+spread."""
        if self.state is CircuitState.OPEN:
            # Whoever has waited for the same peer should not come back to it in the same instant.
            return max(0, min(self.open_until_ms - now_ms, self.rules.open_ms_max)), self.rules.open_ms // 2
        doublings = min(max(self.failures - 1, 0), 20)
        return 0, min(self.rules.backoff_ms << doublings, self.rules.backoff_ms_max)

    def _open_ms(self, openings: int) -> int:
        return min(self.rules.open_ms << min(openings, 20), self.rules.open_ms_max)
