"""One question at a time: of several wishes to take or renew the lease on one cache, only one is on its way.

A change asks for its lease on its main line and renews it at the side, a leader renews between two changes, a stand-by
tries its luck. If two of these questions were on their way at once, each answer could be overtaken by the other one:
the fence would be raised out of order, and we would take our own newer epoch for a newer writer.

It decides nothing else. INVARIANT: per service at most one `AcquireLease` has been let go and not been answered.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from cachewarden.machine import AcquireLease, Effect, EffectFailed, LeaseDenied, LeaseGranted

__all__ = ["LeaseQueue"]


class LeaseQueue:
    """Holds back what has to wait. Every effect gets exactly one answer (`cachewarden.performing`), so none waits for
    ever."""

    def __init__(self) -> None:
        self._asked: dict[str, str] = {}
        """Service to the ref of the question that is on its way."""
        self._waiting: dict[str, deque[AcquireLease]] = {}

    def waits(self, service: str) -> bool:
        """Say whether a question about a service waits for the one before it."""
        return bool(self._waiting.get(service))

    def admit(self, effects: Iterable[Effect]) -> tuple[Effect, ...]:
        """Return the effects without the questions that have to wait; a newer one of the same ref replaces an older."""
        passed: list[Effect] = []
        for effect in effects:
            if not isinstance(effect, AcquireLease):
                passed.append(effect)
            elif effect.service in self._asked:
                waiting = self._waiting.setdefault(effect.service, deque())
                for other in [w for w in waiting if w.ref == effect.ref]:
                    waiting.remove(other)
                waiting.append(effect)
            else:
                self._asked[effect.service] = effect.ref
                passed.append(effect)
        return tuple(passed)

    def answered(self, event: Any) -> tuple[Effect, ...]:
        """Take any event; return the next question if this one answers the one before."""
        service = self._service_of(event)
        if service is None or self._asked.get(service) != event.ref:
            return ()
        waiting = self._waiting.get(service)
        if not waiting:
            self._waiting.pop(service, None)
            del self._asked[service]
            return ()
        effect = waiting.popleft()
        self._asked[service] = effect.ref
        return (effect,)

    def forget(self, key: str) -> None:
        """Take back the questions of a change that still wait."""
        for service, waiting in self._waiting.items():
            self._waiting[service] = deque(w for w in waiting if w.ref.rpartition("#")[0] != key)

    def _service_of(self, event: Any) -> str | None:
        if isinstance(event, LeaseGranted):
            return event.lease.service
        if isinstance(event, LeaseDenied):
            return event.service
        if isinstance(event, EffectFailed) and event.effect == AcquireLease.__name__:
            return next((service for service, ref in self._asked.items() if ref == event.ref), None)
        return None
