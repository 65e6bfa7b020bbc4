"""A vote that was counted was that of somebody who may vote, cast in time, and counted once.

Our own agents vote from their own evidence, so nothing that stands on the blackboard in their name counts. Who writes
in the name of another peer cannot be told from him there: the wire carries no proof of who wrote.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from cachewarden.balloting import Standing, is_own
from cachewarden.messages import RecordKind
from simulation.checkers.checker import Checker, WorldView
from simulation.facts import Appended, Fact

__all__ = ["Ballots"]


class Ballots(Checker):
    """Looks at every count that the journal holds."""

    name = "ballots"
    sees: tuple[type[Fact], ...] = (Appended,)

    def see(self, fact: Any, world: WorldView) -> Sequence[str]:
        """Judge each count by the motion that it is about."""
        del world
        found: list[str] = []
        for record in fact.records:
            outcome = record.payload.get("outcome") if record.kind == RecordKind.BALLOT_CLOSED else None
            if isinstance(outcome, Mapping):
                found += [f"record {record.seq}: {words}" for words in _judged(outcome)]
        return found


def _judged(outcome: Mapping[str, Any]) -> list[str]:
    motion = outcome["motion"]
    entitled = {voter["voter_id"] for voter in motion["electorate"]}
    counted = [e["ballot"] for e in outcome["ballots"] if e["standing"] == Standing.COUNTED.value]
    found = [f"`{b['voter_id']}` was counted and may not vote" for b in counted if b["voter_id"] not in entitled]
    found += [
        f"a vote in the name of our `{b['voter_id']}` was read from the blackboard and counted"
        for b in counted
        if is_own(b["voter_id"]) and b.get("item_id")
    ]
    times = Counter(b["voter_id"] for b in counted)
    found += [f"`{voter}` was counted {n} times" for voter, n in sorted(times.items()) if n > 1]
    return found
