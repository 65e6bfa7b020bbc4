"""How often something may happen that others can bring about: a count within a sliding window.

It decides nothing but yes or no. INVARIANT: never more than `limit` times within any `window_ms`.
"""

from __future__ import annotations

from collections import deque

__all__ = ["Pace"]


class Pace:
    """`limit` times per `window_ms` milliseconds, by the clock of whoever asks."""

    def __init__(self, limit: int, window_ms: int = 60_000) -> None:
        self._limit, self._window_ms = limit, window_ms
        self._times: deque[int] = deque()

    def left(self, now_ms: int) -> int:
        """Return how often it may happen now."""
        # A clock that went back must not lock anything for ever.
        while self._times and not 0 <= now_ms - self._times[0] < self._window_ms:
            self._times.popleft()
        return self._limit - len(self._times)

    def take(self, now_ms: int) -> bool:
        """Say whether it may happen now, and count it if so."""
        if self.left(now_ms) <= 0:
            return False
        self._times.append(now_ms)
        return True
