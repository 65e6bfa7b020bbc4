"""The network between nodes and servers: late, lossy, cut, and never to be trusted about what was done.

A call is a request, the work on the server and an answer, each with its own fate: a request that arrives late is
carried out late, also when nobody waits for it any more; an answer that is lost leaves the outcome unknown. Messages
between agents are one-way. A cut has a direction.

It decides nothing about what is carried. INVARIANT: what is carried out on a server is carried out once, at the virtual
time at which the request arrived.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cachewarden.errors import CachewardenError
from simulation.dice import Dice
from simulation.virtual_time import Pending, VirtualTime

__all__ = ["Host", "Network", "NoAnswer", "Unreachable", "Weather"]


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
        self._time = time
        self._dice = dice
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

    def _delay_ms(self) -> int:
        weather, dice = self.weather, self._dice
        delay_ms = dice.between(weather.delay_ms_min, weather.delay_ms_max)
        return delay_ms + dice.between(0, weather.slow_ms) if dice.chance(weather.slow_share) else delay_ms

    def post(self, source: str, target: str, deliver: Callable[[], None]) -> None:
        """Carry a message from node to node: at most once in good weather, late, never or twice in bad."""
        self.messages += 1
        if source == target:
            self._time.after(0, deliver)
            return
        if self.is_cut(source, target) or self._dice.chance(self.weather.drop_share):
            return
        self._time.after(self._delay_ms(), deliver)
        if self._dice.chance(self.weather.double_share):
            self._time.after(self._delay_ms() + self._dice.between(0, 2_000), deliver)

    async def call(self, source: str, host: Host, work: Callable[[], Any], timeout_ms: int) -> Any:
        """Have `work` carried out on `host` and return its result.

        Raises what `work` raises (as far as it is an error of ours), `Unreachable` where the server is known not to
        have got it, `NoAnswer` after `timeout_ms`.
        """
        self.calls += 1
        answer = Pending()
        patience = self._time.after(timeout_ms, lambda: answer.fail(NoAnswer()))
        if self.is_cut(source, host.name) or self._dice.chance(self.weather.drop_share):
            # Packets that were lost are sent again: it may arrive long after its sender has given up.
            if self._dice.chance(0.5):
                late_ms = self._dice.between(timeout_ms // 2, 2 * timeout_ms)
                self._time.after(late_ms, lambda: self._retry(source, host, work, answer))
        else:
            self._time.after(self._delay_ms(), lambda: self._arrive(source, host, work, answer))
        try:
            return await answer
        finally:
            patience.cancel()

    def push(self, host: Host, target: str, deliver: Callable[[], None]) -> None:
        """Carry what a server sends by itself; nothing arrives where the way is cut."""
        self._back(target, host, deliver)

    def _retry(self, source: str, host: Host, work: Callable[[], Any], answer: Pending) -> None:
        if not self.is_cut(source, host.name):
            self._arrive(source, host, work, answer)

    def _arrive(self, source: str, host: Host, work: Callable[[], Any], answer: Pending) -> None:
        if not host.up:
            self._back(source, host, lambda: answer.fail(Unreachable()))
        elif host.busy_until_ms > self._time.now_ms():
            self._time.at(host.busy_until_ms, lambda: self._arrive(source, host, work, answer))
        else:
            self._carry_out(source, host, work, answer)

    def _carry_out(self, source: str, host: Host, work: Callable[[], Any], answer: Pending) -> None:
        try:
            result = work()
        except CachewardenError as error:
            refusal = error
            self._back(source, host, lambda: answer.fail(refusal))
        else:
            self._back(source, host, lambda: answer.resolve(result))

    def _back(self, source: str, host: Host, deliver: Callable[[], None]) -> None:
        if not self.is_cut(host.name, source) and not self._dice.chance(self.weather.drop_share):
            self._time.after(self._delay_ms(), deliver)
