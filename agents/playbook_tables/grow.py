"""`grow`: maxmemory up, only into memory that is there.

A cache that is given more memory than its host or container has is killed, and all of it is cold. What has to fit is
more than maxmemory: memory that the allocator holds beyond what is used, buffers that are not counted for eviction
(`mem_not_counted_for_evict`; the replication backlog *is* counted, so it takes from what keys may use), and, where the
server forks for persistence or a full synchronisation, the pages that are copied while the child writes.

INVARIANT: where the server may fork and no copy was ever measured, the whole data set is taken to be copied.
"""

from __future__ import annotations

from agents.info_facts import InfoFacts
from agents.playbook_tables.steps import Ground, Step, StepKind, memory_of
from agents.playbook_tables.table import OBSERVE, Failure, Playbook, Stage
from cachewarden.messages import Proposal

__all__ = ["GROW", "HOST_MEMORY_SHARE", "memory_needed_bytes", "refusal_of_growth", "refusal_of_size"]

HOST_MEMORY_SHARE = 0.8
"""Of the host's memory; the rest is the system's and everybody else's."""


def fork_copy_bytes(after_bytes: int, facts: InfoFacts) -> int:
    """Return what a fork may copy once the cache holds `after_bytes`: the last measured copy, grown in proportion."""
    if facts.forks is False:
        return 0
    used = facts.used_memory_bytes or 0
    if facts.fork_copy_bytes and used > 0:
        return min(after_bytes, int(facts.fork_copy_bytes * max(1.0, after_bytes / used)))
    return after_bytes


def memory_needed_bytes(after_bytes: int, facts: InfoFacts) -> int:
    """Return the resident memory that a full cache of `after_bytes` may take."""
    used, rss = facts.used_memory_bytes or 0, facts.rss_bytes or 0
    return after_bytes + max(0, rss - used) + (facts.uncounted_bytes or 0) + fork_copy_bytes(after_bytes, facts)


def refusal_of_size(after_bytes: int, ground: Ground) -> str | None:
    """Return why a cache may not be given `after_bytes` here, None if it may or no limit is known."""
    facts = ground.facts
    needed = memory_needed_bytes(after_bytes, facts)
    copied = fork_copy_bytes(after_bytes, facts)
    told = f"maxmemory `{after_bytes}` may take {needed} bytes" + (
        f", {copied} of them copied while the server forks" if copied else ""
    )
    if ground.memory_limit_bytes is not None and needed > ground.memory_limit_bytes:
        return f"{told}, more than the container's `{ground.memory_limit_bytes}` (`memory_limit` in the fleet file)"
    if facts.host_memory_bytes and needed > HOST_MEMORY_SHARE * facts.host_memory_bytes:
        return f"{told}, more than {HOST_MEMORY_SHARE:.0%} of the host's `{facts.host_memory_bytes}` bytes"
    return None


def refusal_of_growth(proposal: Proposal, ground: Ground) -> str | None:
    """Return why maxmemory may not rise as proposed; None where it may or does not rise."""
    memory = memory_of(proposal)
    if memory is None or memory.after == "0":
        # No limit is no size that could be checked.
        return None if memory is None or memory.before == "0" else "a limit that is taken away fits into no memory"
    if memory.before == "0" or int(memory.after) <= int(memory.before):
        return None
    return refusal_of_size(int(memory.after), ground)


def _plan(proposal: Proposal, _ground: Ground) -> list[Step]:
    return [Step(kind=StepKind.WRITE_KNOBS, changes=proposal.knob_changes, stage="raise")]


GROW = Playbook(
    name="grow",
    title="maxmemory up",
    hazard="memory that host or container do not have: the server is killed, and all of it is cold",
    first=("raise",),
    stages=(
        Stage(
            name="raise",
            kind=StepKind.WRITE_KNOBS,
            does="set maxmemory, and whatever else the proposal names, in one fenced CONFIG SET",
            requires="new limit + memory held beyond use + uncounted buffers + copy of a fork fit into 80 % of "
            "the host and into `memory_limit` of the fleet file; a copy that was never measured counts as all data",
            observes="CONFIG GET on the same connection",
            succeeds="the server prints exactly the values that were written",
            then=(OBSERVE,),
            fails=Failure.TAKE_BACK,
            rollback="maxmemory down in steps of MEMORY_STEP_SHARE while the new policy still evicts, then all old "
            "values in one CONFIG SET",
            lost="what the larger cache held beyond the old limit is evicted again",
        ),
    ),
    plan=_plan,
    refuses=refusal_of_growth,
)
