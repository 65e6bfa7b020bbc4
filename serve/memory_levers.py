"""What each lever would give of a cache's memory: predicted bytes side by side, the largest sure gain first.

It puts together what other models say (encodings, compression, never read, expired, fragmentation, copies) and predicts
nothing itself. Levers overlap: their gains do not add up. INVARIANT: a lever is worth it only where the whole interval
of its gain lies above the least gain; where it gives nothing it says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pydantic import BaseModel, Field

from agents.ttl_review import memory_held_for_nothing
from cachewarden.cachemodel.dead_memory import DeadMemory
from cachewarden.cachemodel.encoding_model import Unknown
from cachewarden.cachemodel.encoding_whatif import LimitSaving
from cachewarden.cachemodel.value_model import Compression, copies_share
from cachewarden.estimate import Estimate
from cachewarden.messages import Execution
from cachewarden.observation import Snapshot

__all__ = ["LeverView", "PartView", "PulledView", "levers_of", "parts_of", "pulled_of"]

_LEAST_SHARE: Final = 0.01
"""Of used_memory; less is not worth a change."""
_UNREAD_MS: Final = 600_000
"""Shorter looks do not show that a key is never read."""


class PartView(BaseModel):
    """One part of the memory of the process, as INFO counts it; parts do not overlap."""

    name: str
    bytes: int
    share: float = Field(description="of the resident memory of the process, or of used_memory where that is larger")


class LeverView(BaseModel):
    """One thing that would make less of the memory. `bytes` null: it cannot be told, and `reason` says why."""

    lever: str
    worth_it: bool
    bytes: tuple[float, float, float] | None = Field(description="value, low and high of the 90 % interval")
    reason: str
    how: str
    action_class: int | None = Field(description="0..3 where cachewarden could do it; null: the application's matter")


class PulledView(BaseModel):
    """A plan that pulled a lever: bytes that it promised, and bytes that the same keys need less since, as measured."""

    plan_id: str
    state: str
    what: list[str] = Field(description="knobs and key patterns")
    predicted_bytes: tuple[float, float, float] = Field(description="value, low and high of the 90 % interval")
    realised_bytes: float | None = Field(description="null until it was measured, or where it cannot be")


def pulled_of(executions: Sequence[Execution], service: str) -> list[PulledView]:
    """Return the plans of one service that promised memory, the newest first."""
    found = []
    for execution in executions:
        plan, promised = execution.proposal, execution.proposal.prediction.freed_bytes
        if plan.service == service and promised is not None:
            view = PulledView(
                plan_id=plan.proposal_id,
                state=execution.state.value,
                what=[*(c.knob for c in plan.knob_changes), *(f"ttl:{r.pattern}" for r in plan.ttl_rules)],
                predicted_bytes=(promised.value, promised.low, promised.high),
                realised_bytes=execution.freed_bytes,
            )
            found.append(view)
    return found[::-1]


def parts_of(snapshot: Snapshot) -> list[PartView]:
    """Return where the memory of the process goes, largest first; empty where INFO does not say."""
    figures = snapshot.memory_figures
    used, dataset = figures.get("used_memory"), figures.get("used_memory_dataset")
    if used is None or dataset is None or used <= 0:
        return []
    startup = figures.get("used_memory_startup", 0.0)
    buffers = sum(figures.get(n, 0.0) for n in ("mem_clients_normal", "mem_clients_slaves", "mem_aof_buffer"))
    backlog = figures.get("mem_replication_backlog", 0.0)
    overhead = max(figures.get("used_memory_overhead", used - dataset) - startup - buffers - backlog, 0.0)
    resident = max(figures.get("used_memory_rss", used), used)
    parts = {
        "keys and values": dataset,
        "hash tables of the keyspace": overhead,
        "start-up": startup,
        "client and AOF buffers": buffers,
        "replication backlog": backlog,
        "fragmentation and memory kept by the allocator": resident - used,
    }
    shown = [PartView(name=n, bytes=int(b), share=b / resident) for n, b in parts.items() if b > 0]
    return sorted(shown, key=lambda part: -part.bytes)


def levers_of(
    snapshot: Snapshot, limits: Sequence[tuple[str, LimitSaving | Unknown]], packed: Compression | Unknown | None
) -> list[LeverView]:
    """Return all levers, those that are surely worth it first, then by what they would give."""
    least = _LEAST_SHARE * max(snapshot.used_memory_bytes, 1)
    unread, expired = memory_held_for_nothing(snapshot)
    found = [_fragmentation(snapshot, least)]
    found.append(_unread(unread, least))
    found.append(_lever("expired and not yet freed", expired, least, "raise `active-expire-effort`", 1))
    for name, saving in limits:
        what = saving if isinstance(saving, Unknown) else saving.saved_bytes
        how = "raise the limits of the small encoding; keys change as they are written anew"
        found.append(_lever(f"small encoding: {name}", what, least, how, 3))
    if packed is not None:
        what = packed if isinstance(packed, Unknown) else packed.saved_bytes
        found.append(_lever("compression in the client", what, least, "zstd for strings of 1 KiB and more", None))
    found.append(_copies(snapshot, least))
    return sorted(
        found, key=lambda lever: (not lever.worth_it, -(lever.bytes[1] if lever.bytes else -1.0), lever.lever)
    )


def _lever(
    name: str, what: Estimate | DeadMemory | Unknown | str, least: float, how: str, action_class: int | None
) -> LeverView:
    if isinstance(what, (Unknown, str)):
        reason = what if isinstance(what, str) else what.reason
        return LeverView(lever=name, worth_it=False, bytes=None, reason=reason, how=how, action_class=action_class)
    held = what.held_bytes if isinstance(what, DeadMemory) else what
    worth = held.low > least
    reason = (
        f"surely more than {_LEAST_SHARE:.0%} of the memory in use"
        if worth
        else f"not surely more than {_LEAST_SHARE:.0%} of the memory in use, so there is nothing to do"
    )
    return LeverView(
        lever=name,
        worth_it=worth,
        bytes=(held.value, held.low, held.high),
        reason=reason,
        how=how,
        action_class=action_class,
    )


def _unread(held: DeadMemory | str, least: float) -> LeverView:
    how = "set or shorten their TTLs (an application's matter, or an approved change), or do not cache them"
    lever = _lever("keys that nobody reads", held, least, how, 3)
    if isinstance(held, DeadMemory):
        lever.reason += f": {held.method}"
        if held.horizon_ms < _UNREAD_MS:
            lever.worth_it = False
            lever.reason = (
                f"looked at for {held.horizon_ms / 1000:.0f} s only, which is no proof that nobody reads them"
            )
    return lever


def _fragmentation(snapshot: Snapshot, least: float) -> LeverView:
    name, how = "fragmentation", "`activedefrag yes` where the server was built for it (it is tried, not inferred)"
    wasted = snapshot.memory_figures.get("allocator_frag_bytes")
    if wasted is None:
        return _lever(name, "INFO does not print `allocator_frag_bytes`", least, how, 1)
    # Counted by the allocator; how much of it a defragmentation wins back is not known beforehand.
    return _lever(name, Estimate(wasted / 2, 0.0 if wasted < 2 * least else wasted / 4, wasted), least, how, 1)


def _copies(snapshot: Snapshot, least: float) -> LeverView:
    name, how = "copies of large values", "store one value under one key and refer to it"
    if snapshot.values is None:
        reason = snapshot.incomplete.get("values", "values were not looked into")
        return _lever(name, reason, least, how, None)
    share = copies_share(snapshot.values)
    if isinstance(share, str):
        return _lever(name, share, least, how, None)
    held = max(snapshot.used_memory_bytes - snapshot.fixed_overhead_bytes, 0)
    return _lever(name, Estimate(share.value * held, share.low * held, share.high * held), least, how, None)
