"""Freeze windows: times in which nothing is changed, whoever asks.

Written as people say them, always in UTC: `daily 08:00 - 18:00`, `fri 16:00 - mon 08:00` (each week), or once
`2026-12-20 00:00 - 2027-01-02 06:00`. It reads no clock; the time is an argument.

INVARIANT: a text that is not understood is refused, so no window is silently missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

__all__ = ["Freeze", "frozen_until", "parse_freeze", "parse_freezes"]

_DAY_MS = 86_400_000
_WEEK_MS = 7 * _DAY_MS
_MONDAY_MS = 4 * _DAY_MS
"""1970-01-05 was a Monday."""
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_TIME = r"([01]\d|2[0-4]):([0-5]\d)"
_DAILY = re.compile(rf"^daily {_TIME} - {_TIME}$")
_WEEKLY = re.compile(rf"^({'|'.join(_DAYS)}) {_TIME} - ({'|'.join(_DAYS)}) {_TIME}$")
_ONCE = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d) - (\d{4}-\d\d-\d\d \d\d:\d\d)$")


@dataclass(frozen=True, slots=True)
class Freeze:
    """From `start_ms` (included) to `end_ms` (excluded), repeated every `period_ms` (0: once). `text` is as written."""

    text: str
    start_ms: int
    end_ms: int
    period_ms: int

    def until_ms(self, now_ms: int) -> int | None:
        """Return when the window that holds `now_ms` ends, None where none does."""
        if not self.period_ms:
            return self.end_ms if self.start_ms <= now_ms < self.end_ms else None
        since_ms = (now_ms - self.start_ms) % self.period_ms
        length_ms = self.end_ms - self.start_ms
        return now_ms - since_ms + length_ms if since_ms < length_ms else None


def _minutes_ms(hours: str, minutes: str) -> int:
    at_ms = (int(hours) * 60 + int(minutes)) * 60_000
    if at_ms > _DAY_MS:
        raise ValueError(f"`{hours}:{minutes}` is no time of day, the last one is `24:00`")
    return at_ms


def parse_freeze(text: str) -> Freeze:
    """Return the window that a text describes; raises ValueError with the forms that are understood."""
    words = " ".join(text.lower().replace("\u2013", "-").split())
    if found := _DAILY.match(words):
        start_ms, end_ms = _minutes_ms(*found.group(1, 2)), _minutes_ms(*found.group(3, 4))
        return _periodic(text, start_ms, end_ms, _DAY_MS)
    if found := _WEEKLY.match(words):
        start_ms = _MONDAY_MS + _DAYS.index(found.group(1)) * _DAY_MS + _minutes_ms(*found.group(2, 3))
        end_ms = _MONDAY_MS + _DAYS.index(found.group(4)) * _DAY_MS + _minutes_ms(*found.group(5, 6))
        return _periodic(text, start_ms, end_ms, _WEEK_MS)
    if found := _ONCE.match(words):
        start_ms, end_ms = (
            int(datetime.fromisoformat(t).replace(tzinfo=UTC).timestamp() * 1000) for t in found.groups()
        )
        if end_ms <= start_ms:
            raise ValueError(f"the freeze `{text}` ends before it begins")
        return Freeze(text, start_ms, end_ms, 0)
    raise ValueError(
        f"`{text}` is no freeze window, write `daily 08:00 - 18:00`, `fri 16:00 - mon 08:00` or "
        "`2026-12-20 00:00 - 2027-01-02 06:00` (UTC)"
    )


def _periodic(text: str, start_ms: int, end_ms: int, period_ms: int) -> Freeze:
    if start_ms == end_ms:
        raise ValueError(f"the freeze `{text}` has no length")
    return Freeze(text, start_ms, end_ms if end_ms > start_ms else end_ms + period_ms, period_ms)


@lru_cache(maxsize=16)
def parse_freezes(text: str) -> tuple[Freeze, ...]:
    """Return the windows of a text that separates them by `;`; none where it is empty. Raises ValueError."""
    return tuple(parse_freeze(part) for part in text.split(";") if part.strip())


def frozen_until(freezes: Iterable[Freeze], now_ms: int) -> tuple[int, str] | None:
    """Return until when it is frozen, and the words of the window that lasts longest; None where it is not.

    Windows that touch are not joined: the next one is told when it begins.
    """
    found = [(until_ms, f.text) for f in freezes if (until_ms := f.until_ms(now_ms)) is not None]
    return max(found) if found else None
