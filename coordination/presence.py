"""Being known to a service that likes to know who lives: ACGS's Coordinator (8008), its Blackboard over HTTP (8010).

Registers once, greets at a fixed pace from then on, registers again where the service has forgotten us, and comes back
more slowly to one that does not answer. Nothing that we do depends on it. INVARIANT: at most one call is under way.
"""

from __future__ import annotations

from typing import Any

from cachewarden.circuit import Circuit, CircuitRules, CircuitState, Signal
from cachewarden.machine import Effect, EffectFailed, SetTimer, Started, TimerFired
from cachewarden.peer_messages import PeerHealth
from cachewarden.peering import Announce, Announced

__all__ = ["Presence"]


class Presence:
    """Our presence at one service; `interval_ms` lies between two greetings."""

    def __init__(self, peer: str, *, interval_ms: int = 30_000, rules: CircuitRules | None = None) -> None:
        self.peer = peer
        self._interval_ms = interval_ms
        self._circuit = Circuit(rules=rules or CircuitRules(backoff_ms=1_000, open_ms_max=300_000))
        self._registered = False
        self._calls = 0
        self._waiting = False
        self._trouble = "not registered yet"
        self._done = self._failures = self._violations = 0

    def step(self, event: Any, now_ms: int) -> tuple[Effect, ...]:
        """Take one event; an answer to an earlier call changes nothing."""
        if isinstance(event, Started) or (isinstance(event, TimerFired) and event.ref == self._timer):
            return self._call(now_ms)
        if not self._waiting or getattr(event, "ref", "") != self._ref:
            return ()
        if isinstance(event, Announced):
            self._waiting, self._registered, self._trouble = False, True, ""
            self._done += 1
            self._circuit = self._circuit.after(Signal.SUCCEEDED, now_ms)
            return (SetTimer(ref=self._timer, due_ms=now_ms + self._interval_ms),)
        return self._on_failed(event, now_ms) if isinstance(event, EffectFailed) else ()

    def health(self) -> PeerHealth:
        """Return how we stand with the service, in words that a stranger may read."""
        return PeerHealth(
            name=self.peer,
            healthy=not self._trouble,
            detail=self._trouble,
            circuit=self._circuit.state.value,
            done=self._done,
            failures=self._failures,
            violations=self._violations,
        )

    @property
    def _timer(self) -> str:
        return f"presence:{self.peer}:wake"

    @property
    def _ref(self) -> str:
        return f"presence:{self.peer}:{self._calls}"

    def _call(self, now_ms: int) -> tuple[Effect, ...]:
        if self._waiting:
            return ()
        if not self._circuit.ready(now_ms):
            return self._later(now_ms)
        self._circuit = self._circuit.trying(now_ms)
        self._waiting = True
        self._calls += 1
        return (Announce(ref=self._ref, peer=self.peer, first=not self._registered),)

    def _on_failed(self, event: EffectFailed, now_ms: int) -> tuple[Effect, ...]:
        self._waiting = False
        if event.kind == "PeerForgot" and self._registered:
            # It lives, and has been restarted: not a failure of its.
            self._registered = False
            self._circuit = self._circuit.after(Signal.SUCCEEDED, now_ms)
            return self._call(now_ms)
        self._registered = False
        violated = event.kind == "PeerViolation"
        self._failures += 1
        self._violations += violated
        self._circuit = self._circuit.after(Signal.VIOLATED if violated else Signal.FAILED, now_ms)
        reason = event.details.get("reason") if event.kind.startswith("Peer") else None
        self._trouble = "answers with another constitutional hash" if violated else str(reason or "cannot be asked")
        return self._later(now_ms)

    def _later(self, now_ms: int) -> tuple[Effect, ...]:
        earliest_ms, spread_ms = self._circuit.pause_ms(now_ms)
        if self._circuit.state is not CircuitState.OPEN:
            # Nobody waits for a greeting, so it need not be repeated within milliseconds.
            earliest_ms = min(1_000, self._interval_ms)
        return (SetTimer(ref=self._timer, due_ms=now_ms + earliest_ms, spread_ms=spread_ms),)
