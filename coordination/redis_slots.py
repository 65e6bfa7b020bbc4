"""The load of the slots of one node of a Redis Cluster, by the server's own statistics.

`CLUSTER SLOT-STATS ORDERBY cpu-usec` (Valkey 8.0, Redis 8.2; switched on by `cluster-slot-stats-enabled`) counts the
time of commands by slot since the start; two looks give a load. What the busiest slots leave of the time of all
commands is the node's other load. It looks at no key, and follows no redirection to other nodes.

INVARIANT: a load is the difference of two looks at one process; no counter that fell is taken for one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

from cachewarden.errors import TargetRefused
from cachewarden.observation import ClusterLoad
from coordination.redis_probe import text_of
from coordination.redis_wire import RedisWire, Refusal, require

__all__ = ["SlotLoads", "primaries_of", "slot_times_of"]

_SLOTS_ASKED: Final = 200
_WINDOW_MS_MIN: Final = 1_000
_OFF: Final = "the server keeps no statistics of slots: set `cluster-slot-stats-enabled yes` (Valkey 8.0, Redis 8.2)"


def primaries_of(nodes: str) -> tuple[str, ...]:
    """Return the ids of the nodes that hold slots, sorted, from the text of CLUSTER NODES."""
    rows = (line.split() for line in nodes.splitlines())
    return tuple(sorted(row[0] for row in rows if len(row) > 8 and "master" in row[2]))


def slot_times_of(reply: Any) -> dict[int, int]:
    """Return slot to `cpu-usec` of a reply to CLUSTER SLOT-STATS."""
    times = {}
    for slot, body in reply:
        fields = {text_of(name): value for name, value in zip(body[::2], body[1::2], strict=True)}
        times[int(slot)] = int(fields.get("cpu-usec", 0))
    return times


def _command_us(info: Mapping[str, str]) -> float:
    parts = (text.split(",") for name, text in info.items() if name.startswith("cmdstat_"))
    return sum(float(p.removeprefix("usec=")) for fields in parts for p in fields if p.startswith("usec="))


class SlotLoads:
    """What one adapter knows of the slots of its node; `newest` is None before the second look."""

    def __init__(self, wire: RedisWire) -> None:
        self._wire = wire
        self._last: tuple[str, int, float, dict[int, int]] | None = None
        """Process, time of ours in milliseconds, microseconds of all commands, and of each slot."""
        self.newest: ClusterLoad | None = None

    async def look(self, info: Mapping[str, str], now_ms: int) -> None:
        """Take a look where the server is a node of a cluster; raises TargetRefused where it keeps no statistics."""
        if info.get("cluster_enabled") != "1":
            return
        nodes = text_of(await self._wire.call("CLUSTER", "NODES"))
        command = ("CLUSTER", "SLOT-STATS", "ORDERBY", "cpu-usec", "LIMIT", _SLOTS_ASKED, "DESC")
        (reply,) = await self._wire.ask([command])
        if isinstance(reply, Refusal):
            self.newest = self._last = None
            denied = "permission" in reply.reason.lower()
            raise TargetRefused(self._wire.service, "CLUSTER SLOT-STATS", reply.reason if denied else _OFF)
        times, run_id = slot_times_of(require(self._wire.service, reply)), info.get("run_id", "")
        total_us = _command_us(info)
        last, self._last = self._last, (run_id, now_ms, total_us, times)
        if last is None or last[0] != run_id or now_ms - last[1] < _WINDOW_MS_MIN or total_us < last[2]:
            self.newest = None
            return
        self.newest = _load(primaries_of(nodes), now_ms - last[1], total_us - last[2], times, last[3])


def _load(
    primaries: tuple[str, ...], window_ms: int, total_us: float, times: Mapping[int, int], before: Mapping[int, int]
) -> ClusterLoad:
    # A slot that was not among the busiest before has no earlier count: it is part of the other load.
    spent = {slot: us - before[slot] for slot, us in times.items() if slot in before and us >= before[slot]}
    per_s = 1000.0 / window_ms
    return ClusterLoad(
        cluster=hashlib.sha256(" ".join(primaries).encode()).hexdigest()[:16],
        primaries=len(primaries),
        window_ms=window_ms,
        slots=tuple((slot, us * per_s) for slot, us in sorted(spent.items()) if us > 0),
        other_us_per_s=max(0.0, total_us - sum(spent.values())) * per_s,
    )
