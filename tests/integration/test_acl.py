"""The two users that the README tells an operator to create, on real servers: they can do their work, and nothing else.

The lines are taken out of the README itself, so that what people copy is what is tested.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import redis
from redis.exceptions import NoPermissionError, ResponseError

from cachewarden.errors import TargetRefused
from cachewarden.fleet import KeyPattern, Service
from cachewarden.messages import KnobChange, Lease, TtlRule
from cachewarden.value_sample import VALUE_KINDS
from coordination.redis_target import RedisTarget, TargetLimits
from tests.contract.conftest import SystemClock
from tests.contract.real_servers import ENGINES, RealServer

pytestmark = pytest.mark.integration

README = Path(__file__).resolve().parents[2] / "README.md"
HELD = Lease(service="shop", holder="us", epoch=3, expires_at_ms=2**42)
SAMPLES = KnobChange(knob="maxmemory-samples", before="5", after="7")
RULE = TtlRule(pattern="page:", written_ttl_ms=20_000, extended_ttl_ms=60_000, max_staleness_ms=60_000)


def acl_lines() -> dict[str, list[str]]:
    """Return user to the words of its `ACL SETUSER` line in the README."""
    text = README.read_text().replace("\\\n", " ")
    lines = re.findall(r"^ *ACL SETUSER .*$", text, flags=re.MULTILINE)
    return {words[2]: words for words in map(shlex.split, lines)}


@pytest.fixture(params=ENGINES)
def server(request, tmp_path):
    """A server with a hundred keys of an application, and the README's users."""
    server = RealServer(request.param, tmp_path)
    server.start()
    for words in acl_lines().values():
        # Redis 7.0 does not know this command; the README says to leave it out there.
        server.admin.execute_command(*(w for w in words if request.param == "valkey" or w != "+client|no-touch"))
    for number in range(100):
        server.admin.set(f"page:{number}", b"x" * 100, px=15_000)
    yield server
    server.kill()


@pytest.fixture
async def target_of(server):
    """Build the adapter as one of the users."""
    made: list[RedisTarget] = []

    def make(user: str, *, capture: bool = False, value_samples: bool = False) -> RedisTarget:
        password = next(word[1:] for word in acl_lines()[user] if word.startswith(">"))
        service = Service(
            name="shop", url=server.url, username=user, patterns=(KeyPattern(prefix="page:"),), capture=capture,
            value_samples=value_samples,
        )  # fmt: skip
        limits = TargetLimits(probe_server_share=0.2)
        target = RedisTarget(service, hash_secret=b"acl", clock=SystemClock(), password=password, limits=limits)
        made.append(target)
        return target

    yield make
    for target in made:
        await target.close()


def client_of(server: RealServer, user: str) -> redis.Redis:
    password = next(word[1:] for word in acl_lines()[user] if word.startswith(">"))
    return redis.Redis(port=server.port, username=user, password=password, protocol=2)


def test_the_readme_names_an_observer_and_an_actuator():
    assert sorted(acl_lines()) == ["cachewarden-actuator", "cachewarden-observer"]


@pytest.mark.parametrize("user", ["cachewarden-observer", "cachewarden-actuator"])
async def test_both_users_can_observe_everything(server, target_of, user):
    seen = await target_of(user).observe(sample_keys=50, capture_ms=0, capture_lines=0, capture_rate=1.0)
    assert seen.incomplete == {}
    assert seen.sample is not None
    assert len(seen.sample.key) == 50
    assert (seen.sample.ttl_ms > 0).all()
    assert (seen.sample.size_bytes > 0).all()
    assert (seen.sample.idle_ms >= 0).all()
    assert seen.knobs["maxmemory-policy"] == "noeviction"
    assert seen.capabilities.config_get


async def test_the_observer_is_known_to_have_no_right_to_write_before_anything_is_tried(server, target_of):
    seen = await target_of("cachewarden-observer").counters()
    assert not seen.capabilities.config_set
    assert not seen.capabilities.script
    assert "CONFIG SET" in seen.capabilities.denied


async def test_the_observer_can_neither_change_the_server_nor_a_key_nor_read_a_value(server, target_of):
    target = target_of("cachewarden-observer")
    with pytest.raises(TargetRefused):
        await target.raise_fence(HELD)
    with pytest.raises(TargetRefused):
        await target.write_knobs(HELD, [SAMPLES])
    with pytest.raises(TargetRefused):
        await target.extend_ttls(HELD, RULE, 0, 1_000)
    client = client_of(server, "cachewarden-observer")
    for command in (
        ("SET", "page:1", "y"),
        ("DEL", "page:1"),
        ("PEXPIRE", "page:1", 1),
        ("GET", "page:1"),
        ("DUMP", "page:1"),
        ("CONFIG", "SET", "maxmemory", "1mb"),
        ("EVAL", "return 1", 0),
        ("FLUSHALL",),
        ("MONITOR",),
    ):
        with pytest.raises(NoPermissionError):
            client.execute_command(*command)
    client.close()
    assert server.admin.config_get("maxmemory-samples")["maxmemory-samples"] == "5"
    assert server.admin.dbsize() == 100


async def test_the_actuator_can_do_all_that_a_change_needs(server, target_of):
    target = target_of("cachewarden-actuator")
    seen = await target.counters()
    assert seen.capabilities.config_set
    assert seen.capabilities.script
    await target.raise_fence(HELD)
    assert (await target.write_knobs(HELD, [SAMPLES]))["maxmemory-samples"] == "7"
    done = await target.extend_ttls(HELD, RULE, 0, 1_000)
    assert (done.cursor, done.extended) == (0, 100)
    assert server.admin.pttl("page:7") > 20_000
    back = await target.extend_ttls(HELD, RULE, 0, 1_000, restore=True)
    assert back.extended == 100
    assert server.admin.pttl("page:7") <= RULE.written_ttl_ms
    assert await target.collect_hot_keys(20) == 20
    assert await target.touch_hot_keys(HELD, 1, 1_000) == 20


async def test_the_actuator_can_still_not_read_write_or_delete_what_belongs_to_the_application(server):
    client = client_of(server, "cachewarden-actuator")
    for command in (
        ("GET", "page:1"),
        ("SET", "page:1", "y"),
        ("DEL", "page:1"),
        ("UNLINK", "page:1"),
        ("PERSIST", "page:1"),
        ("EVAL", "return redis.call('GET', KEYS[1])", 1, "page:1"),
        ("FLUSHALL",),
        ("SHUTDOWN",),
        ("ACL", "SETUSER", "x"),
        ("MONITOR",),
    ):
        with pytest.raises(NoPermissionError):
            client.execute_command(*command)
    with pytest.raises(ResponseError):
        # The key is not declared, so the server finds the missing right only when the script reaches for it.
        client.execute_command("EVAL", "return redis.call('GET', 'page:1')", 0)
    client.close()
    assert server.admin.get("page:1") == b"x" * 100


async def test_captures_work_with_the_rights_that_the_readme_adds_for_them(server, target_of):
    extra = re.search(r"`(\+monitor[^`]*)`", README.read_text())
    assert extra is not None, "the README names the rights that captures need"
    server.admin.execute_command("ACL", "SETUSER", "cachewarden-observer", *extra.group(1).split())
    target = target_of("cachewarden-observer", capture=True)
    seen = await target.observe(sample_keys=0, capture_ms=200, capture_lines=1_000, capture_rate=1.0)
    assert seen.incomplete == {}
    assert seen.access is not None
    assert seen.access.aborted is None


async def looked_into(target: RedisTarget):
    return await target.observe(sample_keys=0, capture_ms=0, capture_lines=0, capture_rate=1.0, value_keys=200)


def add_values(server: RealServer) -> None:
    for number in range(20):
        server.admin.set(f"page:large:{number}", f"{number:0100}" * 30)
        server.admin.hset(f"page:hash:{number}", mapping={f"f{n}": f"v{n:090}" for n in range(5)})
        server.admin.sadd(f"page:set:{number}", *range(600))
        server.admin.zadd(f"page:zset:{number}", {f"m{n}": n / 7 for n in range(140)})


async def test_values_can_be_measured_with_the_rights_that_the_readme_adds_for_them(server, target_of):
    extra = re.search(r"`(\+type[^`]*)`", README.read_text())
    assert extra is not None, "the README names the rights that value samples need"
    add_values(server)
    server.admin.execute_command("ACL", "SETUSER", "cachewarden-observer", *extra.group(1).split())
    seen = await looked_into(target_of("cachewarden-observer", value_samples=True))
    assert seen.incomplete == {}
    values = seen.values
    assert len(values.value_row) > 5
    measured = values.collection_row[values.elements_bytes > 0]
    assert {VALUE_KINDS[kind] for kind in values.kind[measured]} == {"hash", "set", "zset"}
    assert values.touched_keys == (0 if server.engine == "valkey" else len(values.value_row) + len(measured))


async def test_without_those_rights_values_are_missing_with_the_servers_reason_and_all_else_is_there(server, target_of):
    add_values(server)
    seen = await looked_into(target_of("cachewarden-observer", value_samples=True))
    assert seen.values is None
    assert "permission" in seen.incomplete["values"]
    assert seen.info


async def test_a_user_that_may_not_ask_for_no_touch_reads_nothing_where_the_server_knows_it(server, target_of):
    if server.engine == "redis":
        pytest.skip("Redis 7.0 does not know CLIENT NO-TOUCH")
    add_values(server)
    server.admin.execute_command("ACL", "SETUSER", "cachewarden-observer", "+@read", "+type", "-client|no-touch")
    seen = await looked_into(target_of("cachewarden-observer", value_samples=True))
    assert seen.values is None
    assert "+client|no-touch" in seen.incomplete["values"]
