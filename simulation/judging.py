"""The same checkers over a journal that was really written: what a run of the real thing has kept and broken.

Of all promises those are judged that need nothing but the journal; what a server did is not in it. It decides nothing.
INVARIANT: the same records, fleet and settings give the same findings.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

from cachewarden.fleet import Fleet
from cachewarden.messages import AuditRecord
from cachewarden.settings import CacheOptimizerSettings
from simulation.checkers.ballots import Ballots
from simulation.checkers.chains import Chains
from simulation.checkers.checker import Checker, Violation, WorldView
from simulation.checkers.endings import Endings
from simulation.checkers.flapping import Flapping
from simulation.checkers.floors import Floors
from simulation.checkers.lawful import Lawful
from simulation.checkers.measured import Measured
from simulation.checkers.pauses import Pauses
from simulation.facts import Appended

__all__ = ["judge_journal"]

_JOURNAL = "journal"
_LONG_AFTER_MS = 86_400_000


@dataclass
class _View:
    """What these checkers look at of a world."""

    fleet: Fleet
    settings: CacheOptimizerSettings
    now_ms: int = 0
    deployments: dict[str, Any] = field(default_factory=dict)
    records: list[AuditRecord] = field(default_factory=list)

    def servers_of(self, deployment: str) -> Any:
        del deployment
        return SimpleNamespace(journal=SimpleNamespace(name=_JOURNAL, records=self.records))


def judge_journal(
    records: Iterable[AuditRecord], fleet: Fleet, settings: CacheOptimizerSettings, *, deployments: int = 1
) -> tuple[Violation, ...]:
    """Return what was broken, in the order of the records. What has not ended by the last record counts as never
    ended, so ask once everything is at rest."""
    view = _View(fleet=fleet, settings=settings, deployments={str(n): None for n in range(deployments)})
    world = cast("WorldView", view)
    checkers: tuple[Checker, ...] = (
        Lawful(),
        Ballots(),
        Measured(),
        Pauses(),
        Floors(),
        Flapping(),
        Chains(),
        Endings(),
    )
    found: list[Violation] = []
    for record in records:
        view.records.append(record)
        view.now_ms = record.at_ms
        fact = Appended(at_ms=record.at_ms, journal=_JOURNAL, records=(record,))
        for checker in checkers:
            if Appended in checker.sees:
                found += [
                    Violation(at_ms=record.at_ms, checker=checker.name, words=w) for w in checker.see(fact, world)
                ]
    view.now_ms += _LONG_AFTER_MS
    for checker in checkers:
        found += [Violation(at_ms=view.now_ms, checker=checker.name, words=w) for w in checker.at_end(world)]
    return tuple(found)
