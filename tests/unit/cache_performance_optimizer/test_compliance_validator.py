"""The compliance validator: it finds all kept here, and notices each promise that is broken."""

from __future__ import annotations

import dataclasses
import json

import httpx
import pytest

from cachewarden.messages import Decision, Finding, Verdict
from tests.constitutional_case import ConstitutionalTestCase
from tools.validation import constitutional_compliance_validator as tool
from tools.validation import live_checks as live


def broken() -> set[str]:
    return {finding.check for finding in tool.code_checks() if not finding.kept}


def yes_to_all(constitution, proposal, facts, now_ms) -> Verdict:
    finding = Finding(principle_id="a", title="a", severity="low", decision=Decision.ALLOW, reason="yes")
    return Verdict(
        proposal_id=proposal.proposal_id, proposal_digest="", decision=Decision.ALLOW, findings=(finding,),
        constitution_digest="", judged_at_ms=now_ms,
    )  # fmt: skip


class TestComplianceValidator(ConstitutionalTestCase):
    @pytest.mark.constitutional
    def test_this_code_keeps_all_promises(self):
        assert [f for f in tool.code_checks() if not f.kept] == []

    @pytest.mark.constitutional
    def test_another_constant_is_noticed(self, monkeypatch):
        monkeypatch.setattr(tool, "CONSTITUTIONAL_HASH", "deadbeef")
        assert broken() == {"the hash is the specified one"}

    @pytest.mark.constitutional
    def test_a_validator_that_always_says_yes_is_noticed(self, monkeypatch):
        monkeypatch.setattr(tool, "evaluate", yes_to_all)
        assert {"the validator fails closed", "a denied change is never executed"} <= broken()

    @pytest.mark.constitutional
    def test_a_validator_that_always_says_no_is_noticed(self, monkeypatch):
        lawful = tool.lawful_proposal()
        monkeypatch.setattr(tool, "lawful_proposal", lambda: dataclasses.replace(lawful, rationale=""))
        assert {"a lawful change is allowed", "a denied change is never executed"} <= broken()

    @pytest.mark.constitutional
    def test_a_constitution_that_cannot_be_loaded_keeps_nothing(self, monkeypatch, tmp_path):
        monkeypatch.setattr(tool, "ROOT", tmp_path)
        found = {f.check: f.seen for f in tool.code_checks() if not f.kept}
        assert "the constitution has the four checks" in found
        assert all("ConstitutionError" in seen or "FileNotFoundError" in seen for seen in found.values())

    def test_json_says_the_same_as_the_exit_code(self, capsys):
        assert tool.main(["--service", "cache_performance_optimizer", "--json"]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert answer["kept"] is True
        self.assert_carries_hash(answer)
        assert {check["check"] for check in answer["checks"]} == set(tool.CODE_CHECKS)

    @pytest.mark.parametrize("arguments", [["--service", "nobody"], ["--url", "http://127.0.0.1:1"]])
    def test_wrong_arguments_are_an_error(self, arguments, capsys):
        with pytest.raises(SystemExit) as ended:
            tool.main(arguments)
        assert ended.value.code == 2
        assert "cache_performance_optimizer" in capsys.readouterr().err or "--url" in arguments

    @pytest.mark.constitutional
    @pytest.mark.parametrize("answer", [{}, {"status": "healthy"}, {"constitutional_hash": "deadbeef"}], ids=str)
    def test_a_service_that_says_the_same_to_everything_keeps_nothing(self, answer, monkeypatch):
        transport = httpx.MockTransport(lambda _: httpx.Response(200, json=answer))
        client = httpx.Client

        def offline(**options):
            return client(**options, transport=transport)

        monkeypatch.setattr(live.httpx, "Client", offline)
        monkeypatch.setattr(live.httpx, "get", lambda url, **_: httpx.Response(200, json=answer))
        kept = [name for name, ok, _ in live.live_checks("http://unit.invalid", "t", self.constitutional_hash) if ok]
        assert kept == []
