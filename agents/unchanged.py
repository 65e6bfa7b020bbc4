"""What a cache in the middle of a change would hit without it: from a snapshot to the replay that tells.

It translates, and says nothing where the capture cannot tell: keys that live by TTLs, no limit of memory, a capture too
short to fill the cache that was. INVARIANT: what is replayed is the configuration before the change, whichever of its
knobs the server has by now.
"""

from __future__ import annotations

from collections.abc import Mapping

from agents.evidence import configuration_of
from agents.snapshots import WINDOW_STRETCH_MAX
from cachewarden.cachemodel.counterfactual_replay import replay_unchanged
from cachewarden.cachemodel.fills import fold_fills
from cachewarden.counterfactual import Counterfactual
from cachewarden.observation import Snapshot
from cachewarden.settings import CacheOptimizerSettings

__all__ = ["REPLAYABLE_KNOBS", "counterfactual_of"]

REPLAYABLE_KNOBS = frozenset({
    "maxmemory", "maxmemory-policy", "maxmemory-samples", "lfu-log-factor", "lfu-decay-time",
})  # fmt: skip
"""Knobs whose effect on hits a replay knows. One that it does not know would be taken for the traffic's."""

_SOURCE = "monitor capture"
"""Times of its rows are the server's, as are those of the windows that they are compared with."""
_WINDOWS_MORE = 4
"""Beyond the baseline and those of the change: for its steps, and for what comes late."""
_WINDOWS_TOLD_MAX = 40
_BUCKETS_PER_WINDOW = 24


def counterfactual_of(
    snapshot: Snapshot, proposal_id: str, before: Mapping[str, str], settings: CacheOptimizerSettings
) -> Counterfactual | None:
    """Return what is known of the time of a change without it, None where nothing is; `before` is what its knobs were,
    or are."""
    access = snapshot.access
    if access is None or access.source != _SOURCE or not before or not set(before) <= REPLAYABLE_KNOBS:
        return None
    if snapshot.resident_keys == 0 or 2 * snapshot.keys_with_ttl >= snapshot.resident_keys:
        return None
    unchanged = configuration_of({**snapshot.knobs, **before})
    if unchanged is None or unchanged.maxmemory_bytes == 0:
        return None
    entry_bytes = max(1, (snapshot.used_memory_bytes - snapshot.fixed_overhead_bytes) // snapshot.resident_keys)
    windows = WINDOW_STRETCH_MAX + settings.observation_windows_max + _WINDOWS_MORE
    told_ms = min(windows, _WINDOWS_TOLD_MAX) * settings.observation_window_ms
    bucket_ms = max(1, settings.observation_window_ms // _BUCKETS_PER_WINDOW)
    trace = fold_fills(access.trace, entry_bytes).trace
    if len(trace) == 0:
        return None
    found = replay_unchanged(
        trace,
        access.spatial_rate,
        unchanged,
        max(0, unchanged.maxmemory_bytes - snapshot.fixed_overhead_bytes),
        entry_bytes,
        int(trace.time_ms[-1]) - told_ms,
        bucket_ms,
    )
    if found is None:
        return None
    return Counterfactual(
        service=snapshot.service,
        proposal_id=proposal_id,
        from_ms=found.from_ms,
        bucket_ms=bucket_ms,
        lookups=found.lookups,
        hits=found.hits,
        spatial_rate=access.spatial_rate,
        distinct_keys=found.distinct_keys,
    )
