"""What is worked out once for every state version and then shared by all requests on it.

The surroundings, the newest execution of each service, for each standing proposal the facts and the context of the
constitution's expressions, and the words in which a plan is told. INVARIANT: everything in it follows from the one
state and the grounds that it was made of, and no verdict is kept: each request is judged anew, at its own time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from agents.obstacles import Obstacle, Situation, find_obstacle
from cachewarden.fleet import Fleet, Service
from cachewarden.messages import CONSTITUTIONAL_HASH, Decision, Execution, Finding, Proposal, Verdict
from cachewarden.observation import Snapshot
from cachewarden.policy.constitution import Constitution
from cachewarden.policy.engine import Prepared
from cachewarden.policy.facts import facts_of
from cachewarden.policy.second_opinion import SECOND_OPINION
from cachewarden.policy.surroundings import Surroundings, budgeted_services, surroundings_of
from cachewarden.protocol import FleetState
from cachewarden.settings import CacheOptimizerSettings
from serve.answers import Checks, Telling, checks_of, target_notes, telling_of

__all__ = ["Docket", "Grounds", "others_of"]

_NOTES_MAX: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Grounds:
    """What every decision of a process rests on; `budget_bytes` is the sum of maxmemory as found at first, if known."""

    fleet: Fleet
    constitution: Constitution
    settings: CacheOptimizerSettings
    budget_bytes: int | None = None


def _is_of(verdict: Verdict, proposal_digest: str, constitution: Constitution) -> bool:
    """Say whether a verdict is of exactly this proposal and of this constitution."""
    return (
        verdict.constitutional_hash == CONSTITUTIONAL_HASH
        and proposal_digest != ""
        and verdict.proposal_digest == proposal_digest
        and verdict.constitution_digest == constitution.digest
    )


def _covers(findings: Sequence[Finding], constitution: Constitution) -> bool:
    """Say whether there is one finding for each principle; a second opinion may come on top."""
    judged = [f.principle_id for f in findings if f.principle_id != SECOND_OPINION]
    return len(judged) == len(set(judged)) == len(constitution.principles)


def others_of(state: FleetState, grounds: Grounds) -> Surroundings:
    """Return what all proposals at hand have in common; the same for every request on one state version.

    A proposal whose donor was kept already still belongs to that donor's group, which is why executed ones that are
    needed count too.
    """
    at_hand = {d.proposal.proposal_id: d.proposal for d in state.standing.values() if d.proposal is not None}
    needed = {need for proposal in at_hand.values() for need in proposal.needs}
    done = {e.proposal.proposal_id: e.proposal for e in state.executions if e.proposal.proposal_id in needed}
    everything = {**done, **at_hand}
    return surroundings_of(
        [everything[key] for key in sorted(everything)],
        [state.snapshots[name] for name in sorted(state.snapshots)],
        grounds.fleet,
        grounds.settings,
        state.budget_bytes if grounds.budget_bytes is None else grounds.budget_bytes,
    )


class Docket:
    """One state, made ready for many requests. Not for several threads."""

    def __init__(self, state: FleetState, grounds: Grounds) -> None:
        self.state = state
        self.grounds = grounds
        self._latest = {e.proposal.service: e for e in state.executions}
        self._others: Surroundings | None = None
        self._prepared: dict[str, Prepared] = {}
        self._situation: Situation | None = None
        self._tellings: dict[tuple[str, str | None, Decision | None], Telling] = {}
        self._checks: dict[str, Checks] = {}
        self._notes: dict[tuple[str, int, tuple[tuple[str, float], ...]], tuple[Telling, list[str]]] = {}
        """By service, telling and targets; the telling is held, so that no other can take its place in memory."""
        self._covering: dict[str, tuple[Finding, ...]] = {}

    def holds(self, state: FleetState, grounds: Grounds) -> bool:
        """Whether this was made of the same version of the state on the same grounds."""
        mine = self.state
        same = mine is state or (state.life_ms > 0 and (mine.life_ms, mine.version) == (state.life_ms, state.version))
        return same and self.grounds is grounds

    def latest(self, service: str) -> Execution | None:
        """Return the newest execution of a service."""
        return self._latest.get(service)

    def prepared(self, proposal: Proposal, snapshot: Snapshot) -> Prepared:
        """Return a standing proposal ready to be judged; `snapshot` is that of its own service in this state."""
        found = self._prepared.get(proposal.proposal_id)
        if found is None or found.proposal is not proposal:
            if self._others is None:
                self._others = others_of(self.state, self.grounds)
            facts = facts_of(proposal, snapshot, self.grounds.fleet, self._others)
            found = self._prepared[proposal.proposal_id] = Prepared(self.grounds.constitution, proposal, facts)
        return found

    def obstacle(self, proposal: Proposal, verdict: Verdict, now_ms: int, *, force: bool) -> Obstacle | None:
        """Return what stands against an agreed proposal now: intents, a change in flight, cool-down, change budget.

        It was settled with the others when the cycle ended; since then the world may have moved on. The memory budget
        needs no second look: a cycle lets no more grow than fits if all of it is carried out.
        """
        if self._situation is None:
            fleet, state = self.grounds.fleet, self.state
            self._situation = Situation(
                modes={s.name: s.mode for s in fleet.services},
                weights={s.name: s.weight for s in fleet.services},
                history=state.history,
                memory_bytes={},
                intents=state.intents,
                budget_bytes=state.budget_bytes or 0,
                budgeted=budgeted_services(fleet),
                freezes={s.name: s.freeze for s in fleet.services if s.freeze},
                canaries={s.name: s.canary for s in fleet.services if s.canary},
            )
        situation = self._situation
        if force:
            situation = replace(situation, force=frozenset((proposal.service,)))
        ready = self._prepared.get(proposal.proposal_id)
        known = ready.digest if ready is not None and ready.proposal is proposal else None
        settings = self.grounds.settings
        return find_obstacle(proposal, verdict, situation, settings, now_ms, proposal_digest=known)

    def telling(
        self, service: Service, proposal: Proposal | None, execution: Execution | None, verdict: Verdict | None
    ) -> Telling:
        """Return the words on a plan; `proposal` and `execution` are of this state."""
        decision = None if verdict is None else verdict.decision
        key = (service.name, None if proposal is None else proposal.proposal_id, decision)
        found = self._tellings.get(key)
        if found is None or found.proposal is not proposal or found.execution is not execution:
            snapshot = self.state.snapshots.get(service.name)
            found = self._tellings[key] = telling_of(proposal, execution, service, snapshot, verdict)
        return found

    def is_complete(self, verdict: Verdict, proposal_digest: str) -> bool:
        """Say whether a verdict is of exactly this proposal and this constitution, with one finding for each principle.

        Findings that are the very same as before were counted before.
        """
        known = self._covering.get(proposal_digest) is verdict.findings
        if not known and _covers(verdict.findings, self.grounds.constitution):
            self._covering[proposal_digest], known = verdict.findings, True
        return known and _is_of(verdict, proposal_digest, self.grounds.constitution)

    def notes(self, targets: Mapping[str, float], service: Service, telling: Telling) -> list[str]:
        """Return which targets the plan will not meet and what they take; nobody may change the list."""
        key = (service.name, id(telling), tuple(sorted(targets.items())))
        found = self._notes.get(key)
        if found is None:
            if len(self._notes) >= _NOTES_MAX:
                self._notes.clear()
            state = self.state
            snapshot, sizing = state.snapshots.get(service.name), state.sizings.get(service.name)
            history = state.history.get(service.name)
            changed_ms = None if history is None else history.last_change_ms
            told = target_notes(targets, snapshot, telling.levels, sizing, state.at_ms, changed_ms)[1]
            found = self._notes[key] = (telling, told)
        return found[1]

    def checks(self, verdict: Verdict) -> Checks:
        """Return the words on a verdict's findings; those of the same findings are shared."""
        found = self._checks.get(verdict.proposal_id)
        if found is None or found.findings != verdict.findings:
            found = self._checks[verdict.proposal_id] = checks_of(verdict)
        return found
