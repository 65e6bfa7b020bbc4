"""What TTLs do to one service, as the API shows it: shapes, and pure functions from the review to them.

Nothing is judged here. INVARIANT: what cannot be told is null beside the reason.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from agents.ttl_review import TtlReview, review_ttls
from cachewarden.cachemodel.dead_memory import DeadMemory
from cachewarden.cachemodel.ttl_model import MissesLeft, TtlGain
from cachewarden.cachemodel.ttl_stampede import Jitter, Stampede
from cachewarden.fleet import Service
from cachewarden.messages import CONSTITUTIONAL_HASH
from cachewarden.observation import MissSplit
from serve.curve_examples import TTL_EXAMPLE
from serve.curve_views import Interval, interval
from serve.looks import Look
from serve.whatif import WhatifObserved

__all__ = ["TtlResponse", "ttl_answer"]


class MissesView(BaseModel):
    """Why lookups miss, each as a share of all lookups (of this prefix); measured."""

    cold: float
    expired: float
    evicted: float
    refused: float
    source: str


class MissesLeftView(BaseModel):
    """What lookups would still miss for, as shares of all lookups."""

    never_again: float = Field(description="nothing helps: the key does not come again")
    after_ttl: float = Field(description="a longer TTL, whatever the memory")
    for_memory: float = Field(description="more memory alone")


class GainView(BaseModel):
    """What one longer TTL would give."""

    ttl_s: float
    gain: Interval = Field(description="change of the hit ratio")
    hit_ratio: Interval | None
    misses_then: MissesLeftView | None


class StampedeView(BaseModel):
    """The busiest second ahead among sampled deadlines; loads as if every expired key were asked for again."""

    begins_s: float = Field(description="from now")
    busiest_share: Interval
    mean_share: float
    chance_share: float = Field(description="what chance alone explains nine times in ten")
    loads_per_s_peak: Interval
    loads_per_s_mean: float
    aligned: bool
    sampled_deadlines: int
    reason: str


class JitterView(BaseModel):
    """TTLs shortened by a uniform draw from 0 to this; 0 where nothing has to be spread."""

    jitter_s: float
    peak_share: float = Field(description="expected in the busiest second then")


class DeadMemoryView(BaseModel):
    """Memory held for nothing."""

    held_bytes: Interval
    share: Interval = Field(description="of the memory of these keys")
    horizon_s: float
    method: str


class TtlReviewView(BaseModel):
    """One prefix, or the whole service where `prefix` is null; `""` stands for the keys that match none.

    Where a part is null, its `_reason` says why.
    """

    prefix: str | None
    ttl_s: float | None = Field(description="that most keys live by; null: most have none, or it was not seen")
    max_staleness_s: float | None = Field(description="as declared; the bound of all longer TTLs")
    misses: MissesView | None
    gains: list[GainView]
    gains_reason: str = ""
    enough_ttl_s: float | None = Field(description="the shortest TTL with 95 % of the gain; null: no sure gain")
    stampede: StampedeView | None
    stampede_reason: str = ""
    jitter: JitterView | None
    jitter_reason: str = ""
    unread_memory: DeadMemoryView | None
    unread_reason: str = ""
    expired_memory: DeadMemoryView | None
    expired_reason: str = ""


class TtlResponse(BaseModel):
    """What TTLs do to a live cache. Nothing was changed, and none of this is a plan."""

    model_config = ConfigDict(json_schema_extra={"examples": [TTL_EXAMPLE]})

    service_name: str
    answered: bool
    reason: str = Field("", description="why nothing is told; empty where something is")
    observed: WhatifObserved | None = None
    service: TtlReviewView | None = None
    per_prefix: list[TtlReviewView] = Field(default_factory=list)
    performance_metrics: dict[str, float] = Field(default_factory=dict)
    constitutional_hash: str = CONSTITUTIONAL_HASH


def ttl_answer(look: Look, service: Service) -> TtlResponse:
    """Return the review of a look; takes up to seconds."""
    whole, prefixes = review_ttls(look.snapshot, service, look.inquiry, look.prefixes)
    return TtlResponse(
        service_name=service.name, answered=True, service=_review(whole), per_prefix=[_review(p) for p in prefixes]
    )


def _review(found: TtlReview) -> TtlReviewView:
    return TtlReviewView(
        prefix=found.pattern,
        ttl_s=_seconds(found.ttl_ms),
        max_staleness_s=_seconds(found.longest_ms),
        misses=_misses(found.misses),
        gains=[] if isinstance(found.gains, str) else [_gain(gain) for gain in found.gains],
        gains_reason=_reason(found.gains),
        enough_ttl_s=_seconds(found.enough_ttl_ms),
        stampede=None if isinstance(found.stampede, str) else _stampede(found.stampede),
        stampede_reason=_reason(found.stampede),
        jitter=None if isinstance(found.jitter, str) else _jitter(found.jitter),
        jitter_reason=_reason(found.jitter),
        unread_memory=None if isinstance(found.unread, str) else _dead(found.unread),
        unread_reason=_reason(found.unread),
        expired_memory=None if isinstance(found.expired, str) else _dead(found.expired),
        expired_reason=_reason(found.expired),
    )


def _seconds(ms: int | None) -> float | None:
    return None if ms is None else ms / 1000


def _reason(found: object) -> str:
    return found if isinstance(found, str) else ""


def _misses(found: MissSplit | None) -> MissesView | None:
    if found is None:
        return None
    return MissesView(
        cold=found.cold, expired=found.expired, evicted=found.evicted, refused=found.refused, source=found.source
    )


def _gain(found: TtlGain) -> GainView:
    gain = found.gain
    return GainView(
        ttl_s=found.ttl_ms / 1000,
        gain=Interval(value=gain.value, low=gain.low, high=gain.high),
        hit_ratio=interval(found.hit_ratio),
        misses_then=None if found.misses is None else _left(found.misses),
    )


def _left(found: MissesLeft) -> MissesLeftView:
    return MissesLeftView(never_again=found.never_again, after_ttl=found.after_ttl, for_memory=found.for_memory)


def _stampede(found: Stampede) -> StampedeView:
    share, loads = found.busiest_share, found.loads_per_s_peak
    return StampedeView(
        begins_s=found.begins_ms / 1000,
        busiest_share=Interval(value=share.value, low=share.low, high=share.high),
        mean_share=found.mean_share,
        chance_share=found.chance_share,
        loads_per_s_peak=Interval(value=loads.value, low=loads.low, high=loads.high),
        loads_per_s_mean=found.loads_per_s_mean,
        aligned=found.aligned,
        sampled_deadlines=found.deadlines,
        reason=found.reason,
    )


def _jitter(found: Jitter) -> JitterView:
    return JitterView(jitter_s=found.jitter_ms / 1000, peak_share=found.peak_share)


def _dead(found: DeadMemory) -> DeadMemoryView:
    held, share = found.held_bytes, found.share
    return DeadMemoryView(
        held_bytes=Interval(value=held.value, low=held.low, high=held.high),
        share=Interval(value=share.value, low=share.low, high=share.high),
        horizon_s=found.horizon_ms / 1000,
        method=found.method,
    )
