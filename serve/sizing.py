"""What another target for the hit ratio would take in memory, by what the planner last predicted of other sizes.

A plan pursues the most hits for the fleet's memory, not the target of one request; this says what that target alone
would need. It proposes nothing and changes nothing. INVARIANT: no size is told that was not imagined: between two sizes
it is interpolated, beyond the largest and below the smallest nothing is said but that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cachewarden.protocol import Sizing

__all__ = ["SIZING_AGE_MAX_MS", "least_bytes", "size_in_words"]

SIZING_AGE_MAX_MS: Final = 15 * 60_000
"""Longer ago the planner could not say: a service cools down after each change, and is imagined anew then."""


def least_bytes(sizes: Sequence[int], hit_ratio: Sequence[float], target: float) -> int | None:
    """Return the least size with that hit ratio, None where none of them has it; `hit_ratio` goes with `sizes`.

    Where already the smallest has it, that one is returned.
    """
    best = before = 0.0
    for index, (size, ratio) in enumerate(zip(sizes, hit_ratio, strict=True)):
        best = max(best, ratio)
        if best >= target:
            if index == 0:
                return size
            part = (target - before) / (best - before)
            return round(sizes[index - 1] + part * (size - sizes[index - 1]))
        before = best
    return None


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"


def size_in_words(
    sizing: Sizing | None, target: float, current_bytes: int, *, now_ms: int, changed_ms: int | None = None
) -> str | None:
    """Return what memory a hit ratio of `target`, not reached now, takes with everything else as it is; None where that
    is not known: no sizing, one from too long ago, or from before the last change (`changed_ms`).
    """
    if sizing is None or current_bytes <= 0 or now_ms - sizing.at_ms > SIZING_AGE_MAX_MS:
        return None
    if changed_ms is not None and sizing.at_ms <= changed_ms:
        return None
    sizes = sizing.maxmemory_bytes
    expected = least_bytes(sizes, sizing.hit_ratio, target)
    even_low = least_bytes(sizes, sizing.low, target)
    here = f"now {_mib(current_bytes)}"
    if expected is None:
        most = f"up to {_mib(sizes[-1])} ({here})"
        return f"more memory alone, {most}, is not predicted to reach `cache_hit_rate` {target:g}"
    if expected <= current_bytes:
        # Present and predicted level differ by noise: the prediction is of what is usual.
        return None
    low = _mib(even_low) if even_low is not None else f"more than {_mib(sizes[-1])}"
    return (
        f"`cache_hit_rate` {target:g} by memory alone would take about {_mib(expected)} ({here}), and {low} to reach "
        "it at the low end of the 90 % interval"
    )
