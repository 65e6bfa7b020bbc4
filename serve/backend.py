"""Everything that the HTTP API needs from outside, as one narrow protocol.

`serve/deployments.py` implements it on Ray actors, the tests on plain data. The API never reaches around it: no
socket, no clock, no actor handle. INVARIANT: whatever changes a cache is recorded first, through `record` or
`begin_record`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from cachewarden.approval import DecideApproval, SubmitProposal
from cachewarden.chain import ChainReport
from cachewarden.fed_accesses import FeedBatch, FeedReport
from cachewarden.fleet import Fleet
from cachewarden.messages import AuditRecord, Execution
from cachewarden.observation import Snapshot
from cachewarden.policy.constitution import Constitution
from cachewarden.ports import RecordDraft
from cachewarden.protocol import Execute, FleetState, RunCycle, SetMode, SetPaused
from cachewarden.settings import CacheOptimizerSettings
from coordination.warm_rules import WarmCourse, WarmReport

__all__ = ["Backend", "WarmJobs"]


class WarmJobs(Protocol):
    """Where warming jobs stand, seen by all replicas; see `coordination/redis_warm_jobs.py`."""

    async def begin(self, job_id: str, service: str, status: str) -> str: ...

    async def tell(
        self, job_id: str, service: str, status: str, outcomes: bytes, *, place: int, ended: bool
    ) -> bool: ...

    async def cancel(self, job_id: str, who: str) -> bool: ...

    async def read(self, job_id: str, start: int = 0, count: int = 0) -> tuple[str, str, bytes]: ...


class Backend(Protocol):
    """All methods raise an OperatingError where the part behind them does not answer; the API maps it to 503."""

    fleet: Fleet
    """With the modes of now: another object whenever one has changed."""
    constitution: Constitution
    settings: CacheOptimizerSettings
    budget_bytes: int | None
    """Sum of maxmemory as found at first; counts where the fleet file gives no total."""

    warm_jobs: WarmJobs

    secret_fingerprint: str
    """Tells the secret of the key hash from another one; see `cachewarden.feed`."""

    def now_ms(self) -> int:
        """Milliseconds since the epoch."""
        ...

    def key_hash(self, key: str) -> str:
        """Return the keyed hash of a cache key as hexadecimal text; names of keys never reach the journal."""
        ...

    async def state(self) -> FleetState | None:
        """Return the newest pushed state without asking an actor; None before the first one."""
        ...

    def newest_state(self) -> FleetState | None:
        """Return what is known now, without waiting; None before the first state."""
        ...

    def state_age_s(self) -> float | None:
        """Return for how long the coordinator has not confirmed the state, by a clock that cannot be set; None before
        the first time."""
        ...

    def contact_problem(self) -> str | None:
        """Return why what the coordinator says cannot be used here, None where nothing is known against it."""
        ...

    def journal_waiting(self) -> int:
        """Return how many records of this process wait for their turn to be written."""
        ...

    async def changed(self, timeout_s: float) -> None:
        """Return when a newer state has come, at the latest after `timeout_s`."""
        ...

    async def snapshot(self, service: str) -> Snapshot | None:
        """Return the collector's newest look at a service with its samples; None if there was none since it started."""
        ...

    async def feed(self, batch: FeedBatch) -> FeedReport | None:
        """Hand a batch to the collector; returns how the feed of the service stands once the collector answers."""
        ...

    async def feed_report(self, service: str) -> FeedReport | None:
        """Return how the feed of a service stands; None where none is permitted."""
        ...

    async def record(self, drafts: Sequence[RecordDraft]) -> None:
        """Append to the journal; returns once durable. Raises JournalUnavailable."""
        ...

    def begin_record(self, drafts: Sequence[RecordDraft]) -> asyncio.Future[Any]:
        """Append to the journal while the caller goes on: what is returned ends once the drafts are durable, and raises
        JournalUnavailable; so does this call at once where no more may wait."""
        ...

    async def execute(self, command: Execute) -> None:
        """Hand a decision to the actuator; a proposal that is known there already is not carried out twice."""
        ...

    async def execution(self, proposal_id: str) -> Execution | None:
        """Return the newest report on a proposal's execution; None if there is none."""
        ...

    async def set_paused(self, command: SetPaused) -> None:
        """Pause or resume all changes; returns once the coordinator has taken it."""
        ...

    async def set_mode(self, command: SetMode) -> None:
        """Change the mode of a service; returns once the coordinator has put it into force."""
        ...

    async def decide_plan(self, command: DecideApproval | SubmitProposal) -> str | None:
        """Hand a person's decision or plan to the coordinator; returns None once it is recorded and in force, or why it
        is not taken. Raises an OperatingError where the coordinator does not say."""
        ...

    async def run_cycle(self, command: RunCycle) -> None:
        """Start a cycle; returns at once, its results arrive as a newer state."""
        ...

    async def audit_page(self, after_seq: int, limit: int) -> list[AuditRecord]:
        """Return up to `limit` records with seq > `after_seq`, oldest first."""
        ...

    async def audit_verify(self) -> ChainReport:
        """Verify the whole chain now."""
        ...

    async def warm(self, service: str, keys: Sequence[str], course: WarmCourse | None = None) -> WarmReport:
        """Load keys from the service's origin; one outcome per key, in the order of `keys`."""
        ...

    async def components(self) -> Mapping[str, str]:
        """Return each part behind the API that is not an agent (`journal`, `blackboard`, ...) with `healthy` or what is
        wrong."""
        ...
