"""Delivery of the journal to ACGS's Integrity Service: every record, in the journal's order, at least once.

The spool is the journal itself; what is durable besides is one mark, the last record that was delivered, moved by
compare-and-set on the journal's server. One record is on its way at a time, and the mark moves only after the service
has said 201; so a crash at any point repeats at most one record, and no failure lets a later one overtake an earlier.
Of several deployments on one journal one delivers; its claim runs out by the server's clock.

It never drops, edits or reorders a record, never decides what is worth delivering, and never holds up a decision.
INVARIANT: the record that is sent is always the one that follows the mark in the journal.

Phases: resting -> claiming -> reading -> sending -> moving -> sending | reading | resting; any failure -> resting.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import StrEnum
from typing import Any, Final

from cachewarden.circuit import Circuit, CircuitRules, CircuitState, Signal
from cachewarden.machine import Effect, EffectFailed, JournalRead, ReadJournal, SetTimer, Started, TimerFired
from cachewarden.messages import AuditRecord
from cachewarden.peer_messages import PeerHealth
from cachewarden.peering import (
    ClaimCursor,
    CursorClaimed,
    CursorMoved,
    Deliver,
    Delivered,
    HeadRead,
    Mark,
    MoveCursor,
    ReadHead,
)
from coordination.delivery_events import event_of

__all__ = ["INTEGRITY", "Delivery", "Phase"]

INTEGRITY: Final = "integrity"

_WAKE: Final = "delivery:wake"
_LAG: Final = "delivery:lag"
_HEAD: Final = "delivery:head"
_LAG_MS_HEALTHY: Final = 60_000


class Phase(StrEnum):
    RESTING = "resting"
    CLAIMING = "claiming"
    READING = "reading"
    SENDING = "sending"
    MOVING = "moving"


_ANSWERS: Final[dict[type, Phase]] = {
    CursorClaimed: Phase.CLAIMING,
    JournalRead: Phase.READING,
    Delivered: Phase.SENDING,
    CursorMoved: Phase.MOVING,
}
"""Which phase an answer belongs to; in any other it is late and changes nothing."""


class Delivery:
    """One delivery under `name`. `poll_ms` lies between two looks at a journal that was delivered completely,
    `report_ms` between two looks at its height; `claim_ms` is how long a dead deployment keeps the others out."""

    def __init__(
        self,
        name: str = INTEGRITY,
        *,
        rules: CircuitRules | None = None,
        page_records: int = 100,
        poll_ms: int = 1_000,
        report_ms: int = 5_000,
        claim_ms: int = 60_000,
    ) -> None:
        self.name = name
        self._circuit = Circuit(rules=rules or CircuitRules())
        self._page, self._poll_ms, self._report_ms, self._claim_ms = page_records, poll_ms, report_ms, claim_ms
        self._phase = Phase.RESTING
        self._asked = 0
        self._mark: Mark | None = None
        self._next: Mark | None = None
        self._pending: deque[AuditRecord] = deque()
        self._full_page = False
        self._head_seq = 0
        self._caught_up_ms: int | None = None
        self._trouble = ""
        self._done = self._failures = self._violations = 0
        self.rewound = 0
        """How often the journal turned out to be another one than was delivered from, so that it began anew."""

    @property
    def phase(self) -> Phase:
        return self._phase

    @property
    def circuit(self) -> Circuit:
        return self._circuit

    @property
    def mark(self) -> Mark | None:
        """The last record known to be delivered; None before the first claim was answered."""
        return self._mark

    def step(self, event: Any, now_ms: int) -> tuple[Effect, ...]:
        """Take one event; an answer that nothing asked for, or that comes too late, changes nothing."""
        if isinstance(event, Started):
            return (*self._begin(), SetTimer(ref=_LAG, due_ms=now_ms + self._report_ms), ReadHead(ref=_HEAD))
        if isinstance(event, TimerFired):
            return self._on_timer(event.ref, now_ms)
        if isinstance(event, HeadRead) and event.ref == _HEAD:
            self._head_seq = event.seq
            return ()
        if getattr(event, "ref", "") != self._ref:
            return ()
        if isinstance(event, EffectFailed):
            return self._on_failed(event, now_ms)
        if _ANSWERS.get(type(event)) is not self._phase:
            return ()
        handlers: dict[type, Callable[[Any, int], tuple[Effect, ...]]] = {
            CursorClaimed: self._on_claimed,
            JournalRead: self._on_read,
            Delivered: self._on_delivered,
            CursorMoved: self._on_moved,
        }
        return handlers[type(event)](event, now_ms)

    def health(self, now_ms: int) -> PeerHealth:
        """Return how far the delivery is, in words that a stranger may read."""
        lag, lag_ms = self._lag_records(), self._lag_ms(now_ms)
        behind = "" if not lag else "1 record waits" if lag == 1 else f"{lag} records wait"
        age = "" if not lag_ms else f"the oldest {lag_ms // 1000} s"
        anew = "" if not self.rewound else f"delivered anew, since the journal was another one ({self.rewound} times)"
        late = lag_ms is not None and lag_ms > _LAG_MS_HEALTHY
        trouble = self._trouble or ("not heard of its mark yet" if self._mark is None else "")
        return PeerHealth(
            name=self.name,
            healthy=not trouble and not late,
            detail=", ".join(part for part in (trouble, behind, age, anew) if part),
            circuit=self._circuit.state.value,
            lag_records=lag,
            lag_ms=lag_ms,
            done=self._done,
            failures=self._failures,
            violations=self._violations,
        )

    # --- Asking -----------------------------------------------------------------------------------------------------

    @property
    def _ref(self) -> str:
        return f"delivery:{self._asked}"

    def _enter(self, phase: Phase) -> str:
        self._phase = phase
        self._asked += 1
        return self._ref

    def _on_timer(self, ref: str, now_ms: int) -> tuple[Effect, ...]:
        if ref == _LAG:
            return (SetTimer(ref=_LAG, due_ms=now_ms + self._report_ms), ReadHead(ref=_HEAD))
        if ref != _WAKE or self._phase is not Phase.RESTING:
            return ()
        return self._begin()

    def _begin(self) -> tuple[Effect, ...]:
        # Asked each time: the mark on the server is the truth, and somebody else may have moved it meanwhile.
        return (ClaimCursor(ref=self._enter(Phase.CLAIMING), name=self.name, ttl_ms=self._claim_ms),)

    def _read(self) -> tuple[Effect, ...]:
        assert self._mark is not None
        # The marked record is read again, to see that this is still the journal that was delivered from.
        after_seq = max(0, self._mark.seq - 1)
        return (ReadJournal(ref=self._enter(Phase.READING), after_seq=after_seq, limit=self._page + 1),)

    def _send(self, now_ms: int) -> tuple[Effect, ...]:
        if not self._circuit.ready(now_ms):
            return self._rest(now_ms, *self._circuit.pause_ms(now_ms))
        self._circuit = self._circuit.trying(now_ms)
        return (Deliver(ref=self._enter(Phase.SENDING), event=event_of(self._pending[0])),)

    def _move(self, after: Mark) -> tuple[Effect, ...]:
        assert self._mark is not None
        self._next = after
        ref = self._enter(Phase.MOVING)
        return (MoveCursor(ref=ref, name=self.name, before=self._mark, after=after, ttl_ms=self._claim_ms),)

    def _rest(self, now_ms: int, earliest_ms: int, spread_ms: int = 0) -> tuple[Effect, ...]:
        self._phase = Phase.RESTING
        self._asked += 1
        return (SetTimer(ref=_WAKE, due_ms=now_ms + earliest_ms, spread_ms=spread_ms),)

    # --- Answers ----------------------------------------------------------------------------------------------------

    def _on_claimed(self, event: CursorClaimed, now_ms: int) -> tuple[Effect, ...]:
        self._mark = event.claim.mark
        if not event.claim.granted:
            # Not a trouble: another deployment of the same journal does it.
            self._pending.clear()
            self._trouble = ""
            return self._rest(now_ms, self._poll_ms, self._poll_ms)
        return self._read()

    def _on_read(self, event: JournalRead, now_ms: int) -> tuple[Effect, ...]:
        assert self._mark is not None
        records, mark = event.records, self._mark
        if records:
            self._head_seq = max(self._head_seq, records[-1].seq)
        self._full_page = len(records) > self._page
        if mark.seq > 0:
            if not records or (records[0].seq, records[0].hash) != (mark.seq, mark.hash):
                # The journal was restored or begun anew. Where both part is not known, so all of it is delivered
                # again: better twice than never.
                self.rewound += 1
                self._head_seq = 0
                self._pending.clear()
                return self._move(Mark())
            records = records[1:]
        self._pending = deque(records)
        if not self._pending:
            self._caught_up_ms = now_ms
            self._settle_trouble()
            return self._rest(now_ms, self._poll_ms)
        return self._send(now_ms)

    def _on_delivered(self, _event: Delivered, now_ms: int) -> tuple[Effect, ...]:
        self._circuit = self._circuit.after(Signal.SUCCEEDED, now_ms)
        self._done += 1
        self._settle_trouble()
        record = self._pending[0]
        return self._move(Mark(seq=record.seq, hash=record.hash))

    def _on_moved(self, event: CursorMoved, now_ms: int) -> tuple[Effect, ...]:
        if not event.moved:
            # Somebody else delivers now, or the mark was lost; the next claim tells.
            self._pending.clear()
            return self._rest(now_ms, 0, self._poll_ms)
        self._mark, self._next = self._next, None
        if self._pending:
            self._pending.popleft()
        if self._pending:
            return self._send(now_ms)
        if self._full_page or self._mark == Mark():
            return self._read()
        self._caught_up_ms = now_ms
        return self._rest(now_ms, self._poll_ms)

    def _on_failed(self, event: EffectFailed, now_ms: int) -> tuple[Effect, ...]:
        if self._phase is Phase.SENDING:
            violated = event.kind == "PeerViolation"
            self._failures += 1
            self._violations += violated
            self._circuit = self._circuit.after(Signal.VIOLATED if violated else Signal.FAILED, now_ms)
            self._trouble = _public(event)
            return self._rest(now_ms, *self._circuit.pause_ms(now_ms))
        # Ours, not the peer's: the mark or the journal cannot be read, and without them nothing is sent.
        self._trouble = "the journal's server does not answer"
        return self._rest(now_ms, self._poll_ms, self._poll_ms)

    def _settle_trouble(self) -> None:
        if self._circuit.state is CircuitState.CLOSED and self._circuit.failures == 0:
            self._trouble = ""

    # --- Lag --------------------------------------------------------------------------------------------------------

    def _lag_records(self) -> int | None:
        return None if self._mark is None else max(0, self._head_seq - self._mark.seq)

    def _lag_ms(self, now_ms: int) -> int | None:
        lag = self._lag_records()
        if not lag:
            return lag
        # A damaged entry tells no time.
        oldest = next((r.at_ms for r in self._pending if r.at_ms > 0), self._caught_up_ms)
        return None if oldest is None else max(0, now_ms - oldest)


def _public(event: EffectFailed) -> str:
    """Return why a delivery failed: the reason of a peer's error is made for strangers, any other is not."""
    if event.kind == "PeerViolation":
        return "answers with another constitutional hash"
    reason = event.details.get("reason")
    return str(reason) if event.kind.startswith("Peer") and reason else "cannot be asked"
