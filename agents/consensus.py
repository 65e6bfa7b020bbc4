"""The consensus: answers which of several proposals goes ahead, and puts changes to the vote where peers have one.

What stands against one proposal by itself is `obstacles.py`, what they want of each other `settlement.py`, the votes
`ballot_box.py`; here they are put together, with the little that has to be remembered between two rounds.

INVARIANT: every proposal gets exactly one resolution; nobody's vote is invented.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agents.ballot_box import BallotBox
from agents.obstacles import Situation
from agents.settlement import Settlement
from cachewarden.balloting import Outcome
from cachewarden.codec import to_jsonable
from cachewarden.fleet import Fleet
from cachewarden.machine import Effect, EffectFailed, Received, Record, Recorded, Send, Started, TimerFired
from cachewarden.messages import RecordKind
from cachewarden.modes import with_modes
from cachewarden.peer_messages import PeerBallots
from cachewarden.policy.surroundings import budgeted_services
from cachewarden.protocol import History, ModesChanged, Settle, Settled
from cachewarden.settings import CacheOptimizerSettings

__all__ = ["Consensus"]


class Consensus:
    """Answers `Settle` with `Settled`; puts changes to the vote of peers where some are entitled (`ballot_box.py`);
    everything else changes nothing.

    Remembers how often each change was taken back, for as long as the history does.
    """

    replay_kinds = BallotBox.replay_kinds

    def __init__(self, fleet: Fleet, settings: CacheOptimizerSettings, name: str = "consensus") -> None:
        self.name = name
        self._filed = self._fleet = fleet
        self._settings = settings
        self._modes = {s.name: s.mode for s in fleet.services}
        self._weights = {s.name: s.weight for s in fleet.services}
        self._freezes = {s.name: s.freeze for s in fleet.services if s.freeze}
        self._canaries = {s.name: s.canary for s in fleet.services if s.canary}
        self._box = BallotBox(settings, self._weights)
        self._elected: dict[str, str] = {}
        self._rollbacks: dict[tuple[str, str], tuple[int, int]] = {}
        """(service, change signature) to (times taken back, when last)."""

    def step(self, event: Any, now_ms: int) -> tuple[Effect, ...]:
        """Take one event."""
        if isinstance(event, Started):
            return self._box.replay(event.records, now_ms)
        if isinstance(event, TimerFired):
            return self._box.on_timer(event.ref, now_ms)
        if isinstance(event, Recorded):
            return self._box.recorded(event.ref, now_ms)
        if isinstance(event, EffectFailed):
            return self._box.not_recorded(event.ref, now_ms) if event.effect == "Record" else ()
        if not isinstance(event, Received):
            return ()
        if isinstance(event.message, Settle):
            return self._settled(event.message, event.sender, now_ms)
        if isinstance(event.message, ModesChanged):
            self._fleet = with_modes(self._filed, event.message.modes)
            self._modes = {s.name: s.mode for s in self._fleet.services}
        if isinstance(event.message, PeerBallots):
            return self._box.take(event.message, now_ms)
        return ()

    def _settled(self, question: Settle, asker: str, now_ms: int) -> tuple[Effect, ...]:
        memory_bytes = {name: size for name, size in question.memory_bytes.items() if name in self._modes}
        declared_bytes = (self._fleet.total_memory_bytes, question.budget_bytes, sum(memory_bytes.values()))
        self._box.note_history(question.history)
        votes = {p.proposal_id: self._box.obstacle(p, now_ms) for p in question.proposals}
        situation = Situation(
            modes=self._modes,
            weights=self._weights,
            history=question.history,
            memory_bytes=memory_bytes,
            intents=question.intents,
            budget_bytes=next(size for size in declared_bytes if size is not None),
            budgeted=budgeted_services(self._fleet),
            force=frozenset(question.force),
            kept=frozenset(question.kept),
            rollback_counts=self._count_rollbacks(question.history),
            approvals={a.proposal_id: a for a in question.approvals},
            rests=question.rests,
            freezes=self._freezes,
            canaries=self._canaries,
            unvoted={name: found for name, found in votes.items() if found is not None},
        )
        this_round = Settlement(question.proposals, question.verdicts, situation, self._settings, now_ms)
        resolutions = this_round.resolutions()
        verdicts = {v.proposal_id: v for v in question.verdicts}
        proposals = {p.proposal_id: p for p in question.proposals}
        effects: list[Effect] = []
        for resolution in resolutions:
            if resolution.awaits_ballot:
                proposal = proposals[resolution.proposal_id]
                effects += self._box.open(proposal, verdicts.get(proposal.proposal_id), now_ms)
        answer = Send(to=asker, message=Settled(cycle=question.cycle, resolutions=resolutions))
        return (answer, *self._told(this_round.elections), *effects)

    def _told(self, elections: Sequence[Outcome]) -> tuple[Effect, ...]:
        """Record elections among our own proposals, each once while nothing about it changes."""
        effects: list[Effect] = []
        for outcome in elections:
            service = outcome.motion.service
            gist = f"{[e.ballot.choice for e in outcome.ballots]} {outcome.winner}"
            if self._elected.get(service) != gist:
                self._elected[service] = gist
                effects.append(
                    Record(
                        kind=RecordKind.BALLOT_CLOSED.value,
                        service=service,
                        subject_id=outcome.motion.motion_id,
                        payload=to_jsonable({"outcome": outcome, "ballots_total": len(outcome.ballots), "until_ms": 0}),
                    )
                )
        return tuple(effects)

    def _count_rollbacks(self, history: Mapping[str, History]) -> dict[tuple[str, str], int]:
        for service in sorted(history):
            for signature, at_ms in sorted(history[service].rolled_back.items()):
                times, last_ms = self._rollbacks.get((service, signature), (0, -1))
                if at_ms > last_ms:
                    self._rollbacks[service, signature] = (times + 1, at_ms)
        still_told = {(service, signature) for service in history for signature in history[service].rolled_back}
        self._rollbacks = {key: seen for key, seen in self._rollbacks.items() if key in still_told}
        return {key: times for key, (times, _) in self._rollbacks.items()}
