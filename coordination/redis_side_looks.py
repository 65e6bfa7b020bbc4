"""What an adapter looks at beside the counters and keys of its server: the settings of other nodes, the server's own
hot keys, the load of slots.

It puts together and decides nothing. INVARIANT: as of the parts, nothing is written to any server.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from cachewarden.fleet import Service
from cachewarden.observation import Observation
from coordination.redis_hotkeys_session import HotKeySessions
from coordination.redis_nodes import OtherNodes
from coordination.redis_slots import SlotLoads
from coordination.redis_wire import RedisWire

__all__ = ["SideLooks"]


class SideLooks:
    """See the module; `wire` stays the caller's to close."""

    def __init__(
        self,
        wire: RedisWire,
        service: Service,
        *,
        password: str | None,
        hash_secret: bytes,
        own_prefix: bytes,
        timeout_s: float,
        server_share: float,
    ) -> None:
        self._may_capture = service.capture
        self._nodes = OtherNodes(service, password, timeout_s)
        self._slots = SlotLoads(wire)
        self._sessions = HotKeySessions(
            wire,
            hash_secret=hash_secret,
            patterns=tuple(pattern.prefix for pattern in service.patterns),
            own_prefix=own_prefix,
            server_share=server_share,
        )

    async def hot_keys(self, info: Mapping[str, str], now_ms: int) -> None:
        """One turn of the HOTKEYS sessions; raises as `HotKeySessions.turn`."""
        await self._sessions.turn(info, now_ms, permitted=self._may_capture)

    async def slots(self, info: Mapping[str, str], now_ms: int) -> None:
        """One look at the slots; raises as `SlotLoads.look`."""
        await self._slots.look(info, now_ms)

    async def seen(self, observation: Observation, *, nodes: bool) -> Observation:
        """Return the look with what is known of all three, and with `nodes` the other nodes as they are now."""
        return replace(
            observation,
            nodes=await self._nodes.look() if nodes else (),
            hot_keys=self._sessions.newest,
            cluster=self._slots.newest,
        )

    async def close(self) -> None:
        """End a session of ours and close the connections to other nodes."""
        await self._sessions.end()
        await self._nodes.close()
