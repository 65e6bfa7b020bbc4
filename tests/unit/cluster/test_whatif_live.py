"""`python -m cluster whatif --url`: the curve, the prefixes and the TTLs of a live service, from the real API in
process."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import httpx
import pytest
import typer
from typer.testing import CliRunner

from cachewarden.errors import OperatingError, SettingsError
from cluster import whatif_live
from cluster.whatif_commands import add_whatif_command
from tests.unit.serve.curve_world import prefixed_look
from tests.unit.serve.serve_world import MemoryBackend, Site, snapshot, state


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    backend = MemoryBackend(state())
    backend.looks["constitutional_ai"] = prefixed_look()
    made = Site(backend, tmp_path)

    def in_process(url: str, token: str) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            transport=httpx.ASGITransport(app=made.app), base_url=url, headers={"Authorization": f"Bearer {token}"}
        )

    monkeypatch.setattr(whatif_live, "client_of", in_process)
    (tmp_path / "token").write_text(made.tokens["read"] + "\n")
    return made


def run(
    tmp_path: Path, *arguments: object, service: str = "constitutional_ai", fails: type[Exception] | None = None
) -> str:
    app = typer.Typer()
    app.callback()(lambda: None)
    add_whatif_command(app)
    options = ["whatif", "--url", "http://test", "--service", service, "--token-file", str(tmp_path / "token")]
    result = CliRunner().invoke(app, [*options, *map(str, arguments)])
    if fails is None:
        assert result.exit_code == 0, result.exception or result.output
        return result.stdout
    assert isinstance(result.exception, fails), result.exception or result.output
    return str(result.exception)


def test_without_a_question_the_curve_of_the_service_is_told(site: Site, tmp_path: Path):
    text = run(tmp_path)
    now = next(line for line in text.splitlines() if "now" in line and "MiB" in line)
    assert "9.0 MiB" in now
    assert "observed" in now
    assert "binds: expired" in text
    assert "one MiB more:" in text
    assert "working set:" in text
    rows = [line for line in text.splitlines() if "(no declared prefix)" in line]
    assert "holds 65% of the memory" in rows[0]


def test_a_target_is_answered_with_its_memory_or_the_reason_why_not(site: Site, tmp_path: Path):
    assert "no memory is known to be enough" in run(tmp_path, "--target", "95%")
    found = json.loads(run(tmp_path, "--target", "0.3", "--json"))
    assert found["target"]["maxmemory_bytes"] < found["points"][found["now"]]["maxmemory_bytes"]


def test_the_ttl_report_names_causes_gains_stampedes_and_dead_memory(site: Site, tmp_path: Path):
    text = run(tmp_path, "--ttl-report")
    for told in ("why lookups miss", "longer TTLs", "expiries that come together", "memory held for nothing"):
        assert told in text
    assert "nearly all of the gain" in text
    assert "as long as its owner permits" in text
    assert json.loads(run(tmp_path, "--ttl-report", "--json"))["per_prefix"][0]["prefix"] == "policy:"


def test_the_live_curve_is_drawn_with_its_band_and_the_operating_point(site: Site, tmp_path: Path):
    target = tmp_path / "curve.html"
    run(tmp_path, "--plot", target, "--json")
    page = target.read_text()
    svg = ElementTree.fromstring(page[page.index("<svg") : page.index("</svg>") + 6])
    assert len(svg.findall("polygon")) == 1
    assert "now: 9.0 MiB" in page


def test_without_evidence_the_reason_stands_in_place_of_the_curve(site: Site, tmp_path: Path):
    site.backend.looks["constitutional_ai"] = snapshot()
    assert "take an access sample" in run(tmp_path)
    assert "no curve to draw" in run(tmp_path, "--plot", tmp_path / "x.html", fails=OperatingError)
    site.backend.looks.clear()
    assert "has not been looked at" in run(tmp_path)
    assert "has not been looked at" in run(tmp_path, "--ttl-report")


def test_several_questions_at_once_are_refused(site: Site, tmp_path: Path):
    for arguments in (
        ("--ttl-report", "--memory", "1mb"),
        ("--target", "0.9", "--ttl", "60"),
        ("--target", "0.9", "--ttl-report"),
    ):
        assert "one thing at a time" in run(tmp_path, *arguments, fails=SettingsError)
    assert "ask for nothing else" in run(tmp_path, "--ttl-report", "--plot", "x.html", fails=SettingsError)
    assert "is no hit ratio" in run(tmp_path, "--target", "120%", fails=SettingsError)


def test_a_name_that_is_no_service_is_told_and_never_becomes_another_path(site: Site, tmp_path: Path):
    assert "refused (404)" in run(tmp_path, service="../plans", fails=OperatingError)
    assert "refused (404)" in run(tmp_path, "--ttl-report", service="a b?", fails=OperatingError)
