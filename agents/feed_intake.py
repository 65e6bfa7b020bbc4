"""The client feed of one service as the collector keeps it: batches in, the sample that may stand for the cache out.

It puts `FeedBook` and `FeedWatch` together and remembers the newest sample, since putting one together sorts it. It
does not decide whether the feed answers. INVARIANT: the sample lies within the time that the verdict calls usable.
"""

from __future__ import annotations

from agents.captured_reads import CapturedReads, read_capture
from agents.feed_book import FeedBook
from agents.feed_watch import FeedVerdict, FeedWatch
from agents.windows import Window
from cachewarden.fed_accesses import FeedBatch, FeedReport
from cachewarden.fleet import Service
from cachewarden.observation import AccessSample

__all__ = ["FeedIntake"]


class FeedIntake:
    """`needed_ms`: how long a usable time must be before a sample is made of it; a new one is made after half of
    that."""

    def __init__(self, service: Service, *, history_ms: int, needed_ms: int) -> None:
        self.needed_ms = needed_ms
        self.access: AccessSample | None = None
        self.reads: CapturedReads | None = None
        self.used = False
        """Whether the collector's newest look rests on it."""
        self._service = service.name
        self._history_ms = history_ms
        self._book = FeedBook([pattern.prefix for pattern in service.patterns], history_ms=history_ms)
        self._watch = FeedWatch(self._book)
        self._ends_ms = 0

    @property
    def verdict(self) -> FeedVerdict:
        return self._watch.verdict

    def take(self, batch: FeedBatch, now_ms: int) -> str | None:
        """Take a batch in; returns why it was dropped instead."""
        return self._book.take(batch, now_ms)

    def look(self, window: Window, at_ms: int, now_ms: int) -> FeedVerdict:
        """Take note of a look at the cache whose window ended at `at_ms`; returns what the feed is worth by now."""
        if window.problem is None and window.window_ms > 0:
            self._watch.note(from_ms=at_ms - window.window_ms, to_ms=at_ms, hits=window.hits, misses=window.misses)
        self._book.forget(now_ms)
        verdict = self._watch.judge(now_ms)
        if verdict.from_ms is None or verdict.to_ms is None:
            self.access = self.reads = None
            self._ends_ms = 0
        elif verdict.usable_ms >= self.needed_ms and verdict.to_ms - self._ends_ms >= self.needed_ms // 2:
            oldest_ms = max(verdict.from_ms, now_ms - self._history_ms)
            from_ms = self._book.steady_from(oldest_ms, verdict.to_ms, self.needed_ms)
            self.access = self._book.sample(from_ms, verdict.to_ms)
            self.reads = None if self.access is None else read_capture(self.access)
            self._ends_ms = verdict.to_ms
        return verdict

    def report(self, now_ms: int) -> FeedReport:
        """Return what is to be told to whoever feeds."""
        verdict = self.verdict
        return FeedReport(
            service=self._service,
            recorders=self._book.recorders(now_ms),
            batches=self._book.batches,
            rows_held=self._book.rows_held,
            dropped=dict(sorted(self._book.dropped.items())),
            coverage=verdict.coverage,
            used=self.used,
            reason=verdict.reason,
        )
