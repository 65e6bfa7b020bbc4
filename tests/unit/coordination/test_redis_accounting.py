"""What the adapter makes of replies: lookups of ours, INFO, histograms, cost, pace."""

from __future__ import annotations

import asyncio

import pytest

from cachewarden.errors import InvariantViolation
from coordination.redis_probe import Pacer, latency_histograms, read_info, server_us_since
from coordination.redis_ttl import glob_of_prefix
from coordination.redis_wire import Refusal, command_name, fence_number, lookups_of


@pytest.mark.parametrize(
    ("command", "reply", "lookups"),
    [
        (("GET", "k"), b"", (1, 0)),
        (("GET", "k"), None, (0, 1)),
        (("PTTL", "k"), -1, (1, 0)),
        (("PTTL", "k"), -2, (0, 1)),
        (("OBJECT", "IDLETIME", "k"), 0, (1, 0)),
        (("OBJECT", "IDLETIME", "k"), Refusal("OBJECT IDLETIME", "An LFU maxmemory policy is selected"), (1, 0)),
        (("OBJECT", "IDLETIME", "k"), Refusal("OBJECT IDLETIME", "this user has no permissions"), (0, 0)),
        (("TOUCH", "a", "b", "c"), 2, (2, 1)),
        (("MEMORY", "USAGE", "k"), None, (0, 0)),
    ],
)
def test_a_lookup_of_ours_is_a_hit_or_a_miss_by_its_reply(command, reply, lookups):
    assert lookups_of(command, reply) == lookups


def test_a_command_that_was_never_measured_may_not_be_sent():
    with pytest.raises(InvariantViolation, match="`STRLEN`"):
        lookups_of(("STRLEN", "k"), 3)


def test_commands_are_counted_under_the_names_of_commandstats():
    assert command_name(("OBJECT", "IDLETIME", "k")) == "object|idletime"
    assert command_name(("PTTL", "k")) == "pttl"


def test_a_fence_is_a_number_or_nothing():
    assert [fence_number(token) for token in (b"17", None, b"", b"x", b"-1", b"1.5")] == [
        17,
        None,
        None,
        None,
        None,
        None,
    ]


def test_info_is_flat_text_and_values_may_contain_colons():
    info = read_info(
        b"# Server\r\nredis_version:7.0.15\r\nconfig_file:\r\nexecutable:/a:b\r\n\r\ncmdstat_get:calls=3,usec=6\r\n"
    )
    assert info == {"redis_version": "7.0.15", "config_file": "", "executable": "/a:b", "cmdstat_get": "calls=3,usec=6"}


def test_our_share_of_server_time_is_our_calls_times_the_mean_of_the_window():
    earlier = {"cmdstat_pttl": "calls=100,usec=1000,usec_per_call=10.00"}
    later = {"cmdstat_pttl": "calls=300,usec=1400,usec_per_call=4.67", "cmdstat_object|freq": "calls=4,usec=8"}
    # 200 calls took 400 us in the window, of which 50 were ours; both OBJECT FREQ were ours.
    assert server_us_since(earlier, later, {"pttl": 50, "object|freq": 2}) == 50 * 2 + 2 * 2
    assert server_us_since({}, {"cmdstat_object": "calls=10,usec=10"}, {"object|freq": 3}) == 3
    assert server_us_since({}, {"keyspace_hits": "1"}, {"pttl": 1}) is None


def test_histograms_keep_bounds_and_cumulative_counts():
    reply = [
        b"get",
        [b"calls", 3, b"histogram_usec", [1, 1, 4, 3]],
        b"config|get",
        [b"calls", 0, b"histogram_usec", []],
    ]
    assert latency_histograms(reply) == {"get": ((1, 1), (4, 3)), "config|get": ()}


def test_a_prefix_is_escaped_byte_by_byte():
    assert glob_of_prefix("a*b[1]?\\^-é") == b"a\\*b\\[1\\]\\?\\\\\\^\\-" + "é".encode() + b"*"


async def test_commands_are_spread_so_that_the_server_keeps_its_share():
    pacer = Pacer(share=0.5, us_per_command=100.0)
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    for _ in range(5):
        await pacer.spend(100)
    # Four rests of 100 commands * 100 us / 0.5; the first batch goes at once.
    assert loop.time() - started_s >= 4 * 0.02 * 0.99


def test_the_pace_follows_what_commands_were_measured_to_cost():
    pacer = Pacer(share=0.01)
    before = pacer.us_per_command
    pacer.learn(1_000, 50_000.0)
    assert pacer.us_per_command > before
    pacer.learn(0, 0.0)
    assert pacer.us_per_command == 53.0
