"""Warming: which keys, for how long, loaded once, and told key by key."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest
from serve_world import fleet

from cachewarden.circuit import CircuitRules
from cachewarden.errors import ConfigurationError, UnknownService
from cachewarden.fleet import Fleet, Origin
from coordination.origin_gate import OriginGate
from coordination.warm_cache import CacheRefused, Presence
from coordination.warm_origins import FileOrigin, HttpOrigin, OriginFailed, Value
from coordination.warm_rules import WarmCourse, WarmOutcome, permit
from coordination.warmer import Warmer


class DictCache:
    """A cache of plain data that remembers what was written."""

    def __init__(self, held: Sequence[str] = (), full: bool = False) -> None:
        self.values: dict[str, bytes] = dict.fromkeys(held, b"newer")
        self.ttl_ms: dict[str, int] = {}
        self.full = full
        self.down = False

    async def present(self, keys: Sequence[str]) -> Presence:
        if self.down:
            raise CacheRefused("the cache does not answer")
        return Presence(tuple(key in self.values for key in keys))

    async def store(self, key: str, data: bytes, ttl_ms: int) -> bool:
        if self.full:
            raise CacheRefused("the cache is full and refuses writes")
        if key in self.values:
            return False
        self.values[key], self.ttl_ms[key] = data, ttl_ms
        return True

    async def close(self) -> None: ...


class DictOrigin:
    """An origin of plain data that counts loads and how many run at once."""

    def __init__(self, values: dict[str, Value]) -> None:
        self.values = values
        self.loads: list[str] = []
        self.running = self.most = 0

    async def fetch(self, key: str) -> Value | None:
        self.loads.append(key)
        self.running += 1
        self.most = max(self.most, self.running)
        for _ in range(3):
            await asyncio.sleep(0)
        self.running -= 1
        if key.endswith("broken"):
            raise OriginFailed("the origin answered 500")
        return self.values.get(key)

    async def close(self) -> None: ...


def with_origin(**fields: object) -> Fleet:
    base = fleet()
    origin = Origin(**{"kind": "http", "url": "http://origin/{key}", "rate_per_s": 100_000, "concurrency": 4, **fields})
    first = base.services[0].model_copy(update={"origin": origin})
    return base.model_copy(update={"services": (first, *base.services[1:])})


def warmer(cache: DictCache, origin: DictOrigin, **more: object) -> Warmer:
    return Warmer(with_origin(), make_cache=lambda _: cache, make_client=lambda _: origin, **more)


async def test_each_key_has_one_outcome_in_the_order_asked():
    cache = DictCache(held=["policy:here"])
    origin = DictOrigin(
        {"policy:new": Value(b"v"), "policy:short:x": Value(b"v"), "policy:own": Value(b"v", ttl_ms=1_000)}
    )
    keys = [
        "policy:new",
        "policy:here",
        "policy:gone",
        "other:key",
        "policy:short:x",
        "policy:broken",
        "policy:own",
        "policy:new",
    ]
    report = await warmer(cache, origin).warm("constitutional_ai", keys)
    assert [k.key for k in report.keys] == keys
    assert [k.outcome.value for k in report.keys] == [
        "warmed",
        "already_cached",
        "not_found",
        "forbidden",
        "warmed",
        "failed",
        "warmed",
        "warmed",
    ]
    assert cache.ttl_ms == {"policy:new": 60_000, "policy:short:x": 5_000, "policy:own": 1_000}
    assert cache.values["policy:here"] == b"newer"
    assert origin.loads.count("policy:new") == 1
    assert origin.most <= 4
    assert all(k.reason for k in report.keys)


async def test_two_requests_for_one_key_share_one_load():
    origin = DictOrigin({"policy:a": Value(b"v")})
    shared = warmer(DictCache(), origin)
    first, second = await asyncio.gather(
        shared.warm("constitutional_ai", ["policy:a"]), shared.warm("constitutional_ai", ["policy:a"])
    )
    assert origin.loads == ["policy:a"]
    assert first.keys[0].outcome is second.keys[0].outcome is WarmOutcome.WARMED


async def test_a_value_that_came_meanwhile_is_not_replaced():
    cache = DictCache()

    class Slow(DictOrigin):
        async def fetch(self, key: str) -> Value | None:
            cache.values[key] = b"newer"
            return Value(b"older")

    report = await warmer(cache, Slow({})).warm("constitutional_ai", ["policy:a"])
    assert report.keys[0].outcome is WarmOutcome.ALREADY_CACHED
    assert cache.values["policy:a"] == b"newer"


async def test_a_full_or_dead_cache_is_an_outcome_with_its_reason():
    full = await warmer(DictCache(full=True), DictOrigin({"policy:a": Value(b"v")})).warm(
        "constitutional_ai", ["policy:a"]
    )
    assert (full.keys[0].outcome, full.keys[0].reason) == (WarmOutcome.FAILED, "the cache is full and refuses writes")
    dead_cache = DictCache()
    dead_cache.down = True
    dead = await warmer(dead_cache, DictOrigin({})).warm("constitutional_ai", ["policy:a", "other:key"])
    assert [k.outcome for k in dead.keys] == [WarmOutcome.FAILED, WarmOutcome.FORBIDDEN]


async def test_without_an_origin_missing_keys_say_so():
    report = await Warmer(fleet(), make_cache=lambda _: DictCache(held=["policy:a"])).warm(
        "constitutional_ai", ["policy:a", "policy:b"]
    )
    assert [k.outcome for k in report.keys] == [WarmOutcome.ALREADY_CACHED, WarmOutcome.NO_ORIGIN]


async def test_no_load_begins_after_the_deadline():
    origin = DictOrigin({})
    report = await warmer(DictCache(), origin, deadline_s=-1.0).warm("constitutional_ai", ["policy:a"])
    assert origin.loads == []
    assert report.keys[0].outcome is WarmOutcome.FAILED


class DownOrigin(DictOrigin):
    """An origin that does not answer for its first loads."""

    def __init__(self, failing: int) -> None:
        super().__init__({})
        self.failing = failing

    async def fetch(self, key: str) -> Value | None:
        self.loads.append(key)
        if len(self.loads) <= self.failing:
            raise OriginFailed("the origin cannot be asked: ConnectError", outage=True)
        return Value(b"v")


def quick_gate() -> OriginGate:
    return OriginGate(CircuitRules(failures_max=3, open_ms=20, open_ms_max=40))


async def test_an_origin_that_is_down_is_left_alone_and_the_keys_are_told_so():
    origin = DownOrigin(failing=1_000)
    keys = [f"policy:{i}" for i in range(200)]
    report = await warmer(DictCache(), origin).warm("constitutional_ai", keys)
    assert {k.outcome for k in report.keys} == {WarmOutcome.FAILED}
    assert len(origin.loads) <= 8 + 4
    assert "left alone" in report.keys[-1].reason


async def test_a_patient_job_waits_for_an_origin_and_goes_on():
    origin = DownOrigin(failing=5)
    keys = [f"policy:{i}" for i in range(50)]
    shared = warmer(DictCache(), origin, make_gate=quick_gate)
    report = await shared.warm("constitutional_ai", keys, WarmCourse(patient=True))
    assert report.counts()["warmed"] == 45


async def test_a_patient_job_gives_up_on_an_origin_that_stays_down():
    origin = DownOrigin(failing=10_000)
    keys = [f"policy:{i}" for i in range(300)]
    shared = warmer(DictCache(), origin, make_gate=quick_gate)
    report = await shared.warm("constitutional_ai", keys, WarmCourse(patient=True))
    assert report.counts()["failed"] == 300
    assert len(origin.loads) < 20


async def test_no_more_loads_are_under_way_than_permitted_however_long_the_list_is():
    origin = DictOrigin({f"policy:{i}": Value(b"v") for i in range(5_000)})
    most = 0
    shared = warmer(DictCache(), origin)

    def noted(_: object) -> None:
        nonlocal most
        most = max(most, len(shared._lanes["constitutional_ai"].flights))

    keys = list(origin.values)
    report = await shared.warm("constitutional_ai", keys, WarmCourse(patient=True, noted=noted))
    assert report.counts()["warmed"] == 5_000
    assert origin.most <= 4
    assert most <= 4


async def test_what_is_stopped_loads_nothing_more():
    origin = DictOrigin({f"policy:{i}": Value(b"v") for i in range(100)})
    course = WarmCourse(patient=True, stop=lambda: len(origin.loads) >= 10)
    report = await warmer(DictCache(), origin).warm("constitutional_ai", list(origin.values), course)
    assert len(origin.loads) <= 10 + 4
    assert report.keys[-1].reason == "stopped before it was loaded"


async def test_a_dry_run_loads_and_writes_nothing():
    cache, origin = DictCache(held=["policy:here"]), DictOrigin({"policy:a": Value(b"v")})
    report = await warmer(cache, origin).warm(
        "constitutional_ai", ["policy:a", "policy:here", "other:x"], WarmCourse(dry_run=True)
    )
    assert [k.outcome.value for k in report.keys] == ["would_warm", "already_cached", "forbidden"]
    assert origin.loads == []
    assert set(cache.values) == {"policy:here"}


async def test_an_unknown_service_is_an_error():
    with pytest.raises(UnknownService):
        await warmer(DictCache(), DictOrigin({})).warm("nobody", ["a"])


@pytest.mark.constitutional
@pytest.mark.parametrize(
    ("service", "key", "word"),
    [
        ("constitutional_ai", "bb:agents:x", "blackboard"),
        ("constitutional_ai", "cachewarden:fence", "cachewarden"),
        ("constitutional_ai", "policy:board:x", "another tenant"),
        ("constitutional_ai", "else:x", "outside the patterns"),
        ("blackboard_service", "policy:board:x", "mode `off`"),
        ("integrity_service", "policy:x", "mode `advise`"),
        ("api_gateway", "x", "no TTL"),
        ("constitutional_ai", "policy:" + "x" * 1024, "1024"),
    ],
)
def test_a_key_that_no_rule_permits_is_forbidden_with_the_reason(service: str, key: str, word: str):
    one = fleet()
    answer = permit(one, one.service(service), key, reserved=("cachewarden:",))
    assert not answer.allowed
    assert word in answer.reason


def http_origin(handler: object, **fields: object) -> HttpOrigin:
    origin = Origin(**{"kind": "http", "url": "http://origin/v/{key}", **fields})
    return HttpOrigin(origin, 10, transport=httpx.MockTransport(handler))


async def test_a_key_cannot_leave_the_path_of_the_template():
    asked: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        return httpx.Response(200, content=b"v")

    for key in ("a/../../admin", "@evil/", "?x=1#y", "a b", "ü"):
        await http_origin(handler).fetch(key)
    assert all(url.startswith("http://origin/v/") and "/admin" not in url and "?" not in url for url in asked)
    with pytest.raises(OriginFailed):
        await http_origin(handler).fetch("..")


@pytest.mark.parametrize("status", [204, 404, 410])
async def test_an_http_origin_without_the_key_says_none(status: int):
    assert await http_origin(lambda _: httpx.Response(status)).fetch("a") is None


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        (httpx.Response(500), "500"),
        (httpx.Response(302, headers={"Location": "http://evil/"}), "302"),
        (httpx.Response(200, content=b"x" * 11), "larger"),
        (httpx.Response(200, headers={"Content-Length": str(10 << 20)}, content=b"x"), "larger"),
        (httpx.Response(200, headers={"Content-Encoding": "x-garbage"}, content=b"x"), "encoding"),
    ],
)
async def test_an_http_origin_that_cannot_give_the_value_fails_in_words(answer: httpx.Response, word: str):
    with pytest.raises(OriginFailed, match=word):
        await http_origin(lambda _: answer).fetch("a")


@pytest.mark.parametrize("url", ["http://{key}/x", "ftp://origin/{key}", "http://origin/x", "{key}"])
def test_a_template_that_gives_the_key_the_server_is_refused(url: str):
    with pytest.raises(ConfigurationError):
        HttpOrigin(Origin(kind="http", url=url), 10)


async def test_a_file_is_an_object_or_lines_and_is_read_again_when_it_changes(tmp_path: Path):
    path = tmp_path / "values.json"
    origin = FileOrigin(Origin(kind="file", url=str(path)), 100)
    path.write_text(json.dumps({"a": "text", "b": {"n": 1}}))
    assert await origin.fetch("a") == Value(b"text")
    assert await origin.fetch("b") == Value(b'{"n":1}')
    path.write_text('{"key": "a", "value": "one line", "ttl_s": 1.5}\n')
    assert await origin.fetch("a") == Value(b"one line", 1_500)
    assert await origin.fetch("b") is None
    path.write_text('{"key": "a", "value": "x"}\n{"value": 1}\n')
    with pytest.raises(OriginFailed, match="line 2"):
        await origin.fetch("a")
    path.unlink()
    with pytest.raises(OriginFailed, match="cannot be read"):
        await origin.fetch("a")
