"""Who gets how much memory: the split of a budget over services that gains the most weighted hits.

Curves are replaced by their concave hulls (Talus, Beckmann and Sanchez, HPCA'15), on which taking the steepest segment
first is optimal. A real server cannot stand on a hull between its corners, so two splits are made, one of which stops
before cliffs that the memory left does not reach over, and judged on the curves themselves together with the current
split. It never takes a service below its minimum, or below
its floor if it holds it, and never takes memory from one that is already below its floor.

INVARIANT: bytes given out plus bytes left over equal the budget; the modelled weighted hits are never fewer than now.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt

__all__ = ["Allocation", "Curve", "Infeasible", "Share", "allocate", "jain_index"]

_MIB = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Hit ratio of one service over memory, and what it may count on.

    `bytes` rising, `hit_ratio` 0..1 and not falling; between points it is linear, beyond the ends flat. `weight` worth
    of one hit. `floor_hit_ratio` 0 = none. Raises ValueError for columns that do not fit or values out of range.
    """

    service: str
    bytes: npt.NDArray[np.int64]
    hit_ratio: npt.NDArray[np.float64]
    lookups_per_s: float
    weight: float
    minimum_bytes: int
    floor_hit_ratio: float
    current_bytes: int
    sure_hit_ratio: npt.NDArray[np.float64] | None = None
    """What each size gives at least, not falling and never above `hit_ratio`: by it a floor is held. None: by
    `hit_ratio` itself."""
    _points: tuple[list[int], list[float]] = field(init=False, repr=False)
    """The same as plain numbers: a curve has a dozen points, at which arrays cost more than they save."""

    def __post_init__(self) -> None:
        if len(self.bytes) != len(self.hit_ratio) or len(self.bytes) < 2:
            raise ValueError(f"curve of `{self.service}` needs at least two points, with bytes and hit ratio each")
        sizes, ratios = self.bytes.tolist(), self.hit_ratio.tolist()
        object.__setattr__(self, "_points", (sizes, ratios))
        if any(b <= a for a, b in pairwise(sizes)) or any(b - a < -1e-9 for a, b in pairwise(ratios)):
            raise ValueError(f"curve of `{self.service}` must rise in bytes and must not fall in hit ratio")
        if not (ratios[0] >= 0 and ratios[-1] <= 1 + 1e-9 and 0 <= self.floor_hit_ratio <= 1):
            raise ValueError(f"hit ratios and floor of `{self.service}` must lie within 0 to 1")
        sure = ratios if self.sure_hit_ratio is None else self.sure_hit_ratio.tolist()
        if len(sure) != len(ratios) or not all(
            0.0 <= low <= most + 1e-9 for low, most in zip(sure, ratios, strict=True)
        ):
            raise ValueError(f"what `{self.service}` may count on must lie within 0 and its hit ratio")
        if any(b - a < -1e-9 for a, b in pairwise(sure)):
            raise ValueError(f"what `{self.service}` may count on must not fall with more memory")
        if min(self.lookups_per_s, self.weight, self.minimum_bytes, self.current_bytes) < 0:
            raise ValueError(f"lookups, weight and memory of `{self.service}` must not be negative")

    def between(self, lowest: int, highest: int) -> tuple[list[float], list[float]]:
        """Return the two ends and all points between them: bytes, and the worth of the hits there."""
        sizes, ratios = self._points
        inner = slice(bisect_right(sizes, lowest), bisect_left(sizes, highest))
        points, hits = [float(lowest), *map(float, sizes[inner])], [self.at(lowest), *ratios[inner]]
        if highest > lowest:
            points.append(float(highest))
            hits.append(self.at(highest))
        return points, [ratio * self.worth for ratio in hits]

    def at(self, memory_bytes: float) -> float:
        """Return the hit ratio at that memory."""
        sizes, ratios = self._points
        place = bisect_right(sizes, memory_bytes)
        if place == 0:
            return ratios[0]
        if place == len(sizes):
            return ratios[-1]
        slope = (ratios[place] - ratios[place - 1]) / (sizes[place] - sizes[place - 1])
        return slope * (memory_bytes - sizes[place - 1]) + ratios[place - 1]

    @property
    def worth(self) -> float:
        """Return the weighted hits per second that one unit of hit ratio is worth."""
        return self.weight * self.lookups_per_s


@dataclass(frozen=True, slots=True)
class Share:
    """What a service gets, and why: hit ratios now and then, and the hits per second that one more MiB would bring it
    at the end.
    """

    service: str
    bytes: int
    current_bytes: int
    hit_ratio: float
    current_hit_ratio: float
    marginal_hits_per_s_per_mib: float
    reason: str


@dataclass(frozen=True, slots=True)
class Allocation:
    """The split, by service name; `hits_per_s` and its gain are weighted; `changed` is False if the current split
    stands.
    """

    shares: tuple[Share, ...]
    unassigned_bytes: int
    hits_per_s: float
    gain_hits_per_s: float
    fairness: float
    changed: bool

    def of(self, service: str) -> Share:
        """Return the share of a service; KeyError if it has none."""
        for share in self.shares:
            if share.service == service:
                return share
        raise KeyError(service)


@dataclass(frozen=True, slots=True)
class Infeasible:
    """No split satisfies all minimums and floors, and why."""

    reason: str
    needed_bytes: int


@dataclass(slots=True)
class _Position:
    """A service while memory is handed out: bounds, the hull above the lower bound, and what it has."""

    curve: Curve
    lowest: int
    highest: int
    hull_bytes: list[float]
    hull_hits: list[float]
    given: int


def jain_index(values: Sequence[float]) -> float:
    """Return Jain's fairness index (1984) of non-negative values: 1 = all equal, 1/n = one has everything; 1 if all
    are 0.
    """
    array = np.asarray(values, dtype=np.float64)
    if len(array) == 0 or np.any(array < 0):
        raise ValueError("fairness needs at least one value, and none below 0")
    squares = float((array**2).sum())
    return 1.0 if squares == 0 else float(array.sum()) ** 2 / (len(array) * squares)


def allocate(
    curves: Sequence[Curve], total_bytes: int, step_bytes: int, max_step_share: float | None = None
) -> Allocation | Infeasible:
    """Split `total_bytes` in steps of `step_bytes`; with `max_step_share` no service moves by more than that share of
    its memory.

    Ties go to the name that sorts first. Raises ValueError for duplicate names, no services or a step below 1.
    """
    ordered = sorted(curves, key=lambda curve: curve.service)
    if not ordered or len({curve.service for curve in ordered}) < len(ordered):
        raise ValueError("services to split memory between must be named, each once")
    if step_bytes < 1 or (max_step_share is not None and max_step_share < 0):
        raise ValueError("the step must be at least 1 byte and the step share not negative")
    positions = [_position(curve, total_bytes, max_step_share) for curve in ordered]
    needed = sum(position.lowest for position in positions)
    if needed > total_bytes:
        return Infeasible(
            f"minimums and floors need {needed} bytes but the budget is {total_bytes}, raise it or lower a minimum",
            needed,
        )
    current = [position.curve.current_bytes for position in positions]
    # The current split comes first, so that it stands where no other is better.
    splits = [current] if _fits(positions, current, total_bytes) else []
    splits += [_split(positions, total_bytes - needed, step_bytes, over_cliffs=over) for over in (True, False)]
    now = _worth(positions, current)
    best, then = splits[0], _worth(positions, splits[0])
    for split in splits[1:]:
        worth = _worth(positions, split)
        if worth > then * (1 + 1e-12):
            best, then = split, worth
    for position, given in zip(positions, best, strict=True):
        position.given = given
    left = total_bytes - sum(best)
    shares = tuple(_share(position) for position in positions)
    return Allocation(
        shares=shares,
        unassigned_bytes=left,
        hits_per_s=then,
        gain_hits_per_s=then - now,
        fairness=jain_index([share.hit_ratio for share in shares]),
        changed=any(share.bytes != share.current_bytes for share in shares),
    )


def _fits(positions: Sequence[_Position], split: Sequence[int], total_bytes: int) -> bool:
    """Say whether a split keeps to the budget and to every lower bound."""
    return sum(split) <= total_bytes and all(p.lowest <= given for p, given in zip(positions, split, strict=True))


def _worth(positions: Sequence[_Position], split: Sequence[int]) -> float:
    """Return the weighted hits per second of a split, on the curves themselves."""
    return sum(p.curve.worth * p.curve.at(given) for p, given in zip(positions, split, strict=True))


def _split(positions: list[_Position], left: int, step_bytes: int, *, over_cliffs: bool) -> list[int]:
    """Return what each service gets when `left` bytes above the lower bounds are handed out."""
    for position in positions:
        position.given = position.lowest
    left = _hand_out(positions, left, step_bytes, over_cliffs=over_cliffs)
    _give_back(positions, left)
    return [position.given for position in positions]


def _position(curve: Curve, total_bytes: int, max_step_share: float | None) -> _Position:
    """Work out the bounds of a service and its hull between them."""
    current_hit_ratio = curve.at(curve.current_bytes)
    lowest = curve.minimum_bytes
    if current_hit_ratio < curve.floor_hit_ratio:
        lowest = max(lowest, curve.current_bytes)
    elif curve.floor_hit_ratio > 0:
        lowest = max(lowest, _bytes_for(curve, curve.floor_hit_ratio))
    highest = max(int(curve.bytes[-1]), curve.current_bytes, lowest)
    if max_step_share is not None:
        reach = int(curve.current_bytes * max_step_share)
        lowest = max(lowest, curve.current_bytes - reach)
        highest = max(lowest, min(highest, curve.current_bytes + reach))
    highest = min(highest, max(lowest, total_bytes))
    points, hits = curve.between(lowest, highest)
    corners = _hull(points, hits)
    hull_bytes, hull_hits = [points[i] for i in corners], [hits[i] for i in corners]
    return _Position(curve, lowest, highest, hull_bytes, hull_hits, lowest)


def _bytes_for(curve: Curve, hit_ratio: float) -> int:
    """Return the least memory that surely gives at least `hit_ratio`, which the current memory does."""
    sure = curve.hit_ratio if curve.sure_hit_ratio is None else curve.sure_hit_ratio
    first = int(np.searchsorted(sure, hit_ratio, side="left"))
    if first == 0:
        return 0
    if first >= len(curve.bytes):
        return curve.current_bytes
    low, high = float(sure[first - 1]), float(sure[first])
    width = int(curve.bytes[first] - curve.bytes[first - 1])
    found = int(curve.bytes[first - 1]) + int(np.ceil(width * (hit_ratio - low) / (high - low)))
    return min(found, curve.current_bytes)


def _hull(x: Sequence[float], y: Sequence[float]) -> list[int]:
    """Return the corners of the upper concave hull of points with rising x (Andrew's monotone chain)."""
    corners: list[int] = []
    for i in range(len(x)):
        while len(corners) >= 2:
            a, b = corners[-2], corners[-1]
            if (y[b] - y[a]) * (x[i] - x[a]) >= (y[i] - y[a]) * (x[b] - x[a]):
                break
            corners.pop()
        corners.append(i)
    return corners


def _hand_out(positions: list[_Position], left: int, step_bytes: int, *, over_cliffs: bool) -> int:
    """Give memory along the steepest hull segments in whole steps; return what is left.

    A segment that the memory left does not reach over is begun only where the curve itself is as good as its hull
    there, or with `over_cliffs`.
    """
    segments: list[tuple[float, int, int]] = []
    for order, position in enumerate(positions):
        sizes, hits = position.hull_bytes, position.hull_hits
        for i in range(len(sizes) - 1):
            rise = hits[i + 1] - hits[i]
            if rise > 0:
                segments.append((-rise / (sizes[i + 1] - sizes[i]), order, i))
    segments.sort()
    for _, order, i in segments:
        position = positions[order]
        end = int(position.hull_bytes[i + 1])
        # A corner between two steps is passed by the step that begins before it, as long as the bounds allow.
        steps = -(-(end - position.given) // step_bytes)
        wanted = min(steps * step_bytes, position.highest - position.given)
        if wanted > left:
            wanted = left // step_bytes * step_bytes
            if not over_cliffs and _below_hull(position, position.given + wanted):
                continue
        if wanted <= 0:
            continue
        position.given += wanted
        left -= wanted
        if left == 0:
            break
    return left


def _below_hull(position: _Position, memory_bytes: int) -> bool:
    hull = float(np.interp(memory_bytes, position.hull_bytes, position.hull_hits))
    return position.curve.worth * position.curve.at(memory_bytes) < hull * (1 - 1e-9)


def _give_back(positions: list[_Position], left: int) -> int:
    """Let services keep memory that they have and nobody else gains from: moving it would be a change for nothing."""
    for position in positions:
        kept = min(max(0, position.curve.current_bytes - position.given), left)
        position.given += kept
        left -= kept
    return left


def _share(position: _Position) -> Share:
    curve, given = position.curve, position.given
    ahead = (curve.at(given + _MIB) - curve.at(given)) * curve.lookups_per_s
    return Share(
        service=curve.service,
        bytes=given,
        current_bytes=curve.current_bytes,
        hit_ratio=curve.at(given),
        current_hit_ratio=curve.at(curve.current_bytes),
        marginal_hits_per_s_per_mib=ahead,
        reason=_reason(position, ahead),
    )


def _reason(position: _Position, ahead: float) -> str:
    curve, given = position.curve, position.given
    margin = f"one more MiB would bring {ahead:.3g} hits/s"
    if given == curve.current_bytes:
        return f"keeps its memory: {margin}"
    gained = (curve.at(given) - curve.at(curve.current_bytes)) * curve.lookups_per_s
    if given > curve.current_bytes:
        limit = ", which is as far as one round may go" if given == position.highest and ahead > 0 else ""
        return f"gains {gained:.3g} hits/s{limit}: {margin}"
    bound = ""
    if given == position.lowest:
        bound = ", down to its minimum or floor"
    return f"gives up {-gained:.3g} hits/s that are worth more elsewhere{bound}: {margin}"
