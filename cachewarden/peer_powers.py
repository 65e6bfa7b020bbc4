"""What an agent may bring about by writing on the blackboard alone.

ACGS's blackboard authenticates nobody: whoever reaches the server writes under any name, so an agent id in a record is
a claim. Who may write is for the server's ACL to say; what a writer can do at most is said here. Nothing of it goes
past verdict, approval, lease and journal.

INVARIANT: a word that is not known is refused at the start, so no power is given or withheld by a slip of the pen.
"""

from __future__ import annotations

from enum import StrEnum

__all__ = ["PeerPower", "parse_powers"]


class PeerPower(StrEnum):
    """Each stands for itself; none implies another."""

    ANSWER = "answer"
    """Say who goes first in a conflict: it may let a change of ours go that a plan held back, or take one back."""
    ASK = "ask"
    """Create tasks for us: each brings a cycle forward, no more often than the cycle's interval."""
    FORCE = "force"
    """Let a task skip cool-down and minimum gain (`force_optimization`)."""
    HOLD = "hold"
    """Keep ours off what a plan touches, for an hour at most after it was written."""
    OBJECT = "object"
    """Report a conflict against a plan of ours, which holds it until it is answered or our own rule decides."""


def parse_powers(text: str) -> frozenset[PeerPower]:
    """Return the powers that a text names, separated by commas; none if it is empty. Raises ValueError."""
    words = [word.strip().lower() for word in text.split(",") if word.strip()]
    unknown = sorted(set(words) - set(PeerPower))
    if unknown:
        raise ValueError(f"`{unknown[0][:50]}` is no power, there are: {', '.join(sorted(PeerPower))}")
    return frozenset(PeerPower(word) for word in words)
