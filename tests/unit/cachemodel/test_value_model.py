"""What compression would give, from lengths alone."""

from __future__ import annotations

import pytest

from cachewarden.cachemodel.encoding_model import Unknown
from cachewarden.cachemodel.value_model import Compression, compression, compression_by_pattern, twins
from tests.unit.cachemodel.value_samples import large_string, small_string, value_sample


def test_values_that_compress_to_a_quarter_save_three_quarters_of_their_memory():
    found = compression(value_sample(*[large_string(4_000, 1_000)] * 30, *[small_string()] * 70), 1_000, 1)
    assert isinstance(found, Compression)
    assert found.ratio.value == pytest.approx(4.0)
    assert found.saved_share.value == pytest.approx(0.75)
    assert found.saved_bytes.value == pytest.approx(1_000 * 0.3 * 4_080 * 0.75)
    assert found.saved_of_all.value == pytest.approx(0.3 * 4_080 * 0.75 / (0.3 * 4_080 + 0.7 * 90))
    assert found.saved_bytes.low < found.saved_bytes.value < found.saved_bytes.high


def test_a_value_that_compression_makes_longer_is_kept_as_it_is():
    found = compression(value_sample(*[large_string(4_000, 4_100)] * 30), 1_000, 1)
    assert isinstance(found, Compression)
    assert (found.ratio.value, found.saved_bytes.value) == (1.0, 0.0)


def test_large_values_beyond_the_limit_of_the_look_are_judged_by_those_that_were_read():
    unread = {**large_string(), "size": 4_080}
    del unread["value"]
    found = compression(value_sample(*[large_string(4_000, 1_000)] * 20, *[unread] * 20), 1_000, 1)
    assert isinstance(found, Compression)
    assert found.values_read == 20
    assert found.saved_bytes.value == pytest.approx(1_000 * 4_080 * 0.75)


def test_patterns_are_told_apart_and_one_with_few_values_says_so():
    sample = value_sample(*[large_string(4_000, 1_000, 0)] * 20, *[large_string(4_000, 3_000, 1)] * 9)
    answers = dict(compression_by_pattern(sample, 1_000, 1))
    assert answers["page:"].ratio.value == pytest.approx(4.0)
    assert isinstance(answers["user:"], Unknown)
    assert "only 9 large values" in answers["user:"].reason


def test_a_cache_without_large_strings_has_nothing_to_compress():
    found = compression(value_sample(*[small_string()] * 50), 1_000, 1)
    assert isinstance(found, Unknown)
    assert "none of 50 sampled keys" in found.reason


def test_copies_among_the_values_that_were_read_are_counted():
    sample = value_sample(*[large_string(twin=0)] * 3, large_string(twin=1), large_string())
    assert (twins(sample).values_read, twins(sample).copies) == (5, 2)
