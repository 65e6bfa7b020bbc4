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
_WORTH_SAYING: Final = 0.95
"""Of the present memory: what is above it is no other size."""


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


def size_in_words(sizing: Sizing | None, target: float, current_bytes: int, *, met: bool, now_ms: int) -> str | None:
    """Return what memory a hit ratio of `target` takes, None where that is not known or not another than the present.

    `met`: whether it is reached now.
    """
    if sizing is None or current_bytes <= 0 or now_ms - sizing.at_ms > SIZING_AGE_MAX_MS:
        return None
    sizes = sizing.maxmemory_bytes
    expected = least_bytes(sizes, sizing.hit_ratio, target)
    surely = least_bytes(sizes, sizing.low, target)
    here = f"it has {_mib(current_bytes)}"
    if met:
        if surely is None or surely > _WORTH_SAYING * current_bytes:
            return None
        return f"`cache_hit_rate` {target:g} is predicted to be met with {_mib(surely)} too, {here}"
    if expected is None:
        return f"no size up to {_mib(sizes[-1])} is predicted to reach `cache_hit_rate` {target:g}, {here}"
    if expected <= current_bytes:
        # Present and predicted level differ by noise: the prediction is of what is usual.
        return None
    least = "" if surely is None else f", surely {_mib(surely)}"
    return f"`cache_hit_rate` {target:g} alone would take about {_mib(expected)}{least}, {here}"
