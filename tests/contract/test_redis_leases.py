"""What only a lease store on a real server can get wrong."""

from __future__ import annotations

import asyncio

import pytest

from coordination.redis_leases import RedisLeaseStore
from tests.contract.real_servers import ENGINES, RealServer

pytestmark = pytest.mark.integration


@pytest.fixture(params=ENGINES)
async def store(request, tmp_path):
    server = RealServer(request.param, tmp_path)
    server.start()
    store = RedisLeaseStore(server.url)
    yield server, store
    await store.close()
    server.kill()


async def test_epochs_go_on_rising_when_the_server_has_lost_its_data(store):
    server, leases = store
    before = await leases.acquire("shop", "first", 60_000)
    server.kill()
    server.start()
    # An epoch is at least the server's time in milliseconds, and starting took longer than one.
    assert (await leases.acquire("shop", "second", 60_000)).epoch > before.epoch


async def test_an_expired_lease_leaves_only_its_epoch_and_who_had_it_on_the_server(store):
    server, leases = store
    lease = await leases.acquire("shop", "first", 20)
    server.admin.pexpireat("cachewarden:lease:shop", 1)
    assert sorted(server.admin.keys()) == [b"cachewarden:epoch:shop", b"cachewarden:tenure:shop"]
    assert server.admin.ttl("cachewarden:epoch:shop") == -1
    assert int(server.admin.get("cachewarden:epoch:shop")) == lease.epoch


async def test_a_tenure_that_an_older_version_passed_over_does_not_come_back(store):
    server, leases = store
    lease = await leases.acquire("shop", "first", 20)
    server.admin.pexpireat("cachewarden:lease:shop", 1)
    # A writer that knows no tenures has had the lease in between.
    server.admin.set("cachewarden:epoch:shop", lease.epoch + 100_000)
    assert (await leases.acquire("shop", "first", 60_000)).epoch > lease.epoch + 100_000


async def test_a_lease_is_taken_by_exactly_one_of_many_that_ask_at_once(store):
    _, leases = store
    answers = await asyncio.gather(*(leases.acquire("shop", f"holder {n}", 60_000) for n in range(20)))
    assert sum(lease is not None for lease in answers) == 1
