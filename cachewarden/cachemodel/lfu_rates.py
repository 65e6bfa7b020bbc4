"""How often a key is used, from the LFU counter that the server keeps of it.

The counter rises with probability 1 / (n f + 1) at each access, n being how far it is above its initial 5 and f
`lfu-log-factor` (LFULogIncr, evict.c of Redis, lrulfu.c of Valkey); 255 is its end. It falls by one for each
`lfu-decay-time` minutes since the last access (LFUDecrAndReturn). Each access begins that time anew, and it counts
whole minutes: at 1 a key in use loses one a minute; at 2 and more, one that is used every minute loses nothing; 0
never loses.

So the time from 5 to a counter c at a rate r is the sum over n of 1 / (r / (n f + 1) - d), d the decay per minute, and
the rate is found from the time that the counter has had. A key that came later than that has a higher rate than what
is told, and one that is used less than lately a lower one; neither can be told from one look.

INVARIANT: the rate grows with the counter; a counter of 5 and less is told as anything from nothing to one access a
minute, one of 255 as at least its rate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from cachewarden.estimate import Estimate

__all__ = ["LFU_INITIAL", "LFU_MAX", "MORE_THAN_ANY", "LfuLaw", "rate_of_counter"]

LFU_INITIAL: Final = 5
LFU_MAX: Final = 255
MORE_THAN_ANY: Final = 1e9
"""Accesses per second; the end of the interval of a counter at its own end, which tells no bound."""
_Z_90: Final = 1.645
_STEPS: Final = 60
_MINUTE_MS: Final = 60_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LfuLaw:
    """The parameters of one server: `log_factor` >= 0, `decay_min` >= 0; `counted_ms` > 0 is the longest time that a
    counter can have been counting. Raises ValueError for others."""

    log_factor: int
    decay_min: int
    counted_ms: int

    def __post_init__(self) -> None:
        if self.log_factor < 0 or self.decay_min < 0 or self.counted_ms <= 0:
            raise ValueError(
                f"no law of a counter: log factor `{self.log_factor}`, decay `{self.decay_min}` minutes, counted "
                f"`{self.counted_ms}` ms"
            )

    @property
    def decays_per_min(self) -> float:
        """Of a key that is used at least once a minute."""
        return 1.0 if self.decay_min == 1 else 0.0

    @property
    def words(self) -> str:
        """What a rate rests on."""
        return (
            f"as rates (lfu-log-factor {self.log_factor}, lfu-decay-time {self.decay_min}) of keys that were there for "
            f"all of {self.counted_ms / 1000:.0f} s; one that came later is hotter than told"
        )


def rate_of_counter(counter: int, law: LfuLaw) -> Estimate:
    """Return accesses per second of a key by its counter (0..255), with the 90 % interval of the counter's own chance.

    The counter's standard deviation is about the root of half its height above 5: a third of it while it rises, a half
    where it has settled against its decay (both from the drift and spread of the law); half a step is rounding.
    """
    if not 0 <= counter <= LFU_MAX:
        raise ValueError(f"an LFU counter is 0 to 255, not `{counter}`")
    height = counter - LFU_INITIAL
    if height <= 0:
        return Estimate(0.0, 0.0, 1.0 / 60.0)
    spread = _Z_90 * math.sqrt(height / 2.0) + 0.5
    value, low, high = (_rate_per_min(h, law) / 60.0 for h in (height, height - spread, height + spread))
    return Estimate(value, low, MORE_THAN_ANY if counter == LFU_MAX else high)


def _rate_per_min(height: float, law: LfuLaw) -> float:
    """Return the rate at which the expected counter is `height` above 5 after `counted_ms`; by bisection, since the
    time to get there falls with the rate."""
    if height <= 0.0:
        return 0.0
    minutes, decay, f = law.counted_ms / _MINUTE_MS, law.decays_per_min, law.log_factor
    steps = [float(n) for n in range(int(height))] + ([height - 1.0] if height < 1.0 else [])
    parts = [1.0] * int(height) + ([height] if height < 1.0 else [])
    if height >= 1.0 and height > int(height):
        steps.append(float(int(height)))
        parts.append(height - int(height))
    costs = [max(step, 0.0) * f + 1.0 for step in steps]
    accesses = sum(part * cost for part, cost in zip(parts, costs, strict=True))
    # Without any decay it needs so many accesses; with it, more, and never fewer than hold it where it is.
    low = max(accesses / minutes, decay * costs[-1])
    high = accesses / minutes + decay * costs[-1]
    for _ in range(_STEPS if decay else 0):
        middle = (low + high) / 2.0
        gains = [middle / cost - decay for cost in costs]
        needed = sum(part / gain if gain > 0.0 else math.inf for part, gain in zip(parts, gains, strict=True))
        low, high = (middle, high) if needed > minutes else (low, middle)
    return high
