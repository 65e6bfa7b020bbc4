"""`ttl_rule`: keys of a pattern live longer, within the staleness that their owner declared.

The steps come after those of the knobs, whatever the playbook of the proposal is called; the governor then keeps the
rule as the application rewrites its keys.
"""

from __future__ import annotations

from agents.playbook_tables.steps import Ground, Step, StepKind
from agents.playbook_tables.table import OBSERVE, Failure, Playbook, Stage
from cachewarden.messages import Proposal

__all__ = ["TTL_RULE", "TTL_STAGE", "rule_steps"]


def rule_steps(proposal: Proposal) -> list[Step]:
    """Return one step for each TTL rule."""
    return [Step(kind=StepKind.TTL_RULE, rule=rule, stage="extend") for rule in proposal.ttl_rules]


def _plan(_proposal: Proposal, _ground: Ground) -> list[Step]:
    return []


def _refuses(_proposal: Proposal, _ground: Ground) -> str | None:
    return None


TTL_STAGE = Stage(
    name="extend",
    kind=StepKind.TTL_RULE,
    does="first bounded pass: SCAN the pattern, PEXPIREAT … GT where the deadline is earlier than the rule allows",
    requires="the owner declared the staleness of the pattern",
    observes="keys examined and extended",
    succeeds="the pass ended; further passes go on beside the observation and after it",
    then=("extend", OBSERVE),
    fails=Failure.TAKE_BACK,
    rollback="passes that set extended keys back to the TTL as written (PEXPIREAT … XX LT)",
    lost="values that were served older than their TTL, within the declared staleness",
)

TTL_RULE = Playbook(
    name="ttl_rule",
    title="Longer TTLs within the declared staleness",
    hazard="a value older than its owner allows is a wrong answer",
    first=("extend",),
    stages=(TTL_STAGE,),
    plan=_plan,
    refuses=_refuses,
)
