"""The lines of MONITOR: exact format, nasty arguments, and which rows they become."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachewarden.cachemodel.memory_accounting import entry_bytes
from cachewarden.cachemodel.shards import SpatialFilter, hash_key
from cachewarden.cachemodel.trace import Op
from coordination.monitor_lines import MonitorParser, PatternIndex, argument_length, unescape

SECRET = b"unit"
AT = 1_700_000_000_123


def escaped(argument: bytes) -> bytes:
    """What `sdscatrepr` of sds.c writes, without the quotes around it."""
    named = {0x5C: b"\\\\", 0x22: b'\\"', 0x0A: b"\\n", 0x0D: b"\\r", 0x09: b"\\t", 0x07: b"\\a", 0x08: b"\\b"}
    return b"".join(named.get(byte) or (bytes([byte]) if 32 <= byte < 127 else b"\\x%02x" % byte) for byte in argument)


def line(*arguments: bytes | str, client: str = "0 10.0.0.1:5000", at: str = "1700000000.123456") -> bytes:
    quoted = b" ".join(b'"' + escaped(a.encode() if isinstance(a, str) else a) + b'"' for a in arguments)
    return b"+" + at.encode() + b" [" + client.encode() + b"] " + quoted + b"\r\n"


def parser(
    rate: float = 1.0, own: tuple[str, ...] = (), patterns: tuple[str, ...] = ("user:", "user:vip:")
) -> MonitorParser:
    return MonitorParser(hash_secret=SECRET, spatial_rate=rate, patterns=patterns, db=0, own=lambda: own)


def rows_of(*lines: bytes, **more) -> list[tuple[int, Op, int]]:
    """(key, op, ttl_ms) of what the lines become."""
    reader = parser(**more)
    reader.feed(b"".join(lines))
    trace = reader.result(None).trace
    return list(zip(trace.key.tolist(), map(Op, trace.op.tolist()), trace.ttl_ms.tolist(), strict=True))


def key(name: bytes | str) -> int:
    return hash_key(SECRET, name.encode() if isinstance(name, str) else name)


@given(st.binary(max_size=200))
def test_an_argument_is_read_back_as_it_was_written(argument):
    assert unescape(escaped(argument)) == argument
    assert argument_length(escaped(argument)) == len(argument)


@given(st.binary(min_size=1, max_size=40), st.binary(max_size=300))
def test_any_binary_key_and_value_give_one_row_with_the_right_size(name, value):
    reader = parser()
    reader.feed(line("SET", name, value, "EX", "60"))
    sample = reader.result(None)
    assert sample.trace.key.tolist() == [key(name)]
    assert sample.trace.size_bytes.tolist() == [entry_bytes(len(name), len(value), True)]
    assert sample.trace.ttl_ms.tolist() == [60_000]


@pytest.mark.slow
@given(
    st.lists(
        st.tuples(st.sampled_from(["GET", "SET", "DEL", "MGET"]), st.binary(min_size=1, max_size=12)), max_size=20
    ),
    st.data(),
)
def test_the_pieces_in_which_bytes_arrive_do_not_matter(commands, data):
    text = b"+OK\r\n" + b"".join(line(name, *([k, b"v"] if name == "SET" else [k])) for name, k in commands)
    whole = parser()
    whole.feed(text)
    cut = parser()
    while text:
        size = data.draw(st.integers(1, len(text)))
        cut.feed(text[:size])
        text = text[size:]
    assert cut.result(None).trace.key.tolist() == whole.result(None).trace.key.tolist()
    assert (cut.lines_seen, cut.unreadable) == (len(commands) + 1, 0)


@pytest.mark.parametrize(
    "name",
    [b'" "', b'\\" \\"', b"\\", b"\\\\", b'"', b'] "GET" "x', b"\r\n", b"+OK", b"\x00\xff", "schlüssel".encode()],
)
def test_a_key_that_looks_like_the_format_itself_stays_one_key(name):
    assert rows_of(line("GET", name), line("set", name, name, "px", "5")) == [
        (key(name), Op.READ, 0),
        (key(name), Op.WRITE, 5),
    ]


def test_time_is_the_servers_in_milliseconds_and_never_runs_backwards():
    reader = parser()
    reader.feed(
        line("GET", "a", at="1700000000.123456")
        + line("GET", "b", at="1700000000.003001")
        + line("GET", "c", at="1700000001.000999")
    )
    assert reader.result(None).trace.time_ms.tolist() == [AT, AT, 1_700_000_001_000]
    assert reader.now_us == 1_700_000_001_000_999


@pytest.mark.parametrize(
    ("arguments", "ttl_ms"),
    [
        (("SET", "k", "v"), 0),
        (("SET", "k", "v", "EX", "60"), 60_000),
        (("set", "k", "v", "nx", "px", "1500"), 1_500),
        (("SET", "k", "v", "EXAT", "1700000010"), 9_877),
        (("SET", "k", "v", "PXAT", str(AT + 42)), 42),
        (("SET", "k", "v", "XX", "GET", "EX", "7"), 7_000),
        (("SETEX", "k", "30", "v"), 30_000),
        (("psetex", "k", "30", "v"), 30),
        (("SETNX", "k", "v"), 0),
        (("SET", "k", "EX"), 0),
    ],
)
def test_each_way_to_give_a_ttl_is_known(arguments, ttl_ms):
    assert rows_of(line(*arguments)) == [(key("k"), Op.WRITE, ttl_ms)]


@pytest.mark.parametrize(
    "arguments",
    [("SET", "k", "v", "EX", "soon"), ("SET", "k", "v", "EX"), ("SET", "k", "v", "EX", "0"), ("SETEX", "k", "-1", "v"), ("SETEX", "k", "v"),
     ("SET", "k", "v", "EXAT", "1600000000")],
)  # fmt: skip
def test_a_write_that_the_server_refuses_or_ends_at_once_is_no_row(arguments):
    assert rows_of(line(*arguments)) == []


def test_a_ttl_given_in_a_second_command_belongs_to_the_write_before_it():
    assert rows_of(line("HSET", "k", "f", "v"), line("EXPIRE", "k", "60")) == [(key("k"), Op.WRITE, 60_000)]
    assert rows_of(line("SET", "k", "v"), line("PEXPIREAT", "k", str(AT + 5))) == [(key("k"), Op.WRITE, 5)]


def test_an_expire_of_a_key_whose_write_was_not_seen_is_counted_and_no_row():
    reader = parser()
    reader.feed(line("EXPIRE", "k", "60"))
    assert len(reader.result(None).trace) == 0
    assert reader.unfilled_expires == 1


def test_keepttl_takes_the_ttl_of_the_last_write_that_was_seen():
    rows = rows_of(
        line("SET", "k", "v", "EX", "9"),
        line("SET", "k", "w", "KEEPTTL"),
        line("DEL", "k"),
        line("SET", "k", "w", "KEEPTTL"),
    )
    assert [ttl for _, op, ttl in rows if op is Op.WRITE] == [9_000, 9_000, 0]


def test_commands_with_many_keys_give_a_row_for_each():
    assert rows_of(line("MGET", "a", "b")) == [(key("a"), Op.READ, 0), (key("b"), Op.READ, 0)]
    assert rows_of(line("UNLINK", "a", "b")) == [(key("a"), Op.DELETE, 0), (key("b"), Op.DELETE, 0)]
    assert rows_of(line("MSET", "a", "1", "b", "2")) == [(key("a"), Op.WRITE, 0), (key("b"), Op.WRITE, 0)]


@pytest.mark.parametrize(
    "other",
    [
        line("GET", "k", client="1 10.0.0.1:5000"),
        line("GET", "k", client="10 10.0.0.1:5000"),
        line("GET", "k", client="0 lua"),
        line("GET", "k", client="0 10.0.0.9:1"),
        line("GET", "k", client="0 [::1]:60866"),
        line("PING"),
        line("EXISTS", "k"),
        line("CONFIG", "GET", "maxmemory"),
        line("GET"),
        b"+1700000000.123456 [0 10.0.0.1:5000] nonsense\r\n",
        b"nonsense\r\n",
        b"\r\n",
    ],
)
def test_lines_that_are_not_the_applications_accesses_are_no_rows(other):
    assert rows_of(other, own=("10.0.0.9:1", "[::1]:60866")) == []


def test_addresses_of_ipv6_and_unix_sockets_are_read():
    assert (
        len(rows_of(line("GET", "k", client="0 [::1]:60866"), line("GET", "k", client="0 unix:/tmp/redis.sock"))) == 2
    )


def test_a_connection_that_turns_out_to_be_ours_is_taken_out_at_the_end():
    own: set[str] = set()
    reader = MonitorParser(hash_secret=SECRET, spatial_rate=1.0, patterns=(), db=0, own=lambda: own)
    reader.feed(line("GET", "theirs") + line("GET", "ours", client="0 10.0.0.7:7"))
    own.add("10.0.0.7:7")
    assert reader.result(None).trace.key.tolist() == [key("theirs")]


@given(st.lists(st.integers(0, 300), max_size=60), st.sampled_from([0.5, 0.1, 1.0]))
def test_accesses_of_a_key_are_all_kept_or_all_dropped(numbers, rate):
    names = [f"user:{number}" for number in numbers]
    kept = SpatialFilter(rate)
    rows = rows_of(*(line("GET", name) for name in names), rate=rate)
    assert [row[0] for row in rows] == [key(name) for name in names if kept.keeps(key(name))]


def test_the_longest_declared_prefix_wins():
    index = PatternIndex(("user:", "user:vip:", "p"))
    assert [index.of(name) for name in (b"user:1", b"user:vip:1", b"user", b"p", b"", b"xuser:1")] == [
        0,
        1,
        -1,
        2,
        -1,
        -1,
    ]


def test_a_capture_of_many_keys_keeps_the_bound_and_tells_the_rate_that_is_left():
    names = [f"user:{n}" for n in range(400)]
    reader = MonitorParser(hash_secret=SECRET, spatial_rate=1.0, patterns=("user:",), db=0, own=lambda: (), keys_max=50)
    reader.feed(b"".join(line("GET", name) for name in names + names))
    sample = reader.result(None)
    assert sample.trace.distinct_keys() == 50
    assert len(sample.trace) == len(sample.pattern) == 100
    left = SpatialFilter(sample.spatial_rate)
    assert set(sample.trace.key.tolist()) == {key(name) for name in names if left.keeps(key(name))}
