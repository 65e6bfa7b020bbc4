"""Reading the blackboard page by page, claims and hints: the port on the fake and on real servers, and its faults."""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cachewarden.errors import BlackboardUnavailable
from cachewarden.peer_input import AwaitHint, ReadPeers, peer_input_performers
from cachewarden.ports import BOARD_AREAS
from coordination import blackboard_records as records
from coordination.redis_blackboard import RedisBlackboard
from coordination.redis_pages import IDS_MAX, RECORD_BYTES_MAX
from simulation.fake_blackboard import FakeBlackboard
from tests.contract.real_servers import ENGINES, RealServer
from tests.contract.test_blackboard import NOW, conflict, task
from tests.contract.test_blackboard import item as item_of

REAL = [pytest.param(engine, marks=pytest.mark.integration) for engine in ENGINES]
US = "cache_performance_optimizer"
CLAIMERS = 50


@pytest.fixture(scope="module", params=REAL)
def running(request, tmp_path_factory):
    server = RealServer(request.param, tmp_path_factory.mktemp("pages"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def server(running):
    running.admin.flushall()
    return running


@pytest.fixture
async def board(server):
    board = RedisBlackboard(f"{server.url}/0", timeout_s=5.0)
    yield board
    await board.close()


@pytest.fixture(params=["fake", *REAL])
async def any_board(request, tmp_path):
    if request.param == "fake":
        yield FakeBlackboard()
        return
    server = RealServer(request.param, tmp_path)
    server.start()
    board = RedisBlackboard(f"{server.url}/0", timeout_s=5.0)
    yield board
    await board.close()
    server.kill()


def item(name: str, at_ms: int, **more) -> dict:
    return item_of(name, at_ms, **({"agent_id": "peer"} | more))


async def everything(board, area: str) -> tuple[list[dict], int]:
    """Return the records of a whole round, and how many looks it took."""
    found: list[dict] = []
    cursor, looks = "", 0
    while True:
        page = await board.page(area, cursor)
        found += page.records
        cursor, looks = page.cursor, looks + 1
        if not cursor:
            return found, looks


async def test_each_area_gives_what_stands_in_it(any_board):
    await any_board.add_knowledge(item("k", NOW))
    await any_board.add_knowledge(item("r", NOW, space="coordination", knowledge_type="conflict_resolution"))
    await any_board.add_knowledge(item("ours", NOW, agent_id=US))
    await any_board.create_task(task("waiting"))
    await any_board.create_task(task("ours"))
    await any_board.claim_task("ours", US, NOW)
    await any_board.report_conflict(conflict("c"))
    await any_board.report_conflict(conflict("closed"))
    await any_board.resolve_conflict("closed", "s", {}, NOW)
    seen = {area: [r["id"] for r in (await any_board.page(area)).records] for area in BOARD_AREAS}
    assert seen == {
        "conflicts:open": ["c"],
        "knowledge:coordination": ["r"],
        "knowledge:performance": ["k"],
        "tasks:claimed": ["ours"],
        "tasks:pending": ["waiting"],
    }


async def test_pages_of_all_areas_are_those_of_each_and_empty_where_nothing_stands(any_board):
    nothing = await any_board.pages(dict.fromkeys(BOARD_AREAS, ""))
    assert {area: (page.records, page.cursor) for area, page in nothing.items()} == dict.fromkeys(BOARD_AREAS, ((), ""))
    await any_board.add_knowledge(item("k", NOW))
    await any_board.create_task(task("waiting"))
    await any_board.report_conflict(conflict("c"))
    seen = await any_board.pages(dict.fromkeys(BOARD_AREAS, ""))
    assert {area: [r["id"] for r in page.records] for area, page in seen.items()} == {
        "conflicts:open": ["c"],
        "knowledge:coordination": [],
        "knowledge:performance": ["k"],
        "tasks:claimed": [],
        "tasks:pending": ["waiting"],
    }


async def test_what_a_peer_has_written_is_seen_however_much_of_ours_stands_beside_it(any_board):
    for number in range(3):
        await any_board.add_knowledge(item(f"ours{number}", NOW, agent_id=US))
    pages = await any_board.pages(dict.fromkeys(BOARD_AREAS, ""))
    assert pages["knowledge:performance"].records == ()
    await any_board.add_knowledge(item("theirs", NOW))
    await any_board.add_knowledge(item("ours3", NOW, agent_id=US))
    pages = await any_board.pages(dict.fromkeys(BOARD_AREAS, ""))
    assert [r["id"] for r in pages["knowledge:performance"].records] == ["theirs"]


@pytest.mark.parametrize("denied", ["-zintercard", "-zintercard -scard"])
async def test_a_server_that_does_not_count_what_is_ours_is_read_as_a_whole(server, board, denied):
    await board.add_knowledge(item("ours", NOW, agent_id=US))
    await board.add_knowledge(item("theirs", NOW))
    server.admin.execute_command("ACL", "SETUSER", "asker", "on", ">asker", "~*", "&*", "+@all", *denied.split())
    limited = RedisBlackboard(f"{server.url.replace('redis://', 'redis://asker:asker@')}/0", timeout_s=5.0)
    for _ in range(2):
        pages = await limited.pages(dict.fromkeys(BOARD_AREAS, ""))
        assert [r["id"] for r in pages["knowledge:performance"].records] == ["theirs"]
        assert pages["tasks:pending"].records == ()
    await limited.close()


async def test_a_look_at_all_areas_goes_on_at_the_cursor_of_each(any_board):
    for number in range(520):
        await any_board.create_task(task(f"t{number:04}") | {"input_data": {"filler": "x" * 3_000}})
    cursors, seen = dict.fromkeys(BOARD_AREAS, ""), []
    while True:
        pages = await any_board.pages(cursors)
        seen += [t["id"] for t in pages["tasks:pending"].records]
        cursors = {area: page.cursor for area, page in pages.items()}
        if not any(cursors.values()):
            break
    assert seen == [f"t{number:04}" for number in range(520)]


async def test_an_area_of_which_only_the_cores_set_knows_a_record_is_read(server):
    board = RedisBlackboard(f"{server.url}/0", core_indexes=True)
    await board.create_task(task("theirs"))
    server.admin.delete("bb:tasks:pending:priority")
    pages = await board.pages(dict.fromkeys(BOARD_AREAS, ""))
    await board.close()
    assert [t["id"] for t in pages["tasks:pending"].records] == ["theirs"]


@pytest.mark.parametrize("core_indexes", [False, True])
async def test_whatever_else_is_open_nothing_of_a_peer_is_passed_over(server, core_indexes):
    ours, theirs = (
        RedisBlackboard(f"{server.url}/0", timeout_s=5.0, core_indexes=core_indexes, agent_id=agent)
        for agent in (US, "peer")
    )
    try:
        # As many of ours in one area as of theirs in another: counts that were taken for each other would agree.
        await ours.report_conflict(conflict("c"))
        await ours.add_knowledge(item_of("plan-of-ours", NOW))
        await theirs.add_knowledge(item_of("answer", NOW, space="coordination", agent_id="peer"))
        await theirs.create_task(task("t"))
        pages = await ours.pages(dict.fromkeys(BOARD_AREAS, ""))
    finally:
        await ours.close()
        await theirs.close()
    # What stands in the core's index as well may come twice.
    assert {c["id"] for c in pages["conflicts:open"].records} == {"c"}
    assert {k["id"] for k in pages["knowledge:coordination"].records} == {"answer"}
    assert {t["id"] for t in pages["tasks:pending"].records} == {"t"}


async def test_an_index_that_is_no_index_fails_the_look_as_it_did(server, board):
    server.admin.set("bb:tasks:pending:priority", "garbage")
    with pytest.raises(BlackboardUnavailable):
        await board.pages(dict.fromkeys(BOARD_AREAS, ""))


async def test_a_task_that_is_created_and_claimed_in_one_moment_is_never_pending(any_board):
    stream = await any_board.events()
    await any_board.create_task(task("t"), claimed_by=US)
    await any_board.create_task(task("t"), claimed_by="other")
    assert not await any_board.claim_task("t", "other", NOW)
    claimed = await any_board.task("t")
    assert (claimed["status"], claimed["agent_id"], claimed["claimed_at"]) == ("claimed", US, records.iso_utc(NOW))
    assert [(await anext(stream))["event_type"] for _ in range(2)] == ["task_created", "task_claimed"]
    assert (await any_board.page("tasks:pending")).records == ()
    assert await any_board.finish_task("t", US, NOW, output={}, error=None)
    if hasattr(stream, "aclose"):
        await stream.aclose()


async def test_more_records_than_fit_into_a_look_are_all_seen_in_a_round(any_board):
    for number in range(1_100):
        await any_board.create_task(task(f"t{number:04}"))
    found, _ = await everything(any_board, "tasks:pending")
    assert [t["id"] for t in found] == [f"t{number:04}" for number in range(1_100)]


async def test_ids_that_vanish_between_two_looks_hide_none_of_those_that_stay(any_board):
    for number in range(1_600):
        await any_board.create_task(task(f"t{number:04}") | {"input_data": {"filler": "x" * 1_000}})
    first = await any_board.page("tasks:pending")
    assert first.cursor
    seen = [t["id"] for t in first.records]
    for gone in seen[:400]:
        await any_board.claim_task(gone, "peer", NOW)
    while first.cursor:
        first = await any_board.page("tasks:pending", first.cursor)
        seen += [t["id"] for t in first.records]
    assert seen == [f"t{number:04}" for number in range(1_600)]


async def test_the_id_on_which_a_cursor_rests_may_vanish_too_and_scores_may_be_anything(server, board):
    scores = [float("-inf"), -2.5, 1, 1, 3, 3, 3, 1e300, float("inf")]
    index = {f"k{n:05}": scores[n * len(scores) // IDS_MAX // 2] for n in range(2 * IDS_MAX - 1)}
    server.admin.zadd("bb:performance:priority", index)
    names = list(index)
    await board.add_knowledge(item("a-first", NOW, priority=1))
    server.admin.zadd("bb:performance:priority", {"a-first": float("-inf")})
    page = await board.page("knowledge:performance")
    assert (page.scanned, [i["id"] for i in page.records]) == (IDS_MAX, ["a-first"])
    last = names[IDS_MAX - 2]
    assert page.cursor.endswith(last)
    await board.add_knowledge(item("zz-last", NOW))
    server.admin.zadd("bb:performance:priority", {"zz-last": float("inf")})
    server.admin.zrem("bb:performance:priority", last, *names[:1_000])
    seen = []
    while page.cursor:
        page = await board.page("knowledge:performance", page.cursor)
        seen += [i["id"] for i in page.records]
    assert seen == ["zz-last"]


async def test_ids_that_are_no_text_are_passed_and_hide_nothing(server, board):
    server.admin.zadd("bb:performance:priority", {b"\xff\xfe%05d" % n: 1 for n in range(IDS_MAX + 700)})
    await board.add_knowledge(item("zz-alive", NOW, priority=5))
    found, looks = await everything(board, "knowledge:performance")
    assert ([i["id"] for i in found], looks) == (["zz-alive"], 2)


async def test_ten_thousand_stale_ids_ahead_of_the_live_one_hide_it_for_three_looks_at_most(server, board):
    await board.add_knowledge(item("zz-alive", NOW, priority=5))
    server.admin.zadd("bb:performance:priority", {f"dead-{n:05}": 1 for n in range(10_000)})
    found, looks = await everything(board, "knowledge:performance")
    assert [i["id"] for i in found] == ["zz-alive"]
    assert looks <= 10_000 // IDS_MAX + 1
    assert (await board.page("knowledge:performance")).scanned <= IDS_MAX


async def test_ten_thousand_items_of_ours_are_passed_over_unread(server, board):
    names = [f"ours-{n:05}" for n in range(10_000)]
    server.admin.zadd("bb:performance:priority", dict.fromkeys(names, 1))
    server.admin.sadd(f"bb:agents:{US}:knowledge", *names)
    await board.add_knowledge(item("zz-theirs", NOW, priority=5))
    before = server.admin.info("commandstats").get("cmdstat_hstrlen", {}).get("calls", 0)
    found, _ = await everything(board, "knowledge:performance")
    assert [i["id"] for i in found] == ["zz-theirs"]
    assert server.admin.info("commandstats")["cmdstat_hstrlen"]["calls"] - before == 1


async def test_a_bad_record_is_counted_once_and_again_only_when_it_was_changed(server, board):
    await board.add_knowledge(item("good", NOW))
    bad = {
        "a": "not json",
        "b": "{}",
        "c": json.dumps(item("another-id", NOW)),
        "d": b"\xff\xfe",
        "e": "x" * (RECORD_BYTES_MAX + 1),
    }
    for name, data in bad.items():
        server.admin.hset(f"bb:performance:knowledge:{name}", "data", data)
        server.admin.zadd("bb:performance:priority", {name: 1})
    server.admin.set("bb:performance:knowledge:f", "a string")
    server.admin.zadd("bb:performance:priority", {"f": 1})
    first, second = await board.page("knowledge:performance"), await board.page("knowledge:performance")
    assert ([r["id"] for r in first.records], first.bad, second.bad) == (["good"], 6, 0)
    server.admin.hset("bb:performance:knowledge:b", "data", "[]")
    assert (await board.page("knowledge:performance")).bad == 1


async def test_lists_that_lua_has_turned_into_objects_are_lists_again(server, board):
    spoilt = task("t") | {"dependencies": {}}
    server.admin.hset("bb:tasks:t", "data", json.dumps(spoilt))
    server.admin.zadd("bb:tasks:pending:priority", {"t": 1})
    odd = conflict("c") | {"involved_tasks": {}}
    server.admin.hset("bb:conflicts:c", "data", json.dumps(odd))
    server.admin.zadd("bb:conflicts:open:priority", {"c": 1})
    assert (await board.page("tasks:pending")).records[0]["dependencies"] == []
    assert (await board.page("conflicts:open")).records[0]["involved_tasks"] == []


async def test_what_has_expired_or_was_evicted_is_dangling_and_not_bad(server, board):
    await board.add_knowledge(item("evicted", NOW))
    server.admin.delete("bb:performance:knowledge:evicted")
    await board.add_knowledge(item("late", 1_000_000_000_000))
    server.admin.persist("bb:performance:knowledge:late")
    page = await board.page("knowledge:performance")
    assert (page.records, page.dangling, page.bad) == ((), 2, 0)


@pytest.mark.parametrize("name", [*records.task_record(task_id="t", task_type="x", input_data={}, at_ms=NOW)])
async def test_a_task_without_one_of_its_fields_never_hides_the_others(server, board, name):
    await board.create_task(task("good"))
    damaged = {k: v for k, v in task("damaged").items() if k != name}
    server.admin.hset("bb:tasks:damaged", "data", json.dumps(damaged))
    server.admin.zadd("bb:tasks:pending:priority", {"damaged": 1})
    found, _ = await everything(board, "tasks:pending")
    assert "good" in [t["id"] for t in found]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=6,
)


async def test_of_a_thousand_spoilt_records_none_hides_the_good_one(server, board):
    kinds = {
        "knowledge:performance": ("bb:performance:knowledge:{}", "bb:performance:priority", item("x", NOW)),
        "tasks:pending": ("bb:tasks:{}", "bb:tasks:pending:priority", task("x")),
        "conflicts:open": ("bb:conflicts:{}", "bb:conflicts:open:priority", conflict("x")),
    }
    # It must outlive the generating, which takes minutes on a busy machine.
    await board.add_knowledge(item("zz-good", NOW, priority=5, ttl_ms=3_600_000))
    await board.create_task(task("zz-good", priority=5))
    await board.report_conflict(conflict("zz-good", "low"))
    written = 0

    @settings(max_examples=1_000, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(
        st.sampled_from(sorted(kinds)),
        st.dictionaries(st.integers(0, 15), JSON, max_size=3),
        st.none() | st.binary(max_size=40),
    )
    def spoil(area, damage, raw):
        nonlocal written
        key, index, good = kinds[area]
        record = dict(good)
        for place, value in damage.items():
            record[list(good)[place % len(good)]] = value
        name = f"r{written:05}"
        written += 1
        server.admin.hset(key.format(name), "data", raw if raw is not None else json.dumps(record))
        server.admin.zadd(index, {name: 1})

    spoil()
    assert written >= 1_000
    for area in kinds:
        found, _ = await everything(board, area)
        assert "zz-good" in [r["id"] for r in found], area


async def test_of_fifty_claimers_on_connections_of_their_own_exactly_one_wins(server, board):
    await board.create_task(task("t"))
    boards = [RedisBlackboard(f"{server.url}/0", timeout_s=10.0, max_connections=1) for _ in range(CLAIMERS)]
    try:
        won = await asyncio.gather(*(b.claim_task("t", f"agent-{n}", NOW) for n, b in enumerate(boards)))
    finally:
        await asyncio.gather(*(b.close() for b in boards))
    assert sum(won) == 1
    assert (await board.task("t"))["agent_id"] == f"agent-{won.index(True)}"
    assert server.admin.zcard("bb:tasks:pending:priority") == 0
    assert server.admin.zrange("bb:tasks:claimed:priority", 0, -1) == [b"t"]


async def test_the_retries_of_a_task_are_written_with_its_end(any_board):
    await any_board.create_task(task("t"))
    await any_board.claim_task("t", US, NOW)
    await any_board.finish_task("t", US, NOW, output={}, error={"error": "e"}, retries=2)
    assert (await any_board.task("t"))["retries"] == 2


async def test_only_an_event_that_may_concern_us_is_a_hint_and_the_subscription_is_kept(server, board):
    performers = peer_input_performers(board)
    hint = asyncio.ensure_future(performers[AwaitHint](AwaitHint(ref="h")))
    while not server.admin.pubsub_channels():
        await asyncio.sleep(0.01)
    server.admin.publish("events:task_created", "garbage")
    await board.add_knowledge(item("own", NOW, agent_id=US))
    await board.create_task(task("other", task_type="ethics_review"))
    await asyncio.sleep(0)
    assert not hint.done()
    await board.create_task(task("t"))
    assert (await asyncio.wait_for(hint, 10)).ref == "h"
    # Published while nobody waits, and there for whoever waits next.
    await board.report_conflict(conflict("c"))
    assert (await asyncio.wait_for(performers[AwaitHint](AwaitHint(ref="i")), 10)).ref == "i"
    assert len(server.admin.pubsub_channels()) == len(records.CHANNELS)


async def test_a_subscription_that_nobody_reads_is_closed_with_the_board(server):
    board = RedisBlackboard(f"{server.url}/0", timeout_s=5.0)
    performers = peer_input_performers(board)
    hint = asyncio.ensure_future(performers[AwaitHint](AwaitHint(ref="h")))
    while not server.admin.pubsub_channels():
        await asyncio.sleep(0.01)
    await board.create_task(task("t"))
    await asyncio.wait_for(hint, 10)
    await board.close()
    async with asyncio.timeout(10):
        while server.admin.pubsub_channels():
            await asyncio.sleep(0.01)


async def test_an_event_of_another_db_only_makes_us_look(server, board):
    other = RedisBlackboard(f"{server.url}/7", timeout_s=5.0)
    performers = peer_input_performers(board)
    hint = asyncio.ensure_future(performers[AwaitHint](AwaitHint(ref="h")))
    while not server.admin.pubsub_channels():
        await asyncio.sleep(0.01)
    await other.create_task(task("theirs"))
    await asyncio.wait_for(hint, 10)
    seen = await performers[ReadPeers](
        ReadPeers(ref="r", cursors={"tasks:pending": ""}, tasks=("theirs",), conflicts=("none",))
    )
    assert seen.pages["tasks:pending"].records == ()
    assert (seen.tasks, seen.conflicts) == ({"theirs": None}, {"none": None})
    await other.close()


@pytest.mark.integration
async def test_a_server_that_restarts_is_read_again_and_hints_are_waited_for_anew(tmp_path):
    server = RealServer("redis", tmp_path)
    server.start()
    board = RedisBlackboard(f"{server.url}/0", timeout_s=1.0)
    performers = peer_input_performers(board)
    await board.create_task(task("t"))
    hint = asyncio.ensure_future(performers[AwaitHint](AwaitHint(ref="h")))
    while not server.admin.pubsub_channels():
        await asyncio.sleep(0.01)
    server.kill()
    with pytest.raises(BlackboardUnavailable):
        await asyncio.wait_for(hint, 20)
    with pytest.raises(BlackboardUnavailable):
        await board.page("tasks:pending")
    server.start()
    assert (await board.page("tasks:pending")).records == ()
    again = asyncio.ensure_future(performers[AwaitHint](AwaitHint(ref="h2")))
    while not server.admin.pubsub_channels():
        await asyncio.sleep(0.01)
    await board.create_task(task("new"))
    assert (await asyncio.wait_for(again, 10)).ref == "h2"
    await board.close()
    server.kill()
