"""Memory levers from the look to the kept change: what was predicted, what was freed, and when nothing is done."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from agents.lever_drafting import lever_proposal
from agents.snapshots import LookRing, make_snapshot
from cachewarden.fleet import KeyPattern, Service
from cachewarden.messages import ExecutionState, Mode
from coordination.redis_target import RedisTarget, TargetLimits
from tests.contract.conftest import SystemClock
from tests.contract.real_servers import ENGINES, RealServer
from tests.integration.one_actuator import Bench, Traffic

pytestmark = [pytest.mark.integration, pytest.mark.slow]

HASHES = 300
OWNED = (KeyPattern(prefix="user:"), KeyPattern(prefix="h:"))


@pytest.fixture(params=ENGINES)
def server(request, tmp_path):
    """A cache whose limits of compact hashes are those of older versions."""
    server = RealServer(request.param, tmp_path)
    server.start("--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru", "--hash-max-listpack-entries", "128")
    yield server
    server.kill()


def store(server: RealServer, *, fields: int) -> None:
    pipe = server.admin.pipeline(transaction=False)
    for number in range(HASHES):
        pipe.hset(f"h:{number}", mapping={f"field{i}": f"value{i * number:08}" for i in range(fields)})
    for number in range(700):
        pipe.set(f"user:{number}", b"v" * 300)
    pipe.execute()


async def lever_of(server: RealServer, bench: Bench):
    """Look twice, as the collector does, and return what the planner would propose."""
    plain = Service(
        name="shop", url=server.url, mode=Mode.AUTO, patterns=OWNED, value_samples=True, reencode=bench.service.reencode
    )
    target = RedisTarget(
        plain, hash_secret=b"levers", clock=SystemClock(), limits=TargetLimits(timeout_s=5.0, probe_server_share=0.2)
    )
    ring = LookRing(window_ms=60_000, base_age_ms=1_000)
    looks = {"capture_ms": 0, "capture_lines": 0, "capture_rate": 1.0}
    ring.add(await target.observe(sample_keys=50, **looks))
    await asyncio.sleep(2)
    seen = await target.observe(sample_keys=400, value_keys=400, **looks)
    window = ring.add(seen)
    await target.close()
    snapshot = make_snapshot(seen, window, sample=seen.sample, access=None, reads=None, remarks={}, values=seen.values)
    assert snapshot.hit_ratio is not None
    return lever_proposal(snapshot, plain, bench.settings, (), bench.clock.now_ms())


async def test_large_hashes_are_stored_again_and_as_much_memory_comes_back_as_was_predicted(server, tmp_path):
    store(server, fields=300)
    with Traffic(server.port, keys=700, value_bytes=300, per_s=500):
        async with Bench(server, tmp_path, patterns=OWNED, reencode=True) as bench:
            found = await lever_of(server, bench)
            assert found is not None
            assert found.playbook == "reencode"
            promised = found.prediction.freed_bytes
            bench.order(found, hit_ratio_before=found.prediction.hit_ratio_before.value)
            done = await bench.ended()
            assert done.state is ExecutionState.KEPT, done.reason
            told = bench.journal.records[-1].payload["memory"]
    assert server.admin.object("ENCODING", "h:7") == b"listpack"
    assert told["freed_bytes"] == done.freed_bytes
    # What the clients of the test itself take moves by some tens of kilobytes.
    assert promised.low - 0.1 * promised.value <= done.freed_bytes <= promised.high + 0.1 * promised.value


async def test_small_hashes_are_left_as_they_are(server, tmp_path):
    store(server, fields=20)
    with Traffic(server.port, keys=700, value_bytes=300, per_s=500):
        async with Bench(server, tmp_path, patterns=OWNED, reencode=True) as bench:
            assert await lever_of(server, bench) is None


async def test_memory_that_does_not_come_back_takes_the_limits_back(server, tmp_path):
    store(server, fields=300)
    with Traffic(server.port, keys=700, value_bytes=300, per_s=500):
        async with Bench(server, tmp_path, patterns=OWNED, reencode=True) as bench:
            found = await lever_of(server, bench)
            assert found is not None
            freed = found.prediction.freed_bytes
            # A prediction that is ten times too good.
            boast = type(freed)(10 * freed.value, 10 * freed.low, 10 * freed.high)
            wanted = replace(found, prediction=replace(found.prediction, freed_bytes=boast))
            bench.order(wanted, hit_ratio_before=wanted.prediction.hit_ratio_before.value)
            done = await bench.ended()
    assert done.state is ExecutionState.ROLLED_BACK, done.reason
    assert "bytes were freed" in done.reason
    assert server.admin.config_get("hash-max-listpack-entries")["hash-max-listpack-entries"] == "128"
