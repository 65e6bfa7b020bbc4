"""What a change touches, how urgent it is, and when two of them touch the same thing.

The words are those of `Intent.resource`: the name of a knob, `ttl:<pattern>`, `budget` for the memory that all services
share, `*` for everything of a service. Pure functions. INVARIANT: overlap is symmetric, and everything overlaps itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from cachewarden.messages import ActionClass, Proposal

__all__ = ["ANYTHING", "BUDGET", "TTL_PREFIX", "UNREAD_BOARD", "direction_of", "overlap", "priority_of", "touched"]

ANYTHING: Final = "*"
"""Everything of a service except its share of the memory budget."""
BUDGET: Final = "budget"
TTL_PREFIX: Final = "ttl:"
UNREAD_BOARD: Final = "unread blackboard"
"""Who holds everything while nobody knows what other agents hold."""
_GLOB: Final = "*?[\\"
_WHOLE: Final = re.compile(r"-?[0-9]{1,20}")
_PRIORITY: Final[Mapping[ActionClass, int]] = {ActionClass.LOSSY: 1, ActionClass.FORBIDDEN: 1, ActionClass.GROWTH: 2}


def priority_of(proposal: Proposal) -> int:
    """Return how urgent a proposal of ours is among plans of peers, 1..5, 1 first."""
    return _PRIORITY.get(proposal.action_class, 3)


def direction_of(before: str, after: str) -> int:
    """Return +1 or -1 for whole numbers that grow or shrink, 0 for any other change."""
    if not (_WHOLE.fullmatch(before) and _WHOLE.fullmatch(after)):
        return 0
    return (int(after) > int(before)) - (int(after) < int(before))


def touched(proposal: Proposal) -> dict[str, int]:
    """Return the resources that a proposal touches, each with its direction (+1, -1, 0)."""
    resources = {change.knob: direction_of(change.before, change.after) for change in proposal.knob_changes}
    resources |= {f"{TTL_PREFIX}{rule.pattern}": 1 for rule in proposal.ttl_rules}
    return resources


def overlap(one: str, other: str) -> bool:
    """Whether two resources of one service are, or may be, the same; patterns of keys by what stands before a glob."""
    if one == other:
        return True
    if BUDGET in (one, other):
        return False
    if ANYTHING in (one, other):
        return True
    if not (one.startswith(TTL_PREFIX) and other.startswith(TTL_PREFIX)):
        return False
    a, b = _literal(one.removeprefix(TTL_PREFIX)), _literal(other.removeprefix(TTL_PREFIX))
    return a.startswith(b) or b.startswith(a)


def _literal(pattern: str) -> str:
    ends = [at for sign in _GLOB if (at := pattern.find(sign)) >= 0]
    return pattern[: min(ends)] if ends else pattern
