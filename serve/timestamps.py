"""Times as the wire shows them: ISO 8601, UTC, with milliseconds and `Z`."""

from __future__ import annotations

from datetime import UTC, datetime

__all__ = ["iso", "now_iso"]


def iso(at_ms: int) -> str:
    """Return milliseconds since the epoch as `2024-01-15T10:30:00.000Z`; years outside 1970..9999 are clipped."""
    at_ms = min(max(at_ms, 0), 253_402_300_799_999)
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def now_iso() -> str:
    """Return the wall clock, for the edge of the process only; decisions get their time as an argument."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
