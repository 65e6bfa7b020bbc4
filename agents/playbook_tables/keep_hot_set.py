"""`keep_hot_set`: to an LFU policy without losing the hot set.

LRU clock and LFU counter share 24 bits of a key. After a switch an old key counts 0 and a new one 5 (redis#15375), so
whatever was hot is evicted before anything new: a plain switch under pressure was measured to lose 30 % of the hot set
on Redis 7.0.15 and 52 % on Valkey 9.1.2. So nothing may be evicted between the switch and the moment at which the hot
keys have counters again.

The room for that comes from the old policy: the limit is lowered first, so that the *coldest* keys go, and put back
together with the switch. What the application writes meanwhile goes into the room. A proposal that was permitted
memory above its final size (`cost["headroom_bytes"]`), or that grows anyway, uses that instead and evicts nothing.

INVARIANT: no step between the switch and the spread check lowers maxmemory.
"""

from __future__ import annotations

from agents.playbook_tables.grow import refusal_of_growth, refusal_of_size
from agents.playbook_tables.shrink import refusal_of_shrinking, steps_down, unevictable_bytes
from agents.playbook_tables.steps import Ground, Step, StepKind, memory_of, memory_step, others_of, start_bytes
from agents.playbook_tables.table import OBSERVE, Failure, Playbook, Stage
from cachewarden.messages import KnobChange, Proposal

__all__ = [
    "HOT_KEYS_MAX",
    "KEEP_HOT_SET",
    "SPREAD_SHARE",
    "TOUCH_KEYS_PER_S",
    "TOUCH_TIMES",
    "becomes_lfu",
    "headroom_bytes",
    "hot_keys_wanted",
]

TOUCH_TIMES = 14
"""After a switch to LFU an old key counts 0 and a new one 5. With `lfu-log-factor` 10 a counter below 5 rises at
every touch, so 5 touches draw level and 12 and more lift a key clearly above. The hottest fifth of the keys is touched
twice as often and the others half as often (`HotKeys.touch`), so it is on average as many."""
HOT_KEYS_MAX = 50_000
TOUCH_KEYS_PER_S = 20_000
SPREAD_SHARE = 0.99
"""Share of the hot keys whose counter must be above that of a new key before pressure may return."""

_HEADROOM_SHARE = 0.10
_ROOM_SHARE = 0.25
"""More room than this would cost more hits than the hot set is worth, whatever a proposal was permitted."""
_EVICTS_BY_AGE = "lru"
_UNEVICTABLE_MARGIN = 1.05


def becomes_lfu(proposal: Proposal) -> bool:
    """Say whether the proposal switches from another policy to LFU."""
    return any(
        c.knob == "maxmemory-policy" and c.after.endswith("-lfu") and not c.before.endswith("-lfu")
        for c in proposal.knob_changes
    )


def headroom_bytes(proposal: Proposal) -> int:
    """Return by how much maxmemory may be above its final value while a hot set is being re-learnt: a tenth of the
    cache, and no more than the proposal was permitted (`cost["headroom_bytes"]`, 0 if it names none)."""
    memory = memory_of(proposal)
    permitted = int(proposal.cost.get("headroom_bytes", 0))
    if memory is None or memory.before == "0" or memory.after == "0":
        return 0
    return max(0, min(int(int(memory.before) * _HEADROOM_SHARE), permitted))


def hot_keys_wanted(resident_keys: int | None) -> int:
    """Return how many keys are collected: half of the resident ones, at most `HOT_KEYS_MAX`."""
    return min(HOT_KEYS_MAX, max(1, (resident_keys or HOT_KEYS_MAX) // 2))


def _room_bytes(proposal: Proposal) -> int:
    """Return by how much the old policy is to make room (`cost["room_bytes"]`); growth counts as room already."""
    memory = memory_of(proposal)
    if memory is None or memory.before == "0" or memory.after == "0":
        return 0
    grows = max(0, int(memory.after) - int(memory.before))
    permitted = min(int(proposal.cost.get("room_bytes", 0)), int(int(memory.before) * _ROOM_SHARE))
    return max(0, permitted - grows - headroom_bytes(proposal))


def _refuses(proposal: Proposal, ground: Ground) -> str | None:
    if not becomes_lfu(proposal):
        return refusal_of_growth(proposal, ground) or refusal_of_shrinking(proposal, ground)
    memory, room = memory_of(proposal), headroom_bytes(proposal)
    refused = None if memory is None else _refusal_of_room(proposal, memory, ground)
    if refused is not None:
        return refused
    if memory is not None and room and int(memory.after) + room > int(memory.before):
        return refusal_of_size(int(memory.after) + room, ground)
    return refusal_of_growth(proposal, ground) or refusal_of_shrinking(proposal, ground)


def _refusal_of_room(proposal: Proposal, memory: KnobChange, ground: Ground) -> str | None:
    """Return why room cannot be made under the old policy, or its LRU sibling of the same scope."""
    made = _room_bytes(proposal)
    if not made:
        return None
    low, used = int(memory.after) - made, ground.facts.used_memory_bytes
    kept = unevictable_bytes(ground.policy_after(proposal), ground)
    if low <= 0 or (used is not None and used > low and (kept is None or kept * _UNEVICTABLE_MARGIN > low)):
        return f"the room for the switch would leave {low} bytes, and not enough of what is in use can be evicted"
    return None


def _plan(proposal: Proposal, ground: Ground) -> list[Step]:
    if not becomes_lfu(proposal):
        return [Step(kind=StepKind.WRITE_KNOBS, changes=proposal.knob_changes, stage="switch")]
    keys = hot_keys_wanted(ground.facts.resident_keys)
    collect = Step(kind=StepKind.COLLECT_HOT_KEYS, limit=keys, stage="collect")
    learn = [
        Step(kind=StepKind.TOUCH_HOT_KEYS, times=TOUCH_TIMES, keys_per_s=TOUCH_KEYS_PER_S, stage="touch"),
        Step(kind=StepKind.CHECK_SPREAD, share=SPREAD_SHARE, stage="spread"),
    ]
    memory = memory_of(proposal)
    if memory is None:
        switch = Step(kind=StepKind.WRITE_KNOBS, changes=others_of(proposal), stage="switch")
        return [collect, switch, *learn]
    room, start = _room_bytes(proposal), start_bytes(memory.before, ground.facts)
    final = int(memory.after)
    low = final - room if memory.after != "0" else start
    first, others = list[Step](), others_of(proposal)
    if memory.after != "0" and low < start:
        first, others = _make_room(memory.before, low, others, ground)
    before = str(low) if first else memory.before
    above = final + headroom_bytes(proposal)
    switched = KnobChange(knob="maxmemory", before=before, after=str(above if memory.after != "0" else 0))
    changes = (*others, switched) if switched.before != switched.after else others
    plan = [*first, collect, Step(kind=StepKind.WRITE_KNOBS, changes=changes, stage="switch"), *learn]
    if above > final and memory.after != "0":
        plan.append(memory_step(str(above), final, stage="give back"))
    return plan


def _make_room(
    before: str, low: int, others: tuple[KnobChange, ...], ground: Ground
) -> tuple[list[Step], tuple[KnobChange, ...]]:
    """Return the steps down under a policy that evicts by age, and what is left to be set with the switch.

    A policy that does not evict the coldest (or nothing at all) is replaced by its LRU sibling for the time.
    """
    policy = next(c for c in others if c.knob == "maxmemory-policy")
    if policy.before.endswith(_EVICTS_BY_AGE) and policy.before.partition("-")[0] == policy.after.partition("-")[0]:
        return steps_down(before, low, ground, stage="room"), others
    interim = f"{policy.after.partition('-')[0]}-{_EVICTS_BY_AGE}"
    to_interim = KnobChange(knob=policy.knob, before=policy.before, after=interim)
    rest = tuple(KnobChange(knob=c.knob, before=interim, after=c.after) if c.knob == policy.knob else c for c in others)
    return steps_down(before, low, ground, (to_interim,), stage="room"), rest


KEEP_HOT_SET = Playbook(
    name="keep_hot_set",
    title="Eviction policy to LFU, hot set kept",
    hazard="old keys count 0 and new ones 5, so a plain switch under pressure throws 30 to 52 % of the hot set away",
    first=("room", "collect", "switch"),
    stages=(
        Stage(
            name="room",
            kind=StepKind.WRITE_KNOBS,
            does="lower maxmemory by `room_bytes` in bounded steps while an LRU policy still evicts the coldest keys; "
            "a policy that would not is replaced by its LRU sibling for the time",
            requires="the proposal was permitted the room, and what cannot be evicted fits",
            observes="every 500 ms: used memory, evictions per second, P99, refused writes",
            succeeds="used memory is down to the lower limit and evictions are no longer a burst",
            then=("room", "collect"),
            fails=Failure.TAKE_BACK,
            rollback="maxmemory and policy to their old values in one CONFIG SET",
            lost="the coldest keys of the cache, which would have gone next",
        ),
        Stage(
            name="collect",
            kind=StepKind.COLLECT_HOT_KEYS,
            does="remember the least idle keys inside the adapter, under the probe budget",
            requires="the server tells idle times",
            observes="how many keys were found",
            succeeds="the keys are remembered",
            then=("switch",),
            fails=Failure.TAKE_BACK,
            rollback="nothing was written in this stage; the room is given back",
        ),
        Stage(
            name="switch",
            kind=StepKind.WRITE_KNOBS,
            does="set policy, LFU parameters and the final maxmemory in one fenced CONFIG SET",
            requires="each knob still has the value of the stage before",
            observes="CONFIG GET on the same connection",
            succeeds="the server prints exactly the values that were written",
            then=("touch", OBSERVE),
            fails=Failure.TAKE_BACK,
            rollback="one fenced CONFIG SET of the old values; LFU to LRU was measured to lose nothing",
            lost="idle times of all keys",
        ),
        Stage(
            name="touch",
            kind=StepKind.TOUCH_HOT_KEYS,
            does="TOUCH the remembered keys, hottest first: the hottest fifth 28 times, the others 7 times, at most "
            "20,000 a second, each batch under the fence",
            requires="the fence is still ours",
            observes="how many keys still exist",
            succeeds="all rounds are done",
            then=("spread",),
            fails=Failure.TAKE_BACK,
            rollback="one fenced CONFIG SET of the old values",
            lost="access frequencies that were counted meanwhile",
        ),
        Stage(
            name="spread",
            kind=StepKind.CHECK_SPREAD,
            does="read OBJECT FREQ of up to 1,000 of the remembered keys",
            requires="the server tells frequencies",
            observes="share of them that count more than a new key",
            succeeds="at least 99 % do, so pressure may return",
            then=("give back", OBSERVE),
            fails=Failure.TAKE_BACK,
            rollback="one fenced CONFIG SET of the old values",
            lost="access frequencies that were counted meanwhile",
        ),
        Stage(
            name="give back",
            kind=StepKind.WRITE_KNOBS,
            does="where `headroom_bytes` was permitted: set maxmemory to its final value",
            requires="the spread check has passed",
            observes="every 500 ms: used memory, evictions per second, P99, refused writes",
            succeeds="used memory is down to the final limit",
            then=(OBSERVE,),
            fails=Failure.TAKE_BACK,
            rollback="one fenced CONFIG SET of the old values",
            lost="keys that were evicted come back only as the application loads them",
        ),
    ),
    plan=_plan,
    refuses=_refuses,
)
