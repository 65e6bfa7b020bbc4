"""The agents as named Ray actors, and the way to reach them from anywhere in the Ray cluster.

It starts and ends what it started itself and nothing else; an actor that dies is restarted by Ray and rebuilds
itself from the journal.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import ray

from agents import actors
from cachewarden.errors import OperatingError
from cachewarden.state_parcel import unpacked
from cluster.ingress import ALWAYS
from cluster.runtime_env import runtime_env
from cluster.wiring import Plan, agents_of, build_shell

__all__ = ["NAMESPACE", "RayAgents", "RayMailbox", "start_ray", "stop_ray"]

NAMESPACE = "cachewarden"
QUIET: Final[Mapping[str, str]] = {
    # Nobody reads what Ray measures of itself where there is no dashboard; our own figures are at `/metrics`.
    "RAY_enable_metrics_collection": "0",
    "RAY_event_stats": "0",
    # Never: the head keeps what every call of an actor was for a dashboard, some 60 MiB per hour up to 100,000 calls.
    "RAY_task_events_report_interval_ms": "0",
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "10000",
    # One node has nobody to tell ten times a second what it has.
    "RAY_raylet_report_resources_period_milliseconds": "1000",
    "RAY_memory_monitor_refresh_ms": "1000",
    # Workers for tasks that we do not have.
    "RAY_prestart_worker_first_driver": "0",
    "LOG_NAME_UPDATE_INTERVAL_S": "10",
}
"""What a Ray of our own does less often than by default, since it does it all day; what is set already stays."""
_log = logging.getLogger("cluster.ray")
_QUERY_TIMEOUT_S = 5.0


class RayMailbox:
    """Messages between actors by name; handles are looked up once and again after a failure."""

    def __init__(self, namespace: str = NAMESPACE) -> None:
        self._namespace = namespace
        self._handles: dict[str, Any] = {}

    def _handle(self, name: str) -> Any:
        handle = self._handles.get(name)
        if handle is None:
            handle = self._handles[name] = ray.get_actor(name, namespace=self._namespace)
        return handle

    @contextlib.contextmanager
    def _reaching(self, agent: str) -> Iterator[None]:
        """Turn whatever Ray raises where an agent, its node or the head is gone into an OperatingError; the next call
        looks the agent up anew."""
        if not ray.is_initialized():
            # Asked for an actor now, Ray would start a cluster of its own and look for it there.
            self._handles.clear()
            raise OperatingError(
                f"agent `{agent}` cannot be reached: this process is connected to no Ray, join it again"
            )
        try:
            yield
        except Exception as error:
            self._handles.pop(agent, None)
            # A handle of a Ray that is gone is refused with a bare Exception, and a Ray that ends meanwhile with
            # whatever it trips over; everything else is ours and a bug.
            rays = type(error) is Exception or isinstance(error, (ValueError, OSError, ray.exceptions.RayError))
            if not rays and ray.is_initialized():
                raise
            raise OperatingError(f"agent `{agent}` cannot be reached: {type(error).__name__}: {error}") from None

    async def send(self, sender: str, to: str, message: Any) -> None:
        """Deliver at most once; a receiver that does not exist (yet) loses the message. Raises OperatingError."""
        with self._reaching(to):
            # Nobody waits for the answer: a lost message is found out by the sender's deadline.
            self._handle(to).deliver.remote(sender, message)

    async def query(self, agent: str, method: str, *arguments: Any) -> Any:
        """Call a method of an agent; raises OperatingError when it does not answer in time."""
        with self._reaching(agent):
            return await asyncio.wait_for(self._handle(agent).query.remote(method, *arguments), _QUERY_TIMEOUT_S)

    async def watch(self, agent: str, seen: tuple[int, int], timeout_s: float) -> Any:
        """Wait for news of an agent for at most `timeout_s`; raises OperatingError when it does not answer in time,
        OtherVersion where what it says cannot be read here."""
        with self._reaching(agent):
            # Watchers wait in a group of their own, so that they never keep a message or a question from getting in.
            call = self._handle(agent).watch.options(concurrency_group="watch")
            parcel = await asyncio.wait_for(call.remote(seen, timeout_s), timeout_s + _QUERY_TIMEOUT_S)
        return unpacked(parcel)


def start_ray(
    environment: dict[str, str] | None = None,
    *,
    address: str | None = None,
    object_store_mib: int = 128,
    temporary: Path | None = None,
) -> None:
    """Start a Ray of our own on this machine with its files in `temporary`, or join the one at `address`."""
    # Ray's processes take the environment of whoever starts them; `cluster.run` has put the ingress there before.
    for name, value in ALWAYS.items():
        os.environ.setdefault(name, value)
    options: dict[str, Any] = {
        "namespace": NAMESPACE,
        "runtime_env": runtime_env(environment, ship=address is not None),
        "logging_level": logging.ERROR,
        "log_to_driver": False,
    }
    if address is None:
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        # Without `local` Ray would join whatever RAY_ADDRESS or an earlier `ray start` on this machine names.
        options |= {
            "address": "local",
            "include_dashboard": False,
            "object_store_memory": object_store_mib * 1024 * 1024,
            "_node_ip_address": "127.0.0.1",
        }
        if temporary is not None:
            options["_temp_dir"] = str(temporary)
    else:
        options["address"] = address
    ray.init(**options)


class RayAgents:
    """The seven actors of one plan."""

    def __init__(self, plan: Plan, *, namespace: str = NAMESPACE, detached: bool = False) -> None:
        self._namespace = namespace
        self._plan = plan
        self._detached = detached
        self.handles: dict[str, Any] = {}

    def start(self, timeout_s: float = 90.0) -> None:
        """Start all actors and wait until each answers; raises RayError of the first that cannot start."""
        mailbox = RayMailbox(self._namespace)
        for name in agents_of(self._plan):
            build = functools.partial(build_shell, self._plan, name, mailbox)
            self.handles[name] = actors.create(name, self._namespace, build, detached=self._detached)
        ray.get([handle.ping.remote() for handle in self.handles.values()], timeout=timeout_s)

    def process_ids(self) -> dict[str, int]:
        """Return the operating system's process of each agent."""
        pids: list[int] = ray.get([handle.process_id.remote() for handle in self.handles.values()], timeout=30)
        return dict(zip(self.handles, pids, strict=True))

    def stop(self) -> None:
        """End the actors for good; what they were doing is taken up from the journal by the next start."""
        for handle in self.handles.values():
            ray.kill(handle, no_restart=True)
        self.handles.clear()


def stop_ray() -> None:
    """End the Ray that `start_ray` started, with everything that runs in it."""
    ray.shutdown()
