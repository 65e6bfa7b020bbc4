"""What a command on a listpack or intset costs a server beyond the same command on a hash table or skip list.

A straight line in the number of entries, since a listpack is searched from its beginning: extra microseconds =
intercept + slope x entries. The coefficients are those that `python -m benchmarks.encoding_cpu` printed (members of 10,
values of 20 bytes, members drawn evenly); they come from one machine, so a figure is a size, not a promise. It never
measures.

INVARIANT: a cost is only given for a server, kind and command that were measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cachewarden.cachemodel.encoding_layout import CollectionKind

__all__ = ["CommandCost", "costs_of"]


@dataclass(frozen=True, slots=True)
class CommandCost:
    """The line of one command. `entries_max`: up to where it was measured."""

    command: str
    intercept_us: float
    slope_us: float
    entries_max: int = 512

    def extra_us(self, entries: float) -> float:
        """Return the extra server time of one call, negative where the small encoding is faster."""
        return self.intercept_us + self.slope_us * entries


_MEASURED: Final[dict[tuple[str, CollectionKind, str], tuple[CommandCost, ...]]] = {
    ("redis-7.0", CollectionKind.HASH, "listpack"): (
        CommandCost("HGET", 0.0, 0.004),
        CommandCost("HSET", 0.0, 0.006),
    ),
}


def costs_of(layout: str, kind: CollectionKind, encoding: str) -> tuple[CommandCost, ...]:
    """Return what was measured for a kind under its small encoding (`listpack`, `intset`); none where nothing was."""
    return _MEASURED.get((layout, kind, encoding), ())
