"""Counting the different keys of a stream without keeping them."""

from __future__ import annotations

import numpy as np
import pytest

from cachewarden.cachemodel.distinct_keys import DistinctKeys
from cachewarden.cachemodel.shards import mix


@pytest.mark.parametrize("keys", [0, 1, 1000, 300_000])
def test_keys_are_counted_however_often_they_come(keys: int) -> None:
    counted = DistinctKeys()
    for start in range(0, keys, 70_000):
        counted.add(mix(np.arange(start, min(start + 80_000, keys), dtype=np.uint64)))
    assert counted.estimate() == pytest.approx(keys, rel=0.002)


def test_more_keys_than_can_be_told_apart_are_no_number() -> None:
    counted = DistinctKeys()
    counted.add(np.arange(1 << 24, dtype=np.uint64) << np.uint64(28))
    assert counted.estimate() is None
