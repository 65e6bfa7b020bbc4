"""What the coordinator knows of other agents on the blackboard, and what comes of it: the one part that it talks to.

`peer_watch.py` looks, `peer_reader.py` reads, `conflict_desk.py` and `task_desk.py` follow what was found, and
`release_gate.py` has ours announced before it begins. Here is what binds them: which records go where, what a peer may
do at all (`cachewarden/peer_powers.py`), and how it is told in figures.

INVARIANT: nothing that a peer writes changes a cache by itself: a plan only holds our changes back, a task only runs a
cycle, an answer only lifts what a plan held back. Verdict, resolution, lease and journal stand before each change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from cachewarden.balloting import parse_voters
from cachewarden.board_records import ConflictRecord
from cachewarden.claims import ANYTHING, BUDGET, UNREAD_BOARD, overlap, touched
from cachewarden.fleet import Fleet
from cachewarden.machine import Effect, EffectFailed, JournalRead, Publish, Send, Started, TimerFired
from cachewarden.messages import (
    AGENT_ID,
    CONSTITUTIONAL_HASH,
    Decision,
    Execution,
    ExecutionState,
    Intent,
    Mode,
    Proposal,
    Verdict,
)
from cachewarden.peer_input import Hinted, IntentPublished, PeersRead, TaskClaimed, TaskFinished
from cachewarden.peer_messages import PeerBallots, PeerHealth, PeerReport
from cachewarden.peer_powers import PeerPower, parse_powers
from cachewarden.protocol import ChainChecked, Execute
from cachewarden.settings import CacheOptimizerSettings
from coordination.blackboard_records import OPEN_CONFLICT_STATES, time_ms
from coordination.conflict_desk import ConflictDesk
from coordination.conflicts import Clash, ClashKind, clash_with_kept, find_clashes, matter_of
from coordination.fleet_memory import FleetMemory
from coordination.peer_ballots import live_ballots
from coordination.peer_plans import PeerPlan, PlanState, plan_of
from coordination.peer_reader import PLANS_MAX, PeerReader
from coordination.peer_watch import LOOK_REF, PeerWatch
from coordination.projection import ChainNews, task_id_of
from coordination.release_gate import RELEASE_REF, Passed, ReleaseGate
from coordination.request_mirror import REQUEST_REF, RequestMirror
from coordination.task_desk import TASK_REF, TaskDesk

__all__ = ["BLACKBOARD", "PeerDesk"]

BLACKBOARD: Final = "blackboard"
_BALLOTS_MAX: Final = 1_000
_KEPT_MS: Final = 3_600_000
"""How long a kept change counts as one that a peer should not set back."""
_TELL_MS: Final = 30_000


class PeerDesk:
    """Mutable state of one coordinator; every method returns what is to be done."""

    def __init__(self, fleet: Fleet, settings: CacheOptimizerSettings, life: str = "") -> None:
        self._powers = parse_powers(settings.blackboard_peer_powers)
        self._fleet = fleet
        self._names = frozenset(fleet.names)
        self._modes: Mapping[str, Mode] = {s.name: s.mode for s in fleet.services}
        self._voters = frozenset(v.voter_id for v in parse_voters(settings.ballot_voters))
        timeout_ms = int(settings.redis_timeout * 1000)
        # A vote is closed by the looks after its deadline, so where peers vote each look counts.
        idle_factor = 1 if self._voters else settings.idle_factor
        self._watch = PeerWatch(settings.blackboard_poll_ms, timeout_ms, idle_factor=idle_factor)
        self._gate = ReleaseGate(self._watch)
        self._since: dict[tuple[str, str], int] = {}
        """Service and matter of what we want now, to when it was announced first."""
        answered = PeerPower.ANSWER in self._powers
        self._conflicts = ConflictDesk(settings.conflict_wait_ms, self._since_of, answered=answered)
        may_force = PeerPower.FORCE in self._powers
        self._tasks = TaskDesk(fleet, settings.cycle_interval_ms, life, may_force=may_force)
        self._requests = RequestMirror()
        self._chain = ChainNews()
        self._reader = PeerReader(self._names)
        self._begun: frozenset[tuple[str, str]] = frozenset()
        """Keys of the plans in sight that were seen being carried out, and are not merely wanted again."""
        self._objections: tuple[PeerPlan, ...] = ()
        self._nothing_left = False
        """Whether a look that finds nothing changes nothing."""
        self._ballots = 0
        self._told: tuple[PeerHealth | None, int] = (None, 0)
        self._figures: tuple[Any, ...] = ()
        """What `_told` was made of."""
        self._began_ms = 0
        self._unwatched: list[Passed] = []

    # --- For the coordinator ----------------------------------------------------------------------------------------

    def use_modes(self, modes: Mapping[str, Mode]) -> None:
        """Look into `modes` from now on, whatever stands in it at the time."""
        self._modes = modes

    @staticmethod
    def concerns(event: Any) -> bool:
        """Whether an event answers what this desk has asked for."""
        if isinstance(event, (Hinted, IntentPublished, PeersRead, TaskClaimed, TaskFinished)):
            return True
        return isinstance(event, (TimerFired, EffectFailed, JournalRead)) and event.ref.startswith(
            (LOOK_REF, RELEASE_REF, REQUEST_REF, TASK_REF)
        )

    def step(self, event: Any, memory: FleetMemory, now_ms: int) -> tuple[Effect, ...]:
        """Take `Started`, or an event that concerns this desk."""
        heeded = self._watch.heed(now_ms, engaged=self._engaged(memory, now_ms))
        if not isinstance(event, Started) and event.ref.startswith(TASK_REF):
            effects = self._tasks.step(event, now_ms)
        elif not isinstance(event, Started) and event.ref.startswith(RELEASE_REF):
            effects = self._gate.step(event, now_ms)
        elif not isinstance(event, Started) and event.ref.startswith(REQUEST_REF):
            effects = self._requests.step(event, memory, now_ms)
        else:
            effects = self._watch.step(event, now_ms, self._tasks.watched, self._conflicts.open)
            if isinstance(event, PeersRead):
                effects += (*self._on_read(event, memory, now_ms), *self._requests.look(now_ms))
                self._gate.note_look(failed=False)
            elif isinstance(event, EffectFailed) and event.effect == "ReadPeers":
                self._gate.note_look(failed=True)
        if not isinstance(event, (Started, TimerFired)):
            self._tell(memory, now_ms)
        memory.note_intents(self.intents(now_ms), now_ms)
        # In this order: a look that is over has set its timer last.
        return (*heeded, *effects)

    def _engaged(self, memory: FleetMemory, now_ms: int) -> bool:
        """Whether anything of ours is under way or in question that a peer may be in the way of."""
        return self._gate.holds_anything or self._conflicts.holds_anything or memory.anything_in_flight(now_ms)

    def note_chain(self, message: ChainChecked, now_ms: int) -> tuple[Effect, ...]:
        """Take a check of the journal: tell what is news in it, and look for requests where it has moved."""
        self._requests.note_head(message.height, message.checkpoint_hash)
        return self._chain.tell(message, now_ms)

    def take_hurry(self, now_ms: int) -> bool:
        """Whether a cycle should begin now; asked once."""
        return self._tasks.take_hurry(now_ms)

    def intents(self, now_ms: int) -> tuple[Intent, ...]:
        """Return what peers hold now; everything, while nobody knows what they hold."""
        plans = (*self._plans_in_sight, *self._objections)
        held = self._conflicts.intents(plans, now_ms) if plans or self._conflicts.holds_anything else ()
        if self._watch.readable(now_ms) or PeerPower.HOLD not in self._powers:
            return held
        unread = (
            Intent(holder=UNREAD_BOARD, service=name, resource=ANYTHING, direction=0) for name in sorted(self._names)
        )
        return (*unread, *held)

    def holder_of(self, proposal: Proposal, memory: FleetMemory, now_ms: int) -> str | None:
        """Return who holds something that a proposal touches, or the memory that it needs; None where nobody does."""
        ours = touched(proposal)
        intents = [i for i in self.intents(now_ms) if not i.until_ms or now_ms < i.until_ms]
        for intent in intents:
            if intent.service == proposal.service and any(overlap(r, intent.resource) for r in ours):
                return intent.holder
        growing = [i for i in intents if i.resource == BUDGET and i.direction > 0]
        if proposal.memory_delta_bytes <= 0 or not growing or memory.budget_bytes is None:
            return None
        reserved = memory.reserved_memory_bytes()
        sizes = [int(c.after) for c in proposal.knob_changes if c.knob == "maxmemory"]
        reserved[proposal.service] = max([reserved.get(proposal.service, 0), *sizes])
        wanted = sum(reserved.values()) + sum(i.amount for i in growing)
        return max(growing, key=lambda i: (i.amount, i.holder)).holder if wanted > memory.budget_bytes else None

    def announced(self, now_ms: int) -> dict[tuple[str, str, str], str]:
        """Return the values that peers say they set, by (service, knob, value), and who says so: of plans that are
        being carried out or are in force, and those that a plan puts back which was seen being carried out before."""
        found: dict[tuple[str, str, str], str] = {}
        for plan in self._plans_in_sight:
            acted = plan.state in (PlanState.ACTIVE, PlanState.DONE)
            if now_ms >= plan.until_ms or not (acted or (plan.undone and plan.key in self._begun)):
                continue
            for touch in plan.touches:
                if value := touch.after if acted else touch.before:
                    found[touch.service, touch.resource, value] = plan.agent_id
        return found

    def announce(self, order: Execute, now_ms: int) -> tuple[Effect, ...]:
        """Write down that a change is going to begin, and look once more; it leaves by `take_passed`."""
        if not self._watch.looks_at_all:
            self._unwatched.append(Passed(order, now_ms))
            return ()
        since_ms = self._since.setdefault(_matter(order.proposal), now_ms)
        return self._gate.enter(order, since_ms, now_ms)

    def take_passed(self) -> tuple[Passed, ...]:
        """Return the announced changes that may begin now, or must not; each once."""
        unwatched, self._unwatched = self._unwatched, []
        return (*unwatched, *self._gate.take())

    def _since_of(self, proposal: Proposal) -> int | None:
        return self._since.get(_matter(proposal))

    def begin_cycle(self, cycle: int, now_ms: int) -> tuple[str, ...]:
        """Let waiting tasks run with this cycle; returns the services that skip cool-down and minimum gain for them."""
        self._began_ms = now_ms
        return self._tasks.begin_cycle(cycle)

    def end_cycle(self, cycle: int, memory: FleetMemory, now_ms: int) -> tuple[Effect, ...]:
        """End the tasks that this cycle has decided."""
        return self._tasks.end_cycle(cycle, self._began_ms, memory, now_ms)

    def meet(
        self, proposals: Iterable[Proposal], verdicts: Mapping[str, Verdict], memory: FleetMemory, now_ms: int
    ) -> tuple[Effect, ...]:
        """Report where judged proposals are in the way of what peers plan."""
        acting = [
            p
            for p in proposals
            if self._modes.get(p.service) in (Mode.APPROVE, Mode.AUTO)
            and (verdict := verdicts.get(p.proposal_id)) is not None
            and verdict.decision is Decision.ALLOW
        ]
        wanted = {_matter(p): now_ms for p in acting}
        self._since = wanted | {matter: at_ms for matter, at_ms in self._since.items() if matter in wanted}
        budget, reserved = memory.budget_bytes, memory.reserved_memory_bytes()
        free_bytes = None if budget is None else budget - sum(reserved.values())
        effects = self._conflicts.meet(find_clashes(acting, self._plans_in_sight, free_bytes, now_ms), now_ms)
        memory.note_intents(self.intents(now_ms), now_ms)
        return effects

    def note_execution(self, execution: Execution, memory: FleetMemory, now_ms: int) -> tuple[Effect, ...]:
        """End the tasks that waited for this change."""
        self._conflicts.note_started(execution.proposal.service)
        asked = self._requests.note_execution(execution, memory, now_ms)
        heeded = self._watch.heed(now_ms, engaged=self._engaged(memory, now_ms))
        return (*heeded, *self._tasks.note_execution(execution, memory, now_ms), *asked)

    @property
    def _plans_in_sight(self) -> tuple[PeerPlan, ...]:
        return self._reader.plans if PeerPower.HOLD in self._powers else ()

    # --- One look ---------------------------------------------------------------------------------------------------

    def _on_read(self, event: PeersRead, memory: FleetMemory, now_ms: int) -> tuple[Effect, ...]:
        if self._nothing_left and self._watch.holds_nothing:
            return ()
        effects: list[Effect] = list(self._read_knowledge(now_ms))
        running = {e.proposal.service: e.proposal for e in memory.executions if not e.state.final}
        effects += self._read_objections(running, memory, now_ms)
        plans = self._plans_in_sight
        clashes = find_clashes(running.values(), plans, None, now_ms, in_flight=True) if plans else ()
        effects += self._conflicts.meet((*clashes, *self._set_back(memory, now_ms)), now_ms, judged=False)
        # In this order: an answer ends an objection, which then stands no longer among the open conflicts.
        answers = self._watch.knowledge("coordination")
        effects += self._conflicts.read(event.conflicts, answers, now_ms, running)
        if self._watch.whole("knowledge:performance") and self._watch.whole("conflicts:open"):
            effects += self._conflicts.forget((*self._plans_in_sight, *self._objections), now_ms)
        effects += self._conflicts.decide(now_ms)
        pending, claimed = (event.tasks_of(state) for state in ("pending", "claimed"))
        pending = pending if PeerPower.ASK in self._powers else ()
        effects += self._tasks.look(pending, claimed, event.tasks, now_ms)
        self._nothing_left = not (
            self._reader.holds_anything
            or self._conflicts.holds_anything
            or self._objections
            or self._begun
            or self._tasks.in_work
            or self._ballots
            or self._voters
        )
        return tuple(effects)

    def _read_knowledge(self, now_ms: int) -> list[Effect]:
        effects: list[Effect] = [*self._reader.read(self._watch.knowledge("performance"), BLACKBOARD, now_ms)]
        running = {p.key for p in self._reader.plans if p.state is PlanState.ACTIVE}
        over = {p.key for p in self._reader.plans if p.state in (PlanState.DONE, PlanState.ENDED)}
        self._begun = frozenset(running | (over & self._begun))
        ballots = self._reader.ballots
        if ballots or self._ballots or self._voters:
            told = live_ballots(ballots, self._voters, _BALLOTS_MAX)
            # Also without any: that nobody has voted is what closes a motion after its deadline.
            read_at_ms = self._watch.whole_ms["knowledge:performance"]
            effects.append(Send(to="consensus", message=PeerBallots(ballots=told, read_at_ms=read_at_ms)))
        self._ballots = len(ballots)
        return effects

    def _set_back(self, memory: FleetMemory, now_ms: int) -> list[Clash]:
        """Return the plans that would set back what we have lately set."""
        if not self._plans_in_sight:
            return []
        kept = [
            e.proposal
            for e in memory.executions
            if e.state is ExecutionState.KEPT and now_ms - e.updated_at_ms < _KEPT_MS
        ]
        found = (clash_with_kept(proposal, plan, now_ms) for proposal in kept for plan in self._plans_in_sight)
        return [clash for clash in found if clash is not None]

    def _read_objections(self, running: Mapping[str, Proposal], memory: FleetMemory, now_ms: int) -> tuple[Effect, ...]:
        effects: list[Effect] = []
        objections: list[PeerPlan] = []
        if not (conflicts := self._watch.open_conflicts()):
            self._objections = ()
            return ()
        plans = {name: s.proposal for name in self._fleet.names if (s := memory.standing(name)) and s.proposal}
        plans |= running
        tasks = {task_id_of(e): e.proposal.service for e in memory.executions if not e.state.final}
        for conflict in conflicts:
            if conflict["status"] not in OPEN_CONFLICT_STATES:
                continue
            data = conflict["resolution_data"] or {}
            others = [agent for agent in conflict["involved_agents"] if agent != AGENT_ID]
            if AGENT_ID not in conflict["involved_agents"] or not others or data.get("reported_by") == AGENT_ID:
                effects += self._close_own(conflict, data, now_ms)
                continue
            if data.get("constitutional_hash", CONSTITUTIONAL_HASH) != CONSTITUTIONAL_HASH:
                self._reader.violations += self._reader.first_time(conflict["id"], conflict["created_at"])
                continue
            if PeerPower.OBJECT not in self._powers:
                continue
            services = _objected(conflict, data, self._fleet.names, plans, tasks)
            if not services:
                continue
            plan = plan_of(conflict, services, now_ms)
            objections.append(plan)
            ours = next((plans[name] for name in services if name in plans), None)
            if ours is None:
                # It holds the cache all the same; there is nothing to weigh it against until we want something.
                continue
            clash = Clash(
                kind=ClashKind.OBJECTION,
                proposal=ours,
                plan=plan,
                resource="*",
                reason=f"`{plan.agent_id}` objects to `{ours.proposal_id}` on `{ours.service}`",
                in_flight=ours.service in running,
            )
            effects += self._conflicts.hear_objection(conflict["id"], clash, now_ms)
        self._objections = tuple(sorted(objections, key=lambda p: p.key)[:PLANS_MAX])
        return tuple(effects)

    def _close_own(self, conflict: ConflictRecord, data: Mapping[str, Any], now_ms: int) -> tuple[Effect, ...]:
        """Close what an earlier life has reported and nobody follows any more; it would stay open for ever."""
        at_ms = time_ms(conflict["created_at"]) or 0
        known = self._conflicts.knows(conflict["id"])
        if data.get("reported_by") != AGENT_ID or known or now_ms - at_ms < _KEPT_MS:
            return ()
        words = {**data, "outcome": "moot", "decided_by": AGENT_ID, "reasoning": "nobody follows it any more"}
        arguments = {"conflict_id": conflict["id"], "strategy": "withdrawn", "data": words, "at_ms": now_ms}
        return (Publish(operation="resolve_conflict", arguments=arguments),)

    # --- Telling ----------------------------------------------------------------------------------------------------

    def health(self) -> PeerHealth:
        """Return how we stand with the blackboard."""
        watch = self._watch
        counts = {f"conflicts_{name}": n for name, n in self._conflicts.counts.items()}
        counts |= {f"tasks_{name}": n for name, n in self._tasks.counts.items()}
        counts |= {
            "conflicts_open": len(self._conflicts.open),
            "plans": len(self._plans_in_sight),
            "records_left_out": watch.left_out,
            "requests_left_out": self._requests.left_out,
            "requests_mirrored": self._requests.mirrored,
            "tasks_in_work": self._tasks.in_work,
        }
        return PeerHealth(
            name=BLACKBOARD,
            healthy=not watch.trouble,
            detail=watch.trouble,
            done=watch.done,
            failures=watch.failures,
            violations=self._reader.violations + self._conflicts.counts.get("refused", 0),
            bad_records=watch.bad + self._reader.bad,
            counts=dict(sorted(counts.items())),
            conflicts=self._conflicts.told(),
        )

    def _tell(self, memory: FleetMemory, now_ms: int) -> None:
        last, at_ms = self._told
        # The number of looks alone is no news.
        figures = self._counted()
        if last is None or not 0 <= now_ms - at_ms < _TELL_MS or figures != self._figures:
            self._told, self._figures = (self.health(), now_ms), figures
            memory.note_peers(PeerReport(peers=(self._told[0],)), now_ms)

    def _counted(self) -> tuple[Any, ...]:
        """Return everything that `health` is made of, but for the number of looks."""
        watch, reader, requests = self._watch, self._reader, self._requests
        seen = (watch.trouble, watch.failures, watch.bad, watch.left_out, reader.violations, reader.bad)
        done = (requests.left_out, requests.mirrored, self._tasks.in_work, len(self._plans_in_sight))
        conflicts = (self._conflicts.counts.copy(), self._conflicts.told(), self._conflicts.open)
        return (seen, done, conflicts, self._tasks.counts.copy())


def _matter(proposal: Proposal) -> tuple[str, str]:
    return proposal.service, matter_of(proposal)


def _objected(
    conflict: ConflictRecord,
    data: Mapping[str, Any],
    fleet: Iterable[str],
    plans: Mapping[str, Proposal],
    tasks: Mapping[str, str],
) -> tuple[str, ...]:
    """Return the services of `fleet` that a conflict names: by service, by a plan of ours or by a task of ours."""
    named: Sequence[Any] = [data.get("service"), *conflict["involved_tasks"]]
    for field in ("affected_services", "plans"):
        value = data.get(field)
        named = [*named, *(value if isinstance(value, list) else ())]
    words = {str(v.get("plan_id")) if isinstance(v, Mapping) else str(v) for v in named[:200]}
    found = {name for name in fleet if name in words} | {tasks[name] for name in words if name in tasks}
    found |= {s for s, p in plans.items() if p.proposal_id in words or p.proposal_id in conflict["description"]}
    return tuple(sorted(found))
