"""The load driver: an open-loop cache-aside client for the managed and the control fleet, as a process of its own.

Arrivals are sent when they are due by the clock, to both fleets the very same ones, whether or not a server keeps up:
a slow server is dropped from, never waited for. It decides nothing about caches. `python -m cluster.demo.driver
--plan FILE.json` runs it.

INVARIANT: no arrival is sent before it is due, none twice, and every one that is not sent is counted as late, dropped
or an error.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from cachewarden.errors import CachewardenError
from cluster.demo.aside import CacheAside, Requests
from cluster.demo.link import Link
from cluster.demo.plan import DriverPlan, TracePlan, load_plan, save_plan
from cluster.demo.player import TraceSource, load_trace_source
from cluster.demo.prefill import prefill
from cluster.demo.servers import ServerHome
from cluster.demo.stats import DriverStats, ServiceCounters
from simulation.workload import Arrivals, Workload, WorkloadSpec

__all__ = ["ArrivalSource", "Driver", "start_driver"]

_STATS_MS = 1_000
_STATS_FILE_MAX_BYTES = 32 << 20


class ArrivalSource(Protocol):
    """Where arrivals come from; `Workload` and `TraceSource` are such sources."""

    def between(self, from_ms: int, to_ms: int) -> Arrivals: ...


class Driver:
    """Sends what is due until told to stop. `stats()` may be read at any time."""

    def __init__(self, plan: DriverPlan) -> None:
        self.plan = plan
        self._behind_s = plan.behind_ms / 1000.0
        self._sources: dict[str, ArrivalSource] = {}
        self._caches: dict[str, dict[str, CacheAside]] = {}
        self._phase = "prefill"
        self._started_s = 0.0
        self._prefill_ms = 0
        self._lag_ms = 0.0
        self._late = 0
        self._cpu = (time.monotonic(), _cpu_s())
        self._stopped = asyncio.Event()

    def stop(self) -> None:
        """Have `run` come to its end."""
        self._stopped.set()

    def stats(self) -> DriverStats:
        """Return a reading of all counters; they are copies."""
        fleets: dict[str, dict[str, ServiceCounters]] = {}
        for service, caches in self._caches.items():
            for fleet, cache in caches.items():
                counters = replace(cache.counters, latency_counts=list(cache.counters.latency_counts))
                fleets.setdefault(fleet, {})[service] = counters
        elapsed_ms = round((time.monotonic() - self._started_s) * 1000) if self._phase != "prefill" else 0
        return DriverStats(
            at_ms=time.time_ns() // 1_000_000,
            phase=self._phase,
            elapsed_ms=elapsed_ms,
            lag_ms=round(self._lag_ms, 1),
            late=self._late,
            cpu_share=self._cpu_share(),
            prefill_ms=self._prefill_ms,
            fleets=fleets,
        )

    async def run(self, report: Callable[[DriverStats], None]) -> None:
        """Connect, prefill, then drive; `report` gets a reading a second.

        Raises OSError if a server cannot be reached at first.
        """
        for service in self.plan.services:
            self._sources[service.name] = _source(service.traffic, self.plan.seed)
            self._caches[service.name] = {
                fleet: CacheAside(Link(url), pending_limit=self.plan.pending_limit, behind_s=self._behind_s)
                for fleet, url in service.urls.items()
            }
        links = [cache.link for caches in self._caches.values() for cache in caches.values()]
        reporter = asyncio.create_task(self._report(report))
        try:
            await asyncio.gather(*(link.open() for link in links))
            if self.plan.prefill:
                await self._prefill()
            await self._drive()
        finally:
            self._phase = "done"
            reporter.cancel()
            await asyncio.gather(reporter, return_exceptions=True)
            report(self.stats())
            for link in links:
                await link.close()

    async def _prefill(self) -> None:
        began_s = time.monotonic()
        work = [
            (source, tuple(self._caches[name].values()))
            for name, source in self._sources.items()
            if isinstance(source, Workload)
        ]
        filling = asyncio.create_task(prefill(work))
        stopping = asyncio.create_task(self._stopped.wait())
        await asyncio.wait({filling, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not filling.done():
            filling.cancel()
        await asyncio.gather(filling, stopping, return_exceptions=True)
        if not filling.cancelled() and (error := filling.exception()) is not None:
            raise error
        for caches in self._caches.values():
            for cache in caches.values():
                cache.counters = ServiceCounters()
        self._prefill_ms = round((time.monotonic() - began_s) * 1000)

    async def _drive(self) -> None:
        plan = self.plan
        self._phase, self._started_s = "load", time.monotonic()
        end_ms = self._end_ms()
        sent_ms, tick = 0, 0
        while not self._stopped.is_set() and (end_ms is None or sent_ms < end_ms):
            tick += 1
            # Ticks are numbered from the start, so a slow one is followed by a fast one and no drift builds up.
            wait_s = self._started_s + tick * plan.tick_ms / 1000.0 - time.monotonic()
            if wait_s < 0:
                tick += int(-wait_s * 1000.0 / plan.tick_ms)
            await asyncio.sleep(max(0.0, wait_s))
            now_ms = int((time.monotonic() - self._started_s) * 1000)
            due_ms = now_ms if end_ms is None else min(now_ms, end_ms)
            if due_ms > sent_ms:
                self._lag_ms = max(self._lag_ms, now_ms - sent_ms - plan.tick_ms)
                self._send_due(sent_ms, due_ms, now_ms)
                sent_ms = due_ms
        await self._drain()

    async def _drain(self) -> None:
        """Wait for the answers that are on their way, but not for a server that has stopped answering."""
        links = [cache.link for caches in self._caches.values() for cache in caches.values()]
        # Answers may cause loads, which go out behind the first barrier and before the second.
        for _ in range(2):
            barriers = [asyncio.ensure_future(link.barrier()) for link in links]
            _, late = await asyncio.wait(barriers, timeout=self._behind_s)
            for barrier in late:
                barrier.cancel()

    def _end_ms(self) -> int | None:
        """Return when there will be nothing more to send; None for never."""
        ends = [source.ended_ms if isinstance(source, TraceSource) else None for source in self._sources.values()]
        known = [end for end in ends if end is not None]
        trace_end_ms = max(known) if known and len(known) == len(ends) else None
        limits = [trace_end_ms, None if self.plan.duration_s is None else round(self.plan.duration_s * 1000)]
        return min((limit for limit in limits if limit is not None), default=None)

    def _send_due(self, from_ms: int, to_ms: int, now_ms: int) -> None:
        oldest_ms = now_ms - self.plan.late_ms
        for name, source in self._sources.items():
            arrivals = source.between(from_ms, to_ms)
            if from_ms < oldest_ms:
                in_time = arrivals.slice_time(oldest_ms, to_ms)
                self._late += len(arrivals) - len(in_time)
                arrivals = in_time
            if len(arrivals):
                requests = Requests(arrivals)
                for cache in self._caches[name].values():
                    cache.send(requests)

    async def _report(self, report: Callable[[DriverStats], None]) -> None:
        while True:
            await asyncio.sleep(_STATS_MS / 1000.0)
            report(self.stats())
            self._lag_ms = 0.0
            self._cpu = (time.monotonic(), _cpu_s())

    def _cpu_share(self) -> float:
        then, used = self._cpu
        passed = time.monotonic() - then
        return round((_cpu_s() - used) / passed, 3) if passed > 0.05 else 0.0


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _source(traffic: WorkloadSpec | TracePlan, seed: int) -> ArrivalSource:
    return load_trace_source(traffic) if isinstance(traffic, TracePlan) else Workload(traffic, seed)


class _StatsFile:
    """Appends readings to a file, which is begun anew when it has grown too large; `-` is standard output."""

    def __init__(self, path: str) -> None:
        self._path = None if path == "-" else Path(path)

    def __call__(self, stats: DriverStats) -> None:
        line = stats.to_json() + "\n"
        if self._path is None:
            sys.stdout.write(line)
            sys.stdout.flush()
            return
        if self._path.exists() and self._path.stat().st_size > _STATS_FILE_MAX_BYTES:
            self._path.replace(self._path.with_suffix(".old"))
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line)


async def _main(plan: DriverPlan, parent_pid: int) -> None:
    driver = Driver(plan)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, driver.stop)
    write = _StatsFile(plan.stats_path)

    def report(stats: DriverStats) -> None:
        write(stats)
        # A driver without its fleet would load nobody, for ever.
        if os.getppid() != parent_pid:
            driver.stop()

    await driver.run(report)


def start_driver(plan: DriverPlan, home: ServerHome) -> subprocess.Popen[bytes]:
    """Start the driver as a process watched by `home`; end it with `terminate`.

    Its plan and its log lie in the home's directory.
    """
    path = home.directory / "driver-plan.json"
    save_plan(plan, path)
    root = Path(__file__).resolve().parents[2]
    with (home.directory / "driver.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "cluster.demo.driver", "--plan", str(path), "--parent", str(os.getpid())],
            cwd=root,
            stdin=subprocess.DEVNULL,
            stdout=None if plan.stats_path == "-" else log,
            stderr=log,
            start_new_session=True,
        )
    home.watch(process.pid)
    return process


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the driver of a plan until its end, SIGTERM or Ctrl-C; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m cluster.demo.driver", description="open-loop cache-aside load")
    parser.add_argument("--plan", type=Path, required=True, help="JSON file made by cluster.demo.plan.save_plan")
    parser.add_argument("--parent", type=int, default=os.getppid(), help="stop when this process ends")
    options = parser.parse_args(arguments)
    try:
        asyncio.run(_main(load_plan(options.plan), options.parent))
    except (CachewardenError, OSError, ValueError) as error:
        sys.stderr.write(f"driver: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
