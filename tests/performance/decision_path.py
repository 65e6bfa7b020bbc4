"""How long decisions take in process: the facade on an embedded fleet, with a plan that is judged at every request.

It measures and renders; whether a figure is good enough is decided by the scripts beside it. All calls are made one
after the other, the agents run in the same loop, and the load comes from a process of its own.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import redis.asyncio
from rich.console import Console
from rich.table import Table

from cachewarden.errors import OperatingError
from cachewarden.messages import CONSTITUTIONAL_HASH, Mode, RecordKind
from cachewarden.models import CacheOptimizationRequest
from cachewarden.ports import RecordDraft
from cluster.clock import SystemClock
from cluster.optimizer import CachePerformanceOptimizer
from coordination.redis_journal import RedisJournal
from tests.facade_world import SERVICES, World, embedded_world

__all__ = ["Figures", "measure", "told"]

PATIENCE_S = 40.0


class NothingMeasured(OperatingError):
    """There was no plan that could be judged; the message says why not."""


@dataclass(frozen=True)
class Figures:
    """Milliseconds per call, in the order of the calls."""

    name: str
    took_ms: Sequence[float]

    def quantile(self, share: float) -> float:
        """Return the value that `share` (0..1) of the calls do not exceed."""
        ordered = sorted(self.took_ms)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    @property
    def per_s(self) -> float:
        """Calls per second, one after the other."""
        return 1000.0 / statistics.fmean(self.took_ms)


@dataclass(frozen=True)
class Measured:
    """`bare`, `journal`: the baselines. `decision`: the pure part of `call`, as the answers say."""

    bare: Figures
    journal: Figures
    decision: Figures
    call: Figures
    left_out: Counter[str]
    """Calls that found no plan to judge and do not count, by the reason that they were given."""

    @property
    def all(self) -> tuple[Figures, ...]:
        return (self.bare, self.journal, self.decision, self.call)


async def measure(calls: int, *, traffic: bool = True) -> Measured:
    """Start everything, wait for a standing plan (with traffic), and measure each kind of call `calls` times."""
    async with (
        embedded_world(SERVICES[:1], mode=Mode.ADVISE, traffic=traffic, cycle_interval_ms=2_000, capture_ms=0) as world,
        CachePerformanceOptimizer(world.settings, world.fleet) as optimizer,
    ):
        request = CacheOptimizationRequest(service_name=SERVICES[0])
        if traffic:
            await _until_a_plan_stands(optimizer, request)
        bare, journal = await _baselines(world, calls)
        return await _calls(optimizer, request, calls, only_judged=traffic, bare=bare, journal=journal)


async def _calls(
    optimizer: CachePerformanceOptimizer,
    request: CacheOptimizationRequest,
    calls: int,
    *,
    only_judged: bool,
    bare: Figures,
    journal: Figures,
) -> Measured:
    """Call until `calls` answers count; without a plan there is less to do, and such a call would flatter the rest."""
    whole_ms: list[float] = []
    decision_ms: list[float] = []
    left_out: Counter[str] = Counter()
    end_s = time.perf_counter() + PATIENCE_S
    while len(whole_ms) < calls:
        if time.perf_counter() > end_s:
            raise NothingMeasured(f"no plan to judge: {left_out.most_common(1)}")
        started_s = time.perf_counter()
        answer = await optimizer.optimize_cache_configuration(request)
        took_ms = (time.perf_counter() - started_s) * 1000
        if only_judged and not answer.constitutional_compliance["judged"]:
            left_out[answer.reason] += 1
            # The next cycle may find a plan again.
            await asyncio.sleep(0.01)
            continue
        whole_ms.append(took_ms)
        decision_ms.append(answer.performance_metrics["decision_ms"])
    return Measured(
        bare=bare,
        journal=journal,
        decision=Figures("of that, the decision alone", decision_ms),
        call=Figures("decision and durable record, as called", whole_ms),
        left_out=left_out,
    )


async def _until_a_plan_stands(optimizer: CachePerformanceOptimizer, request: CacheOptimizationRequest) -> None:
    end_s = time.perf_counter() + PATIENCE_S
    while (answer := await optimizer.optimize_cache_configuration(request)).optimization_plan.id is None:
        if time.perf_counter() > end_s:
            raise NothingMeasured(f"no plan stood in {PATIENCE_S:g} s: {answer.reason}")
        await asyncio.sleep(0.1)


async def _baselines(world: World, calls: int) -> tuple[Figures, Figures]:
    """What the machine can do at all: one round trip to the journal's server, and one durable record."""
    client = redis.asyncio.Redis.from_url(world.settings.blackboard_url)
    journal = RedisJournal(world.settings.blackboard_url, prefix="baseline")

    async def append() -> None:
        payload = {"constitutional_hash": CONSTITUTIONAL_HASH, "why": "baseline of a measurement"}
        kind = RecordKind.REQUEST_DECIDED.value
        at_ms = SystemClock().now_ms()
        draft = RecordDraft(at_ms=at_ms, kind=kind, agent="api", service=None, subject_id="baseline", payload=payload)
        await journal.append([draft])

    try:
        bare = await _timed("one round trip to the journal's server", client.ping, calls)
        return bare, await _timed("one durable record", append, calls)
    finally:
        await client.aclose()
        await journal.close()


async def _timed(name: str, ask: Callable[[], Awaitable[object]], calls: int) -> Figures:
    took_ms = []
    for _ in range(calls):
        started_s = time.perf_counter()
        await ask()
        took_ms.append((time.perf_counter() - started_s) * 1000)
    return Figures(name, took_ms)


def told(measured: Measured, console: Console) -> None:
    """Print the figures as a table."""
    table = Table(title=f"{len(measured.call.took_ms)} calls each, one after the other")
    for column in ("what", "P50 ms", "P99 ms", "P99.9 ms", "most ms", "per second"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for figures in measured.all:
        cells = [f"{figures.quantile(share):.2f}" for share in (0.5, 0.99, 0.999, 1.0)]
        table.add_row(figures.name, *cells, f"{figures.per_s:,.0f}")
    console.print(table)
    for reason, times in measured.left_out.most_common(3):
        console.print(f"left out, since there was no plan to judge: {times} calls, {reason}")
