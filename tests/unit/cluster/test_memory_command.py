"""`python -m cluster memory` against the real API in process."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
import typer
from typer.testing import CliRunner

from cachewarden.errors import OperatingError
from cluster import memory_command
from tests.unit.serve.memory_looks import measured
from tests.unit.serve.serve_world import MemoryBackend, Site, state


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    backend = MemoryBackend(state())
    backend.looks["constitutional_ai"] = measured()
    site = Site(backend, tmp_path)

    def in_process(url: str, token: str) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(app=site.app)
        return httpx.AsyncClient(transport=transport, base_url=url, headers={"Authorization": f"Bearer {token}"})

    monkeypatch.setattr(memory_command, "client_of", in_process)
    (tmp_path / "token").write_text(site.tokens["read"])
    return site


def run(tmp_path: Path, *arguments: str, fails: bool = False) -> str:
    app = typer.Typer()
    app.callback()(lambda: None)
    memory_command.add_memory_command(app)
    options = ["memory", "--url", "http://here", "--token-file", str(tmp_path / "token"), *arguments]
    result = CliRunner().invoke(app, options)
    if fails:
        assert isinstance(result.exception, OperatingError), result.exception
        return str(result.exception)
    assert result.exit_code == 0, result.exception or result.output
    return result.stdout


def test_tables_tell_where_the_bytes_are_and_what_the_levers_give(site: Site, tmp_path: Path):
    text = " ".join(run(tmp_path, "--service", "constitutional_ai").split())
    for told in ("by type and encoding", "hash (hashtable)", "by key pattern", "higher limits", "yes:",
                 "compressed by the client", "140 keys were made young", "note: taking it back is not neutral"):  # fmt: skip
        assert told in text


def test_json_is_the_answer_of_the_api(site: Site, tmp_path: Path):
    answer = json.loads(run(tmp_path, "--service", "constitutional_ai", "--json"))
    assert answer["service_name"] == "constitutional_ai"
    assert answer["by_pattern"]["groups"]


def test_a_service_without_a_look_gets_its_reasons(site: Site, tmp_path: Path):
    site.backend.looks.clear()
    assert "not seen" in run(tmp_path, "--service", "constitutional_ai")


def test_an_unknown_service_is_refused_with_the_apis_words(site: Site, tmp_path: Path):
    assert "404" in run(tmp_path, "--service", "nobody", fails=True)
