"""What becomes of a verdict when Constitutional AI was asked too: one more finding, and the same rule as ever.

The local constitution decides; a second opinion can add a no (`required`) or a remark (`advisory`), never a yes where
the constitution said no. It asks nobody. INVARIANT: under `required` a change that would be acted on is allowed only
with an opinion on this very change that agrees; no opinion denies, with the reason.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final, Literal

from cachewarden.codec import digest
from cachewarden.messages import (
    AGENT_ID,
    CONSTITUTIONAL_HASH,
    ActionClass,
    Decision,
    Finding,
    Mode,
    Proposal,
    Verdict,
)
from cachewarden.peering import Opinion

__all__ = ["SECOND_OPINION", "OpinionMode", "acted_on", "carried", "content_of", "context_of", "with_opinion"]

OpinionMode = Literal["off", "advisory", "required"]

SECOND_OPINION: Final = "second_opinion"
"""Id of the finding; no principle of a constitution is called so."""

_TITLE: Final = "Second opinion of Constitutional AI"
_WORDS_SHOWN: Final = 3


def acted_on(verdict: Verdict | None, mode: Mode) -> bool:
    """Say whether a change may be carried out at all, now or once approved: only then is it worth asking about."""
    return verdict is not None and verdict.decision is Decision.ALLOW and mode in (Mode.AUTO, Mode.APPROVE)


def content_of(proposal: Proposal) -> str:
    """Return what is asked, in plain words: what is to be set from what to what, and how it is taken back.

    Without figures that differ from look to look, so that the same change has the same words; a key pattern is named
    by a digest.
    """
    parts = [f"{c.knob} from {c.before} to {c.after}" for c in proposal.knob_changes]
    parts += [
        f"the time to live of key pattern {digest(r.pattern)[:8]} from {r.written_ttl_ms} to {r.extended_ttl_ms} ms, "
        f"within the {r.max_staleness_ms} ms that its owner declared{f', {r.terms}' if r.terms else ''}"
        for r in proposal.ttl_rules
    ]
    reversible = "can be taken back" if proposal.reversible else "can be taken back only in part"
    return (
        f"Configuration change of the cache `{proposal.service}`: {'; '.join(parts)}. "
        f"Class {proposal.action_class.name.lower()}; it {reversible}; carried out by the steps of "
        f"`{proposal.playbook}`, observed afterwards, and recorded in an audit journal. "
        # True of whatever is asked about, and what ACGS's own rule looks for in words: without it every change of
        # high risk would be objected to.
        "The local constitutional validator allows it."
    )


def context_of(proposal: Proposal) -> dict[str, Any]:
    """Return the context of the question; `high_risk` raises ACGS's bar to 0.8."""
    return {
        "agent_id": AGENT_ID,
        "constitutional_hash": CONSTITUTIONAL_HASH,
        "action": "cache_optimization",
        "service": proposal.service,
        "action_class": proposal.action_class.name.lower(),
        "reversible": proposal.reversible,
        "kinds": list(proposal.kinds),
        "high_risk": proposal.action_class >= ActionClass.LOSSY,
    }


def with_opinion(verdict: Verdict, opinion: Opinion | str, mode: OpinionMode) -> Verdict:
    """Return the verdict with the finding on an opinion, or on why there is none (a text)."""
    if mode == "off":
        return verdict
    if isinstance(opinion, str):
        agrees, said = False, f"no opinion: {opinion}"
    else:
        agrees, said = opinion.compliant, _in_words(opinion)
    denies = mode == "required" and not agrees
    if mode == "advisory" and not agrees:
        said = f"{said}; advisory, so the local constitution decides"
    elif denies and isinstance(opinion, str):
        said = f"{said}; an opinion is required, which denies"
    finding = Finding(
        principle_id=SECOND_OPINION,
        title=_TITLE,
        severity="high",
        decision=Decision.DENY if denies else Decision.ALLOW,
        reason=said,
        evaluated=not isinstance(opinion, str),
    )
    return _with(verdict, finding)


def carried(verdict: Verdict, standing: Verdict | None, mode: OpinionMode, service_mode: Mode) -> Verdict:
    """Return a verdict of this moment with the second opinion that stands on the same proposal.

    Nobody is asked on the way to an answer; what was asked in deliberation holds for exactly the proposal that it was
    asked about.
    """
    if mode == "off" or not acted_on(verdict, service_mode):
        return verdict
    if standing is not None and standing.proposal_digest == verdict.proposal_digest:
        for finding in standing.findings:
            if finding.principle_id == SECOND_OPINION:
                return _with(verdict, finding)
    return with_opinion(verdict, "it has not been asked about this proposal", mode)


def _with(verdict: Verdict, finding: Finding) -> Verdict:
    findings = (*(f for f in verdict.findings if f.principle_id != SECOND_OPINION), finding)
    denied = any(f.decision is Decision.DENY for f in findings)
    return replace(verdict, findings=findings, decision=Decision.DENY if denied else Decision.ALLOW)


def _in_words(opinion: Opinion) -> str:
    if opinion.compliant:
        return f"agrees, score {opinion.score:.2f}"
    names = ", ".join(opinion.violated[:_WORDS_SHOWN]) or "no principle named"
    why = "; ".join(opinion.reasoning[:_WORDS_SHOWN])
    return f"objects, score {opinion.score:.2f}, {names}" + (f": {why}" if why else "")
