"""Whether keys expire together, and by how much TTLs have to be spread so that they do not.

Keys that were loaded together with equal TTLs expire together, and whoever asks for them then loads them together.
From the remaining TTLs of sampled residents this module finds the busiest second ahead, says whether chance would do
the same, and which jitter removes the peak. Jitter shortens lives (TTL minus a uniform draw), so no key outlives its
owner's staleness. It sees only the second until which a key lives as it stands now: reloads that come later are not
in it.

INVARIANT: a jitter that is returned keeps the expected share of the busiest second within the bound; no peak is
reported that independent deadlines would show one time in ten.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cachewarden.estimate import Estimate

__all__ = ["Jitter", "Stampede", "busiest_share", "jitter_below", "peak_share_with_jitter", "stampede_risk"]

_SECOND_MS = 1_000
_DEADLINES_MIN = 50
_FALSE_ALARM = 0.1
_AROUND_MS = 10_000
"""On each side of the busiest second: short TTLs among long ones make some minutes fuller, which is no alignment."""
_GROWTH = 1.15
"""Steps of the search for a jitter: the peak does not fall evenly with it, so bisection could miss a way."""

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Stampede:
    """The busiest second of what is ahead.

    `busiest_share` of the sampled deadlines that fall into it, with its 90 % interval; `begins_ms` from now;
    `mean_share` of a second if deadlines were spread evenly. `loads_per_s_peak` and `loads_per_s_mean`: expected loads
    of the whole cache. `chance_share` of the sampled deadlines may fall into one second by chance (one time in ten
    more); `aligned`: more than that do.
    """

    deadlines: int
    horizon_ms: int
    begins_ms: int
    busiest_share: Estimate
    mean_share: float
    chance_share: float
    loads_per_s_peak: Estimate
    loads_per_s_mean: float
    aligned: bool
    reason: str

    @property
    def factor(self) -> float:
        """Return the busiest second over the mean one."""
        return self.busiest_share.value / self.mean_share


@dataclass(frozen=True, slots=True)
class Jitter:
    """TTLs shortened by a uniform draw from 0..`jitter_ms`; `peak_share` is then expected in the busiest second."""

    jitter_ms: int
    peak_share: float


def stampede_risk(
    remaining_ms: npt.NDArray[np.int64], keys_with_ttl: int, *, read_again_share: float = 1.0
) -> Stampede | str:
    """Return the risk, or in words why the sample cannot carry an answer.

    `remaining_ms` of sampled residents with a TTL (>= 0), `keys_with_ttl` of the whole cache; `read_again_share`
    (0..1) of the keys that expire which are asked for again and so loaded, 1 = the worst case.
    """
    if not 0.0 <= read_again_share <= 1.0 or keys_with_ttl < 0:
        raise ValueError(f"`{read_again_share}` of `{keys_with_ttl}` keys is no share of keys, use 0 to 1 and a count")
    deadlines = np.sort(remaining_ms[remaining_ms >= 0]).astype(np.int64)
    n = len(deadlines)
    if n < _DEADLINES_MIN:
        return f"{n} sampled keys have a TTL, {_DEADLINES_MIN} are needed to tell a peak from chance"
    horizon_ms = max(int(deadlines[-1]) + 1, _SECOND_MS)
    counts = np.searchsorted(deadlines, deadlines + _SECOND_MS, side="left") - np.arange(n)
    first = int(np.argmax(counts))
    busiest = int(counts[first])
    mean_share = _SECOND_MS / horizon_ms
    by_chance = _busiest_by_chance(n, _usual_in_a_second(deadlines, int(deadlines[first]), busiest, horizon_ms))
    share = Estimate.of_share(busiest, n)
    loads = keys_with_ttl * read_again_share
    aligned = busiest > by_chance
    compared = "more than" if aligned else "no more than"
    return Stampede(
        deadlines=n,
        horizon_ms=horizon_ms,
        begins_ms=int(deadlines[first]),
        busiest_share=share,
        mean_share=mean_share,
        chance_share=by_chance / n,
        loads_per_s_peak=Estimate(share.value * loads, share.low * loads, share.high * loads),
        loads_per_s_mean=mean_share * loads,
        aligned=aligned,
        reason=f"{busiest} of {n} sampled keys expire within one second, {compared} the {by_chance} that chance allows",
    )


def busiest_share(deadlines_ms: Sequence[int]) -> float | None:
    """Return the share (0..1) of deadlines in their busiest second; None for fewer than 50, which tell nothing."""
    if len(deadlines_ms) < _DEADLINES_MIN:
        return None
    return peak_share_with_jitter(np.array(deadlines_ms, dtype=np.int64), 0)


def _usual_in_a_second(deadlines: npt.NDArray[np.int64], begins_ms: int, busiest: int, horizon_ms: int) -> float:
    """Return the deadlines that an unremarkable second holds there: the mean, or that of its surroundings if fuller."""
    low, high = max(0, begins_ms - _AROUND_MS), min(horizon_ms, begins_ms + _SECOND_MS + _AROUND_MS)
    around = int(np.searchsorted(deadlines, high) - np.searchsorted(deadlines, low)) - busiest
    seconds_around = (high - low) / _SECOND_MS - 1.0
    local = around / seconds_around if seconds_around >= 1.0 else 0.0
    return max(len(deadlines) * min(1.0, _SECOND_MS / horizon_ms), local)


def _busiest_by_chance(n: int, others: float) -> int:
    """Return a number of deadlines in the busiest second that independent ones exceed at most one time in ten.

    Of n windows, each beginning at a deadline, one holds k others with a Poisson tail (union bound, so a little high).
    """
    if others >= n - 1:
        return n
    allowed = _FALSE_ALARM / n
    term = math.exp(-others)
    below, k = term, 0
    while 1.0 - below > allowed and k < n:
        k += 1
        term *= others / k
        below += term
    return k + 1


def peak_share_with_jitter(remaining_ms: npt.NDArray[np.int64], jitter_ms: int) -> float:
    """Return the share of the sampled deadlines expected in the busiest second if each were moved earlier by a uniform
    draw from 0..`jitter_ms`; 0 = as they are.
    """
    deadlines = np.sort(remaining_ms[remaining_ms >= 0]).astype(np.float64)
    if len(deadlines) == 0 or jitter_ms < 0:
        raise ValueError("a peak needs at least one deadline and a jitter of at least 0 ms")
    if jitter_ms == 0:
        counts = np.searchsorted(deadlines, deadlines + _SECOND_MS, side="left") - np.arange(len(deadlines))
        return float(counts.max()) / len(deadlines)
    sums = np.concatenate([[0.0], np.cumsum(deadlines)])
    # The mass of a moving window is piecewise linear: it peaks where an edge of it meets an end of some key's range.
    edges = np.concatenate([deadlines, deadlines - jitter_ms])
    begins = np.unique(np.concatenate([edges, edges - _SECOND_MS]))
    mass = _expired_by(begins + _SECOND_MS, deadlines, sums, jitter_ms) - _expired_by(
        begins, deadlines, sums, jitter_ms
    )
    return float(mass.max()) / len(deadlines)


def _expired_by(at_ms: _Floats, deadlines: _Floats, sums: _Floats, jitter_ms: int) -> _Floats:
    """Return the expected number of keys that have expired by each time."""
    surely = np.searchsorted(deadlines, at_ms, side="right")
    perhaps = np.searchsorted(deadlines, at_ms + jitter_ms, side="right")
    ahead: _Floats = sums[perhaps] - sums[surely]
    count = perhaps - surely
    expired: _Floats = surely + (count * (at_ms + jitter_ms) - ahead) / jitter_ms
    return expired


def jitter_below(remaining_ms: npt.NDArray[np.int64], peak_share: float, longest_ms: int) -> Jitter | str:
    """Return the least jitter (to 15 %) that brings the busiest second to at most `peak_share` (0..1), or in words why
    none up to `longest_ms` does.

    0 ms where the deadlines are that well spread already.
    """
    if not 0.0 < peak_share <= 1.0 or longest_ms < 0:
        raise ValueError(f"peak share `{peak_share}` must be within 0 to 1 and the longest jitter not negative")
    if not np.any(remaining_ms >= 0):
        return "no sampled key has a TTL, there is nothing to spread"
    found = peak_share_with_jitter(remaining_ms, 0)
    if found <= peak_share:
        return Jitter(0, found)
    step = float(_SECOND_MS)
    tried: list[int] = []
    while step < longest_ms:
        tried.append(math.ceil(step))
        step *= _GROWTH
    if longest_ms > 0:
        tried.append(longest_ms)
    for jitter_ms in tried:
        found = peak_share_with_jitter(remaining_ms, jitter_ms)
        if found <= peak_share:
            return Jitter(jitter_ms, found)
    return f"even {longest_ms} ms of jitter leave {found:.4f} of the keys in the busiest second, permit more of it"
