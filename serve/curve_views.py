"""What memory and TTLs give one service, as the API shows it: shapes, and pure functions from the models to them.

Nothing is judged here. INVARIANT: a figure without an interval was measured or is a fact of the configuration; what
cannot be told is null beside the reason.
"""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from cachewarden.cachemodel.curves import MemoryCurve, MemoryForTarget, curve, memory_for
from cachewarden.cachemodel.diagnosis import Diagnosis, diagnose
from cachewarden.cachemodel.prefix_curves import PrefixCurve
from cachewarden.cachemodel.whatif import Insufficient
from cachewarden.estimate import Estimate
from cachewarden.messages import CONSTITUTIONAL_HASH
from serve.curve_examples import CURVE_EXAMPLE
from serve.looks import Look
from serve.whatif import WhatifObserved, shown_configuration

__all__ = ["CurveResponse", "Interval", "curve_answer", "interval"]

_UNKNOWN: Final = "unknown"


class Interval(BaseModel):
    """A predicted figure with its 90 % interval."""

    value: float
    low: float
    high: float


class PointView(BaseModel):
    """One size of the cache."""

    maxmemory_bytes: int
    hit_ratio: Interval
    change: Interval = Field(description="against the observed hit ratio")
    eviction_age_s: Interval | None = Field(description="null: nothing is evicted, or not by idle time")
    extrapolated: bool = Field(description="keys would stay for longer than the evidence reaches back")


class BindingView(BaseModel):
    """Which resource binds: `cold`, `expired`, `evicted`, `refused` or `none`, with the shares of the misses."""

    resource: str
    reason: str
    cold: float | None = None
    expired: float | None = None
    evicted: float | None = None
    refused: float | None = None


class WorkingSetView(BaseModel):
    """Distinct keys asked for within a window, and their memory."""

    window_s: float
    keys: Interval
    bytes: Interval


class MarginalView(BaseModel):
    """What one more MiB gives."""

    hits_per_s: Interval
    hit_ratio: Interval
    method: str


class TargetView(BaseModel):
    """The least maxmemory that reaches a hit ratio: expected, the least that may, the least that surely does."""

    hit_ratio: float
    maxmemory_bytes: int | None
    low_bytes: int | None
    high_bytes: int | None
    reason: str


class PrefixPointView(BaseModel):
    """A prefix in a cache of that maxmemory."""

    maxmemory_bytes: int
    held_bytes: int
    hit_ratio: Interval


class PrefixView(BaseModel):
    """One declared prefix; `""` stands for the keys that match none."""

    prefix: str
    lookups_share: float | None
    hit_ratio: Interval | None
    bytes_share: Interval | None
    held_bytes: int | None
    hits_per_s_per_mib: float | None = Field(description="hits per second over MiB held")
    marginal_hits_per_s: Interval | None = Field(description="of one more MiB given to this prefix alone")
    residence_s: float | None = Field(description="how long a key that nobody reads stays")
    points: list[PrefixPointView]
    reason: str = Field(description="why there is no curve; empty where there is one")
    note: str = Field(description="what stands out, e.g. a prefix that fills the cache with what nobody reads")


class CurveResponse(BaseModel):
    """The miss ratio curve of a live cache. Nothing was changed, and none of this is a plan."""

    model_config = ConfigDict(json_schema_extra={"examples": [CURVE_EXAMPLE]})

    service_name: str
    answered: bool
    reason: str = Field("", description="what is missing for a curve; empty where there is one")
    observed: WhatifObserved | None = None
    configuration: dict[str, Any] | None = Field(None, description="whose curve it is; usually the present one")
    points: list[PointView] = Field(default_factory=list)
    now: int | None = Field(None, description="index of the present size in `points`")
    ceiling: Interval | None = Field(None, description="hit ratio with unlimited memory")
    binding: BindingView | None = None
    marginal_mib: MarginalView | None = None
    target: TargetView | None = Field(None, description="answer to `target`; null where none was asked")
    working_set: list[WorkingSetView] = Field(default_factory=list)
    per_prefix: list[PrefixView] = Field(default_factory=list, description="most hits per MiB first")
    method: str = ""
    notes: list[str] = Field(default_factory=list)
    performance_metrics: dict[str, float] = Field(default_factory=dict)
    constitutional_hash: str = CONSTITUTIONAL_HASH


def interval(estimate: Estimate | None, per: float = 1.0) -> Interval | None:
    """Return an estimate as the API shows it, each figure divided by `per`."""
    return None if estimate is None else _interval(estimate, per)


def _interval(estimate: Estimate, per: float = 1.0) -> Interval:
    return Interval(value=estimate.value / per, low=estimate.low / per, high=estimate.high / per)


def curve_answer(look: Look, target: float | None) -> CurveResponse:
    """Return the curve of a look, with the least memory for `target` (0..1) if one is asked; takes up to seconds."""
    name = look.snapshot.service
    if isinstance(look.inquiry, str):
        return CurveResponse(service_name=name, answered=False, reason=look.inquiry)
    binding = _binding(diagnose(look.inquiry.evidence))
    prefixes = [_prefix(p) for p in look.inquiry.shared.curves()]
    found = curve(look.inquiry)
    if isinstance(found, Insufficient):
        return CurveResponse(
            service_name=name,
            answered=False,
            reason=found.reason,
            configuration=shown_configuration(look.inquiry.evidence.current),
            binding=binding,
            per_prefix=prefixes,
        )
    reached = None if target is None else memory_for(look.inquiry, target)
    answer = _curve(name, found)
    return answer.model_copy(
        update={"target": None if target is None else _target(target, reached), "per_prefix": prefixes}
    )


def _curve(name: str, found: MemoryCurve) -> CurveResponse:
    return CurveResponse(
        service_name=name,
        answered=True,
        configuration=shown_configuration(found.configuration),
        points=[
            PointView(
                maxmemory_bytes=point.maxmemory_bytes,
                hit_ratio=_interval(point.hit_ratio),
                change=_interval(point.change),
                eviction_age_s=interval(point.eviction_age_ms, 1000.0),
                extrapolated=point.extrapolated,
            )
            for point in found.points
        ],
        now=found.now,
        ceiling=interval(found.ceiling),
        binding=_binding(found.binding),
        marginal_mib=MarginalView(
            hits_per_s=_interval(found.marginal.hits_per_s),
            hit_ratio=_interval(found.marginal.hit_ratio),
            method=found.marginal.method,
        ),
        working_set=[
            WorkingSetView(window_s=w.window_ms / 1000, keys=_interval(w.keys), bytes=_interval(w.size_bytes))
            for w in found.working_set
        ],
        method=found.method,
        notes=list(found.notes),
    )


def _binding(found: Diagnosis) -> BindingView:
    shares = found.shares
    if shares is None:
        return BindingView(resource=found.binding, reason=found.reason)
    return BindingView(
        resource=found.binding,
        reason=found.reason,
        cold=shares.cold,
        expired=shares.expired,
        evicted=shares.evicted,
        refused=shares.refused,
    )


def _target(target: float, found: MemoryForTarget | Insufficient | None) -> TargetView:
    if not isinstance(found, MemoryForTarget):
        reason = _UNKNOWN if found is None else found.reason
        return TargetView(hit_ratio=target, maxmemory_bytes=None, low_bytes=None, high_bytes=None, reason=reason)
    return TargetView(
        hit_ratio=target,
        maxmemory_bytes=found.maxmemory_bytes,
        low_bytes=found.low_bytes,
        high_bytes=found.high_bytes,
        reason=found.reason,
    )


def _prefix(found: PrefixCurve) -> PrefixView:
    return PrefixView(
        prefix=found.pattern,
        lookups_share=found.lookups_share,
        hit_ratio=interval(found.hit_ratio),
        bytes_share=interval(found.bytes_share),
        held_bytes=found.held_bytes,
        hits_per_s_per_mib=found.hits_per_s_per_mib,
        marginal_hits_per_s=interval(found.marginal_hits_per_s),
        residence_s=None if found.residence_ms is None else found.residence_ms / 1000,
        points=[
            PrefixPointView(
                maxmemory_bytes=p.maxmemory_bytes, held_bytes=p.held_bytes, hit_ratio=_interval(p.hit_ratio)
            )
            for p in found.points
        ],
        reason=found.reason,
        note=found.note,
    )
