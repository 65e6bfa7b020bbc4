"""Where the bytes go: shares that add up, intervals that hold, and reasons where there is too little."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cachewarden.cachemodel.encoding_model import NO_PATTERN, MemoryGroup, Unknown, by_encoding, by_pattern
from tests.unit.agents.looks import keyspace
from tests.unit.cachemodel.value_samples import big_hash, large_string, small_string, value_sample


def sampled(sizes, *, pattern=None, encoding=None):
    sample = keyspace([0] * len(sizes), size_bytes=sizes, pattern=pattern, patterns=("user:", "page:"))
    if encoding is None:
        return sample
    names = tuple(sorted(set(encoding)))
    return replace(sample, encoding=np.array([names.index(e) for e in encoding], dtype=np.int32), encodings=names)


def named(groups) -> dict[str, MemoryGroup]:
    assert not isinstance(groups, Unknown), groups
    return {group.name: group for group in groups}


def test_memory_by_pattern_is_the_mean_of_the_sample_times_the_resident_keys():
    groups = named(by_pattern(sampled([100] * 60 + [900] * 40, pattern=[0] * 60 + [1] * 30 + [-1] * 10), 10_000, 1))
    assert list(groups) == ["page:", NO_PATTERN, "user:"]
    assert groups["page:"].bytes.value == pytest.approx(10_000 * 0.3 * 900)
    assert groups["user:"].keys_share.value == pytest.approx(0.6)
    assert sum(group.bytes_share.value for group in groups.values()) == pytest.approx(1.0)
    assert groups["page:"].mean_bytes == 900


def test_encodings_that_more_than_one_type_has_are_not_taken_for_one():
    groups = named(by_encoding(sampled([100] * 40, encoding=["embstr"] * 20 + ["hashtable"] * 20), None, 1_000, 1))
    assert set(groups) == {"string (embstr)", "hash or set (hashtable)"}


def test_a_value_sample_tells_the_types_apart():
    values = value_sample(*[large_string()] * 10, *[big_hash()] * 10, *[small_string()] * 20)
    groups = named(by_encoding(None, values, 1_000, 1))
    assert set(groups) == {"string (raw)", "hash (hashtable)", "small"}


def test_intervals_hold_the_truth_nine_times_in_ten():
    dice = np.random.default_rng(11)
    inside = 0
    for seed in range(200):
        user = dice.random(400) < 0.3
        sizes = np.where(user, dice.exponential(2_000, 400), dice.exponential(300, 400)).astype(int) + 50
        groups = named(by_pattern(sampled(sizes, pattern=np.where(user, 0, -1)), 1_000_000, seed))
        truth = 1_000_000 * 0.3 * 2_049.5
        inside += groups["user:"].bytes.holds(truth)
    assert 0.84 <= inside / 200 <= 0.96


def test_too_few_sizes_are_no_answer():
    assert by_pattern(None, 1_000, 1) == Unknown("no keys were sampled")
    found = by_encoding(sampled([100] * 29, encoding=["raw"] * 29), None, 1_000, 1)
    assert isinstance(found, Unknown)
    assert "only 29 sampled keys" in found.reason
    unknown_sizes = by_pattern(sampled([-1] * 100), 1_000, 1)
    assert isinstance(unknown_sizes, Unknown)
