"""ACGS's Integrity Service (8002) over HTTP: `POST /api/v1/persistent-audit/events`, one event at a time.

Only 201 means delivered. The service has no idempotency key and gives events ids of its own, so our id travels in the
body's `request_id`, in `metadata` and in the header; whoever reads the events finds repetitions by it. It decides
nothing. INVARIANT: a return means that the service has said 201 to exactly this event.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from coordination.http_wire import HttpWire, refused

__all__ = ["HttpIntegrity"]

_EVENTS: Final = "/api/v1/persistent-audit/events"
_CREATED: Final = 201


class HttpIntegrity:
    """The IntegrityService port."""

    def __init__(self, wire: HttpWire) -> None:
        self._wire = wire

    async def deliver(self, event: Mapping[str, Any]) -> str:
        """Hand over one event; see the port."""
        answer = await self._wire.call("POST", _EVENTS, event, request_id=str(event.get("request_id", "")))
        if answer.status != _CREATED:
            raise refused(self._wire.peer, answer)
        # A 201 whose body cannot be read is a 201 all the same.
        return str(answer.body.get("event_id", "")) if isinstance(answer.body, dict) else ""

    async def close(self) -> None:
        """Close all connections."""
        await self._wire.close()
