"""Slot moves of a Redis Cluster, in the answer about hot keys: proposed with the predicted balance, and not done.

The nodes are those services of the fleet whose looks tell that they belong to the same cluster. INVARIANT: nothing is
advised unless all primaries of the cluster were seen, and the predicted largest load is never above the present one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from pydantic import BaseModel, Field

from cachewarden.cachemodel.slot_moves import NodeLoad, SlotPlan, propose_moves
from cachewarden.observation import Snapshot

__all__ = ["SlotMovesView", "slot_moves_view"]

_NO_CLUSTER: Final = "the server is no node of a Redis Cluster"


class SlotMovesView(BaseModel):
    """Whole slots to move between nodes so that they share the load; nothing of it is done by us."""

    advised: bool
    reason: str
    moves: list[dict[str, Any]] = Field(
        default_factory=list, description="in their order: slot, from, to, and its share of the cluster's load"
    )
    shares_before: dict[str, float] = Field(default_factory=dict, description="of the cluster's load, by service")
    shares_after: dict[str, float] = Field(default_factory=dict, description="predicted, for the load of now")
    unmovable: list[dict[str, Any]] = Field(
        default_factory=list, description="slots that alone are more than a node's fair share: moving them helps nobody"
    )


def slot_moves_view(snapshot: Snapshot, fleet: Iterable[Snapshot]) -> SlotMovesView:
    """Return the moves for the cluster of `snapshot`, or why there are none."""
    own = snapshot.cluster
    if own is None:
        reason = snapshot.incomplete.get("cluster", "")
        return SlotMovesView(advised=False, reason=reason or _NO_CLUSTER)
    nodes = {s.service: s for s in fleet if s.cluster is not None and s.cluster.cluster == own.cluster}
    nodes[snapshot.service] = snapshot
    loads = {
        name: NodeLoad(dict(s.cluster.slots), s.cluster.other_us_per_s)
        for name, s in sorted(nodes.items())
        if s.cluster is not None
    }
    if len(loads) < own.primaries:
        reason = f"the cluster has {own.primaries} primaries, of which {len(loads)} are services that were seen"
        return SlotMovesView(advised=False, reason=reason)
    try:
        plan = propose_moves(loads)
    except ValueError as error:
        # A slot that moved between the two looks: the next ones agree again.
        return SlotMovesView(advised=False, reason=f"the looks do not fit together: {error}")
    return SlotMovesView(advised=False, reason=plan) if isinstance(plan, str) else _told(plan)


def _told(plan: SlotPlan) -> SlotMovesView:
    total = sum(plan.before.values())
    unmovable = [
        {"slot": slot, "service": name, "share": round(load / total, 4)} for slot, name, load in plan.unmovable
    ]
    largest = f"{max(plan.before.values()) / total:.1%} of the load"
    if plan.moves:
        reason = f"the busiest node would have {max(plan.after.values()) / total:.1%} instead of {largest}"
    elif unmovable:
        reason = f"the busiest node has {largest}, by a single slot that no move makes lighter: split or cache its keys"
    else:
        reason = f"the busiest node has {largest}, which no move makes surely less"
    return SlotMovesView(
        advised=bool(plan.moves),
        reason=reason,
        moves=[
            {"slot": m.slot, "from": m.source, "to": m.target, "share": round(m.load / total, 4)} for m in plan.moves
        ],
        shares_before={name: round(load / total, 4) for name, load in plan.before.items()},
        shares_after={name: round(load / total, 4) for name, load in plan.after.items()},
        unmovable=unmovable,
    )
