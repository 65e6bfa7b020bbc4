"""Step plans: how a judged change is carried out so that its known hazard does not happen.

A plan is a tuple of steps, worked out from the proposal and one look at the cache, before anything is written. It
never writes, never waits and never adds a knob that the proposal does not name; it only puts the proposal's changes
into a safe order and bounded sizes.

INVARIANT: after the last knob step of a plan every knob has the value that the proposal wants, and a plan of
`steps_back` ends with every knob at the value that it had before.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from agents.info_facts import InfoFacts
from cachewarden.messages import KnobChange, Proposal, TtlRule

__all__ = ["PLAYBOOKS", "TOUCH_TIMES", "Step", "StepKind", "headroom_bytes", "ladder", "steps_back", "steps_of"]

PLAYBOOKS = ("direct", "keep_hot_set", "shrink", "ttl_rule")

TOUCH_TIMES = 14
"""After a switch to LFU an old key counts 0 and a new one 5. With `lfu-log-factor` 10 a counter below 5 rises at
every touch, so 5 touches draw level and 12 and more lift a key clearly above (measured: hot set lost 0.0 to 0.2 %
instead of 30 to 52 %)."""

_HOT_KEYS_MAX = 20_000
_TOUCH_KEYS_PER_S = 20_000
_HEADROOM_SHARE = 0.10


class StepKind(StrEnum):
    """What a step does; everything but `COLLECT_HOT_KEYS` changes something in the cache."""

    WRITE_KNOBS = "write_knobs"
    COLLECT_HOT_KEYS = "collect_hot_keys"
    TOUCH_HOT_KEYS = "touch_hot_keys"
    TTL_RULE = "ttl_rule"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step. `settle_to_bytes` > 0: wait after it until used_memory is down to that maxmemory."""

    kind: StepKind
    changes: tuple[KnobChange, ...] = ()
    settle_to_bytes: int = 0
    limit: int = 0
    times: int = 0
    keys_per_s: int = 0
    rule: TtlRule | None = None


def ladder(start_bytes: int, target_bytes: int, step_share: float) -> tuple[int, ...]:
    """Return the values of maxmemory on the way down from `start_bytes` (excluded) to `target_bytes` (included).

    Each step takes at most `step_share` (0..1) of the value before it. A target that is not below the start is one
    step.
    """
    values: list[int] = []
    current = start_bytes
    while current > target_bytes:
        current = max(target_bytes, current - max(1, int(current * step_share)))
        values.append(current)
    return tuple(values) or (target_bytes,)


def headroom_bytes(proposal: Proposal) -> int:
    """Return by how much maxmemory may be above its final value while a hot set is being re-learnt: a tenth of the
    cache, and no more than the proposal was permitted (`cost["headroom_bytes"]`, 0 if it names none)."""
    memory = _memory_of(proposal.knob_changes)
    permitted = int(proposal.cost.get("headroom_bytes", 0))
    if memory is None or memory.before == "0" or memory.after == "0":
        return 0
    return max(0, min(int(int(memory.before) * _HEADROOM_SHARE), permitted))


def steps_of(proposal: Proposal, seen: InfoFacts, step_share: float) -> tuple[Step, ...]:
    """Return the plan of a proposal for a cache as it was just seen.

    Lowering maxmemory is always done in bounded steps, whatever the playbook is called, and the other knobs go with
    the first of them, so that a cache which could not evict is able to before it has to. Raises ValueError for an
    unknown playbook or an empty plan.
    """
    if proposal.playbook not in PLAYBOOKS:
        raise ValueError(f"unknown playbook `{proposal.playbook}`, known are: {', '.join(PLAYBOOKS)}")
    memory = _memory_of(proposal.knob_changes)
    others = tuple(c for c in proposal.knob_changes if c.knob != "maxmemory")
    steps: list[Step] = []
    if proposal.playbook != "direct" and _becomes_lfu(others):
        steps += _keep_hot_set(proposal, memory, others, seen, step_share)
    elif memory is not None and _falls(memory, seen):
        steps += _shrink(memory, others, seen, step_share)
    elif proposal.knob_changes:
        steps.append(Step(kind=StepKind.WRITE_KNOBS, changes=proposal.knob_changes))
    steps += [Step(kind=StepKind.TTL_RULE, rule=rule) for rule in proposal.ttl_rules]
    if not steps:
        raise ValueError("a proposal without knob changes and without TTL rules has no steps")
    return tuple(steps)


def steps_back(
    proposal: Proposal,
    current: dict[str, str],
    begun_rules: Iterable[TtlRule],
    seen: InfoFacts,
    step_share: float,
    *,
    rules_only: bool = False,
) -> tuple[Step, ...]:
    """Return the plan that takes a proposal back from the values in `current`: TTL rules first, then memory, then
    everything else.

    Memory that has to come down again does so in bounded steps while the new eviction policy still stands, since the
    old one may be unable to evict. The last step writes all knobs in one command, so the end is the same wherever the
    way there was cut off.
    """
    steps = [Step(kind=StepKind.TTL_RULE, rule=rule) for rule in reversed(tuple(begun_rules))]
    if rules_only:
        return tuple(steps)
    memory = _memory_of(proposal.knob_changes)
    if memory is not None and memory.before != "0":
        start = _start_bytes(current.get("maxmemory", memory.after), seen)
        if start > int(memory.before):
            for value in ladder(start, int(memory.before), step_share)[:-1]:
                steps.append(_memory_step(str(start), value, ()))
                start = value
    if proposal.knob_changes:
        changes = tuple(
            KnobChange(knob=c.knob, before=current.get(c.knob, c.after), after=c.before)
            for c in reversed(proposal.knob_changes)
        )
        steps.append(Step(kind=StepKind.WRITE_KNOBS, changes=changes))
    return tuple(steps)


def _memory_of(changes: Iterable[KnobChange]) -> KnobChange | None:
    return next((c for c in changes if c.knob == "maxmemory"), None)


def _becomes_lfu(changes: Iterable[KnobChange]) -> bool:
    return any(
        c.knob == "maxmemory-policy" and c.after.endswith("-lfu") and not c.before.endswith("-lfu") for c in changes
    )


def _start_bytes(value: str, seen: InfoFacts) -> int:
    """Return where a way down begins; maxmemory 0 is no limit, so it begins at what is in use."""
    return int(value) if value != "0" else seen.used_memory_bytes or 0


def _falls(memory: KnobChange, seen: InfoFacts) -> bool:
    return memory.after != "0" and _start_bytes(memory.before, seen) > int(memory.after)


def _memory_step(before: str, after_bytes: int, others: tuple[KnobChange, ...]) -> Step:
    change = KnobChange(knob="maxmemory", before=before, after=str(after_bytes))
    return Step(kind=StepKind.WRITE_KNOBS, changes=(*others, change), settle_to_bytes=after_bytes)


def _shrink(memory: KnobChange, others: tuple[KnobChange, ...], seen: InfoFacts, step_share: float) -> list[Step]:
    steps: list[Step] = []
    before = memory.before
    for value in ladder(_start_bytes(memory.before, seen), int(memory.after), step_share):
        steps.append(_memory_step(before, value, () if steps else others))
        before = str(value)
    return steps


def _keep_hot_set(
    proposal: Proposal, memory: KnobChange | None, others: tuple[KnobChange, ...], seen: InfoFacts, step_share: float
) -> list[Step]:
    """Collect while idle times still exist, switch with room to spare, touch until the hot keys outrank new ones,
    take the room back."""
    collect = Step(
        kind=StepKind.COLLECT_HOT_KEYS, limit=min(_HOT_KEYS_MAX, max(1, (seen.resident_keys or _HOT_KEYS_MAX) // 2))
    )
    touch = Step(kind=StepKind.TOUCH_HOT_KEYS, times=TOUCH_TIMES, keys_per_s=_TOUCH_KEYS_PER_S)
    if memory is None:
        return [collect, Step(kind=StepKind.WRITE_KNOBS, changes=others), touch]
    if _falls(memory, seen):
        # Nothing shrinks until the hot set has its counters; until then the old size is the headroom.
        return [collect, Step(kind=StepKind.WRITE_KNOBS, changes=others), touch, *_shrink(memory, (), seen, step_share)]
    room = headroom_bytes(proposal)
    switch = KnobChange(knob="maxmemory", before=memory.before, after=str(int(memory.after) + room))
    plan = [collect, Step(kind=StepKind.WRITE_KNOBS, changes=(*others, switch)), touch]
    if room:
        plan.append(_memory_step(switch.after, int(memory.after), ()))
    return plan
