"""What-ifs of a live cache over HTTP: answered from the newest look, changing and recording nothing."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import pytest
from serve_world import MIB, NOW_MS, MemoryBackend, Site, captured_look, execution, proposal, snapshot, state

from cachewarden.messages import ExecutionState, TtlRule
from serve.looks import rules_in_force
from serve.whatif import DeskFull, WhatifCandidate, WhatifDesk

PATH = "/api/v1/cache/whatif"


@pytest.fixture
def site(tmp_path: Path) -> Site:
    backend = MemoryBackend(state())
    backend.looks["constitutional_ai"] = captured_look()
    return Site(backend, tmp_path)


async def ask(site: Site, *candidates: dict, token: str = "read", **fields: object) -> dict:
    body = {"service_name": "constitutional_ai", "candidates": list(candidates), **fields}
    response = await site.ask("POST", PATH, token=token, json=body)
    return {"status": response.status_code, "retry": response.headers.get("retry-after"), **response.json()}


async def test_candidates_are_answered_in_order_with_an_interval_around_the_prediction(site: Site):
    answer = await ask(site, {"maxmemory": "20mb"}, {"maxmemory_bytes": 80 * MIB}, {})
    assert answer["status"] == 200
    half, double, now = answer["results"]
    assert all(r["answered"] for r in answer["results"])
    assert half["hit_ratio"] < now["hit_ratio"] < double["hit_ratio"]
    assert double["hit_ratio_low"] < double["hit_ratio"] < double["hit_ratio_high"]
    assert now["change"] == pytest.approx(0.0, abs=1e-9)
    assert half["candidate"]["maxmemory_bytes"] == 20 * MIB
    assert half["candidate"]["eviction_policy"] == "allkeys-lru"
    assert answer["current"]["maxmemory_bytes"] == 40 * MIB
    assert answer["observed"]["captured_accesses"] == 30_000
    assert answer["constitutional_hash"] == "cdd01ef066bc6cf2"


async def test_asking_changes_nothing_and_records_nothing_but_is_counted(site: Site):
    await ask(site, {"maxmemory": "20mb"}, {"eviction_policy": "noeviction"})
    assert site.backend.records == []
    assert site.backend.executed == []
    assert site.backend.commands == []
    text = (await site.ask("GET", "/metrics")).text
    assert 'cachewarden_whatif_candidates_total{outcome="answered"} 1.0' in text
    assert 'cachewarden_whatif_candidates_total{outcome="not_enough_evidence"} 1.0' in text


async def test_what_the_models_cannot_tell_is_refused_with_the_reason(site: Site):
    answer = await ask(site, {"eviction_policy": "noeviction"})
    (result,) = answer["results"]
    assert not result["answered"]
    assert "no model can tell" in result["reason"]
    assert result["hit_ratio"] is None


async def test_a_look_without_samples_says_what_is_missing(site: Site):
    site.backend.looks["constitutional_ai"] = snapshot()
    (result,) = (await ask(site, {"maxmemory": "80mb"}))["results"]
    assert not result["answered"]
    assert "take an access sample" in result["reason"]


async def test_a_service_that_was_not_seen_is_no_guess(site: Site):
    answer = await ask(site, {}, service_name="blackboard_service")
    assert answer["observed"] is None
    assert "the cache does not answer" in answer["results"][0]["reason"]


async def test_an_old_look_cannot_speak_for_now(site: Site):
    old = dataclasses.replace(site.backend.looks["constitutional_ai"], taken_at_ms=NOW_MS - 3_600_000)
    site.backend.looks["constitutional_ai"] = old
    (result,) = (await ask(site, {"maxmemory": "80mb"}))["results"]
    assert "3600 s old" in result["reason"]


@pytest.mark.parametrize(
    ("candidates", "told"),
    [
        ([], "candidates"),
        ([{}] * 33, "candidates"),
        ([{"maxmemory": "64 potatoes"}], "amount of memory"),
        ([{"maxmemory": "64mb", "maxmemory_bytes": 1}], "not both"),
        ([{"maxmemory_bytes": -1}], "maxmemory_bytes"),
        ([{"maxmemory_bytes": 1.5}], "maxmemory_bytes"),
        ([{"eviction_policy": "lru"}], "allkeys-lru"),
        ([{"evictionpolicy": "allkeys-lru"}], "eviction_policy"),
    ],
)
async def test_a_candidate_that_cannot_be_meant_is_422(site: Site, candidates: list, told: str):
    answer = await ask(site, *candidates)
    assert answer["status"] == 422
    assert told in str(answer["error"])


async def test_an_unknown_service_is_404_and_a_wrong_hash_403(site: Site):
    assert (await ask(site, {}, service_name="nobody"))["status"] == 404
    assert (await ask(site, {}, constitutional_hash="beef"))["status"] == 403


async def test_without_a_state_nothing_is_answered(site: Site):
    site.backend.known = None
    assert (await ask(site, {}))["status"] == 503


async def test_a_few_may_wait_and_the_others_are_told_to_come_again(site: Site):
    answers = await asyncio.gather(*(ask(site, {"maxmemory": f"{20 + n}mb"}) for n in range(6)))
    assert [a["status"] for a in answers].count(200) == 4
    assert {a["retry"] for a in answers if a["status"] == 429} == {"2"}
    assert (await ask(site, {}))["status"] == 200


async def test_the_same_look_gives_the_same_answer_and_rules_in_force_make_another_question():
    desk, look = WhatifDesk(), captured_look()
    rule = TtlRule(pattern="policy:", written_ttl_ms=1000, extended_ttl_ms=2000, max_staleness_ms=3000)
    first = await desk.evaluate(look, (), [WhatifCandidate(maxmemory="60mb")])
    again = await desk.evaluate(look, (), [WhatifCandidate(maxmemory="60mb")])
    other = await desk.evaluate(look, (rule,), [WhatifCandidate(maxmemory="60mb")])
    assert first == again == other


async def test_a_full_desk_refuses():
    desk, look = WhatifDesk(), captured_look()
    results = await asyncio.gather(
        *(desk.evaluate(look, (), [WhatifCandidate()]) for _ in range(7)), return_exceptions=True
    )
    assert sum(isinstance(r, DeskFull) for r in results) == 3


def test_only_rules_of_kept_changes_are_in_force():
    rule = TtlRule(pattern="policy:", written_ttl_ms=1000, extended_ttl_ms=2000, max_staleness_ms=3000)
    plan = proposal(ttl_rules=(rule,))
    kept, back = (state(executions=(execution(plan, s),)) for s in (ExecutionState.KEPT, ExecutionState.ROLLED_BACK))
    assert rules_in_force(kept, "constitutional_ai") == (rule,)
    assert rules_in_force(kept, "api_gateway") == ()
    assert rules_in_force(back, "constitutional_ai") == ()


async def test_a_look_of_half_a_minute_ago_is_new_enough_for_a_question(site: Site):
    site.backend.looks["constitutional_ai"] = captured_look(taken_at_ms=NOW_MS - 30_000)
    (result,) = (await ask(site, {"maxmemory": "80mb"}))["results"]
    assert result["answered"]
