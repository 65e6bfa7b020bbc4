"""What every DeliveryCursors promises: one deliverer at a time, and a mark that moves only from where it was."""

from __future__ import annotations

import asyncio
import time

import pytest

from cachewarden.errors import BlackboardUnavailable
from cachewarden.peering import Mark
from coordination.redis_cursors import RedisDeliveryCursors
from simulation.fake_peers import FakeDeliveryCursors
from tests.contract.conftest import REAL, HandClock
from tests.contract.real_servers import RealServer

TTL_MS = 60_000
ONE, TWO = Mark(seq=1, hash="a" * 64), Mark(seq=2, hash="b" * 64)


class Cursors:
    def __init__(self, port, server=None, clock=None):
        self.port, self.server, self.clock = port, server, clock

    def another(self):
        """A second client of the same store, as another deployment has."""
        return self.port if self.server is None else RedisDeliveryCursors(self.server.url)

    def pass_time(self, milliseconds):
        if self.clock is not None:
            self.clock.at_ms += milliseconds
            return
        seconds, micros = self.server.admin.time()
        until_ms = seconds * 1000 + micros / 1000 + milliseconds
        while (now := self.server.admin.time())[0] * 1000 + now[1] / 1000 <= until_ms:
            time.sleep(0.005)


@pytest.fixture(params=[*REAL, "fake"])
async def cursors(request, tmp_path):
    if request.param == "fake":
        clock = HandClock()
        yield Cursors(FakeDeliveryCursors(clock), clock=clock)
        return
    server = RealServer(request.param, tmp_path)
    server.start("--appendonly", "yes")
    port = RedisDeliveryCursors(server.url)
    yield Cursors(port, server=server)
    await port.close()
    server.kill()


async def test_the_first_mark_is_before_the_first_record(cursors):
    claim = await cursors.port.claim("integrity", "one", TTL_MS)
    assert claim.granted
    assert claim.mark == Mark()


async def test_a_mark_that_was_moved_is_found_by_the_next_life(cursors):
    await cursors.port.claim("integrity", "one", TTL_MS)
    assert await cursors.port.move("integrity", "one", Mark(), ONE, TTL_MS)
    assert await cursors.port.move("integrity", "one", ONE, TWO, TTL_MS)
    assert (await cursors.port.claim("integrity", "one", TTL_MS)).mark == TWO


async def test_a_mark_moves_only_from_where_it_was(cursors):
    await cursors.port.claim("integrity", "one", TTL_MS)
    assert not await cursors.port.move("integrity", "one", ONE, TWO, TTL_MS)
    assert await cursors.port.move("integrity", "one", Mark(), ONE, TTL_MS)
    assert not await cursors.port.move("integrity", "one", Mark(), TWO, TTL_MS)
    assert (await cursors.port.claim("integrity", "one", TTL_MS)).mark == ONE


async def test_a_second_deployment_is_refused_and_told_who_delivers(cursors):
    await cursors.port.claim("integrity", "one", TTL_MS)
    await cursors.port.move("integrity", "one", Mark(), ONE, TTL_MS)
    claim = await cursors.port.claim("integrity", "two", TTL_MS)
    assert (claim.granted, claim.holder, claim.mark) == (False, "one", ONE)
    assert not await cursors.port.move("integrity", "two", ONE, TWO, TTL_MS)


async def test_a_dead_deployment_is_followed_by_the_next_and_what_it_still_sends_moves_nothing(cursors):
    await cursors.port.claim("integrity", "one", 20)
    cursors.pass_time(60)
    assert (await cursors.port.claim("integrity", "two", TTL_MS)).granted
    assert not await cursors.port.move("integrity", "one", Mark(), ONE, TTL_MS)


async def test_marks_of_two_deliveries_are_independent(cursors):
    await cursors.port.claim("integrity", "one", TTL_MS)
    assert (await cursors.port.claim("another", "two", TTL_MS)).granted


async def test_of_many_claimers_at_once_exactly_one_is_granted(cursors):
    others = [cursors.another() for _ in range(10)]
    claims = await asyncio.gather(*(port.claim("integrity", f"d{n}", TTL_MS) for n, port in enumerate(others)))
    assert sum(claim.granted for claim in claims) == 1
    for port in others:
        if port is not cursors.port:
            await port.close()


async def test_a_mark_can_be_taken_back_to_the_beginning(cursors):
    await cursors.port.claim("integrity", "one", TTL_MS)
    await cursors.port.move("integrity", "one", Mark(), ONE, TTL_MS)
    assert await cursors.port.move("integrity", "one", ONE, Mark(), TTL_MS)
    assert (await cursors.port.claim("integrity", "one", TTL_MS)).mark == Mark()


async def test_a_store_that_is_gone_says_so(cursors):
    if cursors.server is None:
        cursors.port.reachable = False
    else:
        cursors.server.kill()
    with pytest.raises(BlackboardUnavailable):
        await cursors.port.claim("integrity", "one", TTL_MS)


async def test_a_mark_that_nobody_of_ours_wrote_is_refused_with_the_way_out(cursors):
    if cursors.server is None:
        return
    cursors.server.admin.set("cachewarden:delivery:integrity", "nonsense")
    with pytest.raises(BlackboardUnavailable, match="delete its key"):
        await cursors.port.claim("integrity", "one", TTL_MS)
