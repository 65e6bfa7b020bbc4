"""A number that knows how sure it is: the value and its 90 % interval.

Every predicted quantity in cachewarden is an `Estimate`; a bare float is a measurement.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Estimate"]

# 5 % and 95 % of a normal distribution.
_Z90 = 1.645


@dataclass(frozen=True, slots=True)
class Estimate:
    """A predicted value with the interval that should hold the outcome nine times in ten.

    INVARIANT: low <= value <= high, all finite.
    """

    value: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.value) and math.isfinite(self.high)):
            raise ValueError(f"an estimate must be finite, got `{self.low}`, `{self.value}`, `{self.high}`")
        if not self.low <= self.value <= self.high:
            raise ValueError(f"an estimate needs low <= value <= high, got `{self.low}`, `{self.value}`, `{self.high}`")

    @classmethod
    def around(cls, value: float, margin: float, floor: float = -math.inf, ceiling: float = math.inf) -> Estimate:
        """Return `value` plus or minus `margin`, with all three clipped to [floor, ceiling]."""

        def clip(x: float) -> float:
            return min(max(x, floor), ceiling)

        return cls(clip(value), clip(value - abs(margin)), clip(value + abs(margin)))

    @classmethod
    def of_share(cls, part: int, whole: int) -> Estimate:
        """Return part / whole with Wilson's 90 % interval (1927); raises ValueError unless 0 <= part <= whole > 0."""
        if not 0 <= part <= whole or whole < 1:
            raise ValueError(f"`{part}` of `{whole}` is no share")
        value, squared = part / whole, _Z90**2 / whole
        centre = (value + squared / 2.0) / (1.0 + squared)
        margin = _Z90 / (1.0 + squared) * math.sqrt(value * (1.0 - value) / whole + squared / (4.0 * whole))
        return cls(value, min(max(centre - margin, 0.0), value), max(min(centre + margin, 1.0), value))

    def stretched(self, factor: float, floor: float = -math.inf, ceiling: float = math.inf) -> Estimate:
        """Return the same value with both halves of the interval `factor` (> 0) times as wide; ends that a factor above
        1 pushes out are clipped."""
        if not factor > 0.0:
            raise ValueError(f"a factor of `{factor}` would leave no interval, use one above 0")
        if factor == 1.0:
            return self
        low = self.value - factor * (self.value - self.low)
        high = self.value + factor * (self.high - self.value)
        if factor < 1.0:
            return Estimate(self.value, min(low, self.value), max(high, self.value))
        return Estimate(self.value, min(max(low, floor), self.low), max(min(high, ceiling), self.high))

    def holds(self, outcome: float) -> bool:
        """Say whether a measured outcome fell inside the interval."""
        return self.low <= outcome <= self.high

    def minus(self, other: Estimate) -> Estimate:
        """Return the difference as if the errors were independent (root of the sum of squares)."""
        value = self.value - other.value
        down = math.hypot(self.value - self.low, other.high - other.value)
        up = math.hypot(self.high - self.value, other.value - other.low)
        return Estimate(value, value - down, value + up)
