"""The facade: one object that optimises the caches of one fleet from within any asyncio program, without Ray or HTTP.

It runs all agents as tasks of the caller's loop and answers exactly as the HTTP route does, through the same functions;
it decides, judges and measures nothing itself. Everything starts with the first question, or with `async with`.

INVARIANT: a request with a wrong constitutional hash is recorded and refused, and starts nothing.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Final
from uuid import uuid4

import structlog

from cachewarden.errors import ConstitutionalComplianceError, OperatingError, RequestError, TargetUnavailable
from cachewarden.fleet import Fleet, Service, load_fleet
from cachewarden.messages import CONSTITUTIONAL_HASH, Mode, RecordKind
from cachewarden.models import CacheMetrics, CacheOptimizationRequest, CacheOptimizationResponse
from cachewarden.ports import RecordDraft
from cachewarden.settings import CacheOptimizerSettings, load_settings
from cluster.backend import AgentBackend
from cluster.local import LocalRuntime
from cluster.wiring import make_plan
from serve.admission import Admission
from serve.context import Context, known_state
from serve.courses import Apply, Asked
from serve.decide_request import optimize_request
from serve.errors import clip
from serve.telemetry import Telemetry
from serve.views import compliance_rate, service_view

__all__ = ["DEFAULT_SERVICE", "CachePerformanceOptimizer"]

DEFAULT_SERVICE: Final = "default"
"""Name of the one cache that is managed where there is no fleet: the server at `redis_url`, in mode `advise`."""

_POLL_S: Final = 0.05

log = structlog.get_logger("cluster.optimizer")


class CachePerformanceOptimizer:
    """Use as `async with CachePerformanceOptimizer(...) as optimizer`, or call `close` at the end.

    `settings` default to environment and `.env`, `fleet` to the fleet file of the settings and, where there is none,
    to the one cache at `redis_url`. The journal must be reachable: without it nothing is decided. `wait_s` bounds how
    long a request waits for the cache's confirmation, `first_look_s` how long the first one waits until its service
    has been examined. Raises ConfigurationError for settings, a fleet file or a constitution that cannot be used.
    """

    def __init__(
        self,
        settings: CacheOptimizerSettings | None = None,
        fleet: Fleet | None = None,
        *,
        wait_s: float = 5.0,
        first_look_s: float = 30.0,
    ) -> None:
        self.constitutional_hash = CONSTITUTIONAL_HASH
        chosen = load_settings() if settings is None else settings
        self._plan = make_plan(_fleet(chosen) if fleet is None else fleet, chosen)
        self._wait_s = wait_s
        self._first_look_s = first_look_s
        self._runtime = LocalRuntime(self._plan)
        self._context: Context | None = None
        self._examined: set[str] = set()
        self._starting = asyncio.Lock()
        self._running = False
        self._closed = False
        self._stack = AsyncExitStack()

    @property
    def services(self) -> tuple[str, ...]:
        """Names of the services that requests may be about."""
        return self._plan.fleet.names

    async def __aenter__(self) -> CachePerformanceOptimizer:
        try:
            await self._start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End all agents and give back all connections; a change in flight is finished by whoever starts next."""
        self._closed = True
        async with self._starting:
            await self._stack.aclose()
            self._running = False

    async def optimize_cache_configuration(
        self, request: CacheOptimizationRequest, *, apply: Apply = "auto"
    ) -> CacheOptimizationResponse:
        """Decide on one service, and carry the plan out if everything permits it, as `POST /api/v1/cache/optimize`.

        Raises ConstitutionalComplianceError for a wrong hash (after it was recorded), UnknownService with the known
        names, StateTooOld where the fleet is not observed, JournalUnavailable where nothing can be recorded.
        """
        if request.constitutional_hash != CONSTITUTIONAL_HASH:
            await self._record_refusal(request)
            raise ConstitutionalComplianceError(request.constitutional_hash)
        service = self._plan.fleet.service(request.service_name)
        context = await self._ready(service)
        asked = Asked(request=request, decision_id=str(uuid4()), caller="in-process", apply=apply)
        return await optimize_request(context, asked)

    async def metrics(self, service_name: str | None = None) -> CacheMetrics:
        """Return what was measured of one service in its last window; the name may be left out where there is only one.

        Raises UnknownService, StateTooOld, and TargetUnavailable where the cache could not be observed.
        """
        if service_name is None and len(self.services) > 1:
            raise RequestError(f"say which service is meant, the fleet has: {', '.join(sorted(self.services))}")
        service = self._plan.fleet.service(self.services[0] if service_name is None else service_name)
        context = await self._ready(service)
        state = await known_state(context)
        if service.name not in state.snapshots:
            raise TargetUnavailable(service.name, state.missing.get(service.name, "it has not been observed yet"))
        counted = context.telemetry
        score = compliance_rate(state, counted.decisions, counted.decisions_compliant)
        view = service_view(service, state, score)
        return CacheMetrics(**{name: getattr(view, name) for name in CacheMetrics.model_fields})

    async def _ready(self, service: Service) -> Context:
        """Start what does not run yet, and return once the service was examined or `first_look_s` are over."""
        context = self._context
        if context is None or not self._running or self._closed:
            context = await self._start()
        if service.name in self._examined or service.mode is Mode.OFF:
            return context
        deadline_s = time.perf_counter() + self._first_look_s
        while time.perf_counter() < deadline_s:
            state = await context.backend.state()
            if state is not None and service.name in state.standing:
                self._examined.add(service.name)
                break
            await asyncio.sleep(_POLL_S)
        return context

    async def _start(self) -> Context:
        async with self._starting:
            context = self._open()
            if not self._running:
                # A journal that is not there is said at once; agents would wait for it.
                await context.backend.audit_page(0, 1)
                await self._stack.enter_async_context(self._runtime)
                self._running = True
            return context

    def _open(self) -> Context:
        """Return what answers stand on; connects to nothing. Raises RequestError once closed."""
        if self._closed:
            raise RequestError("this optimizer is closed, make a new one")
        if self._context is None:
            backend = AgentBackend(self._plan, self._runtime)
            self._stack.push_async_callback(backend.close)
            self._context = Context(
                backend=backend,
                telemetry=Telemetry(),
                started_s=time.perf_counter(),
                admission=Admission.of(backend.settings),
                wait_s=self._wait_s,
            )
        return self._context

    async def _record_refusal(self, request: CacheOptimizationRequest) -> None:
        context = self._open()
        context.telemetry.hash_refused("in-process", "CALL", "body")
        draft = RecordDraft(
            at_ms=context.backend.now_ms(),
            kind=RecordKind.REQUEST_REFUSED.value,
            agent="api",
            service=None,
            subject_id=str(uuid4()),
            payload={
                "constitutional_hash": CONSTITUTIONAL_HASH,
                "why": "wrong constitutional hash",
                "where": "body",
                "received": clip(request.constitutional_hash, 64),
                "endpoint": "in-process",
                "method": "CALL",
                "caller": "in-process",
                "suppressed_before": 0,
            },
        )
        try:
            await context.backend.record([draft])
        except OperatingError as error:
            # Refusing is safe without the journal; that it went unrecorded must be seen.
            context.telemetry.unaudited()
            log.error("a refusal could not be audited", reason=str(error))


def _fleet(settings: CacheOptimizerSettings) -> Fleet:
    if settings.fleet_path is not None:
        return load_fleet(settings.fleet_path)
    return Fleet(services=(Service(name=DEFAULT_SERVICE, url=settings.redis_url),))
