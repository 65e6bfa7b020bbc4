"""Two deployments on one fleet in virtual time: real coordinators, consensus and actuators; caches, journal and leases
are shared fakes; what their planners want is a script. Nodes can die, stall and come back.

It checks by itself, at every write: the writer's token is the one in the cache, and the journal announces the write;
and after every record: at most one change per service is between its beginning and its end.
"""

from __future__ import annotations

import heapq
import itertools
import json
from typing import Any

from agents.actuator import Actuator
from agents.consensus import Consensus
from cachewarden import machine as m
from cachewarden.codec import canonical_json
from cachewarden.messages import AuditRecord, Lease
from cachewarden.protocol import FleetObserved, FleetPlanned, Judge, Judged, ObserveFleet, PlanFleet
from cachewarden.settings import CacheOptimizerSettings
from coordination.cycle import Coordinator
from tests.unit.agents.actuator_world import FLEET, T0, Cache
from tests.unit.agents.settlements import verdict
from tests.unit.policy import builders

SETTINGS = CacheOptimizerSettings(
    _env_file=None,
    observation_window_ms=20_000,
    observation_windows_max=2,
    lease_ttl_ms=6_000,
    lead_ms=30_000,
    cool_down_ms=60_000,
    # Peers are another story; here nobody looks at the blackboard.
    blackboard_poll_ms=0,
)
ENDS = ("change_kept", "change_rolled_back", "change_abandoned", "rollback_failed")


class Deployment:
    """One optimizer. `wants` is the value of `maxmemory-samples` that its planner would set everywhere."""

    def __init__(self, name: str, wants: str) -> None:
        self.name, self.wants = name, wants
        self.lives = 0
        self.dead = False
        self.stalled_until_ms = 0
        self.agents: dict[str, Any] = {}
        self.timers: dict[tuple[str, str], int] = {}

    @property
    def holder(self) -> str:
        return str(self.agents["actuator"].holder)


class TwoOptimizers:
    """Use `run`, `kill`, `stall`, `revive`, and look at `journal`, `writes` and `caches`."""

    def __init__(self, first: str = "10", second: str = "3", settings: CacheOptimizerSettings = SETTINGS) -> None:
        self.settings = settings
        self.now_ms = T0
        self.caches = {name: Cache() for name in FLEET.names}
        for cache in self.caches.values():
            cache.ratio = lambda _: 0.86
        self.journal: list[AuditRecord] = []
        self.writes: list[tuple[int, str, str, str]] = []
        """(when, deployment, service, value)"""
        self.refused_writes: list[tuple[int, str, str]] = []
        self._leases: dict[str, tuple[str, int, int]] = {}
        self._queue: list[tuple[int, int, Deployment, int, str, Any]] = []
        self._tick = itertools.count()
        self.nodes = {name: Deployment(name, wants) for name, wants in (("a", first), ("b", second))}
        for node in self.nodes.values():
            self.revive(node.name)

    # --- What tests say ---

    def revive(self, name: str) -> None:
        node = self.nodes[name]
        node.lives += 1
        node.dead, node.stalled_until_ms = False, 0
        node.timers = {}
        node.agents = {
            "coordinator": Coordinator(FLEET, self.settings),
            "consensus": Consensus(FLEET, self.settings),
            "actuator": Actuator(holder=f"{name}{node.lives}", settings=self.settings, fleet=FLEET),
        }
        for agent, machine in node.agents.items():
            records = tuple(r for r in self.journal if r.kind in machine.replay_kinds)
            self._later(node, agent, m.Started(records=records), 0)

    def kill(self, name: str) -> None:
        self.nodes[name].dead = True

    def stall(self, name: str, milliseconds: int) -> None:
        self.nodes[name].stalled_until_ms = self.now_ms + milliseconds

    def run(self, milliseconds: int, until: Any = None) -> bool:
        """Let time pass; True as soon as `until` holds."""
        end_ms = self.now_ms + milliseconds
        while self._queue and self._queue[0][0] <= end_ms:
            if until is not None and until():
                return True
            due_ms, number, node, life, agent, event = heapq.heappop(self._queue)
            if node.dead or life != node.lives:
                continue
            if node.stalled_until_ms > due_ms:
                heapq.heappush(self._queue, (node.stalled_until_ms, number, node, life, agent, event))
                continue
            if isinstance(event, m.TimerFired) and node.timers.get((agent, event.ref)) != number:
                continue
            self._pass_until(due_ms)
            for effect in node.agents[agent].step(event, self.now_ms):
                self._perform(node, agent, effect)
        self._pass_until(end_ms)
        return until is not None and bool(until())

    def kinds(self, service: str | None = None) -> list[str]:
        return [r.kind for r in self.journal if service in (None, r.service)]

    def open_changes(self, service: str) -> set[str]:
        """Changes of a service that are between their beginning and their end, by the journal."""
        open_now: set[str] = set()
        for record in (r for r in self.journal if r.service == service):
            if record.kind == "change_intended":
                open_now.add(record.subject_id)
            elif record.kind in ENDS:
                open_now.discard(record.subject_id)
        return open_now

    # --- The machinery ---

    def _pass_until(self, due_ms: int) -> None:
        if due_ms > self.now_ms:
            for cache in self.caches.values():
                cache.pass_time(due_ms - self.now_ms)
            self.now_ms = due_ms

    def _later(self, node: Deployment, agent: str, event: Any, delay_ms: int) -> int:
        number = next(self._tick)
        heapq.heappush(self._queue, (self.now_ms + delay_ms, number, node, node.lives, agent, event))
        return number

    def _perform(self, node: Deployment, agent: str, effect: Any) -> None:
        if isinstance(effect, m.SetTimer):
            delay_ms = max(0, effect.due_ms - self.now_ms)
            node.timers[agent, effect.ref] = self._later(node, agent, m.TimerFired(ref=effect.ref), delay_ms)
        elif isinstance(effect, m.Send):
            self._send(node, agent, effect)
        elif not isinstance(effect, m.Publish):
            answer = getattr(self, f"_do_{type(effect).__name__}")(node, effect)
            if answer is not None:
                self._later(node, agent, answer, 2)

    def _send(self, node: Deployment, sender: str, effect: m.Send) -> None:
        answer = self._script(node, effect.message)
        if answer is not None:
            self._later(node, sender, m.Received(sender=effect.to, message=answer), 5)
        elif effect.to in node.agents:
            self._later(node, effect.to, m.Received(sender=sender, message=effect.message), 1)

    def _script(self, node: Deployment, message: Any) -> Any:
        """Collector, planner and validator: what is there, what this deployment wants, and that it is lawful."""
        if isinstance(message, ObserveFleet):
            snapshots = tuple(
                builders.snapshot(s, knobs=dict(self.caches[s].knobs), maxmemory_bytes=40 << 20)
                for s in message.services
            )
            return FleetObserved(cycle=message.cycle, snapshots=snapshots)
        if isinstance(message, PlanFleet):
            proposals = tuple(
                builders.proposal(
                    s.service,
                    builders.knob("maxmemory-samples", s.knobs["maxmemory-samples"], node.wants),
                    proposal_id=f"p-{node.name}-{s.service}-{self.now_ms}",
                    created_at_ms=self.now_ms,
                    expires_at_ms=self.now_ms + 300_000,
                )
                for s in message.snapshots
                if s.knobs["maxmemory-samples"] != node.wants
            )
            return FleetPlanned(cycle=message.cycle, proposals=proposals, idle_reasons={})
        if isinstance(message, Judge):
            return Judged(cycle=message.cycle, verdicts=tuple(verdict(p) for p in message.proposals))
        return None

    def _do_Record(self, node: Deployment, e: m.Record) -> Any:  # noqa: N802
        for name, epoch in e.fences:
            if self._leases.get(name, ("", 0, 0))[1] > epoch:
                details = {"service": name}
                return m.EffectFailed(ref=e.ref, effect="Record", kind="LeaseLost", reason="stale", details=details)
        record = AuditRecord(
            seq=len(self.journal) + 1,
            at_ms=self.now_ms,
            kind=e.kind,
            agent=node.name,
            service=e.service,
            subject_id=e.subject_id,
            payload=json.loads(canonical_json(e.payload)),
        )
        self.journal.append(record)
        if e.service is not None:
            assert len(self.open_changes(e.service)) <= 1, f"two changes of `{e.service}` at once: {self.kinds()}"
        return m.Recorded(ref=e.ref, record=record)

    def _do_ReadJournal(self, _node: Deployment, e: m.ReadJournal) -> Any:  # noqa: N802
        return m.JournalRead(ref=e.ref, records=tuple(self.journal[e.after_seq : e.after_seq + e.limit]))

    def _do_AcquireLease(self, node: Deployment, e: m.AcquireLease) -> Any:  # noqa: N802
        holder, epoch, until_ms = self._leases.get(e.service, ("", 0, 0))
        if until_ms > self.now_ms and holder != node.holder:
            return m.LeaseDenied(ref=e.ref, service=e.service, holder=holder, reason=f"held by `{holder}`")
        if holder != node.holder:
            # The same holder with nobody in between is the same tenure, also where it had run out.
            epoch += 1
        end_ms = self.now_ms + e.ttl_ms
        self._leases[e.service] = (node.holder, epoch, end_ms)
        cache = self.caches[e.service]
        cache.fence = max(cache.fence or 0, epoch)
        lease = Lease(service=e.service, holder=node.holder, epoch=epoch, expires_at_ms=end_ms)
        return m.LeaseGranted(ref=e.ref, lease=lease)

    def _do_ReleaseLease(self, _node: Deployment, e: m.ReleaseLease) -> Any:  # noqa: N802
        holder, epoch, _ = self._leases.get(e.lease.service, ("", 0, 0))
        if (holder, epoch) == (e.lease.holder, e.lease.epoch):
            self._leases[e.lease.service] = ("", epoch, 0)

    def _do_ReadKnobs(self, _node: Deployment, e: m.ReadKnobs) -> Any:  # noqa: N802
        knobs = self.caches[e.service].knobs
        return m.KnobsRead(ref=e.ref, service=e.service, values={k: knobs[k] for k in e.knobs})

    def _do_ReadCounters(self, _node: Deployment, e: m.ReadCounters) -> Any:  # noqa: N802
        seen = self.caches[e.service].observe(e.service, self.now_ms)
        return m.Observed(ref=e.ref, service=e.service, observation=seen)

    def _do_WriteKnobs(self, node: Deployment, e: m.WriteKnobs) -> Any:  # noqa: N802
        cache = self.caches[e.service]
        if cache.fence != e.lease.epoch:
            self.refused_writes.append((self.now_ms, node.name, e.service))
            return m.EffectFailed(
                ref=e.ref,
                effect="WriteKnobs",
                kind="StaleFencingToken",
                reason=f"the fence is `{cache.fence}`",
                details={"found": cache.fence, "ours": e.lease.epoch},
            )
        announced = {"step_intended", "rollback_intended"} & set(self.kinds(e.service))
        assert announced, f"nothing announces this write to `{e.service}`"
        cache.knobs.update({c.knob: c.after for c in e.changes})
        self.writes.append((self.now_ms, node.name, e.service, e.changes[0].after))
        return m.KnobsWritten(ref=e.ref, service=e.service, values={c.knob: cache.knobs[c.knob] for c in e.changes})
