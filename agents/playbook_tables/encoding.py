"""`encoding` and `reencode`: thresholds below which collections are stored compactly, with or without existing keys.

A threshold changes only keys that are created later. Raised, existing keys keep their large form until they are written
anew as a whole; lowered, a compact key becomes large with its next write. So `reencode` goes on, within the bound that
the proposal was permitted (`cost["keys_touched"]`), to store existing keys again in the form that now fits: DUMP and
RESTORE with the absolute deadline, each under WATCH of the key and of the fence. COPY would not do: it keeps the form
of its source (`hashTypeDup` in the servers' t_hash.c).
"""

from __future__ import annotations

from agents.playbook_tables.steps import Ground, Step, StepKind
from agents.playbook_tables.table import OBSERVE, Failure, Playbook, Stage
from cachewarden.messages import Proposal

__all__ = ["ENCODING", "ENCODING_KNOBS", "REENCODE"]

ENCODING_KNOBS = (
    "hash-max-listpack-entries",
    "hash-max-listpack-value",
    "set-max-intset-entries",
    "set-max-listpack-entries",
    "set-max-listpack-value",
    "zset-max-listpack-entries",
    "zset-max-listpack-value",
)

_LOST = "keys that became compact stay so until each is written again, then it grows: memory rises key by key"


def _refuses(proposal: Proposal, _ground: Ground) -> str | None:
    strange = sorted(c.knob for c in proposal.knob_changes if c.knob not in ENCODING_KNOBS)
    return f"`{strange[0]}` needs another playbook than `{proposal.playbook}`" if strange else None


def _refuses_keys(proposal: Proposal, ground: Ground) -> str | None:
    if not ground.may_reencode:
        return "the fleet file does not permit storing keys again, set `reencode: true` for the service"
    if int(proposal.cost.get("keys_touched", 0)) < 1:
        return "the proposal permits no key to be touched, so `encoding` is its playbook"
    return _refuses(proposal, ground)


def _set(proposal: Proposal) -> list[Step]:
    return [Step(kind=StepKind.WRITE_KNOBS, changes=proposal.knob_changes, stage="set")]


def _plan(proposal: Proposal, _ground: Ground) -> list[Step]:
    return _set(proposal)


def _plan_with_keys(proposal: Proposal, ground: Ground) -> list[Step]:
    limit = int(proposal.cost.get("keys_touched", 0))
    keys = Step(kind=StepKind.REENCODE_KEYS, limit=limit, keys_per_s=ground.keys_per_s, stage="store again")
    return [*_set(proposal), keys]


def _setting(then: tuple[str, ...]) -> Stage:
    return Stage(
        name="set",
        kind=StepKind.WRITE_KNOBS,
        does="set all thresholds in one fenced CONFIG SET",
        requires="each knob has the value that the proposal was made for",
        observes="CONFIG GET on the same connection",
        succeeds="the server prints exactly the values that were written",
        then=then,
        fails=Failure.TAKE_BACK,
        rollback="one fenced CONFIG SET of the old values",
        lost=_LOST,
    )


ENCODING = Playbook(
    name="encoding",
    title="Thresholds of compact encodings, for keys written from now on",
    hazard="compact collections are searched from one end: CPU per command grows with the threshold",
    first=("set",),
    stages=(_setting((OBSERVE,)),),
    plan=_plan,
    refuses=_refuses,
)

REENCODE = Playbook(
    name="reencode",
    title="Thresholds of compact encodings, and existing keys stored again",
    hazard="as `encoding`; storing a key again is CPU, traffic to replicas and an event for clients that track it",
    first=("set",),
    stages=(
        _setting(("store again",)),
        Stage(
            name="store again",
            kind=StepKind.REENCODE_KEYS,
            does="SCAN the declared patterns; DUMP and RESTORE … ABSTTL each collection that fits the new "
            "thresholds, one transaction per key under WATCH of key and fence, "
            "at most `keys_touched` keys, TTL_KEYS_PER_S a second",
            requires="`reencode: true` in the fleet file and the bound in the proposal; values of at most 64 KiB",
            observes="after each pass: P99, refused writes, hit ratio, evictions, CPU",
            succeeds="the keyspace was walked through once, or the bound is reached",
            then=(OBSERVE,),
            fails=Failure.TAKE_BACK,
            rollback="the old thresholds; keys are not touched again, all of them are valid in either form",
            lost=_LOST,
        ),
    ),
    plan=_plan_with_keys,
    refuses=_refuses_keys,
)
