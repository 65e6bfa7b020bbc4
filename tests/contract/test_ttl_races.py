"""What another hand does to keys while a pass over them runs: whatever it set, it finds as it left it."""

from __future__ import annotations

import asyncio
import random
import threading
import time

import pytest
import redis

from cachewarden.errors import StaleFencingToken
from cachewarden.messages import KnobChange, Lease, TtlRule
from coordination import redis_reencode, redis_ttl
from coordination.redis_wire import Session
from tests.contract.real_servers import ENGINES

pytestmark = [pytest.mark.integration, pytest.mark.parametrize("cache_server", ENGINES, indirect=True)]

HELD = Lease(service="shop", holder="us", epoch=3, expires_at_ms=2**42)
LONGER = TtlRule(pattern="user:", written_ttl_ms=30_000, extended_ttl_ms=60_000, max_staleness_ms=60_000)
UNREAD = TtlRule(pattern="user:", written_ttl_ms=0, extended_ttl_ms=60_000, max_staleness_ms=60_000, unread_ms=2_000)
VALUES = {"string": b"text", "hash": {b"f": b"v"}, "set": {b"m"}, "zset": [(b"m", 1.0)]}


@pytest.fixture
async def target(cache_server, make_target):
    made = make_target(cache_server, reencode=True)
    await made.raise_fence(HELD)
    return made


@pytest.fixture
def just_before(monkeypatch):
    """Return how to make a hand act once, between the look of a pass and its write."""

    def arm(act):
        plain, acted = Session.write_all_watched, []

        async def write_all_watched(self, commands):
            if not acted:
                acted.append(True)
                act()
            return await plain(self, commands)

        monkeypatch.setattr(Session, "write_all_watched", write_all_watched)
        return acted

    return arm


async def so_that(condition, timeout_s=20.0):
    """Wait until it is so."""
    ends_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < ends_s
        await asyncio.sleep(0.05)


def store(admin, name, left_ms):
    """Store a key whose deadline carries none of the marks of our passes, as one in three hundred would by chance."""
    admin.set(name, "x", pxat=(admin.time()[0] * 1000 + left_ms) // 1000 * 1000 - 500)


async def whole(target, rule, *, restore=False, known_ms=0):
    cursor, extended = 0, 0
    while True:
        done = await target.extend_ttls(HELD, rule, cursor, 1_000, restore, known_ms)
        cursor, extended = done.cursor, extended + done.extended
        if cursor == 0:
            return extended


def make(admin, name, kind):
    """Make a key anew, of another type."""
    admin.delete(name)
    if kind == "string":
        admin.set(name, VALUES["string"])
    elif kind == "hash":
        admin.hset(name, mapping=VALUES["hash"])
    elif kind == "set":
        admin.sadd(name, *VALUES["set"])
    else:
        admin.zadd(name, dict(VALUES["zset"]))


# --- One key, one hand, at the worst moment -------------------------------------------------------------------------


async def test_a_ttl_that_a_person_shortens_in_the_middle_of_a_pass_stays_as_he_set_it(
    cache_server, target, just_before
):
    admin = cache_server.admin
    for number in range(50):
        store(admin, f"user:{number}", 20_000)
    # Longer than the rule is made for: a later pass leaves it alone as well.
    acted = just_before(lambda: admin.pexpire("user:7", 45_000))
    assert await whole(target, LONGER) == 49
    assert acted
    assert 40_000 < admin.pttl("user:7") <= 45_000
    assert all(admin.pttl(f"user:{n}") > 45_000 for n in range(50) if n != 7), "the others got theirs all the same"


@pytest.mark.parametrize("back", ["persist", "longer", "shorter"])
async def test_a_deadline_that_a_person_sets_while_keys_are_put_back_stays(cache_server, target, just_before, back):
    admin = cache_server.admin
    for number in range(20):
        store(admin, f"user:{number}", 20_000)
    await whole(target, LONGER)
    act = {
        "persist": lambda: admin.persist("user:7"),
        "longer": lambda: admin.pexpire("user:7", 900_000),
        "shorter": lambda: admin.pexpire("user:7", 5_000),
    }[back]
    just_before(act)
    assert await whole(target, LONGER, restore=True) == 19
    left = admin.pttl("user:7")
    assert {"persist": left == -1, "longer": left > 890_000, "shorter": 0 < left <= 5_000}[back]
    assert max(admin.pttl(f"user:{n}") for n in range(20) if n != 7) <= 30_000


@pytest.mark.parametrize("kind", VALUES)
async def test_a_key_that_is_made_anew_in_another_type_is_not_ended_for_what_it_was(
    cache_server, target, just_before, kind
):
    """The old key had been idle for long; the new one has just been written, and has no TTL."""
    admin = cache_server.admin
    # Idle times count in whole seconds, and those beyond the server's life are not believed.
    await so_that(lambda: admin.info("server")["uptime_in_seconds"] >= 2)
    for number in range(30):
        admin.hset(f"user:{number}", "f", "v")
    await so_that(lambda: admin.object("IDLETIME", "user:0") >= 3)
    just_before(lambda: make(admin, "user:7", kind))
    ended = await whole(target, UNREAD, known_ms=3_000)
    assert ended == 29
    assert admin.ttl("user:7") == -1
    assert admin.type("user:7").decode() == kind
    assert all(0 < admin.ttl(f"user:{n}") <= 60 for n in range(30) if n != 7)


async def test_a_key_that_is_written_in_each_try_is_left_to_a_later_pass_and_the_pass_ends(
    cache_server, target, monkeypatch
):
    admin = cache_server.admin
    for number in range(60):
        store(admin, f"user:{number}", 20_000)
    plain, tries = Session.write_all_watched, []

    async def write_all_watched(self, commands):
        if any(command[1] == b"user:7" for command in commands):
            tries.append(len(commands))
            admin.set("user:7", "y", px=20_000)
        return await plain(self, commands)

    monkeypatch.setattr(Session, "write_all_watched", write_all_watched)
    assert await whole(target, LONGER) == 59
    assert len(tries) <= 7
    assert admin.pttl("user:7") <= 20_000
    assert admin.get("user:7") == b"y"


async def test_a_fence_that_moves_between_look_and_write_sets_no_deadline(cache_server, target, just_before):
    admin = cache_server.admin
    store(admin, "user:1", 20_000)
    just_before(lambda: admin.set("cachewarden:fence", 4))
    with pytest.raises(StaleFencingToken):
        await whole(target, LONGER)
    assert admin.pttl("user:1") <= 20_000


async def test_a_pass_leaves_no_watch_behind(cache_server, target):
    """A watch that stayed on the connection would make its next transaction fail for a key of no concern."""
    admin = cache_server.admin
    admin.set("user:1", "x")
    await whole(target, LONGER)
    admin.set("user:1", "y")
    wanted = KnobChange(knob="maxmemory-samples", before="5", after="7")
    execs = admin.info("commandstats").get("cmdstat_exec", {"calls": 0})["calls"]
    await target.write_knobs(HELD, [wanted])
    assert admin.info("commandstats")["cmdstat_exec"]["calls"] == execs + 1


# --- Many keys, all the time ----------------------------------------------------------------------------------------


class Hand:
    """Changes keys in a thread: writes, deletes, other types, other TTLs; `sure` is what each key surely is."""

    def __init__(self, port, names, seed):
        self._port, self._names, self._dice = port, names, random.Random(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.sure: dict[str, tuple[str, int | None]] = {}
        """Type, and the deadline where it is one that the rule leaves alone (None: none, -1: it may be changed)."""

    def _run(self):
        admin = redis.Redis(port=self._port, protocol=2)
        while not self._stop.is_set():
            name, kind = self._dice.choice(self._names), self._dice.choice(list(VALUES))
            left = self._dice.choice([None, 20_000, 500_000])
            make(admin, name, kind)
            if left:
                admin.pexpireat(name, (admin.time()[0] * 1000 + left) // 1000 * 1000 - 500)
            self.sure[name] = kind, None if left is None else admin.pexpiretime(name) if left > 30_000 else -1
        admin.close()

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()


@pytest.mark.parametrize("seed", range(2))
async def test_whatever_changes_its_type_beside_passes_keeps_type_value_and_deadline(cache_server, target, seed):
    admin, names = cache_server.admin, [f"user:{n}" for n in range(150)]
    with Hand(cache_server.port, names, seed) as hand:
        while len(hand.sure) < len(names):
            await whole(target, LONGER)
            await whole(target, LONGER, restore=True)
            await target.reencode_keys(HELD, 0, 1_000, 100_000)
    for name, (kind, deadline) in hand.sure.items():
        assert admin.type(name).decode() == kind
        found = admin.pexpiretime(name)
        assert found == (-1 if deadline is None else deadline) or deadline == -1
        if deadline == -1:
            assert 0 < found <= admin.time()[0] * 1000 + LONGER.extended_ttl_ms


@pytest.mark.parametrize("kind", ["string", "set", "zset", "gone"])
async def test_a_hash_that_becomes_something_else_is_not_stored_again(cache_server, target, monkeypatch, kind):
    """At each of the two moments: after the look at its form, and after it was read to be stored."""
    admin = cache_server.admin
    for knob in ("before it is read", "after it was read"):
        admin.config_set("hash-max-listpack-entries", 128)
        for number in range(5):
            admin.delete(f"user:{number}")
            admin.hset(f"user:{number}", mapping={f"f{i}": "x" for i in range(200)})
        admin.config_set("hash-max-listpack-entries", 512)

        def act():
            admin.delete("user:3")
            if kind != "gone":
                make(admin, "user:3", kind)

        with monkeypatch.context() as patch:
            if knob == "before it is read":
                plain = redis_reencode._candidates

                async def candidates(*arguments, plain=plain, act=act):
                    found = await plain(*arguments)
                    act()
                    return found

                patch.setattr(redis_reencode, "_candidates", candidates)
            else:
                written = Session.write_watched

                async def write_watched(self, command, written=written, act=act):
                    if command[1] == b"user:3":
                        act()
                    return await written(self, command)

                patch.setattr(Session, "write_watched", write_watched)
            done = await target.reencode_keys(HELD, 0, 1_000, 100_000)
        assert done.reencoded == 4
        assert admin.type("user:3").decode() == ("none" if kind == "gone" else kind)
        assert admin.object("ENCODING", "user:1") == b"listpack"


# --- Passes end in time ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["ttl", "reencode"])
async def test_a_pass_under_a_low_share_of_the_server_ends_in_time_and_goes_on_where_it_was(
    cache_server, target, monkeypatch, which
):
    admin = cache_server.admin
    pipe, at_ms = admin.pipeline(transaction=False), admin.time()[0] * 1000 + 20_500
    for number in range(3_000):
        pipe.set(f"user:{number}", "x", pxat=at_ms)
    pipe.execute()
    monkeypatch.setattr(redis_ttl, "_PASS_S_MAX", 0.05)
    monkeypatch.setattr(redis_reencode, "_PASS_S_MAX", 0.05)
    cursor, passes, examined = 0, 0, 0
    while True:
        if which == "ttl":
            done = await target.extend_ttls(HELD, LONGER, cursor, 100_000)
        else:
            done = await target.reencode_keys(HELD, cursor, 100_000, 100_000)
        cursor, passes, examined = done.cursor, passes + 1, examined + done.examined
        if cursor == 0:
            break
    assert passes > 1
    assert examined >= 3_000
    if which == "ttl":
        assert all(admin.pexpiretime(f"user:{n}") > at_ms for n in range(0, 3_000, 30))


async def test_a_rule_that_has_to_wait_says_why_and_until_when(cache_server, target):
    with pytest.raises(Exception, match=r"possible from 2\d{3}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00"):
        await target.extend_ttls(HELD, UNREAD, 0, 100)


async def test_idle_times_that_others_have_watched_need_no_second_wait_but_none_beyond_the_servers_life(
    cache_server, target
):
    admin = cache_server.admin
    admin.set("user:1", "x")
    await so_that(lambda: admin.object("IDLETIME", "user:1") >= 3)
    with pytest.raises(Exception, match="possible from"):
        await target.extend_ttls(HELD, UNREAD, 0, 100, False, 1_000)
    cache_server.kill()
    cache_server.start()
    admin = cache_server.admin
    await target.raise_fence(HELD)
    with pytest.raises(Exception, match="possible from"):
        await target.extend_ttls(HELD, UNREAD, 0, 100, False, 600_000)
