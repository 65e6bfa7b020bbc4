"""Whether what recorders report may stand for the whole traffic of a cache: held against the server's own counters.

Applications know only their own accesses. Where processes without a recorder ask the same cache, a sample of the
others' accesses says little of it. So the reported lookups of each window are compared with those that the server
counted in it, and so are the hit ratios. It never corrects one by the other. INVARIANT: the usable time holds only
windows that agreed, one after the other.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from agents.feed_book import FeedBook
from cachewarden.feed import LAG_MS

__all__ = ["COVERAGE_MAX", "COVERAGE_MIN", "FeedVerdict", "FeedWatch"]

COVERAGE_MIN: Final = 0.9
"""Below that the accesses that nobody reports may be quite different ones."""
COVERAGE_MAX: Final = 1.1
"""Above that others' lookups are reported too: another server's, or such that a cache in the client has answered."""
_RATIO_DIFFERENCE_MAX: Final = 0.03
_LOOKUPS_MIN: Final = 200
_WINDOWS_WAITING_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class _Counted:
    """What the server counted in one window, on our clock."""

    from_ms: int
    to_ms: int
    hits: int
    misses: int

    @property
    def lookups(self) -> int:
        return self.hits + self.misses


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedVerdict:
    """`from_ms` to `to_ms` is the time for which the feed may stand; both None where there is none."""

    reason: str
    coverage: float | None = None
    from_ms: int | None = None
    to_ms: int | None = None

    @property
    def usable_ms(self) -> int:
        return 0 if self.from_ms is None or self.to_ms is None else self.to_ms - self.from_ms


class FeedWatch:
    """Give it each window of the server's counters; `judge` says what the feed is worth by now."""

    def __init__(self, book: FeedBook) -> None:
        self._book = book
        self._waiting: deque[_Counted] = deque(maxlen=_WINDOWS_WAITING_MAX)
        self.verdict = FeedVerdict(reason="no recorder has reported yet")

    def note(self, *, from_ms: int, to_ms: int, hits: int, misses: int) -> None:
        """Remember a window until everything that was reported of it has arrived."""
        self._waiting.append(_Counted(from_ms, to_ms, hits, misses))

    def judge(self, now_ms: int) -> FeedVerdict:
        """Judge all windows that ended `LAG_MS` ago or earlier, oldest first, and return where that leads."""
        while self._waiting and self._waiting[0].to_ms <= now_ms - LAG_MS:
            self.verdict = self._after(self._waiting.popleft(), now_ms)
        if self._book.batches == 0:
            self.verdict = FeedVerdict(reason="no recorder has reported yet")
        return self.verdict

    def _after(self, counted: _Counted, now_ms: int) -> FeedVerdict:
        if counted.lookups < _LOOKUPS_MIN:
            # Too little to tell; what was known before still holds.
            reason = f"{counted.lookups} lookups in the last window are too few to hold the feed against"
            before = self.verdict
            return FeedVerdict(reason=reason, coverage=before.coverage, from_ms=before.from_ms, to_ms=before.to_ms)
        reported = self._book.counts(counted.from_ms, counted.to_ms)
        coverage = reported.lookups / counted.lookups
        problem = self._problem(counted, reported.hit_ratio, coverage)
        if problem is not None:
            return FeedVerdict(reason=problem, coverage=coverage)
        recorders = self._book.recorders(now_ms)
        before_ms = self.verdict.from_ms
        return FeedVerdict(
            reason=f"{recorders} recorders report {coverage:.0%} of the lookups that the server counted",
            coverage=coverage,
            from_ms=counted.from_ms if before_ms is None else min(before_ms, counted.from_ms),
            to_ms=counted.to_ms,
        )

    @staticmethod
    def _problem(counted: _Counted, reported_ratio: float | None, coverage: float) -> str | None:
        if coverage < COVERAGE_MIN:
            return (
                f"only {coverage:.0%} of the lookups that the server counted are reported, {COVERAGE_MIN:.0%} are "
                "needed: some processes of the application have no recorder"
            )
        if coverage > COVERAGE_MAX:
            return (
                f"{coverage:.0%} of the lookups that the server counted are reported: recorders are attached to "
                "clients of another server, or clients answer from a cache of their own"
            )
        ratio = counted.hits / counted.lookups
        if reported_ratio is not None and abs(reported_ratio - ratio) > _RATIO_DIFFERENCE_MAX:
            return f"the recorders saw a hit ratio of {reported_ratio:.3f}, the server counted {ratio:.3f}"
        return None
