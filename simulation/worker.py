"""What a process does that runs seeds and nothing else: it spares itself the garbage collection and reads its CPU time.

It decides nothing and no run sees the clock. INVARIANT: the outcome is that of `run_once`, but for `cpu_s`.
"""

from __future__ import annotations

import gc
import time
from dataclasses import replace

from simulation.run import Outcome, run_once
from simulation.scenario import Scenario

__all__ = ["run_one"]


def run_one(one: tuple[Scenario, int], *, mix: str | None, record: bool, timeline: bool) -> Outcome:
    """Return the outcome of one (scenario, seed), with the CPU time that it took here."""
    # A run makes many small objects that live until its end; looking through them again and again finds nothing.
    gc.set_threshold(100_000, 20, 50)
    began_s = time.process_time()
    outcome = run_once(*one, mix=mix, record=record, timeline=timeline)
    return replace(outcome, cpu_s=time.process_time() - began_s)
