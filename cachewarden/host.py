"""A home for one agent in a process of its own: an event loop in a thread, and a door for messages from other threads.

Whatever hosts it (a Ray actor, a test) only calls `deliver`, `query` and `ping`. It decides nothing. When the
agent's loop ends, for
whatever reason, the process is of no use any more and `on_end` is called: fail loud, so that the supervisor starts a
new life.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any

from cachewarden.shell import AgentShell

__all__ = ["AgentHost"]

_log = logging.getLogger("cachewarden.host")
_QUERY_TIMEOUT_S = 10.0


class AgentHost:
    """Builds the shell inside the agent's own loop, since connections belong to the loop that made them."""

    def __init__(self, build: Callable[[], AgentShell], on_end: Callable[[], None]) -> None:
        self._build = build
        self._on_end = on_end
        self._loop = asyncio.new_event_loop()
        self._shell: AgentShell | None = None
        self._ready = threading.Event()
        self._task: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._main, name="agent", daemon=True)
        self._thread.start()
        self._ready.wait()

    def deliver(self, sender: str, message: Any) -> None:
        """Hand a message to the agent; returns at once."""
        if self._shell is not None:
            self._loop.call_soon_threadsafe(self._shell.deliver, sender, message)

    def ping(self) -> str:
        """Return the agent's name if its loop still turns; raises RuntimeError otherwise."""
        if self._shell is None or not self._thread.is_alive():
            raise RuntimeError("the agent's loop has ended")
        return self._shell.agent.name

    async def watch(self, seen: tuple[int, int], timeout_s: float) -> Any:
        """Wait for news from the caller's own loop, whichever that is; see `AgentShell.watch`.

        A coroutine, since a class with any is an asynchronous actor to Ray: its plain methods run one after the other
        in their group's loop (which keeps messages in order), and watchers would wait for each other.
        """
        shell = self._shell
        if shell is None:
            raise RuntimeError("the agent's loop has ended")
        waiting = asyncio.run_coroutine_threadsafe(shell.watch(seen, timeout_s), self._loop)
        async with asyncio.timeout(timeout_s + _QUERY_TIMEOUT_S):
            return await asyncio.wrap_future(waiting)

    def query(self, method: str, *arguments: Any) -> Any:
        """Call a method of the agent inside its loop, between two steps, and return its answer."""
        shell = self._shell
        if shell is None:
            raise RuntimeError("the agent's loop has ended")

        async def call() -> Any:
            return getattr(shell.agent, method)(*arguments)

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(_QUERY_TIMEOUT_S)

    def stop(self) -> None:
        """End the loop and wait for it; `on_end` is not called."""
        self._on_end = lambda: None
        if self._task is not None:
            self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(timeout=10)

    def _main(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        except asyncio.CancelledError:
            pass
        except Exception:
            _log.exception("the agent's loop ended")
        finally:
            self._shell = None
            self._ready.set()
            self._loop.close()
            self._on_end()

    async def _serve(self) -> None:
        self._shell = self._build()
        self._task = asyncio.current_task()
        self._ready.set()
        await self._shell.run()
