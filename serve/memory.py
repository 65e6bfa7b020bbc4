"""Where a cache's memory goes and what would make less of it: shapes of the answer, and the evaluation.

It changes nothing and is no plan. INVARIANT: each figure has its interval, and whatever cannot be told says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pydantic import BaseModel, Field

from cachewarden.cachemodel.encoding_layout import layout_of
from cachewarden.cachemodel.encoding_model import MemoryGroup, Unknown, by_encoding, by_pattern
from cachewarden.cachemodel.encoding_whatif import NOTES, LimitSaving, limit_savings
from cachewarden.cachemodel.value_model import Compression, compression, compression_by_pattern, twins
from cachewarden.estimate import Estimate
from cachewarden.messages import CONSTITUTIONAL_HASH, Execution
from cachewarden.observation import Snapshot
from serve.memory_levers import LeverView, PartView, PulledView, levers_of, parts_of, pulled_of
from serve.timestamps import iso

__all__ = ["MemoryResponse", "memory_view", "unseen"]

# The same look gives the same answer.
_SEED: Final = 1
_NO_VALUES: Final = "values were not looked into"


class Interval(BaseModel):
    """A figure with its 90 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, estimate: Estimate) -> Interval:
        """Return an estimate for the wire."""
        return cls(value=estimate.value, low=estimate.low, high=estimate.high)


class GroupView(BaseModel):
    """Keys that belong together; shares 0..1 of all resident keys and of their memory."""

    name: str
    sampled_keys: int
    keys_share: Interval
    bytes_share: Interval
    bytes: Interval
    mean_bytes: float


class GroupsView(BaseModel):
    """Memory by group, largest first; none with the reason."""

    groups: list[GroupView] = Field(default_factory=list)
    reason: str = Field("", description="why there are none")


class CostView(BaseModel):
    """Extra microseconds of server time of the mean call."""

    command: str
    extra_us: Interval


class LimitView(BaseModel):
    """What one set of higher limits of a small encoding would give for keys that are written anew."""

    encoding: str = Field(description="type and small encoding, e.g. `hash (listpack)`")
    answered: bool
    recommended: bool = False
    reason: str
    limits: dict[str, int] = Field(default_factory=dict)
    limits_now: dict[str, int] = Field(default_factory=dict)
    collections: int = Field(0, description="measured collections that would be small")
    mean_entries: float | None = None
    saved_share: Interval | None = Field(None, description="of the memory of these collections")
    saved_bytes: Interval | None = Field(None, description="in the whole cache, once all are written anew")
    saved_of_all: Interval | None = Field(None, description="of the memory of all keys")
    costs: list[CostView] = Field(default_factory=list)
    summary: str = ""


class CompressionView(BaseModel):
    """What zstd in the client would make of strings of 1 KiB and more."""

    pattern: str | None = Field(description="null: all of them together")
    answered: bool
    reason: str = ""
    values_read: int = 0
    ratio: Interval | None = Field(None, description="plain length over compressed one")
    saved_share: Interval | None = Field(None, description="of the memory of these values")
    saved_bytes: Interval | None = None
    saved_of_all: Interval | None = Field(None, description="of the memory of all keys")
    summary: str = ""


class ValueLookView(BaseModel):
    """The look into values that the levers rest on."""

    sampled_keys: int
    values_read: int
    collections_measured: int
    read_bytes: int
    identical_values: int = Field(description="values read that equal another one that was read")
    made_young_keys: int = Field(description="keys whose age the look has reset, on servers without CLIENT NO-TOUCH")


class MemoryResponse(BaseModel):
    """Where the memory of one service goes. Nothing was changed, and none of this is a plan."""

    service_name: str
    taken_at: str | None = Field(description="null where the cache has not been seen")
    resident_keys: int | None = None
    figures: dict[str, float] = Field(
        default_factory=dict, description="INFO's own words and figures, e.g. `allocator_frag_ratio`"
    )
    parts: list[PartView] = Field(default_factory=list, description="where the process's memory goes, largest first")
    levers: list[LeverView] = Field(
        default_factory=list, description="what each would give, the surest first; they overlap and do not add up"
    )
    pulled: list[PulledView] = Field(
        default_factory=list,
        description="plans that pulled a lever: what they promised and what came of it, newest first",
    )
    by_encoding: GroupsView
    by_pattern: GroupsView
    value_look: ValueLookView | None = Field(None, description="null where values were not looked into")
    limits: list[LimitView] = Field(default_factory=list)
    compression: list[CompressionView] = Field(default_factory=list)
    levers_reason: str = Field("", description="why there are no levers, or no newer ones")
    notes: list[str] = Field(default_factory=list)
    constitutional_hash: str = CONSTITUTIONAL_HASH


def unseen(service: str, reason: str) -> MemoryResponse:
    """Return the answer for a cache that was not seen, or too long ago."""
    nothing = GroupsView(reason=reason)
    return MemoryResponse(
        service_name=service, taken_at=None, by_encoding=nothing, by_pattern=nothing, levers_reason=reason
    )


def memory_view(snapshot: Snapshot, executions: Sequence[Execution] = ()) -> MemoryResponse:
    """Return what the newest look says of one cache's memory, and what came of levers that were pulled."""
    values, keys = snapshot.values, snapshot.resident_keys
    answer = MemoryResponse(
        service_name=snapshot.service,
        taken_at=iso(snapshot.taken_at_ms),
        resident_keys=keys,
        figures=dict(snapshot.memory_figures),
        parts=parts_of(snapshot),
        pulled=pulled_of(executions, snapshot.service),
        by_encoding=_groups(by_encoding(snapshot.sample, values, keys, _SEED)),
        by_pattern=_groups(by_pattern(snapshot.sample, keys, _SEED)),
        levers_reason=snapshot.incomplete.get("values", "" if values is not None else _NO_VALUES),
    )
    if values is None:
        answer.levers = levers_of(snapshot, (), None)
        return answer
    layout = layout_of(snapshot.capabilities.server, snapshot.capabilities.version, snapshot.allocator)
    found = twins(values)
    answer.value_look = ValueLookView(
        sampled_keys=len(values),
        values_read=found.values_read,
        collections_measured=int((values.elements_bytes >= 0).sum()),
        read_bytes=values.read_bytes,
        identical_values=found.copies,
        made_young_keys=values.touched_keys,
    )
    savings = limit_savings(values, layout, snapshot.knobs, keys, _SEED)
    packed = compression(values, keys, _SEED)
    answer.levers = levers_of(snapshot, savings, packed)
    answer.limits = [_limit(name, part) for name, part in savings]
    answer.compression = [_compression(None, packed)]
    answer.compression += [_compression(name, part) for name, part in compression_by_pattern(values, keys, _SEED)]
    if any(limit.answered for limit in answer.limits):
        answer.notes += NOTES
    return answer


def _groups(found: Sequence[MemoryGroup] | Unknown) -> GroupsView:
    if isinstance(found, Unknown):
        return GroupsView(reason=found.reason)
    return GroupsView(
        groups=[
            GroupView(
                name=group.name,
                sampled_keys=group.sampled_keys,
                keys_share=Interval.of(group.keys_share),
                bytes_share=Interval.of(group.bytes_share),
                bytes=Interval.of(group.bytes),
                mean_bytes=group.mean_bytes,
            )
            for group in found
        ]
    )


def _limit(name: str, found: LimitSaving | Unknown) -> LimitView:
    if isinstance(found, Unknown):
        return LimitView(encoding=name, answered=False, reason=found.reason)
    costs = ", ".join(f"{cost.command} costs {cost.extra_us.value:+.1f} us" for cost in found.costs)
    spoken = f"saves {_percent(found.saved_share)} of the memory of these keys"
    return LimitView(
        encoding=name,
        answered=True,
        recommended=found.recommended,
        reason=found.reason,
        limits=dict(found.limits),
        limits_now=dict(found.limits_now),
        collections=found.collections,
        mean_entries=found.mean_entries,
        saved_share=Interval.of(found.saved_share),
        saved_bytes=Interval.of(found.saved_bytes),
        saved_of_all=Interval.of(found.saved_of_all),
        costs=[CostView(command=cost.command, extra_us=Interval.of(cost.extra_us)) for cost in found.costs],
        summary=f"{spoken}, {costs or 'costs unknown'} on average at {found.mean_entries:.0f} entries",
    )


def _compression(pattern: str | None, found: Compression | Unknown) -> CompressionView:
    if isinstance(found, Unknown):
        return CompressionView(pattern=pattern, answered=False, reason=found.reason)
    ratio = found.ratio
    return CompressionView(
        pattern=pattern,
        answered=True,
        values_read=found.values_read,
        ratio=Interval.of(ratio),
        saved_share=Interval.of(found.saved_share),
        saved_bytes=Interval.of(found.saved_bytes),
        saved_of_all=Interval.of(found.saved_of_all),
        summary=(
            f"client-side zstd would make these values {ratio.value:.1f}x smaller ({ratio.low:.1f}..{ratio.high:.1f}), "
            f"memory of all keys -{_percent(found.saved_of_all)}"
        ),
    )


def _percent(share: Estimate) -> str:
    return f"{share.value:.0%} ({share.low:.0%}..{share.high:.0%})"
