"""Reads the settings of the other nodes of a service: CONFIG GET of the knobs that we know, and nothing else.

It uses the user of the service and looks at no key. INVARIANT: nothing is ever written to these nodes, and one that
does not answer costs no other look more than its timeout.
"""

from __future__ import annotations

import asyncio
from typing import Final
from urllib.parse import urlsplit

from cachewarden.errors import OperatingError
from cachewarden.fleet import Service
from cachewarden.knobs import KNOBS
from cachewarden.observation import NodeLook
from coordination.redis_probe import text_of
from coordination.redis_wire import RedisWire, Refusal

__all__ = ["OtherNodes"]

_TIMEOUT_S_MAX: Final = 2.0
"""A look at the service waits no longer for a node that does not answer."""


class OtherNodes:
    """The nodes of one service that its fleet file names beside its URL."""

    def __init__(self, service: Service, password: str | None, timeout_s: float) -> None:
        self._wires = {
            _label(url): RedisWire(
                service.name,
                url,
                username=service.username,
                password=password,
                timeout_s=min(timeout_s, _TIMEOUT_S_MAX),
                max_connections=1,
            )
            for url in service.nodes
        }

    async def look(self) -> tuple[NodeLook, ...]:
        """Return the settings of all nodes, in the order of the fleet file."""
        return tuple(await asyncio.gather(*(_look(node, wire) for node, wire in self._wires.items())))

    async def close(self) -> None:
        """Close all connections."""
        await asyncio.gather(*(wire.close() for wire in self._wires.values()))


def _label(url: str) -> str:
    """Return host and port, or the path of a socket; user and password of a URL stay inside."""
    parts = urlsplit(url)
    return parts.path if parts.scheme == "unix" else f"{parts.hostname or 'localhost'}:{parts.port or 6379}"


async def _look(node: str, wire: RedisWire) -> NodeLook:
    try:
        replies = await wire.ask([("CONFIG", "GET", knob) for knob in sorted(KNOBS)])
    except OperatingError as error:
        return NodeLook(node=node, knobs={}, problem=str(error))
    refused = next((reply for reply in replies if isinstance(reply, Refusal)), None)
    if refused is not None:
        return NodeLook(node=node, knobs={}, problem=refused.reason)
    knobs = {
        text_of(name): text_of(value) for reply in replies for name, value in zip(reply[::2], reply[1::2], strict=True)
    }
    return NodeLook(node=node, knobs=knobs)
