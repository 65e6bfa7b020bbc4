"""The alert rules: each fires and keeps silent as it should, reads what /metrics prints, and leads to a runbook."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from cachewarden.cachemodel.scoring import score
from cachewarden.messages import ExecutionState
from tests.test_docs import anchors
from tests.unit.serve.alert_cases import CASES, AlertCase
from tests.unit.serve.serve_world import MemoryBackend, Site, execution, proposal, standing, state
from tests.unit.serve.test_score import _outcomes as outcomes

RULES = Path("config/alerts.yaml")
GROUPS = yaml.safe_load(RULES.read_text())["groups"]
ALERTS = {rule["alert"]: rule for group in GROUPS for rule in group["rules"] if "alert" in rule}
METRIC = re.compile(r"\b(?:acgs|cachewarden)_\w+")


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    found = shutil.which("promtool")
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail("promtool is missing, install the package `prometheus`")
        pytest.skip("promtool is missing")
    return subprocess.run([found, *arguments], capture_output=True, text=True, check=False, timeout=60)


def alert_test(case: AlertCase, series: dict[str, str], firing: list[dict]) -> dict:
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": [{"eval_time": case.at, "alertname": case.alert, "exp_alerts": firing}],
    }


def test_every_alert_fires_when_it_should_and_only_then(tmp_path):
    tests = []
    for case in CASES:
        rule = ALERTS[case.alert]
        labels = [{**dict(labels), **rule["labels"]} for labels in case.firing]
        tests += [
            alert_test(case, dict(case.fires), [{"exp_labels": one} for one in labels]),
            alert_test(case, dict(case.silent), []),
        ]
    # What an alert says is compared too; the words are the rule's own business, so they are left out here.
    bare = yaml.safe_load(RULES.read_text())
    for group in bare["groups"]:
        for rule in group["rules"]:
            rule.pop("annotations", None)
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(bare))
    suite = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests}
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(suite))
    ran = promtool("test", "rules", str(tmp_path / "suite.yaml"))
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_every_alert_has_a_case():
    assert {case.alert for case in CASES} == ALERTS.keys()


def test_the_rate_that_acgs_reads_is_recorded_with_the_hash(tmp_path):
    info = 'acgs_service_info{service="s", instance="a", constitutional_hash="h", version="1"}'
    suite = {
        "rule_files": [str(RULES.resolve())],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [
                    {"series": info, "values": "1x5"},
                    {"series": 'acgs_constitutional_compliance_rate{service="s", instance="a"}', "values": "0.9x5"},
                ],
                "promql_expr_test": [
                    {
                        "expr": "acgs:constitutional_compliance_rate",
                        "eval_time": "3m",
                        "exp_samples": [
                            {
                                "labels": 'acgs:constitutional_compliance_rate{service="s", constitutional_hash="h"}',
                                "value": 0.9,
                            }
                        ],
                    }
                ],
            }
        ],
    }
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(suite))
    ran = promtool("test", "rules", str(tmp_path / "suite.yaml"))
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_rules_are_valid_to_prometheus():
    ran = promtool("check", "rules", str(RULES))
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_leads_to_a_runbook_that_exists(alert: str):
    path, _, anchor = ALERTS[alert]["annotations"]["runbook_url"].partition("#")
    assert anchor in anchors(Path(path))


async def printed(site: Site) -> dict[str, set[str]]:
    """Return the samples of /metrics by name, with the labels that they have."""
    found: dict[str, set[str]] = {}
    text = (await site.ask("GET", "/metrics", token="read")).text
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


@pytest.fixture
async def samples(tmp_path) -> dict[str, set[str]]:
    kept = execution(proposal(), ExecutionState.KEPT, hit_ratio_after=0.9, comparable=True)
    site = Site(
        MemoryBackend(state(standing=standing(proposal()), executions=(kept,), score=score(outcomes()))), tmp_path
    )
    await site.optimize(apply="never")
    return await printed(site)


@pytest.mark.parametrize("rule", [r for g in GROUPS for r in g["rules"]], ids=lambda r: r.get("alert", r.get("record")))
async def test_a_rule_reads_only_what_metrics_prints(samples: dict[str, set[str]], rule: dict):
    # Prometheus adds `instance` itself; the text of a matcher is no metric.
    bare = re.sub(r'"[^"]*"', "", rule["expr"])
    names = set(METRIC.findall(bare))
    assert names
    assert names <= samples.keys()
    for name, matchers in re.findall(r"((?:acgs|cachewarden)_\w+)\{([^}]*)\}", bare):
        assert set(re.findall(r"(\w+)\s*[=!]", matchers)) <= samples[name]


async def test_metrics_say_what_a_change_was_worth_against_what_it_promised(tmp_path):
    plan = proposal()
    promised = plan.prediction.gain.value
    kept = execution(plan, ExecutionState.KEPT, hit_ratio_before=0.8, hit_ratio_after=0.9, comparable=True)
    site = Site(MemoryBackend(state(executions=(kept,))), tmp_path)
    text = (await site.ask("GET", "/metrics", token="read")).text
    assert f'cachewarden_prediction_error{{cache="constitutional_ai"}} {0.9 - 0.8 - promised}' in text
    assert 'cachewarden_changes{state="kept"} 1.0' in text
    assert 'cachewarden_changes{state="rolled_back"} 0.0' in text
    assert 'cachewarden_change_failed{cache="constitutional_ai"} 0.0' in text
    assert "cachewarden_prediction_coverage" not in text, "without outcomes there is no share of them"


async def test_metrics_count_why_there_was_no_decision(tmp_path):
    site = Site(MemoryBackend(None), tmp_path)
    asked = {"json": {"service_name": "constitutional_ai"}}
    assert (await site.ask("POST", "/api/v1/cache/optimize", **asked)).status_code == 503
    site.backend.known, site.backend.journal_down = state(standing=standing(proposal())), True
    assert (await site.ask("POST", "/api/v1/cache/optimize", **asked)).status_code == 503
    text = (await site.ask("GET", "/metrics", token="read")).text
    for reason, number in (("state", 1), ("journal", 1), ("room", 0), ("rate", 0)):
        assert f'cachewarden_requests_refused_total{{reason="{reason}"}} {number}.0' in text
    assert "cachewarden_decisions_in_flight 0.0" in text
