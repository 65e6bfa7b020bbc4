"""How long a loop may pause at most while nothing happens.

It decides nothing but the bound. INVARIANT: a pause is never shorter than the interval, and longer than 90 s only where
the interval itself is.
"""

from __future__ import annotations

from typing import Final

__all__ = ["LONGEST_IDLE_PAUSE_MS", "longest_pause_ms"]

LONGEST_IDLE_PAUSE_MS: Final = 90_000
"""Whoever orders a change between two cycles is judged by the last look, and the constitution that comes with the
project takes none that is older than two minutes."""


def longest_pause_ms(interval_ms: int, idle_factor: int) -> int:
    """Return `idle_factor` (>= 1) intervals, within the bound."""
    return max(interval_ms, min(interval_ms * idle_factor, LONGEST_IDLE_PAUSE_MS))
