"""Which configurations are worth trying for one cache: eviction policies, their parameters, TTLs and sizes.

It tries nothing (`search` does). LFU forgets by minutes while keys live for seconds or days, so the candidates for
`lfu-decay-time` follow the time in which the whole content is exchanged (`docs/adr/0006`).

INVARIANT: the configuration of now comes first, every candidate once, and those that disturb least before the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, TypeVar

from cachewarden.knobs import EvictionPolicy

__all__ = ["Configuration", "SearchSpace", "candidates_around", "decay_times_min"]

_DECAYS_PER_TURNOVER = (1.0, 0.5, 2.0, 4.0)
"""`lfu-decay-time` over the turnover, the best guess first. Sixteen cells (four published traces spread over an hour
and a day, 5 and 20 % memory, log factor 1): at 1.0 LFU stood 0.7 points above LRU on average and 0.2 below at worst, at
0.5 +0.6 and -0.2, at 2.0 +0.6 and -1.2, at 0.05 -0.9 and -2.6, at 10 -0.5 and -2.8.
4.0 was not among them: it is for hot sets that do not move, and only a capture long enough to show that decides for it
(`agents.appraisal`)."""
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

    `decays_min` None: they follow the turnover. `ttls_ms` as in the configuration, which decides what None means.
    """

    eviction_policies: Sequence[EvictionPolicy] = ("allkeys-lru", "allkeys-lfu")
    maxmemory_samples: Sequence[int] = ()
    lfu_log_factors: Sequence[int] = (1, 10)
    decays_min: Sequence[int] | None = None
    ttls_ms: Sequence[int | None] = ()


def decay_times_min(turnover_ms: float | None) -> tuple[int, ...]:
    """Return the values of `lfu-decay-time` to try, in whole minutes from 1 up, the best guess first.

    `turnover_ms` is the time in which evictions exchange the whole content: resident keys over evictions per
    millisecond; None = not known, which leaves the server's default of 1.
    """
    turnover_min = (turnover_ms or 0.0) / 60_000.0
    found = [min(max(1, round(turnover_min * share)), _DECAY_MAX_MIN) for share in _DECAYS_PER_TURNOVER]
    return tuple(dict.fromkeys(found))


def candidates_around(now: F, space: SearchSpace, turnover_ms: float | None) -> tuple[F, ...]:
    """Return the configuration of now and every combination that the space allows at the same memory.

    LFU parameters are varied for LFU policies only, samples not for random or TTL-ordered eviction, which take no
    sample or gain nothing by a larger one. `turnover_ms` as in `decay_times_min`.
    """
    decays = decay_times_min(turnover_ms) if space.decays_min is None else tuple(space.decays_min)
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
