"""Which configurations are worth trying for one cache: eviction policies, their parameters, TTLs and sizes.

It tries nothing (`search` does). LFU forgets by minutes while keys live for seconds or days, so the candidates for
`lfu-decay-time` follow the eviction age (`docs/adr/0006`).

INVARIANT: the configuration of now comes first, every candidate once, and those that disturb least before the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, TypeVar

from cachewarden.knobs import EvictionPolicy

__all__ = ["Configuration", "SearchSpace", "candidates_around", "decay_times_min"]

DECAYS_PER_AGE = (30.0, 20.0, 10.0)
"""How many times a counter may decay while a key lives: with these LFU did well on traces spread over half a minute up
to a week."""
_DECAY_MAX_MIN = 7 * 24 * 60


class Configuration(Protocol):
    """What candidates are made of: `ReplayCandidate` and `CacheConfiguration` are both of this kind."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def eviction_policy(self) -> EvictionPolicy: ...

    @property
    def maxmemory_samples(self) -> int: ...

    @property
    def lfu_log_factor(self) -> int: ...

    @property
    def lfu_decay_time_min(self) -> int: ...

    @property
    def ttl_ms(self) -> int | None: ...


F = TypeVar("F", bound=Configuration)


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSpace:
    """What may be varied; the configuration of now is always one of the values.

    `decays_min` None: they follow the eviction age. `ttls_ms` as in the configuration, which decides what None means.
    """

    eviction_policies: Sequence[EvictionPolicy] = ("allkeys-lru", "allkeys-lfu")
    maxmemory_samples: Sequence[int] = ()
    lfu_log_factors: Sequence[int] = (10, 1)
    decays_min: Sequence[int] | None = None
    ttls_ms: Sequence[int | None] = ()


def decay_times_min(eviction_age_ms: float | None) -> tuple[int, ...]:
    """Return the values of `lfu-decay-time` to try, in whole minutes from 1 up; the server's default of 1 where the
    eviction age is not known.
    """
    age_min = (eviction_age_ms or 0.0) / 60_000.0
    return tuple(sorted({min(max(1, round(age_min / per_age)), _DECAY_MAX_MIN) for per_age in DECAYS_PER_AGE}))


def candidates_around(now: F, space: SearchSpace, eviction_age_ms: float | None) -> tuple[F, ...]:
    """Return the configuration of now and every combination that the space allows at the same memory.

    LFU parameters are varied for LFU policies only, samples not for random or TTL-ordered eviction, which take no
    sample or gain nothing by a larger one. `eviction_age_ms` None = not known.
    """
    decays = decay_times_min(eviction_age_ms) if space.decays_min is None else tuple(space.decays_min)
    found = [
        replace(
            now,
            eviction_policy=policy,
            maxmemory_samples=samples,
            lfu_log_factor=log_factor,
            lfu_decay_time_min=decay_min,
            ttl_ms=ttl_ms,
        )
        for ttl_ms in _first(now.ttl_ms, space.ttls_ms)
        for policy in space.eviction_policies
        for samples in _first(now.maxmemory_samples, space.maxmemory_samples if _samples(policy) else ())
        for log_factor in (space.lfu_log_factors if policy.endswith("-lfu") else (now.lfu_log_factor,))
        for decay_min in (decays if policy.endswith("-lfu") else (now.lfu_decay_time_min,))
    ]
    return tuple(dict.fromkeys([now, *found]))


def _samples(policy: EvictionPolicy) -> bool:
    return policy.endswith(("-lru", "-lfu"))


T = TypeVar("T")


def _first(now: T, others: Sequence[T]) -> list[T]:
    return list(dict.fromkeys([now, *others]))
