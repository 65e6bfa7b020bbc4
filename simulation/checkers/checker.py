"""What a checker is: it sees facts as they become true, and says in words what is broken.

A checker rebuilds what it needs from facts alone, never from the memory of the agents that it judges, unless it is
asked at the end whether that memory is right. It is told of every fact once, so its work is small and grows with what
happens, not with the length of the run.

INVARIANT: a checker changes nothing in the world.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cachewarden.fleet import Fleet
from cachewarden.settings import CacheOptimizerSettings
from simulation.deployment import Deployment, Servers
from simulation.facts import Fact
from simulation.model_cache import ModelCache
from simulation.scenario import Scenario

__all__ = ["Checker", "Violation", "WorldView"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """A promise that was broken: when (virtual time), which, and how."""

    at_ms: int
    checker: str
    words: str


class WorldView(Protocol):
    """What a checker may look at."""

    @property
    def now_ms(self) -> int: ...

    @property
    def fleet(self) -> Fleet: ...

    @property
    def settings(self) -> CacheOptimizerSettings: ...

    @property
    def caches(self) -> Mapping[str, ModelCache]: ...

    @property
    def deployments(self) -> Mapping[str, Deployment]: ...

    @property
    def found_bytes(self) -> Mapping[str, int]:
        """Return maxmemory of each service as it was in the beginning."""
        ...

    @property
    def scenario(self) -> Scenario: ...

    @property
    def quiet(self) -> bool:
        """Whether all faults are over."""
        ...

    def servers_of(self, deployment: str) -> Servers: ...


class Checker:
    """Base of all checkers. `sees` are the kinds of facts that `see` is told of; one object serves one run."""

    name = ""
    sees: tuple[type[Fact], ...] = ()

    def see(self, fact: Any, world: WorldView) -> Sequence[str]:
        """Return what the fact breaks, in words; nothing where all is well."""
        del fact, world
        return ()

    def tick(self, world: WorldView) -> Sequence[str]:
        """Return what is broken now; asked every ten seconds of virtual time."""
        del world
        return ()

    def at_end(self, world: WorldView) -> Sequence[str]:
        """Return what is broken after all faults were over for a while."""
        del world
        return ()
