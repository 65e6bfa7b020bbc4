"""A node and the shells of the agents that live on it, in virtual time.

`NodeShell` does what `cachewarden.shell.AgentShell` does, with the same table of performers, but its waits are events
of the world: one event at a time, messages of one step in the order in which it gave them, records of one step appended
together, timers counted from when they were set. A node may be paused (nothing of it runs, everything keeps) and may
die (nothing of it is left but what already travels).

It decides nothing. INVARIANT: nothing of a dead life ever reaches the next one but through a server.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from cachewarden import machine as m
from cachewarden.errors import CachewardenError, JournalUnavailable
from cachewarden.messages import AuditRecord
from cachewarden.performing import Ports, drafts_of, failure_of, performers
from cachewarden.protocol import AgentBeat
from simulation.virtual_time import Handle, Task, VirtualTime

__all__ = ["Node", "NodeClock", "NodeShell"]

_JOURNAL_RETRY_MS = 1_000
_BEAT_MS = 5_000
_MILLION = 1_000_000


class NodeClock:
    """What a node takes for the time: off by `offset_ms`, and drifting by `drift_ppm` since it was set."""

    def __init__(self, time: VirtualTime) -> None:
        self._time = time
        self._since_ms = time.now_ms()
        self._offset_ms = 0
        self._drift_ppm = 0

    def now_ms(self) -> int:
        now_ms = self._time.now_ms()
        if not self._drift_ppm:
            return now_ms + self._offset_ms
        return now_ms + self._offset_ms + (now_ms - self._since_ms) * self._drift_ppm // _MILLION

    def jump(self, by_ms: int) -> None:
        """Set it forward or back."""
        self._offset_ms += by_ms

    def drift(self, ppm: int) -> None:
        """Let it run too fast (or too slow) from now on."""
        offset_ms = self.now_ms() - self._time.now_ms()
        self._since_ms, self._offset_ms, self._drift_ppm = self._time.now_ms(), offset_ms, ppm

    def correct(self) -> None:
        """Let it be right again."""
        self._offset_ms = self._drift_ppm = 0


@dataclass(eq=False)
class Node:
    """A machine of a deployment."""

    name: str
    time: VirtualTime
    clock: NodeClock
    send_beats: Callable[[list[m.Received]], None]
    """Brings the signs of life of all agents here to whoever waits for them, together."""
    up: bool = True
    paused: int = 0
    """How many reasons there are to hold it."""
    shells: dict[str, NodeShell] = field(default_factory=dict)
    _held: deque[Callable[[], None]] = field(default_factory=deque)
    _boots: int = 0
    _beating: bool = False

    def beat_on(self) -> None:
        """See to it that whoever lives here gives signs of life from now on, all of them at once."""
        if not self._beating:
            self._beating = True
            self.time.post(_BEAT_MS, partial(self._next_beat, self._boots))

    def _next_beat(self, boots: int) -> None:
        if boots == self._boots:
            self.run(self._beat)

    def _beat(self) -> None:
        self.send_beats([shell.life_sign for shell in self.shells.values()])
        self.time.post(_BEAT_MS, partial(self._next_beat, self._boots))

    def run(self, action: Callable[[], None]) -> None:
        """Run a part of some program of this node, or hold it back while the node is paused."""
        if self.paused:
            self._held.append(action)
        else:
            action()

    def pause(self) -> None:
        self.paused += 1

    def resume(self) -> None:
        """Let go; what was held back runs now, in its order."""
        self.paused = max(0, self.paused - 1)
        while self._held and not self.paused:
            self._held.popleft()()

    def die(self) -> None:
        """End everything that runs here."""
        self.up = self._beating = False
        self._boots += 1
        self._held.clear()
        for shell in list(self.shells.values()):
            shell.die()
        self.shells.clear()


class NodeShell:
    """Runs one life of one agent on a node.

    `think_ms` says how long a heavy step takes; `on_break` is told of an exception out of `step`, `on_start` of the
    number of records that were replayed.
    """

    def __init__(
        self,
        agent: m.Agent,
        ports: Ports,
        node: Node,
        *,
        think_ms: Callable[[], int],
        send: Callable[[m.Send], None],
        on_break: Callable[[Any, Exception], None],
        on_start: Callable[[int], None],
    ) -> None:
        self.agent = agent
        self.alive = True
        self._ports = ports
        self._node = node
        self._think_ms = think_ms
        self._send = send
        self._on_break = on_break
        self._on_start = on_start
        self._performers = performers(agent, ports)
        self._heavy = bool(getattr(agent, "heavy_step", False))
        self._inbox: deque[Any] = deque()
        self._ready = self._taking = False
        self._timers: dict[str, Handle] = {}
        self._tasks: set[Task] = set()
        self._mirror: deque[m.Publish] = deque()
        self._mirroring = False
        # In the simulator a life has nothing to add to its beats, so each is the same.
        beat = AgentBeat(name=agent.name, started_at_ms=ports.clock.now_ms())
        self.life_sign = m.Received(sender=agent.name, message=beat)
        self.undelivered = 0

    def start(self) -> None:
        """Beat, replay what the journal knows, then serve the inbox."""
        self._send(m.Send(to="coordinator", message=self.life_sign.message))
        self._node.beat_on()
        self._spawn(self._begin())

    def deliver(self, event: Any) -> None:
        """Put an event into the inbox."""
        if self.alive:
            self._inbox.append(event)
            if self._node.paused:
                self._node.run(self._pump)
            else:
                self._pump()

    def deliver_all(self, events: list[m.Received]) -> None:
        """Put events that came together into the inbox."""
        if self.alive:
            self._inbox.extend(events)
            self._node.run(self._pump)

    def die(self) -> None:
        """End this life where it stands."""
        self.alive = False
        for task in self._tasks:
            task.close()
        for handle in self._timers.values():
            handle.cancel()
        self._inbox.clear()

    async def _begin(self) -> None:
        records = await self._replay()
        self._on_start(len(records))
        self._inbox.appendleft(m.Started(records=records))
        self._ready = True
        self._pump()

    async def _replay(self) -> tuple[AuditRecord, ...]:
        kinds: tuple[str, ...] = getattr(self.agent, "replay_kinds", ())
        if not kinds or self._ports.journal is None:
            return ()
        while True:
            try:
                return tuple(await self._ports.journal.read_back(kinds))
            except JournalUnavailable:
                await self._node.time.wait(_JOURNAL_RETRY_MS)

    def _pump(self) -> None:
        inbox, clock = self._inbox, self._ports.clock
        while inbox and self.alive and self._ready and not self._taking:
            event = inbox.popleft()
            self._taking = True
            try:
                effects = self.agent.step(event, clock.now_ms())
            except Exception as error:
                # A bug in `step`: whoever runs the node begins a new life, and a checker tells.
                self._on_break(event, error)
                return
            if not effects:
                self._taking = False
                continue
            if self._heavy:
                self._node.time.post(self._think_ms(), partial(self._node.run, partial(self._release, effects)))
                return
            self._perform_all(effects)
            self._taking = False

    def _release(self, effects: tuple[m.Effect, ...]) -> None:
        if self.alive:
            self._perform_all(effects)
            self._taking = False
            self._pump()

    def _perform_all(self, effects: tuple[m.Effect, ...]) -> None:
        records: list[m.Record] = []
        for effect in effects:
            if isinstance(effect, m.SetTimer):
                self._set_timer(effect)
            elif isinstance(effect, m.Send):
                self._send(effect)
            elif isinstance(effect, m.Record):
                records.append(effect)
            elif isinstance(effect, m.Publish):
                self._publish(effect)
            else:
                self._spawn(self._perform(effect))
        if records:
            self._spawn(self._append(records))

    def _spawn(self, work: Any) -> None:
        task = Task(work, self._node.run, self._tasks.discard)
        self._tasks.add(task)
        task.start()

    def _set_timer(self, effect: m.SetTimer) -> None:
        # The delay is taken once, so a clock that jumps later neither fires nor holds back a timer.
        spread_ms = effect.spread_ms * self._ports.draw() if effect.spread_ms else 0.0
        delay_ms = max(0, effect.due_ms - self._ports.clock.now_ms()) + int(spread_ms)
        old = self._timers.get(effect.ref)
        if old is not None:
            old.cancel()
        ref = effect.ref
        self._timers[ref] = self._node.time.after(delay_ms, partial(self._fire, ref))

    def _fire(self, ref: str) -> None:
        self._timers.pop(ref, None)
        self.deliver(m.TimerFired(ref=ref))

    def _publish(self, effect: m.Publish) -> None:
        self._mirror.append(effect)
        if not self._mirroring:
            self._mirroring = True
            self._spawn(self._empty_mirror())

    async def _empty_mirror(self) -> None:
        while self._mirror:
            effect = self._mirror.popleft()
            if self._ports.blackboard is None:
                continue
            try:
                await getattr(self._ports.blackboard, effect.operation)(**effect.arguments)
            except CachewardenError:
                self.undelivered += 1
        self._mirroring = False

    async def _append(self, records: list[m.Record]) -> None:
        drafts = drafts_of(self.agent.name, records, self._ports.clock.now_ms())
        try:
            if self._ports.journal is None:
                raise JournalUnavailable("this agent has no journal")
            written = await self._ports.journal.append(drafts)
        except CachewardenError as error:
            for record in records:
                self.deliver(failure_of(record, error))
            return
        for record, entry in zip(records, written, strict=True):
            self.deliver(m.Recorded(ref=record.ref, record=entry))

    async def _perform(self, effect: m.Effect) -> None:
        try:
            event = await self._performers[type(effect)](effect)
        except CachewardenError as error:
            self.deliver(failure_of(effect, error))
        else:
            if event is not None:
                self.deliver(event)
