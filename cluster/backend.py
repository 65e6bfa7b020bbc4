"""What the HTTP API stands on: the agents, wherever they run, and a journal of its own connections.

The same class serves a Ray Serve replica (agents are actors) and one process (agents are tasks): only `runtime`
differs. It keeps the
newest state that the coordinator gave and says how old it is; it decides nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from cachewarden.cachemodel.shards import hash_key
from cachewarden.chain import ChainReport
from cachewarden.errors import JournalUnavailable, OperatingError
from cachewarden.messages import AuditRecord, Execution
from cachewarden.ports import RecordDraft
from cachewarden.protocol import Execute, FleetState, RunCycle, SetPaused
from cachewarden.shell import end_tasks
from cluster.audit import verify_journal
from cluster.clock import SystemClock
from cluster.wiring import Plan, checkpoint_path, make_journal
from coordination.warm_rules import WarmReport
from coordination.warmer import Warmer

__all__ = ["AgentBackend", "Runtime"]

_REFRESH_S = 0.5


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
        self._plan = plan
        self._runtime = runtime
        self._clock = SystemClock()
        self._journal = make_journal(plan)
        self._state: FleetState | None = None
        self._refresher: asyncio.Task[None] | None = None
        self._warmer = Warmer(plan.fleet, reserved=(f"{plan.settings.key_prefix}:",))

    async def start(self) -> None:
        """Begin to keep the state fresh."""
        if self._refresher is None:
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
        await self._runtime.send("api", "coordinator", command)
        await self.refresh()

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
            return {"journal": str(error)}
        return {"journal": "healthy"}

    async def refresh(self) -> None:
        """Ask the coordinator now; an older answer never replaces a newer one."""
        try:
            state = await self._runtime.query("coordinator", "state", self.now_ms())
        except (OperatingError, RuntimeError):
            # The state grows old, and whoever asks for a decision is told so.
            return
        if self._state is None or state.at_ms >= self._state.at_ms:
            self._state = state

    async def _keep_fresh(self) -> None:
        while True:
            await self.refresh()
            await asyncio.sleep(_REFRESH_S)
