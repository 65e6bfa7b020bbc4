"""What the HTTP API stands on: the agents, wherever they run, and a journal of its own connections.

The same class serves a Ray Serve replica (agents are actors) and one process (agents are tasks): only `runtime`
differs. One question to the coordinator is always open (a long poll): it is answered as soon as there is news, with
the difference to what is known here, else with a beat. INVARIANT: the age of the state counts from when the question
was asked, by a clock that cannot be set, so that a replica that was stalled never takes an old answer for a new one.
It decides nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from cachewarden.approval import DecideApproval, SubmitProposal
from cachewarden.cachemodel.shards import hash_key
from cachewarden.chain import ChainReport
from cachewarden.errors import JournalUnavailable, OperatingError
from cachewarden.fed_accesses import FeedBatch, FeedReport
from cachewarden.feed import secret_fingerprint
from cachewarden.messages import AuditRecord, Execution, Mode
from cachewarden.modes import with_modes
from cachewarden.observation import Snapshot
from cachewarden.ports import RecordDraft
from cachewarden.protocol import Execute, FleetBeat, FleetDelta, FleetState, RunCycle, SetMode, SetPaused
from cachewarden.shell import end_tasks
from cachewarden.state_parcel import OtherVersion
from cluster.audit import verify_journal
from cluster.clock import SystemClock
from cluster.wiring import Plan, checkpoint_path, make_journal
from coordination.redis_warm_jobs import RedisWarmJobs
from coordination.state_feed import apply, with_beat
from coordination.warm_rules import WarmCourse, WarmReport
from coordination.warmer import Warmer
from serve.backend import WarmJobs

__all__ = ["AgentBackend", "Runtime"]

_log = logging.getLogger("cluster.backend")
_BEAT_S = 1.0
"""How long a question waits for news; the state's age grows to a little more than this while nothing happens."""
_SPACING_S = 0.005
"""Between two questions: the end of a cycle brings many small changes at once."""
_AGAIN_S = 0.1
_FIRST_S = 5.0
_ORDER_S = 3.0


class OrderNotTaken(OperatingError):
    """The coordinator did not say that it has taken an order; `public_reason` may be told to the caller."""

    public_reason = "the coordinator has not confirmed the order, so it may not be in force: give it again"


class Runtime(Protocol):
    """Where the agents live."""

    async def send(self, sender: str, to: str, message: Any) -> None: ...

    async def query(self, agent: str, method: str, *arguments: Any) -> Any: ...

    async def watch(self, agent: str, seen: tuple[int, int], timeout_s: float) -> Any: ...


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
        self._confirmed_s: float | None = None
        self._contact_problem: str | None = None
        self._changed: asyncio.Future[None] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._warm_jobs = RedisWarmJobs(
            plan.journal_url, key_prefix=plan.settings.key_prefix, timeout_s=plan.settings.redis_timeout
        )
        self.warm_jobs: WarmJobs = self._warm_jobs
        self._warmer = Warmer(
            plan.fleet, reserved=(f"{plan.settings.key_prefix}:", f"{plan.settings.blackboard_key_prefix}:")
        )

    async def start(self) -> None:
        """Begin to watch the coordinator, again if that has ended by a bug."""
        if self._watcher is None or self._watcher.done():
            self._watcher = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Give back connections and end the watching."""
        if self._watcher is not None:
            await end_tasks([self._watcher])
        await self._warmer.close()
        await self._warm_jobs.close()
        await self._journal.close()

    def now_ms(self) -> int:
        return self._clock.now_ms()

    def key_hash(self, key: str) -> str:
        return f"{hash_key(self._plan.secret, key.encode()):016x}"

    async def state(self) -> FleetState | None:
        await self.start()
        if self._state is None and self._contact_problem is None:
            await self.changed(_FIRST_S)
        return self._state

    def newest_state(self) -> FleetState | None:
        return self._state

    def state_age_s(self) -> float | None:
        """Return for how long the coordinator has not confirmed the state; None before the first time."""
        return None if self._confirmed_s is None else time.monotonic() - self._confirmed_s

    def contact_problem(self) -> str | None:
        return self._contact_problem

    def journal_waiting(self) -> int:
        return self._journal.waiting

    async def changed(self, timeout_s: float) -> None:
        """Return when a newer state has come, at the latest after `timeout_s`."""
        await self.start()
        if self._changed is None or self._changed.done():
            self._changed = asyncio.get_running_loop().create_future()
        await asyncio.wait((self._changed,), timeout=timeout_s)

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
        self._require_understood()
        await self._runtime.send("api", "collector", batch)
        return await self.feed_report(batch.service)

    async def feed_report(self, service: str) -> FeedReport | None:
        """Ask the collector; raises OperatingError where it does not answer."""
        try:
            found: FeedReport | None = await self._runtime.query("collector", "feed_report", service, self.now_ms())
        except RuntimeError as error:
            raise OperatingError(f"the collector does not answer: {error}") from None
        return found

    async def record(self, drafts: Sequence[RecordDraft]) -> None:
        if drafts:
            await self._journal.begin(drafts)

    def begin_record(self, drafts: Sequence[RecordDraft]) -> asyncio.Future[Any]:
        return self._journal.begin(drafts)

    async def execute(self, command: Execute) -> None:
        self._require_understood()
        await self._runtime.send("api", "coordinator", command)

    async def execution(self, proposal_id: str) -> Execution | None:
        state = await self.state()
        found = [e for e in state.executions if e.proposal.proposal_id == proposal_id] if state else []
        return found[-1] if found else None

    async def set_paused(self, command: SetPaused) -> None:
        """Pause or resume; returns once the coordinator says so, raises OrderNotTaken where it does not in time.

        A message to an agent between two lives is lost, and nobody may believe in a kill switch that was not pulled.
        """
        reason = command.reason if command.paused else ""
        await self._ordered(command, lambda state: (state.paused, state.pause_reason) == (command.paused, reason))

    async def set_mode(self, command: SetMode) -> None:
        """Change a mode; returns once it is in force for the coordinator, raises OrderNotTaken as above."""
        filed = self._plan.fleet.service(command.service).mode

        def taken(state: FleetState) -> bool:
            return state.modes.get(command.service, filed.value) == command.mode.value

        await self._ordered(command, taken)

    async def decide_plan(self, command: DecideApproval | SubmitProposal) -> str | None:
        """Hand over; returns once the coordinator has the journal's word for it, raises OrderNotTaken as above."""
        state = await self._ordered(command, lambda state: command.decision_id in state.approval_answers)
        return state.approval_answers[command.decision_id] or None

    async def _ordered(self, command: Any, taken: Callable[[FleetState], bool]) -> FleetState:
        if not (isinstance(command, SetPaused) and command.paused):
            self._require_understood()
        try:
            await self._runtime.send("api", "coordinator", command)
            # A pause is asked for at any rate, but what stood before the misunderstanding confirms nothing.
            self._require_understood()
            async with asyncio.timeout(_ORDER_S):
                while True:
                    state = await self.state()
                    if state is not None and taken(state):
                        return state
                    await self.changed(_ORDER_S)
        except (OperatingError, RuntimeError, TimeoutError) as error:
            raise OrderNotTaken(f"{OrderNotTaken.public_reason} ({type(error).__name__}: {error})") from None

    async def run_cycle(self, command: RunCycle) -> None:
        self._require_understood()
        await self._runtime.send("api", "coordinator", command)

    async def audit_page(self, after_seq: int, limit: int) -> list[AuditRecord]:
        return await self._journal.read(after_seq, limit)

    async def audit_verify(self) -> ChainReport:
        result = await verify_journal(self._journal, checkpoint_path(self.settings), clock=self._clock)
        if result.report is None:
            raise JournalUnavailable(result.reason)
        return result.report

    async def warm(self, service: str, keys: Sequence[str], course: WarmCourse | None = None) -> WarmReport:
        return await self._warmer.warm(service, keys, course)

    async def components(self) -> Mapping[str, str]:
        try:
            await self._journal.head()
        except JournalUnavailable as error:
            # Health is public; the address and the server's words are for the operator only.
            _log.warning("health: %s", error)
            return {"journal": "does not answer or cannot be written, nothing is decided"}
        return {"journal": "healthy"}

    def _require_understood(self) -> None:
        if self._contact_problem is not None:
            raise OrderNotTaken(f"{OrderNotTaken.public_reason} ({self._contact_problem})")

    def _wake(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    async def _watch(self) -> None:
        while True:
            asked_s = time.monotonic()
            seen = (0, 0) if self._state is None else (self._state.life_ms, self._state.version)
            try:
                news = await self._runtime.watch("coordinator", seen, _BEAT_S)
            except OtherVersion as error:
                if self._contact_problem is None:
                    _log.error("%s", error)
                self._contact_problem = error.public_reason
                self._wake()
                await asyncio.sleep(_BEAT_S)
                continue
            except (OperatingError, RuntimeError):
                # The state grows old, and whoever asks for a decision is told so. Who answers next may be another.
                self._contact_problem = None
                await asyncio.sleep(_AGAIN_S)
                continue
            self._contact_problem = None
            await asyncio.sleep(_SPACING_S if self._take(news, asked_s) else _AGAIN_S)

    def _take(self, news: Any, asked_s: float) -> bool:
        """Take an answer in; False where the coordinator has nothing to say yet."""
        if isinstance(news, FleetBeat):
            state = with_beat(self._state, news)
        elif isinstance(news, FleetDelta):
            state = apply(self._state, news)
        else:
            state = news if isinstance(news, FleetState) else None
        if state is None:
            # A coordinator between two lives knows nothing, and what fits nothing here is asked for as a whole; what
            # is known here grows old meanwhile.
            if isinstance(news, (FleetBeat, FleetDelta)):
                self._state = None
            return False
        if self._state is None or self._state.modes != state.modes:
            modes = {name: Mode(mode) for name, mode in state.modes.items()}
            self.fleet = self._warmer.fleet = with_modes(self._plan.fleet, modes)
        self._state, self._confirmed_s = state, asked_s
        if not isinstance(news, FleetBeat):
            self._wake()
        return True
