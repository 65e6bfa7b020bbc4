"""Being known to ACGS's Coordinator (8008) and to its Blackboard over HTTP (8010). Both keep everything in memory.

Several programs answer on these ports; which one it is says `service` in its `/health`, and to any other than the one
that is meant nothing is written. It decides nothing. INVARIANT: nothing is registered before the program was seen.
"""

from __future__ import annotations

from typing import Any, Final

from cachewarden.errors import PeerForgot, PeerRefused, PeerUnavailable
from cachewarden.messages import AGENT_ID, CAPABILITIES, CONSTITUTIONAL_HASH
from coordination.http_wire import Answer, HttpWire, refused

__all__ = ["BLACKBOARD_HTTP", "COORDINATOR_HTTP", "HttpBlackboardPresence", "HttpCoordinatorPresence"]

COORDINATOR_HTTP: Final = "coordinator_http"
BLACKBOARD_HTTP: Final = "blackboard_http"

_ENTRY_ID: Final = f"{AGENT_ID}-presence"


async def _identify(wire: HttpWire, wanted: str) -> str:
    answer = await wire.call("GET", "/health")
    if answer.status != 200:
        raise refused(wire.peer, answer)
    program = answer.body.get("service") if isinstance(answer.body, dict) else None
    if program != wanted:
        shown = str(program)[:64] if program is not None and str(program).isprintable() else "unknown"
        raise PeerRefused(wire.peer, f"is another program (`{shown}`), not `{wanted}`")
    return wanted


def _require(wire: HttpWire, answer: Answer, *, first: bool) -> None:
    if answer.status == 404 and not first:
        raise PeerForgot(wire.peer, "does not know us any more", 404)
    if answer.status != 200:
        raise refused(wire.peer, answer)


class HttpCoordinatorPresence:
    """The PresenceService port on the Coordinator: an agent of type `domain_specialist`, greeted by its status."""

    program: Final = "multi-agent-coordinator"

    def __init__(self, wire: HttpWire) -> None:
        self._wire = wire

    async def announce(self, *, first: bool) -> str:
        """Register or set our status; see the port."""
        if not first:
            answer = await self._wire.call("PUT", f"/api/v1/agents/{AGENT_ID}/status", query="status=available")
            _require(self._wire, answer, first=False)
            return self.program
        await _identify(self._wire, self.program)
        body = {
            "agent_id": AGENT_ID,
            "agent_type": "domain_specialist",
            "status": "available",
            "current_tasks": [],
            "capacity": 5,
        }
        answer = await self._wire.call("POST", "/api/v1/agents/register", body)
        _require(self._wire, answer, first=True)
        if not isinstance(answer.body, dict) or answer.body.get("success") is not True:
            raise PeerUnavailable(self._wire.peer, "did not confirm the registration")
        return self.program

    async def close(self) -> None:
        """Close all connections."""
        await self._wire.close()


class HttpBlackboardPresence:
    """The PresenceService port on the Blackboard over HTTP: one knowledge entry of a fixed id, written again."""

    program: Final = "blackboard"

    def __init__(self, wire: HttpWire) -> None:
        self._wire = wire

    async def announce(self, *, first: bool) -> str:
        """Write the entry or renew it; see the port."""
        content: dict[str, Any] = {
            "agent_id": AGENT_ID,
            "capabilities": list(CAPABILITIES),
            "status": "available",
            "constitutional_hash": CONSTITUTIONAL_HASH,
        }
        if not first:
            answer = await self._wire.call("PUT", f"/api/v1/knowledge/{_ENTRY_ID}", {"content": content})
            _require(self._wire, answer, first=False)
            return self.program
        await _identify(self._wire, self.program)
        body = {
            "entry_id": _ENTRY_ID,
            "knowledge_type": "operational_procedure",
            "content": content,
            "source_agent": AGENT_ID,
            "confidence_level": 1.0,
            "constitutional_hash": CONSTITUTIONAL_HASH,
            "tags": ["agent", "presence", "cache"],
            "references": [],
        }
        answer = await self._wire.call("POST", "/api/v1/knowledge", body)
        _require(self._wire, answer, first=True)
        if not isinstance(answer.body, dict) or answer.body.get("success") is not True:
            raise PeerUnavailable(self._wire.peer, "did not confirm the entry")
        return self.program

    async def close(self) -> None:
        """Close all connections."""
        await self._wire.close()
