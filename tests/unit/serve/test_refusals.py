"""What the API refuses, in which shape, and that junk never becomes a 5xx."""

from __future__ import annotations

import json

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serve_world import Site

from cachewarden.messages import CONSTITUTIONAL_HASH
from serve.api import Refusals
from serve.security import revoke_token

OPTIMIZE = "/api/v1/cache/optimize"
WHOLE = {"service_name": "constitutional_ai"}


def error_of(response: httpx.Response, status: int, code: str) -> dict:
    """The error, after its shape and headers were checked."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {
        "id",
        "timestamp",
        "constitutional_hash",
        "request",
        "code",
        "message",
        "status_code",
        "details",
    }
    assert error["code"] == code
    assert error["status_code"] == status
    assert error["constitutional_hash"] == CONSTITUTIONAL_HASH
    assert response.headers["X-Error-ID"] == error["id"]
    assert response.headers["X-Constitutional-Hash"] == CONSTITUTIONAL_HASH
    assert "X-Constitutional-Compliance" not in response.headers
    assert response.headers["X-Request-ID"]
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["X-Frame-Options"] == "DENY"
    assert "X-XSS-Protection" in response.headers
    assert not error["message"].endswith(".")
    return error


async def test_a_good_answer_carries_the_prescribed_headers(site: Site):
    response = await site.ask(
        "GET", "/api/v1/cache/metrics", headers={"X-Request-ID": "req-1", "X-Constitutional-Hash": CONSTITUTIONAL_HASH}
    )
    assert response.headers["X-Constitutional-Hash"] == CONSTITUTIONAL_HASH
    assert response.headers["X-Constitutional-Compliance"] == "verified"
    assert response.headers["X-Request-ID"] == "req-1"
    assert response.headers["X-Content-Type-Options"] == "nosniff"


async def test_a_request_id_that_could_break_a_log_is_replaced(site: Site):
    response = await site.ask("GET", "/health", token=None, headers={"X-Request-ID": "a b\tc"})
    assert response.headers["X-Request-ID"] != "a b\tc"


@pytest.mark.constitutional
async def test_a_wrong_hash_in_the_header_is_refused_audited_and_does_nothing(site: Site):
    response = await site.ask("POST", OPTIMIZE, json=WHOLE, headers={"X-Constitutional-Hash": "deadbeef"})
    error_of(response, 403, "CONSTITUTIONAL_VIOLATION")
    (record,) = site.backend.records
    assert record.kind == "request_refused"
    assert record.payload["received"] == "deadbeef"
    assert record.payload["caller"] == "operator"
    assert site.backend.executed == []


@pytest.mark.constitutional
async def test_a_wrong_hash_behind_a_right_one_in_a_second_header_is_refused(site: Site):
    transport = httpx.ASGITransport(app=site.app)
    both = [("X-Constitutional-Hash", CONSTITUTIONAL_HASH), ("X-Constitutional-Hash", "deadbeef")]
    headers = [("Authorization", f"Bearer {site.tokens['operate']}"), *both]
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        error_of(await client.get("/api/v1/cache/services", headers=headers), 403, "CONSTITUTIONAL_VIOLATION")
    assert [r.payload["received"] for r in site.backend.records] == ["deadbeef"]


@pytest.mark.constitutional
@pytest.mark.parametrize("wrong", ["deadbeef", "", None, 7, [CONSTITUTIONAL_HASH], "\ud800", "x" * 5000])
async def test_a_wrong_hash_in_the_body_is_refused_even_if_the_rest_is_wrong_too(site: Site, wrong: object):
    body = json.dumps({"service_name": 5, "constitutional_hash": wrong})
    response = await site.ask("POST", OPTIMIZE, content=body, headers={"Content-Type": "application/json"})
    error_of(response, 403, "CONSTITUTIONAL_VIOLATION")
    assert [r.kind for r in site.backend.records] == ["request_refused"]


@pytest.mark.constitutional
async def test_a_wrong_hash_is_refused_on_health_too_and_a_stranger_cannot_fill_the_journal(site: Site):
    for _ in range(5):
        error_of(
            await site.ask("GET", "/health", token=None, headers={"X-Constitutional-Hash": "no"}),
            403,
            "CONSTITUTIONAL_VIOLATION",
        )
    assert len(site.backend.records) == 1
    site.backend.clock_ms += 10_000
    await site.ask("GET", "/health", token=None, headers={"X-Constitutional-Hash": "no"})
    assert site.backend.records[1].payload["suppressed_before"] == 4


@pytest.mark.constitutional
async def test_a_wrong_hash_is_refused_when_the_journal_is_down_and_the_lack_is_counted(site: Site):
    site.backend.journal_down = True
    error_of(
        await site.ask("POST", OPTIMIZE, json=WHOLE, headers={"X-Constitutional-Hash": "no"}),
        403,
        "CONSTITUTIONAL_VIOLATION",
    )
    assert "cachewarden_refusals_unaudited_total 1.0" in (await site.ask("GET", "/metrics")).text


async def test_a_missing_hash_is_ours_by_default(site: Site):
    assert (await site.ask("POST", OPTIMIZE, json=WHOLE)).status_code == 200


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer ", "Basic abc", "Bearer cw_wrong", "Bearer " + "x" * 5000, "Bearer \xe9"],
)
async def test_without_a_valid_token_nothing_is_told(site: Site, authorization: str | None):
    headers = {} if authorization is None else {"Authorization": authorization.encode("latin-1")}
    for method, path in (("POST", OPTIMIZE), ("GET", "/metrics"), ("GET", "/api/v1/audit"), ("GET", "/openapi.json")):
        response = await site.ask(method, path, token=None, headers=headers, content=b"{")
        error_of(response, 401, "AUTHENTICATION_FAILED")
        assert response.headers["WWW-Authenticate"].startswith("Bearer")


async def test_a_token_without_the_scope_is_403_and_told_which_one_is_needed(site: Site):
    error = error_of(await site.ask("POST", OPTIMIZE, json=WHOLE, token="read"), 403, "AUTHORIZATION_FAILED")
    assert error["details"]["required_scope"] == "operate"
    assert (await site.ask("POST", OPTIMIZE, json=WHOLE, token="admin")).status_code == 200


async def test_a_revoked_token_is_worth_nothing_at_once(site: Site):
    assert (await site.ask("GET", "/api/v1/agents", token="read")).status_code == 200
    revoke_token(site.app.state.gate._tokens._path.parent, "reader")
    error_of(await site.ask("GET", "/api/v1/agents", token="read"), 401, "AUTHENTICATION_FAILED")


async def test_a_broken_token_file_admits_nobody(site: Site):
    site.app.state.gate._tokens._path.write_text("{")
    for _ in range(2):
        error_of(await site.ask("GET", "/api/v1/agents"), 503, "SERVICE_UNAVAILABLE")


async def test_an_unknown_service_is_404_with_the_one_that_was_meant(site: Site):
    error = error_of(await site.ask("POST", OPTIMIZE, json={"service_name": "constitutional_al"}), 404, "HTTP_404")
    assert error["details"]["did_you_mean"] == "constitutional_ai"
    assert error["details"]["known_services"] == sorted(site.backend.fleet.names)
    assert site.backend.records == []


async def test_an_unknown_field_is_named_with_the_one_that_was_meant(site: Site):
    error = error_of(
        await site.ask("POST", OPTIMIZE, json={**WHOLE, "optimisation_type": "ttl"}), 422, "VALIDATION_ERROR"
    )
    assert "optimisation_type" in error["message"]
    assert "optimization_type" in error["message"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("service_name", 5),
        ("service_name", ""),
        ("service_name", None),
        ("service_name", "x" * 201),
        ("optimization_type", "magic"),
        ("optimization_type", None),
        ("force_optimization", "yes"),
        ("force_optimization", 1),
        ("target_metrics", []),
        ("target_metrics", {"hit_rate": 0.9}),
        ("target_metrics", {"cache_hit_rate": 1.1}),
        ("target_metrics", {"cache_hit_rate": "0.9"}),
        ("target_metrics", {"cache_hit_rate": None}),
        ("target_metrics", {"p99_latency_ms": 0}),
        ("target_metrics", {"p99_latency_ms": -1}),
        ("target_metrics", {"cache_hit_rate": True}),
    ],
)
async def test_what_does_not_fit_is_422_and_names_the_field(site: Site, field: str, value: object):
    error = error_of(await site.ask("POST", OPTIMIZE, json={**WHOLE, field: value}), 422, "VALIDATION_ERROR")
    assert field in error["details"]["validation_errors"][0]["field"]
    assert site.backend.records == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"{", 400),
        (b"nonsense", 400),
        (b"\xff\xfe", 400),
        (b'{"service_name": NaN}', 400),
        (b"Infinity", 400),
        (b"[]", 422),
        (b"null", 422),
        (b"5", 422),
        (b'"text"', 422),
        (b'{"a": 1, "a": 2}', 400),
        (b"[" * 60_000, 400),
        (b"1" * 5_000, 400),
        (b'{"service_name": "\\ud800"}', 422),
        (b'{"\\ud800": 1, "service_name": "constitutional_ai"}', 422),
        (b'{"service_name": "constitutional_ai", "target_metrics": {"p99_latency_ms": 1e999}}', 422),
    ],
)
async def test_what_is_no_request_is_a_clear_4xx(site: Site, body: bytes, status: int):
    response = await site.ask("POST", OPTIMIZE, content=body, headers={"Content-Type": "application/json"})
    error_of(response, status, "HTTP_400" if status == 400 else "VALIDATION_ERROR")


@pytest.mark.parametrize(
    "media_type", ["text/plain", "application/x-www-form-urlencoded", "", "multipart/form-data; boundary=x"]
)
async def test_what_is_not_sent_as_json_is_415(site: Site, media_type: str):
    response = await site.ask(
        "POST", OPTIMIZE, content=b'{"service_name": "constitutional_ai"}', headers={"Content-Type": media_type}
    )
    error_of(response, 415, "HTTP_415")


async def test_json_with_a_charset_or_a_suffix_is_taken(site: Site):
    for media_type in ("application/json; charset=utf-8", "application/vnd.acgs+json"):
        response = await site.ask(
            "POST", f"{OPTIMIZE}?apply=never", content=json.dumps(WHOLE), headers={"Content-Type": media_type}
        )
        assert response.status_code == 200, response.text


async def test_a_huge_body_is_413_whether_it_says_so_or_not(site: Site):
    async def stream():
        for _ in range(100):
            yield b"x" * 1024

    for content in (b"x" * 65_537, stream()):
        response = await site.ask("POST", OPTIMIZE, content=content, headers={"Content-Type": "application/json"})
        error_of(response, 413, "HTTP_413")


async def test_unknown_routes_and_methods_have_the_same_shape(site: Site):
    error_of(await site.ask("GET", "/api/v1/nothing"), 404, "HTTP_404")
    error_of(await site.ask("GET", "/api/v1/agents/"), 404, "HTTP_404")
    error = error_of(await site.ask("DELETE", OPTIMIZE), 405, "HTTP_405")
    assert "POST" in error["message"]
    assert error["request"] == {"method": "DELETE", "path": OPTIMIZE, "query_params": {}}


@pytest.mark.parametrize("query", ["apply=maybe", "apply="])
async def test_a_wrong_query_parameter_is_422(site: Site, query: str):
    error_of(await site.ask("POST", f"{OPTIMIZE}?{query}", json=WHOLE), 422, "VALIDATION_ERROR")
    error_of(await site.ask("GET", "/api/v1/audit?limit=0"), 422, "VALIDATION_ERROR")


async def test_a_bug_of_ours_leaks_nothing(site: Site):
    async def broken() -> None:
        raise RuntimeError("password=hunter2")

    site.backend.state = broken  # type: ignore[method-assign, assignment]
    response = await site.ask("GET", "/api/v1/cache/metrics")
    error_of(response, 500, "INTERNAL_SERVER_ERROR")
    assert "hunter2" not in response.text


async def test_long_input_is_never_echoed_whole(site: Site):
    long = "y" * 190
    response = await site.ask("POST", OPTIMIZE, json={"service_name": long})
    assert "y" * 101 not in response.text
    response = await site.ask("GET", f"/api/v1/cache/services/{long}?{long}={long}")
    assert "y" * 101 not in response.text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["service_name", "cache_keys", "target_metrics", "force_optimization", "reason", "constitutional_hash"]
            )
            | st.text(max_size=10),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.binary(max_size=300) | JSON.map(lambda value: json.dumps(value).encode()),
    path=st.sampled_from([OPTIMIZE, "/api/v1/cache/warm", "/api/v1/control/pause"]),
    media_type=st.sampled_from(["application/json", "text/plain"]),
)
async def test_random_junk_is_never_a_5xx(site: Site, body: bytes, path: str, media_type: str):
    response = await site.ask("POST", path, content=body, headers={"Content-Type": media_type})
    assert response.status_code < 500, response.text
    if response.status_code >= 400:
        assert response.json()["error"]["constitutional_hash"] == CONSTITUTIONAL_HASH


def test_a_flood_of_refusals_makes_one_line_a_second_for_each_kind_and_route_and_says_how_many_it_passed_over():
    refusals = Refusals()
    told = [refusals.told("StateTooOld", "/a", 10.0 + n / 1000) for n in range(1_000)]
    assert [n for n in told if n is not None] == [0]
    assert refusals.told("JournalUnavailable", "/a", 10.5) == 0
    assert refusals.told("StateTooOld", "/b", 10.5) == 0
    assert refusals.told("StateTooOld", "/a", 11.0) == 999
    assert refusals.told("StateTooOld", "/a", 11.9) is None
    assert refusals.told("StateTooOld", "/a", 12.0) == 1
