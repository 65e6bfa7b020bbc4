"""Each playbook on Redis and Valkey, and what breaks in the middle of it: the server, the actuator, another hand."""

from __future__ import annotations

import asyncio
import time

import pytest
import redis

from cachewarden.messages import ExecutionState, KnobChange
from tests.contract.real_servers import ENGINES, RealServer, free_port
from tests.integration.one_actuator import Bench, Traffic, change_of, until

pytestmark = [pytest.mark.integration, pytest.mark.slow]

MIB = 1 << 20
HUMAN = {"maxmemory": str(77 * MIB), "maxmemory-policy": "volatile-ttl", "maxmemory-samples": "4",
         "hash-max-listpack-entries": "99"}  # fmt: skip
QUICK = {"lease_ttl_ms": 4_000}


@pytest.fixture(params=ENGINES)
def server(request, tmp_path):
    """A cache of 8 MiB under allkeys-lru with 3,000 keys and 200 hashes in their large form."""
    server = RealServer(request.param, tmp_path)
    started(server)
    yield server
    server.kill()


def started(server: RealServer) -> None:
    server.start("--maxmemory", "8mb", "--maxmemory-policy", "allkeys-lru", "--hash-max-listpack-entries", "32")
    pipe = server.admin.pipeline(transaction=False)
    for number in range(3_000):
        pipe.set(f"user:{number}", b"v" * 300)
    for number in range(200):
        pipe.hset(f"user:h{number}", mapping={f"f{i}": "x" for i in range(100)})
    pipe.execute()


def plan_of(name: str, server: RealServer):
    """Return (changes, fields of the proposal, number of steps) of a playbook."""
    size = server.admin.config_get("maxmemory")["maxmemory"]
    same = KnobChange(knob="maxmemory", before=size, after=size)
    plans = {
        "tune": ((change_of(server, "maxmemory-samples", 8),), {}, 2),
        "grow": ((change_of(server, "maxmemory", 12 * MIB),), {}, 1),
        "shrink": ((change_of(server, "maxmemory", 6 * MIB),), {}, 2),
        "direct": ((change_of(server, "maxmemory-policy", "allkeys-random"),), {}, 1),
        "keep_hot_set": (
            (change_of(server, "maxmemory-policy", "allkeys-lfu"), same),
            {"cost": {"room_bytes": float(int(size) // 10)}},
            5,
        ),
        "encoding": ((change_of(server, "hash-max-listpack-entries", 256),), {}, 1),
        "reencode": ((change_of(server, "hash-max-listpack-entries", 256),), {"cost": {"keys_touched": 50_000.0}}, 2),
    }
    return plans[name]


NAMES = ("tune", "grow", "shrink", "direct", "keep_hot_set", "encoding", "reencode")
STEPS = {"tune": 2, "grow": 1, "shrink": 2, "direct": 1, "keep_hot_set": 5, "encoding": 1, "reencode": 2}
EVERY_STEP = [(name, step) for name in NAMES for step in range(STEPS[name])]


@pytest.mark.parametrize("name", NAMES)
async def test_each_playbook_is_applied_observed_and_kept_with_what_it_predicted_and_gave(server, tmp_path, name):
    with Traffic(server.port):
        async with Bench(server, tmp_path, reencode=True) as bench:
            changes, fields, steps = plan_of(name, server)
            wanted = bench.begin(*changes, playbook=name, **fields)
            done = await bench.ended()
            assert done.state is ExecutionState.KEPT, done.reason
            assert done.steps == steps
            assert bench.knobs(wanted) == {c.knob: c.after for c in wanted.knob_changes}
            last = bench.journal.records[-1].payload
            assert last["predicted_gain"] is not None
            assert last["effect"]["basis"]
            assert done.hit_ratio_after is not None
    if name == "reencode":
        assert server.admin.object("ENCODING", "user:h7") == b"listpack"


@pytest.mark.parametrize("name", NAMES)
async def test_an_injected_regression_is_taken_back_within_a_window_value_by_value(server, tmp_path, name):
    with Traffic(server.port) as traffic:
        async with Bench(server, tmp_path, reencode=True) as bench:
            changes, fields, _ = plan_of(name, server)
            wanted = bench.begin(*changes, playbook=name, low=0.60, before=0.60, **fields)
            await until(
                lambda: bench.reports and bench.reports[-1].state is ExecutionState.OBSERVING, 110, "the observation"
            )
            began_s = time.monotonic()
            traffic.asks_anew = True
            done = await bench.ended()
            window_s = bench.settings.observation_window_ms / 1000
            assert done.state is ExecutionState.ROLLED_BACK, done.reason
            assert bench.knobs(wanted) == {c.knob: c.before for c in wanted.knob_changes}
            windows = [r for r in bench.journal.records if r.kind == "observed"]
            assert len(windows) <= 1, f"{time.monotonic() - began_s:.1f} s for windows of {window_s} s"


@pytest.mark.parametrize(("name", "step"), EVERY_STEP)
async def test_an_actuator_that_dies_in_a_step_leaves_nothing_half_changed(server, tmp_path, name, step):
    async with Bench(server, tmp_path, reencode=True, **QUICK) as bench:
        died = asyncio.Event()

        async def dies():
            asyncio.get_running_loop().call_soon(died.set)

        bench.on_step("step_intended", step, dies)
        changes, fields, _ = plan_of(name, server)
        wanted = bench.begin(*changes, playbook=name, **fields)
        await asyncio.wait_for(died.wait(), 100)
        await bench.die()
        bench.live()
        done = await bench.ended()
        whole = {k: {c.knob: getattr(c, k) for c in wanted.knob_changes} for k in ("before", "after")}
        kept = done.state is ExecutionState.KEPT
        assert done.state in (ExecutionState.KEPT, ExecutionState.ROLLED_BACK, ExecutionState.ABANDONED), done.reason
        assert bench.knobs(wanted) == whole["after" if kept else "before"]


@pytest.mark.parametrize(("name", "step"), EVERY_STEP)
async def test_a_server_that_restarts_in_a_step_is_whole_afterwards(server, tmp_path, name, step):
    async with Bench(server, tmp_path, reencode=True) as bench:

        async def restarts():
            server.kill()
            started(server)

        bench.on_step("step_intended", step, restarts)
        changes, fields, _ = plan_of(name, server)
        wanted = bench.begin(*changes, playbook=name, **fields)
        done = await bench.ended()
        assert bench.journal.hooked.is_set()
        whole = {k: {c.knob: getattr(c, k) for c in wanted.knob_changes} for k in ("before", "after")}
        kept = done.state is ExecutionState.KEPT
        assert done.state in (ExecutionState.KEPT, ExecutionState.ROLLED_BACK, ExecutionState.ABANDONED), done.reason
        assert bench.knobs(wanted) == whole["after" if kept else "before"], done.reason


@pytest.mark.parametrize(("name", "step"), [("tune", 0), ("shrink", 0), ("keep_hot_set", 0), ("keep_hot_set", 2)])
async def test_a_value_that_a_person_sets_between_the_steps_is_left_alone(server, tmp_path, name, step):
    async with Bench(server, tmp_path) as bench:
        changes, fields, _ = plan_of(name, server)
        knob = changes[0].knob

        async def sets():
            server.admin.config_set(knob, HUMAN[knob])

        bench.on_step("step_applied", step, sets)
        bench.begin(*changes, playbook=name, **fields)
        done = await bench.ended()
        assert done.state is ExecutionState.ABANDONED, done.reason
        assert HUMAN[knob] in done.reason
        assert server.admin.config_get(knob)[knob] == HUMAN[knob]


@pytest.mark.parametrize("name", ["tune", "grow", "encoding"])
async def test_a_value_that_a_person_sets_while_it_is_observed_is_left_alone(server, tmp_path, name):
    async with Bench(server, tmp_path) as bench:
        changes, fields, steps = plan_of(name, server)
        knob = changes[0].knob

        async def sets():
            server.admin.config_set(knob, HUMAN[knob])

        bench.on_step("step_applied", steps - 1, sets)
        bench.begin(*changes, playbook=name, **fields)
        done = await bench.ended()
        assert done.state is ExecutionState.ABANDONED, done.reason
        assert server.admin.config_get(knob)[knob] == HUMAN[knob]


# --- Answers that are no --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
async def test_a_user_who_may_set_nothing_changes_nothing(server, tmp_path, name):
    server.admin.execute_command("ACL", "SETUSER", "limited", "on", ">secret", "~*", "+@all", "-config|set")
    async with Bench(server, tmp_path, username="limited", password="secret", reencode=True) as bench:
        changes, fields, _ = plan_of(name, server)
        wanted = bench.begin(*changes, playbook=name, **fields)
        done = await bench.ended()
        assert done.state is ExecutionState.ABANDONED, done.reason
        assert "permission" in done.reason.lower()
        assert bench.knobs(wanted) == {c.knob: c.before for c in wanted.knob_changes}


async def test_a_permission_that_is_missing_for_one_step_only_takes_the_others_back(server, tmp_path):
    server.admin.execute_command("ACL", "SETUSER", "limited", "on", ">secret", "~*", "+@all", "-touch")
    async with Bench(server, tmp_path, username="limited", password="secret") as bench:
        changes, fields, _ = plan_of("keep_hot_set", server)
        wanted = bench.begin(*changes, playbook="keep_hot_set", **fields)
        done = await bench.ended()
        assert done.state is ExecutionState.ROLLED_BACK, done.reason
        assert "permission" in done.reason.lower()
        assert bench.knobs(wanted) == {c.knob: c.before for c in wanted.knob_changes}


async def test_keys_that_a_full_cache_refuses_to_store_again_take_the_thresholds_back(server, tmp_path):
    async with Bench(server, tmp_path, reencode=True) as bench:

        async def fills():
            server.admin.config_set("maxmemory-policy", "noeviction")
            server.admin.config_set("maxmemory", "1mb")

        bench.on_step("step_intended", 1, fills)
        changes, fields, _ = plan_of("reencode", server)
        wanted = bench.begin(*changes, playbook="reencode", **fields)
        done = await bench.ended()
        assert done.state is ExecutionState.ROLLED_BACK, done.reason
        assert bench.knobs(wanted) == {c.knob: c.before for c in wanted.knob_changes}
        assert server.admin.hlen("user:h7") == 100


@pytest.mark.parametrize("name", ["tune", "shrink", "keep_hot_set"])
async def test_a_server_that_becomes_a_replica_in_the_middle_is_written_no_more(server, tmp_path, name):
    async with Bench(server, tmp_path) as bench:

        async def loses_its_role():
            # Of nobody: it stays a replica that has lost its primary, and refuses writes with READONLY.
            server.admin.replicaof("127.0.0.1", "1")

        bench.on_step("step_applied", 0, loses_its_role)
        changes, fields, _ = plan_of(name, server)
        bench.begin(*changes, playbook=name, **fields)
        done = await bench.ended()
        assert done.state in (ExecutionState.ABANDONED, ExecutionState.FAILED, ExecutionState.ROLLED_BACK), done.reason
        assert done.reason


async def test_a_server_that_is_loading_is_not_changed(server, tmp_path):
    server.admin.save()
    server.kill()
    dump = next(tmp_path.glob("*.rdb"))
    assert dump.stat().st_size > 0
    server.start_loading(
        "--maxmemory",
        "8mb",
        "--maxmemory-policy",
        "allkeys-lru",
        "--key-load-delay",
        "10000",
        "--loading-process-events-interval-bytes",
        "1024",
    )
    async with Bench(server, tmp_path) as bench:
        bench.begin(KnobChange(knob="maxmemory-samples", before="5", after="8"), playbook="tune")
        done = await bench.ended()
        assert done.state is ExecutionState.ABANDONED, done.reason
        assert "loading" in done.reason.lower()


async def test_a_node_that_does_not_hold_the_slot_of_the_fence_is_not_changed(request, tmp_path, server):
    server.kill()
    server.start("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
    async with Bench(server, tmp_path) as bench:
        wanted = bench.begin(change_of(server, "maxmemory-samples", 8), playbook="tune")
        done = await bench.ended()
        assert done.state is ExecutionState.ABANDONED, done.reason
        assert "slot" in done.reason.lower()
        assert bench.knobs(wanted) == {"maxmemory-samples": "5"}
    with pytest.raises(redis.ResponseError):
        server.admin.set("user:1", "x")
