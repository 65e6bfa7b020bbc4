"""Which configurations are tried, and in which order."""

from __future__ import annotations

import pytest

from cachewarden.cachemodel.candidates import SearchSpace, candidates_around, decay_times_min
from cachewarden.cachemodel.evidence import CacheConfiguration
from cachewarden.cachemodel.replay_study import ReplayCandidate

NOW = CacheConfiguration(10_000_000)


@pytest.mark.parametrize(
    ("turnover_min", "decays"),
    [(None, (1,)), (0.5, (1, 2)), (10, (10, 5, 20, 40)), (1_440, (1_440, 720, 2_880, 5_760))],
)
def test_lfu_forgets_about_as_fast_as_the_content_is_exchanged(
    turnover_min: float | None, decays: tuple[int, ...]
) -> None:
    assert decay_times_min(None if turnover_min is None else turnover_min * 60_000) == decays


def test_the_configuration_of_now_comes_first_and_nothing_comes_twice() -> None:
    found = candidates_around(NOW, SearchSpace(), 3_600_000)
    assert found[0] == NOW
    assert len(set(found)) == len(found) == 1 + 2 * 4


def test_lfu_parameters_are_varied_for_lfu_only_and_samples_not_for_random() -> None:
    space = SearchSpace(eviction_policies=("allkeys-lru", "allkeys-random"), maxmemory_samples=(10,))
    found = candidates_around(NOW, space, 3_600_000)
    assert [(c.eviction_policy, c.maxmemory_samples) for c in found] == [
        ("allkeys-lru", 5),
        ("allkeys-lru", 10),
        ("allkeys-random", 5),
    ]


def test_ttls_are_tried_beside_that_of_now() -> None:
    found = candidates_around(
        ReplayCandidate(1_000), SearchSpace(eviction_policies=("allkeys-lru",), ttls_ms=(60_000, 0)), None
    )
    assert [c.ttl_ms for c in found] == [None, 60_000, 0]
