"""Changing a mode over HTTP: who may, what it brings with it, and trying it first."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from serve_world import MemoryBackend, Site, state

from cachewarden.messages import Mode, TtlRule
from cachewarden.protocol import History, SetMode


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(MemoryBackend(state()), tmp_path)


def body(service: str, mode: str) -> dict:
    return {"service_name": service, "mode": mode, "reason": "why"}


async def test_less_may_be_ordered_by_whoever_operates(site: Site):
    answer = await site.ask("POST", "/api/v1/control/mode", json=body("constitutional_ai", "advise"))
    assert answer.status_code == 200
    assert site.backend.commands == [
        SetMode(service="constitutional_ai", mode=Mode.ADVISE, by="operator", reason="why")
    ]


async def test_more_needs_the_scope_approve(site: Site):
    refused = await site.ask("POST", "/api/v1/control/mode", json=body("integrity_service", "auto"))
    assert refused.status_code == 403
    assert site.backend.commands == []
    given = await site.ask("POST", "/api/v1/control/mode", token="admin", json=body("integrity_service", "auto"))
    assert given.json()["mode"] == "auto"


async def test_a_dry_run_says_what_would_come_of_it_and_orders_nothing(site: Site):
    rule = TtlRule(pattern="policy:", written_ttl_ms=1_000, extended_ttl_ms=2_000, max_staleness_ms=3_000)
    history = {"constitutional_ai": History(in_flight="p-1", ttl_rules=(rule,))}
    site.backend.known = dataclasses.replace(state(), history=history)
    answer = await site.ask("POST", "/api/v1/control/mode?dry_run=true", json=body("constitutional_ai", "advise"))
    told = " ".join(answer.json()["consequences"])
    assert "p-1 is taken back" in told
    assert "`policy:` rest" in told
    assert site.backend.commands == []


async def test_the_mode_that_is_there_already_is_no_order(site: Site):
    answer = await site.ask("POST", "/api/v1/control/mode", json=body("constitutional_ai", "auto"))
    assert "already" in answer.json()["consequences"][0]
    assert site.backend.commands == []


@pytest.mark.parametrize(
    ("given", "status"),
    [(body("nobody", "off"), 404), (body("api_gateway", "root"), 422), ({"service_name": "api_gateway"}, 422)],
)
async def test_nonsense_is_refused(site: Site, given: dict, status: int):
    assert (await site.ask("POST", "/api/v1/control/mode", json=given)).status_code == status


async def test_what_is_decided_follows_the_new_mode(site: Site):
    await site.ask("POST", "/api/v1/control/mode", json=body("constitutional_ai", "advise"))
    shown = (await site.ask("GET", "/api/v1/cache/services/constitutional_ai")).json()["service"]
    assert shown["mode"] == "advise"
