"""From a run that fails to the shortest one that still does: fewer faults, less time.

Faults are dropped in halves, then in smaller parts, then one by one (delta debugging, Zeller and Hildebrandt, TSE
2002), as long as a promise of the same name is still broken; a run ends with its first violation. The seed stays, so
everything that is left happens at the same virtual times as far as the dropped faults had no part in it.

It decides nothing. INVARIANT: what it returns fails, and breaks the promise that was broken.
"""

from __future__ import annotations

from collections.abc import Callable

from simulation.fault_words import FaultSpec
from simulation.run import Outcome, run_once
from simulation.scenario import Scenario

__all__ = ["shrink"]

Faults = tuple[FaultSpec, ...]


def shrink(
    scenario: Scenario, outcome: Outcome, *, runs_max: int = 80, progress: Callable[[int, int], None] | None = None
) -> Outcome:
    """Return the shortest failing outcome found within `runs_max` runs, with its timeline.

    `progress` is told (runs made, faults left). Raises ValueError for an outcome in which nothing was broken.
    """
    if outcome.ok:
        raise ValueError("nothing was broken, so there is nothing to shrink")
    promise = outcome.violations[0].checker
    best = outcome
    runs = 0

    def still_fails(faults: Faults) -> Outcome | None:
        nonlocal runs
        runs += 1
        tried = run_once(scenario, outcome.seed, faults=faults)
        if progress is not None:
            progress(runs, len(faults))
        return tried if any(v.checker == promise for v in tried.violations) else None

    # What comes after the violation had no part in it.
    before = tuple(f for f in best.faults if f.at_ms <= best.elapsed_ms)
    if len(before) < len(best.faults):
        best = still_fails(before) or best
    parts = 2
    while len(best.faults) > 0 and runs < runs_max:
        size = max(1, len(best.faults) // parts)
        for start in range(0, len(best.faults), size):
            if runs >= runs_max:
                break
            found = still_fails(best.faults[:start] + best.faults[start + size :])
            if found is not None:
                best, parts = found, max(2, parts - 1)
                break
        else:
            if size == 1:
                break
            parts = min(2 * parts, len(best.faults))
    return run_once(scenario, outcome.seed, faults=best.faults, timeline=True)
