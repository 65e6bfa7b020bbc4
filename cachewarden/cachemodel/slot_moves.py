"""Which hash slots of a Redis Cluster would move to which node so that the nodes share the load more evenly.

Greedy: the node with the most load gives the slot whose move to the node with the least makes the worse of the two best
off, as long as that is a real gain. A slot is moved once at most, and whole: a slot that alone is more than a node's
fair share only moves the trouble elsewhere, which is said, since no move of slots can help. It proposes; it moves
nothing, and knows nothing of how a cluster does it.

INVARIANT: the largest load of a node after all moves is at most what it was before, and after each of them; the sum of
all loads is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

__all__ = ["SLOTS", "NodeLoad", "SlotMove", "SlotPlan", "propose_moves"]

SLOTS: Final = 16_384
_MOVES_MAX: Final = 20
_LEAST_GAIN: Final = 0.02
"""Of the mean load of a node; a move that spares the busiest one less is not worth its traffic."""
_TOLERATED: Final = 0.05
"""Nodes within so much of the mean are balanced."""


@dataclass(frozen=True, slots=True)
class NodeLoad:
    """The load of one node in any unit: of single slots (those that are known), and of all else that it does."""

    slots: Mapping[int, float]
    other: float = 0.0

    @property
    def total(self) -> float:
        return self.other + sum(self.slots.values())


@dataclass(frozen=True, slots=True)
class SlotMove:
    """One slot with its load, from one node to another."""

    slot: int
    source: str
    target: str
    load: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotPlan:
    """The moves in their order, and each node's load before and after. Imbalance is the largest load over the mean
    (1: even). `unmovable` are slots that alone are more than a node's mean."""

    moves: tuple[SlotMove, ...]
    before: Mapping[str, float]
    after: Mapping[str, float]
    unmovable: tuple[tuple[int, str, float], ...]

    @property
    def imbalance_before(self) -> float:
        return _imbalance(self.before)

    @property
    def imbalance_after(self) -> float:
        return _imbalance(self.after)


def _imbalance(loads: Mapping[str, float]) -> float:
    mean = sum(loads.values()) / len(loads)
    return max(loads.values()) / mean if mean > 0.0 else 1.0


def propose_moves(nodes: Mapping[str, NodeLoad]) -> SlotPlan | str:
    """Return the plan, or why there can be none. Raises ValueError for a negative load, a slot outside 0..16383, or
    one that two nodes have."""
    _check(nodes)
    if len(nodes) < 2:
        return "slots can only move between two nodes and more"
    before = {name: node.total for name, node in nodes.items()}
    total = sum(before.values())
    if total <= 0.0:
        return "the nodes have no load"
    mean, loads, moves = total / len(nodes), dict(before), list[SlotMove]()
    left = {name: dict(node.slots) for name, node in nodes.items()}
    while len(moves) < _MOVES_MAX and max(loads.values()) > (1.0 + _TOLERATED) * mean:
        move = _best_move(loads, left, mean)
        if move is None:
            break
        del left[move.source][move.slot]
        loads[move.source] -= move.load
        loads[move.target] += move.load
        moves.append(move)
    unmovable = tuple(
        (slot, name, load)
        for name, node in sorted(nodes.items())
        for slot, load in sorted(node.slots.items())
        if load > mean
    )
    return SlotPlan(moves=tuple(moves), before=before, after=loads, unmovable=unmovable)


def _check(nodes: Mapping[str, NodeLoad]) -> None:
    seen: set[int] = set()
    for name, node in nodes.items():
        for slot, load in node.slots.items():
            if not 0 <= slot < SLOTS or load < 0.0 or slot in seen:
                raise ValueError(f"slot `{slot}` of `{name}` with load `{load}`: 0..16383, once, and not negative")
            seen.add(slot)
        if node.other < 0.0:
            raise ValueError(f"the load `{node.other}` of `{name}` is negative")


def _best_move(loads: Mapping[str, float], left: Mapping[str, Mapping[int, float]], mean: float) -> SlotMove | None:
    source = max(sorted(loads), key=lambda name: loads[name])
    target = min(sorted(loads), key=lambda name: loads[name])
    best: SlotMove | None = None
    least = loads[source] - _LEAST_GAIN * mean
    for slot, load in sorted(left[source].items()):
        worse = max(loads[source] - load, loads[target] + load)
        if load > 0.0 and worse < least:
            least, best = worse, SlotMove(slot, source, target, load)
    return best
