"""The real clock. Everything below takes it as an argument."""

from __future__ import annotations

import time

__all__ = ["SystemClock"]


class SystemClock:
    """Milliseconds since the epoch by this machine's wall clock; may jump."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000
