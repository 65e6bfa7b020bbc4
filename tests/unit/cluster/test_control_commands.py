"""`python -m cluster mode`, `pause`, `warm` and their like, through the real API in process."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
import typer
from typer.testing import CliRunner

from cachewarden.errors import OperatingError, SettingsError
from cachewarden.messages import Mode
from cachewarden.protocol import SetMode, SetPaused
from cluster import whatif_live
from cluster.control_commands import add_control_commands
from cluster.warm_command import add_warm_command, keys_of
from tests.unit.serve.serve_world import MemoryBackend, Site, state


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    made = Site(MemoryBackend(state()), tmp_path)

    def in_process(url: str, token: str) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            transport=httpx.ASGITransport(app=made.app), base_url=url, headers={"Authorization": f"Bearer {token}"}
        )

    monkeypatch.setattr(whatif_live, "client_of", in_process)
    return made


def run(site: Site, tmp_path: Path, *arguments: str, token: str = "admin", fails: type[Exception] | None = None) -> str:
    (tmp_path / "token").write_text(site.tokens[token] + "\n")
    app = typer.Typer()
    add_control_commands(app)
    add_warm_command(app)
    result = CliRunner().invoke(app, [*arguments, "--url", "http://test", "--token-file", str(tmp_path / "token")])
    if fails is None:
        assert result.exit_code == 0, result.exception or result.output
        return result.stdout
    assert isinstance(result.exception, fails), result.exception or result.output
    return str(result.exception)


def test_the_modes_of_all_services_are_listed(site: Site, tmp_path: Path):
    assert "integrity_service: advise" in run(site, tmp_path, "modes")
    assert json.loads(run(site, tmp_path, "modes", "--json"))["api_gateway"] == "approve"


def test_a_mode_is_changed_with_a_reason(site: Site, tmp_path: Path):
    text = run(site, tmp_path, "mode", "api_gateway", "auto", "--reason", "we trust it")
    assert "goes from approve to auto by admin" in text
    assert site.backend.commands == [SetMode(service="api_gateway", mode=Mode.AUTO, by="admin", reason="we trust it")]


def test_a_dry_run_says_would_and_orders_nothing(site: Site, tmp_path: Path):
    text = run(site, tmp_path, "mode", "api_gateway", "off", "--reason", "x", "--dry-run")
    assert "would go from approve to off" in text
    assert site.backend.commands == []


def test_whoever_may_not_is_told_which_scope_is_missing(site: Site, tmp_path: Path):
    said = run(site, tmp_path, "mode", "api_gateway", "auto", "--reason", "x", token="operate", fails=OperatingError)
    assert "`approve`" in said


@pytest.mark.parametrize(
    ("verb", "command"),
    [
        ("pause", SetPaused(paused=True, by="admin", reason="why")),
        ("resume", SetPaused(paused=False, by="admin", reason="why")),
        ("kill", SetPaused(paused=True, by="admin", reason="why", kill=True)),
    ],
)
def test_stop_and_go_by_command(site: Site, tmp_path: Path, verb: str, command: SetPaused):
    run(site, tmp_path, verb, "--reason", "why")
    assert site.backend.commands == [command]


def test_the_keys_of_a_file_are_warmed_by_a_job(site: Site, tmp_path: Path):
    keys = tmp_path / "keys.txt"
    keys.write_text("policy:a\n\npolicy:b\n")
    text = run(site, tmp_path, "warm", "constitutional_ai", str(keys))
    assert text.strip() == "finished: 2 warmed"
    assert site.backend.warmed == ["policy:a", "policy:b"]


def test_a_dry_run_of_warming_loads_nothing(site: Site, tmp_path: Path):
    keys = tmp_path / "keys.txt"
    keys.write_text("policy:a\n")
    assert "dry run: 1 would_warm" in run(site, tmp_path, "warm", "constitutional_ai", str(keys), "--dry-run")
    assert site.backend.warmed == []


def test_a_file_without_keys_is_an_error(tmp_path: Path):
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    with pytest.raises(SettingsError, match="one per line"):
        keys_of(empty)
    with pytest.raises(SettingsError, match="cannot be read"):
        keys_of(tmp_path / "gone.txt")
