"""Hot keys: found by their share of the load, and client caches promise only what reads between writes allow."""

from __future__ import annotations

import numpy as np
import pytest

from cachewarden.cachemodel.hot_keys import client_fetches, hot_by_frequency, hot_in_capture, severity_of
from cachewarden.cachemodel.trace import AccessTrace, Op
from cachewarden.estimate import Estimate
from cachewarden.observation import AccessSample, KeyspaceSample


def capture(keys: list[int], ops: list[int] | None = None, rate: float = 1.0) -> AccessSample:
    n = len(keys)
    trace = AccessTrace.of(np.arange(n), np.array(keys, np.uint64), op=np.array(ops or [Op.READ] * n, np.uint8))
    return AccessSample(trace=trace, pattern=np.zeros(n, np.int32), patterns=("p:",), spatial_rate=rate, lines_seen=n)


def skewed(hot: int, cold: int) -> list[int]:
    return [7] * hot + list(range(100, 100 + cold))


def test_a_key_is_hot_by_its_share_of_the_lookups():
    found = hot_in_capture(capture(skewed(200, 800)), clients=10)
    (key,) = found.keys
    assert (key.key, key.pattern, key.reads) == (7, "p:", 200)
    assert key.share.value == pytest.approx(0.2)
    assert severity_of(key.share) == "high"


def test_an_even_load_has_no_hot_key():
    found = hot_in_capture(capture(list(range(1_000))), clients=10)
    assert found.keys == ()
    assert found.saved.value == 0


def test_shares_are_of_the_whole_cache_and_not_of_the_sampled_keys():
    found = hot_in_capture(capture(skewed(500, 500), rate=0.1), clients=10)
    assert found.keys[0].share.value == pytest.approx(0.05)


def test_few_lookups_tell_nothing():
    assert "500 are needed" in hot_in_capture(capture([7] * 20), clients=10)


def test_one_client_fetches_once_per_write_and_many_each_once_at_most():
    assert client_fetches([100, 100], 1) == pytest.approx(2)
    assert client_fetches([100_000], 10) == pytest.approx(10)
    assert client_fetches([1] * 50, 10) == pytest.approx(50)


def test_a_key_that_is_written_as_often_as_read_gains_nothing_from_client_caches():
    keys, ops = [7, 7] * 400 + list(range(100, 300)), [Op.READ, Op.WRITE] * 400 + [Op.READ] * 200
    found = hot_in_capture(capture(keys, ops), clients=10)
    assert found.keys[0].writes == 400
    assert found.saved.value == pytest.approx(0.0, abs=0.01)


def test_a_key_that_is_only_read_is_nearly_free_with_client_caches():
    found = hot_in_capture(capture(skewed(500, 500)), clients=10)
    assert found.saved.value == pytest.approx(0.49, abs=0.01)


def residents(frequency: list[int]) -> KeyspaceSample:
    n = len(frequency)
    return KeyspaceSample(
        key=np.arange(n, dtype=np.uint64),
        idle_ms=np.full(n, -1, np.int64),
        frequency=np.array(frequency, np.int32),
        size_bytes=np.full(n, 100, np.int64),
        ttl_ms=np.full(n, -1, np.int64),
        pattern=np.full(n, -1, np.int32),
        encoding=np.full(n, -1, np.int32),
        patterns=(),
        encodings=(),
    )


def test_counters_give_an_order_and_no_share():
    found = hot_by_frequency(residents([1, 200, 30]), clients=10, limit=2)
    assert [(key.key, key.frequency, key.share) for key in found.keys] == [(1, 200, None), (2, 30, None)]
    assert found.saved is None
    assert severity_of(None) == "unknown"


def test_without_an_lfu_policy_counters_tell_nothing():
    assert "LFU" in hot_by_frequency(residents([-1, -1]), clients=10)


@pytest.mark.parametrize(("share", "name"), [(0.5, "high"), (0.05, "medium"), (0.011, "low")])
def test_severity_follows_the_share(share: float, name: str):
    assert severity_of(Estimate(share, share, share)) == name
