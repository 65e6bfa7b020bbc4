"""The pause until the next cycle: the usual one while anything happens, step by step a longer one while nothing does.

A cycle looks at every cache, replays its accesses and judges what comes of it, to say the same as the cycle before
where nothing has changed. After `_ALIKE` cycles that saw and said the same, each pause is twice the one before, up to
`idle_factor` intervals. The first cycle that sees or says something else brings the usual pace back, and so does
everything that asks for a cycle (`rouse`).

It decides nothing but when. INVARIANT: a pause is never shorter than the interval, nor longer than
`pauses.longest_pause_ms`; and it is the interval after a cycle that found a change in flight or a service that cools
down, a plan that awaits approval, a peer that holds anything, or a service that is not seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from cachewarden.observation import Snapshot
from cachewarden.pauses import longest_pause_ms

__all__ = ["CyclePace", "Sight"]

_ALIKE: Final = 3
"""Cycles in a row that say the same before pauses grow."""
_DOUBLINGS_MAX: Final = 10
_LOOKUPS_RATIO: Final = 1.25
"""Traffic is the same while lookups per second lie within this factor of those when the pace slowed down."""
_HIT_RATIO_STEP: Final = 0.02
"""And the hit ratio within this distance: what the default rollback margin takes for a difference."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What one cycle has seen of a service, as far as another sight of it calls for the usual pace."""

    run_id: str
    role: str
    knobs: Mapping[str, str]
    missing_parts: frozenset[str]
    lookups_per_s: float
    hit_ratio: float | None

    @classmethod
    def of(cls, snapshot: Snapshot) -> Sight:
        """Return the sight of a snapshot."""
        return cls(
            run_id=snapshot.run_id,
            role=snapshot.role,
            knobs=snapshot.knobs,
            missing_parts=frozenset(snapshot.incomplete),
            lookups_per_s=snapshot.lookups_per_s,
            hit_ratio=snapshot.hit_ratio,
        )

    def resembles(self, other: Sight) -> bool:
        """Whether nothing has happened between the two that a decision could depend on."""
        if (self.run_id, self.role, self.missing_parts) != (other.run_id, other.role, other.missing_parts):
            return False
        low, high = sorted((self.lookups_per_s, other.lookups_per_s))
        if self.knobs != other.knobs or high > low * _LOOKUPS_RATIO:
            return False
        if self.hit_ratio is None or other.hit_ratio is None:
            return self.hit_ratio is other.hit_ratio
        return abs(self.hit_ratio - other.hit_ratio) <= _HIT_RATIO_STEP


class CyclePace:
    """Mutable state of one coordinator. `interval_ms` is the usual pause, `rest_ms` how long a change is
    followed up."""

    def __init__(self, interval_ms: int, idle_factor: int, rest_ms: int) -> None:
        self._interval_ms, self._idle_factor, self._rest_ms = interval_ms, idle_factor, rest_ms
        self._sights: dict[str, Sight] = {}
        """What was seen when cycles began to be alike: a slow drift adds up against it."""
        self._said: Mapping[str, str] = {}
        self._alike = 0
        self._awake_until_ms = 0

    def rouse(self, now_ms: int, *, changed: bool = False) -> None:
        """Go back to the usual pace; where something was `changed`, until it has cooled down."""
        self._alike = 0
        if changed:
            self._awake_until_ms = now_ms + self._rest_ms

    def pause_ms(self, snapshots: Iterable[Snapshot], said: Mapping[str, str], now_ms: int, *, busy: bool) -> int:
        """Return the pause after a cycle that saw `snapshots` and said something (`said`, by service, without figures).

        `busy`: something is in flight, awaited or held.
        """
        sights = {s.service: Sight.of(s) for s in snapshots}
        alike = said == self._said and sights.keys() == self._sights.keys()
        if busy or not alike or not all(sight.resembles(self._sights[name]) for name, sight in sights.items()):
            self._sights, self._said, self._alike = sights, dict(said), 0
            return self._interval_ms
        # A clock that went back keeps nobody awake for ever.
        if not 0 < self._awake_until_ms - now_ms <= self._rest_ms:
            self._alike += 1
        doublings = min(max(0, self._alike - _ALIKE + 1), _DOUBLINGS_MAX)
        return longest_pause_ms(self._interval_ms, min(1 << doublings, self._idle_factor))
