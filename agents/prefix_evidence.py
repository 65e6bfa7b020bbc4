"""From a snapshot to what is known of each declared key prefix: its accesses, hit ratio, residents and TTL.

It translates for `cachemodel/prefix_curves` and estimates no curve. Hit ratios come from the loads that follow missed
reads, scaled so that all prefixes together miss what the server counted; a capture that shows clearly fewer misses
than that tells none. INVARIANT: every captured access and every sampled key belongs to exactly one prefix, `""` for
those that match none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cachewarden.cachemodel.evidence import PrefixEvidence
from cachewarden.cachemodel.fills import FoldedCapture, fold_fills
from cachewarden.cachemodel.fixed_size_sample import KeyCounts, hit_ratio_estimate, ratio_estimate
from cachewarden.cachemodel.trace import Op
from cachewarden.estimate import Estimate
from cachewarden.messages import TtlRule
from cachewarden.observation import AccessSample, KeyspaceSample, Snapshot

__all__ = ["access_of", "prefixes_of", "residents_of"]

_SEED = 1
_MISSES_SHOWN_MIN = 0.8
"""As in `pattern_stats`: a capture that shows fewer of the counted misses takes misses for hits."""
_UNJUDGED_MS = 1_000
"""The loads of the last reads may come after the capture's end."""

_Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class _Captured:
    """Accesses of one prefix, and which of its judged reads missed."""

    folded: FoldedCapture
    counts: KeyCounts


def prefixes_of(snapshot: Snapshot, in_force: tuple[TtlRule, ...] = ()) -> tuple[PrefixEvidence, ...]:
    """Return one entry per prefix that was seen in the capture or the keyspace sample, in declared order, `""` last.

    `in_force` are TTL rules: what they extend lives by them, whatever was written.
    """
    access, sample = snapshot.access, snapshot.sample
    names = dict.fromkeys((*(() if sample is None else sample.patterns), *(() if access is None else access.patterns)))
    captured = {} if access is None else {name: _captured(access, name, snapshot) for name in (*names, "")}
    factor = _miss_factor(snapshot, captured)
    rows = sum(len(c.folded.trace) for c in captured.values())
    found = []
    for name in (*names, ""):
        mine = captured.get(name)
        residents = None if sample is None else residents_of(sample, name)
        if (mine is None or len(mine.folded.trace) == 0) and (residents is None or not np.any(residents)):
            continue
        keys_share, bytes_share = (None, None) if sample is None else _shares(sample, name)
        found.append(
            PrefixEvidence(
                pattern=name,
                trace=None if mine is None else mine.folded.trace,
                lookups_share=None if mine is None or rows == 0 else len(mine.folded.trace) / rows,
                hit_ratio=None if mine is None or factor is None else _hit_ratio(mine.counts, factor),
                keys_share=keys_share,
                bytes_share=bytes_share,
                idle_ms=None if sample is None or residents is None else _known_idle(sample, residents),
                ttl_ms=_usual_ttl_ms(snapshot, name, mine, in_force),
            )
        )
    return tuple(found)


def access_of(access: AccessSample, name: str) -> AccessSample:
    """Return the captured accesses of one prefix."""
    mine = _rows_of(access.pattern, access.patterns, name)
    return AccessSample(
        trace=access.trace.rows(mine),
        pattern=access.pattern[mine],
        patterns=access.patterns,
        spatial_rate=access.spatial_rate,
        lines_seen=access.lines_seen,
        aborted=access.aborted,
    )


def residents_of(sample: KeyspaceSample, name: str) -> _Bools:
    """Say of each sampled key whether it belongs to a prefix."""
    return _rows_of(sample.pattern, sample.patterns, name)


def _rows_of(pattern: npt.NDArray[np.int32], patterns: tuple[str, ...], name: str) -> _Bools:
    if not name:
        unmatched: _Bools = (pattern < 0) | (pattern >= len(patterns))
        return unmatched
    if name not in patterns:
        return np.zeros(len(pattern), dtype=np.bool_)
    mine: _Bools = pattern == patterns.index(name)
    return mine


def _captured(access: AccessSample, name: str, snapshot: Snapshot) -> _Captured:
    entries = max(snapshot.used_memory_bytes - snapshot.fixed_overhead_bytes, 1)
    folded = fold_fills(access_of(access, name).trace, int(entries / max(snapshot.resident_keys, 1)))
    trace = folded.trace
    end_ms = int(access.trace.time_ms[-1]) if len(access.trace) else 0
    judged = (trace.op == Op.READ) & (trace.time_ms <= end_ms - _UNJUDGED_MS)
    return _Captured(folded, KeyCounts.of(trace.key[judged], ~folded.missed[judged]))


def _miss_factor(snapshot: Snapshot, captured: dict[str, _Captured]) -> float | None:
    """Return what captured miss ratios are multiplied by to give the counted one; None where they tell nothing."""
    reads = sum(float(c.counts.accesses.sum()) for c in captured.values())
    misses = reads - sum(float(c.counts.hits.sum()) for c in captured.values())
    counted = snapshot.miss_ratio
    if reads == 0 or counted is None or misses / reads < _MISSES_SHOWN_MIN * counted:
        return None
    return 1.0 if misses == 0 else counted / (misses / reads)


def _hit_ratio(counts: KeyCounts, factor: float) -> Estimate | None:
    found = hit_ratio_estimate(counts, _SEED)
    if isinstance(found, str):
        return None

    def scaled(ratio: float) -> float:
        return max(0.0, 1.0 - (1.0 - ratio) * factor)

    return Estimate(scaled(found.value), scaled(found.low), scaled(found.high))


def _shares(sample: KeyspaceSample, name: str) -> tuple[Estimate | None, Estimate | None]:
    """Return the shares of keys and bytes; that of the keys stands for both where sizes are not known."""
    if len(sample) == 0:
        return None, None
    mine = residents_of(sample, name)
    keys = Estimate.of_share(int(np.count_nonzero(mine)), len(sample))
    # A prefix that is read but was not sampled holds something: less than one sampled key stands for.
    keys = keys if keys.value > 0 else Estimate(min(0.5 / len(sample), keys.high), 0.0, keys.high)
    sizes = np.maximum(sample.size_bytes, 0).astype(np.float64)
    if not np.all(sample.size_bytes > 0):
        return keys, keys
    held = ratio_estimate(np.where(mine, sizes, 0.0), sizes, _SEED)
    return keys, keys if isinstance(held, str) or held.value <= 0 else held


def _known_idle(sample: KeyspaceSample, residents: _Bools) -> npt.NDArray[np.int64]:
    idle: npt.NDArray[np.int64] = sample.idle_ms[residents & (sample.idle_ms >= 0)].astype(np.int64)
    return idle


def _usual_ttl_ms(
    snapshot: Snapshot, name: str, captured: _Captured | None, in_force: tuple[TtlRule, ...]
) -> int | None:
    """Return the TTL that most keys of a prefix live by; None where most have none or nothing was seen."""
    rule = next((rule for rule in in_force if rule.pattern == name), None)
    if rule is not None and not rule.unread_ms:
        return rule.extended_ttl_ms - rule.jitter_ms // 2
    stats = next((p for p in snapshot.patterns if p.pattern == name), None)
    if stats is not None and stats.resident_share > 0:
        return stats.written_ttl_ms if stats.keys_with_ttl_share >= 0.5 else None
    if captured is None or len(captured.folded.trace) == 0:
        return None
    return int(np.median(captured.folded.trace.ttl_ms)) or None
