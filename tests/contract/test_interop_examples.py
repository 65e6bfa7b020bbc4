"""The examples of docs/INTEROP.md, run as they stand against a real server, and read as we read peers."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest
import redis

from cachewarden.balloting import count
from cachewarden.messages import CONSTITUTIONAL_HASH
from cachewarden.peer_messages import BallotNews
from coordination import blackboard_records as records
from coordination import projection
from coordination.ballot_records import ballot_told
from coordination.blackboard_records import BALLOT_TYPE
from coordination.peer_plans import PlanState, read_plan
from coordination.redis_blackboard import RedisBlackboard
from tests.contract.real_servers import ENGINES, RealServer
from tests.unit.coordination.test_projection import perform, proposal
from tests.unit.library.test_balloting import motion

pytestmark = pytest.mark.integration

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "INTEROP.md").read_text()
US = "cache_performance_optimizer"


def examples() -> dict[str, str]:
    """Return each example by its heading."""
    section = TEXT.partition("\n## In plain redis-py\n")[2].partition("\n## ")[0]
    found = dict(re.findall(r"^### (.+?)\n.*?^```python\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL))
    assert len(found) == 7
    return found


class Peer:
    """Another agent, which does what the page says."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {}
        self.run("Connect")

    def run(self, heading: str) -> None:
        exec(compile(examples()[heading], heading, "exec"), self.names)


@pytest.fixture(params=ENGINES)
def server(request, tmp_path):
    started = RealServer(request.param, tmp_path)
    started.start()
    yield started
    started.kill()


@pytest.fixture
async def board(server):
    made = RedisBlackboard(server.url, timeout_s=5.0)
    yield made
    await made.close()


@pytest.fixture
def peer(server, monkeypatch):
    monkeypatch.setenv("BLACKBOARD_URL", server.url)
    made = Peer()
    yield made
    made.names["r"].close()


@pytest.fixture
def restricted(server, monkeypatch):
    """A peer under the ACL of the page."""
    rule = re.search(r"`ACL SETUSER peer on >… ([^`]+)`", TEXT)
    assert rule is not None
    server.admin.execute_command("ACL", "SETUSER", "peer", "on", ">word", *rule[1].split())
    monkeypatch.setenv("BLACKBOARD_URL", server.url.replace("redis://", "redis://peer:word@"))
    made = Peer()
    yield made
    made.names["r"].close()


def test_a_peer_under_the_acl_of_the_page_does_all_of_it_and_touches_nothing_else(server, restricted):
    for heading in ("Create a task", "Read its result", "Find what is to be voted on, and vote"):
        restricted.run(heading)
    restricted.run("Announce a change, look, and begin")
    restricted.run("Object to a plan")
    restricted.run("Resolve a conflict")
    client = restricted.names["r"]
    for command in (("SET", "cachewarden:lease:shop", "1"), ("FLUSHALL",), ("KEYS", "*"), ("CONFIG", "GET", "*")):
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.execute_command(*command)


async def test_of_a_peer_and_us_who_comes_second_waits(board, peer):
    given = proposal()
    ours, _ = projection.intent(given, now_ms(), now_ms())
    ours["content"]["affected_services"] = ["shop"]
    peer.run("Announce a change, look, and begin")
    assert peer.names["mine"]
    [theirs] = (await board.page("knowledge:performance")).records
    found = read_plan(theirs, frozenset({"shop"}), now_ms())
    assert (found.state, found.key) == (PlanState.ACTIVE, ("ops_agent", peer.names["plan_id"]))
    assert next((t.resource, t.after) for t in found.touches) == ("maxmemory", str(80 << 20))
    await board.add_knowledge(ours)
    peer.run("Announce a change, look, and begin")
    assert not peer.names["mine"]


def now_ms() -> int:
    return time.time_ns() // 1_000_000


async def test_a_task_is_created_claimed_and_its_result_is_read(board, peer):
    peer.run("Create a task")
    [task] = await board.pending_tasks("cache_optimization")
    assert task["id"] == peer.names["task_id"]
    assert task["input_data"]["constitutional_hash"] == CONSTITUTIONAL_HASH
    peer.run("Read its result")
    assert peer.names["result"] is None
    assert await board.claim_task(task["id"], US, now_ms())
    await board.finish_task(task["id"], US, now_ms(), output={"coordination_result": {"status": "done"}}, error=None)
    peer.run("Read its result")
    assert peer.names["result"] == {"coordination_result": {"status": "done"}}


async def test_a_task_that_failed_says_why(board, peer):
    peer.run("Create a task")
    await board.claim_task(peer.names["task_id"], US, now_ms())
    error = {"error": "no such service", "code": "UNKNOWN_SERVICE"}
    await board.finish_task(peer.names["task_id"], US, now_ms(), output=None, error=error)
    peer.run("Read its result")
    assert peer.names["result"] == error


async def test_a_motion_is_found_and_voted_on_with_a_ballot_that_counts(board, peer):
    at_ms = now_ms()
    opened = motion(opened_at_ms=at_ms, deadline_ms=at_ms + 60_000)
    news = BallotNews(outcome=count(opened, [], at_ms), proposal=proposal())
    await perform(board, ballot_told(news, at_ms))
    peer.run("Find what is to be voted on, and vote")
    [told] = peer.names["motions"]
    assert told["motion_id"] == "p-1"
    [item] = await board.query_knowledge("performance", BALLOT_TYPE)
    content = item["content"]
    assert (item["agent_id"], content["subject"], content["choice"]) == ("ops_agent", "p-1", "reject")
    assert content["constitutional_hash"] == CONSTITUTIONAL_HASH
    assert isinstance(records.time_ms(item["expires_at"]), int)


async def test_an_objection_is_an_open_conflict_that_names_us_and_the_service_and_can_be_resolved(board, peer):
    stream = await board.events()
    peer.run("Object to a plan")
    conflict_id = peer.names["conflict_id"]
    objection = await board.conflict(conflict_id)
    assert US in objection["involved_agents"]
    assert objection["resolution_data"]["affected_services"] == ["shop"]
    assert (await anext(stream))["data"]["conflict_id"] == conflict_id
    await stream.aclose()
    peer.run("Resolve a conflict")
    resolved = await board.conflict(conflict_id)
    assert (resolved["status"], resolved["resolution_data"]["winner"]) == ("resolved", US)
    assert not await board.resolve_conflict(conflict_id, "s", {}, now_ms())


async def test_every_record_of_the_examples_survives_our_tidying(board, peer, server):
    for heading in ("Create a task", "Object to a plan"):
        peer.run(heading)
    await perform(board, projection.heartbeat(now_ms(), 300_000, 60_000))
    assert server.admin.exists(f"bb:tasks:{peer.names['task_id']}", f"bb:conflicts:{peer.names['conflict_id']}") == 2
