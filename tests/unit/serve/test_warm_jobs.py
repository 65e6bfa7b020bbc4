"""Jobs of warming: progress, outcomes by place, an end by request, and nothing beyond what is permitted."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from serve_world import MemoryBackend, Site, state

BODY = {"service_name": "constitutional_ai", "cache_keys": [f"policy:{i}" for i in range(2_500)]}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(MemoryBackend(state()), tmp_path)


async def ended(site: Site, job_id: str) -> dict:
    async with asyncio.timeout(20):
        while True:
            job = (await site.ask("GET", f"/api/v1/cache/warm/{job_id}")).json()
            if job["state"] != "running":
                return job
            await asyncio.sleep(0.02)


async def begun(site: Site, query: str = "", body: dict = BODY) -> str:
    answer = await site.ask("POST", f"/api/v1/cache/warm{query}", json=body)
    assert answer.status_code == 202, answer.text
    return answer.json()["job_id"]


async def test_a_long_list_becomes_a_job_whose_outcomes_are_told_by_place(site: Site):
    job_id = await begun(site)
    job = await ended(site, job_id)
    assert (job["state"], job["keys_done"], job["outcomes_known"]) == ("finished", 2_500, 2_500)
    assert job["counts"] == {"warmed": 2_500}
    page = (await site.ask("GET", f"/api/v1/cache/warm/{job_id}/outcomes?after=2400&limit=50")).json()
    assert page["outcomes"][0] == {"index": 2_400, "outcome": "warmed", "reason": "loaded"}
    assert page["next_after"] == 2_450
    last = (await site.ask("GET", f"/api/v1/cache/warm/{job_id}/outcomes?after=2450&limit=50")).json()
    assert last["next_after"] is None


async def test_each_part_of_a_job_is_recorded_before_and_after_without_names(site: Site):
    job_id = await begun(site)
    await ended(site, job_id)
    phases = [(r.payload["phase"], r.payload["part"]) for r in site.backend.records]
    assert phases == [(phase, part) for part in range(3) for phase in ("intended", "finished")]
    assert {r.subject_id for r in site.backend.records} == {job_id}
    assert "policy:" not in str(site.backend.records)
    assert "policy:" not in str(site.backend.warm_jobs.kept)


async def test_a_short_list_becomes_a_job_where_nobody_wants_to_wait(site: Site):
    job_id = await begun(site, "?wait=false", {**BODY, "cache_keys": ["policy:a", "policy:a", "policy:b"]})
    assert (await ended(site, job_id))["keys_total"] == 2


async def test_a_cancelled_job_stops_and_says_who_wanted_it(site: Site):
    site.backend.warming_held = True
    job_id = await begun(site)
    asked = await site.ask("POST", f"/api/v1/cache/warm/{job_id}/cancel")
    assert asked.json()["cancel_asked_by"] == "operator"
    job = await ended(site, job_id)
    assert (job["state"], job["reason"]) == ("cancelled", "cancelled")
    assert job["keys_done"] < 2_500


async def test_a_service_has_one_job_at_a_time(site: Site):
    site.backend.warming_held = True
    job_id = await begun(site)
    second = await site.ask("POST", "/api/v1/cache/warm", json=BODY)
    assert second.status_code == 409
    assert second.json()["error"]["details"]["job_id"] == job_id
    site.backend.warming_held = False
    await site.ask("POST", f"/api/v1/cache/warm/{job_id}/cancel")
    await ended(site, job_id)


async def test_a_pause_stops_a_job(site: Site):
    site.backend.warming_held = True
    job_id = await begun(site)
    site.backend.known = state(paused=True, pause_reason="maintenance")
    job = await ended(site, job_id)
    assert (job["state"], job["reason"]) == ("stopped", "changes are paused: maintenance")


async def test_a_job_ends_when_nobody_can_tell_any_more_whether_changes_are_paused(site: Site):
    site.backend.warming_held = True
    job_id = await begun(site)
    site.backend.misunderstood = "the coordinator is of another version of cachewarden"
    job = await ended(site, job_id)
    assert (job["state"], job["reason"]) == ("stopped", "the coordinator is of another version of cachewarden")


async def test_a_job_without_a_journal_writes_nothing(site: Site):
    site.backend.journal_down = True
    job = await ended(site, await begun(site))
    assert job["state"] == "stopped"
    assert "JournalUnavailable" in job["reason"]
    assert site.backend.warmed == []


async def test_progress_comes_as_events_and_ends(site: Site):
    job_id = await begun(site)
    await ended(site, job_id)
    answer = await site.ask("GET", f"/api/v1/cache/warm/{job_id}/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    name, data = answer.text.strip().split("\n")
    assert name == "event: end"
    assert json.loads(data.removeprefix("data: "))["keys_done"] == 2_500


async def test_a_dry_run_writes_nothing_and_records_nothing(site: Site):
    answer = await site.ask("POST", "/api/v1/cache/warm?dry_run=true", json={**BODY, "cache_keys": ["policy:a"]})
    assert answer.json()["counts"]["would_warm"] == 1
    assert site.backend.warmed == []
    assert site.backend.records == []
    long = await site.ask("POST", "/api/v1/cache/warm?dry_run=true", json=BODY)
    assert long.status_code == 422


@pytest.mark.parametrize("path", ["", "/outcomes", "/events"])
async def test_an_unknown_job_is_404(site: Site, path: str):
    assert (await site.ask("GET", f"/api/v1/cache/warm/nobody{path}")).status_code == 404


async def test_a_job_whose_replica_is_gone_is_told_as_lost(site: Site):
    job_id = await begun(site)
    await ended(site, job_id)
    kept = json.loads(site.backend.warm_jobs.kept[job_id][0])
    site.backend.warm_jobs.kept[job_id] = (json.dumps({**kept, "state": "running"}), "", b"")
    site.backend.clock_ms += 60_000
    assert (await site.ask("GET", f"/api/v1/cache/warm/{job_id}")).json()["state"] == "lost"


async def test_too_many_keys_are_refused(site: Site):
    keys = [f"k{i}" for i in range(100_001)]
    answer = await site.ask("POST", "/api/v1/cache/warm", json={**BODY, "cache_keys": keys})
    assert answer.status_code == 422
