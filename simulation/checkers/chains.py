"""The journal's chain is valid and complete after every append, and again from its beginning in the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cachewarden.chain import ChainVerifier, verify
from simulation.checkers.checker import Checker, WorldView
from simulation.facts import Appended, Fact, RecordsLost

__all__ = ["Chains"]


class Chains(Checker):
    """One verifier per journal; after a crash that took records it begins anew."""

    name = "chain"
    sees: tuple[type[Fact], ...] = (Appended, RecordsLost)

    def __init__(self) -> None:
        self._verifiers: dict[str, ChainVerifier] = {}

    def see(self, fact: Any, world: WorldView) -> Sequence[str]:
        """Take the new records."""
        if isinstance(fact, RecordsLost):
            verifier = ChainVerifier()
            for journal in {s.journal.name: s.journal for s in map(world.servers_of, world.deployments)}.values():
                for record in journal.records if journal.name == fact.journal else ():
                    verifier.take(record)
            self._verifiers[fact.journal] = verifier
            return ()
        verifier = self._verifiers.setdefault(fact.journal, ChainVerifier())
        for record in fact.records:
            verifier.take(record)
        report = verifier.report()
        return [f"{fact.journal}: record {p.seq} {p.kind}: {p.detail}" for p in report.problems[:3]]

    def at_end(self, world: WorldView) -> Sequence[str]:
        """Verify everything that is there."""
        journals = {s.journal.name: s.journal for s in map(world.servers_of, world.deployments)}
        found: list[str] = []
        for name in sorted(journals):
            report = verify(journals[name].records)
            found += [f"{name}: record {p.seq} {p.kind}: {p.detail}" for p in report.problems[:3]]
        return found
