"""The shell around an agent: takes one event at a time, calls `step`, performs the effects through ports, feeds
answers back.

It decides nothing. With the table of `performing.py` it is the only awaiting code of the library, and the only place
where any exception may be caught: an operating error becomes an `EffectFailed` event; an exception out of `step` is a
bug, stops the agent and leaves every cache untouched.

INVARIANT: `step` is never entered twice at once, and messages of one step leave in the order in which it gave them;
what is mirrored onto the blackboard goes its own way, so that a blackboard that hangs holds up no message.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Iterable
from typing import Any

from cachewarden import machine as m
from cachewarden.errors import BlackboardUnavailable, CachewardenError, JournalUnavailable, OperatingError
from cachewarden.messages import AuditRecord
from cachewarden.performing import Ports, drafts_of, failure_of, performers
from cachewarden.protocol import AgentBeat

__all__ = ["AgentShell", "Ports", "end_tasks"]

_log = logging.getLogger("cachewarden.shell")
_BEAT_INTERVAL_S = 5.0
_JOURNAL_RETRY_S = 1.0
_CANCEL_AGAIN_S = 0.05
_MIRROR_PAUSES_S = (0.1, 1.0)
"""Pauses before a write to the blackboard is tried again; after the last try it is given up and counted."""


async def end_tasks(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait until all are gone.

    Asked again and again: a cancellation that meets a timeout in the same turn of the loop can get lost.
    """
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=_CANCEL_AGAIN_S)


class AgentShell:
    """Runs one agent until it is cancelled. `inbox_limit` bounds what may wait; further messages are dropped and
    counted. Answers to the agent's own effects are never dropped: it may be waiting for just this one.
    """

    def __init__(
        self, agent: m.Agent, ports: Ports, *, inbox_limit: int = 10_000, beat_to: str | None = "coordinator"
    ) -> None:
        self.agent = agent
        self.dropped = 0
        self.undelivered = 0
        self._ports = ports
        self._inbox_limit = inbox_limit
        self._inbox: asyncio.Queue[Any] = asyncio.Queue()
        self._outbox: asyncio.Queue[m.Send] = asyncio.Queue(inbox_limit)
        self._mirror: asyncio.Queue[m.Publish] = asyncio.Queue(inbox_limit)
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._watchers: set[asyncio.Future[None]] = set()
        self._beat_to = beat_to
        self._heavy = bool(getattr(agent, "heavy_step", False))
        self._started_at_ms = ports.clock.now_ms()
        self._performers = performers(agent, ports)

    def deliver(self, sender: str, message: Any) -> bool:
        """Put a message into the inbox; False (and counted) when it is full."""
        if self._inbox.qsize() >= self._inbox_limit:
            self.dropped += 1
            return False
        self._inbox.put_nowait(m.Received(sender=sender, message=message))
        return True

    async def watch(self, seen: tuple[int, int], timeout_s: float) -> Any:
        """Return what `agent.news` says to somebody who has seen `seen`: at once where there is news, else as soon as
        a step brings some, after `timeout_s` at the latest."""
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        # The shell knows no agent by its class; only one that can be watched is asked.
        agent: Any = self.agent
        while not agent.has_news(seen) and (left := end - loop.time()) > 0:
            stepped: asyncio.Future[None] = loop.create_future()
            self._watchers.add(stepped)
            try:
                await asyncio.wait((stepped,), timeout=left)
            finally:
                self._watchers.discard(stepped)
        return agent.news(seen, self._ports.clock.now_ms())

    async def run(self) -> None:
        """Replay what the journal knows, then serve the inbox until cancelled; raises what `step` raises."""
        helpers = [asyncio.create_task(work) for work in (self._empty_outbox(), self._empty_mirror(), self._beat())]
        try:
            await self._take(m.Started(records=await self._replay()))
            while True:
                await self._take(await self._inbox.get())
        finally:
            pending = [*helpers, *self._tasks]
            for handle in self._timers.values():
                handle.cancel()
            await end_tasks(pending)
            if self._ports.close is not None:
                await self._ports.close()

    async def _replay(self) -> tuple[AuditRecord, ...]:
        kinds: tuple[str, ...] = getattr(self.agent, "replay_kinds", ())
        if not kinds or self._ports.journal is None:
            return ()
        while True:
            try:
                return tuple(await self._ports.journal.read_back(kinds))
            except JournalUnavailable as error:
                _log.warning("%s waits for the journal: %s", self.agent.name, error)
                await asyncio.sleep(_JOURNAL_RETRY_S)

    async def _take(self, event: Any) -> None:
        now_ms = self._ports.clock.now_ms()
        if self._heavy:
            # Seconds of arithmetic must not hold up the other agents of this loop; events still come one at a time.
            effects = await asyncio.to_thread(self.agent.step, event, now_ms)
        else:
            effects = self.agent.step(event, now_ms)
        for watcher in self._watchers:
            if not watcher.done():
                watcher.set_result(None)
        records: list[m.Record] = []
        for effect in effects:
            if isinstance(effect, m.Record):
                records.append(effect)
            elif isinstance(effect, m.Send):
                await self._outbox.put(effect)
            elif isinstance(effect, m.Publish):
                self._publish(effect)
            elif isinstance(effect, m.SetTimer):
                self._set_timer(effect)
            else:
                self._spawn(self._perform(effect))
        if records:
            self._spawn(self._append(records))

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _set_timer(self, effect: m.SetTimer) -> None:
        # The delay is taken once, so a clock that jumps later neither fires nor holds back a timer.
        spread_ms = effect.spread_ms * self._ports.draw() if effect.spread_ms else 0.0
        delay_s = (max(0, effect.due_ms - self._ports.clock.now_ms()) + spread_ms) / 1000
        old = self._timers.pop(effect.ref, None)
        if old is not None:
            old.cancel()
        self._timers[effect.ref] = asyncio.get_running_loop().call_later(delay_s, self._fire, effect.ref)

    def _fire(self, ref: str) -> None:
        self._timers.pop(ref, None)
        self._inbox.put_nowait(m.TimerFired(ref=ref))

    async def _beat(self) -> None:
        while self._beat_to is not None:
            troubles = (
                f"{self.dropped} messages dropped" if self.dropped else "",
                f"{self.undelivered} not delivered" if self.undelivered else "",
            )
            detail = ", ".join(trouble for trouble in troubles if trouble)
            beat = AgentBeat(name=self.agent.name, started_at_ms=self._started_at_ms, detail=detail)
            await self._outbox.put(m.Send(to=self._beat_to, message=beat))
            await asyncio.sleep(_BEAT_INTERVAL_S)

    def _publish(self, effect: m.Publish) -> None:
        try:
            self._mirror.put_nowait(effect)
        except asyncio.QueueFull:
            # The blackboard is a mirror: what it missed is written there again with the next change.
            self.undelivered += 1

    async def _empty_outbox(self) -> None:
        while True:
            effect = await self._outbox.get()
            await self._let_go(effect, self._send(effect))

    async def _empty_mirror(self) -> None:
        while True:
            effect = await self._mirror.get()
            await self._let_go(effect, self._write_mirror(effect))

    async def _send(self, effect: m.Send) -> None:
        await self._ports.mailbox.send(self.agent.name, effect.to, effect.message)

    async def _write_mirror(self, effect: m.Publish) -> None:
        if self._ports.blackboard is None:
            return
        operation = getattr(self._ports.blackboard, effect.operation)
        for pause_s in _MIRROR_PAUSES_S:
            # After a restart of the server each connection breaks once; what is mirrored may be said twice.
            with contextlib.suppress(BlackboardUnavailable):
                await operation(**effect.arguments)
                return
            await asyncio.sleep(pause_s)
        await operation(**effect.arguments)

    async def _let_go(self, effect: m.Effect, work: Awaitable[Any]) -> None:
        try:
            await work
        except OperatingError as error:
            self.undelivered += 1
            _log.warning("%s: %s", self.agent.name, error)
        except Exception:
            # One message that cannot leave must not silence the agent for good.
            self.undelivered += 1
            _log.exception("%s could not deliver %s", self.agent.name, type(effect).__name__)

    async def _append(self, records: list[m.Record]) -> None:
        drafts = drafts_of(self.agent.name, records, self._ports.clock.now_ms())
        try:
            if self._ports.journal is None:
                raise JournalUnavailable("this agent has no journal")
            written = await self._ports.journal.append(drafts)
        except CachewardenError as error:
            for record in records:
                self._fail(record, error)
            return
        except Exception as error:
            _log.exception("%s could not record", self.agent.name)
            for record in records:
                self._fail(record, error)
            return
        for record, entry in zip(records, written, strict=True):
            self._inbox.put_nowait(m.Recorded(ref=record.ref, record=entry))

    async def _perform(self, effect: m.Effect) -> None:
        try:
            event = await self._performers[type(effect)](effect)
        except CachewardenError as error:
            self._fail(effect, error)
        except Exception as error:
            _log.exception("%s: %s failed", self.agent.name, type(effect).__name__)
            self._fail(effect, error)
        else:
            if event is not None:
                self._inbox.put_nowait(event)

    def _fail(self, effect: m.Effect, error: Exception) -> None:
        self._inbox.put_nowait(failure_of(effect, error))
