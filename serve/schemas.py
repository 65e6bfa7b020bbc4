"""Wire models of the endpoints beyond the optimisation itself; `cachewarden/models.py` has those that the
specification prescribes.

They are shapes only. INVARIANT: every answer carries the constitutional hash, and what was not measured is null.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from cachewarden.messages import CONSTITUTIONAL_HASH
from cachewarden.models import CacheMetrics
from serve.peer_views import PeerView

__all__ = [
    "AgentView",
    "AgentsResponse",
    "AuditPage",
    "AuditVerifyResponse",
    "ControlRequest",
    "ControlResponse",
    "ErrorResponse",
    "FleetMetricsResponse",
    "HealthResponse",
    "PlanView",
    "PlansResponse",
    "ServiceView",
    "ServicesResponse",
    "SourceView",
]


class _Answer(BaseModel):
    constitutional_hash: str = CONSTITUTIONAL_HASH


class ErrorBody(BaseModel):
    id: str
    timestamp: str
    constitutional_hash: str
    request: dict[str, Any]
    code: str = Field(
        description="CONSTITUTIONAL_VIOLATION, AUTHENTICATION_FAILED, VALIDATION_ERROR, ...; docs/API.md lists them"
    )
    message: str
    status_code: int
    details: dict[str, Any]


class ErrorResponse(BaseModel):
    """The one shape of all errors."""

    error: ErrorBody


class SourceView(BaseModel):
    """One way to learn how a cache is used."""

    name: str = Field(description="client_feed, monitor_capture, passive_probe or counters")
    used: bool
    reason: str = Field(description="why it answers, or why not")
    cost: str
    expected_error: float | None = Field(
        description="of a predicted hit ratio by sampling alone, 0..1; null: not known"
    )
    error_basis: str
    coverage: float | None = Field(description="client_feed: reported lookups over those that the server counted")


class ServiceView(CacheMetrics):
    """One service: the prescribed metrics and what else is known."""

    name: str
    mode: str
    tenant: str
    region: str
    observed: bool
    missing_reason: str | None = Field(None, description="why it has no snapshot")
    incomplete: dict[str, str] = Field(
        default_factory=dict, description="part of the snapshot that is missing, and why"
    )
    taken_at: str | None = None
    window_s: float | None = None
    hit_ratio_before: float | None = Field(None, description="of the first complete window since the start")
    hit_ratio_floor: float
    lookups_per_s: float | None = None
    refused_writes_per_s: float | None = None
    maxmemory_bytes: int | None = None
    memory_usage: float | None = None
    eviction_age_s: float | None = None
    round_trip_ms: float | None = None
    resident_keys: int | None = None
    misses: dict[str, Any] | None = Field(None, description="why lookups missed, as shares of all lookups")
    sources: list[SourceView] = Field(default_factory=list, description="observation sources, the best first")
    knobs: dict[str, str] = Field(default_factory=dict)
    set_by_hand: dict[str, str] = Field(
        default_factory=dict, description="knob that somebody else has set to when that was seen; it is left alone"
    )
    set_by_peer: dict[str, str] = Field(
        default_factory=dict, description="knob to the other agent that has set it, as it had announced"
    )
    drift: dict[str, dict[str, str]] = Field(
        default_factory=dict, description="knob to the other nodes that have another value, and that value"
    )
    lost_settings: dict[str, str] = Field(
        default_factory=dict, description="knob to the value of ours that a restart or failover took away"
    )
    state: str = Field(description="what is going on with it, in one word")
    reason: str
    plan_id: str | None = None


class ServicesResponse(_Answer):
    services: list[ServiceView]


class ServiceResponse(_Answer):
    service: ServiceView


class FleetMetricsResponse(_Answer):
    """The prescribed fields at top level, over the whole fleet, and each service below."""

    cache_hit_rate: float | None = Field(description="hits / lookups over all windows; null without lookups")
    memory_efficiency: float | None = Field(description="mean over the services, weighted by used memory")
    p99_latency_ms: float | None = Field(description="server-side P99 of reads of the slowest service")
    optimization_requests_per_second: float = Field(description="over the last minute, of the replica that answers")
    constitutional_compliance_rate: float | None = Field(
        description="decisions with a valid, complete verdict / decisions"
    )
    last_optimization_timestamp: str | None
    state_age_s: float
    paused: bool
    decisions: int
    hotspot_count: int
    services: dict[str, ServiceView]


class PlanView(BaseModel):
    """One plan: predicted and realised side by side."""

    id: str
    service: str
    state: str
    reason: str
    created_at: str
    expires_at: str
    action_class: int
    risk_level: str
    kinds: list[str]
    playbook: str
    changes: list[dict[str, str]]
    ttl_rules: list[dict[str, Any]]
    rationale: str
    rollback: str
    verdict: str | None = None
    denied_by: list[str] = Field(default_factory=list)
    resolution: str | None = None
    predicted: dict[str, float | None]
    realised: dict[str, float | None] | None = Field(None, description="null until the observation window has ended")
    inside_interval: bool | None = Field(None, description="whether the realised gain fell into the predicted interval")
    step: int | None = None
    steps: int | None = None
    updated_at: str | None = None


class PlansResponse(_Answer):
    plans: list[PlanView]


class PlanResponse(_Answer):
    plan: PlanView


class AgentView(BaseModel):
    name: str
    alive: bool
    restarts: int
    last_seen: str
    detail: str


class AgentsResponse(_Answer):
    agent_id: str
    capabilities: list[str]
    cycle: int
    phase: str
    agents: list[AgentView]
    peers: list[PeerView] = Field(description="the blackboard, and HTTP services of ACGS that are configured")


class AuditPage(_Answer):
    records: list[dict[str, Any]]
    next_after_seq: int | None = Field(description="ask for this next; null at the end")


class AuditVerifyResponse(_Answer):
    ok: bool
    height: int
    head_hash: str
    checked: int
    problems_total: int
    problems: list[dict[str, Any]]


class ControlRequest(BaseModel):
    """Say why; it stands in the audit trail."""

    model_config = ConfigDict(extra="forbid")

    reason: str = Field(min_length=1, max_length=500)
    constitutional_hash: str = Field(CONSTITUTIONAL_HASH, max_length=200)


class ControlResponse(_Answer):
    accepted: bool
    paused: bool
    by: str
    reason: str


class HealthResponse(_Answer):
    status: str = Field(description="healthy or unhealthy")
    service: str
    version: str
    timestamp: str
    uptime_seconds: float
    components: dict[str, str]
    constitutional_compliance: dict[str, Any]
