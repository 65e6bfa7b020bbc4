"""The cache in memory: its faults, and that it evicts and refuses as its eviction policy says."""

from __future__ import annotations

import pytest

from cachewarden.errors import TargetRefused, TargetTimeout
from cachewarden.fleet import KeyPattern, Service
from cachewarden.messages import KnobChange, Lease
from simulation.fake_cache import FakeCache

HELD = Lease(service="shop", holder="us", epoch=3, expires_at_ms=2**42)


class HandClock:
    at_ms = 1_800_000_000_000

    def now_ms(self) -> int:
        return self.at_ms


@pytest.fixture
def clock():
    return HandClock()


@pytest.fixture
def cache(clock):
    return FakeCache(
        Service(name="shop", url="redis://nowhere", capture=True, patterns=(KeyPattern(prefix="user:"),)), clock=clock
    )


async def configure(cache: FakeCache, **knobs: str) -> None:
    await cache.raise_fence(HELD)
    changes = [KnobChange(knob=name.replace("_", "-"), before="", after=value) for name, value in knobs.items()]
    await cache.write_knobs(HELD, changes)


async def test_a_lost_answer_leaves_the_write_done_and_the_writer_in_doubt(cache):
    await cache.raise_fence(HELD)
    cache.lose_next_answer = True
    with pytest.raises(TargetTimeout):
        await cache.write_knobs(HELD, [KnobChange(knob="maxmemory-samples", before="5", after="7")])
    assert await cache.read_knobs(["maxmemory-samples"]) == {"maxmemory-samples": "7"}


async def test_a_denied_command_is_refused_in_the_servers_words(cache):
    cache.denied["CONFIG SET"] = "no permissions"
    assert not (await cache.counters()).capabilities.config_set
    with pytest.raises(TargetRefused, match="no permissions"):
        await configure(cache, maxmemory_samples="7")


async def test_a_restart_loses_data_settings_and_fence(cache):
    await configure(cache, maxmemory_samples="7")
    cache.set(b"user:1", 10)
    before = (await cache.counters()).info["run_id"]
    cache.restart()
    seen = await cache.counters()
    assert (seen.info["run_id"] != before, seen.knobs["maxmemory-samples"], cache.fence, cache.get(b"user:1")) == (
        True,
        "5",
        None,
        False,
    )


@pytest.mark.parametrize(
    ("policy", "victim"), [("allkeys-lru", b"user:1"), ("volatile-lru", b"user:2"), ("volatile-ttl", b"user:3")]
)
async def test_the_policy_says_who_goes_first(cache, clock, policy, victim):
    for name, ttl_ms in ((b"user:1", 0), (b"user:2", 90_000), (b"user:3", 60_000)):
        cache.set(name, 100_000, ttl_ms)
        clock.at_ms += 1
    await configure(cache, maxmemory=str(cache.used_bytes() - 1), maxmemory_policy=policy)
    assert [name for name in (b"user:1", b"user:2", b"user:3") if not cache.get(name)] == [victim]


async def test_a_volatile_policy_without_ttls_behaves_as_noeviction(cache):
    await configure(cache, maxmemory=str(2 << 20), maxmemory_policy="volatile-lru")
    stored = [cache.set(f"user:{number}".encode(), 100_000) for number in range(20)]
    assert not all(stored)
    assert int((await cache.counters()).info["evicted_keys"]) == 0


async def test_a_capture_looks_back_over_what_was_asked(cache, clock):
    cache.get(b"user:old")
    clock.at_ms += 10_000
    cache.get(b"user:1")
    cache.set(b"user:1", 10, 5_000)
    seen = await cache.observe(sample_keys=0, capture_ms=1_000, capture_lines=100, capture_rate=1.0)
    assert seen.access is not None
    assert (seen.access.trace.op.tolist(), seen.access.trace.ttl_ms.tolist()) == ([0, 1], [0, 5_000])
    assert seen.access.pattern.tolist() == [0, 0]


async def test_the_same_calls_give_the_same_samples_and_each_look_another_one(clock):
    async def looks() -> list[list[int]]:
        cache = FakeCache(Service(name="shop", url="redis://nowhere"), clock=clock)
        for number in range(50):
            cache.set(f"user:{number}".encode(), 10)
        seen = [await cache.observe(sample_keys=5, capture_ms=0, capture_lines=0, capture_rate=1.0) for _ in range(2)]
        return [look.sample.key.tolist() for look in seen]

    first, second = await looks(), await looks()
    assert first == second
    assert first[0] != first[1]
