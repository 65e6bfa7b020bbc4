"""All playbooks by name, the plan of a proposal, and the plan that takes it back.

It decides which table a proposal walks through and refuses what no table allows. It never writes and never waits.

INVARIANT: after the last knob step of a plan every knob has the value that the proposal wants, and a plan of
`steps_back` ends with every knob at the value that it had before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from agents.playbook_tables.direct import DIRECT
from agents.playbook_tables.encoding import ENCODING, ENCODING_KNOBS, REENCODE
from agents.playbook_tables.grow import GROW, refusal_of_growth
from agents.playbook_tables.keep_hot_set import KEEP_HOT_SET, becomes_lfu
from agents.playbook_tables.shrink import SHRINK, falls
from agents.playbook_tables.steps import Ground, Step, StepKind, ladder, memory_of, memory_step, start_bytes
from agents.playbook_tables.table import OBSERVE, Playbook, strays
from agents.playbook_tables.ttl_rule import TTL_RULE, TTL_STAGE, refusal_of_rules, rule_steps
from agents.playbook_tables.tune import TUNE, TUNED_KNOBS
from cachewarden.messages import KnobChange, Proposal, TtlRule

__all__ = ["PLAYBOOKS", "playbook_for", "refusal_of_plan", "steps_back", "steps_of"]

PLAYBOOKS: Mapping[str, Playbook] = MappingProxyType(
    {p.name: p for p in (DIRECT, ENCODING, GROW, KEEP_HOT_SET, REENCODE, SHRINK, TTL_RULE, TUNE)}
)


def playbook_for(changes: Sequence[KnobChange]) -> str:
    """Return the name of the playbook for these changes; `ttl_rule` where no knob is changed."""
    if not changes:
        return TTL_RULE.name
    names = {c.knob for c in changes}
    memory = next((c for c in changes if c.knob == "maxmemory"), None)
    delta = 0 if memory is None else int(memory.after) - int(memory.before)
    policy = next((c for c in changes if c.knob == "maxmemory-policy"), None)
    if policy is not None and policy.after.endswith("-lfu") and not policy.before.endswith("-lfu"):
        return KEEP_HOT_SET.name
    if delta < 0:
        return SHRINK.name
    if delta > 0 and names == {"maxmemory"}:
        return GROW.name
    if names <= set(TUNED_KNOBS):
        return TUNE.name
    if names <= set(ENCODING_KNOBS):
        return ENCODING.name
    return DIRECT.name


def _table_of(proposal: Proposal, ground: Ground) -> Playbook:
    """Return the table that a proposal walks through, whatever it is called: memory that falls always falls in steps,
    and a switch to LFU that is called by a staged name keeps the hot set."""
    if proposal.playbook not in PLAYBOOKS:
        raise ValueError(f"unknown playbook `{proposal.playbook}`, known are: {', '.join(sorted(PLAYBOOKS))}")
    memory = memory_of(proposal)
    if proposal.playbook != DIRECT.name and becomes_lfu(proposal):
        return KEEP_HOT_SET
    if memory is not None and falls(memory, ground):
        return SHRINK
    if proposal.playbook in (SHRINK.name, TTL_RULE.name) and proposal.knob_changes:
        return DIRECT
    return PLAYBOOKS[proposal.playbook]


def refusal_of_plan(proposal: Proposal, ground: Ground) -> str | None:
    """Return why this cache may not be changed so now, None if it may. Raises ValueError for an unknown playbook."""
    table = _table_of(proposal, ground)
    named = PLAYBOOKS[proposal.playbook]
    for playbook in (table,) if table is named or named in (SHRINK, TTL_RULE, DIRECT) else (table, named):
        why = playbook.refuses(proposal, ground)
        if why is not None:
            return why
    return refusal_of_rules(proposal, ground) or refusal_of_growth(proposal, ground)


def steps_of(proposal: Proposal, ground: Ground) -> tuple[Step, ...]:
    """Return the plan of a proposal for a cache as it was just seen.

    Raises ValueError for an unknown playbook, an empty plan, or one that is no walk through its table.
    """
    table = _table_of(proposal, ground)
    knobs = list(table.plan(proposal, ground)) if proposal.knob_changes else []
    rules = rule_steps(proposal)
    steps = [*knobs, *rules]
    if not steps:
        raise ValueError("a proposal without knob changes and without TTL rules has no steps")
    wrong = strays(_with_rules(table) if knobs else TTL_RULE, steps)
    if wrong is not None:
        raise ValueError(f"its plan is no walk through the table: {wrong}")
    return tuple(steps)


def _with_rules(table: Playbook) -> Playbook:
    """Return the table with the stage of TTL rules, which may follow where the steps of any playbook end."""
    rows = (replace(s, then=(*s.then, TTL_STAGE.name)) if OBSERVE in s.then else s for s in table.stages)
    return replace(table, stages=(*(r for r in rows if r.name != TTL_STAGE.name), TTL_STAGE))


def steps_back(
    proposal: Proposal,
    current: Mapping[str, str],
    begun_rules: Iterable[TtlRule],
    ground: Ground,
    *,
    rules_only: bool = False,
) -> tuple[Step, ...]:
    """Return the plan that takes a proposal back from the values in `current`: TTL rules first, then memory, then
    everything else.

    Memory that has to come down again does so in bounded steps while the new eviction policy still stands, since the
    old one may be unable to evict. The last step writes all knobs in one command, so the end is the same wherever the
    way there was cut off.
    """
    # A rule that only ends keys sooner is taken back by no further pass: what it did cannot be told from chance.
    steps = [
        Step(kind=StepKind.TTL_RULE, rule=rule, stage="take back")
        for rule in reversed(tuple(begun_rules))
        if rule.extended_ttl_ms > rule.written_ttl_ms and not rule.unread_ms
    ]
    if rules_only:
        return tuple(steps)
    memory = memory_of(proposal)
    if memory is not None and memory.before != "0":
        start = start_bytes(current.get("maxmemory", memory.after), ground.facts)
        if start > int(memory.before):
            for value in ladder(start, int(memory.before), ground.step_share)[:-1]:
                steps.append(memory_step(str(start), value, stage="take back"))
                start = value
    if proposal.knob_changes:
        changes = tuple(
            KnobChange(knob=c.knob, before=current.get(c.knob, c.after), after=c.before)
            for c in reversed(proposal.knob_changes)
        )
        steps.append(Step(kind=StepKind.WRITE_KNOBS, changes=changes, stage="take back"))
    return tuple(steps)
