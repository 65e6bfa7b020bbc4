"""The network between nodes and servers: late, lossy, cut, and never to be trusted about what was done.

A call is a request, the work on the server and an answer, each with its own fate: a request that arrives late is
carried out late, also when nobody waits for it any more; an answer that is lost leaves the outcome unknown. Messages
between agents are one-way. A cut has a direction.

It decides nothing about what is carried. INVARIANT: what is carried out on a server is carried out once, at the virtual
time at which the request arrived.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from cachewarden.errors import CachewardenError
from simulation.dice import Dice
from simulation.virtual_time import Pending, VirtualTime, drive

__all__ = ["Host", "Network", "NoAnswer", "Unreachable", "Weather", "Work"]

Work = Callable[[], Coroutine[Any, Any, Any]]
"""What is done at a server. It is a coroutine since ports are; none of them waits."""


class Unreachable(Exception):
    """The connection was refused: nothing was carried out."""


class NoAnswer(Exception):
    """Nobody answered in time: it may have been carried out, or still be."""


@dataclass(slots=True)
class Host:
    """A machine with a server on it."""

    name: str
    up: bool = True
    busy_until_ms: int = 0
    """Until then it works on something else, and everybody waits."""
    downs: int = 0
    """How often it went down; connections do not outlast that."""


@dataclass(slots=True)
class Weather:
    """How the network behaves now. Shares are 0..1, times in milliseconds."""

    delay_ms_min: int = 1
    delay_ms_max: int = 4
    slow_share: float = 0.0
    """Share of what is sent that takes up to `slow_ms` longer."""
    slow_ms: int = 0
    drop_share: float = 0.0
    double_share: float = 0.0
    """Messages between agents only: a server's connection neither doubles nor reorders."""


class Network:
    """All connections of one world. `cuts` holds (from, to) pairs of names; `*` stands for everybody."""

    def __init__(self, time: VirtualTime, dice: Dice) -> None:
        self.time = time
        self.dice = dice
        self.weather = Weather()
        self.cuts: dict[tuple[str, str], int] = {}
        self.messages = 0
        self.calls = 0

    def cut(self, source: str, target: str) -> None:
        """Let nothing pass from `source` to `target`; cuts of the same pair are counted."""
        self.cuts[source, target] = self.cuts.get((source, target), 0) + 1

    def mend(self, source: str, target: str) -> None:
        """Take one cut away."""
        left = self.cuts.get((source, target), 0) - 1
        if left > 0:
            self.cuts[source, target] = left
        else:
            self.cuts.pop((source, target), None)

    def is_cut(self, source: str, target: str) -> bool:
        """Whether nothing passes from `source` to `target`."""
        cuts = self.cuts
        return bool(cuts) and ((source, target) in cuts or (source, "*") in cuts or ("*", target) in cuts)

    def delay_ms(self) -> int:
        """Return how long what is sent now is on its way."""
        weather, dice = self.weather, self.dice
        delay_ms = dice.between(weather.delay_ms_min, weather.delay_ms_max)
        if weather.slow_share and dice.chance(weather.slow_share):
            return delay_ms + dice.between(0, weather.slow_ms)
        return delay_ms

    def post(self, source: str, target: str, deliver: Callable[[], None]) -> None:
        """Carry a message from node to node: at most once in good weather, late, never or twice in bad."""
        self.messages += 1
        if source == target:
            self.time.post(0, deliver)
            return
        if self.is_lost(source, target):
            return
        self.time.post(self.delay_ms(), deliver)
        share = self.weather.double_share
        if share and self.dice.chance(share):
            self.time.post(self.delay_ms() + self.dice.between(0, 2_000), deliver)

    def is_lost(self, source: str, target: str) -> bool:
        """Say whether what is sent now is lost: the way is cut, or the dice take it."""
        share = self.weather.drop_share
        return bool(self.cuts and self.is_cut(source, target)) or (share > 0.0 and self.dice.chance(share))

    def call(
        self,
        source: str,
        host: Host,
        work: Work,
        timeout_ms: int,
        unreachable: Callable[[], Exception] = Unreachable,
        no_answer: Callable[[], Exception] = NoAnswer,
    ) -> Pending:
        """Have `work` carried out on `host` and return its result, to be awaited.

        Awaiting raises what `work` raises (as far as it is an error of ours), `unreachable` where the server is known
        not to have got it, `no_answer` after `timeout_ms`.
        """
        self.calls += 1
        call = _Call(self, source, host, work, timeout_ms, unreachable, no_answer)
        call.send()
        return call

    def push(self, host: Host, target: str, deliver: Callable[[], None]) -> None:
        """Carry what a server sends by itself; nothing arrives where the way is cut."""
        if not self.is_lost(host.name, target):
            self.time.post(self.delay_ms(), deliver)


class _Call(Pending):
    """One call on its way, and its own answer.

    Whoever calls waits for `timeout_ms` from the sending on; the end of the patience is entered only where something
    keeps the answer from coming before, since of a thousand calls hardly one is not answered.
    """

    __slots__ = (
        "_ends_ms",
        "_host",
        "_network",
        "_no_answer",
        "_refusal",
        "_result",
        "_source",
        "_timeout_ms",
        "_unreachable",
        "_waits",
        "_work",
    )

    def __init__(
        self,
        network: Network,
        source: str,
        host: Host,
        work: Work,
        timeout_ms: int,
        unreachable: Callable[[], Exception],
        no_answer: Callable[[], Exception],
    ) -> None:
        super().__init__()
        self._network = network
        self._source = source
        self._host = host
        self._work = work
        self._timeout_ms = timeout_ms
        self._unreachable = unreachable
        self._no_answer = no_answer
        self._ends_ms = network.time.now_ms() + timeout_ms
        self._waits = False
        self._result: Any = None
        self._refusal: Exception | None = None

    def send(self) -> None:
        network, dice = self._network, self._network.dice
        if network.is_lost(self._source, self._host.name):
            self._lose_patience()
            # Packets that were lost are sent again: it may arrive long after its sender has given up.
            if dice.chance(0.5):
                network.time.post(dice.between(self._timeout_ms // 2, 2 * self._timeout_ms), self._retry)
            return
        delay_ms = network.delay_ms()
        if delay_ms >= self._timeout_ms:
            self._lose_patience()
        network.time.post(delay_ms, self._arrive)

    def _lose_patience(self) -> None:
        """Let whoever waits give up in time."""
        if not self._waits:
            self._waits = True
            self._network.time.at(self._ends_ms, self._give_up)

    def _give_up(self) -> None:
        self.fail(self._no_answer())

    def _retry(self) -> None:
        if not self._network.is_cut(self._source, self._host.name):
            self._arrive()

    def _arrive(self) -> None:
        host, time = self._host, self._network.time
        if not host.up:
            self._refusal = self._unreachable()
        elif host.busy_until_ms > time.now_ms():
            self._lose_patience()
            time.at(host.busy_until_ms, self._arrive)
            return
        else:
            try:
                self._result = drive(self._work())
            except CachewardenError as error:
                self._refusal = error
        self._back()

    def _back(self) -> None:
        network = self._network
        if network.is_lost(self._host.name, self._source):
            self._lose_patience()
            return
        delay_ms = network.delay_ms()
        if network.time.now_ms() + delay_ms >= self._ends_ms:
            self._lose_patience()
        network.time.post(delay_ms, self._told)

    def _told(self) -> None:
        if self._refusal is None:
            self.resolve(self._result)
        else:
            self.fail(self._refusal)
