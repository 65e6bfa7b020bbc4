"""The curve and the TTLs of a live cache over HTTP: from the newest look, changing and recording nothing."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import pytest
from serve_world import NOW_MS, MemoryBackend, Site, captured_look, snapshot, state

from serve.curve_examples import CURVE_EXAMPLE, TTL_EXAMPLE
from serve.curve_views import CurveResponse
from serve.ttl_views import TtlResponse
from tests.unit.serve.curve_world import CAPACITY, OVERHEAD, lived, prefixed_look

CURVE = "/api/v1/cache/services/constitutional_ai/curve"
TTL = "/api/v1/cache/services/constitutional_ai/ttl"


@pytest.fixture
def site(tmp_path: Path) -> Site:
    backend = MemoryBackend(state())
    backend.looks["constitutional_ai"] = prefixed_look()
    return Site(backend, tmp_path)


async def get(site: Site, path: str, token: str | None = "read") -> dict:
    response = await site.ask("GET", path, token=token)
    return {"status": response.status_code, "retry": response.headers.get("retry-after"), **response.json()}


def without_nulls(value: object) -> object:
    if isinstance(value, dict):
        return {name: without_nulls(part) for name, part in value.items() if part is not None}
    return [without_nulls(part) for part in value] if isinstance(value, list) else value


async def test_the_curve_holds_the_operating_point_and_what_a_simulation_gives_at_other_sizes(site: Site):
    answer = await get(site, CURVE)
    assert (answer["status"], answer["answered"]) == (200, True)
    now = answer["points"][answer["now"]]
    assert now["maxmemory_bytes"] == CAPACITY + OVERHEAD
    assert now["hit_ratio"]["value"] == pytest.approx(lived().hit_ratio)
    for point in answer["points"]:
        truth = lived(point["maxmemory_bytes"] - OVERHEAD).hit_ratio
        if point["maxmemory_bytes"] > 0.35 * (CAPACITY + OVERHEAD):
            assert point["hit_ratio"]["value"] == pytest.approx(truth, abs=0.015)
        assert point["hit_ratio"]["low"] - 1e-9 <= truth <= point["hit_ratio"]["high"] + 1e-9
    assert answer["binding"]["resource"] == "expired"
    assert answer["marginal_mib"]["hits_per_s"]["low"] >= 0
    assert answer["working_set"][0]["window_s"] == 1.0
    assert answer["target"] is None
    assert answer["observed"]["sampled_keys"] == 1000


async def test_prefixes_come_by_hits_per_mib_and_the_one_that_fills_the_cache_is_named(site: Site):
    found = (await get(site, CURVE))["per_prefix"]
    assert [p["prefix"] for p in found][-1] == ""
    assert "of the memory and gives" in found[-1]["note"]
    densities = [p["hits_per_s_per_mib"] for p in found]
    assert densities == sorted(densities, reverse=True)
    held = sum(p["held_bytes"] for p in found)
    assert held == pytest.approx(CAPACITY, rel=0.01)


async def test_a_target_gets_its_least_memory_or_why_there_is_none(site: Site):
    reached = (await get(site, f"{CURVE}?target=0.4"))["target"]
    assert 0 < reached["maxmemory_bytes"] < CAPACITY + OVERHEAD
    missed = (await get(site, f"{CURVE}?target=0.95"))["target"]
    assert missed["maxmemory_bytes"] is None
    assert "unlimited memory" in missed["reason"]


@pytest.mark.parametrize("target", ["0", "1", "1.5", "-0.1", "nan", "inf", "much", ""])
async def test_a_target_that_is_no_hit_ratio_is_422(site: Site, target: str):
    answer = await get(site, f"{CURVE}?target={target}")
    assert answer["status"] == 422
    assert "target" in str(answer["error"])


async def test_ttls_are_reviewed_per_service_and_prefix(site: Site):
    answer = await get(site, TTL)
    assert (answer["status"], answer["answered"]) == (200, True)
    whole, policy = answer["service"], answer["per_prefix"][0]
    assert whole["prefix"] is None
    assert (policy["prefix"], policy["ttl_s"], policy["max_staleness_s"]) == ("policy:", 30.0, 600.0)
    assert policy["misses"]["expired"] > policy["misses"]["evicted"]
    first = policy["gains"][0]
    truth = lived(ttl_ms=60_000).hit_ratio_of("policy:") - lived().hit_ratio_of("policy:")
    assert first["ttl_s"] == 60.0
    assert first["gain"]["value"] == pytest.approx(truth, abs=0.02)
    short = next(p for p in answer["per_prefix"] if p["prefix"] == "policy:short:")
    assert short["gains"] == []
    assert "as long as its owner permits" in short["gains_reason"]
    once = next(p for p in answer["per_prefix"] if p["prefix"] == "")
    assert once["misses"]["cold"] > 0.9
    # Nobody reads these keys a second time, and they expire never.
    assert once["unread_memory"]["share"]["value"] == 1.0
    assert once["expired_memory"]["held_bytes"]["value"] == 0.0


async def test_aligned_expiries_show_with_the_jitter_that_spreads_them(site: Site):
    site.backend.looks["constitutional_ai"] = prefixed_look(aligned=True)
    policy = (await get(site, TTL))["per_prefix"][0]
    assert policy["stampede"]["aligned"]
    assert 1.0 < policy["jitter"]["jitter_s"] <= 15.0
    assert policy["jitter"]["peak_share"] < 0.25 < policy["stampede"]["busiest_share"]["low"]


async def test_a_look_without_samples_says_what_is_missing_part_by_part(site: Site):
    site.backend.looks["constitutional_ai"] = snapshot()
    curve, ttl = await get(site, CURVE), await get(site, TTL)
    assert not curve["answered"]
    assert "take an access sample" in curve["reason"]
    assert curve["points"] == []
    assert "no keys were sampled" in ttl["service"]["stampede_reason"]
    assert ttl["service"]["gains"] == []


async def test_few_lookups_are_not_enough_evidence(site: Site):
    site.backend.looks["constitutional_ai"] = dataclasses.replace(prefixed_look(), hits=10, misses=10)
    answer = await get(site, CURVE)
    assert not answer["answered"]
    assert "500 are needed" in answer["reason"]


async def test_a_service_that_was_not_seen_or_long_ago_is_no_guess(site: Site):
    old = dataclasses.replace(prefixed_look(), taken_at_ms=NOW_MS - 3_600_000)
    site.backend.looks["constitutional_ai"] = old
    for path in (CURVE, TTL):
        assert "3600 s old" in (await get(site, path))["reason"]
        unseen = await get(site, path.replace("constitutional_ai", "blackboard_service"))
        assert not unseen["answered"]
        assert "the cache does not answer" in unseen["reason"]
        assert unseen["observed"] is None


async def test_an_unknown_service_is_404_with_what_was_probably_meant(site: Site):
    for path in (CURVE, TTL):
        answer = await get(site, path.replace("constitutional_ai", "constitutional"))
        assert answer["status"] == 404
        assert "constitutional_ai" in str(answer["error"])


async def test_strangers_are_refused_and_posting_is_not_possible(site: Site):
    assert (await get(site, CURVE, token=None))["status"] == 401
    assert (await site.ask("POST", CURVE, token="read")).status_code == 405


async def test_a_few_may_wait_and_the_others_are_told_to_come_again(site: Site):
    site.backend.looks["constitutional_ai"] = captured_look()
    answers = await asyncio.gather(*(get(site, f"{CURVE}?target=0.{n + 1}") for n in range(6)))
    assert [a["status"] for a in answers].count(200) == 4
    assert {a["retry"] for a in answers if a["status"] == 429} == {"2"}


async def test_asking_changes_and_records_nothing_but_is_counted(site: Site):
    await get(site, CURVE)
    await get(site, TTL)
    assert (site.backend.records, site.backend.executed, site.backend.commands) == ([], [], [])
    text = (await site.ask("GET", "/metrics")).text
    assert 'cachewarden_whatif_candidates_total{outcome="answered"} 2.0' in text


async def test_openapi_shows_examples_that_hold(site: Site):
    schemas = (await get(site, "/openapi.json"))["components"]["schemas"]
    # The document leaves nulls out.
    assert schemas["CurveResponse"]["examples"] == [without_nulls(CURVE_EXAMPLE)]
    assert schemas["TtlResponse"]["examples"] == [without_nulls(TTL_EXAMPLE)]
    for shape, example in ((CurveResponse, CURVE_EXAMPLE), (TtlResponse, TTL_EXAMPLE)):
        assert shape.model_validate(example).model_dump(mode="json") == example
