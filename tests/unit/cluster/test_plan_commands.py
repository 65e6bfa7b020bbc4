"""`python -m cluster plans`: lists, shows and decides through the real API in process."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
import typer
from typer.testing import CliRunner

from cachewarden.errors import OperatingError, SettingsError
from cluster import whatif_live
from cluster.plan_commands import add_plan_commands, parse_changes
from tests.unit.serve.serve_world import Site
from tests.unit.serve.test_approval_routes import PLAN, pending, site_with


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    made = site_with(tmp_path, pending())

    def in_process(url: str, token: str) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            transport=httpx.ASGITransport(app=made.app), base_url=url, headers={"Authorization": f"Bearer {token}"}
        )

    monkeypatch.setattr(whatif_live, "client_of", in_process)
    return made


def run(site: Site, tmp_path: Path, *arguments: str, token: str = "bob", fails: type[Exception] | None = None) -> str:
    (tmp_path / "token").write_text(site.tokens[token] + "\n")
    app = typer.Typer()
    add_plan_commands(app)
    result = CliRunner().invoke(app, [*arguments, "--url", "http://test", "--token-file", str(tmp_path / "token")])
    if fails is None:
        assert result.exit_code == 0, result.exception or result.output
        return result.stdout
    assert isinstance(result.exception, fails), result.exception or result.output
    return str(result.exception)


def test_the_list_names_plan_change_gain_and_time(site: Site, tmp_path: Path):
    text = run(site, tmp_path, "list")
    for word in (PLAN.proposal_id, "pending", "planner", "+16.00 points"):
        assert word in text
    assert json.loads(run(site, tmp_path, "list", "--json"))["approvals"][0]["plan_id"] == PLAN.proposal_id


def test_the_diff_shows_each_value_and_the_way_back(site: Site, tmp_path: Path):
    text = run(site, tmp_path, "diff", PLAN.proposal_id)
    for word in ("maxmemory", "41943040", "46137344", "rollback: set the old value again", "risk (medium)"):
        assert word in text


def test_a_plan_is_shown_with_its_reasons(site: Site, tmp_path: Path):
    assert "rationale: more samples evict better" in run(site, tmp_path, "show", PLAN.proposal_id)


def test_approving_sends_the_digest_of_what_was_fetched(site: Site, tmp_path: Path):
    text = run(site, tmp_path, "approve", PLAN.proposal_id, "--reason", "fine")
    assert "approved by bob: the next cycle judges and settles it again" in text
    assert site.backend.decisions[0].proposal_digest == pending().proposal_digest


def test_a_dry_run_says_would_be_and_decides_nothing(site: Site, tmp_path: Path):
    assert "would be approved by bob" in run(site, tmp_path, "approve", PLAN.proposal_id, "--dry-run")
    assert site.backend.decisions == []


def test_rejecting_and_editing_reach_the_coordinator(site: Site, tmp_path: Path):
    run(site, tmp_path, "reject", PLAN.proposal_id, "--reason", "no")
    answer = run(
        site, tmp_path, "edit", PLAN.proposal_id, "--reason", "less", "--set", "maxmemory=42mb", "--json", token="ann"
    )
    assert json.loads(answer)["plan"]["author"] == "ann"
    assert [type(c).__name__ for c in site.backend.decisions] == ["DecideApproval", "SubmitProposal"]


def test_refusals_are_told_in_the_words_of_the_api(site: Site, tmp_path: Path):
    assert "was not carried out" in run(
        site, tmp_path, "rollback", PLAN.proposal_id, "--reason", "x", token="ann", fails=OperatingError
    )
    assert "plans list --all" in run(site, tmp_path, "approve", "p-none", fails=SettingsError)


def test_a_change_is_knob_and_value():
    assert parse_changes(["maxmemory=12mb", "maxmemory-policy="]) == {"maxmemory": "12mb", "maxmemory-policy": None}
    for wrong in (["maxmemory"], ["=1"], ["a=1", "a=2"]):
        with pytest.raises(SettingsError):
            parse_changes(wrong)
