"""At most one writer per cache and epoch, none past the fence, and none after a newer one has written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from simulation.checkers.checker import Checker, WorldView
from simulation.facts import Fact, FencedWrite, FenceLost, FenceRaised, LeaseTaken, Restarted

__all__ = ["SingleWriter"]


class SingleWriter(Checker):
    """Rebuilds from the leases that were granted who may write under which epoch."""

    name = "single-writer"
    sees: tuple[type[Fact], ...] = (LeaseTaken, FencedWrite, FenceRaised, FenceLost, Restarted)

    def __init__(self) -> None:
        self._granted: dict[tuple[str, int], set[str]] = {}
        self._fence: dict[str, int | None] = {}
        self._newest: dict[str, tuple[int, str]] = {}

    def see(self, fact: Any, world: WorldView) -> Sequence[str]:
        """Judge each write by the lease that it was made under."""
        del world
        if isinstance(fact, LeaseTaken):
            self._granted.setdefault((fact.lease.service, fact.lease.epoch), set()).add(fact.lease.holder)
            return ()
        if not isinstance(fact, FencedWrite):
            self._fence[fact.service] = fact.epoch if isinstance(fact, FenceRaised) else None
            return ()
        found: list[str] = []
        fence = self._fence.get(fact.service, fact.epoch)
        if fence != fact.epoch:
            found.append(
                f"`{fact.holder}` wrote to `{fact.service}` under epoch {fact.epoch} while the fence was {fence}"
            )
        if fact.holder not in self._granted.get((fact.service, fact.epoch), ()):
            found.append(f"`{fact.holder}` wrote to `{fact.service}` under epoch {fact.epoch}, which it was not given")
        epoch, holder = self._newest.get(fact.service, (fact.epoch, fact.holder))
        if epoch > fact.epoch:
            found.append(
                f"`{fact.holder}` wrote to `{fact.service}` under epoch {fact.epoch} after `{holder}` had written "
                f"under {epoch}"
            )
        elif epoch == fact.epoch and holder != fact.holder:
            found.append(f"`{fact.holder}` and `{holder}` both wrote to `{fact.service}` under epoch {epoch}")
        self._newest[fact.service] = max((epoch, holder), (fact.epoch, fact.holder))
        return found
