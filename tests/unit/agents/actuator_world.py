"""A small deterministic world for the actuator: one cache as a dict of knobs, leases with epochs, a journal as a list, virtual time.

It performs effects exactly once and answers each exactly once, and can be told to fail or to crash at any of them. What it checks by itself,
on every single write: the fence, and that the journal held the intention before.
"""

from __future__ import annotations

import heapq
import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from agents.actuator import Actuator
from cachewarden import machine as m
from cachewarden.codec import canonical_json, digest, to_jsonable
from cachewarden.estimate import Estimate
from cachewarden.fleet import KeyPattern, parse_fleet
from cachewarden.messages import (
    ActionClass,
    AuditRecord,
    Decision,
    Execution,
    Finding,
    KnobChange,
    Lease,
    Prediction,
    Proposal,
    Resolution,
    ResolutionOutcome,
    TtlRule,
    Verdict,
)
from cachewarden.observation import Capabilities, Observation, ProbeCost
from cachewarden.protocol import Execute, ExecutionReport, PauseUnread
from cachewarden.settings import CacheOptimizerSettings

MIB = 1 << 20
T0 = 1_700_000_000_000
SETTINGS = CacheOptimizerSettings(_env_file=None, observation_window_ms=20_000, lease_ttl_ms=6_000, lead_ms=0)
FLEET = parse_fleet(
    """
total_memory_bytes: 200mb
services:
  - name: sessions
    url: "redis://localhost:1"
    mode: auto
    patterns: [{prefix: "user:", max_staleness_s: 600}, {prefix: "page:", max_staleness_s: 600}]
  - {name: pages, url: "redis://localhost:2", mode: auto}
"""
)
PERMISSIVE = FLEET.model_copy(
    update={
        "services": tuple(
            s
            if s.name == "sessions"
            else s.model_copy(update={"config_rewrite": True, "reencode": True, "patterns": (KeyPattern(prefix="p:"),)})
            for s in FLEET.services
        )
    }
)
"""The same fleet; the owner of `pages` permits its file to be rewritten and its keys to be stored again."""
RULE = TtlRule(pattern="user:", written_ttl_ms=15_000, extended_ttl_ms=600_000, max_staleness_ms=600_000)
KNOBS = {
    "maxmemory": str(40 * MIB),
    "maxmemory-policy": "noeviction",
    "lfu-decay-time": "1",
    "lfu-log-factor": "10",
    "maxmemory-samples": "5",
    "hash-max-listpack-entries": "128",
}


class WriteAheadError(AssertionError):
    """A write left before its intention was in the journal, or after the lease had run out."""


class CrashError(Exception):
    """The process died here."""


@dataclass(frozen=True)
class Fault:
    """How an effect fails. `applied`: it happened all the same (only the answer was lost)."""

    kind: str
    reason: str = "as told"
    applied: bool = False
    unknown: bool = False
    late_ms: int = 0
    """The command is still on its way and is carried out then, unless the fence is written before, which its WATCH notices."""
    evicts_fence: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)


REFUSED = Fault("TargetRefused", "NOPERM")
UNAVAILABLE = Fault("TargetUnavailable", "connection refused")
LOST = Fault("TargetTimeout", "no answer", unknown=True)
LOST_BUT_DONE = Fault("TargetTimeout", "no answer", applied=True, unknown=True)
LOST_AND_LATE = Fault("TargetTimeout", "no answer", unknown=True, late_ms=200)
FENCE_EVICTED = Fault("", evicts_fence=True)
JOURNAL_DOWN = Fault("JournalUnavailable", "the server is gone")
JOURNAL_DOUBTFUL = Fault("JournalUnavailable", "no confirmation", applied=True)
Faults = Callable[[int, m.Effect], Fault | None]


def no_faults(_number: int, _effect: m.Effect) -> Fault | None:
    return None


def change(knob: str, after: Any, before: Any = None) -> KnobChange:
    return KnobChange(knob=knob, before=str(KNOBS[knob] if before is None else before), after=str(after))


def proposal(
    *changes: KnobChange,
    rules: tuple[TtlRule, ...] = (),
    playbook: str = "direct",
    service: str = "sessions",
    low: float = 0.90,
    before: float = 0.80,
    **other: Any,
) -> Proposal:
    """A proposal that promises a hit ratio of 0.95, at least `low`."""
    values: dict[str, Any] = {
        "proposal_id": "p-1",
        "service": service,
        "author": "planner",
        "created_at_ms": T0,
        "expires_at_ms": T0 + 300_000,
        "kinds": ("memory",),
        "knob_changes": changes,
        "ttl_rules": rules,
        "action_class": ActionClass.LOSSY,
        "reversible": True,
        "playbook": playbook,
        "rollback": "set the old values again",
        "rationale": "test",
        "evidence": (),
        "prediction": Prediction(
            hit_ratio_before=Estimate.around(before, 0.01),
            hit_ratio_after=Estimate(max(0.95, low), low, 1.0),
            gain=Estimate(0.15, 0.1, 0.2),
            lookups_per_s=1000.0,
            memory_bytes_after=40 * MIB,
            latency_us_p99_after=None,
            method="test",
            settle_ms=0,
        ),
        "cost": {},
    }
    return Proposal(**{**values, **other})


def order(wanted: Proposal, **other: Any) -> Execute:
    """An order with everything in place."""
    finding = Finding(principle_id="p", title="t", severity="low", decision=Decision.ALLOW, reason="fine")
    values: dict[str, Any] = {
        "proposal": wanted,
        "verdict": Verdict(
            proposal_id=wanted.proposal_id,
            proposal_digest=digest(wanted),
            decision=Decision.ALLOW,
            findings=(finding,),
            constitution_digest="c",
            judged_at_ms=T0,
        ),
        "resolution": Resolution(
            proposal_id=wanted.proposal_id, service=wanted.service, outcome=ResolutionOutcome.GO, reason="alone"
        ),
        "hit_ratio_before": 0.80,
        "latency_us_p99_before": None,
        "memory_bytes": {"sessions": 40 * MIB, "pages": 40 * MIB},
        "budget_bytes": 200 * MIB,
    }
    return Execute(**{**values, **other})


class Cache:
    """One server. Its hit ratio follows from its knobs and from whether its keys' TTLs are extended."""

    def __init__(self, knobs: Mapping[str, str] = KNOBS) -> None:
        self.knobs = dict(knobs)
        self.fence: int | None = None
        self.fence_writes = 0
        self.run_id = "r1"
        self.role = "master"
        self.loading = "0"
        self.used = 38 * MIB
        self.host_bytes = 1 << 30
        self.evicts = True
        self.refused = 0
        self.lookups_per_s = 1000.0
        self.hits = self.misses = 0.0
        self.extended: set[str] = set()
        self.ratio: Callable[[Cache], float] = lambda c: 0.95
        self.incomplete: dict[str, str] = {}
        self.touches = 0
        self.reencoded = 0
        self.file: dict[str, str] | None = None
        """What the configuration file holds since it was rewritten."""
        self.rewrite_refused = ""
        self.passes_per_round = 1
        self.pass_ms = 0
        """How long a TTL pass is on its way before it does anything."""
        self.passes: list[m.ExtendTtls] = []

    def pass_time(self, ms: int) -> None:
        lookups = self.lookups_per_s * ms / 1000.0
        self.hits += lookups * self.ratio(self)
        self.misses += lookups * (1.0 - self.ratio(self))
        if self.evicts:
            self.used = min(self.used, int(self.knobs["maxmemory"]))

    def observe(self, service: str, now_ms: int) -> Observation:
        info = {
            "run_id": self.run_id,
            "role": self.role,
            "loading": self.loading,
            "uptime_in_seconds": str(now_ms // 1000),
            "keyspace_hits": str(int(self.hits)),
            "keyspace_misses": str(int(self.misses)),
            "evicted_keys": "0",
            "expired_keys": "0",
            "used_memory": str(self.used),
            "total_system_memory": str(self.host_bytes),
            "db0": "keys=20000,expires=0",
            "total_error_replies": str(self.refused),
            "total_commands_processed": str(int(self.hits + self.misses)),
            "server_time_usec": str(now_ms * 1000),
        }
        if self.refused:
            info["errorstat_OOM"] = f"count={self.refused}"
        return Observation(
            service=service,
            at_ms=now_ms,
            info=info,
            latency_us={},
            knobs=dict(self.knobs),
            capabilities=Capabilities(config_get=True, config_set=True),
            own_hits_total=0,
            own_misses_total=0,
            round_trip_us=100.0,
            cost=ProbeCost(),
            incomplete=dict(self.incomplete),
        )


class World:
    """Caches, leases, journal and clock around one actuator after the other."""

    def __init__(
        self, faults: Faults = no_faults, crash_at: int | None = None, settings: CacheOptimizerSettings = SETTINGS
    ) -> None:
        self.now_ms = T0
        self.settings = settings
        self.caches = {"sessions": Cache(), "pages": Cache()}
        self.journal: list[AuditRecord] = []
        self.reports: list[Execution] = []
        self.performed: list[m.Effect] = []
        self.foreign_lease: str | None = None
        self.faults = faults
        self.crash_at = crash_at
        self._lease: dict[str, tuple[str, int, int]] = {}
        self._epochs: dict[str, int] = {}
        self._lives = 0
        self._tick = itertools.count()
        self._queue: list[tuple[int, int, Any]] = []
        self._timers: dict[str, int] = {}
        self.start()

    # --- What tests say ---------------------------------------------------------------------------------------------

    @property
    def cache(self) -> Cache:
        return self.caches["sessions"]

    @property
    def last(self) -> Execution:
        return self.reports[-1]

    @property
    def kinds(self) -> list[str]:
        return [r.kind for r in self.journal]

    @property
    def written(self) -> list[dict[str, str]]:
        return [{c.knob: c.after for c in e.changes} for e in self.performed if isinstance(e, m.WriteKnobs)]

    def count(self, kind: type) -> int:
        return sum(isinstance(e, kind) for e in self.performed)

    def append(self, kind: str, service: str = "sessions", **payload: Any) -> None:
        """What another deployment writes of the newest change."""
        newest = next(r for r in reversed(self.journal) if r.kind == "change_intended")
        own = {"execution_id": newest.payload["execution_id"], **payload}
        seq, subject_id = len(self.journal) + 1, newest.subject_id
        self.journal.append(
            AuditRecord(
                seq=seq, at_ms=self.now_ms, kind=kind, agent="o", service=service, subject_id=subject_id, payload=own
            )
        )

    def start(self) -> None:
        """A new life of the actuator: it knows nothing but the journal, and nothing that was on its way arrives."""
        self._lives += 1
        self._queue = [entry for entry in self._queue if isinstance(entry[2], tuple)]
        heapq.heapify(self._queue)
        self._timers.clear()
        self.actuator = Actuator(holder=f"actuator-{self._lives}", settings=self.settings, fleet=PERMISSIVE)
        self._step(m.Started(records=tuple(r for r in self.journal if r.kind in self.actuator.replay_kinds)))

    def tell(self, message: Any) -> None:
        self._step(m.Received(sender="coordinator", message=message))

    def run(self, limit_ms: int = 600_000, until: Callable[[], bool] | None = None) -> World:
        """Let time pass until the change has ended, or `until` holds, or the limit."""
        done = until or (lambda: bool(self.reports) and self.last.state.final)
        end_ms = self.now_ms + limit_ms
        while not done() and self._queue and self._queue[0][0] <= end_ms:
            due_ms, number, event = heapq.heappop(self._queue)
            if isinstance(event, tuple):
                self._wait_until(due_ms)
                self._land_late(*event)
                continue
            if isinstance(event, m.TimerFired):
                if self._timers.get(event.ref) != number:
                    continue
                del self._timers[event.ref]
            self._wait_until(due_ms)
            self._step(event)
        if not done():
            self._wait_until(end_ms)
        return self

    # --- The machinery ----------------------------------------------------------------------------------------------

    def _wait_until(self, due_ms: int) -> None:
        if due_ms > self.now_ms:
            for cache in self.caches.values():
                cache.pass_time(due_ms - self.now_ms)
            self.now_ms = due_ms

    def _land_late(self, effect: Any, fence_writes: int | None) -> None:
        """A command that was on its way arrives; with `fence_writes` only if the fence was not written since."""
        cache = self.caches[effect.service]
        if fence_writes is None:
            self._later(0, self._do(effect))
        elif (cache.fence_writes, cache.fence) == (fence_writes, effect.lease.epoch):
            if isinstance(effect, m.WriteKnobs):
                cache.knobs.update({c.knob: c.after for c in effect.changes})
            elif isinstance(effect, m.ExtendTtls) and not effect.restore:
                cache.extended.add(effect.rule.pattern)

    def _step(self, event: Any) -> None:
        try:
            for effect in self.actuator.step(event, self.now_ms):
                self._perform(effect)
        except CrashError:
            self.start()

    def _later(self, delay_ms: int, event: Any) -> int:
        number = next(self._tick)
        heapq.heappush(self._queue, (self.now_ms + delay_ms, number, event))
        return number

    def _perform(self, effect: m.Effect) -> None:
        if isinstance(effect, m.SetTimer):
            self._timers[effect.ref] = self._later(max(0, effect.due_ms - self.now_ms), m.TimerFired(ref=effect.ref))
            return
        if isinstance(effect, m.Send):
            if isinstance(effect.message, PauseUnread):
                return
            assert isinstance(effect.message, ExecutionReport)
            self.reports.append(effect.message.execution)
            return
        if isinstance(effect, m.ReadJournal):
            # Looking on for other deployments is no part of a change.
            self._later(2, self._do(effect))
            return
        number = len(self.performed)
        self.performed.append(effect)
        # Odd crash points die before the effect leaves, even ones after it has been done and before its answer is there.
        if self.crash_at is not None and self.crash_at == 2 * number + 1:
            raise CrashError
        fault = self.faults(number, effect)
        if fault is None and isinstance(effect, m.ExtendTtls) and self.caches[effect.service].pass_ms:
            self._later(self.caches[effect.service].pass_ms, (effect, None))
            return
        if fault is not None and fault.evicts_fence:
            for cache in self.caches.values():
                cache.fence = None
            fault = None
        answer = self._do(effect) if fault is None or fault.applied else None
        if fault is not None and fault.late_ms:
            self._later(fault.late_ms, (effect, self.caches[effect.service].fence_writes))
        if self.crash_at is not None and self.crash_at == 2 * number:
            raise CrashError
        if fault is not None:
            answer = m.EffectFailed(
                ref=effect.ref,
                effect=type(effect).__name__,
                kind=fault.kind,
                reason=fault.reason,
                outcome_unknown=fault.unknown,
                details=fault.details,
            )
        if answer is not None:
            self._later(2, answer)

    def _do(self, effect: m.Effect) -> Any:
        return getattr(self, f"_do_{type(effect).__name__}")(effect)

    def _do_Record(self, e: m.Record) -> Any:  # noqa: N802
        payload = json.loads(canonical_json(e.payload))
        record = AuditRecord(
            seq=len(self.journal) + 1,
            at_ms=self.now_ms,
            kind=e.kind,
            agent="actuator",
            service=e.service,
            subject_id=e.subject_id,
            payload=payload,
        )
        self.journal.append(record)
        return m.Recorded(ref=e.ref, record=record)

    def _do_ReadJournal(self, e: m.ReadJournal) -> Any:  # noqa: N802
        return m.JournalRead(ref=e.ref, records=tuple(r for r in self.journal if r.seq > e.after_seq)[: e.limit])

    def _do_AcquireLease(self, e: m.AcquireLease) -> Any:  # noqa: N802
        if self.foreign_lease is not None:
            return m.LeaseDenied(
                ref=e.ref, service=e.service, holder=self.foreign_lease, reason=f"held by `{self.foreign_lease}`"
            )
        holder, epoch, until = self._lease.get(e.service, ("", 0, 0))
        if holder != self.actuator.holder and until > self.now_ms:
            return m.LeaseDenied(ref=e.ref, service=e.service, holder=holder, reason=f"held by `{holder}`")
        if holder != self.actuator.holder:
            epoch = self._epochs[e.service] = self._epochs.get(e.service, 0) + 1
        self._lease[e.service] = (self.actuator.holder, epoch, self.now_ms + e.ttl_ms)
        if e.fenced:
            cache = self.caches[e.service]
            if (cache.fence or 0) > epoch:
                self._lease[e.service] = ("", epoch, 0)
                return m.LeaseDenied(ref=e.ref, service=e.service, holder=None, reason=f"the fence is `{cache.fence}`")
            cache.fence = epoch
            cache.fence_writes += 1
        return m.LeaseGranted(
            ref=e.ref,
            lease=Lease(
                service=e.service, holder=self.actuator.holder, epoch=epoch, expires_at_ms=self.now_ms + e.ttl_ms
            ),
        )

    def _do_ReleaseLease(self, e: m.ReleaseLease) -> Any:  # noqa: N802
        holder, epoch, _ = self._lease.get(e.lease.service, ("", 0, 0))
        if (holder, epoch) == (e.lease.holder, e.lease.epoch):
            self._lease[e.lease.service] = ("", epoch, 0)

    def _do_ReadKnobs(self, e: m.ReadKnobs) -> Any:  # noqa: N802
        knobs = self.caches[e.service].knobs
        return m.KnobsRead(ref=e.ref, service=e.service, values={k: knobs[k] for k in e.knobs if k in knobs})

    def _do_ReadCounters(self, e: m.ReadCounters) -> Any:  # noqa: N802
        return m.Observed(
            ref=e.ref, service=e.service, observation=self.caches[e.service].observe(e.service, self.now_ms)
        )

    def _fenced(self, e: Any) -> Any:
        cache = self.caches[e.service]
        holder, _, until_ms = self._lease[e.service]
        if holder == self.actuator.holder and until_ms <= self.now_ms:
            raise WriteAheadError(f"a write to `{e.service}` without a lease")
        if cache.fence == e.lease.epoch:
            return None
        return m.EffectFailed(
            ref=e.ref,
            effect=type(e).__name__,
            kind="StaleFencingToken",
            reason=f"the fence is `{cache.fence}`",
            details={"found": cache.fence},
        )

    def _do_WriteKnobs(self, e: m.WriteKnobs) -> Any:  # noqa: N802
        self._check_write_ahead(e.service, lambda what: what["changes"] == to_jsonable(e.changes))
        stale = self._fenced(e)
        if stale is None:
            self.caches[e.service].knobs.update({c.knob: c.after for c in e.changes})
        knobs = self.caches[e.service].knobs
        return stale or m.KnobsWritten(ref=e.ref, service=e.service, values={c.knob: knobs[c.knob] for c in e.changes})

    def _do_CollectHotKeys(self, e: m.CollectHotKeys) -> Any:  # noqa: N802
        return m.HotKeysCollected(ref=e.ref, service=e.service, keys=min(e.limit, 100))

    def _do_TouchHotKeys(self, e: m.TouchHotKeys) -> Any:  # noqa: N802
        self._check_write_ahead(e.service, lambda what: what["kind"] == "touch_hot_keys")
        self.caches[e.service].touches += e.times
        return self._fenced(e) or m.HotKeysCollected(ref=e.ref, service=e.service, keys=100)

    def _do_MeasureSpread(self, e: m.MeasureSpread) -> Any:  # noqa: N802
        above = 100 if self.caches[e.service].touches else 0
        return m.SpreadMeasured(ref=e.ref, service=e.service, examined=100, above=above)

    def _do_ReencodeKeys(self, e: m.ReencodeKeys) -> Any:  # noqa: N802
        self._check_write_ahead(e.service, lambda what: what["kind"] == "reencode_keys")
        stale = self._fenced(e)
        if stale is not None:
            return stale
        cache = self.caches[e.service]
        cache.reencoded += 10
        cursor = (e.cursor + 1) % cache.passes_per_round
        return m.KeysReencoded(
            ref=e.ref, service=e.service, cursor=cursor, examined=1000, reencoded=10, bytes_moved=1000
        )

    def _do_RewriteConfig(self, e: m.RewriteConfig) -> Any:  # noqa: N802
        if not any(r.kind in ("step_intended", "rollback_intended") for r in self.journal):
            raise WriteAheadError(f"nothing in the journal announces that the file of `{e.service}` is rewritten")
        stale = self._fenced(e)
        if stale is not None:
            return stale
        cache = self.caches[e.service]
        if cache.rewrite_refused:
            return m.ConfigRewritten(ref=e.ref, service=e.service, rewritten=False, reason=cache.rewrite_refused)
        cache.file = dict(cache.knobs)
        return m.ConfigRewritten(ref=e.ref, service=e.service, rewritten=True, reason="")

    def _do_ExtendTtls(self, e: m.ExtendTtls) -> Any:  # noqa: N802
        self._check_write_ahead(e.service, lambda what: what["rule"] == to_jsonable(e.rule))
        cache = self.caches[e.service]
        stale = self._fenced(e)
        if stale is not None:
            return stale
        cache.passes.append(e)
        (cache.extended.discard if e.restore else cache.extended.add)(e.rule.pattern)
        cursor = (e.cursor + 1) % cache.passes_per_round
        return m.TtlsExtended(ref=e.ref, service=e.service, cursor=cursor, examined=1000, extended=10, commands=20)

    def _check_write_ahead(self, service: str, matches: Callable[[Mapping[str, Any]], bool]) -> None:
        for record in self.journal:
            if record.service != service:
                continue
            if record.kind == "step_intended" and matches(record.payload["what"]):
                return
            if record.kind == "rollback_intended" and any(matches(what) for what in record.payload["steps"]):
                return
        raise WriteAheadError(f"nothing in the journal announces this write to `{service}`")
