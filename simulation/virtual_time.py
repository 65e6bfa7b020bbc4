"""Virtual time: a heap of what is due, and coroutines that wait by it instead of by a clock.

Ports are awaited in the simulator as in production; here a wait is a `Pending` that some event of the heap resolves, so
whole hours pass in the time that the arithmetic takes. There is one thread and no loop but `run_until`.

It decides nothing but the order of events. INVARIANT: events run in the order of (due time, when they were entered),
and the time never goes back.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from typing import Any

__all__ = ["Handle", "Pending", "Task", "VirtualTime", "drive"]


class Handle:
    """Something that is due; `cancel` before it has run makes it nothing."""

    __slots__ = ("action",)

    def __init__(self, action: Callable[[], None]) -> None:
        self.action: Callable[[], None] | None = action

    def cancel(self) -> None:
        self.action = None


Entry = tuple[int, int, "Handle | Callable[[], None]"]


class VirtualTime:
    """The clock of the world, in milliseconds since the epoch."""

    def __init__(self, start_ms: int) -> None:
        self._now_ms = start_ms
        self._entered = 0
        self._heap: list[Entry] = []
        self._halted = False
        self.events = 0
        """How many have run."""

    def now_ms(self) -> int:
        return self._now_ms

    def at(self, due_ms: int, action: Callable[[], None]) -> Handle:
        """Run `action` at `due_ms`, or as soon as possible where that is past."""
        handle = Handle(action)
        self._entered += 1
        heapq.heappush(self._heap, (max(due_ms, self._now_ms), self._entered, handle))
        return handle

    def post(self, delay_ms: int, action: Callable[[], None]) -> None:
        """Run `action` in `delay_ms` (0 or more), come what may: what nobody cancels needs no handle."""
        self._entered += 1
        heapq.heappush(self._heap, (self._now_ms + delay_ms, self._entered, action))

    def after(self, delay_ms: int, action: Callable[[], None]) -> Handle:
        """Run `action` in `delay_ms`."""
        return self.at(self._now_ms + delay_ms, action)

    def wait(self, delay_ms: int) -> Pending:
        """Return something to await that is there after `delay_ms`."""
        pending = Pending()
        self.post(delay_ms, partial(pending.resolve, None))
        return pending

    def halt(self) -> None:
        """Let no more events run than the present one."""
        self._halted = True

    def run_until(self, end_ms: int) -> None:
        """Run everything that is due until `end_ms`, or up to the event that halts it."""
        heap, pop = self._heap, heapq.heappop
        while heap and heap[0][0] <= end_ms:
            due_ms, _, action = pop(heap)
            if isinstance(action, Handle):
                if action.action is None:
                    continue
                action = action.action
            self._now_ms = due_ms
            self.events += 1
            action()
            if self._halted:
                return
        self._now_ms = max(self._now_ms, end_ms)


class Pending:
    """A result that is not there yet; the first of `resolve` and `fail` counts."""

    __slots__ = ("_error", "_then", "_value", "done")

    def __init__(self) -> None:
        self.done = False
        self._value: Any = None
        self._error: Exception | None = None
        self._then: Callable[[], None] | None = None

    def resolve(self, value: Any) -> None:
        if not self.done:
            self.done, self._value = True, value
            self._tell()

    def fail(self, error: Exception) -> None:
        if not self.done:
            self.done, self._error = True, error
            self._tell()

    def then(self, action: Callable[[], None]) -> None:
        """Call `action` once there is a result; at most one may wait."""
        if self.done:
            action()
        else:
            self._then = action

    def _tell(self) -> None:
        action, self._then = self._then, None
        if action is not None:
            action()

    def __await__(self) -> Generator[Pending, None, Any]:
        if not self.done:
            yield self
        if self._error is not None:
            raise self._error
        return self._value


class Task:
    """A coroutine that is carried on whenever what it waits for is there.

    `gate` is asked to run each part of it: a process that is paused holds it back.
    """

    __slots__ = ("_closed", "_gate", "_on_end", "_running", "_work")

    def __init__(
        self,
        work: Coroutine[Any, Any, Any],
        gate: Callable[[Callable[[], None]], None],
        on_end: Callable[[Task], None],
    ) -> None:
        self._work = work
        self._on_end = on_end
        self._closed = self._running = False
        self._gate = gate

    def start(self) -> None:
        self._go_on()

    def close(self) -> None:
        """End it where it stands, as the death of its process does."""
        self._closed = True
        if not self._running:
            self._work.close()

    def _go_on(self) -> None:
        if self._closed:
            return
        self._running = True
        try:
            pending: Pending = self._work.send(None)
        except StopIteration:
            self._on_end(self)
            return
        finally:
            self._running = False
        if self._closed:
            # It has ended its own process while it ran.
            self._work.close()
            return
        pending.then(self._wake)

    def _wake(self) -> None:
        self._gate(self._go_on)


def drive(work: Coroutine[Any, Any, Any]) -> Any:
    """Return the result of a coroutine that waits for nothing; raises RuntimeError for one that does.

    The fakes are async because their ports are; none of them suspends.
    """
    try:
        work.send(None)
    except StopIteration as end:
        return end.value
    work.close()
    raise RuntimeError("a fake waited for something, which only the network may")
