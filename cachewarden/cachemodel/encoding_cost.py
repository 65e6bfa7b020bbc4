"""What a command on a listpack or intset costs a server beyond the same command on a hash table or skip list.

A straight line in the number of entries, since a listpack is searched from its beginning: extra microseconds =
intercept + slope x entries. The coefficients are those that `python -m benchmarks.encoding_cpu` printed for 16 to
512 entries (members of 10, values of 20 bytes, drawn evenly; ZADD with a new random score, which a listpack has to
convert from text while it searches its place); they come from one machine, so a figure is a size, not a promise. It
never measures.

INVARIANT: a cost is only given for a server, kind and command that were measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cachewarden.cachemodel.encoding_layout import CollectionKind

__all__ = ["CommandCost", "costs_of"]


@dataclass(frozen=True, slots=True)
class CommandCost:
    """The line of one command. `entries_max`: nothing is said beyond; measured were up to 512."""

    command: str
    intercept_us: float
    slope_us: float
    entries_max: int = 1024

    def extra_us(self, entries: float) -> float:
        """Return the extra server time of one call, negative where the small encoding is faster."""
        return self.intercept_us + self.slope_us * entries


_MEASURED: Final[dict[tuple[str, CollectionKind, str], tuple[CommandCost, ...]]] = {
    ("redis-7.0", CollectionKind.HASH, "listpack"): (
        CommandCost("HGET", -0.01, 0.0065),
        CommandCost("HSET", -0.01, 0.0053),
    ),
    ("redis-7.0", CollectionKind.SET, "intset"): (CommandCost("SISMEMBER", -0.06, -0.0007),),
    ("redis-7.0", CollectionKind.ZSET, "listpack"): (
        CommandCost("ZSCORE", -0.09, 0.0093),
        CommandCost("ZADD", 4.91, 0.0363),
    ),
    ("valkey-9.1", CollectionKind.HASH, "listpack"): (
        CommandCost("HGET", 0.06, 0.0051),
        CommandCost("HSET", -0.08, 0.0056),
    ),
    ("valkey-9.1", CollectionKind.SET, "intset"): (CommandCost("SISMEMBER", -0.06, -0.0002),),
    ("valkey-9.1", CollectionKind.SET, "listpack"): (CommandCost("SISMEMBER", -0.43, 0.0082),),
    ("valkey-9.1", CollectionKind.ZSET, "listpack"): (
        CommandCost("ZSCORE", -0.40, 0.0101),
        CommandCost("ZADD", 1.07, 0.0134),
    ),
}


def costs_of(layout: str, kind: CollectionKind, encoding: str) -> tuple[CommandCost, ...]:
    """Return what was measured for a kind under its small encoding (`listpack`, `intset`); none where nothing was."""
    return _MEASURED.get((layout, kind, encoding), ())
