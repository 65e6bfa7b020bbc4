"""`tune`: knobs that cost or save CPU and evict nothing by themselves, tried before they are set.

maxmemory-samples, lfu-log-factor, lfu-decay-time, active-expire-effort, lazyfree-*, activedefrag, latency tracking. A
server's version does not tell whether it takes them: Debian's Redis 7.0 prints jemalloc and refuses activedefrag,
managed servers refuse by ACL or by name. So each knob is first set to the value that it has.
"""

from __future__ import annotations

from agents.playbook_tables.steps import Ground, Step, StepKind
from agents.playbook_tables.table import OBSERVE, Failure, Playbook, Stage
from cachewarden.messages import KnobChange, Proposal

__all__ = ["TUNE", "TUNED_KNOBS"]

TUNED_KNOBS = (
    "active-expire-effort",
    "activedefrag",
    "latency-monitor-threshold",
    "latency-tracking",
    "lazyfree-lazy-eviction",
    "lazyfree-lazy-expire",
    "lazyfree-lazy-server-del",
    "lazyfree-lazy-user-del",
    "lfu-decay-time",
    "lfu-log-factor",
    "maxmemory-eviction-tenacity",
    "maxmemory-samples",
    "slowlog-log-slower-than",
)


def _plan(proposal: Proposal, _ground: Ground) -> list[Step]:
    same = tuple(KnobChange(knob=c.knob, before=c.before, after=c.before) for c in proposal.knob_changes)
    return [
        Step(kind=StepKind.WRITE_KNOBS, changes=same, stage="probe"),
        Step(kind=StepKind.WRITE_KNOBS, changes=proposal.knob_changes, stage="set"),
    ]


def _refuses(proposal: Proposal, _ground: Ground) -> str | None:
    strange = sorted(c.knob for c in proposal.knob_changes if c.knob not in TUNED_KNOBS)
    return f"`{strange[0]}` needs another playbook than `tune`" if strange else None


TUNE = Playbook(
    name="tune",
    title="CPU, expiry, lazy freeing, defragmentation, LFU parameters, samples",
    hazard="a knob that the server prints but does not take; CPU that the application misses",
    first=("probe",),
    stages=(
        Stage(
            name="probe",
            kind=StepKind.WRITE_KNOBS,
            does="set each knob to the value that it has, in one fenced CONFIG SET",
            requires="the server prints each knob",
            observes="the server's answer, and CONFIG GET on the same connection",
            succeeds="it is taken and nothing changed",
            then=("set",),
            fails=Failure.ABANDON,
            rollback="nothing was changed",
        ),
        Stage(
            name="set",
            kind=StepKind.WRITE_KNOBS,
            does="set all knobs in one fenced CONFIG SET, all or nothing",
            requires="the probe was taken",
            observes="CONFIG GET on the same connection",
            succeeds="the server prints exactly the values that were written; a refusal has changed nothing",
            then=(OBSERVE,),
            fails=Failure.TAKE_BACK,
            rollback="one fenced CONFIG SET of the old values",
            lost="LFU counters that were counted under other parameters",
        ),
    ),
    plan=_plan,
    refuses=_refuses,
)
