"""The conflicts between our changes and the plans of other agents: reported once, waited for, answered, remembered.

    open ── an answer, or our own rule once the wait is over ──► won | lost
      └──── the plan is gone, has ended or was changed ────────► moot, forgotten

A matter that comes up again after it was moot is another conflict, under an id of its own: what closed the first one
was no answer, and nobody could answer in a record that is closed.

While a conflict is open, and after it was lost, the peer's plan holds what it touches; once it was won the plan no
longer does for what we want now, unless it is being carried out by then. A conflict with a change that is being carried
out is told too; if an answer goes against us, that change is taken back. It never judges a change, and lets none go
that the consensus would not.

INVARIANT: our own rule decides only on a look at the blackboard that was made after the wait was over: while the
blackboard cannot be read, nothing is approved. A conflict is answered once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from cachewarden.board_records import ConflictRecord, KnowledgeRecord
from cachewarden.claims import BUDGET, TTL_PREFIX, overlap
from cachewarden.machine import Effect, Send
from cachewarden.messages import AGENT_ID, Intent, Proposal
from cachewarden.protocol import CancelExecution
from coordination import conflict_projection as projection
from coordination.blackboard_records import record_id
from coordination.conflict_answers import Answer, Sides, answer_in_item, answer_in_record
from coordination.conflicts import Clash, ClashKind, by_priority, own_rule
from coordination.pace import Pace
from coordination.peer_plans import PeerPlan, PlanState, intents_of

__all__ = ["ConflictDesk"]

_CASES_MAX: Final = 200
_TOLD_MAX: Final = 20
_REPORTS_PER_MINUTE: Final = 30
_RENEWED_MAX: Final = 3
_INSISTED_MS: Final = 3_600_000
_OWN_RULE: Final = f"{AGENT_ID}, its own rule"


@dataclass(slots=True)
class _Case:
    conflict_id: str
    clash: Clash
    since_ms: int
    """When our plan was announced first."""
    began_ms: int
    wait_until_ms: int
    reported: bool
    """Whether the record on the blackboard is ours; an objection's is the peer's."""
    outcome: str = "open"
    told: str = ""
    renewed: int = 0
    """How often it was reported under another id, since the former was closed without an answer."""
    refused: bool = False
    """Whether an answer with another constitutional hash was counted already."""
    names: set[str] = field(default_factory=set)
    """Proposal ids under which ours went: an answer may name any of them."""


class ConflictDesk:
    """`wait_ms` is how long an answer is waited for; `since` says when a proposal's matter was announced first, None
    where that is now. Not `answered`: only our own rule decides, whatever peers write."""

    def __init__(
        self, wait_ms: int, since: Callable[[Proposal], int | None] = lambda _: None, *, answered: bool = True
    ) -> None:
        self._wait_ms, self._since, self._answered = wait_ms, since, answered
        self._cases: dict[str, _Case] = {}
        self._judged: frozenset[str] = frozenset()
        """Conflicts of what was last asked for: what was won for anything else frees nothing."""
        self._reports = Pace(_REPORTS_PER_MINUTE)
        self._insisted: dict[tuple[str, str, str], list[int]] = {}
        """(agent, service, resource) to when we were allowed to set back what that agent had set."""
        self.counts: dict[str, int] = {}
        """Conflicts since the start: `reported`, `won`, `lost`, `moot`, and `refused` answers."""

    # --- Telling ----------------------------------------------------------------------------------------------------

    @property
    def open(self) -> tuple[str, ...]:
        """Ids of the conflicts that wait for an answer."""
        return tuple(case.conflict_id for case in self._cases.values() if case.outcome == "open")

    @property
    def holds_anything(self) -> bool:
        """Whether any conflict is followed, open or decided."""
        return bool(self._cases)

    def knows(self, conflict_id: str) -> bool:
        """Whether a conflict is followed here."""
        return any(case.conflict_id == conflict_id for case in self._cases.values())

    def told(self) -> tuple[str, ...]:
        """Return the newest cases, each in a sentence, newest last."""
        newest = list(self._cases.values())[-_TOLD_MAX:]
        return tuple(f"{case.outcome}: {case.told or case.clash.reason}" for case in newest)

    def intents(self, plans: Iterable[PeerPlan], now_ms: int) -> tuple[Intent, ...]:
        """Return what peers hold now: what their plans touch, without what was decided for us."""
        found: list[Intent] = []
        won: dict[tuple[str, str], list[Clash]] = {}
        for case in self._cases.values():
            if case.outcome == "won" and not case.clash.in_flight and self._wanted(case):
                won.setdefault(case.clash.plan.key, []).append(case.clash)
        for plan in plans:
            # Won while it was only wanted: once it is being carried out, nothing of ours goes against it.
            over = () if plan.state is PlanState.ACTIVE else won.get(plan.key, ())
            left = (_left(intent, over) for intent in intents_of(plan, now_ms))
            found += [intent for intent in left if intent is not None]
        for case in self._cases.values():
            plan = case.clash.plan
            held = case.clash.kind is ClashKind.UNDOES and plan.state is PlanState.DONE and case.outcome != "won"
            if held and now_ms < plan.until_ms:
                until_ms = plan.until_ms
                found.append(
                    Intent(
                        holder=plan.agent_id,
                        service=case.clash.service,
                        resource=case.clash.resource,
                        direction=0,
                        until_ms=until_ms,
                    )
                )
        return tuple(dict.fromkeys(found))

    # --- Learning ---------------------------------------------------------------------------------------------------

    def meet(self, clashes: Sequence[Clash], now_ms: int, *, judged: bool = True) -> tuple[Effect, ...]:
        """Report the clashes that are new; of one that is known, remember how it looks now.

        `judged`: they are all that stands against what we now want to do.
        """
        if judged:
            self._judged = frozenset(clash.conflict_id for clash in clashes)
        effects: list[Effect] = []
        for clash in clashes:
            case = self._cases.get(clash.conflict_id)
            if case is not None:
                case.clash = clash
                case.names.add(clash.proposal.proposal_id)
                continue
            if not self._room(now_ms):
                continue
            effects += self._report(self._opened(clash.conflict_id, clash, now_ms, reported=True))
        return tuple(effects)

    def _opened(self, conflict_id: str, clash: Clash, now_ms: int, *, reported: bool) -> _Case:
        since_ms = self._since(clash.proposal)
        case = _Case(
            conflict_id=conflict_id,
            clash=clash,
            since_ms=now_ms if since_ms is None else since_ms,
            began_ms=now_ms,
            wait_until_ms=now_ms + self._wait_ms,
            reported=reported,
        )
        case.names.add(clash.proposal.proposal_id)
        self._cases[conflict_id] = case
        self._count("reported")
        return case

    @staticmethod
    def _report(case: _Case) -> tuple[Effect, ...]:
        told, record = projection.reported(
            case.conflict_id, case.clash, case.since_ms, case.began_ms, case.wait_until_ms, ours=case.reported
        )
        return (told, record) if case.reported else (record,)

    def hear_objection(self, conflict_id: str, clash: Clash, now_ms: int) -> tuple[Effect, ...]:
        """Take a conflict that a peer has reported against a plan of ours; it waits and is answered like our own."""
        if conflict_id in self._cases or not self._room(now_ms):
            return ()
        return self._report(self._opened(conflict_id, clash, now_ms, reported=False))

    def read(
        self,
        records: Mapping[str, ConflictRecord | None],
        items: Iterable[KnowledgeRecord],
        now_ms: int,
        in_flight: Mapping[str, Proposal],
    ) -> tuple[Effect, ...]:
        """Take the answers that a look at the blackboard has found; what goes against a change under way ends it.

        `in_flight` is what is being carried out, by service.
        """
        effects: list[Effect] = []
        items = list(items)
        for case in [c for c in self._cases.values() if c.outcome == "open"]:
            if case.reported and case.renewed < _RENEWED_MAX and _withdrawn(records.get(case.conflict_id)):
                case.renewed += 1
                case.conflict_id = record_id("peer_conflict_again", case.conflict_id)
                effects += self._report(case)
                continue
            answer = self._answer(case, records, items)
            if answer is not None and answer.refused:
                if not case.refused:
                    case.refused = True
                    self._count("refused")
                answer = None
            if answer is not None:
                effects += self._settle(case, answer, now_ms)
                effects += _taken_back(case, in_flight)
            elif case.reported and case.conflict_id in records and records[case.conflict_id] is None:
                # Evicted, or never arrived: nobody could answer what nobody can read.
                effects.append(self._report(case)[0])
        return tuple(effects)

    def decide(self, now_ms: int) -> tuple[Effect, ...]:
        """Decide by our own rule what has waited long enough; only after a look that has found no answer."""
        waiting = [c for c in self._cases.values() if c.outcome == "open" and now_ms >= c.wait_until_ms]
        return tuple(e for case in waiting for e in self._settle(case, self._by_own_rule(case, now_ms), now_ms))

    def forget(self, plans: Iterable[PeerPlan], now_ms: int) -> tuple[Effect, ...]:
        """Close what has no object any more: `plans` are all that there are now, objections among them."""
        effects: list[Effect] = []
        alive = {plan.key: plan for plan in plans if now_ms < plan.until_ms}
        for key, case in list(self._cases.items()):
            plan = alive.get(case.clash.plan.key)
            if plan is not None and plan.touches == case.clash.plan.touches and plan.state is not PlanState.ENDED:
                continue
            if case.outcome == "open":
                why = f"`{case.clash.plan.plan_id}` of `{case.clash.plan.agent_id}` is no longer wanted as it was"
                effects += self._closed(case, "moot", _OWN_RULE, why, now_ms)
            del self._cases[key]
        return tuple(effects)

    def note_started(self, service: str) -> None:
        """Take note that a change is being carried out: what was won for it is used up."""
        used = {case.clash.conflict_id for case in self._cases.values() if case.clash.service == service}
        self._judged -= used

    # --- Parts ------------------------------------------------------------------------------------------------------

    def _room(self, now_ms: int) -> bool:
        if len(self._cases) < _CASES_MAX and self._reports.take(now_ms):
            return True
        # A flood of plans: what is not reported is not decided either, so those plans keep what they hold.
        self._count("not_reported")
        return False

    def _wanted(self, case: _Case) -> bool:
        """Whether what was won is still what we want; an objection is against whatever we want of its cache."""
        return not case.reported or case.clash.conflict_id in self._judged

    def _count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    def _sides(self, case: _Case) -> Sides:
        for_us, words = by_priority(case.clash, case.since_ms, self._times_insisted(case))
        plan = case.clash.plan
        return Sides(
            ours=frozenset({AGENT_ID, *case.names}),
            theirs=frozenset({plan.agent_id, plan.plan_id}) - {AGENT_ID},
            priority_for_us=for_us,
            priority_words=words,
        )

    def _answer(
        self, case: _Case, records: Mapping[str, ConflictRecord | None], items: Sequence[KnowledgeRecord]
    ) -> Answer | None:
        if not self._answered:
            return None
        sides = self._sides(case)
        record = records.get(case.conflict_id)
        answer = None if record is None else answer_in_record(record, sides)
        for item in items if answer is None else ():
            answer = answer_in_item(item, case.conflict_id, sides)
            if answer is not None and not answer.refused:
                break
        return answer

    def _by_own_rule(self, case: _Case, now_ms: int) -> Answer:
        key = (case.clash.plan.agent_id, case.clash.service, case.clash.resource)
        times = [at_ms for at_ms in self._insisted.get(key, ()) if now_ms - at_ms < _INSISTED_MS]
        self._insisted[key] = times
        for_us, words = own_rule(case.clash, case.since_ms, len(times))
        return Answer(for_us=for_us, source=_OWN_RULE, words=f"nobody answered in time; {words}")

    def _times_insisted(self, case: _Case) -> int:
        return len(self._insisted.get((case.clash.plan.agent_id, case.clash.service, case.clash.resource), ()))

    def _settle(self, case: _Case, answer: Answer, now_ms: int) -> tuple[Effect, ...]:
        if answer.for_us and case.clash.kind is ClashKind.UNDOES:
            key = (case.clash.plan.agent_id, case.clash.service, case.clash.resource)
            self._insisted.setdefault(key, []).append(now_ms)
        outcome = "won" if answer.for_us else "lost"
        return self._closed(case, outcome, answer.source, answer.words, now_ms, closed=answer.in_record)

    def _closed(
        self, case: _Case, outcome: str, source: str, reason: str, now_ms: int, *, closed: bool = False
    ) -> tuple[Effect, ...]:
        case.outcome = outcome
        case.told = f"{case.clash.reason}; decided by {source}: {reason}"
        self._count(outcome)
        told = projection.settled_record(
            case.conflict_id, case.clash, case.since_ms, outcome, source, reason, in_record=closed
        )
        effects: list[Effect] = [told, projection.outcome_known(told, now_ms)]
        if not closed:
            effects.append(projection.settled(told, now_ms))
        return tuple(effects)


def _withdrawn(record: ConflictRecord | None) -> bool:
    """Whether a conflict was closed by us as without object, so that it says nothing on what stands now."""
    if record is None or record["resolution_strategy"] != projection.WITHDRAWN:
        return False
    return bool((record["resolution_data"] or {}).get("reported_by", AGENT_ID) == AGENT_ID)


def _left(intent: Intent, over: Sequence[Clash]) -> Intent | None:
    """Return what a plan still holds of an intent after it has lost `over`; None for nothing."""
    if intent.resource != BUDGET:
        return None if any(_overruled(intent, clash) for clash in over) else intent
    # It gives way by what ours lacks, and no more: the memory that it frees is not for everybody.
    spare = [c.spare_bytes for c in over if c.spare_bytes is not None and c.proposal.memory_delta_bytes > 0]
    amount = min([intent.amount, *spare])
    return replace(intent, amount=amount) if amount > 0 or not spare else None


def _overruled(intent: Intent, clash: Clash) -> bool:
    wanted = [c.knob for c in clash.proposal.knob_changes]
    wanted += [f"{TTL_PREFIX}{r.pattern}" for r in clash.proposal.ttl_rules]
    if intent.service != clash.service:
        return False
    return intent.resource == clash.resource or any(overlap(intent.resource, resource) for resource in wanted)


def _taken_back(case: _Case, in_flight: Mapping[str, Proposal]) -> tuple[Effect, ...]:
    running = in_flight.get(case.clash.service)
    if case.outcome != "lost" or not case.clash.in_flight or running is None or running.proposal_id not in case.names:
        return ()
    reason = f"`{case.clash.plan.plan_id}` of `{case.clash.plan.agent_id}` goes first: {case.told}"
    order = CancelExecution(service=case.clash.service, reason=reason, proposal_id=running.proposal_id)
    return (Send(to="actuator", message=order),)
