"""Who of the agents lives: their beats, how often each has begun anew, and what was in trouble.

It starts nobody. INVARIANT: an agent that was not heard of for four beats is told as gone, whatever it said last.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from cachewarden.protocol import AgentBeat, AgentHealth

__all__ = ["LifeSigns"]

_SILENT_MS: Final = 20_000
"""Four missed beats: from then on an agent counts as gone."""


class LifeSigns:
    """Mutable state of one coordinator. What an agent says of itself hardly ever changes, when it said so always does:
    so the two are kept apart."""

    def __init__(self) -> None:
        self._said: dict[str, AgentHealth] = {}
        self._seen_ms: dict[str, int] = {}
        self._starts: dict[str, int] = {}

    def note_beat(self, beat: AgentBeat, sender: str, now_ms: int) -> None:
        """Take a sign of life; another start than before is a restart."""
        old, started_ms = self._said.get(sender), self._starts.get(sender)
        restarts = (old.restarts if old else 0) + int(started_ms not in (None, beat.started_at_ms))
        self._starts[sender], self._seen_ms[sender] = beat.started_at_ms, now_ms
        if old is None or (old.alive, old.restarts, old.detail) != (True, restarts, beat.detail):
            self._said[sender] = AgentHealth(
                name=sender, alive=True, last_seen_ms=now_ms, restarts=restarts, detail=beat.detail
            )

    def note_trouble(self, agent: str, detail: str) -> None:
        """Take note that an agent did not answer."""
        old = self._said.get(agent)
        restarts = old.restarts if old else 0
        self._said[agent] = AgentHealth(name=agent, alive=False, last_seen_ms=0, restarts=restarts, detail=detail)

    def told(self, now_ms: int) -> dict[str, AgentHealth]:
        """Return the health of every agent that was ever heard of."""
        found: dict[str, AgentHealth] = {}
        for name, said in self._said.items():
            seen_ms = self._seen_ms.get(name, 0)
            if now_ms - seen_ms < _SILENT_MS:
                found[name] = replace(said, last_seen_ms=seen_ms)
            else:
                found[name] = replace(said, last_seen_ms=seen_ms, alive=False, detail=said.detail or "silent")
        return found
