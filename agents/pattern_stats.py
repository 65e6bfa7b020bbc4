"""What each declared key pattern looks like: its share of keys, bytes and lookups, its hit ratio and the TTL that it
is written with.

Shares of keys and bytes come from the keyspace sample, lookups and hits from the capture; where one is missing its
figures are None. It decides nothing. INVARIANT: no plain key name; patterns are the literal prefixes that the fleet
file declares.
"""

from __future__ import annotations

import numpy as np

from agents.captured_reads import CapturedReads
from cachewarden.observation import KeyspaceSample, PatternStats

__all__ = ["pattern_stats"]

# A capture that shows fewer of the counted misses than this takes misses for hits: nobody loads them, or the server
# refuses the loads.
_MISSES_SHOWN_MIN = 0.8


def pattern_stats(
    sample: KeyspaceSample | None, reads: CapturedReads | None, miss_ratio: float | None = None
) -> tuple[PatternStats, ...]:
    """Return one entry per declared pattern, in the sample's order; none without a keyspace sample.

    `miss_ratio` is what the server counted: the hit ratios of a capture that shows clearly fewer misses are None.
    `written_ttl_ms` is the largest TTL that was captured being written, else the largest remaining one in the sample,
    a lower bound of the written one.
    """
    if sample is None or len(sample) == 0:
        return ()
    shows_misses = reads is not None and (
        miss_ratio is None or (reads.miss_ratio is not None and reads.miss_ratio >= _MISSES_SHOWN_MIN * miss_ratio)
    )
    return tuple(_of_pattern(index, sample, reads, shows_misses) for index in range(len(sample.patterns)))


def _of_pattern(index: int, sample: KeyspaceSample, reads: CapturedReads | None, shows_misses: bool) -> PatternStats:
    name = sample.patterns[index]
    mine = sample.pattern == index
    keys = int(np.count_nonzero(mine))
    sizes = np.maximum(sample.size_bytes, 0)
    all_bytes = int(sizes.sum())
    ttls = sample.ttl_ms[mine]
    written_ttl_ms = max(int(ttls.max(initial=-1)), 0)
    lookups_share = hit_ratio = None
    if reads is not None and name in reads.patterns:
        captured = reads.patterns.index(name)
        written_ttl_ms = reads.written_ttl_ms[captured] or written_ttl_ms
        looked_up = reads.pattern == captured
        count = int(np.count_nonzero(looked_up))
        lookups_share = count / len(reads) if len(reads) else None
        if count and shows_misses:
            hit_ratio = 1.0 - float(reads.missed[looked_up].mean())
    return PatternStats(
        pattern=name,
        resident_share=keys / len(sample),
        # Without MEMORY USAGE all sizes are unknown; the share of keys is then the best estimate of the share of bytes.
        bytes_share=float(sizes[mine].sum()) / all_bytes if all_bytes else keys / len(sample),
        lookups_share=lookups_share,
        hit_ratio=hit_ratio,
        written_ttl_ms=written_ttl_ms or None,
        keys_with_ttl_share=float(np.count_nonzero(ttls >= 0)) / keys if keys else 0.0,
    )
