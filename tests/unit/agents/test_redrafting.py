"""Taking a kept change back on a person's word: what is predicted, and what stands for it where the models are silent."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agents.redrafting import counter_of
from cachewarden.messages import Execution, ExecutionState, Proposal
from cachewarden.settings import load_settings
from tests.unit.agents.actuator_world import change, proposal
from tests.unit.agents.caches import MIB, NOW, fleet_of, snapshot_of, traffic, without_capture

SETTINGS = load_settings()
SHRUNK = without_capture(snapshot_of("api", traffic(5_000), 4 * MIB))


def kept(then: float | None, after: float | None) -> Execution:
    """A shrink from 6 to 4 MiB that was kept, with the hit ratios measured before and after it."""
    shrink = change("maxmemory", 4 * MIB, before=6 * MIB)
    return Execution(
        execution_id="e-1", proposal=proposal(shrink, service="api"), state=ExecutionState.KEPT, started_at_ms=0,
        updated_at_ms=0, hit_ratio_before=then, hit_ratio_after=after,
    )  # fmt: skip


def taken_back(execution: Execution, snapshot=SHRUNK) -> Proposal | str:
    service = fleet_of("api").services[0]
    return counter_of(execution, snapshot, service, (), SETTINGS, author="ann", now_ms=NOW)


def test_what_was_measured_before_the_change_stands_for_a_prediction_that_nobody_can_make():
    now = SHRUNK.hit_ratio
    plan = taken_back(kept(now + 0.05, None))
    assert isinstance(plan, Proposal)
    assert [(c.knob, c.before, c.after) for c in plan.knob_changes] == [("maxmemory", str(4 * MIB), str(6 * MIB))]
    told = plan.prediction
    assert told.hit_ratio_before.value == now
    assert told.gain.value == pytest.approx(0.05)
    # Somewhere between then and now, by the operator's margin
    margin = SETTINGS.rollback_margin
    assert (told.gain.low, told.gain.high) == pytest.approx((-margin, 0.05 + margin))
    assert "measured before the change, since the models cannot tell: " in told.method


def test_before_a_window_has_passed_what_judged_the_change_says_how_things_are_now():
    fresh = replace(SHRUNK, hit_ratio=None, hits=0, misses=0)
    plan = taken_back(kept(0.7, 0.6), fresh)
    assert isinstance(plan, Proposal)
    assert plan.prediction.hit_ratio_before.value == 0.6
    assert plan.prediction.gain.value == pytest.approx(0.1)


@pytest.mark.parametrize(("then", "after"), [(None, 0.6), (0.7, None)])
def test_without_a_measurement_nothing_is_made_up(then: float | None, after: float | None):
    fresh = replace(SHRUNK, hit_ratio=None, hits=0, misses=0)
    told = taken_back(kept(then, after), fresh)
    assert isinstance(told, str)
    assert "can neither be predicted (" in told


def test_a_knob_that_was_changed_since_is_not_set_again():
    assert "was changed since" in str(taken_back(kept(0.7, 0.6), replace(SHRUNK, knobs={"maxmemory": str(5 * MIB)})))
