"""One exact LRU that several prefixes share, simulated key by key: the truth for curves per prefix, and what a capture
and a keyspace sample of it would show."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np

from cachewarden.cachemodel.shards import mix
from cachewarden.cachemodel.trace import AccessTrace, Op


@dataclass(frozen=True)
class Prefix:
    """Poisson reads over a Zipf popularity of `keys`; exponent None: every read asks for a new key."""

    name: str
    keys: int
    exponent: float | None
    reads_per_s: int
    entry_bytes: int
    ttl_ms: int = 0


@dataclass
class Lived:
    """What became of the reads of each prefix in the measured part, and who is resident at the end."""

    reads: dict[str, int]
    hits: dict[str, int]
    evicted: int
    expired: int
    misses: dict[str, int]
    held_bytes: dict[str, float]
    """Mean over the measured part."""
    eviction_age_ms: float | None
    residents: list[tuple[str, int, int, int, int]] = field(default_factory=list)
    """(prefix, key, bytes, idle ms, remaining TTL ms or -1)"""
    commands: list[tuple[int, str, int, int, int, int]] = field(default_factory=list)
    """(time, prefix, key, op, bytes, TTL) from `capture_from_ms` on: reads, and the loads that follow misses"""

    @property
    def hit_ratio(self) -> float:
        return sum(self.hits.values()) / sum(self.reads.values())

    def hit_ratio_of(self, name: str) -> float:
        return self.hits[name] / self.reads[name]


def requests(prefixes: list[Prefix], seconds: int, seed: int) -> list[tuple[int, Prefix, int]]:
    """Reads of all prefixes in time order."""
    rng = np.random.default_rng(seed)
    rows: list[tuple[int, Prefix, int]] = []
    for number, prefix in enumerate(prefixes):
        count = rng.poisson(prefix.reads_per_s * seconds)
        times = np.sort(rng.integers(0, seconds * 1000, count))
        if prefix.exponent is None:
            ids = np.arange(count)
        else:
            popularity = np.arange(1, prefix.keys + 1) ** -prefix.exponent
            ids = rng.choice(prefix.keys, count, p=popularity / popularity.sum())
        hashed = mix((ids.astype(np.uint64) << np.uint64(3)) | np.uint64(number))
        rows += [(int(t), prefix, int(k)) for t, k in zip(times, hashed, strict=True)]
    rows.sort(key=lambda row: row[0])
    return rows


def live(
    rows: list[tuple[int, Prefix, int]], capacity_bytes: float, measure_from_ms: int, capture_from_ms: int | None = None
) -> Lived:
    """Replay through an exact LRU; TTLs are given at the load, and keys go at their deadline."""
    names = sorted({prefix.name for _, prefix, _ in rows})
    zero = dict.fromkeys(names, 0)
    found = Lived({**zero}, {**zero}, 0, 0, {**zero}, dict.fromkeys(names, 0.0), None)
    cache: OrderedDict[int, tuple[Prefix, int, int]] = OrderedDict()
    deadlines: list[tuple[int, int]] = []
    used, ages, held, samples = 0, [], dict.fromkeys(names, 0), 0
    for at_ms, prefix, key in rows:
        counted = at_ms >= measure_from_ms
        while deadlines and deadlines[0][0] <= at_ms:
            until, gone = heapq.heappop(deadlines)
            old = cache.get(gone)
            if old is not None and old[2] == until:
                del cache[gone]
                used -= old[0].entry_bytes
                held[old[0].name] -= old[0].entry_bytes
                found.expired += counted
        entry = cache.get(key)
        if counted:
            found.reads[prefix.name] += 1
            found.hits[prefix.name] += entry is not None
            found.misses[prefix.name] += entry is None
            samples += 1
            for name in names:
                found.held_bytes[name] += held[name]
        captured = capture_from_ms is not None and at_ms >= capture_from_ms
        if captured:
            found.commands.append((at_ms, prefix.name, key, int(Op.READ), 0, 0))
        if entry is not None:
            cache[key] = (prefix, at_ms, entry[2])
            cache.move_to_end(key)
            continue
        cache[key] = (prefix, at_ms, at_ms + prefix.ttl_ms if prefix.ttl_ms else 0)
        if prefix.ttl_ms:
            heapq.heappush(deadlines, (at_ms + prefix.ttl_ms, key))
        used += prefix.entry_bytes
        held[prefix.name] += prefix.entry_bytes
        if captured:
            found.commands.append((at_ms, prefix.name, key, int(Op.WRITE), prefix.entry_bytes, prefix.ttl_ms))
        while used > capacity_bytes:
            _, (other, touched, _) = cache.popitem(last=False)
            used -= other.entry_bytes
            held[other.name] -= other.entry_bytes
            found.evicted += counted
            if counted:
                ages.append(at_ms - touched)
    end = rows[-1][0]
    found.eviction_age_ms = float(np.mean(ages)) if ages else None
    found.held_bytes = {name: total / max(samples, 1) for name, total in found.held_bytes.items()}
    found.residents = [
        (p.name, key, p.entry_bytes, end - touched, max(0, until - end) if until else -1)
        for key, (p, touched, until) in cache.items()
        if not until or until > end
    ]
    return found


def reads_of(rows: list[tuple[int, Prefix, int]], name: str, from_ms: int) -> AccessTrace:
    """The reads of one prefix with the size and TTL that they would be loaded with."""
    mine = [(t, k, p.entry_bytes, p.ttl_ms) for t, p, k in rows if p.name == name and t >= from_ms]
    return AccessTrace.of(
        [m[0] for m in mine],
        np.array([m[1] for m in mine], np.uint64),
        None,
        [m[2] for m in mine],
        [m[3] for m in mine],
    )
