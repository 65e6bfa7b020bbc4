"""What is so at the moment of a scrape, as gauges: the newest fleet state, and how this replica stands.

It translates and never measures. INVARIANT: what is not known has no sample, so that absence alerts can see it.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cachewarden.messages import CONSTITUTIONAL_HASH, Execution, ExecutionState, Message
from cachewarden.observation import Snapshot
from cachewarden.protocol import FleetState
from serve.errors import SERVICE_NAME
from serve.peer_views import peer_metrics

__all__ = ["Moment", "MomentGauges"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What is rendered; `refused` counts since the start, by reason, requests for which there was no decision."""

    state: FleetState | None
    now_ms: int
    compliance_rate: float | None = None
    state_age_s: float | None = None
    """For how long the coordinator has not confirmed the state; None before the first time."""
    journal_waiting: int = 0
    """Records of this replica that wait for their turn to be written."""
    deciding: int = 0
    waiting: int = 0
    """Requests of this replica that wait for a cache or a cycle."""
    refused: Mapping[str, int] = field(default_factory=dict)


class MomentGauges(Collector):
    """Collects from `moment`; nothing before it is set."""

    def __init__(self) -> None:
        self.moment: Moment | None = None

    def collect(self) -> list[Metric]:
        """Return the samples of this moment."""
        moment = self.moment
        if moment is None:
            return []
        metrics = [*_replica(moment), *_hashes(moment.state)]
        if moment.state is not None:
            state = moment.state
            metrics += [*_fleet(state, moment.now_ms), *_changes(state), *_services(state), *peer_metrics(state)]
        return metrics


def _replica(moment: Moment) -> list[Metric]:
    metrics: list[Metric] = [
        _gauge("cachewarden_state_known", "1 if a fleet state has been received", float(moment.state is not None)),
        _gauge("cachewarden_journal_waiting", "records that wait to be written", float(moment.journal_waiting)),
        _gauge("cachewarden_decisions_in_flight", "decisions that are being made now", float(moment.deciding)),
        _gauge("cachewarden_requests_waiting", "requests that wait for a cache or a cycle", float(moment.waiting)),
    ]
    refused = CounterMetricFamily(
        "cachewarden_requests_refused",
        "requests without a decision: token's rate, no room, state too old, journal gone",
        labels=["reason"],
    )
    for reason, number in sorted(moment.refused.items()):
        refused.add_metric([reason], float(number))
    metrics.append(refused)
    if moment.state_age_s is not None:
        text = "since the coordinator confirmed the state"
        metrics.append(_gauge("cachewarden_state_unconfirmed_seconds", text, moment.state_age_s))
    if moment.compliance_rate is not None:
        for name in ("acgs_constitutional_compliance_rate", "acgs_constitutional_compliance_score"):
            rate = GaugeMetricFamily(name, "decisions with a valid, complete verdict / decisions", labels=["service"])
            rate.add_metric([SERVICE_NAME], moment.compliance_rate)
            metrics.append(rate)
    return metrics


def _hashes(state: FleetState | None) -> list[Metric]:
    """Whether all that this replica was told and would decide on carries our hash; a coordinator of another
    constitution would be seen here."""
    told: list[Message] = [] if state is None else [state]
    for standing in () if state is None else state.standing.values():
        told += (part for part in (standing.proposal, standing.verdict, standing.resolution) if part is not None)
    valid = float(all(message.constitutional_hash == CONSTITUTIONAL_HASH for message in told))
    text = "1 if everything that decisions rest on carries our constitutional hash"
    compliance = GaugeMetricFamily("acgs_constitutional_compliance", text, labels=["service", "hash"])
    compliance.add_metric([SERVICE_NAME, CONSTITUTIONAL_HASH], valid)
    hash_valid = GaugeMetricFamily("acgs_constitutional_hash_valid", text, labels=["service"])
    hash_valid.add_metric([SERVICE_NAME], valid)
    return [compliance, hash_valid]


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _fleet(state: FleetState, now_ms: int) -> list[Metric]:
    alive = GaugeMetricFamily("cachewarden_agent_alive", "1 if the agent answers", labels=["agent"])
    for agent in state.agents.values():
        alive.add_metric([agent.name], float(agent.alive))
    in_flight = sum(not e.state.final for e in state.executions)
    return [
        _gauge("cachewarden_state_age_seconds", "age of the fleet state", max(0, now_ms - state.at_ms) / 1000),
        _gauge("cachewarden_paused", "1 while changes are paused", float(state.paused)),
        _gauge("cachewarden_cycle", "number of the newest cycle", float(state.cycle)),
        _gauge("cachewarden_journal_seq", "newest audit record", float(state.journal_seq)),
        _gauge("cachewarden_decisions", "decisions of the agents since the start", float(state.decisions)),
        _gauge("cachewarden_executions_in_flight", "changes not finished", float(in_flight)),
        alive,
    ]


def _changes(state: FleetState) -> list[Metric]:
    """How changes ended, and what the newest measured one of each service was worth against what it promised."""
    ended = GaugeMetricFamily(
        "cachewarden_changes", "changes by state, of the newest 200 that are remembered", labels=["state"]
    )
    tally = Tally(e.state for e in state.executions)
    for one in ExecutionState:
        ended.add_metric([one.value], float(tally[one]))
    failed = GaugeMetricFamily("cachewarden_change_failed", "1 if the newest change failed", labels=["cache"])
    for service, execution in sorted(_newest(state.executions, lambda _: True).items()):
        failed.add_metric([service], float(execution.state is ExecutionState.FAILED))
    error = GaugeMetricFamily(
        "cachewarden_prediction_error",
        "realised minus predicted gain of hit ratio, of the newest change that can be compared",
        labels=["cache"],
    )
    measured = _newest(state.executions, lambda e: e.state.final and bool(e.comparable) and e.realised_gain is not None)
    for service, execution in sorted(measured.items()):
        realised = execution.realised_gain
        if realised is not None:
            error.add_metric([service], realised - execution.proposal.prediction.gain.value)
    metrics: list[Metric] = [ended, failed, error]
    metrics += _settings(state)
    overall = None if state.score is None else state.score.overall
    if overall is not None:
        metrics += [
            _gauge("cachewarden_prediction_error_mean", "mean of realised minus predicted", overall.mean_error),
            _gauge("cachewarden_prediction_outcomes", "changes behind the mean", float(overall.outcomes)),
            _gauge(
                "cachewarden_prediction_coverage", "share inside their 90 % intervals, 0..1", overall.coverage.value
            ),
        ]
    return metrics


def _settings(state: FleetState) -> list[Metric]:
    """What is not as we left it."""
    by_hand = GaugeMetricFamily(
        "cachewarden_setting_by_hand", "1 for a knob that somebody else has set, which is left alone",
        labels=["cache", "knob"],
    )  # fmt: skip
    lost = GaugeMetricFamily(
        "cachewarden_setting_lost", "1 for a setting of ours that a restart took away", labels=["cache", "knob"]
    )
    drift = GaugeMetricFamily(
        "cachewarden_setting_drift", "1 for a knob that another node of the service has with another value",
        labels=["cache", "knob", "node"],
    )  # fmt: skip
    for service, history in sorted(state.history.items()):
        for knob, nodes in sorted(history.drift.items()):
            for node in sorted(nodes):
                drift.add_metric([service, knob, node], 1.0)
        for knob in sorted(history.by_hand):
            by_hand.add_metric([service, knob], 1.0)
        for one in history.lost:
            lost.add_metric([service, one.knob], 1.0)
    return [by_hand, lost, drift]


def _newest(executions: tuple[Execution, ...], wanted: Callable[[Execution], bool]) -> dict[str, Execution]:
    return {e.proposal.service: e for e in executions if wanted(e)}


def _services(state: FleetState) -> list[Metric]:
    families: dict[str, tuple[str, Callable[[Snapshot], float | None]]] = {
        "cachewarden_hit_ratio": ("hit ratio of the last window, 0..1", lambda s: s.hit_ratio),
        "cachewarden_lookups_per_second": ("lookups of the application", lambda s: s.lookups_per_s),
        "cachewarden_evicted_keys_per_second": ("evicted keys", lambda s: s.evicted_per_s),
        "cachewarden_refused_writes_per_second": ("writes refused for want of memory", lambda s: s.refused_per_s),
        "cachewarden_used_memory_bytes": ("used_memory", lambda s: s.used_memory_bytes),
        "cachewarden_maxmemory_bytes": ("maxmemory", lambda s: s.maxmemory_bytes),
        "cachewarden_memory_efficiency": ("dataset / resident memory, 0..1", lambda s: s.memory_efficiency),
        "cachewarden_read_latency_p99_seconds": (
            "server-side P99 of reads",
            lambda s: None if s.latency_us_p99 is None else s.latency_us_p99 / 1e6,
        ),
    }
    metrics: list[Metric] = []
    for name, (text, value_of) in families.items():
        family = GaugeMetricFamily(name, text, labels=["cache"])
        for service, snapshot in sorted(state.snapshots.items()):
            value = value_of(snapshot)
            if value is not None:
                family.add_metric([service], float(value))
        metrics.append(family)
    return metrics
