"""The Auditor: remembers how far the journal is proven, and raises the alarm when it no longer is.

At its start and by timer it reads what was written since the last proven record and checks the hash chain; from time to
time it checks all of it, from the first record on. What is proven becomes a checkpoint: in the journal, and through
`ChainChecked` on the blackboard and wherever else it is kept. A checkpoint kept outside shows that a tail is gone.

It decides nothing and never repairs, drops or edits a record. INVARIANT: the checkpoint only ever moves over records
that were verified without a problem, and an alarm is never taken back by the program itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from cachewarden.chain import ChainReport, ChainVerifier, Checkpoint
from cachewarden.machine import (
    Effect,
    EffectFailed,
    JournalRead,
    ReadJournal,
    Record,
    Recorded,
    Send,
    SetTimer,
    Started,
    TimerFired,
)
from cachewarden.messages import RecordKind
from cachewarden.pauses import longest_pause_ms
from cachewarden.protocol import ChainChecked

__all__ = ["Auditor"]

_TIMER: Final = "audit"
_CHECKPOINT: Final = "checkpoint"
_PROBLEMS_KNOWN_MAX: Final = 10_000
_PROBLEMS_TOLD_MAX: Final = 20
_STALLED_INTERVALS: Final = 6
_ALIKE: Final = 6
"""Passes that find nothing new before pauses grow: each is twice the one before."""
_DOUBLINGS_MAX: Final = 10


class Auditor:
    """Verifies the journal in passes; one pass is a sequence of pages, at most one pass is under way.

    `checkpoint` is the newest one that was kept outside the journal. `interval_ms` lies between two passes,
    `full_interval_ms` between two that begin at the first record, `checkpoint_interval_ms` between two checkpoint
    records. While nothing is written, `idle_factor` intervals (90 s) lie between two passes at most.
    """

    def __init__(
        self,
        name: str = "auditor",
        *,
        checkpoint: Checkpoint | None = None,
        interval_ms: int = 10_000,
        full_interval_ms: int = 3_600_000,
        checkpoint_interval_ms: int = 60_000,
        idle_factor: int = 1,
        page_records: int = 250,
        report_to: str = "coordinator",
    ) -> None:
        self.name = name
        self._checkpoint = checkpoint if checkpoint is not None and checkpoint.seq > 0 else None
        self._interval_ms, self._full_interval_ms = interval_ms, full_interval_ms
        self._checkpoint_interval_ms, self._page = checkpoint_interval_ms, page_records
        self._report_to = report_to
        self._idle_factor = idle_factor
        self._alike = 0
        """Passes in a row that have found the journal as the one before."""
        self._verifier: ChainVerifier | None = None
        self._full = False
        self._passes = 0
        self._ref = ""
        self._page_at_ms = 0
        self._last_full_ms: int | None = None
        self._recorded_at_ms: int | None = None
        self._recording = False
        self._news = False
        self._known: set[tuple[int, str]] = set()

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The newest record up to which everything is proven."""
        return self._checkpoint

    @property
    def broken(self) -> bool:
        """True once a problem was found; never False again in this life."""
        return bool(self._known)

    def step(self, event: Any, now_ms: int) -> tuple[Effect, ...]:
        """Take one event and return what to do; events that answer nothing asked are ignored."""
        handlers: dict[type, Callable[[Any, int], tuple[Effect, ...]]] = {
            Started: self._on_timer,
            TimerFired: self._on_timer,
            JournalRead: self._on_read,
            Recorded: self._on_recorded,
            EffectFailed: self._on_failed,
        }
        handler = handlers.get(type(event))
        return handler(event, now_ms) if handler else ()

    def _on_timer(self, event: Any, now_ms: int) -> tuple[Effect, ...]:
        if isinstance(event, TimerFired) and event.ref != _TIMER:
            return ()
        doublings = min(max(0, self._alike - _ALIKE + 1), _DOUBLINGS_MAX)
        pause_ms = longest_pause_ms(self._interval_ms, min(1 << doublings, self._idle_factor))
        again = SetTimer(ref=_TIMER, due_ms=now_ms + pause_ms)
        stalled = not 0 <= now_ms - self._page_at_ms < self._interval_ms * _STALLED_INTERVALS
        if self._verifier is not None and not stalled:
            return (again,)
        return (again, *self._begin(now_ms))

    def _begin(self, now_ms: int) -> tuple[Effect, ...]:
        # A broken chain is checked as a whole each time it is due: the part behind the break proves nothing by itself.
        due = self._last_full_ms is None or not 0 <= now_ms - self._last_full_ms < self._full_interval_ms
        if self.broken and not due:
            return ()
        self._full = self._checkpoint is None or (due and self._last_full_ms is not None) or self.broken
        if self._last_full_ms is None or self._full:
            self._last_full_ms = now_ms
        self._passes += 1
        if self._full or self._checkpoint is None:
            anchors = () if self._checkpoint is None else (self._checkpoint,)
            self._verifier = ChainVerifier(anchors=anchors)
            return self._ask(0, now_ms)
        self._verifier = ChainVerifier.resuming(self._checkpoint)
        return self._ask(self._checkpoint.seq - 1, now_ms)

    def _ask(self, after_seq: int, now_ms: int) -> tuple[Effect, ...]:
        self._ref, self._page_at_ms = f"audit:{self._passes}:{after_seq}", now_ms
        return (ReadJournal(ref=self._ref, after_seq=after_seq, limit=self._page),)

    def _on_read(self, event: JournalRead, now_ms: int) -> tuple[Effect, ...]:
        if self._verifier is None or event.ref != self._ref:
            return ()
        proven = 0 if self._checkpoint is None else self._checkpoint.seq
        for record in event.records:
            self._verifier.take(record)
            self._news = self._news or (record.seq > proven and record.kind != RecordKind.CHECKPOINT)
        last_seq = event.records[-1].seq if event.records else 0
        # A page that does not lead on would be asked for forever: the journal is damaged, and the pass ends with it.
        if len(event.records) >= self._page and last_seq > int(self._ref.rpartition(":")[2]):
            return self._ask(last_seq, now_ms)
        return self._finish(self._verifier.report(), now_ms)

    def _finish(self, report: ChainReport, now_ms: int) -> tuple[Effect, ...]:
        self._verifier, self._ref = None, ""
        proven = 0 if self._checkpoint is None else self._checkpoint.seq
        fresh = [p for p in report.problems if (p.seq, p.kind) not in self._known]
        self._known.update([(p.seq, p.kind) for p in fresh][: _PROBLEMS_KNOWN_MAX - len(self._known)])
        same = report.ok and not self.broken and report.height == proven
        self._alike = self._alike + 1 if same else 0
        if report.ok and not self.broken and report.height > 0:
            self._checkpoint = Checkpoint(seq=report.height, hash=report.head_hash, at_ms=now_ms)
        if self.broken and not fresh and not self._full:
            return ()
        checkpoint = self._checkpoint
        told = tuple(f"record {p.seq} {p.kind}: {p.detail}" for p in (fresh or report.problems)[:_PROBLEMS_TOLD_MAX])
        message = ChainChecked(
            ok=report.ok and not self.broken,
            checked_at_ms=now_ms,
            height=report.height,
            checkpoint_seq=0 if checkpoint is None else checkpoint.seq,
            checkpoint_hash="" if checkpoint is None else checkpoint.hash,
            checked=report.checked,
            problems=told or (("an earlier check found problems",) if self.broken else ()),
            problems_total=report.problems_total,
        )
        return (Send(to=self._report_to, message=message), *self._remember(now_ms))

    def _remember(self, now_ms: int) -> tuple[Effect, ...]:
        # A checkpoint record is no reason for the next one, or an idle journal would grow by itself.
        recent = self._recorded_at_ms is not None and 0 <= now_ms - self._recorded_at_ms < self._checkpoint_interval_ms
        if self._checkpoint is None or self.broken or not self._news or recent or self._recording:
            return ()
        self._recording, self._news = True, False
        payload = {"seq": self._checkpoint.seq, "hash": self._checkpoint.hash, "verified_at_ms": self._checkpoint.at_ms}
        return (
            Record(
                ref=_CHECKPOINT,
                kind=RecordKind.CHECKPOINT,
                service=None,
                subject_id=f"checkpoint-{self._checkpoint.seq}",
                payload=payload,
            ),
        )

    def _on_recorded(self, event: Recorded, now_ms: int) -> tuple[Effect, ...]:
        if event.ref == _CHECKPOINT:
            self._recording, self._recorded_at_ms = False, now_ms
        return ()

    def _on_failed(self, event: EffectFailed, _now_ms: int) -> tuple[Effect, ...]:
        if event.ref == _CHECKPOINT:
            self._recording, self._news = False, True
        elif event.ref == self._ref and self._ref:
            # A journal that does not answer is neither intact nor broken: no report, the timer tries again.
            self._verifier, self._ref = None, ""
        return ()
