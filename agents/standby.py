"""Standing by for another deployment on the same fleet and journal: what it is doing, and when to take it over.

Several optimizers may run on one fleet. Whoever changes a cache holds its lease, and keeps it for as long as it lives
(`Leads`): it leads that cache. The others read the journal on (`Standby`): they tell their own coordinator of changes
that are not theirs, so that cool-down, budgets and damping are those of all, and try for the lease of what is not
finished. While the leader lives they are denied. Once it is gone they get it, look into the journal once more, and
only if the change is still open do they take it up as a new life of their own would. An ending of our own that was
confirmed, and was among what the journal's server then lost, is found in the same way.

It never writes to a cache. INVARIANT: a change is taken up only under a new lease, by what the journal says after the
lease was granted; so one that was ended in the meantime is not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from agents.recovery import ENDINGS, REPLAY_KINDS, Found, Unfinished, read_journal
from cachewarden.journal_tail import JournalTail
from cachewarden.machine import (
    AcquireLease,
    Effect,
    EffectFailed,
    JournalRead,
    LeaseDenied,
    LeaseGranted,
    Record,
    ReleaseLease,
    Send,
    SetTimer,
    TimerFired,
)
from cachewarden.messages import AuditRecord, ExecutionState, Lease, RecordKind
from cachewarden.pausing import PAUSE_KINDS
from cachewarden.protocol import ExecutionReport

__all__ = ["GROWTH", "LEAD_REF", "STANDBY_REF", "Endings", "Leads", "Standby", "Turn"]

STANDBY_REF: Final = "standby:"
LEAD_REF: Final = "lead:"
GROWTH: Final = "growth"

_LATELY_MS: Final = 600_000
"""So long an ending counts for who may not have seen its outcome yet, and is kept for a journal that loses its tail."""
_ENDINGS_KEPT: Final = 500
_CONFIRMED_MS: Final = 60_000
"""An ending of ours that was confirmed so long ago and has not been read may have been lost. It may also only not have
been read yet: the look after the lease tells."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What became of one event: effects, a change to take up, and a pause or resumption that was read."""

    effects: tuple[Effect, ...] = ()
    adopt: Unfinished | None = None
    """Still open under `lease`. One that we have ended before only needs its ending again."""
    lease: Lease | None = None
    pauses: tuple[AuditRecord, ...] = ()
    through: bool = False
    """The journal was read to its end for whoever asked by `look(GROWTH)`."""
    lost_after: int | None = None
    """The journal has lost what was read behind this number; what stands there now is read again."""


class Standby:
    """Follows the journal. `working` says which changes we carry out now, `running` which of them, or of those that
    have ended, we uphold as well (a kept TTL rule), `ended_ms` when the ending of one of ours was confirmed (None: it
    is not ours, has not ended, or is long forgotten), `busy` which services are being changed by us.

    Other fleets may write into the same journal: only `services` concern us.
    """

    def __init__(
        self,
        lease_ttl_ms: int,
        services: Iterable[str],
        working: Callable[[str], bool],
        running: Callable[[str], bool],
        ended_ms: Callable[[str], int | None],
        busy: Callable[[str], bool],
    ) -> None:
        self._ttl_ms = lease_ttl_ms
        self._services = frozenset(services)
        self._working, self._running, self._ended_ms, self._busy = working, running, ended_ms, busy
        self._tail = JournalTail()
        self._records: dict[str, list[AuditRecord]] = {}
        """Execution id to its records, of all changes that are not over or were not ten minutes ago."""
        self._aside: list[AuditRecord] = []
        """What the journal may have lost, while it is read again: until then it is not known to be untrue."""
        self._known: Found | None = None
        """What follows from `_records`, until they change."""
        self._granted: dict[str, Lease] = {}
        self._told: dict[str, tuple[ExecutionState | None, int]] = {}

    def start(self, records: Sequence[AuditRecord], now_ms: int) -> Effect:
        """Begin after the records that the actuator was started with."""
        self._tail.begin(records)
        self._absorb(records)
        self._prune(now_ms)
        return self._timer(now_ms)

    def look(self, why: str = "read") -> Effect:
        """Look into the journal now, not only when it is time."""
        return self._read(why)

    def lately(self, now_ms: int) -> tuple[Unfinished, ...]:
        """Return the changes of all deployments that have not ended, and those that have within ten minutes."""
        found = self._found()
        return (*(c for c in found.finished if now_ms - c.updated_ms < _LATELY_MS), *found.unfinished)

    def unended(self, service: str) -> str | None:
        """Return a change on a service that is not ours and has no ending as far as we have read, if there is one."""
        for change in self._found().unfinished:
            if change.proposal.service == service and not self._own(change.execution_id):
                return change.execution_id
        return None

    def _own(self, execution_id: str) -> bool:
        return self._running(execution_id) or self._ended_ms(execution_id) is not None

    def _is_open(self, execution_id: str, now_ms: int) -> bool:
        """Whether a change without an ending in the journal is one that nobody here is about to end."""
        if self._working(execution_id):
            return False
        ended_ms = self._ended_ms(execution_id)
        return not self._running(execution_id) if ended_ms is None else now_ms - ended_ms >= _CONFIRMED_MS

    def step(self, event: Any, now_ms: int) -> Turn:
        """Take an event whose ref begins with `standby:`."""
        step, _, key = event.ref.removeprefix(STANDBY_REF).partition(":")
        if isinstance(event, TimerFired):
            return Turn((self._read("read"),))
        if isinstance(event, JournalRead):
            return self._on_read(step, key, event, now_ms)
        if isinstance(event, LeaseGranted):
            self._granted[key] = event.lease
            return Turn((self._read(f"check:{key}"),))
        if isinstance(event, EffectFailed) and step == "read":
            # The journal is gone for the moment; nothing is lost by looking later.
            return Turn((self._timer(now_ms),))
        # LeaseDenied: its leader lives. A lease that was got, and a journal that then was gone: it runs out by itself.
        return Turn()

    def _on_read(self, step: str, key: str, event: JournalRead, now_ms: int) -> Turn:
        reading = self._tail.take(event.records)
        if reading.lost_after is not None:
            self._drop_after(reading.lost_after)
        self._absorb(reading.records)
        pauses = tuple(r for r in reading.records if r.kind in PAUSE_KINDS)
        if reading.again:
            again = self._read(f"{step}:{key}" if key else step)
            return Turn((again,), pauses=pauses, lost_after=reading.lost_after)
        if self._aside:
            self._aside, self._known = [], None
        found = self._found()
        told = self._tell([*found.finished, *found.unfinished])
        open_still = {c.execution_id: c for c in found.unfinished if self._is_open(c.execution_id, now_ms)}
        open_still |= {c.execution_id: c for c in found.standing if not self._running(c.execution_id)}
        self._prune(now_ms)
        if step == GROWTH:
            return Turn(told, pauses=pauses, through=True)
        if step == "check":
            lease = self._granted.pop(key, None)
            adopt = open_still.get(key)
            if adopt is None and lease is not None:
                return Turn((*told, ReleaseLease(lease=lease)), pauses=pauses)
            # Whoever takes it up goes on with that very object.
            self._known = None
            return Turn(told, adopt=adopt, lease=lease, pauses=pauses)
        tries = tuple(
            AcquireLease(ref=f"{STANDBY_REF}take:{c.execution_id}", service=c.proposal.service, ttl_ms=self._ttl_ms)
            for c in open_still.values()
            if not self._busy(c.proposal.service)
        )
        return Turn((*told, *tries, self._timer(now_ms)), pauses=pauses)

    def _tell(self, changes: Iterable[Unfinished]) -> tuple[Effect, ...]:
        effects: list[Effect] = []
        for change in changes:
            news = (change.outcome, change.updated_ms)
            if self._own(change.execution_id) or self._told.get(change.execution_id) == news:
                continue
            self._told[change.execution_id] = news
            state = change.outcome or (
                ExecutionState.ROLLING_BACK if change.rollback_reason is not None else ExecutionState.STEPPING
            )
            reason = change.reason or "another deployment carries it out"
            execution = replace(change.execution, state=state, reason=reason)
            effects.append(Send(to="coordinator", message=ExecutionReport(execution=execution)))
        return tuple(effects)

    def _absorb(self, records: Iterable[AuditRecord]) -> None:
        for record in records:
            if record.kind not in REPLAY_KINDS or record.service not in self._services:
                continue
            key = str(record.payload.get("execution_id", record.subject_id))
            if record.kind == RecordKind.CHANGE_INTENDED:
                self._records.setdefault(key, []).append(record)
            elif key in self._records:
                self._records[key].append(record)
            self._known = None

    def _drop_after(self, seq: int) -> None:
        """Forget what the journal has lost: all behind record `seq`."""
        self._aside = [r for records in self._records.values() for r in records]
        kept = {key: [r for r in records if r.seq <= seq] for key, records in self._records.items()}
        self._records = {key: records for key, records in kept.items() if records}
        self._known = None

    def _found(self) -> Found:
        if self._known is None:
            held = (record for records in self._records.values() for record in records)
            self._known = read_journal((*held, *self._aside))
        return self._known

    def _prune(self, now_ms: int) -> None:
        for change in self._found().finished:
            if not change.standing and now_ms - change.updated_ms >= _LATELY_MS:
                self._records.pop(change.execution_id, None)
                self._told.pop(change.execution_id, None)
                self._known = None

    def _read(self, step: str) -> Effect:
        return self._tail.question(f"{STANDBY_REF}{step}")

    def _timer(self, now_ms: int) -> Effect:
        return SetTimer(ref=f"{STANDBY_REF}timer", due_ms=now_ms + self._ttl_ms)


class Endings:
    """The endings of ours that the journal has confirmed: what it loses of them is written down again.

    What was decided stays decided. The cache may have been changed since, by us or by hand, so nothing of such a change
    is done or measured once more.
    """

    def __init__(self) -> None:
        self._newest: dict[str, tuple[AuditRecord, int]] = {}
        """Execution id to its newest ending, and when that was confirmed; the oldest first."""

    def note(self, record: AuditRecord, now_ms: int) -> None:
        """Take a record that stands in the journal; anything but an ending says nothing."""
        if record.kind not in ENDINGS:
            return
        key = str(record.payload.get("execution_id", record.subject_id))
        self._newest.pop(key, None)
        self._newest[key] = record, now_ms
        while len(self._newest) > _ENDINGS_KEPT:
            self._newest.pop(next(iter(self._newest)))

    def forget(self, execution_id: str) -> None:
        """Leave a change to whoever gets its lease next."""
        self._newest.pop(execution_id, None)

    def ended_ms(self, execution_id: str) -> int | None:
        """Return when the ending of a change was confirmed, None where none was."""
        known = self._newest.get(execution_id)
        return None if known is None else known[1]

    def again(self, turn: Turn) -> tuple[Effect, ...] | None:
        """Return what writes the ending of a change again that was found open, and gives the lease back; None where it
        is not one that we have ended."""
        known = None if turn.adopt is None else self._newest.get(turn.adopt.execution_id)
        if known is None or turn.lease is None:
            return None
        ending, lease = known[0], turn.lease
        record = Record(
            ref=f"{STANDBY_REF}ended:{ending.subject_id}",
            kind=ending.kind,
            service=ending.service,
            subject_id=ending.subject_id,
            payload={**ending.payload, "epoch": lease.epoch},
            fences=((lease.service, lease.epoch),),
        )
        return (record, ReleaseLease(lease=lease))


class Leads:
    """The caches that this deployment leads: their leases are renewed between its changes, for as long as it lives."""

    def __init__(self, lead_ms: int, busy: Callable[[str], bool]) -> None:
        self._lead_ms = lead_ms
        self._busy = busy
        self._led: set[str] = set()

    def keep(self, release: ReleaseLease) -> Effect:
        """Return what is done instead of giving a lease back at the end of a change."""
        if self._lead_ms == 0:
            return release
        self._led.add(release.lease.service)
        return self._renew(release.lease.service)

    def forget(self, service: str) -> None:
        """Let the lease of a cache run out."""
        self._led.discard(service)

    def leads(self, lease: Lease) -> bool:
        """Say whether a lease that was granted late is one to keep."""
        return lease.service in self._led

    def step(self, event: Any, now_ms: int) -> tuple[Effect, ...]:
        """Take an event whose ref begins with `lead:`."""
        service = event.ref.removeprefix(LEAD_REF)
        if isinstance(event, LeaseDenied):
            self._led.discard(service)
            return ()
        if service not in self._led:
            return (ReleaseLease(lease=event.lease),) if isinstance(event, LeaseGranted) else ()
        if isinstance(event, TimerFired) and not self._busy(service):
            return (self._renew(service),)
        # Granted, or a change is under way that renews by itself, or the server did not answer.
        return (SetTimer(ref=f"{LEAD_REF}{service}", due_ms=now_ms + self._lead_ms // 3),)

    def _renew(self, service: str) -> Effect:
        # The change before has fenced the cache, and the next one will: in between nothing of ours is to be let in.
        return AcquireLease(ref=f"{LEAD_REF}{service}", service=service, ttl_ms=self._lead_ms, fenced=False)
