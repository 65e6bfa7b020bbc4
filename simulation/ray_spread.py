"""Seeds spread over a Ray cluster: one run is one task on one CPU, on whatever node has it.

The tree is shipped to the nodes of a cluster; on a Ray that is started here for the purpose the workers read it where
it stands. It decides nothing: a run has the same outcome wherever it is computed. INVARIANT: no more runs wait in Ray
than its CPUs can take up soon, and a Ray that was started here ends with the work.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import ray

__all__ = ["LOCAL", "RayUnreachable", "spread_on_ray"]

LOCAL = "local"
"""Instead of an address: a Ray on this machine for the time of the work."""

_ROOT = Path(__file__).resolve().parent.parent
_EXCLUDES = ["tests", "docs", "dist", "var", ".venv", ".git", "benchmarks", "*.gz", "*.zst"]
_AHEAD = 2
_KNOCK_S = 5.0
W = TypeVar("W")
T = TypeVar("T")


class RayUnreachable(Exception):
    """There is no Ray to work on, for the reason in its text."""


def spread_on_ray(work: Iterable[W], run: Callable[[W], T], address: str) -> Iterator[T]:
    """Yield the results of `run` over `work` as they come; raises RayError for a task that cannot be carried out and
    RayUnreachable where there is no Ray at `address`.

    A task whose process or node died is done again, twice.
    """
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address == LOCAL:
        environment: dict[str, Any] = {"env_vars": {"PYTHONPATH": str(_ROOT)}}
        options |= {"address": LOCAL, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    else:
        environment = {"working_dir": str(_ROOT), "excludes": _EXCLUDES}
        options["address"] = address
    try:
        _knock(address)
        ray.init(runtime_env=environment, **options)
    except (OSError, ValueError, RuntimeError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RayUnreachable(
            f"there is no Ray at `{address}`: {why}; say `--ray {LOCAL}` for one of your own, or leave `--ray` out"
        ) from None
    try:
        yield from _spread(work, run, ray.remote(num_cpus=1, max_retries=2)(_call))
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raise OSError where nobody listens at `host:port`; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=_KNOCK_S).close()


def _call(run: Callable[[W], T], item: W) -> T:
    return run(item)


def _spread(work: Iterable[W], run: Callable[[W], T], task: Any) -> Iterator[T]:
    left = iter(work)
    ahead = _AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
    running = [task.remote(run, item) for item in islice(left, ahead)]
    try:
        while running:
            done, running = ray.wait(running, num_returns=1)
            yield from ray.get(done)
            running += [task.remote(run, item) for item in islice(left, len(done))]
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
