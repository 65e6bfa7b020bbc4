"""Who is let in, and who is told when to ask again."""

from __future__ import annotations

import pytest
from serve_world import MemoryBackend, Site, proposal, standing, state

from cachewarden.protocol import RunCycle
from cachewarden.settings import CacheOptimizerSettings
from serve.admission import Admission, TokenBucket
from serve.errors import ApiError

OPTIMIZE = "/api/v1/cache/optimize?apply=never"
GOOD = {"service_name": "constitutional_ai"}


def test_a_bucket_gives_its_burst_at_once_and_then_its_rate():
    bucket = TokenBucket(rate_per_s=10.0, burst=5.0, now_s=100.0)
    assert [bucket.take(100.0) for _ in range(5)] == [0.0] * 5
    assert bucket.take(100.0) == pytest.approx(0.1)
    assert bucket.take(100.1) == 0.0
    assert bucket.take(100.1) > 0.0


def test_a_bucket_never_holds_more_than_its_burst_however_long_nobody_asks():
    bucket = TokenBucket(rate_per_s=10.0, burst=3.0, now_s=0.0)
    assert [bucket.take(1e6) == 0.0 for _ in range(5)] == [True, True, True, False, False]


def test_a_clock_that_goes_back_fills_no_bucket():
    bucket = TokenBucket(rate_per_s=10.0, burst=1.0, now_s=100.0)
    assert bucket.take(100.0) == 0.0
    assert bucket.take(50.0) > 0.0
    assert bucket.take(100.0) > 0.0


def test_one_token_does_not_pay_for_another():
    admission = Admission(rate_per_s=1.0, decisions_max=10, waiting_max=10)
    admission.charge("a", 0.0)
    with pytest.raises(ApiError) as refused:
        admission.charge("a", 0.0)
    assert refused.value.status_code == 429
    assert refused.value.headers["Retry-After"] == "1"
    admission.charge("b", 0.0)
    assert admission.limited == 1


def test_room_that_was_taken_is_given_back_however_the_decision_ends():
    admission = Admission(rate_per_s=1.0, decisions_max=1, waiting_max=1)
    with admission:
        with pytest.raises(ApiError) as refused, admission:
            raise AssertionError("there was no room")
        assert refused.value.status_code == 503
    with pytest.raises(KeyError), admission:
        raise KeyError("a decision that failed")
    with admission:
        pass
    assert (admission.deciding, admission.shed) == (0, 1)


def test_a_place_to_wait_is_given_back_however_the_wait_ends():
    admission = Admission(rate_per_s=1.0, decisions_max=1, waiting_max=1)
    with admission.place_to_wait() as first, admission.place_to_wait() as second:
        assert (first, second, admission.waiting) == (True, False, 1)
    with pytest.raises(KeyError), admission.place_to_wait():
        raise KeyError("a change that failed")
    assert admission.waiting == 0


async def test_a_change_whose_request_finds_no_place_to_wait_is_handed_over_and_answered_at_once(tmp_path):
    limits = CacheOptimizerSettings(_env_file=None, requests_waiting_max=0)
    site = Site(MemoryBackend(state(standing=standing(proposal())), limits), tmp_path)
    waited = await site.ask("POST", OPTIMIZE.replace("never", "auto"), json=GOOD)
    assert waited.status_code == 200
    assert len(site.backend.executed) == 1
    assert len(site.backend.records) == 1
    assert site.backend.waits == 0


async def test_a_forced_cycle_whose_request_finds_no_place_to_wait_is_begun_and_answered_at_once(tmp_path):
    limits = CacheOptimizerSettings(_env_file=None, requests_waiting_max=0)
    site = Site(MemoryBackend(state(), limits), tmp_path)
    asked = {**GOOD, "force_optimization": True}
    response = await site.ask("POST", OPTIMIZE.replace("never", "auto"), json=asked)
    assert response.status_code == 200
    assert site.backend.commands == [RunCycle(force=("constitutional_ai",))]
    assert "ask again for what it found" in response.text
    assert site.backend.waits == 0


async def test_a_token_that_asks_too_often_is_told_so_on_every_route(tmp_path):
    limits = CacheOptimizerSettings(_env_file=None, requests_per_s_per_token=1.0)
    site = Site(MemoryBackend(state(standing=standing(proposal())), limits), tmp_path)
    assert (await site.ask("POST", OPTIMIZE, json=GOOD)).status_code == 200
    for method, path in (("POST", OPTIMIZE), ("GET", "/api/v1/agents")):
        response = await site.ask(method, path, json=GOOD if method == "POST" else None)
        assert response.status_code == 429
        assert response.json()["error"]["code"] == "RATE_LIMIT_EXCEEDED"
        assert int(response.headers["Retry-After"]) >= 1
    assert (await site.ask("GET", "/api/v1/agents", token="read")).status_code == 200
    assert (await site.ask("GET", "/health", token=None)).status_code == 200
    assert len(site.backend.records) == 1


async def test_a_decision_for_which_there_is_no_room_is_neither_made_nor_recorded(site: Site):
    admission = site.app.state.context.admission
    admission.deciding = admission._decisions_max
    response = await site.ask("POST", OPTIMIZE, json=GOOD)
    assert response.status_code == 503
    assert response.headers["Retry-After"] == "1"
    assert site.backend.records == []
    assert (await site.ask("GET", "/api/v1/agents", token="read")).status_code == 200


async def test_a_body_that_does_not_come_is_408(tmp_path):
    limits = CacheOptimizerSettings(_env_file=None, body_timeout_s=0.02)
    site = Site(MemoryBackend(state(standing=standing(proposal())), limits), tmp_path)

    async def dripping():
        import asyncio

        yield b'{"service_name"'
        await asyncio.sleep(5)

    sent = {"content": dripping(), "headers": {"Content-Type": "application/json"}}
    response = await site.ask("POST", OPTIMIZE, **sent)
    assert response.status_code == 408
    assert response.json()["error"]["code"] == "HTTP_408"
    assert response.headers["Connection"] == "close"


@pytest.mark.parametrize("path", [OPTIMIZE, "/api/v1/cache/warm"])
async def test_a_client_that_goes_before_its_body_came_is_answered_nothing_and_is_no_error(site: Site, path, capsys):
    sent: list[object] = []

    async def receive():
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": [], "root_path": ""}
    await site.app(scope, receive, send)
    assert sent == []
    assert "failed" not in capsys.readouterr().out
    assert site.backend.records == []


async def test_a_refusal_by_the_short_way_has_each_header_once(site: Site):
    site.app.state.context.admission._decisions_max = 0
    response = await site.ask("POST", OPTIMIZE, json={"service_name": "constitutional_ai"})
    assert response.status_code == 503
    names = [name for name, _ in response.headers.multi_items()]
    assert len(names) == len(set(names))
    assert response.headers["x-request-id"]
    assert response.json()["error"]["request"]["path"] == OPTIMIZE.partition("?")[0]
