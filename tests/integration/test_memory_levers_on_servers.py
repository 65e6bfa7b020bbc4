"""The memory levers against real servers: what was said beforehand, and what used_memory then did."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import zstandard

from agents.snapshots import LookRing, make_snapshot
from coordination.redis_target import RedisTarget, TargetLimits
from serve.memory import MemoryResponse, memory_view
from tests.contract.conftest import SystemClock, service
from tests.contract.real_servers import ENGINES, RealServer

pytestmark = pytest.mark.integration

KEYS = 120
ENTRIES = (150, 400)


@pytest.fixture(params=ENGINES)
def server(request, tmp_path):
    """A server whose limits are those of older versions, so that there is something to gain."""
    server = RealServer(request.param, tmp_path)
    server.start()
    server.admin.config_set("hash-max-listpack-entries", 128)
    yield server
    server.kill()


async def asked(server: RealServer, keys: int = 400) -> MemoryResponse:
    """Look at the cache as the collector does and return what the API would say of it."""
    target = RedisTarget(
        service(server.url, value_samples=True),
        hash_secret=b"levers",
        clock=SystemClock(),
        limits=TargetLimits(probe_server_share=0.2),
    )
    seen = await target.observe(sample_keys=keys, capture_ms=0, capture_lines=0, capture_rate=1.0, value_keys=keys)
    await target.close()
    window = LookRing(window_ms=60_000, base_age_ms=1_000).add(seen)
    snapshot = make_snapshot(seen, window, sample=seen.sample, access=None, reads=None, remarks={}, values=seen.values)
    return memory_view(replace(snapshot, incomplete={}))


def members(kind: str, key: int) -> list[Any]:
    """Return the same members for the same key, so that it can be written anew."""
    dice = random.Random(f"{kind}{key}")
    count = dice.randrange(*ENTRIES)
    if kind == "hash":
        return [part for n in range(count) for part in (f"field{n}", dice.randbytes(dice.randrange(4, 30)).hex())]
    if kind == "set":
        return dice.sample(range(3_000_000), 500 + count)
    return [part for n in range(count) for part in (dice.random(), f"member{n}")]


def write(server: RealServer, kind: str) -> None:
    pipe = server.admin.pipeline(transaction=False)
    command = {"hash": "HSET", "set": "SADD", "zset": "ZADD"}[kind]
    for key in range(KEYS):
        pipe.delete(f"user:{key}")
        pipe.execute_command(command, f"user:{key}", *members(kind, key))
    pipe.execute()
    # Hash tables that still rehash hold two tables; reading finishes that.
    read = {"hash": "HGET", "set": "SISMEMBER", "zset": "ZSCORE"}[kind]
    for key in range(KEYS):
        for _ in range(520):
            pipe.execute_command(read, f"user:{key}", "0")
        pipe.execute()


def used_bytes(server: RealServer) -> int:
    """Ask after a first look: the server keeps a histogram for each new command, about 40 KiB."""
    return int(server.admin.info("memory")["used_memory"])


@pytest.mark.parametrize(
    ("kind", "encoding", "limits"),
    [
        ("hash", "hash (listpack)", {"hash-max-listpack-entries": 512}),
        ("set", "set (intset)", {"set-max-intset-entries": 1024}),
        ("zset", "zset (listpack)", {"zset-max-listpack-entries": 512}),
    ],
    ids=["hash", "set", "zset"],
)
async def test_a_higher_limit_saves_what_was_said_once_all_keys_are_written_anew(server, kind, encoding, limits):
    write(server, kind)
    answer = await asked(server)
    before = used_bytes(server)
    found = [limit for limit in answer.limits if limit.encoding == encoding and limit.answered]
    told = next(limit for limit in found if limits.items() <= limit.limits.items())
    for knob, value in limits.items():
        server.admin.config_set(knob, value)
    write(server, kind)
    saved = before - used_bytes(server)
    assert told.saved_bytes.value == pytest.approx(saved, rel=0.05)
    assert told.saved_bytes.low <= saved <= told.saved_bytes.high
    assert any("not neutral" in note for note in answer.notes)


async def test_existing_keys_stay_and_a_limit_that_is_taken_back_is_not_neutral(server):
    """The two hazards that every answer tells of, as the server has them."""
    admin = server.admin
    admin.hset("user:old", mapping={f"f{n}": "v" for n in range(200)})
    admin.config_set("hash-max-listpack-entries", 512)
    admin.hset("user:old", "f1", "w")
    admin.hset("user:new", mapping={f"f{n}": "v" for n in range(200)})
    assert (admin.object("encoding", "user:old"), admin.object("encoding", "user:new")) == (b"hashtable", b"listpack")
    admin.config_set("hash-max-listpack-entries", 128)
    assert admin.object("encoding", "user:new") == b"listpack"
    admin.hset("user:new", "f1", "w")
    assert admin.object("encoding", "user:new") == b"hashtable"


async def test_compression_saves_what_was_said_once_the_client_compresses(server):
    dice = random.Random(5)
    words = [dice.randbytes(4).hex() for _ in range(300)]
    texts = {f"page:{n}": " ".join(dice.choices(words, k=dice.randrange(150, 1_500))).encode() for n in range(300)}
    for key, text in texts.items():
        server.admin.set(key, text)
    answer = await asked(server)
    before = used_bytes(server)
    (overall, pattern) = answer.compression
    assert (overall.pattern, pattern.pattern) == (None, "page:")
    for key, text in texts.items():
        server.admin.set(key, zstandard.ZstdCompressor(level=3).compress(text))
    saved = before - used_bytes(server)
    assert overall.saved_bytes.value == pytest.approx(saved, rel=0.15)
    assert overall.saved_bytes.low <= saved <= overall.saved_bytes.high


async def test_where_the_bytes_are_is_told_within_the_interval(server):
    pipe = server.admin.pipeline(transaction=False)
    for number in range(2_000):
        pipe.set(f"page:{number}", "x" * 200)
        if number % 5 == 0:
            pipe.hset(f"user:{number}", mapping={f"f{n}": "v" * 40 for n in range(150)})
    pipe.execute()
    total = sum(server.admin.memory_usage(key, samples=0) for key in server.admin.scan_iter("user:*", count=1_000))
    answer = await asked(server)
    (users,) = [group for group in answer.by_pattern.groups if group.name == "user:"]
    assert users.bytes.low <= total <= users.bytes.high
    assert {group.name for group in answer.by_encoding.groups} == {"string (raw)", "hash (hashtable)"}
    assert answer.figures["used_memory"] > answer.figures["used_memory_dataset"] > 0
    assert answer.figures["allocator_frag_ratio"] > 0
