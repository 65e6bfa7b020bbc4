"""No agent ever breaks: whatever arrives, `step` raises nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from simulation.checkers.checker import Checker, WorldView
from simulation.facts import AgentBroke, Fact

__all__ = ["Soundness"]


class Soundness(Checker):
    """An exception out of `step` is a bug, since it ends a life in the middle."""

    name = "soundness"
    sees: tuple[type[Fact], ...] = (AgentBroke,)

    def see(self, fact: Any, world: WorldView) -> Sequence[str]:
        """Tell of it."""
        del world
        return [fact.words()]
