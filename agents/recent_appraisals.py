"""Appraisals that stand for a while: a cache is not examined anew each cycle where nothing new is known of it.

An examination replays what was captured some dozen times, which takes tenths of a second for each cache; a cycle comes
every few seconds and a new capture every minute. It never answers for a cache that was reconfigured, whose hit ratio
has moved, or of whose accesses much more is known by now.

INVARIANT: an appraisal that is handed out again is younger than `STANDS_MS` and was made under the same configuration,
rules and access sample, or one that has hardly grown since.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final

from agents.appraisal import Appraisal, appraise
from cachewarden.fleet import Service
from cachewarden.messages import TtlRule
from cachewarden.observation import AccessSample, Snapshot
from cachewarden.settings import CacheOptimizerSettings

__all__ = ["STANDS_MS", "RecentAppraisals"]

STANDS_MS: Final = 60_000
_HIT_RATIO_MOVED: Final = 0.005
"""An answer is the observed hit ratio plus a difference, so it is as old as the ratio it began with."""
_NEWS_SHARE: Final = 0.08
"""By how much of its length an access sample must have grown to be examined anew."""


@dataclass(frozen=True, slots=True)
class _Standing:
    basis: Hashable
    access: AccessSample | None
    hit_ratio: float
    made_ms: int
    appraisal: Appraisal


class RecentAppraisals:
    """Appraises like `agents.appraisal.appraise`; remembers one appraisal of each service, and no refusals."""

    def __init__(self) -> None:
        self._standing: dict[str, _Standing] = {}

    def __call__(
        self,
        snapshot: Snapshot,
        service: Service,
        settings: CacheOptimizerSettings,
        in_force: tuple[TtlRule, ...] = (),
        interval_factor: float = 1.0,
    ) -> Appraisal | str:
        """Return the appraisal that stands, or make one; in words why the evidence cannot carry one."""
        basis = _basis(snapshot, service, in_force, interval_factor)
        access = snapshot.access
        known = self._standing.pop(service.name, None)
        ratio = snapshot.hit_ratio
        if known is not None and ratio is not None and known.basis == basis and _no_news(known.access, access):
            young = 0 <= snapshot.taken_at_ms - known.made_ms < STANDS_MS
            if young and abs(ratio - known.hit_ratio) < _HIT_RATIO_MOVED:
                self._standing[service.name] = known
                return known.appraisal
        found = appraise(snapshot, service, settings, in_force, interval_factor)
        if not isinstance(found, str) and ratio is not None:
            self._standing[service.name] = _Standing(basis, access, ratio, snapshot.taken_at_ms, found)
        return found


def _basis(snapshot: Snapshot, service: Service, in_force: tuple[TtlRule, ...], interval_factor: float) -> Hashable:
    """Return what an appraisal rests on, but for the counters and the residents of the look itself."""
    knobs = tuple(sorted(snapshot.knobs.items()))
    return (service, knobs, tuple(sorted(snapshot.incomplete)), in_force, interval_factor)


def _no_news(known: AccessSample | None, access: AccessSample | None) -> bool:
    """Say whether a sample tells nothing that the known one did not: it continues it, and is hardly longer. Whoever
    examines it replays it some dozen times, and a twentieth more of the past changes no answer."""
    if known is None or access is None or not (len(known.trace) and len(access.trace)):
        return known is access
    before, now = known.trace.time_ms, access.trace.time_ms
    continues = known.source == access.source and before[0] <= now[0] <= before[-1] <= now[-1]
    return bool(continues and now[-1] - before[-1] < _NEWS_SHARE * (now[-1] - now[0]))
