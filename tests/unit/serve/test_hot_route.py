"""The short way of the decision route answers exactly what the whole way answers, and nothing that it would refuse."""

from __future__ import annotations

import json

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serve_world import MemoryBackend, Site, idle, proposal, standing, state

from cachewarden.messages import CONSTITUTIONAL_HASH
from serve.api import create_app
from serve.envelope import in_envelope, in_good_envelope
from serve.hot_route import HotPath
from serve.security import TokenStore

OPTIMIZE = "/api/v1/cache/optimize"
GOOD: dict[str, object] = {"service_name": "constitutional_ai"}
MOVING = {"performance_metrics", "decision_id"}


@pytest.fixture
def counted(site: Site, monkeypatch):
    """The site, and how often each way was gone."""
    gone: list[str] = []
    hot = site.app.hot
    assert hot is not None
    whole = hot._whole

    async def counting(scope, receive, send) -> None:
        gone.append("whole")
        await whole(scope, receive, send)

    monkeypatch.setattr(hot, "_whole", counting)
    return site, gone


async def test_a_plain_request_goes_the_short_way_and_a_doubtful_one_the_whole(counted):
    site, gone = counted
    assert (await site.ask("POST", OPTIMIZE, json=GOOD)).status_code == 200
    assert (await site.ask("POST", f"{OPTIMIZE}?apply=never", json=GOOD)).status_code == 200
    assert gone == []
    assert (await site.ask("POST", f"{OPTIMIZE}?apply=maybe", json=GOOD)).status_code == 422
    assert gone == ["whole"]


def force_whole(monkeypatch) -> None:
    monkeypatch.setattr(HotPath, "_asked", lambda *_: (None, ""))


def comparable(response: httpx.Response) -> tuple[int, dict, object]:
    """What must be equal: status, headers but those of the moment, body but ids and times."""
    moving = {"x-request-id", "x-error-id", "x-processing-time-ms", "content-length"}
    headers = {name: value for name, value in response.headers.items() if name not in moving}
    body = response.json()
    if "error" in body:
        body["error"] = {k: v for k, v in body["error"].items() if k not in ("id", "timestamp")}
    else:
        assert set(body["performance_metrics"]) >= {"decision_ms", "journal_ms", "optimization_duration_ms"}
        body = {k: v for k, v in body.items() if k not in MOVING}
    return response.status_code, headers, body


async def both(site: Site, **asked: object) -> tuple[object, object]:
    query = str(asked.pop("query", ""))
    first = comparable(await site.ask("POST", OPTIMIZE + query, **asked))
    with pytest.MonkeyPatch.context() as patched:
        force_whole(patched)
        second = comparable(await site.ask("POST", OPTIMIZE + query, **asked))
    return first, second


def raw(text: str | bytes, **headers: str) -> dict[str, object]:
    content = text.encode() if isinstance(text, str) else text
    return {"content": content, "headers": {"Content-Type": "application/json", **headers}}


CASES: dict[str, dict[str, object]] = {
    "plain": {"json": GOOD},
    "dry run": {"json": GOOD, "query": "?apply=never"},
    "async": {"json": GOOD, "query": "?apply=async"},
    "apply twice": {"json": GOOD, "query": "?apply=never&apply=async"},
    "unknown apply": {"json": GOOD, "query": "?apply=maybe"},
    "another parameter": {"json": GOOD, "query": "?verbose=1"},
    "every field": {
        "json": {
            **GOOD,
            "optimization_type": "memory",
            "force_optimization": False,
            "target_metrics": {"cache_hit_rate": 0.9, "p99_latency_ms": 1},
            "constitutional_hash": CONSTITUTIONAL_HASH,
        }
    },
    "targets met": {"json": {**GOOD, "target_metrics": {"cache_hit_rate": 0.1}}},
    "unknown service": {"json": {"service_name": "constitutional_al"}},
    "unknown field": {"json": {**GOOD, "optimisation_type": "ttl"}},
    "unknown enum value": {"json": {**GOOD, "optimization_type": "everything"}},
    "wrong type": {"json": {**GOOD, "force_optimization": "yes"}},
    "number as text": {"json": {**GOOD, "target_metrics": {"cache_hit_rate": "0.9"}}},
    "wrong hash in the body": {"json": {**GOOD, "constitutional_hash": "deadbeef"}},
    "hash that is no text": {"json": {**GOOD, "constitutional_hash": None}},
    "wrong hash in the header": {"json": GOOD, "headers": {"X-Constitutional-Hash": "deadbeef"}},
    "right hash in the header": {"json": GOOD, "headers": {"X-Constitutional-Hash": CONSTITUTIONAL_HASH}},
    "no body": raw(""),
    "no object": raw("[]"),
    "null": raw("null"),
    "broken": raw('{"service_name": '),
    "not UTF-8": raw(b'{"service_name": "\xff"}'),
    "NaN": raw('{"service_name": "constitutional_ai", "target_metrics": {"cache_hit_rate": NaN}}'),
    "NaN as a name": raw('{"service_name": NaN}'),
    "huge number": raw('{"service_name": "constitutional_ai", "target_metrics": {"p99_latency_ms": 1e999}}'),
    "longest number": raw("1" * 5_000),
    "duplicate key": raw('{"service_name": "nobody", "service_name": "constitutional_ai"}'),
    "duplicate key inside": raw(
        '{"service_name": "constitutional_ai", "target_metrics": {"cache_hit_rate": 1, "cache_hit_rate": 0.1}}'
    ),
    "deep nesting": raw("[" * 60_000),
    "deep nesting in a field": raw('{"service_name": ' + "[" * 20_000 + "]" * 20_000 + "}"),
    "lone surrogate": raw('{"service_name": "\\ud800"}'),
    "too large": raw(b"x" * 65_537),
    "with a charset": {"content": json.dumps(GOOD), "headers": {"Content-Type": "application/json; charset=utf-8"}},
    "with a suffix": {"content": json.dumps(GOOD), "headers": {"Content-Type": "application/vnd.acgs+json"}},
    "as text": {"content": json.dumps(GOOD), "headers": {"Content-Type": "text/plain"}},
    "without a token": {"json": GOOD, "token": None},
    "with a wrong token": {"json": GOOD, "token": "cw_wrong"},
    "with a token of the wrong scope": {"json": GOOD, "token": "read"},
    "as admin": {"json": GOOD, "token": "admin"},
}


@pytest.mark.parametrize("name", CASES)
async def test_both_ways_answer_alike(site: Site, name: str):
    first, second = await both(site, **dict(CASES[name]))
    assert first == second


async def test_a_body_that_was_read_before_is_not_read_again_and_says_the_same(site: Site):
    hot = site.app.hot
    assert hot is not None
    asked = raw(json.dumps(GOOD))
    first = comparable(await site.ask("POST", OPTIMIZE, **asked))
    (known,) = hot._known.values()
    assert comparable(await site.ask("POST", OPTIMIZE, **asked)) == first
    assert next(iter(hot._known.values())) is known
    # What was refused once is refused again, and never remembered.
    for _ in range(2):
        assert (await site.ask("POST", OPTIMIZE, **raw('{"service_name": 1}'))).status_code == 422
    assert len(hot._known) == 1


async def test_bodies_are_remembered_within_bounds(site: Site):
    hot = site.app.hot
    assert hot is not None
    long = json.dumps({**GOOD, "constitutional_hash": CONSTITUTIONAL_HASH}) + " " * 5_000
    assert (await site.ask("POST", OPTIMIZE, **raw(long))).status_code == 200
    assert not hot._known
    for n in range(300):
        body = json.dumps(GOOD) + " " * n
        assert hot._read(body.encode()) is not None
    assert len(hot._known) <= 256


@pytest.mark.parametrize("fault", ["journal", "state", "silence"])
async def test_both_ways_fail_alike(site: Site, fault: str):
    if fault == "journal":
        site.backend.journal_down = True
    elif fault == "state":
        site.backend.known = None
    else:
        site.backend.age_s = 60.0
    first, second = await both(site, json=GOOD)
    assert first == second
    assert first[0] == 503


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.dictionaries(
        st.sampled_from(["service_name", "optimization_type", "force_optimization", "target_metrics", "x"]),
        st.sampled_from(["constitutional_ai", "ttl", True, None, 1, 0.5, {"cache_hit_rate": 0.9}, {}, [], "nobody"]),
    )
)
async def test_both_ways_answer_alike_whatever_is_put_together(tmp_path_factory, body: dict[str, object]):
    site = Site(
        MemoryBackend(state(standing={**idle("api_gateway"), **standing(proposal())})), tmp_path_factory.mktemp("t")
    )
    body = {**body, "force_optimization": False} if body.get("force_optimization") is True else body
    first, second = await both(site, json=body, query="?apply=never")
    assert first == second


async def test_the_published_schema_is_the_one_that_the_short_way_validates_with(site: Site):
    document = (await site.ask("GET", "/openapi.json")).json()
    operation = document["paths"][OPTIMIZE]["post"]
    reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    published = document["components"]["schemas"][reference.rsplit("/", 1)[1]]
    answer = (await site.ask("POST", f"{OPTIMIZE}?apply=never", json=GOOD)).json()
    reference = operation["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
    told = document["components"]["schemas"][reference.rsplit("/", 1)[1]]
    assert set(answer) == set(told["properties"])
    for name, example in published["properties"].items():
        assert name in {
            **GOOD,
            "optimization_type": 1,
            "force_optimization": 1,
            "target_metrics": 1,
            "constitutional_hash": 1,
        }, example
    assert published["additionalProperties"] is False


def test_the_headers_of_a_good_answer_are_those_of_every_answer():
    body = b"{}"
    for request_id in ("abc", None):
        short = in_good_envelope(body, request_id, 0.0)
        given = [(b"content-type", b"application/json"), (b"content-length", b"2")]
        whole = in_envelope(given, 200, request_id, 0.0)
        assert len(short) == len(dict(short))
        assert dict(short).keys() == dict(whole).keys()
        moving = b"x-processing-time-ms"
        assert {k: v for k, v in short if k != moving} == {k: v for k, v in whole if k != moving}


async def test_where_the_server_names_requests_answers_leave_it_to_the_server(site: Site):
    app = create_app(site.backend, TokenStore(site.state_dir), ids_by_server=True)
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    headers = {"Authorization": f"Bearer {site.tokens['operate']}", "X-Request-ID": "mine"}
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
        for body in (GOOD, {**GOOD, "unknown": 1}):
            answer = await client.post(OPTIMIZE, json=body)
            assert "x-request-id" not in answer.headers
            assert "x-constitutional-hash" in answer.headers
        site.backend.record = None  # A bug of ours.
        answer = await client.post(OPTIMIZE, json=GOOD)
        assert answer.status_code == 500
        assert "x-request-id" not in answer.headers
