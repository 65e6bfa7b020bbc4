"""The plans and ballots of one look at the blackboard: read, refused for another hash, counted, and cut to a bound.

Most items are as they were in the look before, so each is read only once. It decides nothing about what was read.

INVARIANT: a bad record is counted once; of too many plans those that are being carried out stay, then the most urgent:
who floods the blackboard gains nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from cachewarden.board_records import KnowledgeRecord
from cachewarden.machine import Record
from cachewarden.messages import CONSTITUTIONAL_HASH, RecordKind
from cachewarden.peer_messages import PeerBallot
from coordination.blackboard_records import BALLOT_TYPE, PLAN_TYPES, BadRecord
from coordination.pace import Pace
from coordination.peer_ballots import read_ballot
from coordination.peer_plans import PeerPlan, PlanState, Refused, newest, read_plan, word

__all__ = ["PLANS_MAX", "PeerReader"]

PLANS_MAX: Final = 500
_TOUCHES_MAX: Final = 5_000
_REFUSALS_REMEMBERED: Final = 10_000
_REFUSALS_PER_MINUTE: Final = 30
"""Refused records that are put into the journal; the others are counted."""

_Understood = PeerPlan | PeerBallot | Refused | BadRecord | None


class PeerReader:
    """What the items of the last look say. `names` are the caches of our fleet."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
        self._read: dict[str, tuple[KnowledgeRecord, _Understood]] = {}
        """Item of the last look to what was understood of it."""
        self._seen: OrderedDict[tuple[str, str], None] = OrderedDict()
        """Records that were refused or could not be used, so that each is counted once."""
        self._recorded = Pace(_REFUSALS_PER_MINUTE)
        self.plans: tuple[PeerPlan, ...] = ()
        self.ballots: tuple[PeerBallot, ...] = ()
        self.bad = self.violations = 0
        """Records that could not be used, and that carried another hash, since the start."""

    @property
    def holds_anything(self) -> bool:
        """Whether the last look has shown any item."""
        return bool(self._read)

    def read(self, items: Iterable[KnowledgeRecord], where: str, now_ms: int) -> list[Record]:
        """Take the items of one look; returns what the journal is told of those that were refused."""
        told: list[Record] = []
        plans: list[PeerPlan] = []
        ballots: list[PeerBallot] = []
        before, self._read = self._read, {}
        for item in items:
            last = before.get(item["id"])
            # Comparing costs a fraction of reading.
            found = last[1] if last is not None and last[0] == item else self._understood(item, now_ms)
            self._read[item["id"]] = (item, found)
            if isinstance(found, PeerPlan):
                plans.append(found)
                self.bad += bool(found.trouble) and self.first_time(item["id"], item["timestamp"])
            elif isinstance(found, PeerBallot):
                ballots.append(found)
            elif found is not None and self.first_time(item["id"], item["timestamp"]):
                told += self._refuse(item, found, where, now_ms)
        self.plans, self.ballots = _bounded(plans, now_ms), tuple(ballots)
        return told

    def first_time(self, record_id: str, at: str) -> bool:
        """Whether a record, as it was written at that time, was never asked about before."""
        mark = (str(record_id), str(at))
        if mark in self._seen:
            self._seen.move_to_end(mark)
            return False
        self._seen[mark] = None
        while len(self._seen) > _REFUSALS_REMEMBERED:
            self._seen.popitem(last=False)
        return True

    def _understood(self, item: KnowledgeRecord, now_ms: int) -> _Understood:
        if item["knowledge_type"] in PLAN_TYPES:
            return read_plan(item, self._names, now_ms)
        return read_ballot(item, now_ms) if item["knowledge_type"] == BALLOT_TYPE else None

    def _refuse(self, item: KnowledgeRecord, why: Refused | BadRecord, where: str, now_ms: int) -> list[Record]:
        if isinstance(why, BadRecord):
            self.bad += 1
            return []
        self.violations += 1
        payload = {
            "constitutional_hash": CONSTITUTIONAL_HASH,
            "why": "wrong constitutional hash",
            "where": where,
            "received": why.received,
            "caller": why.agent_id,
            "knowledge_type": word(item["knowledge_type"]) or "unprintable",
        }
        subject = word(item["id"]) or "unprintable"
        record = Record(kind=RecordKind.REQUEST_REFUSED, service=None, subject_id=subject, payload=payload)
        return [record] if self._recorded.take(now_ms) else []


def _bounded(plans: Iterable[PeerPlan], now_ms: int) -> tuple[PeerPlan, ...]:
    def weight(plan: PeerPlan) -> tuple[bool, bool, int, tuple[str, str]]:
        return not plan.in_force(now_ms), plan.state is not PlanState.ACTIVE, plan.priority, plan.key

    chosen: list[PeerPlan] = []
    room = _TOUCHES_MAX
    for plan in sorted(newest(plans), key=weight)[:PLANS_MAX]:
        room -= len(plan.touches)
        chosen += [plan] if room >= 0 else []
    return tuple(sorted(chosen, key=lambda p: p.key))
