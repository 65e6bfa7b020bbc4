"""The constitutional validator: what the constitution says of every proposal of a round, by the names of the
principles that said no.

It approves nothing that it could not evaluate: no snapshot of the service, no place in the fleet file, an expression
that fails - each denies. It never changes a proposal, never asks a cache, and never weighs one proposal against
another (that is the consensus's). Where it is configured, Constitutional AI is asked for a second opinion
(`second_opinion.py`), and the answer waits for it within a deadline.

INVARIANT: every proposal of a `Judge` gets exactly one verdict in the `Judged` that answers it, in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from agents.second_opinion import SecondOpinion
from cachewarden.fleet import Fleet
from cachewarden.machine import Effect, Received, Send
from cachewarden.messages import Proposal, Verdict
from cachewarden.modes import with_modes
from cachewarden.observation import Snapshot
from cachewarden.policy.constitution import Constitution
from cachewarden.policy.engine import evaluate, refusal
from cachewarden.policy.facts import facts_of
from cachewarden.policy.surroundings import surroundings_of
from cachewarden.protocol import Judge, Judged, ModesChanged
from cachewarden.settings import CacheOptimizerSettings

__all__ = ["Validator", "judge"]


def judge(
    constitution: Constitution,
    fleet: Fleet,
    settings: CacheOptimizerSettings,
    proposals: Sequence[Proposal],
    snapshots: Iterable[Snapshot],
    now_ms: int,
    *,
    last_seen: Mapping[str, Snapshot] = MappingProxyType({}),
    budget_bytes: int | None = None,
) -> tuple[Verdict, ...]:
    """Return one verdict for each proposal, in their order.

    `snapshots` are those of this round; a service that is missing there counts for the sums over the fleet with its
    `last_seen` one, but is not judged by it. `budget_bytes` is the sum of maxmemory as found at first, for fleets
    that declare no total.
    """
    seen = {s.service: s for s in snapshots}
    others = surroundings_of(proposals, {**last_seen, **seen}.values(), fleet, settings, budget_bytes)
    verdicts: list[Verdict] = []
    for proposal in proposals:
        snapshot = seen.get(proposal.service)
        if proposal.service not in others.services:
            verdicts.append(refusal(constitution, proposal, now_ms, f"`{proposal.service}` is not in the fleet file"))
        elif snapshot is None:
            verdicts.append(refusal(constitution, proposal, now_ms, f"there is no snapshot of `{proposal.service}`"))
        else:
            verdicts.append(evaluate(constitution, proposal, facts_of(proposal, snapshot, fleet, others), now_ms))
    return tuple(verdicts)


class Validator:
    """Answers `Judge` with `Judged`; everything else changes nothing, but answers of a second opinion.

    Remembers only the newest snapshot (without its samples) of each service of the fleet, so that a look that failed
    in one round does not hide what the others' limits add up to.
    """

    def __init__(
        self, constitution: Constitution, fleet: Fleet, settings: CacheOptimizerSettings, name: str = "validator"
    ) -> None:
        self.name = name
        self._constitution = constitution
        self._filed = self._fleet = fleet
        self._settings = settings
        self._known = frozenset(fleet.names)
        self._snapshots: dict[str, Snapshot] = {}
        mode = settings.constitutional_ai_mode
        self._opinion = (
            None
            if mode == "off"
            else SecondOpinion(
                mode,
                {s.name: s.mode for s in fleet.services},
                # The adapter gives up first, and its failure says more than the deadline does.
                deadline_ms=settings.constitutional_ai_timeout_ms + 1_000,
            )
        )

    def step(self, event: Any, now_ms: int) -> tuple[Effect, ...]:
        """Take one event."""
        if isinstance(event, Received) and isinstance(event.message, ModesChanged):
            self._fleet = with_modes(self._filed, event.message.modes)
            if self._opinion is not None:
                self._opinion.use_modes({s.name: s.mode for s in self._fleet.services})
        if isinstance(event, Received) and isinstance(event.message, Judge):
            judged = self._judged(event.message, now_ms)
            if self._opinion is None:
                return (Send(to=event.sender, message=judged),)
            asked = self._opinion.begin(judged.cycle, event.sender, event.message.proposals, judged.verdicts, now_ms)
            return (*asked, *self._opinion.report("coordinator"))
        if self._opinion is None or isinstance(event, Received):
            return ()
        return (*self._opinion.step(event, now_ms), *self._opinion.report("coordinator"))

    def _judged(self, question: Judge, now_ms: int) -> Judged:
        for snapshot in question.snapshots:
            if snapshot.service in self._known:
                self._snapshots[snapshot.service] = snapshot.light()
        verdicts = judge(
            self._constitution,
            self._fleet,
            self._settings,
            question.proposals,
            question.snapshots,
            now_ms,
            last_seen=self._snapshots,
            budget_bytes=question.budget_bytes,
        )
        return Judged(cycle=question.cycle, verdicts=verdicts)
