"""A coordinator with its real blackboard, journal and consensus; the other agents are a script that a test writes.

`plans` says what the planner wants in each cycle, `ending` what becomes of a change. Everything else is real: the shell,
the adapters, the server. So it shows what agents on the blackboard can bring about, within seconds.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from agents.consensus import Consensus
from cachewarden.claims import UNREAD_BOARD
from cachewarden.fleet import Fleet
from cachewarden.machine import Received, Send
from cachewarden.messages import AuditRecord, Execution, ExecutionState, Intent, Proposal
from cachewarden.peer_messages import PeerBallots
from cachewarden.protocol import (
    CancelExecution,
    Execute,
    ExecutionReport,
    FleetObserved,
    FleetPlanned,
    FleetState,
    Judge,
    Judged,
    ObserveFleet,
    PlanFleet,
    Settle,
)
from cachewarden.settings import CacheOptimizerSettings
from cachewarden.shell import AgentShell, Ports, end_tasks
from cluster.clock import SystemClock
from coordination.cycle import Coordinator
from coordination.redis_blackboard import RedisBlackboard
from coordination.redis_journal import RedisJournal
from tests.unit.agents.settlements import verdict
from tests.unit.policy.builders import fleet, proposal, service, snapshot

PATIENCE_S = 30.0


def fresh(given: Proposal) -> Proposal:
    """Return a proposal that is made now."""
    now_ms = SystemClock().now_ms()
    return replace(given, created_at_ms=now_ms, expires_at_ms=now_ms + 300_000)


class PeerStage:
    """Use as `async with PeerStage(url) as stage`."""

    def __init__(self, url: str, given: Fleet | None = None, journal_url: str = "", **changes: Any) -> None:
        self.fleet = given or fleet(service("cart"), service("pages"), total_memory_bytes=64 << 20)
        chosen = {
            "blackboard_url": url,
            "blackboard_poll_ms": 200,
            "conflict_wait_ms": 1_500,
            "cycle_interval_ms": 1_000,
            "cool_down_ms": 0,
            "changes_per_hour": 1_000,
            "agent_heartbeat_interval": 1,
            **changes,
        }
        self.settings = CacheOptimizerSettings(_env_file=None, **chosen)
        self.board = RedisBlackboard(url, timeout_s=2.0, life_ttl_ms=3_000)
        self.journal = RedisJournal(journal_url or url, timeout_s=2.0, allow_unsafe_server=True)
        self.consensus = Consensus(self.fleet, self.settings)
        self.coordinator = Coordinator(self.fleet, self.settings)
        self.plans: Callable[[int], list[Proposal]] = lambda _cycle: []
        self.seen: Callable[[str], dict[str, Any] | None] = lambda _service: {}
        """More fields of a service's snapshot; None: it cannot be observed."""
        self.ending: ExecutionState | None = ExecutionState.KEPT
        """What becomes of a change; None: it stays under observation."""
        self.overhear: Callable[[Any], None] = lambda _message: None
        """Is told of every message, before it is answered."""
        self.executed: list[Proposal] = []
        self.cancelled: list[CancelExecution] = []
        self.ballots: list[PeerBallots] = []
        self.questions: list[PlanFleet] = []
        self._shell: AgentShell | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> PeerStage:
        self.begin_life()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.end_life()
        await self.board.close()
        await self.journal.close()

    def begin_life(self) -> None:
        """Start a coordinator anew, from the journal."""
        self.coordinator = Coordinator(self.fleet, self.settings, life=uuid.uuid4().hex)
        ports = Ports(clock=SystemClock(), mailbox=self, journal=self.journal, blackboard=self.board)
        self._shell = AgentShell(self.coordinator, ports, beat_to=None)
        self._task = asyncio.create_task(self._shell.run())

    async def end_life(self) -> None:
        """End the coordinator where it stands."""
        if self._task is not None:
            await end_tasks([self._task])
            self._task = None

    @property
    def state(self) -> FleetState:
        return self.coordinator.state(SystemClock().now_ms())

    @property
    def held(self) -> list[Intent]:
        """What peers hold, as far as their records say."""
        return [intent for intent in self.state.intents if intent.holder != UNREAD_BOARD]

    async def until(self, found: Callable[[], Any]) -> Any:
        """Return the first thing found that is not empty; raises TimeoutError."""
        async with asyncio.timeout(PATIENCE_S):
            while not (result := found()):
                assert self._task is None or not self._task.done(), "the coordinator has ended"
                await asyncio.sleep(0.02)
            return result

    async def records(self, *kinds: str) -> list[AuditRecord]:
        return await self.journal.read_back(kinds)

    async def journalled(self, count: int, *kinds: str) -> list[AuditRecord]:
        """Return the records of some kinds once there are at least so many: what the coordinator knows already may be
        on its way to the journal still."""
        async with asyncio.timeout(PATIENCE_S):
            while len(found := await self.records(*kinds)) < count:
                await asyncio.sleep(0.02)
            return found

    async def send(self, sender: str, to: str, message: Any) -> None:
        """Be the mailbox: the script answers for every agent but the consensus."""
        self.overhear(message)
        answer: Any = None
        if isinstance(message, ObserveFleet):
            looks = {name: self.seen(name) for name in message.services}
            answer = FleetObserved(
                cycle=message.cycle,
                snapshots=tuple(snapshot(name, **more) for name, more in looks.items() if more is not None),
                missing={name: "the script hides it" for name, more in looks.items() if more is None},
            )
        elif isinstance(message, PlanFleet):
            self.questions.append(message)
            plans = self.plans(message.cycle)
            idle = {s.service: "nothing is worth it" for s in message.snapshots}
            answer = FleetPlanned(cycle=message.cycle, proposals=tuple(plans), idle_reasons=idle)
        elif isinstance(message, Judge):
            answer = Judged(cycle=message.cycle, verdicts=tuple(verdict(p) for p in message.proposals))
        elif isinstance(message, Settle):
            event = Received(sender="coordinator", message=message)
            [reply] = self.consensus.step(event, SystemClock().now_ms())
            assert isinstance(reply, Send)
            answer = reply.message
        elif isinstance(message, PeerBallots):
            self.ballots.append(message)
        elif isinstance(message, Execute):
            self._execute(message)
        elif isinstance(message, CancelExecution):
            self.cancelled.append(message)
            self.report(self.executed[-1], ExecutionState.ROLLED_BACK, message.reason)
        if answer is not None and self._shell is not None:
            self._shell.deliver(to, answer)

    def _execute(self, order: Execute) -> None:
        self.executed.append(order.proposal)
        self.report(order.proposal, ExecutionState.OBSERVING)
        if self.ending is not None:
            self.report(order.proposal, self.ending, "as the script says")

    def report(self, given: Proposal, state: ExecutionState, reason: str = "") -> None:
        """Let the actuator tell how far a change has come."""
        now_ms = SystemClock().now_ms()
        execution = Execution(
            execution_id=f"x-{given.proposal_id}",
            proposal=given,
            state=state,
            started_at_ms=now_ms,
            updated_at_ms=now_ms,
            reason=reason,
            hit_ratio_before=0.8,
            hit_ratio_after=0.85 if state.final else None,
        )
        if self._shell is not None:
            self._shell.deliver("actuator", ExecutionReport(execution=execution))


def wanting(stage: PeerStage, *changes: Any, name: str = "cart", **fields: Any) -> Callable[[int], list[Proposal]]:
    """Return a planner that asks for one change in each cycle until it was carried out."""

    def plans(cycle: int) -> list[Proposal]:
        if any(p.service == name for p in stage.executed):
            return []
        return [fresh(proposal(name, *changes, proposal_id=f"p-{name}-{cycle}", **fields))]

    return plans
