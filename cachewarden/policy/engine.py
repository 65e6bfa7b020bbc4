"""What the constitution says of one proposal: every principle asked, every answer kept, and anything but a plain yes
is a no.

It never looks at anything but the facts it is given, never skips a principle because it cannot be evaluated, and
never approves by default: no principle, no applicable principle, a missing fact, an expression that fails or gives
something else than true - all deny.

INVARIANT: a verdict allows only if at least one principle applied and every one that applied gave `true`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cel

from cachewarden.codec import kept_digest
from cachewarden.messages import Decision, Finding, Proposal, Verdict
from cachewarden.policy.constitution import EVALUATION_ERRORS, Constitution, Principle
from cachewarden.policy.facts import TIMED, time_facts

__all__ = ["Prepared", "evaluate", "refusal"]


def _unevaluated(principle: Principle, why: str) -> Finding:
    return principle.finding(Decision.DENY, f"could not be evaluated, which denies: {why}", evaluated=False)


def _digest_of(proposal: Proposal) -> str:
    try:
        return kept_digest(proposal)
    except (TypeError, ValueError):
        # Not a number, or no JSON: nobody can be told which proposal was judged, so nothing will match the empty
        # digest.
        return ""


def refusal(constitution: Constitution, proposal: Proposal, now_ms: int, reason: str) -> Verdict:
    """Return the verdict on a proposal that could not be judged at all: denied, and each principle says that it was
    not evaluated."""
    findings = tuple(_unevaluated(principle, reason) for principle in constitution.principles)
    return Verdict(
        proposal_id=proposal.proposal_id,
        proposal_digest=_digest_of(proposal),
        decision=Decision.DENY,
        findings=findings,
        constitution_digest=constitution.digest,
        judged_at_ms=now_ms,
    )


def _ask(
    principle: Principle,
    holding: Finding,
    program: Any,
    context: Any,
    facts: Mapping[str, Any],
    moment: Mapping[str, Any],
) -> Finding:
    try:
        answer = program.execute(context)
    except EVALUATION_ERRORS as error:
        return _unevaluated(principle, str(error).splitlines()[0] if str(error) else type(error).__name__)
    if answer is True:
        return holding
    if answer is False:
        return principle.finding(Decision.DENY, principle.denial({**facts, **moment}))
    return _unevaluated(principle, f"the expression gave `{str(answer)[:80]}` instead of true or false")


class Prepared:
    """One proposal and its facts, made ready to be judged again and again: what does not depend on the time.

    Facts hold no time (`facts_of`), so they, the digest, and the answers of all principles that name nothing of time
    (`TIMED`) follow from what is given and are worked out once; each judgement adds the moment and asks the others
    anew. Not for several threads.
    """

    __slots__ = (
        "_allowed",
        "_asked",
        "_context",
        "_facts",
        "_findings",
        "_timed",
        "constitution",
        "digest",
        "proposal",
        "unjudgeable",
    )

    def __init__(self, constitution: Constitution, proposal: Proposal, facts: Mapping[str, Any]) -> None:
        self.constitution = constitution
        self.proposal = proposal
        self.digest = _digest_of(proposal)
        self._facts = facts
        self._context: Any = None
        self._timed = constitution.words & TIMED
        self._findings: tuple[Finding, ...] = ()
        """Of all principles, those that are asked anew as if they held."""
        self._asked: list[tuple[int, Principle, Finding, Any]] = []
        self._allowed = True
        self.unjudgeable = "" if self.digest else "the proposal holds values that cannot be written down"
        if self.unjudgeable:
            return
        try:
            self._context = cel.Context(variables={w: facts[w] for w in constitution.words if w in facts})
        except (*EVALUATION_ERRORS, OverflowError) as error:
            self.unjudgeable = f"the facts cannot be given to the expressions: {error}"
            return
        self._prepare()

    def _prepare(self) -> None:
        """Ask what names nothing of time, and remember who is to be asked each time."""
        constitution = self.constitution
        asked = zip(
            constitution.principles, constitution.holding, constitution.programs, constitution.words_of, strict=True
        )
        applied = 0
        findings: list[Finding] = []
        for place, (principle, holding, program, words) in enumerate(asked):
            if not principle.applies(self.proposal.kinds, self.proposal.playbook):
                findings.append(principle.finding(Decision.ALLOW, "does not apply to this kind of change"))
                continue
            applied += 1
            if words & TIMED:
                findings.append(holding)
                self._asked.append((place, principle, holding, program))
                continue
            finding = _ask(principle, holding, program, self._context, self._facts, {})
            findings.append(finding)
            self._allowed = self._allowed and finding.decision is Decision.ALLOW
        self._findings = tuple(findings)
        if not applied:
            self.unjudgeable = "no principle applies to this kind of change"

    def judge(self, now_ms: int) -> Verdict:
        """Return the verdict of this moment, with one finding per principle."""
        constitution, proposal = self.constitution, self.proposal
        if self.unjudgeable:
            return refusal(constitution, proposal, now_ms, self.unjudgeable)
        findings, allowed = self._findings, self._allowed
        if self._asked:
            moment = time_facts(self._facts, now_ms)
            try:
                self._context.update({w: moment[w] for w in self._timed if w in moment})
            except (*EVALUATION_ERRORS, OverflowError) as error:
                return refusal(constitution, proposal, now_ms, f"the facts cannot be given to the expressions: {error}")
            for place, principle, holding, program in self._asked:
                finding = _ask(principle, holding, program, self._context, self._facts, moment)
                # A principle that holds gives one and the same finding, which stands in its place already.
                if finding is not holding:
                    findings = (*findings[:place], finding, *findings[place + 1 :])
                    allowed = allowed and finding.decision is Decision.ALLOW
        return Verdict(
            proposal_id=proposal.proposal_id,
            proposal_digest=self.digest,
            decision=Decision.ALLOW if allowed else Decision.DENY,
            findings=findings,
            constitution_digest=constitution.digest,
            judged_at_ms=now_ms,
        )


def evaluate(constitution: Constitution, proposal: Proposal, facts: Mapping[str, Any], now_ms: int) -> Verdict:
    """Return the verdict on exactly this proposal, with one finding per principle.

    `facts` come from `facts_of` for the same proposal; the facts of time are added here. Nothing is compiled, and the
    context is built once.
    """
    return Prepared(constitution, proposal, facts).judge(now_ms)
