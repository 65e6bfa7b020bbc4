"""Counting the different keys of a stream without keeping them."""

from __future__ import annotations

import numpy as np
import pytest

from cachewarden.cachemodel.key_popularity import KeyPopularity
from cachewarden.cachemodel.shards import mix


@pytest.mark.parametrize("keys", [0, 1, 1000, 300_000])
def test_keys_are_counted_however_often_they_come(keys: int) -> None:
    counted = KeyPopularity()
    for start in range(0, keys, 70_000):
        counted.add(mix(np.arange(start, min(start + 80_000, keys), dtype=np.uint64)))
    assert counted.distinct_keys() == pytest.approx(keys, rel=0.002)


def test_more_keys_than_can_be_told_apart_are_no_number() -> None:
    counted = KeyPopularity()
    counted.add(np.arange(1 << 24, dtype=np.uint64) << np.uint64(28))
    assert counted.distinct_keys() is None


def test_how_often_keys_come_is_told_by_key_and_over_all() -> None:
    counted = KeyPopularity()
    ids = np.repeat(np.arange(1000, dtype=np.uint64), np.arange(1000) % 5 + 1)
    for part in np.array_split(mix(ids), 7):
        counted.add(part)
    assert counted.of(mix(np.array([4, 9_999], np.uint64))).tolist() == [5, 0]
    assert counted.keys_between(np.array([1, 2, 5])).tolist() == [200, 600, 200]
    assert not counted.crowded


def test_counts_stop_at_the_largest_they_can_hold() -> None:
    counted = KeyPopularity()
    for _ in range(3):
        counted.add(np.full(30_000, 7, np.uint64))
    assert counted.of(np.array([7], np.uint64)).tolist() == [65_535]
