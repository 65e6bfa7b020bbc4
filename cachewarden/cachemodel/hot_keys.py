"""Which keys carry more of the load than one key should, and what caching them in the client would save.

From a hashed capture each hot key has its share of all lookups; from LFU counters of sampled residents the share that
the law of the counter gives back (`lfu_rates`), or only an order where the server's parameters are not known.
It proposes nothing. INVARIANT: keys are 64-bit keyed hashes; a share is never more than what was counted, and where
nothing can be told there is a reason in words.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cachewarden.cachemodel.lfu_rates import LfuLaw, rate_of_counter
from cachewarden.cachemodel.trace import Op
from cachewarden.estimate import Estimate
from cachewarden.observation import AccessSample, KeyspaceSample, ServerHotKeys

__all__ = [
    "HOT_SHARE",
    "HotKey",
    "HotKeys",
    "client_fetches",
    "hot_by_frequency",
    "hot_by_server",
    "hot_in_capture",
    "severity_of",
]

HOT_SHARE = 0.01
"""Of all lookups; a key with less is not worth a measure of its own."""
_READS_MIN = 500
_HIGH, _MEDIUM = 0.10, 0.03


@dataclass(frozen=True, slots=True, kw_only=True)
class HotKey:
    """One key. `share` (0..1) of all lookups, None where nothing but an order is known; `frequency` is the server's LFU
    counter (0..255);
    `reads` and `writes` as captured; `lookups_saved`: of `reads`, answered by client caches (expected)."""

    key: int
    pattern: str | None
    share: Estimate | None
    reads: int = 0
    writes: int = 0
    size_bytes: int | None = None
    frequency: int | None = None
    cpu_share: Estimate | None = None
    """Of the time that the server spends in commands; only where it tells."""
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


def severity_of(share: Estimate | None, cpu_share: Estimate | None = None) -> str:
    """Return `high` (a tenth of the load and more), `medium` or `low`, by the larger share; `unknown` without any."""
    known = [one.value for one in (share, cpu_share) if one is not None]
    if not known:
        return "unknown"
    return "high" if max(known) >= _HIGH else "medium" if max(known) >= _MEDIUM else "low"


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


def hot_by_server(session: ServerHotKeys, clients: int, limit: int = 20, least_share: float = HOT_SHARE) -> HotKeys:
    """Return the hot keys that a HOTKEYS session of the server names, by their share of the network's bytes.

    The server adds up one in `sample_ratio` commands; the interval is that of so many sampled commands. Where none is
    known to have been sampled it is 0..1. `cpu_share` is of the time of all commands, in whole microseconds each.
    """
    sampled = max(0, session.commands // session.sample_ratio)
    found = []
    for key, pattern, cpu_us, net_bytes in session.keys[:limit]:
        share = _of_total(net_bytes * session.sample_ratio, session.net_bytes, sampled)
        cpu = _of_total(cpu_us * session.sample_ratio, session.cpu_us, sampled)
        if max(share.value, cpu.value) > least_share:
            found.append(HotKey(key=key, pattern=pattern, share=share, cpu_share=cpu))
    return HotKeys(
        source=f"HOTKEYS of the server, shares of its network bytes, one in {session.sample_ratio} commands",
        window_ms=session.window_ms,
        lookups=0,
        spatial_rate=1.0,
        keys=tuple(found),
        clients=clients,
        share=_sum_of([key.share for key in found if key.share is not None]),
    )


def _of_total(part: int, total: int, sampled: int) -> Estimate:
    share = min(1.0, part / total) if total > 0 else 0.0
    if sampled <= 0:
        return Estimate(share, 0.0, 1.0)
    counted = Estimate.of_share(round(share * sampled), sampled)
    return Estimate(share, min(share, counted.low), max(share, counted.high))


def hot_by_frequency(
    sample: KeyspaceSample,
    clients: int,
    limit: int = 20,
    *,
    law: LfuLaw | None = None,
    lookups_per_s: float = 0.0,
    resident_keys: int = 0,
    least_share: float = HOT_SHARE,
) -> HotKeys | str:
    """Return the sampled keys with the highest LFU counters, or why the sample does not tell.

    With `law` and `lookups_per_s` each has a share, and only those above `least_share` are returned: an access of any
    kind counts, so a key that is written as well has a share that is too high by its writes. Shares are of the lookups,
    or of what the counters of all keys tell together where that is more. Without them there is an
    order only. A key outside the sample is not seen; `resident_keys` says how likely that is.
    """
    known = np.flatnonzero(sample.frequency >= 0)
    if len(known) == 0:
        return "the server keeps no access frequencies, which it does under an LFU policy only"
    order = known[np.lexsort((sample.key[known], -sample.frequency[known]))][:limit]
    known_law = law is not None and lookups_per_s > 0.0
    shares: list[Estimate | None] = [None] * len(order)
    if law is not None and known_law:
        rates = {c: rate_of_counter(c, law) for c in set(sample.frequency[known].tolist())}
        # Where the load was heavier before, counters know of more than is asked for now: then they are held against
        # each other, for all keys that are like the sampled ones.
        told = sum(rates[c].value for c in sample.frequency[known].tolist())
        all_per_s = max(lookups_per_s, told * max(1.0, resident_keys / len(known)))
        shares = [_share_of(rates[int(sample.frequency[i])], all_per_s) for i in order]
    found = tuple(
        HotKey(
            key=int(sample.key[i]),
            pattern=sample.patterns[sample.pattern[i]] if sample.pattern[i] >= 0 else None,
            share=share,
            size_bytes=int(sample.size_bytes[i]) if sample.size_bytes[i] > 0 else None,
            frequency=int(sample.frequency[i]),
        )
        for i, share in zip(order, shares, strict=True)
        if share is None or share.value > least_share
    )
    return HotKeys(
        source="LFU counters of sampled keys" + (f", {law.words}" if law is not None and known_law else ""),
        window_ms=law.counted_ms if law is not None and known_law else 0,
        lookups=0,
        spatial_rate=min(1.0, len(sample) / resident_keys) if resident_keys > 0 else 1.0,
        keys=found,
        clients=clients,
        share=_sum_of([key.share for key in found if key.share is not None]) if known_law else None,
    )


def _share_of(rate: Estimate, all_per_s: float) -> Estimate:
    low, value, high = (min(1.0, part / all_per_s) for part in (rate.low, rate.value, rate.high))
    return Estimate(value, low, high)


def _sum_of(shares: list[Estimate]) -> Estimate:
    parts = [(s.low, s.value, s.high) for s in shares] or [(0.0, 0.0, 0.0)]
    low, value, high = (min(1.0, sum(part)) for part in zip(*parts, strict=True))
    return Estimate(value, low, high)
