"""`direct`: one atomic write of all knobs, for changes whose hazard needs no order of its own.

A switch between eviction policies other than to LFU goes this way: LFU to LRU was measured to lose nothing of the hot
set (Redis 7.0.15, Valkey 9.1.2), and a cache that could evict nothing is better off at once.
"""

from __future__ import annotations

from agents.playbook_tables.grow import refusal_of_growth
from agents.playbook_tables.steps import Ground, Step, StepKind
from agents.playbook_tables.table import OBSERVE, Failure, Playbook, Stage
from cachewarden.messages import Proposal

__all__ = ["DIRECT"]


def _plan(proposal: Proposal, _ground: Ground) -> list[Step]:
    return (
        [Step(kind=StepKind.WRITE_KNOBS, changes=proposal.knob_changes, stage="set")] if proposal.knob_changes else []
    )


DIRECT = Playbook(
    name="direct",
    title="One write of all knobs",
    hazard="none that an order of steps could avoid",
    first=("set",),
    stages=(
        Stage(
            name="set",
            kind=StepKind.WRITE_KNOBS,
            does="set all knobs in one fenced CONFIG SET, all or nothing",
            requires="each knob has the value that the proposal was made for",
            observes="CONFIG GET on the same connection",
            succeeds="the server prints exactly the values that were written",
            then=(OBSERVE,),
            fails=Failure.TAKE_BACK,
            rollback="one fenced CONFIG SET of the old values",
            lost="keys that were evicted under another policy come back only as the application loads them",
        ),
    ),
    plan=_plan,
    refuses=refusal_of_growth,
)
