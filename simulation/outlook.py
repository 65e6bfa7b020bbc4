"""What the planner is told instead of replays: the load's own curve, blurred, or overstated by a selfish service.

The planner, its division of memory and its drafts are the real ones; only the answer to "what would this configuration
give" comes from the model of the load, in microseconds, since a replay of a capture takes seconds. Beliefs are wrong by
a seeded amount that changes every few minutes, so that predictions fail as they do in life.

It proposes nothing. INVARIANT: the same snapshot and time give the same outlook.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import cast

from agents.choice import Choice
from cachewarden.cachemodel.whatif import CacheConfiguration
from cachewarden.estimate import Estimate
from cachewarden.fleet import Service
from cachewarden.knobs import EvictionPolicy
from cachewarden.messages import TtlRule
from cachewarden.observation import Snapshot
from cachewarden.settings import CacheOptimizerSettings
from simulation.dice import Dice
from simulation.load_model import LoadModel, hit_ratio

__all__ = ["Beliefs", "Outlook"]

_SIZES = 12
_TIMES = 4.0
_BELIEF_MS = 300_000
_START_UP_BYTES = 1 << 20
_POLICIES = ("allkeys-lru", "allkeys-lfu")
_ERROR = 0.01
"""By which the model of a load errs, as hit ratio."""


@dataclass(frozen=True)
class Outlook:
    """One cache under examination, as the planner asks for it. `blur` is the error of a hit ratio, `boast` what is
    added to the hit ratio of every larger size or other policy."""

    snapshot: Snapshot
    service: Service
    load: LoadModel
    written_ttl_ms: int
    in_force: tuple[TtlRule, ...]
    blur: float
    boast: float

    @cached_property
    def _now(self) -> CacheConfiguration:
        knobs = self.snapshot.knobs
        return _configuration(self.snapshot.maxmemory_bytes, knobs.get("maxmemory-policy", "noeviction"))

    def _believed(self, policy: str, size: int, *, extended: bool) -> float:
        return _curve(self.load, policy, (size,), extended=extended)[0]

    @cached_property
    def _here(self) -> float:
        return self._believed(self._now.eviction_policy, self._now.maxmemory_bytes, extended=bool(self.in_force))

    def _difference(self, there: float) -> float:
        here = self._here
        boast = self.boast if there > here else 0.0
        return (there - here) * (1.0 + self.blur) + boast

    @cached_property
    def _policy(self) -> str:
        now = self._now
        if self.snapshot.memory_usage is not None and self.snapshot.memory_usage < 0.9:
            return now.eviction_policy
        worth = {p: self._believed(p, now.maxmemory_bytes, extended=False) for p in (now.eviction_policy, *_POLICIES)}
        best = max(sorted(worth), key=lambda p: worth[p])
        return best if worth[best] > worth[now.eviction_policy] + 0.003 else now.eviction_policy

    @cached_property
    def _rules(self) -> tuple[TtlRule, ...]:
        known = {rule.pattern for rule in self.in_force}
        if self.load.ttl_gain <= 0.0 or self.written_ttl_ms <= 0:
            return ()
        return tuple(
            TtlRule(
                pattern=p.prefix,
                written_ttl_ms=self.written_ttl_ms,
                extended_ttl_ms=int(p.max_staleness_s * 1000),
                max_staleness_ms=int(p.max_staleness_s * 1000),
            )
            for p in self.service.patterns
            if p.max_staleness_s is not None
            and p.prefix not in known
            and int(p.max_staleness_s * 1000) > self.written_ttl_ms
        )

    @cached_property
    def curve_bytes(self) -> tuple[int, ...]:
        now = self.snapshot.maxmemory_bytes
        if now <= 0:
            return ()
        low = min(self.service.minimum_memory_bytes, now)
        step = (now * _TIMES / low) ** (1.0 / (_SIZES - 1))
        return tuple(sorted({now, *(int(low * step**i) for i in range(_SIZES))}))

    @cached_property
    def curve_hit_ratio(self) -> tuple[float, ...]:
        ratio = self.snapshot.hit_ratio or 0.0
        believed = _curve(self.load, self._policy, self.curve_bytes, extended=bool(self.in_force))
        return tuple(min(max(ratio + self._difference(there), 0.0), 1.0) for there in believed)

    @cached_property
    def curve_low(self) -> tuple[float, ...]:
        """The low ends, a point below: what the model of a load errs by; at the present size what was observed."""
        now = self.snapshot.maxmemory_bytes
        points = zip(self.curve_bytes, self.curve_hit_ratio, strict=True)
        return tuple(ratio if size == now else max(ratio - _ERROR, 0.0) for size, ratio in points)

    @property
    def sizes_as_is(self) -> tuple[tuple[int, Estimate], ...]:
        """Nothing: no request of the simulator asks for another hit ratio."""
        return ()

    @property
    def above_usual(self) -> float:
        """0: a model's load has no good minutes."""
        return 0.0

    def best_at(self, maxmemory_bytes: int) -> Choice:
        """Return the best policy and TTL at a size, with its prediction."""
        ratio = self.snapshot.hit_ratio or 0.0
        before = Estimate(ratio, ratio, ratio)
        wanted = _configuration(maxmemory_bytes, self._policy)
        if wanted == self._now and not self._rules:
            return Choice(
                configuration=self._now, ttl_rules=(), before=before, after=before, words="no change", method="model"
            )
        extended = bool(self.in_force) or bool(self._rules)
        there = self._believed(wanted.eviction_policy, wanted.maxmemory_bytes, extended=extended)
        value = min(max(ratio + self._difference(there), 0.0), 1.0)
        after = Estimate.around(value, _ERROR + 0.1 * abs(value - ratio), 0.0, 1.0)
        words = f"{wanted.eviction_policy} with {maxmemory_bytes / 2**20:.2f} MiB"
        return Choice(
            configuration=wanted,
            ttl_rules=self._rules,
            before=before,
            after=after,
            words=words,
            method="model of the load",
        )

    def content(self, settings: CacheOptimizerSettings) -> str:
        """Return in words why this cache is best left as it is."""
        return f"nothing to change: hit ratio {self.snapshot.hit_ratio:.3f}, goal {settings.target_cache_hit_rate:.2f}"


@lru_cache(maxsize=4_096)
def _curve(load: LoadModel, policy: str, sizes: tuple[int, ...], *, extended: bool) -> tuple[float, ...]:
    """Return the hit ratio at each size, 0 being no limit; the same are asked about in each cycle."""
    rooms = (max(size - _START_UP_BYTES, 1) if size else 0 for size in sizes)
    return tuple(min(max(hit_ratio(load, policy, room, extended=extended), 0.0), 1.0) for room in rooms)


def _configuration(maxmemory_bytes: int, policy: str) -> CacheConfiguration:
    return CacheConfiguration(maxmemory_bytes=maxmemory_bytes, eviction_policy=cast(EvictionPolicy, policy))


class Beliefs:
    """Makes outlooks for one deployment. `boasts` may be changed while it runs: service to what it overstates by."""

    def __init__(self, loads: Callable[[str], LoadModel], ttls: Mapping[str, int], dice: Dice, error: float) -> None:
        self.boasts: dict[str, float] = {}
        self._loads = loads
        self._ttls = ttls
        self._dice = dice
        self._error = error

    def __call__(
        self,
        snapshot: Snapshot,
        service: Service,
        settings: CacheOptimizerSettings,
        in_force: tuple[TtlRule, ...] = (),
        interval_factor: float = 1.0,
    ) -> Outlook:
        """Return the outlook of one service; see `agents.appraisal.appraise`."""
        del settings, interval_factor
        epoch = snapshot.taken_at_ms // _BELIEF_MS
        blur = self._dice.fork(f"{service.name}:{epoch}").uniform(-self._error, self._error)
        return Outlook(
            snapshot=snapshot,
            service=service,
            load=self._loads(service.name),
            written_ttl_ms=self._ttls.get(service.name, 0),
            in_force=in_force,
            blur=blur,
            boast=self.boasts.get(service.name, 0.0),
        )
