"""The vocabulary of plans: what a step is, and the arithmetic of memory that several playbooks share.

A plan is a tuple of steps, worked out from a proposal and one look at the cache before anything is written. Steps go
into the journal as they are, so that a later life can finish or take back what it finds there.

INVARIANT: a step never names a knob that the proposal does not name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from agents.info_facts import InfoFacts
from cachewarden.messages import KnobChange, Proposal, TtlRule

__all__ = [
    "Ground",
    "Step",
    "StepKind",
    "ladder",
    "memory_of",
    "memory_step",
    "others_of",
    "start_bytes",
    "value_after",
]


class StepKind(StrEnum):
    """What a step does; everything but `COLLECT_HOT_KEYS` and `CHECK_SPREAD` may change something in the cache."""

    WRITE_KNOBS = "write_knobs"
    COLLECT_HOT_KEYS = "collect_hot_keys"
    TOUCH_HOT_KEYS = "touch_hot_keys"
    CHECK_SPREAD = "check_spread"
    REENCODE_KEYS = "reencode_keys"
    TTL_RULE = "ttl_rule"


_LOOKS = frozenset({StepKind.COLLECT_HOT_KEYS, StepKind.CHECK_SPREAD})


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step. `settle_to_bytes` > 0: wait after it until used_memory is down to that maxmemory.

    `limit` bounds keys (collected, or examined for re-encoding), `share` (0..1) is what a check demands.
    """

    kind: StepKind
    changes: tuple[KnobChange, ...] = ()
    settle_to_bytes: int = 0
    limit: int = 0
    times: int = 0
    keys_per_s: int = 0
    rule: TtlRule | None = None
    stage: str = ""
    """The row of the playbook's table; empty in journals of versions before the tables."""
    share: float = 0.0

    @property
    def writes(self) -> bool:
        """Whether it leaves the cache other than it was; a knob set to the value that it has does not."""
        if self.kind is StepKind.WRITE_KNOBS:
            return any(c.before != c.after for c in self.changes)
        return self.kind not in _LOOKS


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What a plan rests on: the look, the knobs, and what owner and operator permit.

    step_share: largest step of maxmemory downwards, 0..1. memory_limit_bytes: of the container or cgroup, from the
    fleet file; None where the owner names none. keys_per_s: budget of passes over keys.
    """

    facts: InfoFacts
    knobs: Mapping[str, str] = field(default_factory=dict)
    step_share: float = 0.15
    memory_limit_bytes: int | None = None
    keys_per_s: int = 2_000
    may_reencode: bool = False
    staleness_ms: Mapping[str, int] = field(default_factory=dict)
    """By pattern, as the owner declares it; patterns without are missing."""
    may_shorten: frozenset[str] = frozenset()
    """Patterns whose keys may end sooner than they were written."""

    def policy_after(self, proposal: Proposal) -> str | None:
        """Return the eviction policy once the change is complete; None where the server does not tell."""
        named = value_after(proposal, "maxmemory-policy")
        return named or self.knobs.get("maxmemory-policy") or self.facts.eviction_policy


def ladder(start: int, target_bytes: int, step_share: float) -> tuple[int, ...]:
    """Return the values of maxmemory on the way down from `start` (excluded) to `target_bytes` (included).

    Each step takes at most `step_share` (0..1) of the value before it. A target that is not below the start is one
    step.
    """
    values: list[int] = []
    current, target_bytes = start, max(0, target_bytes)
    while current > target_bytes:
        current = max(target_bytes, current - max(1, int(current * step_share)))
        values.append(current)
    return tuple(values) or (target_bytes,)


def memory_of(proposal: Proposal) -> KnobChange | None:
    """Return the change of maxmemory, if there is one."""
    return next((c for c in proposal.knob_changes if c.knob == "maxmemory"), None)


def others_of(proposal: Proposal) -> tuple[KnobChange, ...]:
    """Return the changes of everything but maxmemory."""
    return tuple(c for c in proposal.knob_changes if c.knob != "maxmemory")


def value_after(proposal: Proposal, knob: str) -> str | None:
    """Return what the proposal sets a knob to, None where it leaves it alone."""
    return next((c.after for c in proposal.knob_changes if c.knob == knob), None)


def start_bytes(value: str, facts: InfoFacts) -> int:
    """Return where a way down begins; maxmemory 0 is no limit, so it begins at what is in use."""
    return int(value) if value != "0" else facts.used_memory_bytes or 0


def memory_step(before: str, after_bytes: int, others: Iterable[KnobChange] = (), *, stage: str) -> Step:
    """Return a step that sets maxmemory, with `others` in the same command, and waits until memory is down."""
    change = KnobChange(knob="maxmemory", before=before, after=str(after_bytes))
    return Step(kind=StepKind.WRITE_KNOBS, changes=(*others, change), settle_to_bytes=after_bytes, stage=stage)
