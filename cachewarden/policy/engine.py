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

from cachewarden.codec import digest
from cachewarden.messages import Decision, Finding, Proposal, Verdict
from cachewarden.policy.constitution import EVALUATION_ERRORS, Constitution, Principle
from cachewarden.policy.facts import TIMED, with_time

__all__ = ["Prepared", "evaluate", "refusal"]


def _unevaluated(principle: Principle, why: str) -> Finding:
    return principle.finding(Decision.DENY, f"could not be evaluated, which denies: {why}", evaluated=False)


def _digest_of(proposal: Proposal) -> str:
    try:
        return digest(proposal)
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


def _ask(principle: Principle, holding: Finding, program: Any, context: Any, timed: dict[str, Any]) -> Finding:
    try:
        answer = program.execute(context)
    except EVALUATION_ERRORS as error:
        return _unevaluated(principle, str(error).splitlines()[0] if str(error) else type(error).__name__)
    if answer is True:
        return holding
    if answer is False:
        return principle.finding(Decision.DENY, principle.denial(timed))
    return _unevaluated(principle, f"the expression gave `{str(answer)[:80]}` instead of true or false")


class Prepared:
    """One proposal and its facts, made ready to be judged again and again: what does not depend on the time.

    Facts hold no time (`facts_of`), so they, the digest and the context of the expressions are worked out once; each
    judgement adds the moment and asks every principle anew. Nothing of a verdict is kept. Not for several threads.
    """

    __slots__ = ("_context", "_facts", "_questions", "_timed", "constitution", "digest", "proposal", "unreadable")

    def __init__(self, constitution: Constitution, proposal: Proposal, facts: Mapping[str, Any]) -> None:
        self.constitution = constitution
        self.proposal = proposal
        self.digest = _digest_of(proposal)
        self._facts = facts
        self._context: Any = None
        self._timed = constitution.words & TIMED
        asked = zip(constitution.principles, constitution.holding, constitution.programs, strict=True)
        self._questions = tuple(
            (None, principle, holding, program)
            if principle.applies(proposal.kinds, proposal.playbook)
            else (
                principle.finding(Decision.ALLOW, "does not apply to this kind of change"),
                principle,
                holding,
                program,
            )
            for principle, holding, program in asked
        )
        self.unreadable = "" if self.digest else "the proposal holds values that cannot be written down"
        if self.unreadable:
            return
        try:
            self._context = cel.Context(variables={w: facts[w] for w in constitution.words if w in facts})
        except (*EVALUATION_ERRORS, OverflowError) as error:
            self.unreadable = f"the facts cannot be given to the expressions: {error}"

    def judge(self, now_ms: int) -> Verdict:
        """Return the verdict of this moment, with one finding per principle."""
        constitution, proposal = self.constitution, self.proposal
        if self.unreadable:
            return refusal(constitution, proposal, now_ms, self.unreadable)
        timed = with_time(self._facts, now_ms)
        try:
            self._context.update({w: timed[w] for w in self._timed if w in timed})
        except (*EVALUATION_ERRORS, OverflowError) as error:
            return refusal(constitution, proposal, now_ms, f"the facts cannot be given to the expressions: {error}")
        findings: list[Finding] = []
        applied, allowed = 0, True
        for exempt, principle, holding, program in self._questions:
            if exempt is not None:
                findings.append(exempt)
                continue
            applied += 1
            finding = _ask(principle, holding, program, self._context, timed)
            findings.append(finding)
            # A principle that holds gives one and the same finding.
            if finding is not holding and finding.decision is not Decision.ALLOW:
                allowed = False
        if not applied:
            return refusal(constitution, proposal, now_ms, "no principle applies to this kind of change")
        return Verdict(
            proposal_id=proposal.proposal_id,
            proposal_digest=self.digest,
            decision=Decision.ALLOW if allowed else Decision.DENY,
            findings=tuple(findings),
            constitution_digest=constitution.digest,
            judged_at_ms=now_ms,
        )


def evaluate(constitution: Constitution, proposal: Proposal, facts: Mapping[str, Any], now_ms: int) -> Verdict:
    """Return the verdict on exactly this proposal, with one finding per principle.

    `facts` come from `facts_of` for the same proposal; the facts of time are added here. Nothing is compiled, and the
    context is built once.
    """
    return Prepared(constitution, proposal, facts).judge(now_ms)
