"""The agents as Ray actors: plain hosts, wrapped late, all options in one place. The only module of `agents` that
imports Ray."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

import ray

from cachewarden.host import AgentHost
from cachewarden.shell import AgentShell
from cachewarden.state_parcel import packed

__all__ = ["actor_options", "create"]


WATCHED: Final = frozenset({"coordinator"})
"""Agents whose news others wait for, each waiter in a coroutine of its own."""
PROMPT: Final = frozenset({"coordinator", "actuator"})
"""Agents that somebody waits for: replicas for the state, caches for the next step."""
NICENESS: Final = 10
"""Of all other agents: they deliberate for seconds, and on a busy machine a decision must not wait for them."""
WATCHERS_MAX: Final = 64
"""Replicas that may watch at once; more than that wait for each other."""


def actor_options(name: str, namespace: str, *, detached: bool) -> dict[str, Any]:
    """Return what Ray is told about an agent.

    It mostly waits (no CPU reserved), is restarted for ever, and its calls are not retried: a message is delivered
    at most once, since
    agents recognise a missing answer by their deadlines and a doubled one they would have to recognise too.
    """
    return {
        "name": name,
        "namespace": namespace,
        "num_cpus": 0,
        "max_restarts": -1,
        "max_task_retries": 0,
        "max_concurrency": 4,
        "lifetime": "detached" if detached else None,
        "get_if_exists": True,
    }


class _Actor(AgentHost):
    """An agent host that takes its process with it when its loop ends, so that Ray starts the next life."""

    def __init__(self, build: Callable[[], AgentShell], niceness: int) -> None:
        os.nice(niceness)
        super().__init__(build, on_end=lambda: os._exit(1))

    async def watch(self, seen: tuple[int, int], timeout_s: float) -> Any:
        """Wait for news; they come in a parcel, since whoever waits may be of another version."""
        return packed(await super().watch(seen, timeout_s))

    def process_id(self) -> int:
        return os.getpid()


def create(name: str, namespace: str, build: Callable[[], AgentShell], *, detached: bool = False) -> Any:
    """Start (or find) the actor of one agent and return its handle."""
    remote = ray.remote(concurrency_groups={"watch": WATCHERS_MAX}) if name in WATCHED else ray.remote
    # Ray names a process after its class, and `top` should say which agent takes the time.
    titled = type(name.capitalize(), (_Actor,), {"__module__": __name__})
    return (
        remote(titled)
        .options(**actor_options(name, namespace, detached=detached))
        .remote(build, 0 if name in PROMPT else NICENESS)
    )
