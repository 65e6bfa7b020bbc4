"""The contract between decisions and the world: events in, effects out.

An agent is a plain object with `step(event, now_ms) -> tuple[Effect, ...]`. It never waits, never reads a clock,
never touches a
socket; everything that it wants done is an `Effect`, and everything that it learns is an event. `AgentShell` (in
`shell.py`), a Ray
actor around it, and the simulator perform the same effects through the ports of `ports.py`.

INVARIANT: the same sequence of (event, now_ms) gives the same effects.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from cachewarden.messages import (
    AuditRecord,
    KnobChange,
    Lease,
    TtlRule,
)

__all__ = [
    "AcquireLease",
    "Agent",
    "CollectHotKeys",
    "ConfigRewritten",
    "Effect",
    "EffectFailed",
    "ExtendTtls",
    "HotKeysCollected",
    "JournalRead",
    "KeysReencoded",
    "KnobsRead",
    "KnobsWritten",
    "LeaseDenied",
    "LeaseGranted",
    "MeasureSpread",
    "Observe",
    "Observed",
    "Publish",
    "ReadCounters",
    "ReadJournal",
    "ReadKnobs",
    "Received",
    "Record",
    "Recorded",
    "ReencodeKeys",
    "ReleaseLease",
    "RewriteConfig",
    "Send",
    "SetTimer",
    "SpreadMeasured",
    "Started",
    "TimerFired",
    "TouchHotKeys",
    "TtlsExtended",
    "WriteKnobs",
]


# --- Effects -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """Base of all effects; `ref` comes back in the event that answers it."""

    ref: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Send(Effect):
    """Deliver `message` to the agent named `to`; no answer, at most once."""

    to: str
    message: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class SetTimer(Effect):
    """Deliver `TimerFired(ref)` not before `due_ms`; a later SetTimer with the same ref replaces it.

    With `spread_ms` the shell draws when: uniformly in due_ms..due_ms+spread_ms.
    """

    due_ms: int
    spread_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Record(Effect):
    """Append to the journal; answered by `Recorded` once durable, or by `EffectFailed`.

    `fences` are (what a lease is on, epoch): the journal refuses it with LeaseLost once somebody else had the lease.
    """

    kind: str
    service: str | None
    subject_id: str
    payload: Mapping[str, Any]
    fences: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadJournal(Effect):
    """Read the records of the given kinds, oldest first (all kinds if empty); answered by `JournalRead`.

    `skimmed`: of records of these kinds their place in the journal is enough (`ports.Journal.read`).
    """

    kinds: tuple[str, ...] = ()
    after_seq: int = 0
    limit: int = 100_000
    skimmed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Observe(Effect):
    """Look at one cache under the given probe budget; answered by `Observed`."""

    service: str
    sample_keys: int = 0
    capture_ms: int = 0
    capture_lines: int = 0
    capture_rate: float = 1.0
    value_keys: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadCounters(Effect):
    """INFO only (cheap); answered by `Observed` without samples."""

    service: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AcquireLease(Effect):
    """Take or renew the lease on a cache for `ttl_ms` and raise its fence; answered by LeaseGranted / LeaseDenied.

    Without `fenced` it is a lease on something that is no cache, as the fleet's memory budget, or one that is kept on.
    """

    service: str
    ttl_ms: int
    fenced: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseLease(Effect):
    """Give the lease back if it is still ours; no answer."""

    lease: Lease


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadKnobs(Effect):
    """CONFIG GET of the named knobs; answered by `KnobsRead`."""

    service: str
    knobs: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteKnobs(Effect):
    """One fenced, atomic CONFIG SET; answered by `KnobsWritten` (read back) or `EffectFailed`."""

    service: str
    lease: Lease
    changes: tuple[KnobChange, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectHotKeys(Effect):
    """Remember, inside the adapter only, up to `limit` of the most recently or frequently used keys; answered by
    `HotKeysCollected`."""

    service: str
    limit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TouchHotKeys(Effect):
    """TOUCH the remembered hot keys `times` times, at most `keys_per_s`; answered by `HotKeysCollected`."""

    service: str
    lease: Lease
    times: int
    keys_per_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureSpread(Effect):
    """OBJECT FREQ of up to `limit` of the remembered hot keys; answered by `SpreadMeasured`."""

    service: str
    limit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReencodeKeys(Effect):
    """One bounded pass that stores collections again in the form that the thresholds now give; answered by
    `KeysReencoded`."""

    service: str
    lease: Lease
    cursor: int = 0
    max_keys: int = 1_000
    keys_per_s: int = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RewriteConfig(Effect):
    """CONFIG REWRITE where the owner permits it; answered by `ConfigRewritten`, a refusal by the server included."""

    service: str
    lease: Lease


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtendTtls(Effect):
    """One bounded pass of a TTL rule (`restore=True`: put extended keys back); answered by `TtlsExtended`."""

    service: str
    lease: Lease
    rule: TtlRule
    cursor: int = 0
    max_keys: int = 5_000
    restore: bool = False
    idle_known_ms: int = 0
    """For how long others have seen that idle times are true; the adapter may know it for longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Publish(Effect):
    """Mirror something onto the blackboard; `operation` is a method of the Blackboard port. Failure is counted,
    never fatal."""

    operation: str
    arguments: Mapping[str, Any]


# --- Events --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """First event of every life of an agent: what the journal says that it left unfinished."""

    records: tuple[AuditRecord, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A message from another agent (`sender`) or from the API (`api`)."""

    sender: str
    message: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class TimerFired:
    ref: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    ref: str
    record: AuditRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalRead:
    ref: str
    records: tuple[AuditRecord, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """Raw facts of one look at a cache (`messages.Observation`)."""

    ref: str
    service: str
    observation: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseGranted:
    ref: str
    lease: Lease


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseDenied:
    """`holder` has the lease; None where the cache itself refuses, since a writer with other leases has fenced it."""

    ref: str
    service: str
    holder: str | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KnobsRead:
    """`values` holds only the knobs that the server knows."""

    ref: str
    service: str
    values: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class KnobsWritten:
    """The write was confirmed; `values` were read back in the same connection afterwards."""

    ref: str
    service: str
    values: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class HotKeysCollected:
    ref: str
    service: str
    keys: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SpreadMeasured:
    """Of the remembered hot keys, `examined` still existed, and `above` of them count more than a new key does."""

    ref: str
    service: str
    examined: int
    above: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KeysReencoded:
    """`cursor` 0 means that the pass over the keyspace is complete; `bytes_moved` went to us and back."""

    ref: str
    service: str
    cursor: int
    examined: int
    reencoded: int
    bytes_moved: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigRewritten:
    """Whether the server's configuration file now holds what is in force; if not, why."""

    ref: str
    service: str
    rewritten: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TtlsExtended:
    """`cursor` 0 means that the pass over the keyspace is complete; peaks as in `ports.TtlPass`."""

    ref: str
    service: str
    cursor: int
    examined: int
    extended: int
    commands: int
    peak_found: float | None = None
    peak_left: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectFailed:
    """An effect did not succeed. `kind` is the class name in `errors.py`; `outcome_unknown` demands a read-back."""

    ref: str
    effect: str
    kind: str
    reason: str
    outcome_unknown: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Agent(Protocol):
    """What every agent is."""

    name: str

    def step(self, event: Any, now_ms: int) -> tuple[Effect, ...]:
        """Take one event and return what to do; never waits, never raises for operating errors."""
        ...
