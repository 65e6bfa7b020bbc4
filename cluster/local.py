"""All agents in one process and one loop, without Ray: for embedding, for tests, and for one small machine.

The same shells and agents as in the Ray actors; only the mailbox differs. An agent whose `step` raises is started
anew from the journal,
as Ray would do.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from cachewarden.shell import AgentShell, end_tasks
from cluster.wiring import Plan, agents_of, build_shell

__all__ = ["LocalRuntime"]

_log = logging.getLogger("cluster.local")
_RESTART_PAUSE_S = 0.5


class LocalRuntime:
    """Use as `async with LocalRuntime(plan) as runtime`."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._shells: dict[str, AgentShell] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def __aenter__(self) -> LocalRuntime:
        for name in agents_of(self._plan):
            self._tasks[name] = asyncio.create_task(self._live(name), name=name)
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *_: object) -> None:
        await end_tasks(self._tasks.values())

    async def send(self, sender: str, to: str, message: Any) -> None:
        """Deliver to an agent of this process; one that is between two lives loses the message."""
        shell = self._shells.get(to)
        if shell is not None:
            shell.deliver(sender, message)

    async def query(self, agent: str, method: str, *arguments: Any) -> Any:
        """Call a method of an agent between two of its steps; raises RuntimeError while it is not there."""
        shell = self._shells.get(agent)
        if shell is None:
            raise RuntimeError(f"agent `{agent}` is not running")
        return getattr(shell.agent, method)(*arguments)

    async def watch(self, agent: str, seen: tuple[int, int], timeout_s: float) -> Any:
        """Wait for news of an agent; raises RuntimeError while it is not there."""
        shell = self._shells.get(agent)
        if shell is None:
            raise RuntimeError(f"agent `{agent}` is not running")
        return await shell.watch(seen, timeout_s)

    def kill(self, agent: str) -> None:
        """End one life of an agent where it stands, as a crash would; the next begins by itself."""
        self._tasks[agent].cancel()
        self._tasks[agent] = asyncio.create_task(self._live(agent), name=agent)

    async def _live(self, name: str) -> None:
        while True:
            shell: AgentShell | None = None
            try:
                shell = build_shell(self._plan, name, self)
                self._shells[name] = shell
                await shell.run()
            except asyncio.CancelledError:
                raise
            except Exception:
                # A bug in `step`: the caches are untouched, the journal knows where we were.
                _log.exception("agent %s ended, it starts anew from the journal", name)
                await asyncio.sleep(_RESTART_PAUSE_S)
            finally:
                if shell is not None and self._shells.get(name) is shell:
                    del self._shells[name]
