"""One run of a scenario with a seed, and what came out of it.

It puts world, faults and checkers together and says whether a promise was broken. It decides nothing. INVARIANT: the
same scenario, seed and faults give the same outcome, in any process.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cache

from cachewarden.messages import RecordKind
from cachewarden.policy.constitution import Constitution
from simulation.checkers.book import all_checkers
from simulation.checkers.checker import Checker, Violation
from simulation.facts import FencedWrite
from simulation.fault_words import FaultSpec
from simulation.faults import schedule
from simulation.mixes import draw_faults
from simulation.quickening import quicken_loaded
from simulation.recording import Recording
from simulation.scenario import Scenario, ScenarioError
from simulation.world import START_MS, World, default_constitution

__all__ = ["Outcome", "checkers_of", "run_once"]

_COUNTED = {
    RecordKind.CHANGE_INTENDED.value: "begun",
    RecordKind.CHANGE_KEPT.value: "kept",
    RecordKind.CHANGE_ROLLED_BACK.value: "rolled_back",
    RecordKind.CHANGE_ABANDONED.value: "abandoned",
    RecordKind.ROLLBACK_FAILED.value: "failed",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one run showed. `violations` is empty where every promise held."""

    scenario: str
    seed: int
    faults: tuple[FaultSpec, ...]
    elapsed_ms: int
    """Virtual time that passed."""
    trace: str
    """Hash over everything that happened."""
    violations: tuple[Violation, ...]
    counts: dict[str, int]
    """Events, messages, calls, writes, and changes by how they ended."""
    hit_ratios: dict[str, float]
    """Of each service in the end."""
    cpu_s: float = field(default=0.0, compare=False)
    """CPU time that it took in its process, 0 where nobody measured."""
    timeline: tuple[tuple[int, str], ...] = field(default=(), repr=False)
    """(virtual time since the beginning in milliseconds, what happened); only where it was asked for."""
    recording: Recording | None = field(default=None, repr=False)
    """What a report draws; only where it was asked for."""

    @property
    def ok(self) -> bool:
        return not self.violations


@cache
def _constitution() -> Constitution:
    return default_constitution()


def checkers_of(scenario: Scenario) -> tuple[Checker, ...]:
    """Return fresh checkers of every promise but those that the scenario says are known to be broken; raises
    ScenarioError where it names none."""
    checkers = all_checkers()
    names = [checker.name for checker in checkers]
    unknown = sorted(set(scenario.known_broken) - set(names))
    if unknown:
        raise ScenarioError(f"`known_broken`: there is no promise `{unknown[0]}`, there are: {', '.join(names)}")
    return tuple(checker for checker in checkers if checker.name not in scenario.known_broken)


def run_once(
    scenario: Scenario,
    seed: int,
    *,
    mix: str | None = None,
    faults: tuple[FaultSpec, ...] | None = None,
    timeline: bool = False,
    record: bool = False,
) -> Outcome:
    """Run a scenario and return its outcome.

    `faults` replaces what the scenario and its mix would give (as shrinking does), `mix` the mix of the scenario.
    """
    quicken_loaded("cachewarden", "agents", "coordination", "simulation")
    planned = draw_faults(scenario, seed, mix) if faults is None else faults
    world = World(scenario, seed, constitution=_constitution(), checkers=checkers_of(scenario))
    schedule(world, planned)
    recording = Recording() if record else None
    if recording is not None:
        world.ticks.append(recording.take)
    world.run()
    if recording is not None:
        recording.close(world.facts, int(scenario.minutes * 60_000))
    journals = {s.journal.name: s.journal for s in (world.servers_of(d) for d in world.deployments)}
    kinds = Counter(r.kind for journal in journals.values() for r in journal.records)
    counts = {
        "events": world.time.events,
        "messages": world.network.messages,
        "calls": world.network.calls,
        "writes": sum(isinstance(fact, FencedWrite) for fact in world.facts),
        **{name: kinds[kind] for kind, name in _COUNTED.items()},
    }
    return Outcome(
        scenario=scenario.name,
        seed=seed,
        faults=planned,
        elapsed_ms=world.elapsed_ms,
        trace=world.trace,
        violations=tuple(world.violations),
        counts=counts,
        hit_ratios={name: round(cache_.hit_ratio_now, 4) for name, cache_ in world.caches.items()},
        timeline=tuple((f.at_ms - START_MS, f.words()) for f in world.facts) if timeline else (),
        recording=recording,
    )
