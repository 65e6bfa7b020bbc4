"""An appraisal stands for a minute, as long as nothing new is known of the cache."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from agents.recent_appraisals import STANDS_MS, RecentAppraisals
from cachewarden.observation import Snapshot
from cachewarden.settings import CacheOptimizerSettings, load_settings
from tests.unit.agents.caches import MIB, fleet_of, snapshot_of, traffic

SETTINGS: CacheOptimizerSettings = load_settings()
SERVICE = fleet_of("small").service("small")
FIRST = snapshot_of("small", traffic(6_000, seed=3), 2 * MIB)


def later(snapshot: Snapshot, ms: int, **changed: Any) -> Snapshot:
    return replace(snapshot, taken_at_ms=snapshot.taken_at_ms + ms, **changed)


def test_an_unchanged_cache_is_examined_once_a_minute():
    appraise = RecentAppraisals()
    first = appraise(FIRST, SERVICE, SETTINGS)
    assert appraise(later(FIRST, STANDS_MS - 1), SERVICE, SETTINGS) is first
    assert appraise(later(FIRST, STANDS_MS), SERVICE, SETTINGS) is not first


@pytest.mark.parametrize(
    "changed",
    [
        {"hit_ratio": (FIRST.hit_ratio or 0.0) - 0.01},
        {"knobs": {**FIRST.knobs, "maxmemory-samples": "10"}},
        {"access": None},
        {"incomplete": {"latency": "denied"}},
    ],
    ids=["hit ratio", "knobs", "access sample", "what is missing"],
)
def test_a_cache_of_which_something_new_is_known_is_examined_anew(changed: dict[str, Any]):
    appraise = RecentAppraisals()
    first = appraise(FIRST, SERVICE, SETTINGS)
    assert appraise(later(FIRST, 10_000, **changed), SERVICE, SETTINGS) is not first


def test_another_rule_or_wider_intervals_ask_for_a_new_appraisal():
    appraise = RecentAppraisals()
    first = appraise(FIRST, SERVICE, SETTINGS)
    assert appraise(later(FIRST, 1), SERVICE, SETTINGS, (), 2.0) is not first


def test_a_clock_that_was_set_back_ends_what_stands():
    appraise = RecentAppraisals()
    first = appraise(FIRST, SERVICE, SETTINGS)
    assert appraise(later(FIRST, -1), SERVICE, SETTINGS) is not first


def test_a_refusal_is_not_remembered():
    appraise = RecentAppraisals()
    silent = replace(FIRST, hits=0, misses=0)
    assert isinstance(appraise(silent, SERVICE, SETTINGS), str)
    assert not isinstance(appraise(FIRST, SERVICE, SETTINGS), str)


def grown(snapshot: Snapshot, first: int, rows: int) -> Snapshot:
    """The snapshot with this part of its access sample only."""
    access = snapshot.access
    assert access is not None
    part = slice(first, rows)
    return replace(snapshot, access=replace(access, trace=access.trace.rows(part), pattern=access.pattern[part]))


def test_a_sample_that_has_hardly_grown_asks_for_no_new_appraisal_and_one_that_has_does():
    appraise = RecentAppraisals()
    first = appraise(grown(FIRST, 0, 5_000), SERVICE, SETTINGS)
    assert appraise(grown(FIRST, 100, 5_200), SERVICE, SETTINGS) is first
    assert appraise(grown(FIRST, 0, 5_900), SERVICE, SETTINGS) is not first


def test_a_sample_from_after_a_gap_is_examined_however_short_the_gap_was():
    appraise = RecentAppraisals()
    first = appraise(grown(FIRST, 0, 3_000), SERVICE, SETTINGS)
    assert appraise(grown(FIRST, 3_001, 6_000), SERVICE, SETTINGS) is not first
