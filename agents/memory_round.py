"""How far sizes move in one round towards what they should be in the end, when only some services may move now.

It weighs nothing: targets come from the arbitration. INVARIANT: who does not move now keeps its size; together no more
is taken than is free or given, and no more given than is taken, to the step.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping

__all__ = ["next_sizes"]


def next_sizes(
    targets: Mapping[str, int], held: Mapping[str, int], ready: Container[str], free_bytes: int, step_bytes: int
) -> dict[str, int]:
    """Return bytes per service of `targets` after this round; `held` is what each has.

    Who is not `ready`, since it cools down after a change, waits. The others give no more than the others can take now:
    the rest would lie idle until somebody may take it, and by then something else may be right. `free_bytes` below 0 is
    what has to be given in any case. Moves are whole steps of `step_bytes`, but for who gives all that it should.
    """
    moves = {name: size - held[name] for name, size in targets.items() if name in ready}
    gives, takes = -sum(m for m in moves.values() if m < 0), sum(m for m in moves.values() if m > 0)
    given = min(gives, max(0, takes - free_bytes))
    taken = min(takes, max(0, gives + free_bytes))
    found = {name: held[name] for name in targets}
    for name, move in moves.items():
        if move > 0:
            found[name] += move * taken // takes // step_bytes * step_bytes
        elif move < 0:
            steps = math.ceil(-move * given / gives / step_bytes)
            found[name] -= min(-move, steps * step_bytes)
    return found
