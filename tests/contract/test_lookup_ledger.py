"""What every LookupLedger promises, and what two adapters on one real cache make of it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import redis.asyncio

from agents.windows import window_between
from cachewarden.errors import BlackboardUnavailable
from cachewarden.messages import Lease, TtlRule
from coordination.redis_lookup_ledger import RedisLookupLedger
from coordination.redis_target import RedisTarget, TargetLimits
from simulation.fake_lookups import FakeLookupLedger, LookupBook
from tests.contract.conftest import REAL, SECRET, HandClock, SystemClock, service
from tests.contract.real_servers import ENGINES, RealServer

HELD = Lease(service="shop", holder="us", epoch=3, expires_at_ms=2**42)
RULE = TtlRule(pattern="user:", written_ttl_ms=300_000, extended_ttl_ms=600_000, max_staleness_ms=600_000)
BUSY_MS = 150


@dataclass
class Ledgers:
    """Two adapters' ledgers on one server or book, and what can happen to it."""

    join: Callable[[str], Any]
    pass_time: Callable[[int], None]
    lose: Callable[[], Any]
    cut_off: Callable[[], Any]

    def __post_init__(self) -> None:
        self.ours, self.theirs = self.join("ours"), self.join("theirs")


@pytest.fixture(params=[*REAL, "fake"])
async def ledgers(request, tmp_path):
    """Every implementation of LookupLedger."""
    made: list[RedisLookupLedger] = []
    if request.param == "fake":
        clock = HandClock()
        book = LookupBook(clock, busy_ms=BUSY_MS)

        def pass_time(milliseconds: int) -> None:
            clock.at_ms += milliseconds

        def cut_off() -> None:
            book.reachable = False

        yield Ledgers(lambda name: FakeLookupLedger(book, adapter=name), pass_time, book.lose, cut_off)
        return
    server = RealServer(request.param, tmp_path)
    server.start()

    def join(name: str) -> RedisLookupLedger:
        made.append(RedisLookupLedger(server.url, adapter=name, busy_ms=BUSY_MS, timeout_s=1.0, pause_s=0.05))
        return made[-1]

    def until(milliseconds: int) -> None:
        # The server's own clock has to say so, not ours.
        seconds, micros = server.admin.time()
        end_us = seconds * 1_000_000 + micros + milliseconds * 1000
        while (now := server.admin.time())[0] * 1_000_000 + now[1] <= end_us:
            time.sleep(0.005)

    yield Ledgers(join, until, server.admin.flushall, server.kill)
    for ledger in made:
        await ledger.close()
    server.kill()


# --- The port


async def test_what_each_adapter_settles_is_added_up_for_all(ledgers):
    for ledger, hits, misses in ((ledgers.ours, 5, 1), (ledgers.theirs, 70, 0), (ledgers.ours, 2, 3)):
        await ledger.settle("shop", await ledger.begin("shop"), hits, misses)
    ours, theirs = await ledgers.ours.read("shop"), await ledgers.theirs.read("shop")
    assert (ours.hits, ours.misses, ours.busy) == (77, 4, ())
    assert ours == theirs


async def test_caches_have_accounts_of_their_own(ledgers):
    await ledgers.ours.settle("shop", await ledgers.ours.begin("shop"), 5, 5)
    assert (await ledgers.ours.read("search")).hits == 0


async def test_a_batch_makes_busy_until_it_is_settled_and_settling_keeps_the_basis(ledgers):
    before = await ledgers.ours.read("shop")
    mark = await ledgers.theirs.begin("shop")
    during = await ledgers.ours.read("shop")
    await ledgers.theirs.settle("shop", mark, 1, 0)
    after = await ledgers.ours.read("shop")
    assert during.busy == ("theirs",)
    assert after.busy == before.busy == ()
    assert after.basis == during.basis == before.basis
    assert after.hits == before.hits + 1


async def test_the_mark_of_an_adapter_that_died_runs_out_and_changes_the_basis_once(ledgers):
    await ledgers.theirs.settle("shop", await ledgers.theirs.begin("shop"), 7, 0)
    before = await ledgers.ours.read("shop")
    await ledgers.theirs.begin("shop")
    ledgers.pass_time(BUSY_MS + 10)
    after = await ledgers.ours.read("shop")
    assert after.busy == ()
    assert after.hits == 7
    assert after.basis != before.basis
    await ledgers.ours.settle("shop", await ledgers.ours.begin("shop"), 1, 0)
    assert (await ledgers.ours.read("shop")).basis == after.basis


async def test_a_slow_batch_that_is_settled_late_leaves_the_totals_exact(ledgers):
    before = await ledgers.ours.read("shop")
    mark = await ledgers.theirs.begin("shop")
    ledgers.pass_time(BUSY_MS + 10)
    during = await ledgers.ours.read("shop")
    await ledgers.theirs.settle("shop", mark, 4, 4)
    after = await ledgers.ours.read("shop")
    assert during.basis != before.basis
    assert (after.hits, after.misses, after.basis) == (4, 4, before.basis)


@pytest.mark.parametrize("how", ["announced as torn", "read as torn", "never settled", "never settled, read"])
async def test_a_batch_that_nobody_can_count_changes_the_basis(ledgers, how):
    before = await ledgers.theirs.read("shop")
    mark = await ledgers.ours.begin("shop", torn=how == "announced as torn")
    if how == "never settled":
        mark = await ledgers.ours.begin("shop")
    if how == "never settled, read":
        await ledgers.ours.read("shop")
    else:
        await ledgers.ours.settle("shop", mark, 1, 1)
    await ledgers.ours.read("shop", torn=how == "read as torn")
    after = await ledgers.theirs.read("shop")
    assert after.busy == ()
    assert after.basis != before.basis


async def test_lost_data_changes_the_basis_even_in_the_middle_of_a_batch(ledgers):
    before = await ledgers.ours.read("shop")
    mark = await ledgers.theirs.begin("shop")
    ledgers.lose()
    between = await ledgers.ours.read("shop")
    await ledgers.theirs.settle("shop", mark, 9, 0)
    after = await ledgers.ours.read("shop")
    assert len({before.basis, between.basis, after.basis}) == 3


async def test_a_ledger_out_of_reach_says_so(ledgers):
    mark = await ledgers.ours.begin("shop")
    ledgers.cut_off()
    for ask in (ledgers.ours.begin("shop"), ledgers.ours.settle("shop", mark, 1, 1), ledgers.ours.read("shop")):
        with pytest.raises(BlackboardUnavailable):
            await ask


# --- Two adapters on one cache


class Application:
    """A client that reads and writes in the test's own loop and counts what it hit and missed."""

    def __init__(self, port: int, keys: int) -> None:
        self._client = redis.asyncio.Redis(port=port, protocol=2)
        self._keys = keys
        self._dice = random.Random(7)
        self._free = asyncio.Lock()
        self._ends = False
        self._task: asyncio.Task[None] | None = None
        self.hits = self.misses = 0

    async def _run(self) -> None:
        while not self._ends:
            async with self._free:
                pipe = self._client.pipeline(transaction=False)
                for _ in range(5):
                    pipe.get(f"user:{self._dice.randrange(self._keys * 2)}")
                for found in await pipe.execute():
                    self.hits += found is not None
                    self.misses += found is None
            await asyncio.sleep(0.01)

    async def look(self, target: RedisTarget) -> tuple[Any, int, int]:
        """Take a look while the application holds still, with its own counts at that time."""
        async with self._free:
            return await target.counters(), self.hits, self.misses

    async def __aenter__(self) -> Application:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._ends = True
        await self._task
        await self._client.aclose()


@dataclass
class Fleet:
    """A cache with an application, a ledger's server, and the collector's and the actuator's adapter."""

    cache: RealServer
    ledger: RealServer
    collector: RedisTarget
    actuator: RedisTarget
    keys: int = 4_000


@pytest.fixture(params=ENGINES)
async def fleet(request, tmp_path):
    servers, ledgers, targets = [], [], []
    for name in ("cache", "ledger"):
        (tmp_path / name).mkdir()
        servers.append(RealServer(request.param, tmp_path / name))
        servers[-1].start()
    for name in ("collector", "actuator"):
        ledgers.append(RedisLookupLedger(servers[1].url, adapter=name, busy_ms=1_000, timeout_s=1.0, pause_s=0.1))
        targets.append(
            RedisTarget(
                service(servers[0].url),
                hash_secret=SECRET,
                clock=SystemClock(),
                limits=TargetLimits(timeout_s=5.0, probe_server_share=0.03),
                lookups=ledgers[-1],
            )
        )
    made = Fleet(*servers, *targets)
    pipe = made.cache.admin.pipeline(transaction=False)
    for number in range(made.keys):
        pipe.set(f"user:{number}", b"x" * 50, px=290_000)
    pipe.execute()
    yield made
    for closing in (*targets, *ledgers):
        await closing.close()
    for server in servers:
        server.kill()


async def keep_looking(target: RedisTarget, ends: asyncio.Event) -> None:
    while not ends.is_set():
        await target.observe(sample_keys=200, capture_ms=0, capture_lines=0, capture_rate=1.0)


async def keep_extending(target: RedisTarget, ends: asyncio.Event) -> None:
    cursor = 0
    while not ends.is_set():
        cursor = (await target.extend_ttls(HELD, RULE, cursor, 400)).cursor


@pytest.mark.integration
async def test_windows_of_either_adapter_equal_the_applications_own_counts(fleet):
    await fleet.actuator.raise_fence(HELD)
    async with Application(fleet.cache.port, fleet.keys) as application:
        first = {t: await application.look(t) for t in (fleet.collector, fleet.actuator)}
        ends = asyncio.Event()
        busy = [
            asyncio.create_task(keep_looking(fleet.collector, ends)),
            asyncio.create_task(keep_extending(fleet.actuator, ends)),
        ]
        ours, exact = 0, 0
        for _ in range(12):
            await asyncio.sleep(0.1)
            for target, (before, hits, misses) in first.items():
                seen, now_hits, now_misses = await application.look(target)
                if "own_lookups" in seen.incomplete:
                    continue
                window = window_between(before, seen)
                assert window.problem is None
                assert (window.hits, window.misses) == (now_hits - hits, now_misses - misses)
                ours, exact = seen.own_hits_total - before.own_hits_total, exact + 1
        ends.set()
        await asyncio.gather(*busy)
    assert application.hits > 100
    assert application.misses > 100
    assert ours > application.hits
    assert exact >= 12


@pytest.mark.integration
async def test_an_adapter_that_dies_in_the_middle_of_a_batch_costs_one_window_and_no_truth(fleet):
    await fleet.actuator.raise_fence(HELD)
    before = await fleet.collector.counters()
    shared = fleet.actuator._wire.shared
    assert shared is not None
    # What a process leaves behind that is killed after its batch was sent: lookups, a mark, and no settlement.
    await shared._ledger.begin("shop")
    for number in range(60):
        fleet.cache.admin.pttl(f"user:{number}")
    fresh = await fleet.collector.counters()
    assert "actuator" in fresh.incomplete["own_lookups"]
    assert "not known exactly" in window_between(before, fresh).problem
    while "own_lookups" in (first := await fleet.collector.counters()).incomplete:
        pass
    assert "began anew" in window_between(before, first).problem
    fleet.cache.admin.get("user:1")
    await fleet.collector.observe(sample_keys=50, capture_ms=0, capture_lines=0, capture_rate=1.0)
    window = window_between(first, await fleet.collector.counters())
    assert (window.problem, window.hits, window.misses) == (None, 1, 0)


@pytest.mark.integration
async def test_a_batch_that_is_cut_off_begins_a_new_account_for_all(fleet):
    before = await fleet.collector.counters()
    async with fleet.actuator._wire.session() as session:
        fleet.cache.freeze()
        probing = asyncio.create_task(session.exchange([("PTTL", "user:1")] * 50))
        while not fleet.ledger.admin.hexists("cachewarden:lookups:shop", "busy:actuator"):
            await asyncio.sleep(0.005)
        # One turn of the loop sends the batch; its replies never come.
        await asyncio.sleep(0.02)
        probing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await probing
        await session._connection.disconnect(nowait=True)
    fleet.cache.thaw()
    assert "actuator" in (await fleet.collector.counters()).incomplete["own_lookups"]
    # The next thing that the actuator does makes up for it.
    await fleet.actuator.counters()
    seen = await fleet.collector.counters()
    assert "own_lookups" not in seen.incomplete
    assert "began anew" in window_between(before, seen).problem


@pytest.mark.integration
async def test_a_look_without_the_ledgers_server_works_and_says_that_it_is_not_exact(fleet):
    before = await fleet.collector.counters()
    fleet.ledger.kill()
    seen = await fleet.collector.observe(sample_keys=100, capture_ms=0, capture_lines=0, capture_rate=1.0)
    assert len(seen.sample) == 100
    assert "ledger of lookups" in seen.incomplete["own_lookups"]
    assert await fleet.actuator.collect_hot_keys(50) == 50
    assert (await fleet.collector.counters()).own_hits_total > 0
    fleet.ledger.start()
    while "own_lookups" in (first := await fleet.collector.counters()).incomplete:
        await asyncio.sleep(0.01)
    assert "began anew" in window_between(before, first).problem
    # The actuator has not told yet that it looked in the meantime; when it does, that is a new account too.
    assert await fleet.actuator.collect_hot_keys(50) == 50
    second = await fleet.collector.counters()
    assert second.own_lookups_basis != first.own_lookups_basis
    fleet.cache.admin.get("user:1")
    assert await fleet.actuator.collect_hot_keys(50) == 50
    window = window_between(second, await fleet.collector.counters())
    assert (window.problem, window.hits, window.misses) == (None, 1, 0)


@pytest.mark.integration
async def test_an_adapter_without_a_ledger_counts_its_own_lookups_only(fleet):
    alone = RedisTarget(service(fleet.cache.url), hash_secret=SECRET, clock=SystemClock())
    await fleet.collector.observe(sample_keys=50, capture_ms=0, capture_lines=0, capture_rate=1.0)
    seen = await alone.counters()
    await alone.close()
    assert "own_lookups" not in seen.incomplete
    assert seen.own_lookups_basis == ""
    assert seen.own_hits_total < 50


@pytest.mark.integration
async def test_only_a_tenth_of_a_sample_is_asked_for_its_encoding(fleet):
    seen = await fleet.collector.observe(sample_keys=300, capture_ms=0, capture_lines=0, capture_rate=1.0)
    known = [index for index in seen.sample.encoding.tolist() if index >= 0]
    assert 30 <= len(known) <= 60
    assert len({seen.sample.encodings[index] for index in known}) == 1
    assert seen.sample.size_bytes.min() > 0
    assert seen.sample.idle_ms.min() >= 0
