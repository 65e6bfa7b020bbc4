"""The Envoy: speaks for us to ACGS's HTTP services that are configured; it runs only where one is.

It delivers the journal to the Integrity Service (`delivery.py`), is present at the Coordinator and the Blackboard over
HTTP (`presence.py`), and tells the coordinator how it stands with each. It decides nothing, changes nothing of ours,
and nothing waits for it. INVARIANT: whatever a peer does, the journal is only read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from cachewarden.machine import Effect, Send, SetTimer, Started, TimerFired
from cachewarden.peer_messages import PeerHealth, PeerReport
from coordination.delivery import Delivery
from coordination.presence import Presence

__all__ = ["ENVOY", "Envoy"]

ENVOY: Final = "envoy"
_REPORT: Final = "envoy:report"


class Envoy:
    """One delivery at most, and any number of presences; `report_ms` lies between two reports without news."""

    def __init__(
        self,
        delivery: Delivery | None = None,
        presences: Sequence[Presence] = (),
        name: str = ENVOY,
        *,
        report_ms: int = 5_000,
        report_to: str = "coordinator",
    ) -> None:
        self.name = name
        self._delivery = delivery
        self._presences = tuple(presences)
        self._report_ms, self._report_to = report_ms, report_to
        self._told: tuple[tuple[str, bool, str], ...] = ()

    def step(self, event: Any, now_ms: int) -> tuple[Effect, ...]:
        """Take one event; each part picks out its own."""
        effects: list[Effect] = []
        for part in (self._delivery, *self._presences):
            if part is not None:
                effects += part.step(event, now_ms)
        if isinstance(event, Started) or (isinstance(event, TimerFired) and event.ref == _REPORT):
            effects += [self._report(now_ms), SetTimer(ref=_REPORT, due_ms=now_ms + self._report_ms)]
        elif self._gist(now_ms) != self._told:
            effects.append(self._report(now_ms))
        return tuple(effects)

    def peers(self, now_ms: int) -> tuple[PeerHealth, ...]:
        """Return how we stand with each peer."""
        own = () if self._delivery is None else (self._delivery.health(now_ms),)
        return (*own, *(presence.health() for presence in self._presences))

    def _gist(self, now_ms: int) -> tuple[tuple[str, bool, str], ...]:
        return tuple((peer.name, peer.healthy, peer.circuit) for peer in self.peers(now_ms))

    def _report(self, now_ms: int) -> Send:
        self._told = self._gist(now_ms)
        return Send(to=self._report_to, message=PeerReport(peers=self.peers(now_ms)))
