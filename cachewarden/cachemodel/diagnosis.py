"""Which resource binds a cache: memory (evicted), TTLs (expired), a refusal to write, or nothing but first-time keys
(cold).

The first question of any what-if: at a short TTL more memory is worth nothing, and in a cold workload so is everything.
It never invents a split: shares that were not measured are worked out from rates and the capture, and the reason says
so.

INVARIANT: `binding` is the largest share, and `none` only if practically nothing misses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cachewarden.cachemodel.evidence import Evidence, MissShares
from cachewarden.cachemodel.popularity import PopularityMixture

__all__ = ["Binding", "Diagnosis", "diagnose"]

Binding = Literal["cold", "expired", "evicted", "refused", "none"]

_NEGLIGIBLE_MISS_RATIO = 0.001


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The binding resource, the shares of the misses (None if unknown), and how that was found."""

    binding: Binding
    shares: MissShares | None
    reason: str


def diagnose(evidence: Evidence) -> Diagnosis:
    """Return what makes the cache miss."""
    miss_ratio = 1.0 - evidence.hit_ratio
    if evidence.lookups_per_s == 0:
        return Diagnosis("none", None, "nobody reads this cache")
    if miss_ratio < _NEGLIGIBLE_MISS_RATIO:
        return Diagnosis("none", evidence.misses, f"only {miss_ratio:.4f} of the lookups miss")
    if evidence.misses is not None:
        binding = _largest(evidence.misses)
        return Diagnosis(
            binding, evidence.misses, f"{getattr(evidence.misses, binding):.2f} of the misses, as measured"
        )
    if evidence.refuses(evidence.current) is True and evidence.full and not evidence.refused_per_s:
        return Diagnosis(
            "refused", None, f"the cache is full and `{evidence.current.eviction_policy}` finds nothing to evict"
        )
    shares, how = _inferred(evidence, miss_ratio)
    if shares is None:
        return Diagnosis("none", None, how)
    binding = _largest(shares)
    return Diagnosis(binding, shares, f"about {getattr(shares, binding):.2f} of the misses, {how}")


def _largest(shares: MissShares) -> Binding:
    order: tuple[Binding, ...] = ("refused", "evicted", "expired", "cold")
    return max(order, key=lambda name: float(getattr(shares, name)))


def _inferred(evidence: Evidence, miss_ratio: float) -> tuple[MissShares | None, str]:
    """Work the shares out from the rates of evicted, expired and refused keys and, if there is one, the capture."""
    rates = (evidence.evicted_per_s, evidence.expired_per_s)
    if rates[0] is None or rates[1] is None:
        return None, "neither the misses' causes nor the rates of evicted and expired keys are known"
    evicted, expired = rates[0], rates[1]
    misses_per_s = evidence.lookups_per_s * miss_ratio
    refused = min(1.0, (evidence.refused_per_s or 0.0) / misses_per_s)
    how = "worked out from the rates of evicted, expired and refused keys"
    cold = 0.0
    removed = evicted + expired
    if evidence.trace is not None and len(evidence.trace) >= 2 and evidence.trace.duration_ms > 0:
        mixture = PopularityMixture.from_accesses(
            evidence.trace, evidence.lookups_per_s, sampling_rate=evidence.sampling_rate
        )
        cold = min(1.0 - refused, mixture.cold / miss_ratio)
        how += " and the capture's share of keys that do not come again"
    elif removed > 0:
        how += "; without a capture, first-time keys are not told apart"
    if removed == 0:
        cold = 1.0 - refused
    rest = 1.0 - refused - cold
    evicted_share = rest * evicted / removed if removed > 0 else 0.0
    return MissShares(cold, max(0.0, rest - evicted_share), evicted_share, refused), how
