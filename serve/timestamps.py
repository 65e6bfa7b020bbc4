"""Times as the wire shows them: ISO 8601, UTC, with milliseconds and `Z`."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache

__all__ = ["iso", "now_iso"]


def iso(at_ms: int) -> str:
    """Return milliseconds since the epoch as `2024-01-15T10:30:00.000Z`; years outside 1970..9999 are clipped."""
    at_s, rest_ms = divmod(min(max(at_ms, 0), 253_402_300_799_999), 1000)
    return f"{_second(at_s)}.{rest_ms:03d}Z"


@lru_cache(maxsize=256)
def _second(at_s: int) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def now_iso() -> str:
    """Return the wall clock, for the edge of the process only; decisions get their time as an argument."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
