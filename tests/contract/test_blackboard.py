"""The Blackboard port: what every implementation promises, and what ACGS's own programs find on a real server."""

from __future__ import annotations

import asyncio
import json

import pytest

from cachewarden.errors import BlackboardUnavailable, InvariantViolation
from coordination import blackboard_records as records
from coordination.redis_blackboard import RedisBlackboard
from simulation.fake_blackboard import FakeBlackboard
from tests.contract.real_servers import ENGINES, RealServer

REAL = [pytest.param(engine, marks=pytest.mark.integration) for engine in ENGINES]
US = "cache_performance_optimizer"


@pytest.fixture(scope="module", params=REAL)
def running(request, tmp_path_factory):
    server = RealServer(request.param, tmp_path_factory.mktemp("blackboard"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def server(running):
    running.admin.flushall()
    return running


@pytest.fixture
async def connect():
    made: list[RedisBlackboard] = []

    def make(server: RealServer, db: int = 0, **options) -> RedisBlackboard:
        made.append(RedisBlackboard(f"{server.url}/{db}", **({"timeout_s": 2.0} | options)))
        return made[-1]

    yield make
    for board in made:
        await board.close()


@pytest.fixture(params=["fake", *REAL])
def board(request, tmp_path, connect):
    if request.param == "fake":
        yield FakeBlackboard()
        return
    server = RealServer(request.param, tmp_path)
    server.start()
    yield connect(server)
    server.kill()


def item(name: str, at_ms: int, **more) -> dict:
    fields = {
        "item_id": name,
        "space": "performance",
        "agent_id": US,
        "knowledge_type": "optimization_activity",
        "content": {"list": []},
        "at_ms": at_ms,
        "ttl_ms": 60_000,
        "tags": ["cache"],
    }
    return records.knowledge_item(**(fields | more))


def task(name: str, at_ms: int = 1_800_000_000_000, **more) -> dict:
    return records.task_record(
        **({"task_id": name, "task_type": "cache_optimization", "input_data": {"a": []}, "at_ms": at_ms} | more)
    )


def conflict(name: str, severity: str = "high") -> dict:
    return records.conflict_record(
        conflict_id=name,
        conflict_type="resource_conflict",
        involved_agents=[US],
        involved_tasks=[],
        description="d",
        at_ms=1_800_000_000_123,
        severity=severity,
    )


NOW = 1_800_000_000_000


# --- What every implementation promises -------------------------------------------------------------------------------


async def test_an_agent_registers_beats_and_leaves(board):
    await board.register_agent(US, "performance_optimization", ["a", "b"], NOW)
    await board.heartbeat(US, "performance_optimization", ["a", "b"], NOW + 30_000)
    [agent] = await board.active_agents()
    assert agent["registered_at"] == records.iso_utc(NOW)
    assert agent["last_heartbeat"] == records.iso_utc(NOW + 30_000)
    await board.deregister_agent(US)
    assert await board.active_agents() == []


async def test_a_heartbeat_brings_back_an_agent_that_was_forgotten(board):
    await board.heartbeat(US, "performance_optimization", ["a"], NOW)
    [agent] = await board.active_agents()
    assert (agent["agent_id"], agent["capabilities"], agent["status"]) == (US, ["a"], "active")


async def test_knowledge_is_found_by_type_and_any_tag_most_urgent_first(board):
    await board.add_knowledge(item("b", NOW, priority=2))
    await board.add_knowledge(item("a", NOW, priority=2))
    await board.add_knowledge(item("c", NOW, priority=1, tags=["other", "cache"]))
    await board.add_knowledge(item("d", NOW, knowledge_type="cache_optimization_plan"))
    await board.add_knowledge(item("e", NOW, tags=["alert"]))
    found = await board.query_knowledge("performance", "optimization_activity", ["cache", "performance"])
    assert [i["id"] for i in found] == ["c", "a", "b"]
    assert len(await board.query_knowledge("performance")) == 5
    assert len(await board.query_knowledge("performance", limit=2)) == 2
    assert await board.query_knowledge("governance") == []
    assert await board.query_knowledge("performance", limit=0) == []


async def test_knowledge_that_is_published_again_replaces_itself(board):
    await board.add_knowledge(item("a", NOW, content={"status": "approved"}))
    await board.add_knowledge(item("a", NOW, content={"status": "completed"}))
    [found] = await board.query_knowledge("performance")
    assert found["content"] == {"status": "completed"}


async def test_a_space_that_does_not_exist_is_our_bug(board):
    with pytest.raises(InvariantViolation, match="governance"):
        await board.query_knowledge("tasks")
    with pytest.raises(InvariantViolation, match="space"):
        await board.add_knowledge(item("a", NOW) | {"space": "agents"})


async def test_of_twenty_claimers_exactly_one_wins(board):
    await board.create_task(task("t"))
    won = await asyncio.gather(*(board.claim_task("t", f"agent-{n}", NOW) for n in range(20)))
    assert sum(won) == 1
    assert (await board.task("t"))["agent_id"] == f"agent-{won.index(True)}"
    assert not await board.claim_task("t", "late", NOW)
    assert not await board.claim_task("no such task", "late", NOW)


async def test_a_task_created_twice_stays_as_it_is(board):
    await board.create_task(task("t"))
    assert await board.claim_task("t", US, NOW)
    assert await board.create_task(task("t")) == "t"
    assert (await board.task("t"))["status"] == "claimed"
    assert await board.pending_tasks("cache_optimization") == []


async def test_only_the_claimer_finishes_a_task_and_only_once(board):
    await board.create_task(task("t"))
    assert not await board.finish_task("t", US, NOW, output={}, error=None)
    await board.claim_task("t", US, NOW)
    assert not await board.finish_task("t", "other", NOW, output={}, error=None)
    assert await board.finish_task("t", US, NOW + 5, output={"x": []}, error=None)
    assert not await board.finish_task("t", US, NOW, output={}, error=None)
    done = await board.task("t")
    assert (done["status"], done["output_data"], done["completed_at"]) == (
        "completed",
        {"x": []},
        records.iso_utc(NOW + 5),
    )


async def test_a_failed_task_tells_its_error_in_both_places(board):
    await board.create_task(task("t"))
    await board.claim_task("t", US, NOW)
    assert await board.finish_task("t", US, NOW, output=None, error={"error": "e"})
    failed = await board.task("t")
    assert (failed["status"], failed["error_details"]) == ("failed", {"error": "e"})
    assert failed["output_data"] == {"error": {"error": "e"}}


async def test_pending_tasks_of_a_type_come_most_urgent_first(board):
    for name, priority in (("b", 2), ("a", 2), ("c", 1)):
        await board.create_task(task(name, priority=priority))
    await board.create_task(task("d", task_type="ethics_review"))
    assert [t["id"] for t in await board.pending_tasks("cache_optimization")] == ["c", "a", "b"]


async def test_a_conflict_is_settled_once(board):
    await board.report_conflict(conflict("c"))
    assert await board.resolve_conflict("c", "priority_based_allocation", {"w": 1}, NOW)
    assert not await board.resolve_conflict("c", "other", {}, NOW)
    assert not await board.resolve_conflict("none", "other", {}, NOW)
    await board.report_conflict(conflict("c"))
    settled = await board.conflict("c")
    assert (settled["status"], settled["resolution_strategy"], settled["resolution_data"]) == (
        "resolved",
        "priority_based_allocation",
        {"w": 1},
    )


async def test_every_operation_of_others_arrives_as_an_event(board):
    stream = await board.events()
    await board.add_knowledge(item("k", NOW))
    await board.create_task(task("t"))
    await board.claim_task("t", US, NOW)
    await board.finish_task("t", US, NOW, output={"o": 1}, error=None)
    await board.report_conflict(conflict("c"))
    seen = [await anext(stream) for _ in range(5)]
    assert [e["event_type"] for e in seen] == [
        "knowledge_added",
        "task_created",
        "task_claimed",
        "task_completed",
        "conflict_detected",
    ]
    assert seen[0]["data"] == {
        "knowledge_id": "k",
        "space": "performance",
        "agent_id": US,
        "knowledge_type": "optimization_activity",
    }
    assert seen[1]["data"] == {"task_id": "t", "task_type": "cache_optimization", "priority": 1}
    assert seen[3]["data"] == {
        "task_id": "t",
        "agent_id": US,
        "task_type": "cache_optimization",
        "output_data": {"o": 1},
    }
    assert seen[4]["data"] == {
        "conflict_id": "c",
        "conflict_type": "resource_conflict",
        "severity": "high",
        "involved_agents": [US],
    }
    if hasattr(stream, "aclose"):
        await stream.aclose()


# --- What ACGS's own programs find on a real server -------------------------------------------------------------------


async def test_keys_and_indexes_are_those_of_acgs(server, connect):
    board, admin = connect(server), server.admin
    await board.register_agent(US, "performance_optimization", ["a"], NOW)
    await board.add_knowledge(item("k", NOW, priority=2))
    await board.create_task(task("t", priority=3))
    await board.claim_task("t", US, NOW)
    await board.create_task(task("u"))
    await board.report_conflict(conflict("c"))
    await board.report_conflict(conflict("r", "odd"))
    await board.resolve_conflict("r", "s", {}, NOW)
    assert admin.smembers("bb:agents:active") == {US.encode()}
    assert set(admin.hgetall(f"bb:agents:{US}")) == {b"data", b"last_heartbeat"}
    assert admin.zrange("bb:performance:priority", 0, -1, withscores=True) == [(b"k", 2.0)]
    assert admin.smembers(f"bb:agents:{US}:knowledge") == {b"k"}
    assert 50_000 < admin.pttl("bb:performance:knowledge:k") <= 60_000
    assert admin.zrange("bb:tasks:claimed:priority", 0, -1, withscores=True) == [(b"t", 3.0)]
    assert admin.zrange("bb:tasks:pending:priority", 0, -1) == [b"u"]
    assert admin.smembers(f"bb:agents:{US}:tasks") == {b"t"}
    assert admin.zrange("bb:conflicts:open:priority", 0, -1, withscores=True) == [(b"c", 2.0)]
    assert admin.zrange("bb:conflicts:resolved:priority", 0, -1, withscores=True) == [(b"r", NOW // 1000)]
    assert json.loads(admin.hget("bb:tasks:t", "data"))["dependencies"] == []
    await board.finish_task("t", US, NOW, output={}, error=None)
    assert admin.zrange("bb:tasks:completed:timestamp", 0, -1, withscores=True) == [(b"t", NOW // 1000)]
    assert admin.zcard("bb:tasks:claimed:priority") == 0


async def test_a_heartbeat_stands_where_each_reader_looks_for_it(server, connect):
    board = connect(server)
    await board.register_agent(US, "t", [], NOW)
    server.admin.srem("bb:agents:active", US)
    await board.heartbeat(US, "t", [], NOW + 1_000)
    fields = server.admin.hgetall(f"bb:agents:{US}")
    at = records.iso_utc(NOW + 1_000)
    assert (fields[b"last_heartbeat"].decode(), json.loads(fields[b"data"])["last_heartbeat"]) == (at, at)
    assert server.admin.sismember("bb:agents:active", US)


async def test_a_peer_that_beats_beside_its_record_only_is_alive_all_the_same(server, connect):
    board = connect(server)
    await board.register_agent("peer", "worker", [], NOW)
    server.admin.hset("bb:agents:peer", "last_heartbeat", records.iso_utc(NOW + 90_000))
    server.admin.hset("bb:agents:ghost", "last_heartbeat", records.iso_utc(NOW))
    server.admin.sadd("bb:agents:active", "ghost")
    [peer] = await board.active_agents()
    assert peer["last_heartbeat"] == records.iso_utc(NOW + 90_000)
    assert board.bad_records == 1


async def test_dead_ids_at_the_head_of_an_index_hide_nothing_and_ours_are_tidied(server, connect):
    board = connect(server)
    await board.add_knowledge(item("zz", NOW, priority=5))
    server.admin.zadd("bb:performance:priority", {f"dead-{n:04}": 1 for n in range(350)})
    server.admin.sadd(f"bb:agents:{US}:knowledge", "dead-0001", "dead-0002")
    assert [i["id"] for i in await board.query_knowledge("performance", limit=1)] == ["zz"]
    assert server.admin.zcard("bb:performance:priority") == 349
    assert server.admin.smembers(f"bb:agents:{US}:knowledge") == {b"zz"}


async def test_what_a_peer_has_spoilt_is_counted_and_the_rest_is_listed(server, connect):
    board, admin = connect(server), server.admin
    await board.add_knowledge(item("good", NOW))
    for name, data in {"a": "not json", "b": "{}", "c": '{"id": 1}', "d": "[]", "e": b"\xff\xfe"}.items():
        admin.hset(f"bb:performance:knowledge:{name}", "data", data)
        admin.zadd("bb:performance:priority", {name: 1})
    admin.set("bb:performance:knowledge:f", "a string")
    admin.zadd("bb:performance:priority", {"f": 1})
    assert [i["id"] for i in await board.query_knowledge("performance")] == ["good"]
    assert board.bad_records == 6


async def test_an_item_that_has_expired_but_was_never_removed_is_not_given(server, connect):
    board = connect(server)
    await board.add_knowledge(item("old", 1_000_000_000_000))
    server.admin.persist("bb:performance:knowledge:old")
    assert await board.query_knowledge("performance") == []


async def test_our_knowledge_always_expires(server, connect):
    board = connect(server)
    await board.add_knowledge(item("soon", NOW, ttl_ms=1))
    await board.add_knowledge(item("whenever", NOW) | {"expires_at": None})
    assert 0 < server.admin.pttl("bb:performance:knowledge:soon") <= 2_000
    assert server.admin.pttl("bb:performance:knowledge:whenever") > 86_000_000
    stored = json.loads(server.admin.hget("bb:performance:knowledge:whenever", "data"))
    assert stored["expires_at"] == records.iso_utc(NOW + 86_400_000)


async def test_a_task_that_lua_has_spoilt_can_be_claimed_and_is_whole_again(server, connect):
    board = connect(server)
    await board.create_task(task("t"))
    spoilt = json.loads(server.admin.hget("bb:tasks:t", "data")) | {"dependencies": {}, "theirs": 1}
    server.admin.hset("bb:tasks:t", "data", json.dumps(spoilt))
    assert await board.claim_task("t", US, NOW)
    stored = json.loads(server.admin.hget("bb:tasks:t", "data"))
    assert (stored["dependencies"], stored["theirs"]) == ([], 1)


async def test_an_id_left_among_the_pending_ones_is_taken_out(server, connect):
    board = connect(server)
    await board.create_task(task("t"))
    claimed = json.loads(server.admin.hget("bb:tasks:t", "data")) | {"status": "claimed", "agent_id": "peer"}
    server.admin.hset("bb:tasks:t", "data", json.dumps(claimed))
    assert await board.pending_tasks("cache_optimization") == []
    assert not await board.claim_task("t", US, NOW)
    assert server.admin.zcard("bb:tasks:pending:priority") == 0


async def test_all_three_forms_of_events_are_understood_and_garbage_is_counted(server, connect):
    board = connect(server)
    stream = await board.events()
    server.admin.publish("events:task_claimed", "garbage")
    server.admin.publish("events:task_claimed", json.dumps({"task_id": "bare", "constitutional_hash": "h"}))
    server.admin.publish(
        "events:task_created", json.dumps({"event_type": "task_created", "timestamp": "", "data": {"task_id": "core"}})
    )
    await board.create_task(task("mono"))
    seen = [await anext(stream) for _ in range(3)]
    assert [e["data"]["task_id"] for e in seen] == ["bare", "core", "mono"]
    assert [e["timestamp"] for e in seen] == [None, None, records.iso_utc(NOW)]
    assert board.bad_records == 1
    await stream.aclose()


async def test_a_quiet_channel_is_not_taken_for_a_lost_server(server, connect):
    board = connect(server, timeout_s=0.1)
    stream = await board.events()
    waiting = asyncio.ensure_future(anext(stream))
    done, _ = await asyncio.wait([waiting], timeout=0.5)
    assert not done
    await board.create_task(task("t"))
    assert (await waiting)["data"]["task_id"] == "t"
    await stream.aclose()


async def test_more_work_at_once_than_connections_waits_its_turn(server, connect):
    board = connect(server, max_connections=2)
    await asyncio.gather(*(board.create_task(task(f"t{n}")) for n in range(50)))
    assert len(await board.pending_tasks("cache_optimization", limit=100)) == 50


async def test_a_frozen_server_is_unavailable_in_time_and_usable_again_when_it_thaws(server, connect):
    board = connect(server, timeout_s=0.2)
    await board.create_task(task("t"))
    server.freeze()
    try:
        with pytest.raises(BlackboardUnavailable):
            await board.claim_task("t", US, NOW)
    finally:
        server.thaw()
    assert (await board.task("t"))["status"] == "pending"
    assert await board.claim_task("t", US, NOW)


async def test_the_db_number_of_the_url_is_the_one_that_counts(server, connect):
    await connect(server, db=7).create_task(task("t"))
    assert await connect(server, db=7).task("t") is not None
    assert await connect(server, db=0).task("t") is None


async def test_a_record_of_ours_that_peers_would_choke_on_is_never_written(server, connect):
    with pytest.raises(InvariantViolation):
        await connect(server).create_task(task("t") | {"dependencies": {"no": "list"}})
    assert server.admin.dbsize() == 0


@pytest.mark.integration
async def test_a_server_that_is_gone_makes_everything_unavailable(tmp_path, connect):
    server = RealServer("valkey", tmp_path)
    server.start()
    board = connect(server)
    stream = await board.events()
    server.kill()
    attempts = [
        board.register_agent(US, "t", [], NOW),
        board.heartbeat(US, "t", [], NOW),
        board.deregister_agent(US),
        board.add_knowledge(item("k", NOW)),
        board.query_knowledge("performance"),
        board.create_task(task("t")),
        board.claim_task("t", US, NOW),
        board.finish_task("t", US, NOW, output=None, error=None),
        board.report_conflict(conflict("c")),
        board.resolve_conflict("c", "s", {}, NOW),
        board.tidy(NOW, 60_000),
        board.events(),
        anext(stream),
    ]
    for attempt in attempts:
        with pytest.raises(BlackboardUnavailable):
            await attempt


async def test_a_fake_that_is_not_available_says_so():
    board = FakeBlackboard()
    board.available = False
    with pytest.raises(BlackboardUnavailable):
        await board.create_task(task("t"))
