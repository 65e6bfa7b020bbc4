"""Seeded dice: everything that is left to chance in a simulation comes from here.

SplitMix64 (Steele, Lea, Flood, OOPSLA'14) in plain integers: the same on every machine and version, and cheap to fork.
Each part of a world has dice of its own, named after it, so that one part that rolls once more shifts no other.

It decides nothing. INVARIANT: the same seed and name give the same rolls.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

__all__ = ["Dice"]

T = TypeVar("T")
_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
_TO_UNIT = 2.0**-53
_ROLLS_MIN = 32
_ROLLS_MAX = 512
"""How many rolls are made at once: few at first, as many parts of a world roll hardly ever."""
_STEPS = np.arange(1, _ROLLS_MAX + 1, dtype=np.uint64) * np.uint64(_GAMMA)
_30, _27, _31 = np.uint64(30), np.uint64(27), np.uint64(31)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def _mixed(value: int) -> int:
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


class Dice:
    """One sequence of rolls."""

    __slots__ = ("_count", "_rolled", "_seed", "_state")

    def __init__(self, seed: int) -> None:
        self._seed = seed & _MASK
        self._state = _mixed(self._seed)
        self._rolled: list[int] = []
        """Rolls that were made already, the next one last."""
        self._count = _ROLLS_MIN

    def fork(self, name: str) -> Dice:
        """Return dice of their own for `name`; how often these were rolled does not matter."""
        return Dice(_mixed(self._seed ^ (zlib.crc32(name.encode()) << 17)) ^ 0x5851F42D4C957F2D)

    def _next(self) -> int:
        return self._rolled.pop() if self._rolled else self._roll_on()

    def _roll_on(self) -> int:
        """Make the next rolls at once, as worlds roll a hundred thousand times an hour; return the first of them."""
        count = self._count
        value = np.uint64(self._state) + _STEPS[:count]
        self._state = (self._state + count * _GAMMA) & _MASK
        self._count = min(2 * count, _ROLLS_MAX)
        value = (value ^ (value >> _30)) * _FIRST
        value = (value ^ (value >> _27)) * _SECOND
        self._rolled = (value ^ (value >> _31))[::-1].tolist()
        return self._rolled.pop()

    def unit(self) -> float:
        """Return a number in [0, 1)."""
        return (self._next() >> 11) * _TO_UNIT

    def chance(self, share: float) -> bool:
        """Return True with probability `share` (0..1)."""
        return share > 0.0 and self.unit() < share

    def between(self, low: int, high: int) -> int:
        """Return a whole number in low..high, both included; raises ValueError where high < low."""
        if high < low:
            raise ValueError(f"nothing lies between `{low}` and `{high}`")
        rolled = self._rolled
        return low + (rolled.pop() if rolled else self._roll_on()) % (high - low + 1)

    def uniform(self, low: float, high: float) -> float:
        """Return a number in [low, high)."""
        return low + (high - low) * self.unit()

    def pick(self, options: Sequence[T]) -> T:
        """Return one of `options`; raises ValueError where there is none."""
        return options[self.between(0, len(options) - 1)]
