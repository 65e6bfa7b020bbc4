"""What happened in a simulated world: the facts that checkers judge and a timeline shows.

A fact is noted where it becomes true, at the server or the node that it happens at, not where somebody learns of it.
Nothing here decides. INVARIANT: facts are noted in the order of virtual time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cachewarden.messages import AuditRecord, Lease

__all__ = [
    "AgentBroke",
    "AgentStarted",
    "Appended",
    "Fact",
    "FaultBegan",
    "FaultEnded",
    "FenceLost",
    "FenceRaised",
    "FencedWrite",
    "HandWrite",
    "LeaseTaken",
    "QuietBegan",
    "RecordsLost",
    "Restarted",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """Base of all facts."""

    at_ms: int

    def words(self) -> str:
        """Return the fact as a line of a timeline, without its time."""
        return type(self).__name__


@dataclass(frozen=True, slots=True, kw_only=True)
class FencedWrite(Fact):
    """A cache carried out what the holder of a lease wrote. `changes` are (knob, before, after); for a TTL rule there
    are none, and `pattern` says whose keys were touched."""

    service: str
    holder: str
    epoch: int
    changes: tuple[tuple[str, str, str], ...]
    pattern: str = ""
    restores: bool = False

    def words(self) -> str:
        told = ", ".join(f"{knob} {before} -> {after}" for knob, before, after in self.changes)
        what = told or f"TTLs of `{self.pattern}` {'put back' if self.restores else 'extended'}"
        return f"cache {self.service}: {what} (epoch {self.epoch}, {self.holder})"


@dataclass(frozen=True, slots=True, kw_only=True)
class HandWrite(Fact):
    """Somebody set a knob by hand, past every lease."""

    service: str
    knob: str
    before: str
    after: str

    def words(self) -> str:
        return f"cache {self.service}: an operator sets {self.knob} {self.before} -> {self.after}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FenceRaised(Fact):
    service: str
    holder: str
    epoch: int

    def words(self) -> str:
        return f"cache {self.service}: fence is {self.epoch} ({self.holder})"


@dataclass(frozen=True, slots=True, kw_only=True)
class FenceLost(Fact):
    """Eviction took the fence away."""

    service: str

    def words(self) -> str:
        return f"cache {self.service}: its fence is evicted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Restarted(Fact):
    """A cache is another process now; `knobs` are what it came up with."""

    service: str
    knobs: dict[str, str]

    def words(self) -> str:
        size, policy = self.knobs["maxmemory"], self.knobs["maxmemory-policy"]
        return f"cache {self.service}: another process answers, maxmemory {size}, {policy}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseTaken(Fact):
    """The store granted a lease to a new holder or under a new epoch; renewals are no news."""

    lease: Lease

    def words(self) -> str:
        return f"lease on {self.lease.service}: {self.lease.holder}, epoch {self.lease.epoch}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Appended(Fact):
    """The journal's server took these records, whether or not its answer arrives; `journal` is its host."""

    journal: str
    records: tuple[AuditRecord, ...]

    def words(self) -> str:
        told = []
        for record in self.records:
            subject = f" {record.subject_id}" if record.service else ""
            reason = record.payload.get("reason")
            told.append(f"{record.seq} {record.kind}{subject}{f': {str(reason)[:110]}' if reason else ''}")
        return f"{self.journal}: " + "; ".join(told)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordsLost(Fact):
    """The journal's server crashed and came back without its newest records, as `appendfsync everysec` permits."""

    journal: str
    records: tuple[AuditRecord, ...]

    def words(self) -> str:
        return f"{self.journal}: a crash took the records {', '.join(str(r.seq) for r in self.records)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultBegan(Fact):
    fault: str

    def words(self) -> str:
        return f"FAULT {self.fault}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultEnded(Fact):
    fault: str

    def words(self) -> str:
        return f"over: {self.fault}"


@dataclass(frozen=True, slots=True, kw_only=True)
class QuietBegan(Fact):
    """From here on nothing fails any more."""

    def words(self) -> str:
        return "all faults are over"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentStarted(Fact):
    deployment: str
    agent: str
    life: int
    replayed: int

    def words(self) -> str:
        return f"{self.deployment}/{self.agent}: life {self.life} begins with {self.replayed} records"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentBroke(Fact):
    """`step` raised: a bug, whatever the event was."""

    deployment: str
    agent: str
    event: Any
    error: str

    def words(self) -> str:
        return f"{self.deployment}/{self.agent}: step raised {self.error} at {str(self.event)[:200]}"
