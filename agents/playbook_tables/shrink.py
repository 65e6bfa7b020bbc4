"""`shrink`: maxmemory down, in bounded steps, and never below what cannot be evicted.

CONFIG SET maxmemory answers OK and every write then fails, where the policy may evict nothing (measured under
noeviction, and under volatile-lru without TTLs). Where it may, a large step evicts in bursts that delay every client.
"""

from __future__ import annotations

from agents.playbook_tables.steps import Ground, Step, StepKind, ladder, memory_of, memory_step, others_of, start_bytes
from agents.playbook_tables.table import OBSERVE, Failure, Playbook, Stage
from cachewarden.messages import KnobChange, Proposal

__all__ = ["SHRINK", "falls", "refusal_of_shrinking", "steps_down"]

_ROOM_TO_WRITE = 1.05
"""A cache that is all unevictable but for a sliver refuses writes at the next burst."""


def falls(memory: KnobChange, ground: Ground) -> bool:
    """Say whether a change of maxmemory puts a limit below what was allowed, or is used, before."""
    return memory.after != "0" and start_bytes(memory.before, ground.facts) > int(memory.after)


def unevictable_bytes(policy: str | None, ground: Ground) -> int | None:
    """Return what an eviction policy cannot free, None where that is not known.

    Under volatile-* keys without a TTL are taken to hold their share of the data set by number.
    """
    facts = ground.facts
    if facts.used_memory_bytes is None or policy is None:
        return None
    if policy == "noeviction":
        return facts.used_memory_bytes
    fixed = facts.fixed_overhead_bytes or 0
    if policy.startswith("allkeys-"):
        return fixed
    if facts.resident_keys is None or facts.keys_with_ttl is None:
        return None
    if facts.resident_keys == 0:
        return fixed
    lasting = 1.0 - min(1.0, facts.keys_with_ttl / facts.resident_keys)
    return fixed + int((facts.used_memory_bytes - fixed) * lasting)


def refusal_of_shrinking(proposal: Proposal, ground: Ground) -> str | None:
    """Return why maxmemory may not fall as proposed: writes would be refused. None where it may or does not fall."""
    memory = memory_of(proposal)
    used = ground.facts.used_memory_bytes
    if memory is None or not falls(memory, ground) or used is None or used <= int(memory.after):
        return None
    policy = ground.policy_after(proposal)
    kept = unevictable_bytes(policy, ground)
    if kept is None:
        return (
            f"`{used}` bytes are in use and it is not known what may be evicted, so maxmemory may not fall below them"
        )
    if kept * _ROOM_TO_WRITE > int(memory.after):
        return (
            f"under `{policy}` about {kept} of the {used} bytes in use cannot be evicted, so with maxmemory "
            f"`{memory.after}` writes would be refused; choose an `allkeys-` policy or a larger size"
        )
    return None


def steps_down(
    before: str, target_bytes: int, ground: Ground, others: tuple[KnobChange, ...] = (), *, stage: str
) -> list[Step]:
    """Return the steps that lead maxmemory down to `target_bytes`; `others` are set with the first of them, so that a
    cache which could not evict is able to before it has to."""
    steps: list[Step] = []
    for value in ladder(start_bytes(before, ground.facts), target_bytes, ground.step_share):
        steps.append(memory_step(before, value, () if steps else others, stage=stage))
        before = str(value)
    return steps


def _plan(proposal: Proposal, ground: Ground) -> list[Step]:
    memory = memory_of(proposal)
    if memory is None or not falls(memory, ground):
        changes = proposal.knob_changes
        return [Step(kind=StepKind.WRITE_KNOBS, changes=changes, stage="lower")] if changes else []
    return steps_down(memory.before, int(memory.after), ground, others_of(proposal), stage="lower")


SHRINK = Playbook(
    name="shrink",
    title="maxmemory down",
    hazard="it evicts at once and for good; where nothing may be evicted, every write fails although CONFIG SET "
    "said OK",
    first=("lower",),
    stages=(
        Stage(
            name="lower",
            kind=StepKind.WRITE_KNOBS,
            does="set maxmemory at most MEMORY_STEP_SHARE lower than before, other knobs with the first step",
            requires="what the policy cannot evict (all under noeviction, keys without TTL under volatile-*), and 5 %, "
            "fits into the final size",
            observes="every 500 ms: used memory, evictions per second, P99, refused writes",
            succeeds="used memory is down to the new limit and evictions are no longer a burst",
            then=("lower", OBSERVE),
            fails=Failure.TAKE_BACK,
            rollback="maxmemory to its old value in one step: up takes nothing away",
            lost="keys that were evicted come back only as the application loads them",
        ),
    ),
    plan=_plan,
    refuses=refusal_of_shrinking,
)
