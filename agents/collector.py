"""MetricsCollector: looks at every cache of the fleet once per cycle and says what is true of it now.

It decides how often to probe (within the budget of server time), when to capture, and which looks form a window. It
never writes to a cache, never keeps a key name, and never waits for one cache longer than its deadline: whoever has
not answered by then is missing, with the reason.

Looks and captures run apart. A look is cheap and belongs to a cycle; a capture lasts, one at a time per service and a
few in all, and only its access sample is used; when values are looked into, `agents/value_looks.py` says. Nothing is
kept over a restart: the first look afterwards gives a snapshot without a window.

INVARIANT: each `ObserveFleet` is answered exactly once, by snapshots and missing services that together are the
services asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from agents.capture_book import CaptureBook, monitor_cost_ms, pause_after_ms
from agents.feed_intake import FeedIntake
from agents.feed_watch import FeedVerdict
from agents.observation_sources import SourceChoice, SourceFacts, choose_sources
from agents.snapshots import WINDOW_STRETCH_MAX, LookRing, hit_knobs, make_snapshot
from agents.value_looks import ValueLook
from cachewarden.fed_accesses import FeedBatch, FeedReport
from cachewarden.fleet import Fleet, Service
from cachewarden.machine import Effect, EffectFailed, Observe, Observed, Received, Send, SetTimer, TimerFired
from cachewarden.observation import KeyspaceSample, Observation, Snapshot
from cachewarden.protocol import FleetObserved, ObserveFleet
from cachewarden.settings import CacheOptimizerSettings

__all__ = ["Collector"]

_SAMPLE_LOOKS_MAX = 2
"""A sample serves the look it came with and this many later ones at most."""
_CAPTURE_GRACE_MS: Final = 15_000
"""Beyond its own length a capture may take this long to start, be parsed and arrive."""
_BACKOFF_MIN_MS: Final = 10_000
_BACKOFF_DOUBLINGS_MAX: Final = 5
# Below this many keys, spatial sampling costs more accuracy than it saves (20,000 sampled keys give an error of 0.004).
_CAPTURE_KEYS_ENOUGH: Final = 20_000
_CAPTURE_ROWS_WANTED: Final = 100_000
_TURN_MS: Final = 900_000
"""How long one service is captured on end where more wait than can be captured side by side."""
_RUNS_ON_MS: Final = 1_000
_FEED_NEEDED_MS: Final = 20_000
"""How long a feed must have covered the traffic where captures, whose length it is otherwise, are off."""
_NO_FEED: Final = FeedVerdict(reason="not permitted")


@dataclass(slots=True)
class _Cycle:
    """One unanswered question."""

    request: ObserveFleet
    sender: str
    services: tuple[str, ...]
    waiting: set[str]
    snapshots: dict[str, Snapshot] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Capture:
    """What captures have brought of a service and when the next one may begin."""

    book: CaptureBook = field(default_factory=CaptureBook)
    knobs: dict[str, str] = field(default_factory=dict)
    running: bool = False
    begun_ms: int = 0
    first_ms: int = 0
    """When the first of those began that followed upon each other up to now."""
    not_before_ms: int = 0
    pause_ms: int | None = None
    """What the budget asked for after the newest capture; 0: they may run on end, None: not known."""
    failures: int = 0
    problem: str | None = None


@dataclass(slots=True)
class _Cache:
    """What is remembered of one service."""

    service: Service
    ring: LookRing
    values: ValueLook
    capture: _Capture = field(default_factory=_Capture)
    feed: FeedIntake | None = None
    """Where the fleet file permits one."""
    newest_look: int = 0
    newest: Snapshot | None = None
    sample: KeyspaceSample | None = None
    sample_look: int = 0
    next_sample_ms: int = 0
    may_capture: bool = False
    resident_keys: int = 0
    accesses_per_s: float = 0.0


class Collector:
    """The machine; see the module. `deadline_ms` bounds one round of looks, `max_parallel_captures` the captures that
    run at once.
    """

    def __init__(
        self,
        fleet: Fleet,
        settings: CacheOptimizerSettings,
        name: str = "collector",
        *,
        deadline_ms: int = 8_000,
        max_parallel_captures: int = 8,
    ) -> None:
        self.name = name
        self._settings = settings
        self._deadline_ms = deadline_ms
        self._max_parallel_captures = max_parallel_captures
        self._caches = {
            s.name: _Cache(service=s, ring=self._new_ring(), values=self._new_value_look(s), feed=self._intake(s))
            for s in fleet.services
        }
        self._cycles: dict[int, _Cycle] = {}
        self._looks = 0

    def _new_ring(self) -> LookRing:
        return LookRing(
            window_ms=self._settings.observation_window_ms, base_age_ms=self._settings.cycle_interval_ms // 2
        )

    def _new_value_look(self, service: Service) -> ValueLook:
        settings = self._settings
        return ValueLook(
            service.name,
            permitted=service.value_samples,
            keys=settings.value_sample_keys,
            pause_ms=settings.value_pause_ms,
        )

    def _intake(self, service: Service) -> FeedIntake | None:
        if not service.feed:
            return None
        needed_ms = self._settings.capture_ms or _FEED_NEEDED_MS
        longest_ms = WINDOW_STRETCH_MAX * self._settings.observation_window_ms
        history_ms = max(self._settings.feed_history_ms, 2 * needed_ms, longest_ms)
        return FeedIntake(service, history_ms=history_ms, needed_ms=needed_ms)

    def step(self, event: Any, now_ms: int) -> tuple[Effect, ...]:
        """Take one event; events that are none of ours change nothing."""
        if isinstance(event, Received) and isinstance(event.message, ObserveFleet):
            return self._begin(event.sender, event.message, now_ms)
        if isinstance(event, Received) and isinstance(event.message, FeedBatch):
            fed = self._caches.get(event.message.service)
            if fed is not None and fed.feed is not None:
                fed.feed.take(event.message, now_ms)
            return ()
        if isinstance(event, Observed):
            kind, look, service = _parse_ref(event.ref)
            if kind == "capture":
                return self._captured(service, event.observation, now_ms)
            if kind == "values" and service in self._caches:
                self._caches[service].values.arrived(event.observation, now_ms)
            return self._looked(look, service, event.observation, now_ms) if kind == "look" else ()
        if isinstance(event, EffectFailed):
            kind, look, service = _parse_ref(event.ref)
            if kind == "capture":
                return self._capture_failed(service, event.reason, now_ms)
            if kind == "values" and service in self._caches:
                self._caches[service].values.failed(event.reason)
            return self._answer(look, service, None, event.reason) if kind == "look" else ()
        if isinstance(event, TimerFired):
            kind, look, service = _parse_ref(event.ref)
            if kind == "capture-deadline":
                return self._capture_failed(service, "the capture did not come back in time", now_ms)
            if kind == "values-deadline" and service in self._caches:
                self._caches[service].values.failed("the look into values did not come back in time")
            return self._deadline(look) if kind == "deadline" else ()
        return ()

    def snapshot(self, service: str) -> Snapshot | None:
        """Return the newest look at a service with its samples; None before the first one. Changes nothing."""
        cache = self._caches.get(service)
        return None if cache is None else cache.newest

    def feed_report(self, service: str, now_ms: int) -> FeedReport | None:
        """Return what has become of the batches of a service; None where none are permitted. Changes nothing."""
        cache = self._caches.get(service)
        return None if cache is None or cache.feed is None else cache.feed.report(now_ms)

    # --- Looks ---

    def _begin(self, sender: str, request: ObserveFleet, now_ms: int) -> tuple[Effect, ...]:
        if any(c.sender == sender and c.request.cycle == request.cycle for c in self._cycles.values()):
            return ()
        self._looks += 1
        look = self._looks
        services = tuple(dict.fromkeys(request.services))
        known = [name for name in services if name in self._caches]
        missing = {name: f"`{name}` is not in the fleet file" for name in services if name not in self._caches}
        self._cycles[look] = _Cycle(request, sender, services, set(known), missing=missing)
        if not known:
            return self._finish(look)
        effects: list[Effect] = [SetTimer(ref=f"deadline:{look}", due_ms=now_ms + self._deadline_ms)]
        effects += [Observe(ref=f"look:{look}:{n}", service=n, sample_keys=self._sample_keys(n, now_ms)) for n in known]
        effects += [effect for name in known for effect in self._caches[name].values.start(now_ms)]
        return (*effects, *self._start_captures(now_ms))

    def _sample_keys(self, service: str, now_ms: int) -> int:
        return self._settings.probe_sample_keys if now_ms >= self._caches[service].next_sample_ms else 0

    def _looked(self, look: int, service: str, observation: Any, now_ms: int) -> tuple[Effect, ...]:
        cache = self._caches.get(service)
        # A look of a number that was not given out yet belongs to a life before this one.
        if cache is None or look > self._looks:
            return ()
        if not isinstance(observation, Observation):
            return self._answer(look, service, None, "the answer to the look is no observation")
        if not observation.info:
            return self._answer(look, service, None, observation.incomplete.get("info", "INFO is empty"))
        if look > cache.newest_look:
            cache.newest_look = look
            cache.newest = self._take_in(cache, look, observation, now_ms)
        # An answer that was overtaken by a later one is answered with the later one, which knows more.
        return (*self._answer(look, service, cache.newest, ""), *self._start_captures(now_ms))

    def _take_in(self, cache: _Cache, look: int, observation: Observation, now_ms: int) -> Snapshot:
        window = cache.ring.add(observation)
        if observation.sample is not None:
            cache.sample, cache.sample_look = observation.sample, look
            cache.next_sample_ms = now_ms + self._sample_pause_ms(observation)
        elif look - cache.sample_look > _SAMPLE_LOOKS_MAX:
            cache.sample = None
        cache.may_capture = cache.service.capture and observation.capabilities.monitor
        self._forget_old_capture(cache.capture, now_ms)
        cache.values.forget_old(now_ms)
        verdict = _NO_FEED if cache.feed is None else cache.feed.look(window, observation.at_ms, now_ms)
        choice = self._choose(cache, observation, verdict)
        feed = cache.feed if choice.feed_used else None
        snapshot = make_snapshot(
            observation,
            window,
            sample=cache.sample,
            access=choice.access,
            reads=cache.capture.book.reads if feed is None else feed.reads,
            values=cache.values.sample,
            remarks=self._remarks(cache, observation, choice),
            sources=choice.reports,
        )
        cache.resident_keys = snapshot.resident_keys
        cache.accesses_per_s = snapshot.lookups_per_s * (1.0 + (snapshot.miss_ratio or 0.0))
        return snapshot

    def _sample_pause_ms(self, observation: Observation) -> int:
        """Return how long sampling must pause so that probes stay within their share of the server's time."""
        cost = observation.cost
        # Without the server's own figure the whole wall time is taken, which can only be too much.
        busy_ms = cost.server_us / 1000.0 if cost.server_us > 0 else cost.wall_ms
        return round(busy_ms / self._settings.probe_server_share)

    def _choose(self, cache: _Cache, observation: Observation, verdict: FeedVerdict) -> SourceChoice:
        feed, capture = cache.feed, cache.capture
        problem = capture.problem
        if problem is None and not cache.service.capture:
            problem = "the fleet file permits no captures"
        elif problem is None and not observation.capabilities.monitor:
            problem = observation.capabilities.denied.get("MONITOR", "the server permits no MONITOR")
        choice = choose_sources(
            SourceFacts(
                feed_permitted=feed is not None,
                feed=verdict,
                feed_access=None if feed is None else feed.access,
                feed_needed_ms=0 if feed is None else feed.needed_ms,
                capture_permitted=cache.may_capture,
                capture_problem=problem,
                capture_access=capture.book.access,
                capture_ms=self._settings.capture_ms,
                sample=cache.sample,
                sample_problem=self._sample_problem(cache, observation),
                cost=observation.cost,
            )
        )
        if feed is not None:
            feed.used = choice.feed_used
        return choice

    def _sample_problem(self, cache: _Cache, observation: Observation) -> str | None:
        if cache.sample is not None or "sample" in observation.incomplete:
            return observation.incomplete.get("sample")
        wanted = self._settings.probe_sample_keys > 0
        return "the probe budget allows no sample now" if wanted else "`probe_sample_keys` is 0"

    def _remarks(self, cache: _Cache, observation: Observation, choice: SourceChoice) -> dict[str, str]:
        remarks: dict[str, str] = {}
        if choice.missing_reason:
            remarks["access"] = choice.missing_reason
        elif not choice.feed_used and cache.capture.problem is not None:
            remarks["access"] = cache.capture.problem
        problem = self._sample_problem(cache, observation)
        if cache.sample is None and problem is not None and "sample" not in observation.incomplete:
            remarks["sample"] = problem
        values_remark = cache.values.remark()
        if values_remark is not None:
            remarks["values"] = values_remark
        return remarks

    def _answer(self, look: int, service: str, snapshot: Snapshot | None, reason: str) -> tuple[Effect, ...]:
        cycle = self._cycles.get(look)
        if cycle is None or service not in cycle.waiting:
            return ()
        cycle.waiting.discard(service)
        if snapshot is None:
            cycle.missing[service] = reason or "the look failed without a reason"
        else:
            cycle.snapshots[service] = snapshot
        return () if cycle.waiting else self._finish(look)

    def _deadline(self, look: int) -> tuple[Effect, ...]:
        cycle = self._cycles.get(look)
        if cycle is None:
            return ()
        for name in sorted(cycle.waiting):
            cycle.missing[name] = f"no answer within {self._deadline_ms} ms"
        return self._finish(look)

    def _finish(self, look: int) -> tuple[Effect, ...]:
        cycle = self._cycles.pop(look)
        snapshots = tuple(cycle.snapshots[name] for name in cycle.services if name in cycle.snapshots)
        message = FleetObserved(cycle=cycle.request.cycle, snapshots=snapshots, missing=cycle.missing)
        return (Send(to=cycle.sender, message=message),)

    # --- Captures ---

    def _start_captures(self, now_ms: int) -> tuple[Effect, ...]:
        """Start whatever capture is due, the longest waiting first, as far as places are free."""
        settings = self._settings
        if not (settings.capture_ms and settings.capture_lines and settings.capture_history_ms):
            return ()
        free = self._max_parallel_captures - sum(c.capture.running for c in self._caches.values())
        due = [name for name, cache in self._caches.items() if self._capture_is_due(cache, now_ms)]
        effects: list[Effect] = []
        for name in sorted(due, key=lambda n: self._turn(n, now_ms))[: max(0, free)]:
            capture = self._caches[name].capture
            capture.running, capture.begun_ms = True, now_ms
            if now_ms - capture.book.arrived_ms > _RUNS_ON_MS:
                capture.first_ms = now_ms
            newest = self._caches[name].ring.newest
            capture.knobs = {} if newest is None else hit_knobs(newest)
            effects.append(
                Observe(
                    ref=f"capture:{name}",
                    service=name,
                    capture_ms=settings.capture_ms,
                    capture_lines=settings.capture_lines,
                    capture_rate=self._capture_rate(self._caches[name]),
                )
            )
            due_ms = now_ms + settings.capture_ms + _CAPTURE_GRACE_MS
            effects.append(SetTimer(ref=f"capture-deadline:{name}", due_ms=due_ms))
        return tuple(effects)

    def _turn(self, service: str, now_ms: int) -> tuple[bool, int, str]:
        """Return what comes first: a history under way, then who has waited longest."""
        capture = self._caches[service].capture
        under_way = now_ms - capture.book.arrived_ms <= _RUNS_ON_MS and self._runs_on(capture)
        return not under_way, capture.not_before_ms, service

    def _capture_is_due(self, cache: _Cache, now_ms: int) -> bool:
        capture = cache.capture
        if not cache.may_capture or capture.running or now_ms < capture.not_before_ms:
            return False
        if cache.feed is not None and cache.feed.used:
            # The applications tell more than MONITOR would, at no cost for the server.
            return False
        newest = cache.ring.newest
        changed = newest is not None and hit_knobs(newest) != capture.knobs
        old = now_ms - capture.book.arrived_ms >= self._settings.capture_pause_ms
        return capture.book.access is None or changed or old or self._runs_on(capture)

    def _runs_on(self, capture: _Capture) -> bool:
        """Say whether a capture follows upon the last one at once: where that costs little, and, where more services
        wait than can be captured side by side, until there is a history that tells something."""
        crowded = sum(cache.may_capture for cache in self._caches.values()) > self._max_parallel_captures
        return capture.pause_ms == 0 and not (crowded and capture.book.arrived_ms - capture.first_ms >= _TURN_MS)

    def _capture_rate(self, cache: _Cache) -> float:
        """Return the spatial rate that keeps enough keys for a good curve and not many more rows than that takes."""
        rows = cache.accesses_per_s * self._settings.capture_ms / 1000.0
        if cache.resident_keys <= _CAPTURE_KEYS_ENOUGH or rows <= _CAPTURE_ROWS_WANTED:
            return 1.0
        return min(1.0, max(_CAPTURE_KEYS_ENOUGH / cache.resident_keys, _CAPTURE_ROWS_WANTED / rows))

    def _captured(self, service: str, observation: Any, now_ms: int) -> tuple[Effect, ...]:
        cache = self._caches.get(service)
        if cache is None:
            return ()
        access = observation.access if isinstance(observation, Observation) else None
        if access is None:
            reasons = observation.incomplete if isinstance(observation, Observation) else {}
            return self._capture_failed(service, reasons.get("access", "the capture brought nothing"), now_ms)
        capture, settings = cache.capture, self._settings
        capture.running = False
        capture.problem = access.aborted
        self._forget_old_capture(capture, now_ms)
        capture.book.take(access, from_ms=capture.begun_ms, to_ms=now_ms, history_ms=settings.capture_history_ms)
        lasted_ms = max(1, now_ms - capture.begun_ms)
        cost_ms = monitor_cost_ms(access.lines_seen, access.bytes_seen)
        capture.pause_ms = pause_after_ms(lasted_ms, cost_ms, settings.capture_server_share)
        if access.aborted is None or access.lines_seen >= settings.capture_lines:
            # Reaching its own bound is no failure.
            # Where it is no trifle, MONITOR is on for at most half of the time, whatever calls for the next capture.
            pause_ms = max(capture.pause_ms, settings.capture_ms) if capture.pause_ms else 0
            capture.failures, capture.not_before_ms = 0, now_ms + pause_ms
        else:
            capture.pause_ms = max(capture.pause_ms, 1)
            self._back_off(capture, now_ms)
        return self._start_captures(now_ms)

    def _capture_failed(self, service: str, reason: str, now_ms: int) -> tuple[Effect, ...]:
        cache = self._caches.get(service)
        if cache is None or not cache.capture.running:
            return ()
        cache.capture.running = False
        cache.capture.problem = reason or "the capture failed without a reason"
        self._back_off(cache.capture, now_ms)
        return self._start_captures(now_ms)

    def _back_off(self, capture: _Capture, now_ms: int) -> None:
        pause_ms = max(self._settings.capture_ms, _BACKOFF_MIN_MS) << min(capture.failures, _BACKOFF_DOUBLINGS_MAX)
        pause_ms = max(pause_ms, capture.pause_ms or 0)
        capture.failures += 1
        capture.not_before_ms = now_ms + pause_ms

    def _forget_old_capture(self, capture: _Capture, now_ms: int) -> None:
        """Drop what no capture has renewed for two pauses; where the budget asks for longer ones, for that long."""
        settings = self._settings
        waits_ms = capture.not_before_ms - capture.book.arrived_ms
        renewed_ms = max(settings.capture_pause_ms, settings.capture_ms, waits_ms)
        if now_ms - capture.book.arrived_ms > 2 * renewed_ms:
            capture.book.forget()


def _parse_ref(ref: str) -> tuple[str, int, str]:
    """Return (kind, look number, service) of our refs; the kind of any other ref is empty."""
    kind, _, rest = ref.partition(":")
    if kind in ("capture", "capture-deadline", "values", "values-deadline"):
        return kind, 0, rest
    number, _, service = rest.partition(":")
    if kind in ("look", "deadline") and number.isascii() and number.isdigit():
        return kind, int(number), service
    return "", 0, ""
