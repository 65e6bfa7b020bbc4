"""For each alert of config/alerts.yaml: series under which it fires, series under which it is silent, and when to look.

Values are promtool's, one sample a minute; `firing` are the labels of the alerts that fire then, beside the severity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

SERVICE = 'service="cache_performance_optimizer"'
OK_HASH = 'constitutional_hash="cdd01ef066bc6cf2"'


@dataclass(frozen=True, kw_only=True)
class AlertCase:
    alert: str
    fires: Mapping[str, str]
    silent: Mapping[str, str]
    at: str = "15m"
    firing: Sequence[Mapping[str, str]] = field(default_factory=lambda: ({},))


def _one(alert: str, series: str, bad: str, good: str, at: str = "15m", **labels: str) -> AlertCase:
    return AlertCase(alert=alert, fires={series: bad}, silent={series: good}, at=at, firing=(labels,))


def _buckets(values: Sequence[str]) -> dict[str, str]:
    edges = ("0.001", "0.002", "0.005", "+Inf")
    return {
        f'cachewarden_decision_duration_seconds_bucket{{le="{edge}"}}': value
        for edge, value in zip(edges, values, strict=True)
    }


_NAME = {"service": "cache_performance_optimizer"}
_REFUSED = "cachewarden_requests_refused_total"

CASES: Sequence[AlertCase] = (
    _one(
        "CachewardenWrongHash",
        f'acgs_service_info{{{SERVICE},constitutional_hash="beef"}}',
        "1x20",
        "_x20",
        constitutional_hash="beef",
        **_NAME,
    ),
    _one("CachewardenWrongHash", f"acgs_constitutional_hash_valid{{{SERVICE}}}", "0x20", "1x20", **_NAME),
    _one("CachewardenComplianceLow", f"acgs_constitutional_compliance_score{{{SERVICE}}}", "0.99x20", "1x20", **_NAME),
    _one(
        "CachewardenConstitutionalViolations",
        'acgs_constitutional_violations_total{severity="critical"}',
        "0+1x20",
        "7x20",
    ),
    _one("CachewardenRefusalsUnaudited", "cachewarden_refusals_unaudited_total", "0x12 1x10", "1x20"),
    AlertCase(
        alert="CachewardenAbsent",
        fires={"up": "1x20"},
        silent={f"acgs_service_info{{{SERVICE},{OK_HASH}}}": "1x20"},
        firing=(_NAME,),
    ),
    _one("CachewardenStateOld", "cachewarden_state_unconfirmed_seconds", "11x20", "3x20"),
    _one("CachewardenStateOld", "cachewarden_state_known", "0x20", "1x20"),
    _one("CachewardenJournalRefuses", _REFUSED + '{reason="journal"}', "0+1x20", "4x20", reason="journal"),
    _one("CachewardenJournalLag", "cachewarden_journal_waiting", "501x20", "500x20"),
    _one("CachewardenAgentDown", 'cachewarden_agent_alive{agent="planner"}', "0x20", "1x20", agent="planner"),
    AlertCase(
        alert="CachewardenDecisionSlow",
        fires=_buckets(("0+50x20", "0+80x20", "0+100x20", "0+100x20")),
        silent=_buckets(("0+50x20", "0+100x20", "0+100x20", "0+100x20")),
    ),
    _one("CachewardenSheds", _REFUSED + '{reason="room"}', "0+120x20", "0+6x20", reason="room"),
    _one(
        "CachewardenServerErrors",
        f'acgs_http_requests_total{{{SERVICE},status_code="500"}}',
        "0+1x20",
        "3x20",
    ),
    _one("CachewardenChangeFailed", 'cachewarden_change_failed{cache="shop"}', "1x20", "0x20", cache="shop"),
    _one("CachewardenPaused", "cachewarden_paused", "1x90", "1x30 0 1x60", at="80m"),
    AlertCase(
        alert="CachewardenPredictionsOff",
        fires={"cachewarden_prediction_coverage": "0.5x20", "cachewarden_prediction_outcomes": "10x20"},
        silent={"cachewarden_prediction_coverage": "0.5x20", "cachewarden_prediction_outcomes": "9x20"},
    ),
)
