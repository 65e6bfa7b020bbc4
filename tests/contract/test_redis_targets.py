"""What only a real server can do to the adapter: refusals, deaths, restarts, other clients, and its own counting."""

from __future__ import annotations

import asyncio
import random
import threading

import pytest
import redis
from redis.client import NEVER_DECODE

from cachewarden.cachemodel.shards import SpatialFilter, hash_key
from cachewarden.cachemodel.trace import Op
from cachewarden.errors import StaleFencingToken, TargetRefused, TargetTimeout, TargetUnavailable
from cachewarden.messages import KnobChange, Lease, TtlRule
from coordination.redis_capture import CaptureLimits
from coordination.redis_target import TargetLimits
from coordination.redis_ttl import _Batch, _settle
from coordination.redis_wire import RedisWire, Session, command_name, lookups_of
from tests.contract.conftest import SECRET
from tests.contract.real_servers import ENGINES

pytestmark = [pytest.mark.integration, pytest.mark.parametrize("cache_server", ENGINES, indirect=True)]

HELD = Lease(service="shop", holder="us", epoch=3, expires_at_ms=2**42)
SAMPLES = KnobChange(knob="maxmemory-samples", before="5", after="7")
RULE = TtlRule(pattern="user:", written_ttl_ms=3_000, extended_ttl_ms=60_000, max_staleness_ms=60_000)
QUICK = TargetLimits(timeout_s=0.3, probe_server_share=0.2)


class Traffic:
    """Another client that reads and writes all the time and counts what it hit and missed."""

    def __init__(self, port: int, keys: int = 500) -> None:
        self._client = redis.Redis(port=port, protocol=2)
        self._keys = keys
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.hits = self.misses = 0

    def _run(self) -> None:
        dice = random.Random(7)
        while not self._ends.is_set():
            pipe = self._client.pipeline(transaction=False)
            for _ in range(20):
                pipe.get(f"user:{dice.randrange(self._keys * 2)}")
            for found in pipe.execute():
                self.hits += found is not None
                self.misses += found is None
            self._client.set(f"user:{dice.randrange(self._keys)}", b"x" * 50)

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()
        self._client.close()


async def started(target, command: str) -> None:
    """Wait until the adapter has sent its first `command`."""
    while target._wire.ledger.commands[command] == 0:
        await asyncio.sleep(0.005)


# --- Whose lookups are they


@pytest.mark.parametrize("key", ["there", "missing", "hash", "set", "zset"])
async def test_every_command_of_ours_is_booked_as_the_server_counts_it(cache_server, key):
    cache_server.admin.set("there", "1", ex=100)
    cache_server.admin.hset("hash", "field", "1")
    cache_server.admin.sadd("set", "member")
    cache_server.admin.zadd("zset", {"member": 1})
    wire = RedisWire("shop", cache_server.url, username=None, password=None, timeout_s=5.0)
    commands = [
        ("GET", key), ("EXISTS", key, key), ("TOUCH", key, "there"), ("PTTL", key), ("PEXPIRETIME", key), ("OBJECT", "IDLETIME", key),
        ("OBJECT", "FREQ", key), ("OBJECT", "ENCODING", key), ("MEMORY", "USAGE", key, "SAMPLES", 5), ("RANDOMKEY",), ("DBSIZE",),
        ("SCAN", 0, "COUNT", 100), ("WATCH", key), ("UNWATCH",), ("PEXPIREAT", key, 2**42, "GT"), ("TIME",), ("PING",), ("INFO",),
        ("CONFIG", "GET", "maxmemory"), ("LATENCY", "HISTOGRAM"), ("EVAL", "return 1", 0), ("COMMAND", "INFO", "get"), ("ACL", "WHOAMI"),
        ("TYPE", key), ("HLEN", key), ("SCARD", key), ("ZCARD", key), ("GETRANGE", key, 0, 9), ("HGETALL", key), ("SMEMBERS", key),
        ("ZRANGE", key, 0, -1, "WITHSCORES"), ("MEMORY", "USAGE", key, "SAMPLES", 1), ("DUMP", key),
    ]  # fmt: skip
    for command in commands:
        hits, misses = cache_server.lookups()
        (reply,) = await wire.ask([command])
        now_hits, now_misses = cache_server.lookups()
        assert lookups_of(command, reply) == (now_hits - hits, now_misses - misses), command_name(command)
    if key != "missing":
        dump = cache_server.admin.execute_command("DUMP", key, **{NEVER_DECODE: True})
        hits, misses = cache_server.lookups()
        (reply,) = await wire.ask([("RESTORE", key, 0, dump, "REPLACE", "ABSTTL")])
        assert (reply, cache_server.lookups()) == (b"OK", (hits, misses))
    await wire.close()


async def test_the_applications_hits_are_exactly_the_servers_minus_ours_beside_traffic(cache_server, make_target):
    for number in range(500):
        cache_server.admin.set(f"user:{number}", b"x" * 50, px=2_900 if number % 2 else None)
    target = make_target(cache_server)
    hits, misses = cache_server.lookups()
    with Traffic(cache_server.port) as traffic:
        await target.raise_fence(HELD)
        await target.write_knobs(HELD, [SAMPLES])
        # Looks, hot keys and TTL passes at the same time share one ledger.
        await asyncio.gather(
            *(target.observe(sample_keys=150, capture_ms=0, capture_lines=0, capture_rate=1.0) for _ in range(2)),
            target.collect_hot_keys(50),
            target.extend_ttls(HELD, RULE, 0, 10_000),
        )
        await target.touch_hot_keys(HELD, 3, 5_000)
    seen = await target.counters()
    assert traffic.hits > 0
    assert traffic.misses > 0
    assert seen.own_hits_total > 300
    assert int(seen.info["keyspace_hits"]) - hits - seen.own_hits_total == traffic.hits
    assert int(seen.info["keyspace_misses"]) - misses - seen.own_misses_total == traffic.misses


async def test_info_read_in_the_middle_of_our_probes_still_agrees_with_the_ledger(cache_server, make_target):
    for number in range(300):
        cache_server.admin.set(f"user:{number}", "1")
    target = make_target(cache_server)
    base_hits, base_misses = cache_server.lookups()
    probing = asyncio.create_task(target.observe(sample_keys=290, capture_ms=0, capture_lines=0, capture_rate=1.0))
    looks = 0
    while not probing.done():
        seen = await target.counters()
        looks += 1
        assert int(seen.info["keyspace_hits"]) - base_hits == seen.own_hits_total
        assert int(seen.info["keyspace_misses"]) - base_misses == seen.own_misses_total
    assert looks > 1
    assert len((await probing).sample) > 200


async def test_a_look_says_what_it_has_cost(cache_server, make_target):
    for number in range(300):
        cache_server.admin.set(f"user:{number}", "1")
    seen = await make_target(cache_server).observe(sample_keys=100, capture_ms=0, capture_lines=0, capture_rate=1.0)
    assert seen.cost.commands > 400
    assert seen.cost.server_us > 0
    assert seen.round_trip_us > 0
    assert "set" in seen.latency_us
    counts = [count for _, count in seen.latency_us["set"]]
    assert counts == sorted(counts)
    assert counts[-1] == 300


# --- Refusals


async def test_a_user_who_may_not_configure_is_found_out_by_asking(cache_server, make_target):
    cache_server.admin.execute_command(
        "ACL", "SETUSER", "reader", "on", ">secret", "~*", "+@all", "-config|set", "-monitor", "-eval"
    )
    target = make_target(cache_server, username="reader", password="secret")
    seen = await target.counters()
    assert seen.capabilities.config_get
    assert not seen.capabilities.config_set
    assert not seen.capabilities.monitor
    assert not seen.capabilities.script
    assert set(seen.capabilities.denied) == {"CONFIG SET", "MONITOR", "EVAL"}
    assert "permission" in seen.capabilities.denied["CONFIG SET"]
    cache_server.admin.set("cachewarden:fence", "3")
    with pytest.raises(TargetRefused, match="permission"):
        await target.write_knobs(HELD, [SAMPLES])
    with pytest.raises(TargetRefused, match="permission"):
        await target.raise_fence(HELD)
    assert cache_server.admin.config_get("maxmemory-samples")["maxmemory-samples"] == "5"


async def test_where_reading_the_configuration_is_denied_nothing_is_written(cache_server, make_target):
    cache_server.admin.execute_command("ACL", "SETUSER", "blind", "on", ">secret", "~*", "+@all", "-config|get")
    target = make_target(cache_server, username="blind", password="secret")
    seen = await target.counters()
    assert not seen.capabilities.config_get
    assert seen.knobs == {}
    assert "permission" in seen.incomplete["knobs"]
    await target.raise_fence(HELD)
    with pytest.raises(TargetRefused):
        await target.write_knobs(HELD, [SAMPLES])
    assert cache_server.admin.config_get("maxmemory-samples")["maxmemory-samples"] == "5"


@pytest.mark.parametrize("command", ["multi", "exec", "watch"])
async def test_a_user_without_transactions_cannot_be_made_to_write_unfenced(cache_server, make_target, command):
    cache_server.admin.execute_command("ACL", "SETUSER", "torn", "on", ">secret", "~*", "+@all", f"-{command}")
    target = make_target(cache_server, username="torn", password="secret")
    await target.raise_fence(HELD)
    with pytest.raises(TargetRefused, match="permission"):
        await target.write_knobs(HELD, [SAMPLES])
    assert cache_server.admin.config_get("maxmemory-samples")["maxmemory-samples"] == "5"


async def test_a_managed_service_without_config_and_object_still_gives_a_look(cache_server, make_target):
    cache_server.admin.execute_command(
        "ACL",
        "SETUSER",
        "managed",
        "on",
        ">secret",
        "~*",
        "+@all",
        "-config",
        "-object",
        "-monitor",
        "-acl",
        "-latency",
        "-client",
        "+client|setname",
    )
    cache_server.admin.set("user:1", "1")
    target = make_target(cache_server, username="managed", password="secret")
    seen = await target.observe(sample_keys=10, capture_ms=100, capture_lines=100, capture_rate=1.0)
    assert not seen.capabilities.object_idletime
    assert not seen.capabilities.object_frequency
    assert set(seen.incomplete) == {"knobs", "latency", "access"}
    assert seen.sample.idle_ms.tolist() == [-1]
    assert seen.sample.size_bytes[0] > 0


async def test_a_capture_needs_the_permission_of_the_fleet_file(cache_server, make_target):
    target = make_target(cache_server, capture=False)
    seen = await target.observe(sample_keys=0, capture_ms=100, capture_lines=100, capture_rate=1.0)
    assert seen.access is None
    assert not seen.capabilities.monitor
    assert "fleet file" in seen.incomplete["access"]


async def test_a_wrong_password_is_a_refusal(cache_server, make_target):
    cache_server.admin.execute_command("ACL", "SETUSER", "reader", "on", ">secret", "~*", "+@all")
    with pytest.raises(TargetRefused):
        await make_target(cache_server, username="reader", password="wrong").counters()


async def test_a_fence_key_that_holds_something_else_is_not_overwritten(cache_server, make_target):
    cache_server.admin.set("cachewarden:fence", "somebody's value")
    target = make_target(cache_server)
    with pytest.raises(TargetRefused, match="no fencing token"):
        await target.raise_fence(HELD)
    with pytest.raises(StaleFencingToken):
        await target.write_knobs(HELD, [SAMPLES])
    assert cache_server.admin.get("cachewarden:fence") == b"somebody's value"


async def test_a_fence_that_moves_between_the_check_and_the_write_stops_the_write(cache_server, make_target):
    target = make_target(cache_server)
    await target.raise_fence(HELD)
    async with target._wire.session() as session:
        # The other optimizer comes just when our WATCH and GET have been answered.
        check = session._check_fence

        async def slow_check(token, lease):
            await check(token, lease)
            cache_server.admin.set("cachewarden:fence", "4")

        session._check_fence = slow_check
        with pytest.raises(StaleFencingToken) as caught:
            await session.write_fenced("cachewarden:fence", HELD, [("CONFIG", "SET", "maxmemory-samples", "7")])
    assert caught.value.found == 4
    assert cache_server.admin.config_get("maxmemory-samples")["maxmemory-samples"] == "5"


async def test_a_knob_that_the_server_does_not_take_leaves_all_others_as_they_were(
    cache_server, make_target, monkeypatch
):
    target = make_target(cache_server)
    await target.raise_fence(HELD)
    async with target._wire.session() as session:
        with pytest.raises(TargetRefused):
            await session.write_fenced(
                "cachewarden:fence", HELD, [("CONFIG", "SET", "maxmemory-samples", "7", "maxmemory", "much")]
            )
    assert cache_server.admin.config_get("maxmemory-samples")["maxmemory-samples"] == "5"


# --- Deaths


async def test_a_server_that_freezes_before_a_write_is_unavailable_and_during_it_leaves_doubt(
    cache_server, make_target
):
    target = make_target(cache_server, limits=QUICK)
    await target.raise_fence(HELD)
    cache_server.freeze()
    try:
        with pytest.raises(TargetUnavailable):
            await target.write_knobs(HELD, [SAMPLES])
    finally:
        cache_server.thaw()
    async with target._wire.session() as session:
        check = session._check_fence

        async def freezing_check(token, lease):
            await check(token, lease)
            cache_server.freeze()

        session._check_fence = freezing_check
        try:
            with pytest.raises(TargetTimeout) as caught:
                await session.write_fenced("cachewarden:fence", HELD, [("CONFIG", "SET", "maxmemory-samples", "7")])
        finally:
            cache_server.thaw()
    assert caught.value.outcome_unknown
    # The server had the command in its buffer: reading back is the only way to know.
    assert (await target.read_knobs(["maxmemory-samples"]))["maxmemory-samples"] in ("5", "7")


async def test_a_server_that_dies_while_it_is_looked_at_gives_what_was_seen_until_then(cache_server, make_target):
    for number in range(2_000):
        cache_server.admin.set(f"user:{number}", "1")
    target = make_target(cache_server, limits=TargetLimits(timeout_s=1.0, probe_server_share=0.0005))
    looking = asyncio.create_task(target.observe(sample_keys=1_000, capture_ms=0, capture_lines=0, capture_rate=1.0))
    await started(target, "pttl")
    cache_server.kill()
    seen = await looking
    assert seen.sample is None
    assert "does not answer" in seen.incomplete["sample"]
    assert seen.info["run_id"]


async def test_a_server_that_dies_during_a_capture_is_reported_in_the_look(cache_server, make_target):
    target = make_target(cache_server, limits=TargetLimits(timeout_s=1.0))
    looking = asyncio.create_task(
        target.observe(sample_keys=0, capture_ms=20_000, capture_lines=10_000, capture_rate=1.0)
    )
    await started(target, "monitor")
    cache_server.kill()
    seen = await looking
    assert seen.access is None
    assert "does not answer" in seen.incomplete["access"]


async def test_after_a_restart_the_adapter_sees_another_run_other_settings_and_no_fence(cache_server, make_target):
    target = make_target(cache_server)
    await target.raise_fence(HELD)
    await target.write_knobs(HELD, [SAMPLES])
    before = await target.counters()
    cache_server.kill()
    cache_server.start("--maxmemory", "10mb", "--maxmemory-policy", "allkeys-lfu")
    after = await target.counters()
    assert after.info["run_id"] != before.info["run_id"]
    assert (after.knobs["maxmemory"], after.knobs["maxmemory-samples"]) == (str(10 << 20), "5")
    assert after.capabilities.object_frequency
    with pytest.raises(StaleFencingToken) as caught:
        await target.write_knobs(HELD, [SAMPLES])
    assert caught.value.found is None


async def test_an_adapter_made_before_its_server_finds_it_later(cache_server, make_target):
    cache_server.kill()
    target = make_target(cache_server)
    with pytest.raises(TargetUnavailable):
        await target.counters()
    cache_server.start()
    assert (await target.counters()).info["run_id"]


# --- Hot keys and TTLs on a server


async def test_touched_keys_keep_a_frequency_after_the_switch_to_lfu(cache_server, make_target):
    cache_server.admin.config_set("maxmemory-policy", "allkeys-lru")
    for number in range(20):
        cache_server.admin.set(f"user:{number}", "1")
    target = make_target(cache_server)
    await target.raise_fence(HELD)
    assert await target.collect_hot_keys(50) == 20
    await target.write_knobs(HELD, [KnobChange(knob="maxmemory-policy", before="allkeys-lru", after="allkeys-lfu")])
    assert await target.touch_hot_keys(HELD, 15, 100_000) == 20
    assert min(cache_server.admin.object("freq", f"user:{number}") for number in range(20)) >= 1


async def test_a_rate_bounds_how_many_keys_one_touch_takes(cache_server, make_target):
    for number in range(30):
        cache_server.admin.set(f"user:{number}", "1")
    target = make_target(cache_server)
    await target.raise_fence(HELD)
    await target.collect_hot_keys(30)
    assert await target.touch_hot_keys(HELD, 1, 20) == 30
    # Six keys twice, then 24 keys once: no more than 20 touches in a command.
    assert cache_server.admin.info("commandstats")["cmdstat_touch"]["calls"] == 3
    with pytest.raises(ValueError, match="at least 1"):
        await target.touch_hot_keys(HELD, 1, 0)


@pytest.mark.parametrize("seed", range(3))
async def test_no_key_outlives_the_extended_ttl_whatever_the_application_and_the_passes_do(
    cache_server, make_target, seed
):
    dice = random.Random(seed)
    target = make_target(cache_server)
    await target.raise_fence(HELD)
    names = [f"user:{number}" for number in range(60)]
    written_ms: dict[str, int] = {}

    def server_ms() -> int:
        seconds, micros = cache_server.admin.time()
        return seconds * 1000 + micros // 1000

    async def passes() -> None:
        for _ in range(25):
            restore = dice.random() < 0.3
            cursor = -1
            while cursor != 0:
                cursor = (await target.extend_ttls(HELD, RULE, max(0, cursor), 20, restore=restore)).cursor

    async def application() -> None:
        for _ in range(400):
            name, what = dice.choice(names), dice.random()
            if what < 0.7:
                written_ms.pop(name, None)
                cache_server.admin.set(name, "1", px=dice.choice([3_000, 3_000, 2_000, 500]))
                # Later than the write by a little, so the check below errs towards strict by no more than that.
                written_ms[name] = server_ms()
            elif what < 0.8:
                cache_server.admin.delete(name)
            elif what < 0.9:
                cache_server.admin.set(name, "1")
                written_ms.pop(name, None)
            await asyncio.sleep(0)
            for other, at_ms in written_ms.items():
                assert cache_server.admin.pexpiretime(other) <= at_ms + RULE.extended_ttl_ms

    await asyncio.gather(passes(), application())
    for name in set(names) - set(written_ms):
        assert cache_server.admin.ttl(name) in (-1, -2)


@pytest.mark.parametrize("restore", [False, True], ids=["extend", "restore"])
async def test_a_key_that_loses_its_ttl_between_the_look_and_the_write_gets_none(cache_server, make_target, restore):
    admin, target = cache_server.admin, make_target(cache_server)
    await target.raise_fence(HELD)
    admin.set("user:1", "1")
    admin.pexpireat("user:1", (target._clock.now_ms() // 1000 + 2) * 1000 + (777 if restore else 100))

    class Meddling(Session):
        """The application rewrites the key without a TTL just before our transaction."""

        async def write_all_watched(self, commands):
            admin.set("user:1", "2")
            return await super().write_all_watched(commands)

    async with target._wire.session() as session:
        meddling = Meddling(target._wire, session._connection)
        rule = TtlRule(
            pattern="user:", written_ttl_ms=1_000 if restore else 3_000, extended_ttl_ms=60_000, max_staleness_ms=60_000
        )
        batch = _Batch(target._wire, meddling, "cachewarden:fence", HELD, rule, restore, lfu=False)
        settled = await _settle(batch, [b"user:1"])
    assert settled == 0
    assert admin.get("user:1") == b"2"
    assert admin.ttl("user:1") == -1


async def test_prefixes_are_taken_literally(cache_server, make_target):
    for name in ("a*b:1", "aXb:1", "a*b[1]?\\:2", "a*b[1]?\\^-"):
        cache_server.admin.set(name, "1", px=2_500)
    target = make_target(cache_server)
    await target.raise_fence(HELD)
    for prefix, wanted in (("a*b:", 1), ("a*b[1]?\\", 2), ("a*b[1]?\\^-", 1), ("a?b", 0)):
        rule = TtlRule(pattern=prefix, written_ttl_ms=3_000, extended_ttl_ms=60_000, max_staleness_ms=60_000)
        examined, cursor = 0, -1
        while cursor != 0:
            step = await target.extend_ttls(HELD, rule, max(cursor, 0), 100)
            examined, cursor = examined + step.examined, step.cursor
        assert examined == wanted, prefix


# --- Captures


async def capture(target, *, milliseconds: int = 10_000, lines: int = 100_000, rate: float = 1.0):
    seen = await target.observe(sample_keys=0, capture_ms=milliseconds, capture_lines=lines, capture_rate=rate)
    assert "access" not in seen.incomplete, seen.incomplete
    return seen


async def test_a_capture_brings_the_reads_and_writes_of_others_and_none_of_ours(cache_server, make_target):
    target = make_target(cache_server)
    capturing = asyncio.create_task(capture(target, milliseconds=700))
    await started(target, "monitor")
    admin = cache_server.admin
    admin.get("user:1")
    admin.set("user:1", b'\x00"\\ \r\n' * 20, ex=60)
    admin.mget("user:1", "page:\xff\n2")
    admin.eval("return redis.call('get', KEYS[1])", 1, "user:lua")
    admin.execute_command("hSeT", "page:h", "f", "v")
    admin.unlink("user:1")
    await target.collect_hot_keys(10)
    seen = await capturing
    rows = list(
        zip(
            seen.access.trace.key.tolist(),
            seen.access.trace.op.tolist(),
            seen.access.trace.ttl_ms.tolist(),
            strict=True,
        )
    )
    user, page, hashed = (hash_key(SECRET, name.encode()) for name in ("user:1", "page:\xff\n2", "page:h"))
    assert rows == [
        (user, Op.READ, 0), (user, Op.WRITE, 60_000), (user, Op.READ, 0), (page, Op.READ, 0), (hashed, Op.WRITE, 0), (user, Op.DELETE, 0),
    ]  # fmt: skip
    assert 120 < seen.access.trace.size_bytes[1] < 300
    assert [seen.access.patterns[number] for number in seen.access.pattern] == ["user:"] * 3 + ["page:"] * 2 + ["user:"]
    assert seen.access.aborted is None
    assert seen.cost.monitor_lines >= 6


async def test_a_capture_keeps_all_accesses_of_the_keys_that_the_filter_keeps(cache_server, make_target):
    target = make_target(cache_server)
    capturing = asyncio.create_task(capture(target, milliseconds=500, rate=0.25))
    await started(target, "monitor")
    for _ in range(3):
        for number in range(200):
            cache_server.admin.get(f"user:{number}")
    seen = await capturing
    kept = SpatialFilter(0.25)
    hashes = [hash_key(SECRET, f"user:{number}".encode()) for number in range(200)]
    assert sorted(seen.access.trace.key.tolist()) == sorted(3 * [h for h in hashes if kept.keeps(h)])


async def test_a_capture_loses_no_line_of_a_burst(cache_server, make_target):
    target = make_target(cache_server, limits=TargetLimits(capture=CaptureLimits(lines_per_s=1e9, lag_ms=60_000.0)))
    capturing = asyncio.create_task(capture(target, lines=20_001))
    await started(target, "monitor")
    pipe = cache_server.admin.pipeline(transaction=False)
    for number in range(20_000):
        pipe.get(f"user:{number % 100}")
    await asyncio.to_thread(pipe.execute)
    seen = await capturing
    # Our own pings make the count of lines reach its bound; everything before them is there.
    assert "bound" in seen.access.aborted
    assert len(seen.access.trace) == 20_000


async def test_a_capture_ends_at_its_bound_of_lines(cache_server, make_target):
    target = make_target(cache_server)
    with Traffic(cache_server.port):
        seen = await capture(target, lines=300)
    assert "bound of 300 lines" in seen.access.aborted
    assert seen.access.lines_seen < 300 + 1_000


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (CaptureLimits(lines_per_s=100.0), "too many lines"),
        (CaptureLimits(bytes_per_s=1_000.0, lines_per_s=1e9), "too much data"),
        (CaptureLimits(ping_factor=0.0, ping_margin_ms=0.0, lines_per_s=1e9), "server slowed"),
        (CaptureLimits(lag_ms=-10_000.0, lines_per_s=1e9), "reader behind"),
        (CaptureLimits(output_buffer_bytes=-1, lines_per_s=1e9), "wait in the server"),
    ],
    ids=["lines", "bytes", "ping", "lag", "buffer"],
)
async def test_the_watchdog_ends_a_capture_that_hurts(cache_server, make_target, limits, reason):
    target = make_target(cache_server, limits=TargetLimits(probe_server_share=0.2, capture=limits))
    with Traffic(cache_server.port):
        seen = await capture(target, milliseconds=30_000, lines=10_000_000)
    assert reason in seen.access.aborted
    assert (
        b"cmd=monitor" not in cache_server.admin.execute_command("CLIENT", "LIST", "TYPE", "normal").__repr__().encode()
    )


async def test_accesses_of_another_database_are_left_out(cache_server, make_target):
    target = make_target(cache_server)
    other = redis.Redis(port=cache_server.port, db=3, protocol=2)
    other.ping()
    capturing = asyncio.create_task(capture(target, milliseconds=300))
    await started(target, "monitor")
    other.get("user:1")
    cache_server.admin.get("user:2")
    seen = await capturing
    other.close()
    assert seen.access.trace.key.tolist() == [hash_key(SECRET, b"user:2")]
