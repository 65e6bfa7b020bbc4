"""Which peers a deployment speaks to: only those that were named, and never with a secret in sight."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from cachewarden.errors import SettingsError
from cachewarden.settings import CacheOptimizerSettings
from cluster.__main__ import app
from cluster.peers import has_envoy, make_envoy, make_peers, require_peer_urls
from coordination.envoy import ENVOY

JOURNAL = "redis://127.0.0.1:6379/1"


def settings(**given):
    return CacheOptimizerSettings(_env_file=None, **given)


def test_with_the_defaults_nobody_is_spoken_to():
    assert not has_envoy(settings())
    assert make_peers(settings(), "validator", JOURNAL, "h") is None


@pytest.mark.parametrize(
    ("given", "delivers"),
    [
        ({}, False),
        ({"integrity_service_url": "http://localhost:8002"}, True),
        ({"integrity_service_url": "http://localhost:8002", "integrity_delivery": "off"}, False),
        ({"integrity_delivery": "on"}, True),
    ],
)
def test_the_journal_is_delivered_where_an_address_was_given_or_it_was_switched_on(given, delivers):
    assert settings(**given).delivers_to_integrity is delivers
    assert has_envoy(settings(**given)) is delivers


async def test_each_agent_gets_the_clients_of_its_own_peers_only():
    chosen = settings(
        integrity_delivery="on",
        constitutional_ai_mode="required",
        acgs_coordinator_url="http://localhost:8008",
        acgs_blackboard_http_url="http://localhost:8010",
    )
    validator, envoy = (make_peers(chosen, name, JOURNAL, "h") for name in ("validator", ENVOY))
    assert validator.constitutional is not None
    assert (validator.integrity, dict(validator.presence)) == (None, {})
    assert envoy.constitutional is None
    assert sorted(envoy.presence) == ["blackboard_http", "coordinator_http"]
    assert make_peers(chosen, "planner", JOURNAL, "h") is None
    assert [p.name for p in make_envoy(chosen).peers(0)] == ["integrity", "coordinator_http", "blackboard_http"]
    await validator.close()
    await envoy.close()


def test_an_address_that_no_client_can_use_is_found_at_the_start():
    with pytest.raises(SettingsError, match="`acgs_coordinator_url`"):
        require_peer_urls(settings(acgs_coordinator_url="localhost:8008"))


def test_the_token_is_in_no_text(monkeypatch):
    monkeypatch.setenv("ACGS_TOKEN", "nobody-may-see-this")
    chosen = settings()
    assert chosen.acgs_token.get_secret_value() == "nobody-may-see-this"
    assert "nobody-may-see-this" not in repr(chosen) + str(chosen) + chosen.model_dump_json()
    shown = CliRunner().invoke(app, ["settings"])
    assert "nobody-may-see-this" not in shown.output
    assert "acgs_token" not in json.loads(shown.output)
