"""One settlement: which of several proposals goes ahead, which waits, which yields, and why.

It settles what `obstacles.py` cannot see in one proposal alone: the memory budget that all share, several proposals
for one service, and proposals that need each other. It never judges a proposal's lawfulness, never changes one, and
never makes room by counting on memory that nobody has given yet.

INVARIANT: memory in force + growth on its way + growth of all GO proposals never exceeds the budget; at most one GO
per service; every proposal gets exactly one resolution; the order in which proposals come in changes nothing.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from agents.obstacles import Obstacle, Situation, clock_words, find_obstacle
from agents.own_ballots import elect
from cachewarden.approval import needs_approval, refusal_of_approval
from cachewarden.balloting import Outcome
from cachewarden.cachemodel.marginal_benefit import Claim, Division, Step, divide
from cachewarden.consensus_rules import Algorithm
from cachewarden.messages import (
    Intent,
    Proposal,
    Resolution,
    ResolutionOutcome,
    Verdict,
)
from cachewarden.policy.surroundings import memory_change
from cachewarden.settings import CacheOptimizerSettings

__all__ = ["Settlement", "settle"]

_MIB = 1 << 20
_FINAL_REFUSALS = (ResolutionOutcome.YIELD, ResolutionOutcome.ADVISE)


def settle(
    proposals: Sequence[Proposal],
    verdicts: Sequence[Verdict],
    situation: Situation,
    settings: CacheOptimizerSettings,
    now_ms: int,
) -> tuple[Resolution, ...]:
    """Return one resolution for each proposal, sorted by service and proposal id; two proposals of one id are both
    refused."""
    return Settlement(proposals, verdicts, situation, settings, now_ms).resolutions()


def _by_content(intent: Intent) -> tuple[str, str, str, int, int, int]:
    return intent.service, intent.resource, intent.holder, intent.direction, intent.amount, intent.until_ms


def _growth_bytes(proposal: Proposal) -> int:
    before, after = memory_change(proposal) or (0, 0)
    return max(0, after - before)


class Settlement:
    """One settlement: obstacles first, then needs, then competition for service and budget. Lives for one call."""

    def __init__(
        self,
        proposals: Sequence[Proposal],
        verdicts: Sequence[Verdict],
        situation: Situation,
        settings: CacheOptimizerSettings,
        now_ms: int,
    ) -> None:
        self._situation = replace(situation, intents=tuple(sorted(situation.intents, key=_by_content)))
        self._settings = settings
        self._now_ms = now_ms
        self._all = sorted(proposals, key=lambda p: (p.service, p.proposal_id))
        self._by_id = {p.proposal_id: p for p in self._all}
        self.elections: list[Outcome] = []
        self._price = 0.0
        self._fate: dict[str, Obstacle | None] = {}
        """None: GO. A proposal that is not in here yet is still undecided."""
        self._judged = judged = dict[str, Verdict]()
        for verdict in sorted(verdicts, key=lambda v: (v.proposal_id, v.decision, v.proposal_digest)):
            # Of two verdicts on one proposal the denying one counts ("allow" sorts before "deny").
            judged[verdict.proposal_id] = verdict
        self._dependents: dict[str, list[str]] = {}
        for proposal in self._all:
            for needed in proposal.needs:
                self._dependents.setdefault(needed, []).append(proposal.proposal_id)
        if len(self._by_id) < len(self._all):
            self._refuse_doubled_ids()
        for proposal_id, proposal in self._by_id.items():
            obstacle = find_obstacle(proposal, judged.get(proposal_id), self._situation, settings, now_ms)
            if obstacle is not None:
                self._fate.setdefault(proposal_id, obstacle)

    def resolutions(self) -> tuple[Resolution, ...]:
        self._settle_needs_and_donors()
        self._compete()
        self._settle_waiting_needs()
        return tuple(self._resolution(proposal) for proposal in self._all)

    def _resolution(self, proposal: Proposal) -> Resolution:
        fate = self._fate[proposal.proposal_id]
        outcome = ResolutionOutcome.GO if fate is None else fate.outcome
        return Resolution(
            proposal_id=proposal.proposal_id,
            service=proposal.service,
            outcome=outcome,
            reason=self._reason_to_go(proposal) if fate is None else fate.reason,
            conflicts_with=() if fate is None else fate.conflicts_with,
            resolved_at_ms=self._now_ms,
            awaits_approval=fate is not None and fate.awaits_approval,
            awaits_ballot=fate is not None and fate.awaits_ballot,
        )

    def _refuse_doubled_ids(self) -> None:
        for proposal_id, times in Counter(p.proposal_id for p in self._all).items():
            if times > 1:
                self._fate[proposal_id] = Obstacle(
                    outcome=ResolutionOutcome.YIELD, reason=f"`{proposal_id}` is the id of {times} different proposals"
                )

    # --- Those who need each other ----------------------------------------------------------------------------------

    def _unmet(self, proposal: Proposal) -> list[str]:
        return [needed for needed in proposal.needs if needed not in self._situation.kept]

    def _refused(self, proposal_id: str) -> bool:
        fate = self._fate.get(proposal_id)
        return fate is not None and fate.outcome in _FINAL_REFUSALS

    def _settle_needs_and_donors(self) -> None:
        """Refuse, until nothing changes, receivers whose donor was refused and donors whose receivers all were."""
        changed = True
        while changed:
            changed = False
            for proposal_id, proposal in self._by_id.items():
                if proposal_id in self._fate:
                    continue
                obstacle = self._refused_need(proposal) or self._given_for_nobody(proposal)
                if obstacle is not None:
                    self._fate[proposal_id] = obstacle
                    changed = True

    def _refused_need(self, proposal: Proposal) -> Obstacle | None:
        for needed in self._unmet(proposal):
            if self._refused(needed):
                fate = self._fate[needed]
                why = "" if fate is None else f": {fate.reason}"
                return Obstacle(
                    outcome=ResolutionOutcome.YIELD,
                    reason=f"it needs `{needed}` of `{self._by_id[needed].service}`, which does not go ahead{why}",
                    conflicts_with=(needed,),
                )
        return None

    def _given_for_nobody(self, proposal: Proposal) -> Obstacle | None:
        before, after = memory_change(proposal) or (0, 0)
        gain = proposal.prediction.gain.value
        if after >= before or gain > 0 or proposal.takes_back is not None or proposal.reapplies is not None:
            return None
        dependents = self._dependents.get(proposal.proposal_id, [])
        if any(not self._refused(dependent) for dependent in dependents):
            return None
        if not dependents and gain >= -self._settings.minimum_gain:
            # It gives what it hardly uses; who gets it is decided once it is free.
            return None
        return Obstacle(
            outcome=ResolutionOutcome.YIELD,
            reason=f"`{proposal.service}` would give {before - after} bytes away for {gain:+.4f} in hit ratio, and "
            "nobody is left who would take them",
            conflicts_with=tuple(dependents),
        )

    def _settle_waiting_needs(self) -> None:
        """Decide those that competed with nobody because something else has to come first."""
        self._settle_needs_and_donors()
        for proposal_id, proposal in self._by_id.items():
            if proposal_id in self._fate:
                continue
            unmet = self._unmet(proposal)
            told = ", ".join(self._need_in_words(needed) for needed in unmet)
            self._fate[proposal_id] = Obstacle(
                outcome=ResolutionOutcome.WAIT,
                reason=f"it needs {told} to have been kept first",
                conflicts_with=tuple(unmet),
            )

    def _need_in_words(self, needed: str) -> str:
        if needed in self._by_id:
            return f"`{needed}` of `{self._by_id[needed].service}`"
        for service in sorted(self._situation.history):
            if self._situation.history[service].in_flight == needed:
                return f"`{needed}`, which is being carried out on `{service}`,"
        return f"`{needed}`, of which nothing is known,"

    # --- Those who want the same ------------------------------------------------------------------------------------

    def _worth(self, proposal: Proposal) -> float:
        """Weighted hits per second that the proposal is predicted to bring; a donor is worth what it makes possible,
        so it comes first."""
        if self._dependents.get(proposal.proposal_id) and not _growth_bytes(proposal):
            return math.inf
        prediction = proposal.prediction
        return prediction.gain.value * prediction.lookups_per_s * self._situation.weights.get(proposal.service, 1.0)

    def _rank(self, proposal: Proposal) -> tuple[float, float, str, str]:
        """Order among services: what needs no memory first, then by weighted gain per byte; ties by service, then
        id."""
        growth_bytes = _growth_bytes(proposal)
        worth = self._worth(proposal)
        density = math.inf if growth_bytes == 0 else worth / growth_bytes
        return (-density, -worth, proposal.service, proposal.proposal_id)

    def _free_bytes(self) -> int:
        """Budget minus what is in force minus growth that is on its way; memory that is only promised to be given
        does not count."""
        in_flight_bytes = sum(
            max(0, intent.amount)
            for intent in self._situation.intents
            if intent.resource == "budget"
            and intent.direction > 0
            and not (intent.until_ms and intent.until_ms <= self._now_ms)
        )
        return self._situation.budget_bytes - sum(self._situation.memory_bytes.values()) - in_flight_bytes

    def _price_of_memory(self, wanting: Sequence[Proposal], free_bytes: int) -> float:
        """Return the weighted hits per second of the best byte that the budget does not reach to, by the rule of
        `marginal_benefit`; what a proposal claims counts as far as its interval goes."""
        claims = []
        for proposal in wanting:
            size_bytes, worth = _growth_bytes(proposal), self._worth(proposal)
            if size_bytes and math.isfinite(worth):
                prediction = proposal.prediction
                weight = self._situation.weights.get(proposal.service, 1.0)
                proven = prediction.gain.high * prediction.lookups_per_s * weight
                step = Step(size_bytes=size_bytes, claimed=worth, proven=proven)
                claims.append(Claim(claimant=proposal.service, floor_bytes=0, steps=(step,)))
        division = divide(claims, max(0, free_bytes))
        return division.price if isinstance(division, Division) else 0.0

    def _compete(self) -> None:
        queues: dict[str, list[Proposal]] = {}
        for proposal_id, proposal in self._by_id.items():
            if proposal_id not in self._fate and not self._unmet(proposal):
                queues.setdefault(proposal.service, []).append(proposal)
        for queue in queues.values():
            queue.sort(key=lambda p: (-self._worth(p), p.proposal_id))
            self._put_elected_first(queue)
        heads = [(self._rank(queue[0]), service) for service, queue in sorted(queues.items())]
        heapq.heapify(heads)
        free_bytes = at_start_bytes = self._free_bytes()
        self._price = self._price_of_memory([queue[0] for queue in queues.values()], free_bytes)
        growers: list[str] = []
        while heads:
            _, service = heapq.heappop(heads)
            proposal, *rest = queues[service]
            fate = self._admission(proposal, free_bytes, at_start_bytes, growers)
            self._fate[proposal.proposal_id] = fate
            if fate is None and _growth_bytes(proposal):
                free_bytes -= _growth_bytes(proposal)
                growers.append(proposal.proposal_id)
            if fate is None:
                self._lose(rest, proposal)
            elif rest:
                queues[service] = rest
                heapq.heappush(heads, (self._rank(rest[0]), service))

    def _admission(
        self, proposal: Proposal, free_bytes: int, at_start_bytes: int, growers: list[str]
    ) -> Obstacle | None:
        service, growth_bytes = proposal.service, _growth_bytes(proposal)
        if growth_bytes > 0:
            unknown = sorted(self._situation.budgeted - self._situation.memory_bytes.keys())
            if unknown:
                return Obstacle(
                    outcome=ResolutionOutcome.WAIT,
                    reason=f"`{service}` wants {growth_bytes} bytes more, but what is free is not known: "
                    f"no maxmemory of {', '.join(unknown[:5])}",
                )
            if growth_bytes > free_bytes:
                return self._no_room(proposal, growth_bytes, free_bytes, at_start_bytes, growers)
        return self._approval_missing(proposal) or self._situation.unvoted.get(proposal.proposal_id)

    def _put_elected_first(self, queue: list[Proposal]) -> None:
        """Let the rule of the settings choose among rivals; where it finds no winner the most hits go first."""
        algorithm = Algorithm(self._settings.consensus_service)
        if len(queue) < 2 or algorithm is Algorithm.MARGINAL_BENEFIT:
            return
        rivals = [(p, self._judged.get(p.proposal_id), self._worth(p)) for p in queue]
        outcome = elect(queue[0].service, rivals, algorithm, self._now_ms)
        self.elections.append(outcome)
        queue.sort(key=lambda p: p.proposal_id != outcome.winner)

    def _approval_missing(self, proposal: Proposal) -> Obstacle | None:
        mode = self._situation.modes[proposal.service]
        if not needs_approval(proposal.action_class, mode, self._settings):
            return None
        approval = self._situation.approvals.get(proposal.proposal_id)
        why = refusal_of_approval(approval, proposal, self._now_ms)
        if why is None:
            return None
        until = "" if approval is None else f", until {clock_words(approval.expires_at_ms)}"
        return Obstacle(
            outcome=ResolutionOutcome.WAIT,
            reason=f"`{proposal.service}` is in mode `{mode.value}`: {why}{until}",
            awaits_approval=True,
        )

    def _no_room(
        self, proposal: Proposal, growth_bytes: int, free_bytes: int, at_start_bytes: int, growers: list[str]
    ) -> Obstacle:
        budget = self._situation.budget_bytes
        if growth_bytes <= at_start_bytes:
            return Obstacle(
                outcome=ResolutionOutcome.YIELD,
                reason=f"`{proposal.service}` wants {growth_bytes} bytes more, but {max(0, free_bytes)} of the budget "
                f"of {budget} bytes are left after {', '.join(f'`{g}`' for g in growers)}, more hits per byte "
                f"(the next MiB is worth {self._price * _MIB:.3g} hits/s)",
                conflicts_with=tuple(growers),
            )
        return Obstacle(
            outcome=ResolutionOutcome.WAIT,
            reason=f"`{proposal.service}` wants {growth_bytes} bytes more, but only {max(0, at_start_bytes)} of the "
            f"budget of {budget} bytes are free",
        )

    def _lose(self, losers: list[Proposal], winner: Proposal) -> None:
        wanted = {c.knob: c.after for c in winner.knob_changes}
        for loser in losers:
            clashing = [c for c in loser.knob_changes if c.knob in wanted and wanted[c.knob] != c.after]
            if clashing:
                clash = clashing[0]
                self._fate[loser.proposal_id] = Obstacle(
                    outcome=ResolutionOutcome.YIELD,
                    reason=f"it would set `{clash.knob}` of `{loser.service}` to {clash.after}, "
                    f"`{winner.proposal_id}` sets it to {wanted[clash.knob]} and brings more",
                    conflicts_with=(winner.proposal_id,),
                )
            else:
                self._fate[loser.proposal_id] = Obstacle(
                    outcome=ResolutionOutcome.WAIT,
                    reason=f"`{winner.proposal_id}` changes `{loser.service}` first, one change at a time",
                    conflicts_with=(winner.proposal_id,),
                )

    def _reason_to_go(self, proposal: Proposal) -> str:
        growth_bytes = _growth_bytes(proposal)
        hits = proposal.prediction.gain.value * proposal.prediction.lookups_per_s
        if growth_bytes:
            return (
                f"nothing stands against it: {growth_bytes} bytes more for `{proposal.service}` fit into the budget of "
                f"{self._situation.budget_bytes} bytes and bring {hits:+.2f} hits/s"
            )
        before, after = memory_change(proposal) or (0, 0)
        if after < before:
            return f"nothing stands against it: `{proposal.service}` gives {before - after} bytes, {hits:+.2f} hits/s"
        return f"nothing stands against it: `{proposal.service}` is to gain {hits:+.2f} hits/s without more memory"
