"""The knob table: what may be set, to what, and where."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachewarden.errors import SettingsError
from cachewarden.knobs import (
    KNOBS,
    KnobType,
    action_class_of_change,
    as_server_reads,
    check_value,
    parse_bytes,
    supported,
)
from cachewarden.messages import ActionClass

FORBIDDEN_WORDS = ("append", "save", "replica", "requirepass", "bind", "port", "cluster", "dir", "acl", "tls")


def test_no_knob_of_persistence_replication_topology_or_security_is_in_the_table():
    assert [name for name in KNOBS if any(word in name for word in FORBIDDEN_WORDS)] == []


@pytest.mark.parametrize("name", sorted(KNOBS))
def test_every_knob_says_what_it_may_be_and_what_it_may_do(name: str):
    knob = KNOBS[name]
    assert knob.hazard
    assert knob.predicted_by
    assert knob.since
    assert (knob.type is KnobType.CHOICE) == bool(knob.choices)
    if knob.type in (KnobType.BYTES, KnobType.INTEGER):
        assert knob.low < knob.high


def test_a_knob_outside_the_table_is_refused_and_the_message_lists_the_settable_ones():
    with pytest.raises(
        SettingsError, match="`appendonly` is not in the knob table, settable are: active-expire-effort"
    ):
        check_value("appendonly", "no")


def test_a_value_out_of_range_is_refused_with_the_range():
    with pytest.raises(SettingsError, match=r"`maxmemory-samples` cannot be `64`, allowed: 3\.\.10"):
        check_value("maxmemory-samples", "64")


def test_an_unknown_choice_is_refused_with_the_choices():
    with pytest.raises(SettingsError, match="`maxmemory-policy` cannot be `lru`, allowed: allkeys-lfu, allkeys-lru"):
        check_value("maxmemory-policy", "lru")


def test_a_word_where_a_number_belongs_is_refused():
    with pytest.raises(SettingsError, match="needs a whole number, not `many`"):
        check_value("lfu-log-factor", "many")


def test_memory_is_understood_in_the_units_of_the_server():
    assert parse_bytes("64mb") == 64 * 1024 * 1024
    assert parse_bytes("1g") == 1_000_000_000
    assert check_value("maxmemory", "64MB") == str(64 * 1024 * 1024)


@given(st.text(max_size=20))
def test_no_text_makes_the_parser_of_memory_fail_otherwise_than_with_a_settings_error(text: str):
    try:
        parsed = parse_bytes(text)
    except SettingsError:
        parsed = 0
    assert parsed >= 0


@pytest.mark.parametrize(
    ("knob", "written", "read"),
    [
        ("maxmemory", "64mb", "67108864"),
        ("maxmemory", "64MB", "67108864"),
        ("maxmemory", "1gB", "1073741824"),
        ("maxmemory", "1g", "1000000000"),
        ("maxmemory", "100", "100"),
        ("maxmemory", "007", "7"),
        ("maxmemory", "-64mb", None),
        ("maxmemory", "64 mb", None),
        ("maxmemory", "64tb", None),
        ("maxmemory", "1.5gb", None),
        ("maxmemory", "99999999999999999999", None),
        ("maxmemory-samples", "5", "5"),
        ("maxmemory-samples", "05", None),
        ("maxmemory-samples", "5.0", None),
        ("lfu-decay-time", "-1", "-1"),
        ("maxmemory-policy", "ALLKEYS-LFU", "allkeys-lfu"),
        ("maxmemory-policy", "allkeys lfu", None),
        ("lazyfree-lazy-eviction", "YES", "yes"),
        ("lazyfree-lazy-eviction", "1", None),
        ("no-knob-of-ours", "As It Is", "As It Is"),
    ],
)
def test_what_another_program_wrote_is_taken_as_the_server_takes_it(knob, written, read):
    assert as_server_reads(knob, written) == read


def test_lowering_maxmemory_is_lossy_although_raising_it_only_grows():
    assert action_class_of_change("maxmemory", "2097152", "1048576") is ActionClass.LOSSY
    assert action_class_of_change("maxmemory", "1048576", "2097152") is ActionClass.GROWTH
    assert action_class_of_change("maxmemory", "0", "1048576") is ActionClass.GROWTH


def test_what_is_not_in_the_table_is_out_of_bounds():
    assert action_class_of_change("replicaof", "", "x") is ActionClass.FORBIDDEN


def test_a_server_that_is_too_old_or_unknown_lacks_the_knob():
    assert supported("latency-tracking", "redis", "7.0.15")
    assert not supported("latency-tracking", "redis", "6.2.14")
    assert supported("maxmemory-policy", "valkey", "9.1.2")
    assert not supported("maxmemory-policy", "dragonfly", "1.0")
