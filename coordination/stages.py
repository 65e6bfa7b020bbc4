"""The stages of one cycle: which agent is asked in each, and for how long its answer is waited for.

INVARIANT: every stage has an agent and a deadline. Whoever answers too late is given more time for the next question,
up to `_FACTOR_MAX` times, so that an agent with a large fleet on a slow machine is not asked for ever without once
being heard; whoever does not answer at all is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = ["AGENT_OF_STAGE", "STAGE_DEADLINE_MS", "StageDeadlines"]

AGENT_OF_STAGE: Final[Mapping[str, str]] = {
    "observing": "collector",
    "planning": "planner",
    "judging": "validator",
    "settling": "consensus",
}
STAGE_DEADLINE_MS: Final[Mapping[str, int]] = {
    "observing": 20_000,
    "planning": 60_000,
    "judging": 10_000,
    "settling": 10_000,
}
_FACTOR_MAX: Final = 8


class StageDeadlines:
    """Mutable state of one coordinator: when the present stage began, and how much longer than usual each may take."""

    def __init__(self) -> None:
        self._factors: dict[str, int] = {}
        self._missed: dict[str, int] = {}
        """Stage to the cycle in which it was waited for in vain last."""
        self._stage, self._began_ms = "", 0

    def begin(self, stage: str, now_ms: int) -> int:
        """Return until when its answer is waited for; the stage before, if one is still open, was answered."""
        self.end(now_ms)
        self._stage, self._began_ms = stage, now_ms
        return now_ms + STAGE_DEADLINE_MS[stage] * self._factors.get(stage, 1)

    def end(self, now_ms: int) -> None:
        """Take note that the present stage was answered; one that needed little of its time gets less again."""
        factor, took_ms = self._factors.get(self._stage, 1), now_ms - self._began_ms
        if factor > 1 and 4 * took_ms < STAGE_DEADLINE_MS[self._stage] * factor:
            self._factors[self._stage] = factor // 2
        self._stage = ""

    def missed(self, cycle: int) -> str:
        """Take note that the deadline of the present stage has passed; returns what is told of its agent."""
        stage, self._stage = self._stage, ""
        self._missed[stage] = cycle
        return f"did not answer while {stage} in cycle {cycle}"

    def note_late(self, stage: str, cycle: int) -> bool:
        """Take an answer that nobody waits for: where it comes after its deadline, the next one has twice the time.
        Returns False, as it changes nothing else."""
        if self._missed.get(stage) == cycle:
            del self._missed[stage]
            self._factors[stage] = min(2 * self._factors.get(stage, 1), _FACTOR_MAX)
        return False
