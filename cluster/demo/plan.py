"""What a driver process is told: which servers, which traffic, from which seed; one JSON file.

It holds passwords of the demo's servers, so it is written for its owner only. INVARIANT: a plan that was
saved loads as the same plan.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cachewarden.errors import ConfigurationError
from simulation.workload import KeyPrefix, Past, WorkloadSpec

__all__ = ["DriverPlan", "PlannedService", "TracePlan", "load_plan", "save_plan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TracePlan:
    """A trace file to play instead of a workload.

    rate_per_s paces formats without times; value_bytes stands in for unknown sizes, ttl_ms for missing TTLs.
    """

    service: str
    path: str
    rate_per_s: float | None = None
    ttl_ms: int = 0
    value_bytes: int = 512
    repeat: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedService:
    """One service: fleet name to server URL, and where its requests come from."""

    name: str
    urls: Mapping[str, str]
    traffic: WorkloadSpec | TracePlan


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverPlan:
    """Everything that a driver needs.

    stats_path: a file to append to, `-` for standard output. duration_s: None = until told to stop. A tick sends what
    is due; arrivals later than `late_ms` are dropped, and so is a server's share once `pending_limit` commands or
    `behind_ms` are outstanding there.
    """

    seed: int
    services: tuple[PlannedService, ...]
    stats_path: str
    duration_s: float | None = None
    prefill: bool = True
    tick_ms: int = 20
    late_ms: int = 500
    pending_limit: int = 5_000
    behind_ms: int = 1_000


def save_plan(plan: DriverPlan, path: Path) -> None:
    """Write the plan, readable for the owner only."""
    path.touch(mode=0o600)
    path.write_text(json.dumps(asdict(plan), indent=1), encoding="utf-8")


def load_plan(path: Path) -> DriverPlan:
    """Read a plan; raises ConfigurationError that names the file and what is wrong."""
    try:
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        services = tuple(
            PlannedService(name=s["name"], urls=s["urls"], traffic=_traffic(s["traffic"])) for s in raw.pop("services")
        )
        return DriverPlan(**raw, services=services)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"the driver's plan cannot be used: {error!r}", path=str(path)) from None


def _traffic(raw: dict[str, Any]) -> WorkloadSpec | TracePlan:
    if "path" in raw:
        return TracePlan(**raw)
    return WorkloadSpec(
        **{
            **raw,
            "prefixes": tuple(KeyPrefix(**prefix) for prefix in raw["prefixes"]),
            "size_limits_bytes": tuple(raw["size_limits_bytes"]),
            "past": Past(**raw["past"]),
        }
    )
