"""Hot keys of one service, as the API shows them, and what could be done about them: measures with measured numbers.

Everything is advice: applications, replicas and slots are not ours to change. INVARIANT: a measure is advised only
where the whole interval of its gain lies above the least gain, and each has its numbers or its reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Final

from pydantic import BaseModel, Field

from cachewarden.cachemodel.hot_keys import (
    HotKey,
    HotKeys,
    hot_by_frequency,
    hot_by_server,
    hot_in_capture,
    severity_of,
)
from cachewarden.cachemodel.lfu_rates import LfuLaw
from cachewarden.estimate import Estimate
from cachewarden.messages import CONSTITUTIONAL_HASH
from cachewarden.observation import Snapshot
from serve.slot_moves import SlotMovesView, slot_moves_view
from serve.timestamps import iso

__all__ = ["HotKeysResponse", "hot_keys_view"]

_LEAST_GAIN: Final = 0.02
"""Of all lookups; below it a measure costs more than it gives."""
_REPLICAS: Final = (1, 2)
_SPLIT_SHARE: Final = 0.05
_SPLIT_WRITES: Final = 0.2
_PARTS_MAX: Final = 64


class ShareView(BaseModel):
    value: float
    low: float
    high: float


class HotKeyView(BaseModel):
    """One key, by its keyed hash; names never leave the collector."""

    key_hash: str
    prefix: str | None = Field(description="declared pattern that it matches")
    severity: str = Field(description="high, medium, low, or unknown where no share of the load is known")
    share: ShareView | None = Field(description="of all lookups, 0..1; of the network's bytes where HOTKEYS tells it")
    cpu_share: ShareView | None = Field(None, description="of the time of all commands, where HOTKEYS tells it")
    reads: int
    writes: int
    size_bytes: int | None
    lfu_counter: int | None


class MeasureView(BaseModel):
    """One thing that could be done; nothing of it is done by us."""

    measure: str = Field(description="client_side_caching, replica_reads or key_splitting")
    advised: bool
    reason: str
    gain: ShareView | None = Field(None, description="share of all lookups that the server no longer answers")
    details: dict[str, Any] = Field(default_factory=dict)


class HotKeysResponse(BaseModel):
    """Hot keys of a live cache. Nothing was changed, and none of this is a plan."""

    service_name: str
    taken_at: str | None
    answered: bool
    reason: str = ""
    source: str = ""
    window_s: float = 0.0
    lookups: int = Field(0, description="of the whole cache in that time")
    spatial_rate: float = Field(1.0, description="share of the keys that was looked at; a hot key is seen with it only")
    keys: list[HotKeyView] = Field(default_factory=list)
    share: ShareView | None = Field(None, description="of all lookups that these keys take together")
    measures: list[MeasureView] = Field(default_factory=list)
    slot_moves: SlotMovesView | None = Field(None, description="where the service is a node of a Redis Cluster")
    tried: dict[str, str] = Field(default_factory=dict, description="other ways to find hot keys, and why not")
    constitutional_hash: str = CONSTITUTIONAL_HASH


def hot_keys_view(snapshot: Snapshot, clients: int, limit: int, fleet: Iterable[Snapshot] = ()) -> HotKeysResponse:
    """Return the hot keys by the best means that this look has: a capture or feed, else HOTKEYS of the
    server, else LFU counters. `fleet` are the newest looks at all services, among them other nodes of its cluster."""
    tried: dict[str, str] = {}
    found: HotKeys | str = snapshot.incomplete.get("access", "accesses are neither captured nor reported")
    if snapshot.access is not None:
        found = hot_in_capture(snapshot.access, clients, limit)
    if isinstance(found, str):
        tried["capture"] = found
        found = _without_capture(snapshot, clients, limit, tried)
    answer = HotKeysResponse(
        service_name=snapshot.service,
        taken_at=iso(snapshot.taken_at_ms),
        answered=not isinstance(found, str),
        tried=tried,
        slot_moves=slot_moves_view(snapshot, fleet) if _in_cluster(snapshot) else None,
    )
    if isinstance(found, str):
        answer.reason = "; ".join(tried.values())
        return answer
    answer.source, answer.window_s = found.source, found.window_ms / 1000
    answer.lookups, answer.spatial_rate = found.lookups, found.spatial_rate
    answer.keys = [_key(key) for key in found.keys]
    answer.share = _share(found.share)
    answer.measures = [_client_caching(found), _replicas(found), *_splitting(found)]
    return answer


def _in_cluster(snapshot: Snapshot) -> bool:
    return snapshot.cluster is not None or "cluster" in snapshot.incomplete


def _without_capture(snapshot: Snapshot, clients: int, limit: int, tried: dict[str, str]) -> HotKeys | str:
    """Return what the server itself tells: by HOTKEYS, else by LFU counters."""
    if snapshot.hot_keys is not None:
        return hot_by_server(snapshot.hot_keys, clients, limit)
    none_yet = "no session has ended: it needs Redis 8.6 and `capture: true` in the fleet file"
    tried["hotkeys"] = snapshot.incomplete.get("hot_keys", none_yet)
    found = _by_counters(snapshot, clients, limit)
    if isinstance(found, str):
        tried["lfu_counters"] = found
    return found


def _by_counters(snapshot: Snapshot, clients: int, limit: int) -> HotKeys | str:
    if snapshot.sample is None:
        return "no keys were sampled"
    factor, decay = (snapshot.knobs.get(name, "") for name in ("lfu-log-factor", "lfu-decay-time"))
    law = None
    if factor.isdecimal() and decay.isdecimal() and snapshot.sample.counted_ms:
        law = LfuLaw(log_factor=int(factor), decay_min=int(decay), counted_ms=snapshot.sample.counted_ms)
    return hot_by_frequency(
        snapshot.sample,
        clients,
        limit,
        law=law,
        lookups_per_s=snapshot.lookups_per_s,
        resident_keys=snapshot.resident_keys,
    )


def _key(key: HotKey) -> HotKeyView:
    return HotKeyView(
        key_hash=f"{key.key:016x}",
        prefix=key.pattern,
        severity=severity_of(key.share, key.cpu_share),
        share=_share(key.share),
        cpu_share=_share(key.cpu_share),
        reads=key.reads,
        writes=key.writes,
        size_bytes=key.size_bytes,
        lfu_counter=key.frequency,
    )


def _share(share: Estimate | None) -> ShareView | None:
    return None if share is None else ShareView(value=share.value, low=share.low, high=share.high)


def _client_caching(found: HotKeys) -> MeasureView:
    name = "client_side_caching"
    if found.saved is None:
        return MeasureView(
            measure=name, advised=False, reason="needs a capture or feed: counters give no reads and writes"
        )
    if not found.keys:
        return MeasureView(measure=name, advised=False, reason="no key takes more than 1 % of the lookups")
    worth = found.saved.low > _LEAST_GAIN
    bytes_held = sum(key.size_bytes or 0 for key in found.keys)
    return MeasureView(
        measure=name,
        advised=worth,
        reason=(
            f"{found.clients} clients that cache these {len(found.keys)} keys (CLIENT TRACKING) would spare the server "
            f"{found.saved.value:.1%} of its lookups" + ("" if worth else f", not surely more than {_LEAST_GAIN:.0%}")
        ),
        gain=_share(found.saved),
        details={"clients": found.clients, "keys": len(found.keys), "bytes_per_client": bytes_held},
    )


def _replicas(found: HotKeys) -> MeasureView:
    name = "replica_reads"
    if found.reads_of_commands is None or found.share is None:
        return MeasureView(measure=name, advised=False, reason="needs a capture or feed: counters give no shares")
    reads = found.reads_of_commands
    loads = {f"primary_load_with_{n}": round(1.0 - reads + reads / (n + 1), 4) for n in _REPLICAS}
    moved = Estimate(found.share.value / 2, found.share.low / 2, found.share.high / 2)
    worth = moved.low > _LEAST_GAIN
    return MeasureView(
        measure=name,
        advised=worth,
        reason=(
            f"one replica that takes half of the reads of these keys takes {moved.value:.1%} of the lookups; what it "
            "answers may be older by the replication lag"
            + ("" if worth else f", not surely more than {_LEAST_GAIN:.0%}")
        ),
        gain=_share(moved),
        details={"reads_of_commands": round(reads, 4), **loads},
    )


def _splitting(found: HotKeys) -> list[MeasureView]:
    """Return advice for keys whose writes keep caches and replicas from helping."""
    measures = []
    for key in found.keys:
        if key.share is None or key.share.low < _SPLIT_SHARE:
            continue
        writes = key.writes / max(key.reads + key.writes, 1)
        if writes < _SPLIT_WRITES:
            continue
        parts = min(_PARTS_MAX, math.ceil(key.share.value / 0.01))
        measures.append(
            MeasureView(
                measure="key_splitting",
                advised=True,
                reason=(
                    f"{writes:.0%} of its commands write, so copies do not help: of {parts} parts each takes "
                    f"{key.share.value / parts:.1%} of the lookups, and in a cluster lies in another slot"
                ),
                details={"key_hash": f"{key.key:016x}", "parts": parts, "writes_share": round(writes, 4)},
            )
        )
    return measures
