"""Storing collections again on real servers: what becomes small, what stays as it is, and who wins a race."""

from __future__ import annotations

import asyncio
import random
import threading

import pytest
import redis

from cachewarden.errors import StaleFencingToken, TargetRefused
from cachewarden.messages import KnobChange, Lease
from coordination.redis_reencode import VALUE_BYTES_MAX
from tests.contract.real_servers import ENGINES

pytestmark = [pytest.mark.integration, pytest.mark.parametrize("cache_server", ENGINES, indirect=True)]

HELD = Lease(service="shop", holder="us", epoch=3, expires_at_ms=2**42)
RAISED = KnobChange(knob="hash-max-listpack-entries", before="128", after="512")


@pytest.fixture
async def target(cache_server, make_target):
    cache_server.admin.config_set("hash-max-listpack-entries", 128)
    made = make_target(cache_server, reencode=True, config_rewrite=True)
    await made.raise_fence(HELD)
    return made


def hash_of(fields, size=8):
    return {f"f{i}": "x" * size for i in range(fields)}


def encoding(server, key):
    return server.admin.object("ENCODING", key).decode()


async def whole(target, lease=HELD, max_keys=1_000):
    cursor = examined = reencoded = 0
    while True:
        done = await target.reencode_keys(lease, cursor, max_keys, 100_000)
        cursor, examined, reencoded = done.cursor, examined + done.examined, reencoded + done.reencoded
        if cursor == 0:
            return examined, reencoded


async def raise_limit(target, *changes):
    await target.write_knobs(HELD, changes or [RAISED])


async def test_existing_hashes_become_small_and_keep_value_deadline_and_idle_time(cache_server, target):
    admin = cache_server.admin
    for i in range(50):
        admin.hset(f"user:{i}", mapping=hash_of(200))
    admin.pexpire("user:1", 600_000)
    deadline, used = admin.pexpiretime("user:1"), admin.memory_usage("user:0")
    await raise_limit(target)
    assert encoding(cache_server, "user:0") == "hashtable"
    assert await whole(target) == (50, 50)
    assert encoding(cache_server, "user:0") == "listpack"
    assert admin.memory_usage("user:0") < used / 2
    assert {k.decode(): v.decode() for k, v in admin.hgetall("user:1").items()} == hash_of(200)
    assert admin.pexpiretime("user:1") == deadline
    assert admin.ttl("user:2") == -1


async def test_a_key_looks_as_idle_as_before(cache_server, target):
    admin = cache_server.admin
    admin.hset("user:old", mapping=hash_of(200))
    dump = redis.Redis(port=cache_server.port, protocol=2).dump("user:old")
    admin.execute_command("RESTORE", "user:old", 0, dump, "REPLACE", "IDLETIME", 5_000)
    await raise_limit(target)
    assert await whole(target) == (1, 1)
    assert encoding(cache_server, "user:old") == "listpack"
    assert 4_990 < admin.object("IDLETIME", "user:old") < 5_100


async def test_under_lfu_a_key_keeps_its_frequency(cache_server, target):
    admin = cache_server.admin
    admin.config_set("maxmemory-policy", "allkeys-lfu")
    admin.hset("user:hot", mapping=hash_of(200))
    dump = redis.Redis(port=cache_server.port, protocol=2).dump("user:hot")
    admin.execute_command("RESTORE", "user:hot", 0, dump, "REPLACE", "FREQ", 77)
    await raise_limit(target)
    assert await whole(target) == (1, 1)
    assert 76 <= admin.object("FREQ", "user:hot") <= 77


async def test_sets_and_sorted_sets_become_small_too(cache_server, target):
    admin = cache_server.admin
    admin.zadd("user:z", {f"m{i}": i for i in range(200)})
    admin.sadd("user:s", *range(600))
    zset = KnobChange(knob="zset-max-listpack-entries", before="128", after="512")
    intset = KnobChange(knob="set-max-intset-entries", before="512", after="1024")
    await raise_limit(target, zset, intset)
    assert (await whole(target))[1] == 2
    assert (encoding(cache_server, "user:z"), encoding(cache_server, "user:s")) == ("listpack", "intset")
    assert admin.zscore("user:z", "m7") == 7.0
    assert admin.scard("user:s") == 600


async def test_what_would_not_become_small_or_is_not_ours_is_not_touched(cache_server, target):
    admin = cache_server.admin
    admin.hset("user:long", mapping=hash_of(900))
    admin.hset("user:small", mapping=hash_of(3))
    admin.hset("user:heavy", mapping=hash_of(200, size=VALUE_BYTES_MAX // 150))
    admin.set("user:text", "x")
    admin.hset("session:1", mapping=hash_of(200))
    await raise_limit(target)
    calls = admin.info("commandstats")
    assert (await whole(target))[1] == 0
    assert "cmdstat_restore" not in admin.info("commandstats")
    assert "cmdstat_restore" not in calls
    assert encoding(cache_server, "session:1") == "hashtable"


async def test_patterns_that_match_nothing_end_and_are_bounded(cache_server, target):
    for i in range(3_000):
        cache_server.admin.set(f"other:{i}", "x")
    done = await target.reencode_keys(HELD, 0, 10, 100_000)
    assert done.examined == 0
    assert done.cursor != 0
    assert await whole(target, max_keys=100) == (0, 0)


async def test_a_pass_in_small_steps_reaches_every_key(cache_server, target):
    for i in range(300):
        cache_server.admin.hset(f"user:{i}", mapping=hash_of(150))
    await raise_limit(target)
    examined, reencoded = await whole(target, max_keys=20)
    assert examined >= 300
    assert reencoded == 300


async def test_no_key_is_stored_once_the_fence_has_moved(cache_server, target):
    cache_server.admin.hset("user:1", mapping=hash_of(200))
    await raise_limit(target)
    cache_server.admin.set("cachewarden:fence", 4)
    with pytest.raises(StaleFencingToken):
        await whole(target)
    assert encoding(cache_server, "user:1") == "hashtable"


async def test_a_writer_beside_us_loses_nothing(cache_server, target):
    """Every field that another client was told is stored is there in the end, whatever we stored in between."""
    admin = cache_server.admin
    for i in range(40):
        admin.hset(f"user:{i}", mapping=hash_of(130))
    await raise_limit(target)
    stop, written = threading.Event(), {}

    def write():
        client, dice = redis.Redis(port=cache_server.port, protocol=2), random.Random(3)
        while not stop.is_set():
            key, value = dice.randrange(40), str(dice.random())
            client.hset(f"user:{key}", "own", value)
            written[key] = value
            if dice.random() < 0.02:
                client.delete(f"user:{key}")
                client.hset(f"user:{key}", mapping=hash_of(130) | {"own": value})
        client.close()

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(5):
            await whole(target)
            await asyncio.sleep(0.05)
    finally:
        stop.set()
        thread.join()
    assert len(written) == 40
    assert {k: admin.hget(f"user:{k}", "own").decode() for k in written} == written


async def test_a_key_that_changes_its_type_meanwhile_is_left_as_it_is(cache_server, target, monkeypatch):
    admin = cache_server.admin
    admin.hset("user:1", mapping=hash_of(200))
    await raise_limit(target)
    from coordination import redis_reencode

    plain = redis_reencode._candidates

    async def candidates(*arguments):
        found = await plain(*arguments)
        admin.set("user:1", "a string now")
        return found

    monkeypatch.setattr(redis_reencode, "_candidates", candidates)
    await whole(target)
    assert admin.get("user:1") == b"a string now"


async def test_a_full_cache_that_refuses_is_told_and_loses_nothing(cache_server, target):
    admin = cache_server.admin
    for i in range(20):
        admin.hset(f"user:{i}", mapping=hash_of(200))
    await raise_limit(target)
    admin.config_set("maxmemory", admin.info("memory")["used_memory"] - 1)
    with pytest.raises(TargetRefused, match=r"(?i)memory"):
        await whole(target)
    assert all(admin.hlen(f"user:{i}") == 200 for i in range(20))


async def test_a_user_without_restore_is_told(cache_server, make_target):
    admin = cache_server.admin
    admin.execute_command("ACL", "SETUSER", "limited", "on", ">secret", "~*", "+@all", "-restore")
    limited = make_target(cache_server, password="secret", username="limited", reencode=True)
    await limited.raise_fence(HELD)
    admin.config_set("hash-max-listpack-entries", 128)
    admin.hset("user:1", mapping=hash_of(200))
    admin.config_set("hash-max-listpack-entries", 512)
    with pytest.raises(TargetRefused, match="RESTORE"):
        await limited.reencode_keys(HELD, 0, 100, 1_000)
    assert admin.hlen("user:1") == 200


async def test_our_lookups_are_not_the_applications(cache_server, target):
    for i in range(60):
        cache_server.admin.hset(f"user:{i}", mapping=hash_of(150))
    await raise_limit(target)
    before = await target.counters()
    await whole(target)
    after = await target.counters()
    for name, own in (("keyspace_hits", "own_hits_total"), ("keyspace_misses", "own_misses_total")):
        counted = int(after.info[name]) - int(before.info[name])
        assert counted == getattr(after, own) - getattr(before, own)


# --- The server's file


async def test_without_a_file_nothing_is_rewritten_and_the_reason_is_told(cache_server, target):
    assert "without a configuration file" in await target.rewrite_config(HELD)


async def test_what_was_set_outlives_the_process_where_the_file_was_rewritten(cache_server, target, tmp_path):
    file = tmp_path / "server.conf"
    cache_server.kill()
    file.write_text(f'port {cache_server.port}\nbind 127.0.0.1\nsave ""\ndir {tmp_path}\n')
    cache_server.start_with_file(file)
    await target.raise_fence(HELD)
    await target.write_knobs(HELD, [KnobChange(knob="maxmemory-samples", before="5", after="8")])
    assert await target.rewrite_config(HELD) is None
    cache_server.kill()
    cache_server.start_with_file(file)
    assert cache_server.admin.config_get("maxmemory-samples")["maxmemory-samples"] == "8"


async def test_a_server_that_refuses_to_rewrite_is_a_reason_and_no_error(cache_server, make_target, tmp_path):
    file = tmp_path / "server.conf"
    cache_server.kill()
    file.write_text(f'port {cache_server.port}\nbind 127.0.0.1\nsave ""\ndir {tmp_path}\n')
    cache_server.start_with_file(file)
    cache_server.admin.execute_command("ACL", "SETUSER", "limited", "on", ">secret", "~*", "+@all", "-config|rewrite")
    limited = make_target(cache_server, password="secret", username="limited", config_rewrite=True)
    await limited.raise_fence(HELD)
    assert "refuses CONFIG REWRITE" in await limited.rewrite_config(HELD)


async def test_a_fence_that_moved_rewrites_no_file(cache_server, target, tmp_path):
    file = tmp_path / "server.conf"
    cache_server.kill()
    file.write_text(f'port {cache_server.port}\nbind 127.0.0.1\nsave ""\ndir {tmp_path}\n')
    cache_server.start_with_file(file)
    cache_server.admin.set("cachewarden:fence", 9)
    before = file.read_text()
    with pytest.raises(StaleFencingToken):
        await target.rewrite_config(HELD)
    assert file.read_text() == before
