"""Hot keys by LFU counters beside those of a capture, of the same load on real servers."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import threading
import time

import pytest
import redis

from cachewarden.cachemodel.hot_keys import hot_by_frequency, hot_in_capture
from cachewarden.cachemodel.lfu_rates import LfuLaw
from tests.contract.real_servers import ENGINES

pytestmark = [pytest.mark.integration, pytest.mark.parametrize("cache_server", ENGINES, indirect=True)]

KEYS, HOT = 120, {"user:0": 0.25, "user:1": 0.12, "user:2": 0.05}


class Skewed:
    """Reads of `KEYS` keys, of which three take the shares of `HOT`."""

    def __init__(self, port: int) -> None:
        self._port, self._stop = port, threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.read = 0

    def _run(self) -> None:
        client, dice = redis.Redis(port=self._port, protocol=2, socket_timeout=10), random.Random(11)
        names = [f"user:{number}" for number in range(KEYS)]
        weights = [HOT.get(name, (1 - sum(HOT.values())) / (KEYS - len(HOT))) for name in names]
        while not self._stop.wait(0.02):
            with contextlib.suppress(redis.RedisError):
                pipe = client.pipeline(transaction=False)
                for name in dice.choices(names, weights, k=16):
                    pipe.get(name)
                pipe.execute()
                self.read += 16
        client.close()

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()


async def test_counters_and_a_capture_tell_the_same_keys_and_the_same_shares(cache_server, make_target):
    admin, target = cache_server.admin, make_target(cache_server, capture=True)
    admin.config_set("maxmemory-policy", "allkeys-lfu")
    for number in range(KEYS):
        admin.set(f"user:{number}", "v" * 50)
    began_s = time.monotonic()
    with Skewed(cache_server.port) as load:
        while load.read < 6_000 or time.monotonic() - began_s < 8:
            assert time.monotonic() - began_s < 90
            await asyncio.sleep(0.1)
        per_s = load.read / (time.monotonic() - began_s)
        seen = await target.observe(sample_keys=10 * KEYS, capture_ms=4_000, capture_lines=50_000, capture_rate=1.0)
    counted_ms = seen.sample.counted_ms
    assert counted_ms / 1000 == pytest.approx(time.monotonic() - began_s, abs=8)
    factor, decay = (int(seen.knobs[name]) for name in ("lfu-log-factor", "lfu-decay-time"))
    law = LfuLaw(log_factor=factor, decay_min=decay, counted_ms=counted_ms)
    by_counter = hot_by_frequency(seen.sample, 10, law=law, lookups_per_s=per_s, resident_keys=KEYS)
    by_capture = hot_in_capture(seen.access, 10)
    shares = {key.key: key.share for key in by_counter.keys}
    told = [(key.share.value, shares[key.key]) for key in by_capture.keys[:3]]
    sys.stdout.write(f"{cache_server.engine}: capture, counter {told}\n")
    # Counters count by chance: the first two may have changed places.
    assert by_capture.keys[0].key in {key.key for key in by_counter.keys[:2]}
    # A 90 % interval of each of three: two inside is what must be expected at the least, the third is near.
    assert sum(share.low <= captured <= share.high for captured, share in told) >= 2
    assert all(share.low / 2 <= captured <= 2 * share.high for captured, share in told)
    assert by_counter.spatial_rate == 1.0


async def test_counters_are_not_believed_to_be_older_than_the_policy(cache_server, make_target):
    admin, target = cache_server.admin, make_target(cache_server)
    look = {"sample_keys": 5, "capture_ms": 0, "capture_lines": 0, "capture_rate": 1.0}
    admin.set("user:1", "v")
    while admin.info("server")["uptime_in_seconds"] < 3:
        await asyncio.sleep(0.1)
    assert (await target.observe(**look)).sample.counted_ms is None
    admin.config_set("maxmemory-policy", "allkeys-lfu")
    assert 0 < (await target.observe(**look)).sample.counted_ms < 2_500
