"""TTL rules as real changes: each on a load made for it, where it gives nothing, taken back, and broken in the middle."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from dataclasses import replace

import pytest
import redis

from cachewarden.estimate import Estimate
from cachewarden.fleet import KeyPattern
from cachewarden.messages import ActionClass, ExecutionState, TtlRule
from tests.contract.real_servers import ENGINES, RealServer
from tests.integration.one_actuator import Bench, until
from tests.unit.agents.actuator_world import proposal

pytestmark = [pytest.mark.integration, pytest.mark.slow]

TTL_MS = 6_000
OWNED = (KeyPattern(prefix="user:", max_staleness_s=60, shorten_ttl=True),)
HOT, COLD = 200, 1_800


@pytest.fixture(params=ENGINES)
def server(request, tmp_path):
    server = RealServer(request.param, tmp_path)
    server.start("--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru")
    yield server
    server.kill()


class ShortLives:
    """An application that loads what it misses with a TTL of six seconds: it reads the hot keys all the time and each
    cold key once, in turn."""

    def __init__(self, port: int, per_s: int = 600) -> None:
        self._port, self._per_s = port, per_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.looked_up = self.missed = 0

    def _run(self) -> None:
        client, dice, turn = redis.Redis(port=self._port, protocol=2, socket_timeout=5), random.Random(3), 0
        while not self._stop.wait(0.02):
            wanted = []
            for number in range(self._per_s // 50):
                turn += number % 4 == 0
                wanted.append(f"user:cold:{turn % COLD}" if number % 4 == 0 else f"user:hot:{dice.randrange(HOT)}")
            with contextlib.suppress(redis.RedisError):
                found = client.mget(wanted)
                pipe = client.pipeline(transaction=False)
                for key, value in zip(wanted, found, strict=True):
                    if value is None:
                        pipe.set(key, b"v" * 200, px=TTL_MS)
                pipe.execute(raise_on_error=False)
                self.looked_up += len(wanted)
                self.missed += found.count(None)
        client.close()

    def __enter__(self) -> ShortLives:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def rule(**fields):
    plain = {"pattern": "user:", "written_ttl_ms": TTL_MS, "extended_ttl_ms": 60_000, "max_staleness_ms": 60_000}
    return TtlRule(**{**plain, **fields})


def begin(bench: Bench, wanted: TtlRule, *, name: str = "p-1", before: float = 0.10, low: float = 0.05, **prediction):
    """Hand over a plan of one TTL rule that promises no hits, and `prediction` beside."""
    plan = proposal(
        rules=(wanted,), playbook="ttl_rule", service="shop", created_at_ms=bench.clock.now_ms(),
        expires_at_ms=bench.clock.now_ms() + 60_000, before=before, low=low, action_class=wanted.action_class,
    )  # fmt: skip
    nothing = Estimate(0.0, 0.0, 0.0)
    plan = replace(
        plan, proposal_id=name, prediction=replace(plan.prediction, gain=nothing, lookups_per_s=0.0, **prediction)
    )
    bench.order(plan, hit_ratio_before=before)
    return plan


def expiries_by_second(server: RealServer) -> list[int]:
    """Return how many of the keys end in each second ahead, the fullest first."""
    admin = server.admin
    names = list(admin.scan_iter("user:*", count=1_000))
    pipe = admin.pipeline(transaction=False)
    for name in names:
        pipe.pexpiretime(name)
    seconds: dict[int, int] = {}
    for deadline in pipe.execute():
        seconds[deadline // 1000] = seconds.get(deadline // 1000, 0) + 1
    return sorted(seconds.values(), reverse=True)


async def kept(bench: Bench):
    done = await bench.ended()
    assert done.state is ExecutionState.KEPT, done.reason
    return done


# --- Longer lives for keys in use -----------------------------------------------------------------------------------


async def test_only_keys_in_use_live_longer_and_their_misses_go(server, tmp_path):
    with ShortLives(server.port) as load:
        await until(lambda: load.looked_up > 4_000, 60, "the first lookups")
        before = load.missed / load.looked_up
        async with Bench(server, tmp_path, patterns=OWNED) as bench:
            begin(bench, rule(only_read=True))
            await kept(bench)
            looked_up, missed = load.looked_up, load.missed
            await until(lambda: load.looked_up > looked_up + 4_000, 60, "lookups under the rule")
            after = (load.missed - missed) / (load.looked_up - looked_up)
            admin = server.admin
            cold = [admin.pttl(name) for name in admin.scan_iter("user:cold:*", count=1_000)]
            hot = [admin.pttl(f"user:hot:{number}") for number in range(HOT)]
        # The cold keys are a quarter of the lookups and miss under both; what the hot ones missed for is gone.
        assert after < before - 0.02, (before, after)
        assert max(cold) <= TTL_MS
        assert sum(left > TTL_MS for left in hot) > HOT // 2
        assert max(hot) <= 60_000


async def test_no_key_outlives_the_declared_staleness_although_it_is_read_all_the_time(server, tmp_path):
    owned = (KeyPattern(prefix="user:", max_staleness_s=9),)
    with ShortLives(server.port):
        async with Bench(server, tmp_path, patterns=owned) as bench:
            begin(bench, rule(extended_ttl_ms=9_000, max_staleness_ms=9_000, only_read=True))
            await kept(bench)
            lives = [server.admin.pttl(f"user:hot:{number}") for number in range(HOT)]
            assert max(lives) + 4_000 > TTL_MS
            assert max(lives) <= 9_000 - 2_000, "a key is extended only after it was used, so two seconds have passed"


async def test_a_newer_rule_for_the_same_pattern_takes_over_while_passes_of_the_older_one_run(server, tmp_path):
    """A person finds 60 s too long and has a plan with 12 s carried out: from then on no key gets more."""
    with ShortLives(server.port):
        async with Bench(server, tmp_path, patterns=OWNED) as bench:
            begin(bench, rule())
            await kept(bench)
            begin(bench, rule(extended_ttl_ms=12_000), name="p-2")
            await until(
                lambda: bench.reports[-1].proposal.proposal_id == "p-2" and bench.reports[-1].state.final, 110, "p-2"
            )
            assert bench.reports[-1].state is ExecutionState.KEPT, bench.reports[-1].reason
            names = [f"user:late:{number}" for number in range(100)]
            pipe = server.admin.pipeline(transaction=False)
            for name in names:
                pipe.set(name, b"v", px=TTL_MS)
            pipe.execute()
            lives = 0.0

            def visited() -> bool:
                nonlocal lives
                lives = max(lives, *(server.admin.pttl(name) for name in names))
                return lives > TTL_MS

            await until(visited, 30, "a visit of the newer rule")
            assert lives <= 12_000


# --- Expiries apart from each other ---------------------------------------------------------------------------------


def loaded_together(server: RealServer, keys: int = 1_000, ttl_ms: int = 40_000) -> None:
    pipe = server.admin.pipeline(transaction=False)
    for number in range(keys):
        pipe.set(f"user:{number}", b"v" * 200, px=ttl_ms)
    pipe.execute()


async def test_keys_that_were_loaded_together_end_apart_and_the_prediction_is_met(server, tmp_path):
    loaded_together(server)
    assert expiries_by_second(server)[0] > 400
    async with Bench(server, tmp_path, patterns=OWNED) as bench:
        spread = rule(written_ttl_ms=40_000, extended_ttl_ms=60_000, jitter_ms=20_000)
        assert spread.action_class is ActionClass.REVERSIBLE
        begin(bench, spread, peak_share=0.06)
        done = await kept(bench)
        last = bench.journal.records[-1].payload["expiries"]
    assert expiries_by_second(server)[0] < 100
    assert last["predicted"] == 0.06
    assert last["peak_before"] > 0.9
    assert last["peak_now"] < 0.12
    assert done.peak_share == last["peak_now"]


async def test_expiries_that_do_not_come_apart_are_taken_back_within_the_windows(server, tmp_path):
    """The application goes on to set deadlines of its own that the rule may not touch: they stay together."""
    loaded_together(server, ttl_ms=55_000)
    async with Bench(server, tmp_path, patterns=OWNED) as bench:
        # Written with longer TTLs than the rule is made for, so it leaves them alone; the promise cannot be kept.
        begin(bench, rule(written_ttl_ms=20_000, extended_ttl_ms=40_000, jitter_ms=20_000), peak_share=0.06)
        done = await bench.ended()
    assert done.state is ExecutionState.ROLLED_BACK, done.reason
    assert "deadlines lie in one second" in done.reason


# --- Keys that nobody reads -----------------------------------------------------------------------------------------


async def test_keys_that_nobody_reads_end_and_their_memory_comes_back_but_those_that_are_read_stay(server, tmp_path):
    admin = server.admin
    pipe = admin.pipeline(transaction=False)
    for number in range(1_500):
        pipe.set(f"user:dead:{number}", b"v" * 6_000)
    for number in range(HOT):
        pipe.set(f"user:hot:{number}", b"v" * 2_000)
    pipe.execute()
    stop = threading.Event()

    def reads():
        client = redis.Redis(port=server.port, protocol=2)
        while not stop.wait(0.3):
            client.mget([f"user:hot:{number}" for number in range(HOT)])
        client.close()

    reader = threading.Thread(target=reads, daemon=True)
    reader.start()
    try:
        await asyncio.to_thread(lambda: admin.object("IDLETIME", "user:dead:7"))
        await until(lambda: admin.object("IDLETIME", "user:dead:7") >= 4, 60, "idle keys")
        async with Bench(server, tmp_path, patterns=OWNED) as bench:
            dead = rule(written_ttl_ms=0, extended_ttl_ms=2_000, unread_ms=3_000)
            assert dead.action_class is ActionClass.LOSSY
            await bench.target.counters()
            await asyncio.sleep(4)
            begin(bench, dead, freed_bytes=Estimate(9.0e6, 7.5e6, 10.0e6))
            done = await kept(bench)
    finally:
        stop.set()
        reader.join()
    assert done.freed_bytes > 4.0e6
    await until(lambda: admin.dbsize() <= HOT + 10, 60, "the end of the keys that nobody reads")
    assert {admin.ttl(f"user:hot:{number}") for number in range(HOT)} == {-1}


async def test_memory_that_does_not_come_back_takes_the_rule_back(server, tmp_path):
    loaded_together(server, ttl_ms=600_000)
    async with Bench(server, tmp_path, patterns=OWNED) as bench:
        # Nothing ends before it was judged.
        dead = rule(written_ttl_ms=0, extended_ttl_ms=60_000, unread_ms=3_000)
        await bench.target.counters()
        await asyncio.sleep(4)
        begin(bench, dead, freed_bytes=Estimate(8.0e6, 7.0e6, 10.0e6))
        done = await bench.ended()
    assert done.state is ExecutionState.ROLLED_BACK, done.reason
    assert "bytes were freed" in done.reason
    assert server.admin.dbsize() >= 1_000


@pytest.mark.parametrize(
    ("patterns", "policy", "wanted", "words"),
    [
        ((KeyPattern(prefix="user:"),), "allkeys-lru", {}, "no staleness"),
        ((KeyPattern(prefix="user:", max_staleness_s=30),), "allkeys-lru", {}, "older than"),
        ((KeyPattern(prefix="user:", max_staleness_s=60),), "allkeys-lru", {"unread_ms": 3_000}, "shorten_ttl"),
        ((KeyPattern(prefix="page:", max_staleness_s=60),), "allkeys-lru", {}, "no staleness"),
        (OWNED, "allkeys-lfu", {"unread_ms": 3_000}, "no idle times"),
    ],
)
async def test_a_rule_that_owner_or_server_do_not_carry_touches_nothing(
    server, tmp_path, patterns, policy, wanted, words
):
    server.admin.config_set("maxmemory-policy", policy)
    loaded_together(server, keys=50)
    before = expiries_by_second(server)
    async with Bench(server, tmp_path, patterns=patterns) as bench:
        begin(bench, rule(**wanted))
        done = await bench.ended()
    assert done.state is ExecutionState.ABANDONED
    assert words in done.reason
    assert expiries_by_second(server) == before
    assert "pexpireat" not in str(server.admin.info("commandstats"))


# --- Taken back, and broken in the middle ---------------------------------------------------------------------------


async def test_an_injected_regression_puts_extended_keys_back_within_a_window(server, tmp_path):
    loaded_together(server, ttl_ms=5_000, keys=300)
    pipe = server.admin.pipeline(transaction=False)
    async with Bench(server, tmp_path, patterns=OWNED) as bench:
        begin(bench, rule(), before=0.9, low=0.85)
        await until(lambda: bench.reports and bench.reports[-1].state is ExecutionState.OBSERVING, 60, "observation")
        assert max(server.admin.pttl(f"user:{n}") for n in range(300)) > 20_000
        for _ in range(40):
            for number in range(50):
                pipe.get(f"user:never:{number}")
            pipe.execute()
            await asyncio.sleep(0.1)
        done = await bench.ended()
    assert done.state is ExecutionState.ROLLED_BACK, done.reason
    assert max(server.admin.pttl(f"user:{n}") for n in range(300)) <= TTL_MS
    assert len([r for r in bench.journal.records if r.kind == "observed"]) <= 1


async def test_an_actuator_that_dies_in_the_pass_leaves_a_rule_that_stands_or_none(server, tmp_path):
    loaded_together(server, ttl_ms=5_000, keys=300)
    async with Bench(server, tmp_path, patterns=OWNED, lease_ttl_ms=4_000) as bench:
        died = asyncio.Event()

        async def dies():
            asyncio.get_running_loop().call_soon(died.set)

        bench.on_step("step_intended", 0, dies)
        begin(bench, rule())
        await asyncio.wait_for(died.wait(), 60)
        await bench.die()
        bench.live()
        done = await bench.ended()
    assert done.state in (ExecutionState.KEPT, ExecutionState.ROLLED_BACK, ExecutionState.ABANDONED), done.reason
    longest = max(server.admin.pttl(f"user:{n}") for n in range(300))
    assert longest <= (60_000 if done.state is ExecutionState.KEPT else TTL_MS)


async def test_a_server_that_restarts_in_the_pass_ends_the_change_and_nothing_is_left(server, tmp_path):
    loaded_together(server, ttl_ms=5_000, keys=300)
    async with Bench(server, tmp_path, patterns=OWNED) as bench:

        async def restarts():
            server.kill()
            server.start("--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru")
            loaded_together(server, ttl_ms=5_000, keys=300)

        bench.on_step("step_intended", 0, restarts)
        begin(bench, rule())
        done = await bench.ended()
    assert done.state in (ExecutionState.KEPT, ExecutionState.ROLLED_BACK, ExecutionState.ABANDONED), done.reason
    if done.state is not ExecutionState.KEPT:
        assert max(server.admin.pttl(f"user:{n}") for n in range(300)) <= TTL_MS


async def test_a_user_who_may_set_no_deadlines_changes_none(server, tmp_path):
    loaded_together(server, keys=100)
    before = expiries_by_second(server)
    server.admin.execute_command("ACL", "SETUSER", "limited", "on", ">secret", "~*", "+@all", "-pexpireat")
    async with Bench(server, tmp_path, patterns=OWNED, username="limited", password="secret") as bench:
        begin(bench, rule(written_ttl_ms=40_000))
        done = await bench.ended()
    assert done.state in (ExecutionState.ABANDONED, ExecutionState.ROLLED_BACK)
    assert "permission" in done.reason.lower()
    assert expiries_by_second(server) == before


async def test_a_pattern_that_matches_nothing_is_kept_and_costs_next_to_nothing(server, tmp_path):
    loaded_together(server, keys=100)
    owned = (KeyPattern(prefix="nobody:", max_staleness_s=60),)
    async with Bench(server, tmp_path, patterns=owned) as bench:
        begin(bench, rule(pattern="nobody:"))
        started_s = time.monotonic()
        await kept(bench)
        spent_s = time.monotonic() - started_s
    scans = server.admin.info("commandstats")["cmdstat_scan"]["calls"]
    assert scans <= 4 * spent_s + 5, "at most four passes a second, of one step each"
    assert "cmdstat_pexpireat" not in server.admin.info("commandstats")
