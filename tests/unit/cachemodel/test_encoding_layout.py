"""What collections take: golden sizes as MEMORY USAGE and used_memory of real servers said them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachewarden.cachemodel.encoding_layout import (
    REDIS_7_0_LAYOUT,
    VALKEY_9_1_LAYOUT,
    intset_width,
    layout_of,
    listpack_entry_bytes,
    listpack_integer,
)
from cachewarden.cachemodel.server_model import Allocator


@pytest.mark.parametrize(
    ("text", "stored"),
    [(b"", 2), (b"7", 2), (b"127", 2), (b"128", 3), (b"-1", 3), (b"4095", 3), (b"4096", 4), (b"40000", 5),
     (b"9000000", 6), (b"3000000000", 10), (b"007", 5), (b"-0", 4), (b"abc", 5), (b"x" * 63, 65), (b"x" * 64, 67),
     (b"x" * 5000, 5007)],
)  # fmt: skip
def test_an_element_of_a_listpack_takes_header_data_and_the_length_to_walk_back(text, stored):
    assert listpack_entry_bytes(text) == stored


@given(st.integers(-(2**63), 2**63 - 1))
def test_every_number_of_64_bits_is_kept_as_a_number_and_never_takes_more_than_its_text_plus_two(number):
    text = str(number).encode()
    assert listpack_integer(text) == number
    assert listpack_entry_bytes(text) <= max(len(text) + 2, 3)


def test_text_that_only_looks_like_a_number_stays_text():
    for text in (b"+1", b" 1", b"1.0", b"01", b"-", b"", b"9223372036854775808", "١".encode()):
        assert listpack_integer(text) is None


def test_the_widest_member_decides_the_width_of_an_intset():
    assert [intset_width(n) for n in ([1, 2], [1, 40_000], [-(2**31)], [2**31], [])] == [2, 4, 4, 8, 2]


@pytest.mark.parametrize(
    ("entries", "member", "value", "used"),
    [(64, 10, 20, 5_760), (128, 5, 5, 7_296), (128, 20, 100, 23_680), (400, 10, 60, 49_024)],
)
def test_hash_tables_of_redis_take_what_its_used_memory_grew_by(entries, member, value, used):
    name = REDIS_7_0_LAYOUT.name_bytes(8) + 8
    assert REDIS_7_0_LAYOUT.hash_table_bytes(entries, member, value) + name == pytest.approx(used, rel=0.002)


@pytest.mark.parametrize(
    ("entries", "member", "value", "used"),
    [(100, 10, 20, 5_576), (128, 20, 60, 13_601), (400, 10, 20, 21_656), (400, 30, None, 21_877)],
)
def test_hash_tables_of_valkey_take_what_its_used_memory_grew_by(entries, member, value, used):
    name = VALKEY_9_1_LAYOUT.name_bytes(8)
    assert VALKEY_9_1_LAYOUT.hash_table_bytes(entries, member, value) + name == pytest.approx(used, rel=0.03)


@pytest.mark.parametrize(("layout", "used"), [(REDIS_7_0_LAYOUT, 51_935), (VALKEY_9_1_LAYOUT, 30_634)])
def test_skip_lists_take_what_used_memory_grew_by(layout, used):
    found = layout.skip_list_bytes(400, 20) + layout.name_bytes(8)
    assert found == pytest.approx(used, rel=0.01)


@pytest.mark.parametrize(("layout", "usage"), [(REDIS_7_0_LAYOUT, 3_640), (VALKEY_9_1_LAYOUT, 3_456)])
def test_a_listpack_takes_what_memory_usage_says(layout, usage):
    elements = 100 * (listpack_entry_bytes(b"f" * 10) + listpack_entry_bytes(b"v" * 20))
    assert layout.listpack_bytes(elements) + layout.name_bytes(8) == pytest.approx(usage, abs=24)


def test_memory_usage_of_redis_leaves_out_what_jemalloc_adds_to_each_entry_of_a_dict():
    assert REDIS_7_0_LAYOUT.uncounted_bytes(100) == 800
    assert VALKEY_9_1_LAYOUT.uncounted_bytes(100) == 0


@given(
    st.sampled_from([REDIS_7_0_LAYOUT, VALKEY_9_1_LAYOUT]),
    st.integers(1, 900),
    st.integers(0, 200),
    st.integers(0, 200),
)
def test_no_encoding_takes_less_than_its_content_and_one_block_never_more_than_many(layout, entries, member, value):
    table = layout.hash_table_bytes(entries, member, value)
    packed = layout.listpack_bytes(entries * (listpack_entry_bytes(b"m" * member) + listpack_entry_bytes(b"v" * value)))
    assert packed >= entries * (member + value)
    assert table >= entries * (member + value)
    assert layout.skip_list_bytes(entries, member) >= entries * (member + 8)
    assert layout.quicklist_bytes(entries, entries * (member + 2)) >= entries * member


def test_a_layout_is_only_known_where_it_was_measured():
    assert layout_of("redis", "7.0.15", "jemalloc-5.3.0") == REDIS_7_0_LAYOUT
    assert layout_of("valkey", "9.1.2", "libc") == VALKEY_9_1_LAYOUT
    jemalloc = layout_of("valkey", "9.1.2", "jemalloc-5.3.0")
    assert not isinstance(jemalloc, str)
    assert jemalloc.allocator is Allocator.JEMALLOC
    assert "nobody has measured" in str(layout_of("redis", "8.2.1", "jemalloc-5.3.0"))
    assert "unknown" in str(layout_of("redis", "7.0.15", ""))
