"""The specification's data models: what a client asks for and what it is told.

They are the public vocabulary of the HTTP API and of the embedding facade, spelled as the specification spells them;
extra fields say what the prescribed ones cannot. Nothing here decides or measures. INVARIANT: a level that nobody
measured is null, never 0.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, field_validator

from cachewarden.messages import CONSTITUTIONAL_HASH

__all__ = [
    "TARGET_RANGES",
    "CacheMetrics",
    "CacheOptimizationRequest",
    "CacheOptimizationResponse",
    "OptimizationPlan",
    "OptimizationType",
    "PredictionBasis",
]

OptimizationType = Literal["comprehensive", "ttl", "memory", "hotspot"]

PredictionBasis = Literal["predicted", "realised", "current", "unknown"]
"""predicted: a model's figure for after the plan; realised: measured after the plan was carried out; current:
measured now, and the plan is not expected to change it; unknown: neither measured nor predicted, so the value is
null."""

TARGET_RANGES: Final[dict[str, tuple[float, float]]] = {
    "cache_hit_rate": (0.0, 1.0),
    "memory_efficiency": (0.0, 1.0),
    "p99_latency_ms": (0.001, 60_000.0),
}
"""Names that `target_metrics` knows, each with its allowed range; ratios are 0..1."""

StrictFloat = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class CacheOptimizationRequest(BaseModel):
    """Ask for the optimisation of one service; unknown fields are refused, since they would be typing errors."""

    model_config = ConfigDict(
        extra="forbid",
        validate_assignment=True,
        json_schema_extra={
            "examples": [
                {
                    "service_name": "constitutional_ai",
                    "optimization_type": "comprehensive",
                    "target_metrics": {"cache_hit_rate": 0.95, "memory_efficiency": 0.85, "p99_latency_ms": 2.0},
                    "force_optimization": False,
                    "constitutional_hash": CONSTITUTIONAL_HASH,
                }
            ]
        },
    )

    service_name: str = Field(min_length=1, max_length=200, description="a service of the fleet file")
    optimization_type: OptimizationType = Field("comprehensive", description="which kinds of change are asked for")
    force_optimization: StrictBool = Field(
        default=False, description="skip cool-down and minimum gain, never constitution, leases, budgets or approvals"
    )
    target_metrics: dict[str, StrictFloat] = Field(
        default_factory=lambda: {"cache_hit_rate": 0.95, "memory_efficiency": 0.85, "p99_latency_ms": 2.0},
        description="levels that are enough; where all that are given explicitly are met already, nothing is changed",
    )
    constitutional_hash: str = Field(CONSTITUTIONAL_HASH, max_length=200)

    @field_validator("target_metrics")
    @classmethod
    def _known_and_in_range(cls, value: dict[str, float]) -> dict[str, float]:
        for name, level in value.items():
            if name not in TARGET_RANGES:
                raise ValueError(f"unknown target `{name[:50]}`, known are: {', '.join(sorted(TARGET_RANGES))}")
            low, high = TARGET_RANGES[name]
            if not low <= level <= high:
                raise ValueError(f"`{name}` must be within {low:g}..{high:g}, got {level:g}")
        return value

    @property
    def explicit_targets(self) -> dict[str, float]:
        """The targets that the caller wrote himself; empty where the defaults apply."""
        return self.target_metrics if "target_metrics" in self.model_fields_set else {}


class OptimizationPlan(BaseModel):
    """The plan that the answer is about; without opportunities where there is nothing to do."""

    id: str | None = Field(None, description="proposal id, to be used with /api/v1/cache/plans/{id}")
    affected_services: list[str] = Field(default_factory=list)
    opportunities: list[dict[str, Any]]
    estimated_total_improvement: float = Field(description="predicted gain in hit ratio, -1..1")
    implementation_priority: str = Field(description="high, medium, low or none")
    rollback_strategy: str = "immediate"
    constitutional_validation: bool = True
    rollback: str = Field("", description="how it is taken back, and what cannot be")
    rationale: str = ""
    expires_at: str | None = Field(None, description="ISO 8601, UTC; after this the plan is stale")


class CacheOptimizationResponse(BaseModel):
    """The decision on one request, and how far it has been carried out."""

    optimization_applied: bool = Field(
        description="true only if a configuration was changed or already is what the plan wants, as read back"
    )
    optimization_plan: OptimizationPlan
    performance_improvement: dict[str, float | None] = Field(
        description="levels after the plan (cache_hit_rate, memory_efficiency, p99_latency_ms), latency_reduction_ms"
    )
    prediction_basis: dict[str, PredictionBasis] = Field(
        default_factory=dict, description="for each value of performance_improvement, what it rests on"
    )
    constitutional_compliance: dict[str, Any]
    recommendations: list[str]
    risk_assessment: Literal["low", "medium", "high"]
    estimated_impact: dict[str, float]
    constitutional_hash: str = CONSTITUTIONAL_HASH
    performance_metrics: dict[str, float] = Field(default_factory=dict)
    decision_id: str = ""
    service_name: str = ""
    state: str = Field("", description="one word for what became of the request; docs/API.md lists them")
    reason: str = Field("", description="why, in one sentence")


class CacheMetrics(BaseModel):
    """Performance of one cache over its last window; null where nothing was measured."""

    hit_rate: float | None = Field(ge=0.0, le=1.0)
    miss_rate: float | None = Field(ge=0.0, le=1.0)
    memory_usage_bytes: int = Field(ge=0)
    memory_efficiency: float | None = Field(ge=0.0, le=1.0)
    p99_latency_ms: float | None = Field(ge=0.0, description="server side, read commands")
    eviction_rate: float = Field(ge=0.0, description="evicted keys per second")
    hotspot_count: int = Field(ge=0)
    constitutional_compliance_score: float | None = Field(
        ge=0.0,
        le=1.0,
        description="decisions with a valid, complete verdict / decisions; null before the first decision",
    )
