"""What this replica counts, and everything as Prometheus text under ACGS's and our own names.

It counts and renders; it never decides, and nothing of it is read to decide. Labels have few values: route templates,
never paths, and services of the fleet only. INVARIANT: one registry per application, so that two in one process do
not mix.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cachewarden import __version__
from cachewarden.messages import CONSTITUTIONAL_HASH
from cachewarden.observation import Snapshot
from cachewarden.protocol import FleetState
from serve.errors import SERVICE_NAME
from serve.peer_views import peer_metrics

__all__ = ["CONTENT_TYPE", "Telemetry"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_WINDOW_S = 60.0


class _StateGauges(Collector):
    """The newest fleet state as gauges; nothing where there is none, so that absence alerts can see it."""

    def __init__(self) -> None:
        self.state: FleetState | None = None
        self.now_ms = 0
        self.compliance_rate: float | None = None

    def collect(self) -> list[Metric]:
        state = self.state
        known = GaugeMetricFamily("cachewarden_state_known", "1 if a fleet state has been received")
        known.add_metric([], 0.0 if state is None else 1.0)
        metrics: list[Metric] = [known]
        if self.compliance_rate is not None:
            for name in ("acgs_constitutional_compliance_rate", "acgs_constitutional_compliance_score"):
                rate = GaugeMetricFamily(
                    name, "decisions with a valid, complete verdict / decisions", labels=["service"]
                )
                rate.add_metric([SERVICE_NAME], self.compliance_rate)
                metrics.append(rate)
        if state is None:
            return metrics
        simple = {
            "cachewarden_state_age_seconds": ("age of the fleet state", max(0, self.now_ms - state.at_ms) / 1000),
            "cachewarden_paused": ("1 while changes are paused", float(state.paused)),
            "cachewarden_cycle": ("number of the newest cycle", float(state.cycle)),
            "cachewarden_journal_seq": ("newest audit record", float(state.journal_seq)),
            "cachewarden_decisions": ("decisions of the agents since the start", float(state.decisions)),
            "cachewarden_executions_in_flight": (
                "changes not finished",
                float(sum(not e.state.final for e in state.executions)),
            ),
        }
        for name, (text, value) in simple.items():
            metrics.append(GaugeMetricFamily(name, text, value=value))
        metrics.extend(self._services(state))
        alive = GaugeMetricFamily("cachewarden_agent_alive", "1 if the agent answers", labels=["agent"])
        for agent in state.agents.values():
            alive.add_metric([agent.name], float(agent.alive))
        metrics.append(alive)
        return [*metrics, *peer_metrics(state)]

    @staticmethod
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


class Telemetry:
    """Counters of one replica. Times are seconds of a monotonic clock, given by the caller."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self._gauges = _StateGauges()
        registry.register(self._gauges)
        self.decisions = 0
        self.decisions_compliant = 0
        self._optimizations_s: deque[float] = deque()
        self._started_s: float | None = None
        Gauge(
            "acgs_constitutional_compliance", "1 if our hash is the right one", ["service", "hash"], registry=registry
        ).labels(SERVICE_NAME, CONSTITUTIONAL_HASH).set(1)
        Gauge(
            "acgs_constitutional_hash_valid", "1 if our hash is the right one", ["service"], registry=registry
        ).labels(SERVICE_NAME).set(1)
        Gauge(
            "acgs_service_info", "who answers", ["service", "constitutional_hash", "version"], registry=registry
        ).labels(SERVICE_NAME, CONSTITUTIONAL_HASH, __version__).set(1)
        self._requests = Counter(
            "acgs_http_requests_total", "requests", ["method", "endpoint", "status_code", "service"], registry=registry
        )
        self._duration_s = Histogram(
            "acgs_http_request_duration_seconds",
            "duration",
            ["method", "endpoint", "service"],
            registry=registry,
            buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
        )
        self._validations = Counter(
            "acgs_constitutional_validations_total",
            "hash checks",
            ["service", "endpoint", "method", "result"],
            registry=registry,
        )
        self._failures = Counter(
            "acgs_constitutional_compliance_failures_total", "hash checks failed", ["service"], registry=registry
        )
        self._hash_violations = Counter(
            "acgs_constitutional_hash_violations_total",
            "wrong hashes",
            ["service", "endpoint", "violation_type"],
            registry=registry,
        )
        self._violations = Counter(
            "acgs_constitutional_violations_total", "violations", ["severity"], registry=registry
        )
        self._answers = Counter(
            "cachewarden_optimize_answers_total", "answers to optimize by state", ["state"], registry=registry
        )
        self._warmed = Counter(
            "cachewarden_warmed_keys_total", "keys asked to be warmed", ["outcome"], registry=registry
        )
        self._whatif = Counter(
            "cachewarden_whatif_candidates_total", "configurations asked about", ["outcome"], registry=registry
        )
        self._fed = Counter(
            "cachewarden_feed_rows_total", "accesses that recorders reported", ["service"], registry=registry
        )
        self._unaudited = Counter(
            "cachewarden_refusals_unaudited_total", "refusals that the journal did not take", registry=registry
        )
        self._add_times()
        self._failures.labels(SERVICE_NAME)
        self._violations.labels("critical")

    def _add_times(self) -> None:
        self._decision_s = Histogram(
            "cachewarden_decision_duration_seconds",
            "pure decision, without journal and actuator",
            registry=self.registry,
            buckets=(0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05),
        )
        self._step_s = Histogram(
            "cachewarden_decision_step_seconds",
            "steps of an optimisation request",
            ["step"],
            registry=self.registry,
            buckets=(0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.25, 1.0, 5.0),
        )
        self._steps: dict[str, Histogram] = {}

    def request(self, method: str, endpoint: str, status_code: int, duration_s: float) -> None:
        """Count one answered request; `endpoint` is a route template."""
        self._requests.labels(method, endpoint, str(status_code), SERVICE_NAME).inc()
        self._duration_s.labels(method, endpoint, SERVICE_NAME).observe(duration_s)

    def hash_checked(self, endpoint: str, method: str) -> None:
        """Count one request whose hash was right or absent."""
        self._validations.labels(SERVICE_NAME, endpoint, method, "valid").inc()

    def hash_refused(self, endpoint: str, method: str, where: str) -> None:
        """Count one wrong hash; `where` is `header` or `body`."""
        self._validations.labels(SERVICE_NAME, endpoint, method, "invalid").inc()
        self._failures.labels(SERVICE_NAME).inc()
        self._hash_violations.labels(SERVICE_NAME, endpoint, f"wrong_{where}").inc()
        self._violations.labels("critical").inc()

    def unaudited(self) -> None:
        """Count one refusal that could not be recorded."""
        self._unaudited.inc()

    def decided(self, state: str, decision_s: float, now_s: float, *, judged: bool, complete: bool) -> None:
        """Count one optimisation request; only those about a plan are decisions for the compliance rate."""
        self._answers.labels(state).inc()
        self._decision_s.observe(decision_s)
        self._started_s = now_s if self._started_s is None else self._started_s
        self._optimizations_s.append(now_s)
        while self._optimizations_s and self._optimizations_s[0] < now_s - _WINDOW_S:
            self._optimizations_s.popleft()
        self.decisions += judged
        self.decisions_compliant += judged and complete

    def steps(self, laps_ms: Mapping[str, float]) -> None:
        """Count the time of each step of one answered optimisation request."""
        for step, took_ms in laps_ms.items():
            histogram = self._steps.get(step)
            if histogram is None:
                histogram = self._steps[step] = self._step_s.labels(step.removesuffix("_ms"))
            histogram.observe(took_ms / 1000)

    def requests_per_s(self, now_s: float) -> float:
        """Return optimisation requests per second over the last minute, or since the first if that is shorter (at least
        a second)."""
        recent = sum(1 for at_s in self._optimizations_s if at_s >= now_s - _WINDOW_S)
        span_s = _WINDOW_S if self._started_s is None else min(_WINDOW_S, max(1.0, now_s - self._started_s))
        return recent / span_s

    def warmed(self, counts: dict[str, int]) -> None:
        """Count the keys of one warming request by outcome."""
        for outcome, number in counts.items():
            self._warmed.labels(outcome).inc(number)

    def asked_whatif(self, answered: int, unanswered: int) -> None:
        """Count the candidates of one what-if."""
        self._whatif.labels("answered").inc(answered)
        self._whatif.labels("not_enough_evidence").inc(unanswered)

    def fed(self, service: str, rows: int) -> None:
        """Count the rows of one batch of a known service."""
        self._fed.labels(service).inc(rows)

    def render(self, state: FleetState | None, now_ms: int, compliance_rate: float | None) -> bytes:
        """Return the Prometheus text."""
        self._gauges.state, self._gauges.now_ms, self._gauges.compliance_rate = state, now_ms, compliance_rate
        return generate_latest(self.registry)
