"""What we write onto the blackboard stays bounded, on the fake for a year, on a real server for thousands of cycles."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace

import pytest

from cachewarden.errors import BlackboardUnavailable
from cachewarden.messages import ActionClass, ExecutionState, ResolutionOutcome
from coordination import blackboard_records as records
from coordination import projection
from coordination.redis_blackboard import RedisBlackboard
from coordination.redis_tidy import BATCH, ROUND_CALLS
from simulation.fake_blackboard import FakeBlackboard
from tests.contract.real_servers import ENGINES, RealServer
from tests.unit.coordination.test_projection import execution, perform, proposal, resolution, verdict

REAL = [pytest.param(engine, marks=pytest.mark.integration) for engine in ENGINES]
US = "cache_performance_optimizer"
T0 = 1_800_000_000_000
DAY_MS = 86_400_000
KEPT_MS = 60_000
_CHANGES_PER_DAY = 4


@pytest.fixture(scope="module", params=REAL)
def running(request, tmp_path_factory):
    server = RealServer(request.param, tmp_path_factory.mktemp("bounds"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def server(running):
    running.admin.flushall()
    return running


@pytest.fixture
async def board(server):
    made = RedisBlackboard(server.url, timeout_s=5.0, kept_ms=KEPT_MS)
    yield made
    await made.close()


@pytest.fixture
async def forgetful(server):
    """The same, for those who wait until all is gone."""
    made = RedisBlackboard(server.url, timeout_s=5.0, kept_ms=3_000)
    yield made
    await made.close()


def task(name: str, at_ms: int) -> dict:
    return records.task_record(task_id=name, task_type="cache_optimization", input_data={}, at_ms=at_ms)


def conflict(name: str, at_ms: int) -> dict:
    return records.conflict_record(
        conflict_id=name,
        conflict_type="resource_conflict",
        involved_agents=[US],
        involved_tasks=[],
        description="d",
        at_ms=at_ms,
    )


def knowledge(name: str, at_ms: int, ttl_ms: int = 2_000) -> dict:
    return records.knowledge_item(
        item_id=name,
        space="performance",
        agent_id=US,
        knowledge_type="optimization_activity",
        content={},
        at_ms=at_ms,
        ttl_ms=ttl_ms,
    )


async def one_cycle(board, number: int, at_ms: int) -> None:
    """Everything that a change leaves behind: plans under two types, a task, a conflict with another plan."""
    ours = proposal(f"p-{number}", service=f"shop{number % 5}", action_class=ActionClass.LOSSY)
    lost = resolution(ours, ResolutionOutcome.YIELD, (f"p-rival{number}",))
    begun, done = (
        replace(execution(state, ours), execution_id=f"e-{number}", started_at_ms=at_ms, updated_at_ms=at_ms)
        for state in (ExecutionState.STEPPING, ExecutionState.KEPT)
    )
    effects = [
        *projection.plan_settled(ours, verdict(ours), lost, at_ms),
        *projection.execution_changed(None, begun, at_ms),
        *projection.execution_changed(begun, done, at_ms, verdict(ours)),
    ]
    await perform(board, effects)


async def test_a_year_of_changes_leaves_the_blackboard_as_large_as_a_day_does():
    board = FakeBlackboard()
    sizes: list[tuple[int, int]] = []
    interval_ms = DAY_MS // _CHANGES_PER_DAY
    for number in range(365 * _CHANGES_PER_DAY):
        at_ms = T0 + number * interval_ms
        board.clock_ms = at_ms
        await one_cycle(board, number, at_ms)
        await perform(board, projection.heartbeat(at_ms, interval_ms, DAY_MS))
        if number % _CHANGES_PER_DAY == 0:
            sizes.append(board.size)
    first_days, last_days = sizes[2:10], sizes[-8:]
    assert max(records for records, _ in last_days) <= max(records for records, _ in first_days)
    assert max(index for _, index in last_days) <= max(index for _, index in first_days)
    # A change leaves two items, a task and a conflict, each for a day.
    assert max(last_days) <= (4 * (_CHANGES_PER_DAY + 1), 4 * (_CHANGES_PER_DAY + 2))


@pytest.mark.slow
async def test_thousands_of_cycles_on_a_real_server_leave_no_key_and_no_index_behind(server, forgetful):
    board = forgetful
    for start in range(0, 2_000, 100):
        at_ms = time.time_ns() // 1_000_000
        for number in range(start, start + 100):
            await board.add_knowledge(knowledge(f"k{number}", at_ms))
            await board.create_task(task(f"t{number}", at_ms))
            if number % 10:
                await board.claim_task(f"t{number}", US, at_ms)
                await board.finish_task(f"t{number}", US, at_ms, output={}, error=None)
            await board.report_conflict(conflict(f"c{number}", at_ms))
            if number % 10:
                await board.resolve_conflict(f"c{number}", "s", {}, at_ms)
        await board.tidy(at_ms, 1_000)
    index_keys = [
        f"bb:agents:{US}:knowledge",
        f"bb:agents:{US}:tasks",
        f"bb:agents:{US}:created",
        f"bb:agents:{US}:conflicts",
        "bb:performance:priority",
        "bb:tasks:pending:priority",
        "bb:tasks:claimed:priority",
        "bb:tasks:completed:timestamp",
        "bb:tasks:failed:timestamp",
        "bb:conflicts:open:priority",
        "bb:conflicts:resolved:priority",
    ]
    deadline = time.monotonic() + 60
    while server.admin.exists(*index_keys):
        assert time.monotonic() < deadline, f"{server.admin.dbsize()} keys are left: {server.admin.keys('bb:*')[:9]}"
        await board.tidy(time.time_ns() // 1_000_000, 1_000)
        await asyncio.sleep(0.02)
    assert server.admin.dbsize() == 0


async def test_what_we_end_expires_from_that_moment_on_whether_or_not_anybody_tidies_up(server, board):
    for name, error in (("done", None), ("failed", {"error": "e"})):
        await board.create_task(task(name, T0), claimed_by=US)
        assert server.admin.pttl(f"bb:tasks:{name}") == -1
        await board.finish_task(name, US, T0 + 1_000, output={}, error=error)
        assert KEPT_MS - 10_000 < server.admin.pttl(f"bb:tasks:{name}") <= KEPT_MS
    await board.report_conflict(conflict("c", T0))
    await board.resolve_conflict("c", "s", {}, T0 + 1_000)
    assert KEPT_MS - 10_000 < server.admin.pttl("bb:conflicts:c") <= KEPT_MS


async def test_a_round_of_tidying_takes_sixty_calls_however_much_there_is(server, board):
    """The most that may be written is 10 requests per look of 5 s, 1 claim per second and 1 change per cycle of each
    service: with 100 services some 20,000 ids per hour. What died before a round began is forgotten at its end, so an
    index holds what lives and what has died within the last round and the one before."""
    many = 20_000
    server.admin.sadd(f"bb:agents:{US}:created", *(f"t{n:05}" for n in range(many)))
    server.admin.zadd("bb:tasks:completed:timestamp", {f"t{n:05}": n for n in range(many)})
    calls = 0
    while server.admin.exists(f"bb:agents:{US}:created"):
        await board.tidy(T0, KEPT_MS)
        calls += 1
        assert calls <= 2 * ROUND_CALLS
    assert server.admin.zcard("bb:tasks:completed:timestamp") == 0


async def test_what_others_have_ended_expires_and_what_is_not_over_stays(server, board):
    for name in ("done", "open"):
        await board.create_task(task(name, T0), claimed_by=US)
        await board.report_conflict(conflict(name, T0))
    over = task("done", T0) | {"status": "completed", "completed_at": records.iso_utc(T0 + 1_000)}
    server.admin.hset("bb:tasks:done", "data", json.dumps(over))
    over = conflict("done", T0) | {"status": "resolved", "resolved_at": records.iso_utc(T0 + 1_000)}
    server.admin.hset("bb:conflicts:done", "data", json.dumps(over))
    await board.tidy(T0 + 11_000, KEPT_MS)
    for kind in ("tasks", "conflicts"):
        assert KEPT_MS - 11_000 < server.admin.pttl(f"bb:{kind}:done") <= KEPT_MS - 10_000
        assert server.admin.pttl(f"bb:{kind}:open") == -1
    # A second look does not prolong a life.
    await board.tidy(T0 + 11_001, 10 * KEPT_MS)
    assert server.admin.pttl("bb:tasks:done") <= KEPT_MS - 10_000


async def test_what_is_open_for_too_long_is_ended_with_a_reason(server, board):
    await board.create_task(task("claimed", T0))
    await board.claim_task("claimed", US, T0)
    await board.create_task(task("never-claimed", T0))
    await board.report_conflict(conflict("open", T0))
    await board.tidy(T0 + KEPT_MS + 1, KEPT_MS)
    for name in ("claimed", "never-claimed"):
        left = await board.task(name)
        assert (left["status"], left["error_details"]["error"]) == ("failed", "nothing was heard of it for too long")
    assert (await board.conflict("open"))["resolution_strategy"] == "withdrawn"


async def test_ids_whose_record_is_gone_leave_every_index_and_those_of_peers_stay(server, board):
    await board.add_knowledge(knowledge("ours", T0, ttl_ms=60_000))
    server.admin.zadd("bb:performance:priority", {"theirs": 1})
    server.admin.delete("bb:performance:knowledge:ours")
    assert await board.tidy(T0, KEPT_MS) == 1
    assert server.admin.zrange("bb:performance:priority", 0, -1) == [b"theirs"]
    assert server.admin.smembers(f"bb:agents:{US}:knowledge") == set()


async def test_a_task_that_a_peer_gave_us_is_kept_as_long_as_one_of_ours_and_one_of_others_is_not_touched(
    server, board
):
    for name in ("asked-of-us", "of-others"):
        server.admin.hset(f"bb:tasks:{name}", "data", json.dumps(task(name, T0)))
        server.admin.zadd("bb:tasks:pending:priority", {name: 1})
    await board.claim_task("asked-of-us", US, T0)
    await board.finish_task("asked-of-us", US, T0, output={}, error=None)
    await board.tidy(T0, KEPT_MS)
    assert server.admin.pttl("bb:tasks:asked-of-us") > 0
    assert server.admin.pttl("bb:tasks:of-others") == -1


async def test_a_call_looks_at_a_bounded_number_of_ids_and_later_calls_come_round(server, board):
    many = 5 * BATCH
    server.admin.sadd(f"bb:agents:{US}:knowledge", *(f"k{i}" for i in range(many)))
    first = await board.tidy(T0, KEPT_MS)
    assert first < many
    for _ in range(2 * many // BATCH):
        await board.tidy(T0, KEPT_MS)
    assert server.admin.scard(f"bb:agents:{US}:knowledge") == 0


async def test_a_full_blackboard_refuses_what_is_new_and_still_lets_us_tidy_up(server, board):
    for number in range(50):
        await board.add_knowledge(knowledge(f"k{number}", T0, ttl_ms=60_000))
    server.admin.config_set("maxmemory-policy", "noeviction")
    server.admin.config_set("maxmemory", "1")
    try:
        with pytest.raises(BlackboardUnavailable, match="used memory"):
            await board.add_knowledge(knowledge("one-more", T0))
        with pytest.raises(BlackboardUnavailable):
            await board.report_conflict(conflict("c", T0))
        server.admin.delete(*(f"bb:performance:knowledge:k{number}" for number in range(50)))
        assert await board.tidy(T0, KEPT_MS) == 50
    finally:
        server.admin.config_set("maxmemory", "0")
    assert server.admin.zcard("bb:performance:priority") == 0
    assert not server.admin.exists("bb:conflicts:c")


async def test_prefix_and_db_number_are_honoured_by_every_key(server):
    board = RedisBlackboard(f"{server.url}/3", prefix="acgs-test", timeout_s=5.0)
    await board.register_agent(US, "t", [], T0)
    await board.add_knowledge(knowledge("k", T0))
    await board.create_task(task("t", T0))
    await board.claim_task("t", US, T0)
    await board.report_conflict(conflict("c", T0))
    await board.tidy(T0 + KEPT_MS + 1, KEPT_MS)
    await board.close()
    assert server.admin.dbsize() == 0
    server.admin.select(3)
    try:
        assert {key.split(b":")[0] for key in server.admin.keys("*")} == {b"acgs-test"}
    finally:
        server.admin.select(0)
