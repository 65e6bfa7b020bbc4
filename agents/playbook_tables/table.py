"""What a playbook is: a state table, the plan that walks through it, and what it refuses.

The table is read by people (`docs/PLAYBOOKS.md` is made of it), by tests, and by `book.steps_of`, which refuses a plan
that is no walk through its table. It decides nothing about a cache.

INVARIANT: each stage of a table can be reached, leads on or out, and says how it is taken back and what cannot be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from agents.playbook_tables.steps import Ground, Step, StepKind
from cachewarden.messages import Proposal

__all__ = ["COMMON", "OBSERVE", "Failure", "Playbook", "Stage", "flaws", "strays"]

OBSERVE = "observe"
"""Where every walk ends: window after window, until the change is kept or taken back."""

NOTHING = "nothing"


class Failure(StrEnum):
    """Where a stage leads that did not succeed."""

    ABANDON = "abandon"
    """Nothing has been changed yet, so the change only ends."""
    TAKE_BACK = "take back"
    """Every knob goes back to the value that it had, in steps where memory has to fall."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One row: what is done under which condition, what is looked at, when it has succeeded, and the ways out."""

    name: str
    kind: StepKind | None
    """None for the stages that all playbooks share."""
    does: str
    requires: str
    observes: str
    succeeds: str
    then: tuple[str, ...]
    """Stages that may follow; `observe` ends the steps. A stage that names itself may be done several times."""
    fails: Failure
    rollback: str
    lost: str = NOTHING
    """What taking back does not bring back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Playbook:
    """One kind of change. `plan` gives the steps, `refuses` the reason why this cache may not be changed so now."""

    name: str
    title: str
    hazard: str
    first: tuple[str, ...]
    """Stages with which a walk may begin."""
    stages: tuple[Stage, ...]
    plan: Callable[[Proposal, Ground], Sequence[Step]]
    refuses: Callable[[Proposal, Ground], str | None]

    def stage(self, name: str) -> Stage:
        """Return a row by its name; raises KeyError."""
        return {s.name: s for s in self.stages}[name]


COMMON: tuple[Stage, ...] = (
    Stage(
        name="check",
        kind=None,
        does="read the knobs and INFO, work out the plan, write the intention with the backup of every knob",
        requires="verdict, resolution, approval where needed, no freeze window, lease with its fence in the cache",
        observes="knobs, role, loading, memory in use, memory of host and container",
        succeeds="each knob has the value that the proposal was made for, and the playbook refuses nothing",
        then=("the first stage",),
        fails=Failure.ABANDON,
        rollback="nothing was done",
    ),
    Stage(
        name=OBSERVE,
        kind=None,
        does="look four times per window, for at most OBSERVATION_WINDOWS_MAX windows",
        requires="all steps applied and read back",
        observes="hit ratio, P99, evictions, refused writes, CPU, load of the origin; the twin where there is one, "
        "else a replay of the captured requests without the change",
        succeeds="the measured effect keeps what was promised and no guardrail is crossed",
        then=("persist",),
        fails=Failure.TAKE_BACK,
        rollback="each knob to its old value, memory downwards in steps, the rest in one CONFIG SET, read back",
    ),
    Stage(
        name="persist",
        kind=None,
        does="CONFIG REWRITE where the server has a configuration file and the fleet file permits it",
        requires="`config_rewrite: true` for the service",
        observes="the server's answer",
        succeeds="always: a refusal is written down, and the change stands as long as the server runs",
        then=("kept",),
        fails=Failure.TAKE_BACK,
        rollback="the next rewrite writes what is in force then",
    ),
)
"""What is the same in every playbook."""


def flaws(playbook: Playbook) -> list[str]:
    """Return what is wrong with a table, in words; empty if nothing is."""
    found: list[str] = []
    names = [s.name for s in playbook.stages]
    if len(set(names)) != len(names):
        found.append("two stages have one name")
    known = {*names, OBSERVE}
    for stage in playbook.stages:
        words = ("does", "requires", "observes", "succeeds", "rollback", "lost")
        found += [f"`{stage.name}` does not say `{w}`" for w in words if not getattr(stage, w).strip()]
        found += [f"`{stage.name}` leads to `{n}`, which is no stage" for n in stage.then if n not in known]
        if not set(stage.then) - {stage.name}:
            found.append(f"`{stage.name}` has no way out")
        if stage.fails is Failure.ABANDON and stage.kind is not None and _may_write(playbook, stage):
            found.append(f"`{stage.name}` abandons although something may have been written before")
    reached = set(playbook.first)
    while True:
        more = reached | {n for s in playbook.stages if s.name in reached for n in s.then}
        if more == reached:
            break
        reached = more
    found += [f"`{n}` is never reached" for n in names if n not in reached]
    if OBSERVE not in reached:
        found.append("no way leads to the observation")
    found += [f"it begins with `{n}`, which is no stage" for n in playbook.first if n not in names]
    return found


def _may_write(playbook: Playbook, stage: Stage) -> bool:
    """Say whether a stage that writes may come before this one."""
    before = {stage.name}
    while True:
        more = before | {s.name for s in playbook.stages if set(s.then) & before}
        if more == before:
            break
        before = more
    looks = (StepKind.COLLECT_HOT_KEYS, StepKind.CHECK_SPREAD)
    return any(s.kind not in looks for s in playbook.stages if s.name in before - {stage.name})


def strays(playbook: Playbook, steps: Sequence[Step]) -> str | None:
    """Return where a plan leaves its playbook's table, None where it is a walk through it."""
    allowed: tuple[str, ...] = playbook.first
    rows = {s.name: s for s in playbook.stages}
    for step in steps:
        row = rows.get(step.stage)
        if row is None or step.stage not in allowed:
            return f"`{step.stage}` may not follow here, `{playbook.name}` allows: {', '.join(allowed)}"
        if row.kind is not step.kind:
            return f"`{step.stage}` of `{playbook.name}` does not do `{step.kind.value}`"
        allowed = row.then
    return None if OBSERVE in allowed else f"`{playbook.name}` does not end after `{steps[-1].stage}`"
