"""What this replica counts, and everything as Prometheus text under ACGS's and our own names.

It counts and renders; it never decides, and nothing of it is read to decide. Labels have few values: route templates,
never paths, and services of the fleet only. INVARIANT: one registry per application, so that two in one process do
not mix.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import replace

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from cachewarden import __version__
from cachewarden.messages import CONSTITUTIONAL_HASH
from serve.durations import Durations
from serve.errors import SERVICE_NAME
from serve.gauges import Moment, MomentGauges

__all__ = ["CONTENT_TYPE", "Telemetry"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_WINDOW_S = 60.0
_COUNTED_AT_ONCE = 8


class Telemetry:
    """Counters of one replica. Times are seconds of a monotonic clock, given by the caller."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self._gauges = MomentGauges()
        registry.register(self._gauges)
        self.refused = {"state": 0, "journal": 0}
        """Decisions that were not made, since the state was too old or the journal did not take the record."""
        self.decisions = 0
        self.decisions_compliant = 0
        self._optimizations_s: deque[float] = deque()
        self._started_s: float | None = None
        Gauge(
            "acgs_service_info", "who answers", ["service", "constitutional_hash", "version"], registry=registry
        ).labels(SERVICE_NAME, CONSTITUTIONAL_HASH, __version__).set(1)
        self._requests = Counter(
            "acgs_http_requests_total", "requests", ["method", "endpoint", "status_code", "service"], registry=registry
        )
        self._duration_s = Durations(
            "acgs_http_request_duration_seconds",
            "duration",
            ("method", "endpoint", "service"),
            (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
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
        self._decision_s = Durations(
            "cachewarden_decision_duration_seconds",
            "pure decision, without journal and actuator",
            (),
            (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05),
        )
        self._step_s = Durations(
            "cachewarden_decision_step_seconds",
            "steps of an optimisation request",
            ("step",),
            (0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.25, 1.0, 5.0),
        )
        for durations in (self._duration_s, self._decision_s, self._step_s):
            self.registry.register(durations)
        # To find a child by its labels costs more than to count; routes, methods and states are few.
        self._uncounted_ms: list[Mapping[str, float]] = []
        self._counted: dict[tuple[str, str, int], Counter] = {}
        self._checked: dict[tuple[str, str], Counter] = {}
        self._answered: dict[str, Counter] = {}

    def request(self, method: str, endpoint: str, status_code: int, duration_s: float) -> None:
        """Count one answered request; `endpoint` is a route template."""
        key = (method, endpoint, status_code)
        child = self._counted.get(key)
        if child is None:
            child = self._counted[key] = self._requests.labels(method, endpoint, str(status_code), SERVICE_NAME)
        child.inc()
        self._duration_s.observe((method, endpoint, SERVICE_NAME), duration_s)

    def hash_checked(self, endpoint: str, method: str) -> None:
        """Count one request whose hash was right or absent."""
        child = self._checked.get((endpoint, method))
        if child is None:
            child = self._validations.labels(SERVICE_NAME, endpoint, method, "valid")
            self._checked[(endpoint, method)] = child
        child.inc()

    def hash_refused(self, endpoint: str, method: str, where: str) -> None:
        """Count one wrong hash; `where` is `header` or `body`."""
        self._validations.labels(SERVICE_NAME, endpoint, method, "invalid").inc()
        self._failures.labels(SERVICE_NAME).inc()
        self._hash_violations.labels(SERVICE_NAME, endpoint, f"wrong_{where}").inc()
        self._violations.labels("critical").inc()

    def undecided(self, reason: str) -> None:
        """Count one decision that was not made; `reason` is `state` or `journal`."""
        self.refused[reason] += 1

    def unaudited(self) -> None:
        """Count one refusal that could not be recorded."""
        self._unaudited.inc()

    def decided(self, state: str, decision_s: float, now_s: float, *, judged: bool, complete: bool) -> None:
        """Count one optimisation request; only those about a plan are decisions for the compliance rate."""
        answers = self._answered.get(state)
        if answers is None:
            answers = self._answered[state] = self._answers.labels(state)
        answers.inc()
        self._decision_s.observe((), decision_s)
        self._started_s = now_s if self._started_s is None else self._started_s
        self._optimizations_s.append(now_s)
        while self._optimizations_s and self._optimizations_s[0] < now_s - _WINDOW_S:
            self._optimizations_s.popleft()
        self.decisions += judged
        self.decisions_compliant += judged and complete

    def steps(self, laps_ms: Mapping[str, float]) -> None:
        """Count the time of each step of one answered optimisation request; `laps_ms` is not to be changed any more."""
        self._uncounted_ms.append(laps_ms)
        if len(self._uncounted_ms) == _COUNTED_AT_ONCE:
            # Not before this answer is out.
            asyncio.get_running_loop().call_soon(self._count_steps)

    def _count_steps(self) -> None:
        # Some at once take a fraction of what they take one by one.
        for laps_ms in self._uncounted_ms:
            for step, took_ms in laps_ms.items():
                self._step_s.observe((step.removesuffix("_ms"),), took_ms / 1000)
        self._uncounted_ms.clear()

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

    def render(self, moment: Moment) -> bytes:
        """Return the Prometheus text; what this replica refused is added to what the moment says."""
        self._count_steps()
        self._gauges.moment = replace(moment, refused={**self.refused, **moment.refused})
        return generate_latest(self.registry)
