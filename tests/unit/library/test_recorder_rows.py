"""What a recorder keeps of a command and its answer; nothing here knows a network."""

from __future__ import annotations

import numpy as np
import pytest

from cachewarden import feed
from cachewarden.cachemodel.memory_accounting import entry_bytes
from cachewarden.cachemodel.shards import MODULUS, SpatialFilter, hash_key
from cachewarden.cachemodel.trace import Op
from cachewarden.feed import Instruction, patterns_id, rate_for, read_instruction, secret_fingerprint
from cachewarden.recorder_rows import COMMANDS, CommandRows
from coordination.monitor_lines import _FORMS

SECRET = b"unit"
PATTERNS = ("page:", "page:short:")


def instruction(**changes):
    plain = {
        "service": "shop", "spatial_rate": 1.0, "patterns": PATTERNS, "patterns_id": patterns_id(PATTERNS),
        "secret_fingerprint": secret_fingerprint(SECRET),
    }  # fmt: skip
    return Instruction(**{**plain, **changes})


class Clock:
    def __init__(self):
        self.now_ms = 0

    def __call__(self):
        return self.now_ms


def rows_of(**changes):
    clock = Clock()
    rows = CommandRows(SECRET, clock_ms=clock, wall_ms=lambda: 1_700_000_000_000)
    rows.follow(instruction(**changes))
    return rows, clock


def key(name):
    return hash_key(SECRET, name.encode())


def test_nothing_is_seen_before_an_instruction_and_after_it_was_taken_back():
    rows = CommandRows(SECRET, clock_ms=Clock(), wall_ms=Clock())
    rows.see(("GET", "a"), None)
    assert (rows.lookups, rows.take()) == (0, None)
    rows.follow(instruction())
    rows.see(("GET", "a"), None)
    rows.follow(None)
    rows.see(("GET", "a"), None)
    assert (rows.lookups, rows.take()) == (1, None)


def test_a_batch_holds_hashes_sizes_ttls_patterns_and_outcomes_but_no_name_and_no_value():
    rows, clock = rows_of()
    rows.see(("GET", "page:secret-name"), None)
    clock.now_ms = 10
    rows.see(("SET", "page:secret-name", "precious", "EX", 60), True)
    clock.now_ms = 25
    rows.see(("GET", b"page:short:x"), b"precious")
    clock.now_ms = 100
    batch = rows.take()
    size = entry_bytes(len("page:secret-name"), 8, True)
    assert batch["key"] == [key("page:secret-name"), key("page:secret-name"), key("page:short:x")]
    assert batch["at_ms"] == [0, 10, 25]
    assert batch["op"] == [Op.READ, Op.WRITE, Op.READ]
    assert batch["size_bytes"] == [0, size, entry_bytes(len("page:short:x"), 8, False)]
    assert batch["ttl_ms"] == [0, 60_000, 0]
    assert batch["pattern"] == [0, 0, 1]
    assert batch["missed"] == [1, -1, 0]
    assert (batch["lookups"], batch["hits"], batch["misses"]) == (2, 1, 1)
    assert (batch["from_ms"], batch["to_ms"]) == (0, 100)
    assert "secret" not in repr(batch).replace("secret_fingerprint", "")
    assert "precious" not in repr(batch)
    assert rows.take()["at_ms"] == []


def test_the_filter_is_the_one_of_the_collectors_samples():
    rows, _ = rows_of(spatial_rate=0.125)
    names = [f"page:{n}" for n in range(2_000)]
    for name in names:
        rows.see(("GET", name), b"x")
    hashes = np.array([key(name) for name in names], dtype=np.uint64)
    batch = rows.take()
    assert batch["key"] == hashes[SpatialFilter(0.125).keeps_each(hashes)].tolist()
    assert (batch["lookups"], batch["spatial_rate"]) == (2_000, 0.125)


def test_too_many_rows_halve_the_rate_until_the_keys_that_are_left_fit_and_the_next_batch_begins_anew():
    called = []
    rows = CommandRows(SECRET, clock_ms=Clock(), wall_ms=Clock(), on_full=lambda: called.append(1))
    rows.follow(instruction(rows_max=100))
    for n in range(1_000):
        rows.see(("GET", f"page:{n}"), None)
    batch = rows.take()
    assert 0 < len(batch["key"]) <= 100
    assert batch["spatial_rate"] < 0.2
    wanted = [key(f"page:{n}") for n in range(1_000)]
    assert batch["key"] == [k for k in wanted if k % MODULUS < batch["spatial_rate"] * MODULUS]
    assert batch["lookups"] == 1_000
    assert called
    assert rows.take()["spatial_rate"] == 1.0


def test_one_key_that_is_asked_for_without_end_stays_within_the_bound():
    rows, _ = rows_of(rows_max=50)
    for _ in range(500):
        rows.see(("GET", "page:hot"), b"x")
    assert len(rows.take()["key"]) <= 50


def test_another_rate_holds_from_the_next_batch_on_and_other_patterns_at_once():
    rows, _ = rows_of()
    rows.see(("GET", "page:1"), b"x")
    rows.follow(instruction(spatial_rate=0.5))
    assert rows.take()["spatial_rate"] == 1.0
    assert rows.take()["spatial_rate"] == 0.5
    rows.see(("GET", "page:1"), b"x")
    rows.follow(instruction(patterns=("cart:",), patterns_id=patterns_id(("cart:",))))
    batch = rows.take()
    assert (batch["key"], batch["patterns_id"]) == ([], patterns_id(("cart:",)))


@pytest.mark.parametrize(
    ("command", "answer", "expected"),
    [
        (("SET", "k", "v", "PX", 1500), True, [(1, 1_500, -1)]),
        (("SET", "k", "v", "EXAT", 1_700_000_060), True, [(1, 60_000, -1)]),
        (("SET", "k", "v", "PXAT", 1_600_000_000_000), True, [(1, 0, -1)]),
        (("SET", "k", "v", "NX"), None, []),
        (("SET", "k", "v", "XX", "GET"), None, [(0, 0, 1)]),
        (("SET", "k", "v", "GET"), None, [(0, 0, 1), (1, 0, -1)]),
        (("SET", "k", "v", "NX", "GET"), b"old", [(0, 0, 0)]),
        (("SETNX", "k", "v"), False, []),
        (("MSET", "k", "v", "l", "w"), True, [(1, 0, -1), (1, 0, -1)]),
        (("MSETNX", "k", "v"), False, []),
        (("GETSET", "k", "v"), None, [(0, 0, 1), (1, 0, -1)]),
        (("GETDEL", "k"), b"v", [(0, 0, 0), (2, 0, -1)]),
        (("DEL", "k", "l"), 1, [(2, 0, -1), (2, 0, -1)]),
        (("HGET", "k", "f"), None, [(0, 0, -1)]),
        (("HMGET", "k", "f", "g"), [None, b"x"], [(0, 0, 0)]),
        (("HGETALL", "k"), {}, [(0, 0, 1)]),
        (("SMEMBERS", "k"), set(), [(0, 0, 1)]),
        (("SINTER", "k", "l"), set(), [(0, 0, -1), (0, 0, -1)]),
        (("EXPIRE", "k", 10), True, []),
        (("PUBLISH", "k", "v"), 1, []),
        (("EXISTS", "k", "l"), 1, []),
        pytest.param((b"get", memoryview(b"k")), None, [(0, 0, 1)], id="get of a memoryview"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_each_command_gives_the_rows_of_what_it_did(command, answer, expected):
    rows, _ = rows_of()
    rows.see(command, answer)
    batch = rows.take()
    assert list(zip(batch["op"], batch["ttl_ms"], batch["missed"], strict=True)) == expected


def test_lookups_without_a_value_are_counted_as_the_server_counts_them():
    rows, _ = rows_of()
    for command, answer in (
        (("EXISTS", "a", "b"), 1),
        (("TTL", "a"), -2),
        (("PTTL", "a"), -1),
        (("TYPE", "a"), "none"),
    ):
        rows.see(command, answer)
    assert (rows.lookups, rows.hits, rows.misses) == (5, 2, 3)


def test_everything_that_monitor_captures_understand_a_recorder_understands_too():
    assert {name.decode().upper() for name in _FORMS} <= COMMANDS


def test_the_numbers_of_the_wire_are_those_of_the_trace():
    assert (feed.READ, feed.WRITE, feed.DELETE) == (Op.READ, Op.WRITE, Op.DELETE)


# --- Instructions


def test_a_fingerprint_tells_secrets_apart_and_is_not_the_hash_of_any_key():
    assert secret_fingerprint(b"a") == secret_fingerprint(b"a") != secret_fingerprint(b"b")
    assert len(secret_fingerprint(b"a" * 64)) == 16
    assert secret_fingerprint(SECRET) != f"{hash_key(SECRET, b''):016x}"


@pytest.mark.parametrize(
    ("accesses_per_s", "rate"), [(0, 1.0), (600, 1.0), (700, 0.5), (10_000, 1 / 16), (10**12, 2**-24)]
)
def test_the_busier_a_cache_the_lower_the_rate_by_powers_of_two(accesses_per_s, rate):
    assert rate_for(accesses_per_s, 240_000) == rate


DOCUMENT = {
    "service_name": "shop", "spatial_rate": 0.5, "patterns": ["page:"], "secret_fingerprint": "f", "patterns_id": "p",
    "flush_ms": 2_000, "rows_max": 2_000,
}  # fmt: skip


def test_an_instruction_is_read_as_it_was_written():
    assert read_instruction(DOCUMENT).patterns == ("page:",)
    assert read_instruction({**DOCUMENT, "later": 1}).spatial_rate == 0.5


@pytest.mark.parametrize(
    "changes",
    [
        {"spatial_rate": 0}, {"spatial_rate": 2}, {"spatial_rate": True}, {"spatial_rate": "1"},
        {"spatial_rate": float("nan")}, {"patterns": "page:"}, {"patterns": [1]}, {"patterns": ["p"] * 2_000},
        {"flush_ms": 1}, {"rows_max": 10**9}, {"service_name": None}, {"secret_fingerprint": 5},
    ],
    ids=str,
)  # fmt: skip
def test_an_instruction_that_cannot_be_is_refused_by_its_field(changes):
    (field,) = changes
    with pytest.raises(ValueError, match=field):
        read_instruction({**DOCUMENT, **changes})
    with pytest.raises(ValueError, match="object"):
        read_instruction([])
