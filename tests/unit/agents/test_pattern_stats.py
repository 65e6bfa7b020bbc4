"""What is told of each declared pattern."""

from __future__ import annotations

import pytest

from agents.captured_reads import read_capture
from agents.pattern_stats import pattern_stats
from tests.unit.agents.looks import capture, keyspace

PATTERNS = ("user:", "page:")


def _reads():
    rows = []
    for t in range(0, 10_000, 10):
        rows.append((t, t, 0, 0, 0))
        if t % 40 == 0:
            rows.append((t + 1, t, 1, 100, 30_000 if t < 5_000 else 20_000))
    # The capture names its patterns in another order than the sample does; even hundreds belong to `user:`.
    return read_capture(capture(rows, pattern=lambda trace: (trace.key % 20 == 0) * 1, patterns=("page:", "user:")))


def test_each_pattern_has_its_share_of_keys_bytes_and_ttls():
    sample = keyspace(
        [0] * 4,
        pattern=[0, 0, 1, -1],
        patterns=PATTERNS,
        size_bytes=[100, 300, 400, 200],
        ttl_ms=[5_000, -1, 7_000, -1],
    )
    user, page = pattern_stats(sample, None)
    assert (user.pattern, user.resident_share, user.bytes_share) == ("user:", 0.5, 0.4)
    assert (user.keys_with_ttl_share, user.written_ttl_ms) == (0.5, 5_000)
    assert (page.bytes_share, page.keys_with_ttl_share) == (0.4, 1.0)
    assert (user.lookups_share, user.hit_ratio) == (None, None)


def test_a_capture_tells_lookups_hits_and_the_written_ttl_of_each_pattern():
    sample = keyspace([0] * 2, pattern=[0, 1], patterns=PATTERNS, ttl_ms=[5_000, -1])
    user, page = pattern_stats(sample, _reads(), 0.25)
    assert user.lookups_share == pytest.approx(0.5, abs=0.01)
    assert (user.hit_ratio, page.hit_ratio) == (pytest.approx(0.5, abs=0.01), 1.0)
    assert (user.written_ttl_ms, page.written_ttl_ms) == (30_000, None)


def test_a_capture_that_shows_too_few_misses_tells_no_hit_ratio():
    sample = keyspace([0] * 2, pattern=[0, 1], patterns=PATTERNS)
    assert all(p.hit_ratio is None and p.lookups_share is not None for p in pattern_stats(sample, _reads(), 0.6))


def test_without_known_sizes_bytes_are_shared_like_keys():
    (only,) = pattern_stats(keyspace([0] * 4, pattern=[0, 0, 0, -1], patterns=("a:",)), None)
    assert only.bytes_share == 0.75


def test_without_a_keyspace_sample_nothing_is_told_of_patterns():
    assert pattern_stats(None, _reads(), 0.25) == ()
