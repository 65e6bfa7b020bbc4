"""Which keys carry more of the load than one key should, and what caching them in the client would save.

From a hashed capture each hot key has its share of all lookups; from LFU counters of sampled residents only an order.
It proposes nothing. INVARIANT: keys are 64-bit keyed hashes; a share is never more than what was counted, and where
nothing can be told there is a reason in words.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cachewarden.cachemodel.trace import Op
from cachewarden.estimate import Estimate
from cachewarden.observation import AccessSample, KeyspaceSample

__all__ = ["HOT_SHARE", "HotKey", "HotKeys", "client_fetches", "hot_by_frequency", "hot_in_capture", "severity_of"]

HOT_SHARE = 0.01
"""Of all lookups; a key with less is not worth a measure of its own."""
_READS_MIN = 500
_HIGH, _MEDIUM = 0.10, 0.03


@dataclass(frozen=True, slots=True, kw_only=True)
class HotKey:
    """One key. `share` (0..1) of all lookups, None where only `frequency` (the server's LFU counter, 0..255) is known;
    `reads` and `writes` as captured; `lookups_saved`: of `reads`, answered by client caches (expected)."""

    key: int
    pattern: str | None
    share: Estimate | None
    reads: int = 0
    writes: int = 0
    size_bytes: int | None = None
    frequency: int | None = None
    lookups_saved: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HotKeys:
    """The hot keys, hottest first, and what they were found by.

    `saved` is the share of all lookups (0..1) that client caches of `clients` clients would answer; `reads_of_commands`
    that of reads among all captured commands; both None where only frequencies are known.
    """

    source: str
    window_ms: int
    lookups: int
    spatial_rate: float
    keys: tuple[HotKey, ...]
    clients: int
    share: Estimate | None = None
    saved: Estimate | None = None
    reads_of_commands: float | None = None


def severity_of(share: Estimate | None) -> str:
    """Return `high` (a tenth of the load and more), `medium` or `low`; `unknown` without a share."""
    if share is None:
        return "unknown"
    return "high" if share.value >= _HIGH else "medium" if share.value >= _MEDIUM else "low"


def client_fetches(reads_between_writes: list[int], clients: int) -> float:
    """Return how many of the reads still reach the server if each of `clients` (>= 1) caches the key until it is
    written: of n reads by uniformly drawn clients, the expected number of different ones, C (1 - (1 - 1/C)^n)."""
    return sum(clients * (1.0 - (1.0 - 1.0 / clients) ** n) for n in reads_between_writes)


def hot_in_capture(
    access: AccessSample, clients: int, limit: int = 20, least_share: float = HOT_SHARE
) -> HotKeys | str:
    """Return the keys with more than `least_share` of all lookups, or why a capture does not tell.

    Under a spatial rate below 1 a hot key is seen with that probability only.
    """
    trace = access.trace
    reads = trace.op == Op.READ
    seen = int(np.count_nonzero(reads))
    if seen < _READS_MIN:
        return f"the capture shows {seen} lookups, {_READS_MIN} are needed"
    lookups = max(round(seen / access.spatial_rate), seen)
    names, counts = np.unique(trace.key[reads], return_counts=True)
    order = np.lexsort((names, -counts))[:limit]
    hot = [(int(names[i]), int(counts[i])) for i in order if counts[i] > least_share * lookups]
    found = tuple(_described(access, key, count, lookups, clients) for key, count in hot)
    changes = int(np.count_nonzero(trace.op != Op.READ))
    saved = sum(key.lookups_saved for key in found)
    return HotKeys(
        source=access.source,
        window_ms=trace.duration_ms,
        lookups=lookups,
        spatial_rate=access.spatial_rate,
        keys=found,
        clients=clients,
        share=Estimate.of_share(sum(count for _, count in hot), lookups),
        saved=Estimate.of_share(round(saved), lookups),
        reads_of_commands=seen / (seen + changes),
    )


def _described(access: AccessSample, key: int, count: int, lookups: int, clients: int) -> HotKey:
    trace = access.trace
    mine = np.flatnonzero(trace.key == np.uint64(key))
    ops = trace.op[mine]
    pattern = int(access.pattern[mine[0]])
    segments: list[int] = [0]
    for op in ops:
        if op == Op.READ:
            segments[-1] += 1
        else:
            segments.append(0)
    sizes = trace.size_bytes[mine]
    return HotKey(
        key=key,
        pattern=access.patterns[pattern] if pattern >= 0 else None,
        share=Estimate.of_share(count, lookups),
        reads=count,
        writes=len(ops) - count,
        size_bytes=int(sizes.max()) if sizes.max(initial=0) > 0 else None,
        lookups_saved=max(0.0, count - client_fetches(segments, clients)),
    )


def hot_by_frequency(sample: KeyspaceSample, clients: int, limit: int = 20) -> HotKeys | str:
    """Return the sampled keys with the highest LFU counters, or why the sample does not tell.

    The counter is logarithmic and decays, so it gives an order and no share. A key outside the sample is not seen.
    """
    known = np.flatnonzero(sample.frequency >= 0)
    if len(known) == 0:
        return "the server keeps no access frequencies, which it does under an LFU policy only"
    order = known[np.lexsort((sample.key[known], -sample.frequency[known]))][:limit]
    found = tuple(
        HotKey(
            key=int(sample.key[i]),
            pattern=sample.patterns[sample.pattern[i]] if sample.pattern[i] >= 0 else None,
            share=None,
            size_bytes=int(sample.size_bytes[i]) if sample.size_bytes[i] > 0 else None,
            frequency=int(sample.frequency[i]),
        )
        for i in order
    )
    return HotKeys(
        source="LFU counters of sampled keys", window_ms=0, lookups=0, spatial_rate=1.0, keys=found, clients=clients
    )
