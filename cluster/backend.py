"""What the HTTP API stands on: the agents, wherever they run, and a journal of its own connections.

The same class serves a Ray Serve replica (agents are actors) and one process (agents are tasks): only `runtime`
differs. It keeps the
newest state that the coordinator gave and says how old it is; it decides nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from cachewarden.approval import DecideApproval, SubmitProposal
from cachewarden.cachemodel.shards import hash_key
from cachewarden.chain import ChainReport
from cachewarden.errors import JournalUnavailable, OperatingError
from cachewarden.fed_accesses import FeedBatch, FeedReport
from cachewarden.feed import secret_fingerprint
from cachewarden.messages import AuditRecord, Execution
from cachewarden.observation import Snapshot
from cachewarden.ports import RecordDraft
from cachewarden.protocol import Execute, FleetState, RunCycle, SetPaused
from cachewarden.shell import end_tasks
from cluster.audit import verify_journal
from cluster.clock import SystemClock
from cluster.wiring import Plan, checkpoint_path, make_journal
from coordination.warm_rules import WarmReport
from coordination.warmer import Warmer

__all__ = ["AgentBackend", "Runtime"]

_log = logging.getLogger("cluster.backend")
_REFRESH_S = 0.5
_ORDER_S = 3.0
_ORDER_POLL_S = 0.02


class OrderNotTaken(OperatingError):
    """The coordinator did not say that it has taken an order; `public_reason` may be told to the caller."""

    public_reason = "the coordinator has not confirmed the order, so it may not be in force: give it again"


class Runtime(Protocol):
    """Where the agents live."""

    async def send(self, sender: str, to: str, message: Any) -> None: ...

    async def query(self, agent: str, method: str, *arguments: Any) -> Any: ...


class AgentBackend:
    """Implements `serve.backend.Backend`. Call `start` inside the loop that serves requests."""

    def __init__(self, plan: Plan, runtime: Runtime) -> None:
        self.fleet = plan.fleet
        self.constitution = plan.constitution()
        self.settings = plan.settings
        self.budget_bytes = plan.fleet.total_memory_bytes
        self.secret_fingerprint = secret_fingerprint(plan.secret)
        self._plan = plan
        self._runtime = runtime
        self._clock = SystemClock()
        self._journal = make_journal(plan)
        self._state: FleetState | None = None
        self._asked = 0
        self._answered = 0
        self._refresher: asyncio.Task[None] | None = None
        self._warmer = Warmer(plan.fleet, reserved=(f"{plan.settings.key_prefix}:",))

    async def start(self) -> None:
        """Begin to keep the state fresh, again if that has ended by a bug."""
        if self._refresher is None or self._refresher.done():
            self._refresher = asyncio.create_task(self._keep_fresh())

    async def close(self) -> None:
        """Give back connections and end the refreshing."""
        if self._refresher is not None:
            await end_tasks([self._refresher])
        await self._warmer.close()
        await self._journal.close()

    def now_ms(self) -> int:
        return self._clock.now_ms()

    def key_hash(self, key: str) -> str:
        return f"{hash_key(self._plan.secret, key.encode()):016x}"

    async def state(self) -> FleetState | None:
        await self.start()
        if self._state is None:
            await self.refresh()
        return self._state

    async def snapshot(self, service: str) -> Snapshot | None:
        """Ask the collector, who alone keeps the samples; raises OperatingError where it does not answer."""
        try:
            found: Snapshot | None = await self._runtime.query("collector", "snapshot", service)
        except RuntimeError as error:
            raise OperatingError(f"the collector does not answer: {error}") from None
        return found

    async def feed(self, batch: FeedBatch) -> FeedReport | None:
        """Hand a batch to the collector, and wait until it answers a question: no more batches wait there than
        requests are waiting here."""
        await self._runtime.send("api", "collector", batch)
        return await self.feed_report(batch.service)

    async def feed_report(self, service: str) -> FeedReport | None:
        """Ask the collector; raises OperatingError where it does not answer."""
        try:
            found: FeedReport | None = await self._runtime.query("collector", "feed_report", service, self.now_ms())
        except RuntimeError as error:
            raise OperatingError(f"the collector does not answer: {error}") from None
        return found

    async def record(self, drafts: Sequence[RecordDraft]) -> list[AuditRecord]:
        return await self._journal.append(drafts)

    async def execute(self, command: Execute) -> None:
        await self._runtime.send("api", "coordinator", command)

    async def execution(self, proposal_id: str) -> Execution | None:
        await self.refresh()
        state = self._state
        found = [e for e in state.executions if e.proposal.proposal_id == proposal_id] if state else []
        return found[-1] if found else None

    async def set_paused(self, command: SetPaused) -> None:
        """Pause or resume; returns once the coordinator says so, raises OrderNotTaken where it does not in time.

        A message to an agent between two lives is lost, and nobody may believe in a kill switch that was not pulled.
        """
        reason = command.reason if command.paused else ""
        await self._ordered(command, lambda state: (state.paused, state.pause_reason) == (command.paused, reason))

    async def decide_plan(self, command: DecideApproval | SubmitProposal) -> str | None:
        """Hand over; returns once the coordinator has the journal's word for it, raises OrderNotTaken as above."""
        state = await self._ordered(command, lambda state: command.decision_id in state.approval_answers)
        return state.approval_answers[command.decision_id] or None

    async def _ordered(self, command: Any, taken: Callable[[FleetState], bool]) -> FleetState:
        await self._runtime.send("api", "coordinator", command)
        try:
            async with asyncio.timeout(_ORDER_S):
                while True:
                    await self.refresh(strict=True)
                    state = self._state
                    if state is not None and taken(state):
                        return state
                    await asyncio.sleep(_ORDER_POLL_S)
        except (OperatingError, RuntimeError, TimeoutError) as error:
            raise OrderNotTaken(f"{OrderNotTaken.public_reason} ({type(error).__name__}: {error})") from None

    async def run_cycle(self, command: RunCycle) -> None:
        await self._runtime.send("api", "coordinator", command)

    async def audit_page(self, after_seq: int, limit: int) -> list[AuditRecord]:
        return await self._journal.read(after_seq, limit)

    async def audit_verify(self) -> ChainReport:
        result = await verify_journal(self._journal, checkpoint_path(self.settings), clock=self._clock)
        if result.report is None:
            raise JournalUnavailable(result.reason)
        return result.report

    async def warm(self, service: str, keys: Sequence[str]) -> WarmReport:
        return await self._warmer.warm(service, keys)

    async def components(self) -> Mapping[str, str]:
        try:
            await self._journal.head()
        except JournalUnavailable as error:
            # Health is public; the address and the server's words are for the operator only.
            _log.warning("health: %s", error)
            return {"journal": "does not answer or cannot be written, nothing is decided"}
        return {"journal": "healthy"}

    async def refresh(self, *, strict: bool = False) -> None:
        """Ask the coordinator now; the answer to an earlier question never replaces that to a later one.

        Questions are numbered, since a clock that jumps back would freeze the state if times were compared. Without
        `strict` a missing answer is not raised.
        """
        self._asked += 1
        number = self._asked
        try:
            state = await self._runtime.query("coordinator", "state", self.now_ms())
        except (OperatingError, RuntimeError):
            if strict:
                raise
            # The state grows old, and whoever asks for a decision is told so.
            return
        if number > self._answered:
            self._state, self._answered = state, number

    async def _keep_fresh(self) -> None:
        while True:
            await self.refresh()
            await asyncio.sleep(_REFRESH_S)
