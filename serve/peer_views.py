"""How we stand with ACGS's HTTP services and its blackboard, for the health check, the agents' view and Prometheus.

A peer that is down takes nothing of ours away, so it is `degraded` and never unhealthy. Pure functions of the state.
INVARIANT: nothing here names an address.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from pydantic import BaseModel, Field

from cachewarden.peer_messages import PeerHealth
from cachewarden.protocol import FleetState

__all__ = ["DEGRADED", "PeerView", "peer_components", "peer_metrics", "peers_view"]

DEGRADED: Final = "degraded"


class PeerView(BaseModel):
    """One HTTP peer, or the blackboard. Lag is null where nothing is delivered to it, or where it is not known."""

    name: str
    healthy: bool
    detail: str
    circuit: str = Field(description="closed, open or half_open")
    lag_records: int | None
    lag_s: float | None = Field(description="age of the oldest record that is not delivered")
    done: int = Field(description="records delivered, opinions given or greetings answered, since the agent's start")
    failures: int
    violations: int = Field(description="answers and records with another constitutional hash")
    bad_records: int = Field(0, description="records on the blackboard that could not be used, each counted once")
    counts: dict[str, int] = Field(
        default_factory=dict,
        description="on the blackboard: plans, tasks and conflicts, now or since the agent's start",
    )
    conflicts: list[str] = Field(
        default_factory=list, description="the newest conflicts with plans of other agents: outcome, what, who decided"
    )


def peers_view(state: FleetState) -> list[PeerView]:
    """Return all peers that are configured, by name."""
    return [
        PeerView(
            name=peer.name,
            healthy=peer.healthy,
            detail=peer.detail,
            circuit=peer.circuit,
            lag_records=peer.lag_records,
            lag_s=None if peer.lag_ms is None else peer.lag_ms / 1000,
            done=peer.done,
            failures=peer.failures,
            violations=peer.violations,
            bad_records=peer.bad_records,
            counts=dict(peer.counts),
            conflicts=list(peer.conflicts),
        )
        for _, peer in sorted(state.peers.items())
    ]


def peer_components(state: FleetState) -> dict[str, str]:
    """Return each peer as a component of the health check."""
    return {
        f"peer:{name}": "healthy" if peer.healthy else f"{DEGRADED}: {peer.detail}"
        for name, peer in sorted(state.peers.items())
    }


_GAUGES: Final[dict[str, tuple[str, Callable[[PeerHealth], float | None]]]] = {
    "cachewarden_peer_healthy": ("1 if an HTTP peer is as it should be", lambda p: float(p.healthy)),
    "cachewarden_peer_circuit_open": ("1 while an HTTP peer is not asked", lambda p: float(p.circuit == "open")),
    "cachewarden_delivery_lag_records": ("journal records not delivered", lambda p: p.lag_records),
    "cachewarden_delivery_lag_seconds": (
        "age of the oldest journal record that is not delivered",
        lambda p: None if p.lag_ms is None else p.lag_ms / 1000,
    ),
}
_COUNTERS: Final[dict[str, tuple[str, Callable[[PeerHealth], float]]]] = {
    "cachewarden_peer_calls_done": ("calls that an HTTP peer answered as it should", lambda p: float(p.done)),
    "cachewarden_peer_failures": ("calls that failed", lambda p: float(p.failures)),
    "cachewarden_peer_hash_violations": (
        "answers and records with another constitutional hash",
        lambda p: float(p.violations),
    ),
    "cachewarden_peer_bad_records": ("records that could not be used", lambda p: float(p.bad_records)),
}


def peer_metrics(state: FleetState) -> list[Metric]:
    """Return the peers as Prometheus metrics; none where none is configured."""
    if not state.peers:
        return []
    metrics: list[Metric] = []
    for name, (text, value_of) in _GAUGES.items():
        gauge = GaugeMetricFamily(name, text, labels=["peer"])
        for peer in state.peers.values():
            value = value_of(peer)
            if value is not None:
                gauge.add_metric([peer.name], float(value))
        metrics.append(gauge)
    for name, (text, count_of) in _COUNTERS.items():
        counter = CounterMetricFamily(name, text, labels=["peer"])
        for peer in state.peers.values():
            counter.add_metric([peer.name], count_of(peer))
        metrics.append(counter)
    figures = GaugeMetricFamily(
        "cachewarden_blackboard", "plans, tasks and conflicts of other agents, by what is counted", labels=["what"]
    )
    for peer in state.peers.values():
        for what, number in sorted(peer.counts.items()):
            figures.add_metric([what], float(number))
    metrics.append(figures)
    return metrics
