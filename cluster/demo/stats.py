"""What the load driver has counted: values that can be read, subtracted and written as one JSON line.

Counters are cumulative since the load began (the prefill is not counted). INVARIANT: lookups = hits + misses; what
was dropped or hit a broken connection is no lookup.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

__all__ = ["LATENCY_BOUNDS_US", "DriverStats", "ServiceCounters", "read_last_stats"]

LATENCY_BOUNDS_US: tuple[int, ...] = tuple(round(50 * 2 ** (step / 2)) for step in range(32))
"""Upper bounds of the latency histogram, 50 us to 2.3 s in steps of the square root of 2; one more bucket takes what
is slower."""

_TAIL_BYTES = 65_536


@dataclass(slots=True, kw_only=True)
class ServiceCounters:
    """Counters of one service in one fleet, as the client saw them.

    loads: values stored after a miss; writes: stored without asking; refused: either, refused by a full server (OOM);
    errors: other error answers and requests lost with a connection; dropped: arrivals not sent since the server was
    too far behind.
    """

    lookups: int = 0
    hits: int = 0
    loads: int = 0
    writes: int = 0
    refused: int = 0
    errors: int = 0
    dropped: int = 0
    latency_counts: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BOUNDS_US) + 1))

    @property
    def hit_ratio(self) -> float | None:
        """Hits per lookup; None without lookups."""
        return self.hits / self.lookups if self.lookups else None

    def add_latency(self, latency_us: float, requests: int) -> None:
        """Count `requests` lookups that took `latency_us` each."""
        self.latency_counts[bisect_left(LATENCY_BOUNDS_US, latency_us)] += requests

    def latency_us(self, quantile: float) -> int | None:
        """Return the upper bound of the bucket in which the quantile (0..1) lies; None without lookups."""
        total = sum(self.latency_counts)
        if total == 0:
            return None
        seen = 0
        for bound, count in zip((*LATENCY_BOUNDS_US, LATENCY_BOUNDS_US[-1] * 2), self.latency_counts, strict=True):
            seen += count
            if seen >= quantile * total:
                return bound
        return LATENCY_BOUNDS_US[-1] * 2

    def minus(self, earlier: ServiceCounters) -> ServiceCounters:
        """Return what was counted since `earlier`."""
        plain = {name: getattr(self, name) - getattr(earlier, name) for name in _PLAIN}
        counts = [a - b for a, b in zip(self.latency_counts, earlier.latency_counts, strict=True)]
        return ServiceCounters(**plain, latency_counts=counts)

    def plus(self, other: ServiceCounters) -> ServiceCounters:
        """Return both together."""
        plain = {name: getattr(self, name) + getattr(other, name) for name in _PLAIN}
        counts = [a + b for a, b in zip(self.latency_counts, other.latency_counts, strict=True)]
        return ServiceCounters(**plain, latency_counts=counts)


_PLAIN = tuple(f.name for f in fields(ServiceCounters) if f.name != "latency_counts")


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverStats:
    """One reading of the driver.

    phase: `prefill`, `load` or `done`; elapsed_ms: since the load began; lag_ms: the worst lateness of the last
    second; late: arrivals that nobody sent since the driver itself was too late; cpu_share: of one core, of the
    driver's process, in the last second. `fleets`: fleet name to service name to counters.
    """

    at_ms: int
    phase: str
    elapsed_ms: int = 0
    lag_ms: float = 0.0
    late: int = 0
    cpu_share: float = 0.0
    prefill_ms: int = 0
    fleets: Mapping[str, Mapping[str, ServiceCounters]] = field(default_factory=dict)

    def fleet(self, name: str) -> ServiceCounters:
        """Return the sum over the services of a fleet; zeros for an unknown one."""
        total = ServiceCounters()
        for counters in self.fleets.get(name, {}).values():
            total = total.plus(counters)
        return total

    def since(self, earlier: DriverStats) -> DriverStats:
        """Return this reading with the counters of the time since `earlier` only."""
        fleets = {
            fleet: {
                name: counters.minus(earlier.fleets.get(fleet, {}).get(name, ServiceCounters()))
                for name, counters in services.items()
            }
            for fleet, services in self.fleets.items()
        }
        return DriverStats(
            at_ms=self.at_ms,
            phase=self.phase,
            elapsed_ms=self.elapsed_ms - earlier.elapsed_ms,
            lag_ms=self.lag_ms,
            late=self.late - earlier.late,
            cpu_share=self.cpu_share,
            prefill_ms=self.prefill_ms,
            fleets=fleets,
        )

    def to_json(self) -> str:
        """Return one line without its end."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @staticmethod
    def from_json(line: str) -> DriverStats:
        """Read what `to_json` wrote; raises ValueError for anything else."""
        try:
            raw: dict[str, Any] = json.loads(line)
            fleets = {
                fleet: {name: ServiceCounters(**counters) for name, counters in services.items()}
                for fleet, services in raw.pop("fleets").items()
            }
            return DriverStats(**raw, fleets=fleets)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"`{line[:80]}` is no line of driver statistics: {error}") from None


def read_last_stats(path: Path) -> DriverStats | None:
    """Return the newest complete line of a statistics file; None if there is none yet."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            complete = file.read().rpartition(b"\n")[0]
    except OSError:
        return None
    newest = complete.rpartition(b"\n")[2]
    return DriverStats.from_json(newest.decode("utf-8")) if newest else None
