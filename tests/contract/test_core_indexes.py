"""The index sets of ACGS's core: written and read where the settings want them, and cleared with everything else.

`core_*` do what ACGS's core does with its sets (section 1.1 and 1.5 of the description of its wire), and no more.
"""

from __future__ import annotations

import json

import pytest

from coordination.redis_blackboard import RedisBlackboard
from tests.contract.real_servers import ENGINES, RealServer
from tests.contract.test_blackboard import NOW, conflict, task

pytestmark = pytest.mark.integration
US = "cache_performance_optimizer"


@pytest.fixture(scope="module", params=ENGINES)
def running(request, tmp_path_factory):
    server = RealServer(request.param, tmp_path_factory.mktemp("core"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def server(running):
    running.admin.flushall()
    return running


@pytest.fixture
async def board(server):
    board = RedisBlackboard(f"{server.url}/0", timeout_s=5.0, core_indexes=True)
    yield board
    await board.close()


def core_available(server, task_type: str = "cache_optimization") -> set[bytes]:
    return server.admin.sinter(f"bb:tasks:type:{task_type}", "bb:tasks:status:pending")


def core_creates(server, record: dict) -> None:
    server.admin.hset(f"bb:tasks:{record['id']}", "data", json.dumps(record))
    server.admin.zadd("bb:tasks:priority", {record["id"]: record["priority"]})
    server.admin.sadd("bb:tasks:status:pending", record["id"])
    server.admin.sadd(f"bb:tasks:type:{record['task_type']}", record["id"])


def core_conflicts(server, record: dict) -> None:
    server.admin.hset(f"bb:conflicts:{record['id']}", "data", json.dumps(record))
    server.admin.sadd("bb:conflicts:status:open", record["id"])
    server.admin.sadd(f"bb:conflicts:severity:{record['severity']}", record["id"])


async def test_what_we_write_is_listed_by_the_core_in_its_state(server, board):
    await board.create_task(task("t"))
    assert core_available(server) == {b"t"}
    await board.claim_task("t", "peer", NOW)
    assert (core_available(server), server.admin.smembers("bb:tasks:status:claimed")) == (set(), {b"t"})
    await board.finish_task("t", "peer", NOW, output={}, error=None)
    assert server.admin.smembers("bb:tasks:status:completed") == {b"t"}
    assert server.admin.scard("bb:tasks:status:claimed") == 0
    await board.report_conflict(conflict("c", "high"))
    assert server.admin.sinter("bb:conflicts:severity:high", "bb:conflicts:status:open") == {b"c"}
    await board.resolve_conflict("c", "s", {}, NOW)
    assert server.admin.smembers("bb:conflicts:status:resolved") == {b"c"}
    assert server.admin.scard("bb:conflicts:status:open") == 0


async def test_what_the_core_writes_is_seen_and_can_be_claimed_once(server, board):
    core_creates(server, task("theirs"))
    core_conflicts(server, conflict("c"))
    assert [t["id"] for t in (await board.page("tasks:pending")).records] == ["theirs"]
    assert [c["id"] for c in (await board.page("conflicts:open")).records] == ["c"]
    assert await board.claim_task("theirs", US, NOW)
    assert not await board.claim_task("theirs", "peer", NOW)
    assert core_available(server) == set()
    assert [t["id"] for t in (await board.page("tasks:claimed")).records] == ["theirs"] * 2


async def test_more_than_fits_into_a_look_is_seen_in_both_kinds_of_index(server, board):
    for number in range(900):
        await board.create_task(task(f"ours-{number:04}"))
    for number in range(900):
        core_creates(server, task(f"theirs-{number:04}"))
    seen: set[str] = set()
    cursor, looks = "", 0
    while cursor or not looks:
        page = await board.page("tasks:pending", cursor)
        seen |= {t["id"] for t in page.records}
        cursor, looks = page.cursor, looks + 1
        assert looks < 20
    assert len(seen) == 1_800


async def test_ids_whose_record_is_gone_leave_the_sets_too(server, board):
    await board.create_task(task("t"), claimed_by=US)
    await board.report_conflict(conflict("c"))
    server.admin.delete("bb:tasks:t", "bb:conflicts:c")
    await board.tidy(NOW, 60_000)
    assert server.admin.dbsize() == 0


async def test_without_the_setting_no_set_is_written_or_read(server):
    board = RedisBlackboard(f"{server.url}/0", timeout_s=5.0)
    await board.create_task(task("t"))
    core_creates(server, task("theirs"))
    assert [t["id"] for t in (await board.page("tasks:pending")).records] == ["t"]
    assert server.admin.smembers("bb:tasks:status:pending") == {b"theirs"}
    await board.close()
