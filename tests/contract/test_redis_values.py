"""What the look into values of a real server measures, how much it may read, and that no value leaves it."""

from __future__ import annotations

import dataclasses
import logging
import random

import numpy as np
import pytest

from cachewarden.value_sample import PASSED_OVER, VALUE_KINDS, ValueLimits
from coordination.redis_target import TargetLimits
from tests.contract.real_servers import ENGINES

pytestmark = [pytest.mark.integration, pytest.mark.parametrize("cache_server", ENGINES, indirect=True)]

SECRET_WORD = "plutonium"


async def look(target, keys: int = 500):
    return await target.observe(sample_keys=0, capture_ms=0, capture_lines=0, capture_rate=1.0, value_keys=keys)


def limited(**limits: int) -> TargetLimits:
    return TargetLimits(probe_server_share=0.2, values=ValueLimits(**limits))


def listpack_size(server, key: str) -> int:
    return server.admin.execute_command("MEMORY", "USAGE", key, "SAMPLES", 0)


async def test_collections_in_large_encodings_are_measured_as_the_server_would_pack_them(cache_server, make_target):
    dice = random.Random(4)
    admin = cache_server.admin
    admin.config_set("hash-max-listpack-entries", 0)
    admin.config_set("zset-max-listpack-entries", 0)
    admin.config_set("set-max-intset-entries", 0)
    if cache_server.engine == "valkey":
        admin.config_set("set-max-listpack-entries", 0)
    fields = {f"f{n}": dice.choice(["7", "-300", "70000", "x" * 50, "y" * 63]) for n in range(90)}
    admin.hset("user:1", mapping=fields)
    admin.sadd("page:ids", *range(100_000, 100_200))
    admin.zadd("page:top", {f"member{n}": dice.random() for n in range(70)})
    values = (await look(make_target(cache_server, value_samples=True))).values
    rows = {VALUE_KINDS[int(values.kind[row])]: number for number, row in enumerate(values.collection_row)}
    assert sorted(rows) == ["hash", "set", "zset"]
    assert [int(values.entries[rows[kind]]) for kind in ("hash", "set", "zset")] == [90, 200, 70]
    assert [int(values.longest_bytes[rows[kind]]) for kind in ("hash", "zset")] == [63, 8]
    assert [int(values.intset_width[rows[kind]]) for kind in ("hash", "set", "zset")] == [0, 4, 0]
    # The same members under the small encoding: what the server allocates is what was worked out, rounded up.
    admin.config_set("hash-max-listpack-entries", 512)
    admin.config_set("zset-max-listpack-entries", 512)
    admin.hset("user:2", mapping=fields)
    admin.zunionstore("page:too", ["page:top"])
    bare = 200 if cache_server.engine == "redis" else 100
    for kind, small in (("hash", "user:2"), ("zset", "page:too")):
        packed = int(values.elements_bytes[rows[kind]])
        assert admin.object("encoding", small) == b"listpack"
        assert packed < listpack_size(cache_server, small) < 1.2 * packed + bare


async def test_no_more_is_read_than_the_limits_allow(cache_server, make_target):
    for number in range(60):
        cache_server.admin.set(f"user:{number}", f"{number:04}" * 2_000)
        cache_server.admin.hset(f"page:{number}", mapping={f"f{n}": "z" * 70 for n in range(20)})
    values = (
        await look(make_target(cache_server, value_samples=True, limits=limited(values=12, collections=9)))
    ).values
    assert len(values.value_row) == 12
    assert np.count_nonzero(values.elements_bytes >= 0) == 9
    assert np.count_nonzero(values.elements_bytes == PASSED_OVER) == 51
    target = make_target(cache_server, value_samples=True, limits=limited(range_bytes=1_000, total_bytes=30_000))
    values = (await look(target)).values
    assert (values.plain_bytes == 1_000).all()
    assert values.read_bytes <= 30_000
    assert (values.elements_bytes == -1).all()


async def test_a_collection_with_one_huge_member_is_not_fetched(cache_server, make_target):
    cache_server.admin.hset("user:1", mapping={**{f"f{n}": "small" for n in range(500)}, "huge": "x" * 3_000_000})
    target = make_target(cache_server, value_samples=True)
    values = (await look(target)).values
    assert values.elements_bytes.tolist() == [-1]
    assert values.read_bytes == 0
    assert target._wire.ledger.commands["hgetall"] == 0


async def test_neither_values_nor_names_leave_the_adapter(cache_server, make_target, caplog):
    admin = cache_server.admin
    for number in range(30):
        admin.set(f"user:{SECRET_WORD}:{number}", f"{SECRET_WORD}{number}" * 300)
        admin.hset(f"page:{SECRET_WORD}:{number}", mapping={f"{SECRET_WORD}{n}": SECRET_WORD * 20 for n in range(40)})
        admin.sadd(f"{SECRET_WORD}:{number}", *(f"{SECRET_WORD}{n}" for n in range(600)))
    target = make_target(cache_server, value_samples=True)
    with caplog.at_level(logging.DEBUG):
        seen = await look(target)
    assert len(seen.values.value_row) == 30
    parts = [repr(dataclasses.replace(seen, values=None)), caplog.text]
    for field in dataclasses.fields(seen.values):
        part = getattr(seen.values, field.name)
        parts.append(repr(part))
        if isinstance(part, np.ndarray):
            assert part.dtype.kind == "i"
            parts.append(part.tobytes().decode("latin-1"))
    assert not any(SECRET_WORD in part for part in parts)
    # Nor is anything of them left in the adapter's own state.
    assert SECRET_WORD not in repr(vars(target._wire)) + repr(target._wire.ledger)


async def test_reading_values_makes_no_key_young_where_the_server_can_avoid_it(cache_server, make_target):
    admin = cache_server.admin
    for number in range(20):
        admin.set(f"user:{number}", f"{number:04}" * 1_000)
    idle = {}
    for number in range(20):
        while (idle_s := admin.object("idletime", f"user:{number}")) < 2:
            pass
        idle[number] = idle_s
    values = (await look(make_target(cache_server, value_samples=True))).values
    young = sum(admin.object("idletime", f"user:{number}") < idle[number] for number in idle)
    assert len(values.value_row) == 20
    assert young == values.touched_keys == (0 if cache_server.engine == "valkey" else 20)


async def test_an_empty_cache_and_keys_that_vanish_give_an_empty_sample(cache_server, make_target):
    target = make_target(cache_server, value_samples=True)
    assert len((await look(target)).values) == 0
