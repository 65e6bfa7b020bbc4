"""Everything outside, as narrow protocols: the only way by which effects reach the world.

Adapters live in `coordination/` (redis-py) and `simulation/` (fakes); each adapter of a port passes the same suite
in `tests/contract/`.
An adapter never decides: it raises an `OperatingError` and the machine that asked for the effect is told so.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from cachewarden.board_records import BoardRecord, ConflictRecord, TaskRecord
from cachewarden.messages import AuditRecord, KnobChange, Lease, TtlRule
from cachewarden.observation import Observation

__all__ = [
    "BOARD_AREAS",
    "Blackboard",
    "BoardPage",
    "Clock",
    "Journal",
    "LeaseStore",
    "LookupAccount",
    "LookupLedger",
    "Mailbox",
    "RecordDraft",
    "ReencodePass",
    "Spread",
    "TargetCache",
    "TtlPass",
]


class Clock(Protocol):
    """Milliseconds since the epoch; may jump, so nothing may rest on it never going back."""

    def now_ms(self) -> int: ...


class Mailbox(Protocol):
    """How agents reach each other: at most once, in order between two agents."""

    async def send(self, sender: str, to: str, message: Any) -> None:
        """Deliver; a receiver that is gone loses the message, and the sender's deadline finds out."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordDraft:
    """An audit record before it has its place in the chain.

    `fences` are (what a lease is on, epoch): the record counts only as long as nobody has got a later epoch of it.
    """

    at_ms: int
    kind: str
    agent: str
    service: str | None
    subject_id: str
    payload: Mapping[str, Any]
    fences: tuple[tuple[str, int], ...] = ()


class Journal(Protocol):
    """The append-only truth: a hash chain, several writers, one order."""

    async def append(self, drafts: Sequence[RecordDraft]) -> list[AuditRecord]:
        """Append all of `drafts`, in order and together; returns once the server has confirmed them.

        Raises JournalUnavailable; then none or all were written, and a writer that must know reads back by
        `subject_id`. Raises LeaseLost where a later epoch was given out than a draft's fence names: nothing of this try
        was written, so a writer that was fenced off in a cache cannot have the last word in the journal either.
        """
        ...

    async def read(self, after_seq: int = 0, limit: int = 1_000, *, skimmed: Sequence[str] = ()) -> list[AuditRecord]:
        """Return up to `limit` records with seq > `after_seq`, oldest first.

        Of records of the kinds `skimmed` only what `chain.skim` takes is promised: number, time, kind, agent and hash.
        """
        ...

    async def read_back(self, kinds: Sequence[str] = (), limit: int | None = None) -> list[AuditRecord]:
        """Return the records of the given kinds (all if empty) among the newest `limit`, oldest first.

        Without a limit the whole journal is searched: a pause or a standing rule does not lapse by being old.
        """
        ...

    async def head(self) -> tuple[int, str]:
        """Return (seq, hash) of the newest record, (0, genesis hash) when there is none."""
        ...


class LeaseStore(Protocol):
    """Leases on the blackboard's server. Expiry is judged by that server's clock alone."""

    async def acquire(self, service: str, holder: str, ttl_ms: int) -> Lease | None:
        """Take or renew. The epoch stays as long as nobody else has had it and it was not given back, also where it
        had run out in between; a takeover raises it. None: held by another."""
        ...

    async def release(self, lease: Lease) -> None:
        """Give back if still ours; otherwise nothing."""
        ...

    async def holder(self, service: str) -> Lease | None:
        """Return the lease in force, if any."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TtlPass:
    """What one bounded pass of a TTL rule did; `cursor` 0 means that it came round.

    `extended` counts the deadlines that it changed, in either direction. Of the deadlines of its keys the busiest
    second held the share `peak_found`, and holds `peak_left` now (0..1); None with fewer than 50 deadlines.
    """

    cursor: int
    examined: int
    extended: int
    commands: int
    peak_found: float | None = None
    peak_left: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How many of the hot keys that were looked at existed, and how many of those count more than a new key."""

    examined: int
    above: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReencodePass:
    """What one bounded pass of storing keys again did; `cursor` 0 means that it came round."""

    cursor: int
    examined: int
    reencoded: int
    bytes_moved: int


class TargetCache(Protocol):
    """One managed cache. Names of keys stay inside the adapter.

    All methods raise TargetUnavailable, TargetTimeout (outcome unknown) or TargetRefused.
    """

    service: str

    async def observe(
        self, *, sample_keys: int, capture_ms: int, capture_lines: int, capture_rate: float, value_keys: int = 0
    ) -> Observation:
        """Look once: INFO, knobs, latency; `sample_keys` random keys; a MONITOR capture if `capture_ms` > 0 and
        permitted; values of some of `value_keys` random keys measured, if permitted."""
        ...

    async def counters(self) -> Observation:
        """INFO, latency and knobs only."""
        ...

    async def read_knobs(self, knobs: Sequence[str]) -> dict[str, str]:
        """CONFIG GET; knobs that the server does not have are missing from the answer."""
        ...

    async def raise_fence(self, lease: Lease) -> None:
        """Write the lease's epoch into the cache unless a higher one stands there (StaleFencingToken)."""
        ...

    async def write_knobs(self, lease: Lease, changes: Sequence[KnobChange]) -> dict[str, str]:
        """WATCH fence, compare, MULTI CONFIG SET EXEC, then read back; StaleFencingToken where the token moved or is
        gone."""
        ...

    async def collect_hot_keys(self, limit: int) -> int:
        """Remember the hottest `limit` keys (by idle time or frequency) in this adapter; returns how many."""
        ...

    async def touch_hot_keys(self, lease: Lease, times: int, keys_per_s: int) -> int:
        """TOUCH the remembered keys; returns how many still existed."""
        ...

    async def measure_spread(self, limit: int) -> Spread:
        """Compare the frequencies of up to `limit` of the remembered keys with that of a new key (5)."""
        ...

    async def reencode_keys(self, lease: Lease, cursor: int, max_keys: int, keys_per_s: int) -> ReencodePass:
        """One bounded SCAN step over the declared patterns: collections whose form the thresholds would make smaller
        are stored again, each atomically and with its deadline. TargetRefused where the owner does not permit it."""
        ...

    async def rewrite_config(self, lease: Lease) -> str | None:
        """CONFIG REWRITE under the fence; returns why the file does not hold what is in force, None where it does."""
        ...

    async def extend_ttls(
        self,
        lease: Lease,
        rule: TtlRule,
        cursor: int,
        max_keys: int,
        restore: bool = False,
        idle_known_ms: int = 0,
    ) -> TtlPass:
        """One pass of a TTL rule, bounded in keys and time; never shortens (unless `restore`, or the rule does), never
        beyond the rule's staleness. `idle_known_ms`: for how long others have seen that idle times are true."""
        ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LookupAccount:
    """What all adapters of ours have looked up in one cache, as far as they have told.

    `hits` and `misses` are cumulative and only comparable between accounts of the same `basis`, which changes when the
    ledger lost its data or nobody can tell any more what a batch has counted. `busy` names the other adapters that have
    a batch under way: while there is one, the cache may have counted more than this.
    """

    hits: int
    misses: int
    busy: tuple[str, ...]
    basis: str


class LookupLedger(Protocol):
    """Where the adapters on one cache tell each other of their own lookups. One object speaks for one adapter.

    Marks run out by the ledger's own clock. All methods raise BlackboardUnavailable; whoever sent a batch without
    having been able to announce or settle it says `torn` the next time.
    """

    async def begin(self, service: str, *, torn: bool = False) -> str:
        """Announce a batch before it is sent; returns the mark by which it is settled."""
        ...

    async def settle(self, service: str, mark: str, hits: int, misses: int) -> None:
        """Take the mark away and add what the batch has looked up, both at once.

        A batch that nobody can count is never settled: its mark runs out.
        """
        ...

    async def read(self, service: str, *, torn: bool = False) -> LookupAccount:
        """Return the account. Only while no batch of this adapter's own is under way."""
        ...

    async def close(self) -> None: ...


BOARD_AREAS: Final = (
    "conflicts:open",
    "knowledge:coordination",
    "knowledge:performance",
    "tasks:claimed",
    "tasks:pending",
)
"""Parts of the blackboard that can be read page by page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardPage:
    """One bounded look at a part of the blackboard.

    `cursor` is where the next look goes on, in words of the adapter; "" means that this one came to the end. `dangling`
    ids had no record (any more), `bad` records were unusable, each of them counted once in the life of the adapter.
    """

    records: tuple[BoardRecord, ...]
    cursor: str = ""
    scanned: int = 0
    dangling: int = 0
    bad: int = 0


class Blackboard(Protocol):
    """ACGS's records on Redis (`docs/INTEROP.md`). All raise BlackboardUnavailable."""

    async def register_agent(self, agent_id: str, agent_type: str, capabilities: Sequence[str], at_ms: int) -> None: ...

    async def heartbeat(
        self, agent_id: str, agent_type: str, capabilities: Sequence[str], at_ms: int, life: str = ""
    ) -> None:
        """Say that the agent lives, and for some beats to come the life `life` of one of its processes."""
        ...

    async def deregister_agent(self, agent_id: str) -> None: ...

    async def add_knowledge(self, item: Mapping[str, Any]) -> str: ...

    async def query_knowledge(
        self, space: str, knowledge_type: str | None = None, tags: Sequence[str] = (), limit: int = 100
    ) -> list[dict[str, Any]]: ...

    async def create_task(self, task: Mapping[str, Any], claimed_by: str | None = None) -> str: ...

    async def claim_task(self, task_id: str, agent_id: str, at_ms: int, *, life: str = "", over: bool = False) -> bool:
        """Claim a task; of several claimers exactly one is told True.

        `life` is the process that claims: its claim is in force for as long as its heartbeats are heard. With `over`
        the task is one that another life of the same agent has claimed; it is taken over only if that one is silent.
        """
        ...

    async def finish_task(
        self,
        task_id: str,
        agent_id: str,
        at_ms: int,
        *,
        output: Mapping[str, Any] | None,
        error: Mapping[str, Any] | None,
        retries: int | None = None,
    ) -> bool: ...

    async def task(self, task_id: str) -> TaskRecord | None:
        """Return one task; None where it is gone or cannot be read."""
        ...

    async def conflict(self, conflict_id: str) -> ConflictRecord | None:
        """Return one conflict; None where it is gone or cannot be read."""
        ...

    async def page(self, area: str, cursor: str = "") -> BoardPage:
        """Return the live, readable records of one of `BOARD_AREAS` from place `cursor` of its index on, bounded in
        ids and bytes; of knowledge only what others wrote. Nothing that stays is passed over, whatever goes."""
        ...

    async def pages(self, cursors: Mapping[str, str]) -> dict[str, BoardPage]:
        """Return a page of each area in `cursors` from its place on, one after the other. First it is asked, in one
        round trip, which of them hold anything at all: most hold nothing most of the time."""
        ...

    async def report_conflict(self, conflict: Mapping[str, Any]) -> str: ...

    async def resolve_conflict(self, conflict_id: str, strategy: str, data: Mapping[str, Any], at_ms: int) -> bool: ...

    async def tidy(self, at_ms: int, kept_ms: int) -> int:
        """Keep what we wrote bounded: let it expire `kept_ms` after its end, take what is gone out of the indexes.

        Bounded per call; called again and again it comes round. Returns how many ids left the indexes.
        """
        ...

    async def events(self) -> AsyncIterator[dict[str, Any]]: ...
