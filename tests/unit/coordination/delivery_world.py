"""A journal, a mark, an Integrity Service and as many lives of the delivery as a test wants, in virtual time."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable

from cachewarden.circuit import CircuitRules
from cachewarden.errors import CachewardenError
from cachewarden.machine import EffectFailed, JournalRead, ReadJournal, SetTimer, Started, TimerFired
from cachewarden.peering import Peers, peer_performers
from cachewarden.ports import RecordDraft
from coordination.delivery import Delivery
from coordination.delivery_events import request_id_of
from simulation.fake_journal import FakeJournal
from simulation.fake_peers import FakeDeliveryCursors, FakeIntegrity, Fault

START_MS = 1_800_000_000_000


def now(work):
    """Run a coroutine of a fake: it never waits, so it needs no loop."""
    try:
        work.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("a fake waited")


class HandClock:
    def __init__(self) -> None:
        self.at_ms = START_MS

    def now_ms(self) -> int:
        return self.at_ms


class World:
    """Performs effects in zero time but calls of the service, which take `call_ms`; timers are drawn by `seed`."""

    def __init__(self, seed: int = 0, fault: Callable[[], Fault] = lambda: "ok", call_ms: int = 5) -> None:
        self.clock = HandClock()
        self.journal = FakeJournal()
        self.cursors = FakeDeliveryCursors(self.clock)
        self.dice = random.Random(seed)
        self.integrity = FakeIntegrity(fault)
        self.call_ms = call_ms
        self.lives: dict[str, Delivery] = {}
        self._timers: dict[tuple[str, str], int] = {}
        self._queue: list[tuple[int, int, str, object, object]] = []
        self._order = itertools.count()
        self._rules = CircuitRules()

    # --- What a test does -------------------------------------------------------------------------------------------

    def write(self, count: int, kind: str = "proposed") -> None:
        seq = len(self.journal.records)
        drafts = [
            RecordDraft(
                at_ms=self.clock.at_ms, kind=kind, agent="a", service=None, subject_id=f"s{seq + n}", payload={}
            )
            for n in range(count)
        ]
        now(self.journal.append(drafts))

    def start(self, life: str = "one") -> Delivery:
        delivery = self.lives[life] = Delivery(rules=self._rules, page_records=10)
        self._give(life, delivery, Started())
        return delivery

    def crash(self, life: str = "one") -> None:
        """End a life where it stands; what it has on its way still arrives there, and its answer nowhere."""
        del self.lives[life]

    def run(self, milliseconds: int) -> None:
        end_ms = self.clock.at_ms + milliseconds
        while self._queue and self._queue[0][0] <= end_ms:
            due_ms, _, life, delivery, event = heapq.heappop(self._queue)
            self.clock.at_ms = max(self.clock.at_ms, due_ms)
            if callable(event):
                event = event()
            if self.lives.get(life) is not delivery:
                continue
            if isinstance(event, TimerFired):
                if self._timers.get((life, event.ref)) != due_ms:
                    continue
                del self._timers[life, event.ref]
            self._give(life, delivery, event)
        self.clock.at_ms = end_ms

    # --- What it finds ----------------------------------------------------------------------------------------------

    @property
    def expected(self) -> list[str]:
        return [request_id_of(record) for record in self.journal.records]

    @property
    def received(self) -> list[str]:
        return [str(event["request_id"]) for event in self.integrity.events]

    @property
    def first_seen(self) -> list[str]:
        """Events without repetitions, in the order of their first arrival."""
        return list(dict.fromkeys(self.received))

    # --- Inside -----------------------------------------------------------------------------------------------------

    def _give(self, life: str, delivery: Delivery, event: object) -> None:
        for effect in delivery.step(event, self.clock.at_ms):
            if isinstance(effect, SetTimer):
                due_ms = effect.due_ms + round(effect.spread_ms * self.dice.random())
                self._timers[life, effect.ref] = due_ms
                self._push(due_ms, life, delivery, TimerFired(ref=effect.ref))
            else:
                slow = type(effect).__name__ == "Deliver"
                due_ms = self.clock.at_ms + (self.call_ms if slow else 0)
                self._push(due_ms, life, delivery, lambda e=effect, n=life: self._perform(e, n))

    def _push(self, due_ms: int, life: str, delivery: Delivery, event: object) -> None:
        heapq.heappush(self._queue, (due_ms, next(self._order), life, delivery, event))

    def _perform(self, effect, life):
        peers = Peers(integrity=self.integrity, cursors=self.cursors, holder=life)
        try:
            if isinstance(effect, ReadJournal):
                records = now(self.journal.read(effect.after_seq, effect.limit))
                return JournalRead(ref=effect.ref, records=tuple(records))
            return now(peer_performers(peers, self.journal)[type(effect)](effect))
        except CachewardenError as error:
            return EffectFailed(
                ref=effect.ref,
                effect=type(effect).__name__,
                kind=type(error).__name__,
                reason=str(error),
                details={k: v for k, v in vars(error).items() if isinstance(v, (str, int))},
            )
