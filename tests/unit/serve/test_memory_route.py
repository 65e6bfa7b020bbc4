"""GET /api/v1/cache/services/{name}/memory: where the bytes go and what would make less of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from serve_world import NOW_MS, MemoryBackend, Site, state

from cachewarden.observation import Capabilities
from serve.whatif import DeskFull
from tests.unit.serve.memory_looks import measured

PATH = "/api/v1/cache/services/constitutional_ai/memory"


@pytest.fixture
def site(tmp_path: Path) -> Site:
    backend = MemoryBackend(state())
    backend.looks["constitutional_ai"] = measured()
    return Site(backend, tmp_path)


async def ask(site: Site, token: str | None = "read") -> dict:
    response = await site.ask("GET", PATH, token=token)
    return {"status": response.status_code, "retry": response.headers.get("retry-after"), **response.json()}


async def test_bytes_levers_costs_and_notes_are_told_with_intervals(site: Site):
    answer = await ask(site)
    assert answer["status"] == 200
    assert answer["figures"] == {"used_memory": 9e6, "allocator_frag_ratio": 1.25}
    assert [group["name"] for group in answer["by_encoding"]["groups"]] == ["hash (hashtable)", "string (raw)", "small"]
    assert answer["by_pattern"]["groups"][0]["bytes"]["value"] == pytest.approx(3_000_000)
    (hash_limit,) = [limit for limit in answer["limits"] if limit["answered"]]
    assert hash_limit["limits"]["hash-max-listpack-entries"] == 256
    assert hash_limit["recommended"]
    assert "HGET costs +1.3 us" in hash_limit["summary"]
    assert "on average at 200 entries" in hash_limit["summary"]
    assert "4.0x smaller" in answer["compression"][0]["summary"]
    assert any("not neutral" in note for note in answer["notes"])
    assert answer["value_look"]["made_young_keys"] == 140
    for limit in answer["limits"]:
        assert limit["answered"] or limit["reason"]


async def test_asking_changes_and_records_nothing(site: Site):
    await ask(site)
    assert (site.backend.records, site.backend.executed, site.backend.commands) == ([], [], [])


async def test_without_a_look_into_values_there_are_no_levers_and_the_reason(site: Site):
    reason = "the fleet file does not permit reading values"
    site.backend.looks["constitutional_ai"] = measured(values=None, incomplete={"values": reason})
    answer = await ask(site)
    assert answer["levers_reason"] == reason
    assert (answer["limits"], answer["compression"], answer["notes"], answer["value_look"]) == ([], [], [], None)
    assert answer["by_pattern"]["groups"]
    assert "only 0 sampled keys" in answer["by_encoding"]["reason"]


async def test_on_a_server_that_nobody_measured_no_limit_is_answered(site: Site):
    newer = Capabilities(server="redis", version="8.6.0")
    site.backend.looks["constitutional_ai"] = measured(capabilities=newer)
    answer = await ask(site)
    assert not any(limit["answered"] for limit in answer["limits"])
    assert any("nobody has measured how redis 8.6.0" in limit["reason"] for limit in answer["limits"])


async def test_a_cache_that_was_not_seen_or_too_long_ago_is_no_guess(site: Site):
    old = dataclasses.replace(measured(), taken_at_ms=NOW_MS - 3_600_000)
    site.backend.looks["constitutional_ai"] = old
    assert "3600 s old" in (await ask(site))["by_encoding"]["reason"]
    del site.backend.looks["constitutional_ai"]
    answer = await ask(site)
    assert answer["taken_at"] is None
    assert "not seen" in answer["levers_reason"]


async def test_strangers_and_unknown_services_are_refused(site: Site):
    assert (await ask(site, token=None))["status"] == 401
    assert (await site.ask("GET", "/api/v1/cache/services/nobody/memory", token="read")).status_code == 404


async def test_a_full_desk_asks_to_come_again(site: Site, monkeypatch: pytest.MonkeyPatch):
    async def full(*_: object) -> None:
        raise DeskFull

    monkeypatch.setattr(site.app.state.context.whatif, "ask", full)
    answer = await ask(site)
    assert (answer["status"], answer["retry"]) == (429, "2")
