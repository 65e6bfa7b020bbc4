"""How sure a figure from a spatial sample is: the same figure from disjoint groups of the sampled keys.

Each group is a sample of its own, a few times smaller, and is put through the same replay with memory scaled alike. The
spread of the groups is the sampling error, whatever the workload's skew; the distance between their mean and the whole
sample's figure says how much the scale itself matters. Differences between two configurations are taken within each
group, so that what both have in common cancels (paired). It decides nothing.

INVARIANT: the groups are disjoint and together the whole sample; a difference of something to itself has no spread.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from cachewarden.cachemodel.trace import AccessTrace

__all__ = ["GROUPS", "in_groups", "sampling_margin"]

GROUPS = 8
# 95 % point of Student's t with GROUPS - 1 degrees of freedom.
_T90 = 1.895
_GROUPS_MIN = 4
# What the spread of eight groups misses (it is itself an estimate), times the root of the sampled keys. Calibrated with
# `benchmarks/sample_accuracy.py` on half of its traces and checked on the others.
_REST_TIMES_ROOT_KEYS = 0.15
# Hash bits that neither the spatial filter (the lowest 24) nor `distinct_keys` (28 to 51) use.
_SHIFT = 56


def in_groups(trace: AccessTrace) -> list[AccessTrace]:
    """Return the rows of each group of keys, told apart by their hash; a group may be empty."""
    group = (trace.key >> np.uint64(_SHIFT)) % np.uint64(GROUPS)
    return [trace.rows(group == np.uint64(number)) for number in range(GROUPS)]


def sampling_margin(whole: float, groups: npt.NDArray[np.float64], keys: int, rate: float) -> float:
    """Return half the width of the 90 % interval of a figure from `keys` keys, a share `rate` (0..1] of all.

    `whole`: the figure of the whole sample, `groups`: of each group. All keys have no sampling error. Fewer than four
    groups carry no interval: the margin then is 1, which for a ratio means anything.
    """
    if rate >= 1.0:
        return 0.0
    if len(groups) < _GROUPS_MIN or keys < 1:
        return 1.0
    unseen = math.sqrt(1.0 - rate)
    spread = _T90 * unseen * float(groups.std(ddof=1)) / math.sqrt(len(groups))
    return math.hypot(spread, float(groups.mean()) - whole, _REST_TIMES_ROOT_KEYS * unseen / math.sqrt(keys))
