"""What higher limits of the small encodings would save for new keys, and what they would cost in CPU time.

From collections of which the adapter measured every member, and from what MEMORY USAGE says of them now. It changes
nothing, and it recommends nothing where the sample is small, the saving is not clear of zero, or commands would become
slower than `EXTRA_US_MAX`. Limits work on keys that are written anew: an existing one stays as it is (t_hash.c).

INVARIANT: a limit is never said to save anything on a collection with a longer member or more entries than it allows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from cachewarden.cachemodel.encoding_cost import costs_of
from cachewarden.cachemodel.encoding_layout import CollectionKind, CollectionLayout
from cachewarden.cachemodel.encoding_model import Resampling, Unknown
from cachewarden.estimate import Estimate
from cachewarden.value_sample import VALUE_KINDS, ValueSample

__all__ = ["COLLECTIONS_MIN", "EXTRA_US_MAX", "NOTES", "CommandExtra", "LimitSaving", "limit_savings"]

COLLECTIONS_MIN: Final = 20
"""Fewer convertible collections than this tell nothing."""
EXTRA_US_MAX: Final = 2.0
"""Extra microseconds of the mean call above which nothing is recommended; a command with its reading and answering
costs a server about 5 to 10."""
_MODEL_ERROR: Final = 0.03
"""Of what a small encoding takes by the model, against real servers (`benchmarks/encoding_layout.py`)."""
_SHARE_MIN: Final = 0.01
"""Of the memory of all keys; below that a change is not worth its risk."""

NOTES: Final = (
    "a higher limit works on keys that are written anew; existing ones stay until they are rewritten or reloaded",
    "taking it back is not neutral: the next write to each small collection above the old limit converts that one",
    "one entry too many, or one member that is too long, converts a collection for good",
    "keep the limits equal on all nodes of a replication group",
)
"""What whoever raises a limit has to know; measured on Redis 7.0.15 and Valkey 9.1.2."""


@dataclass(frozen=True, slots=True)
class _Rule:
    """One small encoding: its kind, and the knobs that bound it."""

    kind: CollectionKind
    encoding: str
    entries_knob: str
    member_knob: str | None
    entries: tuple[int, ...]
    members: tuple[int, ...]


_ENTRIES: Final = (256, 512, 1024)
_MEMBERS: Final = (128, 256)
_HASH, _SET, _ZSET = CollectionKind.HASH, CollectionKind.SET, CollectionKind.ZSET
_RULES: Final = (
    _Rule(_HASH, "listpack", "hash-max-listpack-entries", "hash-max-listpack-value", _ENTRIES, _MEMBERS),
    _Rule(_SET, "intset", "set-max-intset-entries", None, (1024,), ()),
    _Rule(_SET, "listpack", "set-max-listpack-entries", "set-max-listpack-value", _ENTRIES, _MEMBERS),
    _Rule(_ZSET, "listpack", "zset-max-listpack-entries", "zset-max-listpack-value", _ENTRIES, _MEMBERS),
)


@dataclass(frozen=True, slots=True)
class CommandExtra:
    """What the mean call of one command on these collections would cost more, in microseconds of server time."""

    command: str
    extra_us: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitSaving:
    """One candidate. `saved_share`: of the memory of the keys that would be small; `saved_bytes` and `saved_of_all`:
    in the whole cache once all of them are written anew, and as a share of its keys' memory."""

    kind: CollectionKind
    encoding: str
    limits: Mapping[str, int]
    limits_now: Mapping[str, int]
    collections: int
    mean_entries: float
    saved_share: Estimate
    saved_bytes: Estimate
    saved_of_all: Estimate
    costs: tuple[CommandExtra, ...]
    recommended: bool
    reason: str


@dataclass(frozen=True, slots=True)
class _Columns:
    """Collections of one kind: rows in the sample, and bytes now and under the small encoding."""

    row: npt.NDArray[np.int32]
    entries: npt.NDArray[np.int64]
    longest: npt.NDArray[np.int64]
    now_bytes: npt.NDArray[np.float64]
    small_bytes: npt.NDArray[np.float64]


def limit_savings(
    values: ValueSample, layout: CollectionLayout | str, knobs: Mapping[str, str], resident_keys: int, seed: int
) -> tuple[tuple[str, LimitSaving | Unknown], ...]:
    """Return (small encoding, answer) for every candidate limit above those in force (`knobs` as CONFIG GET says).

    Where a kind has no candidate that can be judged there is one answer that says why. `layout` is that of the
    server, or why it is not known.
    """
    found: list[tuple[str, LimitSaving | Unknown]] = []
    resampling = Resampling(max(1, len(values)), seed)
    for rule in _RULES:
        name = f"{rule.kind.value} ({rule.encoding})"
        now = _limits_now(rule, knobs)
        if isinstance(now, Unknown):
            found.append((name, now))
        elif isinstance(layout, str):
            found.append((name, Unknown(layout)))
        else:
            columns = _columns(rule, values, layout)
            found += [
                (name, answer) for answer in _answers(rule, now, values, columns, layout, resident_keys, resampling)
            ]
    return tuple(found)


def _limits_now(rule: _Rule, knobs: Mapping[str, str]) -> dict[str, int] | Unknown:
    limits = {}
    for knob in filter(None, (rule.entries_knob, rule.member_knob)):
        text = knobs.get(knob, "")
        if not text.isdigit():
            return Unknown(f"`{knob}` is not known here: an older server, or CONFIG GET is denied")
        limits[knob] = int(text)
    return limits


def _columns(rule: _Rule, values: ValueSample, layout: CollectionLayout) -> _Columns:
    kind = VALUE_KINDS.index(rule.kind.value)
    read = (values.kind[values.collection_row] == kind) & (values.elements_bytes >= 0)
    integers = values.intset_width > 0
    # A set of integers goes through the intset first, whatever the limits of listpacks are (setTypeCreate).
    mine = np.flatnonzero(read & (integers if rule.encoding == "intset" else ~integers if rule.kind == "set" else read))
    row, entries = values.collection_row[mine], values.entries[mine]
    uncounted = np.array([layout.uncounted_bytes(int(n)) for n in entries], dtype=np.float64)
    if rule.encoding == "intset":
        widths = values.intset_width[mine]
        small = [layout.intset_bytes(int(n), int(w)) for n, w in zip(entries, widths, strict=True)]
    else:
        small = [layout.listpack_bytes(int(size)) for size in values.elements_bytes[mine]]
    names = [layout.name_bytes(int(length)) for length in values.name_bytes[mine]]
    return _Columns(
        row=row,
        entries=entries,
        longest=values.longest_bytes[mine],
        now_bytes=values.size_bytes[row] + uncounted,
        small_bytes=np.array(small, dtype=np.float64) + np.array(names, dtype=np.float64),
    )


def _answers(
    rule: _Rule, now: dict[str, int], values: ValueSample, columns: _Columns, layout: CollectionLayout,
    resident_keys: int, resampling: Resampling,
) -> list[LimitSaving | Unknown]:  # fmt: skip
    if len(columns.row) < COLLECTIONS_MIN:
        found = f"{len(columns.row)} large collections of this kind among {len(values)} sampled keys could be measured"
        return [Unknown(f"{found}, {COLLECTIONS_MIN} are needed")]
    entries_now = now[rule.entries_knob]
    member_now = now[rule.member_knob] if rule.member_knob else None
    answers: list[LimitSaving | Unknown] = []
    counts: set[int] = set()
    for entries in (entries_now, *(n for n in rule.entries if n > entries_now)):
        for member in (member_now, *(m for m in rule.members if member_now is not None and m > member_now)):
            if (entries, member) == (entries_now, member_now):
                continue
            fits = (columns.entries <= entries) & ((columns.longest <= member) if member is not None else True)
            count = int(fits.sum())
            # A higher limit that takes in no further collection has no answer of its own.
            if count < COLLECTIONS_MIN or count in counts:
                continue
            counts.add(count)
            limits = {rule.entries_knob: entries}
            if rule.member_knob is not None and member is not None:
                limits[rule.member_knob] = member
            answers.append(_saving(rule, now, limits, values, columns, fits, layout, resident_keys, resampling))
    if answers:
        return answers
    return [Unknown(f"fewer than {COLLECTIONS_MIN} of the measured collections would fit under any limit asked about")]


def _saving(
    rule: _Rule, now: dict[str, int], limits: dict[str, int], values: ValueSample, columns: _Columns,
    fits: npt.NDArray[np.bool_], layout: CollectionLayout, resident_keys: int, resampling: Resampling,
) -> LimitSaving:  # fmt: skip
    held, saved, counted, weighted = (np.zeros(len(values)) for _ in range(4))
    row, entries = columns.row[fits], columns.entries[fits]
    held[row] = columns.now_bytes[fits]
    saved[row] = columns.now_bytes[fits] - columns.small_bytes[fits]
    margin = _MODEL_ERROR * float(columns.small_bytes[fits].sum())
    counted[row], weighted[row] = 1.0, entries
    # Collections that the bounds of the look left out save like those that were measured, byte for byte.
    factor, factors = _all_over_measured(rule, values, resampling)
    saved_mean, saved_draws = factor * float(saved.mean()), factors * resampling.means(saved)
    all_mean, all_draws = float(values.size_bytes.mean()), resampling.means(values.size_bytes)
    margin_mean = factor * margin / len(values)
    costs = tuple(
        CommandExtra(
            cost.command,
            resampling.estimate(
                cost.extra_us(float(entries.mean())),
                cost.extra_us(0.0) + cost.slope_us * resampling.means(weighted) / resampling.means(counted),
            ),
        )
        for cost in costs_of(layout.name, rule.kind, rule.encoding)
        if entries.max() <= cost.entries_max
    )
    of_all = _beside(resampling.estimate(saved_mean / all_mean, saved_draws / all_draws), margin_mean / all_mean)
    saved_bytes = resampling.estimate(saved_mean, saved_draws, float(resident_keys))
    recommended, reason = _judged(of_all, costs)
    return LimitSaving(
        kind=rule.kind,
        encoding=rule.encoding,
        limits=limits,
        limits_now=now,
        collections=int(fits.sum()),
        mean_entries=float(entries.mean()),
        saved_share=_beside(resampling.ratio(saved, held), margin / float(held.sum())),
        saved_bytes=_beside(saved_bytes, margin_mean * resident_keys),
        saved_of_all=of_all,
        costs=costs,
        recommended=recommended,
        reason=reason,
    )


def _beside(estimate: Estimate, margin: float) -> Estimate:
    """Return the interval widened by the model's own error, as if it were independent of the sampling."""
    low = estimate.value - math.hypot(estimate.value - estimate.low, margin)
    return Estimate(estimate.value, low, estimate.value + math.hypot(estimate.high - estimate.value, margin))


def _all_over_measured(
    rule: _Rule, values: ValueSample, resampling: Resampling
) -> tuple[float, npt.NDArray[np.float64]]:
    """Return by how much a sum over measured collections falls short because the look had read enough: the memory of
    those that it could have measured over that of those that it did, and the same in each draw.
    """
    mine = values.kind[values.collection_row] == VALUE_KINDS.index(rule.kind.value)
    measured, everything = np.zeros(len(values)), np.zeros(len(values))
    for column, chosen in ((measured, values.elements_bytes >= 0), (everything, values.elements_bytes != -1)):
        row = values.collection_row[mine & chosen]
        column[row] = values.size_bytes[row]
    return float(everything.sum() / measured.sum()), resampling.means(everything) / resampling.means(measured)


def _judged(of_all: Estimate, costs: tuple[CommandExtra, ...]) -> tuple[bool, str]:
    if not costs:
        return False, "what commands on it would cost was not measured for this server and size"
    dearest = max(costs, key=lambda cost: cost.extra_us.value)
    if dearest.extra_us.value > EXTRA_US_MAX:
        return False, f"{dearest.command} would cost {dearest.extra_us.value:+.1f} us, more than {EXTRA_US_MAX:g} us"
    if of_all.low < _SHARE_MIN:
        return False, f"the saving is not clearly above {_SHARE_MIN:.0%} of the memory of all keys"
    return True, f"saves memory, and no command costs more than {EXTRA_US_MAX:g} us extra"
