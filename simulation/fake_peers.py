"""ACGS's HTTP services and the cursors of deliveries in memory, behind the same ports as the real ones.

`fail_next` and `answers` are the faults that a service can have: dead, 500, cut off after it has done what was asked,
another hash, another program. They pass the same suites as the adapters (`tests/contract/test_http_peers.py`,
`test_delivery_cursors.py`). Nothing here waits or draws: a test says what happens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from cachewarden.errors import BlackboardUnavailable, PeerForgot, PeerRefused, PeerUnavailable, PeerViolation
from cachewarden.peering import CursorClaim, Mark, Opinion
from cachewarden.ports import Clock

__all__ = ["FakeConstitutional", "FakeDeliveryCursors", "FakeIntegrity", "FakePresence", "Fault"]

Fault = Literal["ok", "dead", "error", "refused", "wrong_hash", "cut_after"]
"""`cut_after`: it does what was asked, and the answer is lost."""


def _raise(peer: str, fault: Fault) -> None:
    if fault == "dead":
        raise PeerUnavailable(peer, "cannot be reached (ConnectError)")
    if fault == "error":
        raise PeerUnavailable(peer, "answered 500")
    if fault == "refused":
        raise PeerRefused(peer, "answered 403, it wants another token or tenant", 403)
    if fault == "wrong_hash":
        raise PeerViolation(peer, "0" * 16, "body")
    if fault == "cut_after":
        raise PeerUnavailable(peer, "cannot be reached (RemoteProtocolError)")


class FakeIntegrity:
    """The IntegrityService port on a list; `fault` says how each call goes."""

    def __init__(self, fault: Callable[[], Fault] = lambda: "ok") -> None:
        self.events: list[Mapping[str, Any]] = []
        self.calls = 0
        self.fault = fault

    async def deliver(self, event: Mapping[str, Any]) -> str:
        """Take one event; see the port."""
        self.calls += 1
        fault = self.fault()
        if fault in ("ok", "cut_after"):
            self.events.append(event)
        _raise("integrity", fault)
        return f"event-{len(self.events)}"

    async def close(self) -> None:
        """Nothing to give back."""


class FakeConstitutional:
    """The ConstitutionalService port; `opinion` is what it says of everything."""

    def __init__(self, opinion: Opinion | None = None, fault: Callable[[], Fault] = lambda: "ok") -> None:
        self.opinion = opinion or Opinion(compliant=True, score=0.9)
        self.asked: list[tuple[str, Mapping[str, Any]]] = []
        self.fault = fault

    async def validate(self, content: str, context: Mapping[str, Any]) -> Opinion:
        """Give the opinion; see the port."""
        self.asked.append((content, context))
        _raise("constitutional_ai", self.fault())
        return self.opinion

    async def close(self) -> None:
        """Nothing to give back."""


class FakePresence:
    """The PresenceService port; `program` is what answers, `forget` a restart of it."""

    def __init__(self, peer: str, program: str, fault: Callable[[], Fault] = lambda: "ok") -> None:
        self.peer, self.wanted, self.program = peer, program, program
        self.known = False
        self.greetings = 0
        self.fault = fault

    def forget(self) -> None:
        self.known = False

    async def announce(self, *, first: bool) -> str:
        """Register or greet; see the port."""
        _raise(self.peer, self.fault())
        if first and self.program != self.wanted:
            raise PeerRefused(self.peer, f"is another program (`{self.program}`), not `{self.wanted}`")
        if not first and not self.known:
            raise PeerForgot(self.peer, "does not know us any more", 404)
        self.known = True
        self.greetings += not first
        return self.program

    async def close(self) -> None:
        """Nothing to give back."""


class FakeDeliveryCursors:
    """The DeliveryCursors port on a dict; expiry by the clock that it is given."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.marks: dict[str, Mark] = {}
        self._claims: dict[str, tuple[str, int]] = {}
        self.reachable = True
        self.lose_answer = False
        """The next move is done but not confirmed."""

    async def claim(self, name: str, holder: str, ttl_ms: int) -> CursorClaim:
        """Take or renew; see the port."""
        found, mark = self._holder(name), self.marks.get(name, Mark())
        if found not in (None, holder):
            return CursorClaim(granted=False, mark=mark, holder=str(found))
        self._claims[name] = (holder, self._clock.now_ms() + ttl_ms)
        return CursorClaim(granted=True, mark=mark, holder=holder)

    async def move(self, name: str, holder: str, before: Mark, after: Mark, ttl_ms: int) -> bool:
        """Move and renew, or neither; see the port."""
        if self._holder(name) not in (None, holder) or self.marks.get(name, Mark()) != before:
            return False
        self.marks[name] = after
        self._claims[name] = (holder, self._clock.now_ms() + ttl_ms)
        if self.lose_answer:
            self.lose_answer = False
            raise BlackboardUnavailable("the connection was lost before the answer came")
        return True

    async def close(self) -> None:
        """Nothing to give back."""

    def _holder(self, name: str) -> str | None:
        if not self.reachable:
            raise BlackboardUnavailable("cut off by the simulation")
        holder, until_ms = self._claims.get(name, ("", 0))
        return holder if until_ms > self._clock.now_ms() else None
