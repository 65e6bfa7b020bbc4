"""`ttl_rule`: keys of a pattern live longer, end apart from each other, or end sooner where nobody reads them.

Longer only within the staleness that their owner declared, sooner only where the owner permits it. The steps come after
those of the knobs, whatever the playbook of the proposal is called; the governor then keeps the rule as the application
rewrites its keys.
"""

from __future__ import annotations

from agents.playbook_tables.steps import Ground, Step, StepKind
from agents.playbook_tables.table import OBSERVE, Failure, Playbook, Stage
from cachewarden.messages import Proposal, TtlRule

__all__ = ["TTL_RULE", "TTL_STAGE", "consent_missing", "refusal_of_rules", "rule_steps"]


def rule_steps(proposal: Proposal) -> list[Step]:
    """Return one step for each TTL rule."""
    return [Step(kind=StepKind.TTL_RULE, rule=rule, stage="extend") for rule in proposal.ttl_rules]


def refusal_of_rules(proposal: Proposal, ground: Ground) -> str | None:
    """Return why the rules of a proposal may not be begun on this cache, None if they may."""
    for rule in proposal.ttl_rules:
        why = _refusal(rule, ground, ground.policy_after(proposal))
        if why is not None:
            return why
    return None


def consent_missing(rule: TtlRule, ground: Ground) -> str | None:
    """Return why the owner does not permit a rule (any more), None if he does."""
    longest_ms = ground.staleness_ms.get(rule.pattern)
    if longest_ms is None:
        return f"the fleet file declares no staleness for `{rule.pattern}`, so its TTLs are left alone"
    if max(rule.extended_ttl_ms, rule.max_staleness_ms) > longest_ms:
        return f"keys of `{rule.pattern}` would grow older than the {longest_ms} ms that their owner permits"
    if rule.shortens and rule.pattern not in ground.may_shorten:
        return f"the fleet file does not permit shorter TTLs for `{rule.pattern}`, set `shorten_ttl: true` there"
    return None


def _refusal(rule: TtlRule, ground: Ground, policy: str | None) -> str | None:
    why = consent_missing(rule, ground)
    if why is not None:
        return why
    if rule.unread_ms and (policy is None or policy.endswith("-lfu")):
        return (
            f"under {policy or 'an unknown policy'} the server tells no idle times, so nobody knows which keys are read"
        )
    return None


def _plan(_proposal: Proposal, _ground: Ground) -> list[Step]:
    return []


def _refuses(_proposal: Proposal, _ground: Ground) -> str | None:
    return None


TTL_STAGE = Stage(
    name="extend",
    kind=StepKind.TTL_RULE,
    does="first bounded pass: SCAN the pattern; PEXPIREAT … GT where the deadline is earlier than the rule allows "
    "(with `only_read` only for keys that were used since they were written), less a draw of the key's own from "
    "0..`jitter_ms`; "
    "PEXPIREAT … XX LT, or NX without a TTL, where a rule ends keys sooner; a batch is one transaction under WATCH of "
    "its keys and the fence",
    requires="the owner declared the staleness of the pattern, and permits shorter TTLs (`shorten_ttl`) where a key "
    "may end sooner than it was written; for keys that nobody reads, idle times that are known to be true for as long",
    observes="keys examined and changed, share of their deadlines in the busiest second",
    succeeds="the pass ended, after five seconds at most; further passes go on beside the observation and after it, "
    "TTL_KEYS_PER_S keys and PROBE_SERVER_SHARE of a core at most",
    then=("extend", OBSERVE),
    fails=Failure.TAKE_BACK,
    rollback="passes that set extended keys back to at most the TTL as written, spread over half of it "
    "(PEXPIREAT … XX LT); a rule that ends keys sooner only stops",
    lost="values that were served older than their TTL, within the declared staleness; keys that ended sooner come "
    "back as the application loads them",
)

TTL_RULE = Playbook(
    name="ttl_rule",
    title="TTLs: longer within the declared staleness, apart from each other, or shorter where nobody reads",
    hazard="a value older than its owner allows is a wrong answer; keys that end together are loaded together",
    first=("extend",),
    stages=(TTL_STAGE,),
    plan=_plan,
    refuses=_refuses,
)
