"""How each effect is performed: which port, which event answers, and how a failure is told.

The table is shared by whoever performs effects: `shell.py` under asyncio, and the simulator in virtual time. So what is
proven there is what runs here. It decides nothing and keeps nothing; nothing in it waits but for a port.

INVARIANT: every effect that expects an answer gets exactly one: the event of its row, or `EffectFailed`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cachewarden import machine as m
from cachewarden.errors import CachewardenError, JournalUnavailable, OperatingError, StaleFencingToken
from cachewarden.keeping import KeepWarm, keeping_performers
from cachewarden.peer_input import peer_input_performers
from cachewarden.peering import Peers, peer_performers
from cachewarden.ports import Blackboard, Clock, Journal, LeaseStore, Mailbox, RecordDraft, TargetCache

__all__ = ["Performer", "Ports", "drafts_of", "failure_of", "performers"]

Performer = Callable[[Any], Awaitable[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """What a shell may reach. An agent whose effects need a port that is None gets `EffectFailed`."""

    clock: Clock
    mailbox: Mailbox
    journal: Journal | None = None
    leases: LeaseStore | None = None
    targets: Mapping[str, TargetCache] = field(default_factory=dict)
    blackboard: Blackboard | None = None
    peers: Peers | None = None
    keep_warm: KeepWarm | None = None
    draw: Callable[[], float] = lambda: 1.0
    """Where in its spread a timer lies, 0..1; without dice at its end."""
    close: Callable[[], Awaitable[None]] | None = None
    """Gives back what the ports hold (connections)."""


def performers(agent: m.Agent, ports: Ports) -> dict[type[m.Effect], Performer]:
    """Return how each effect of `machine.py` and `peering.py` is performed for one agent.

    Send, SetTimer, Publish and Record are not among them: a shell delivers, waits, mirrors and appends by itself.
    """
    work = _Work(agent, ports)
    return {
        m.ReadJournal: work.read_journal,
        m.Observe: work.observe,
        m.ReadCounters: work.read_counters,
        m.AcquireLease: work.acquire_lease,
        m.ReleaseLease: work.release_lease,
        m.ReadKnobs: work.read_knobs,
        m.WriteKnobs: work.write_knobs,
        m.CollectHotKeys: work.collect_hot_keys,
        m.TouchHotKeys: work.touch_hot_keys,
        m.MeasureSpread: work.measure_spread,
        m.ReencodeKeys: work.reencode_keys,
        m.RewriteConfig: work.rewrite_config,
        m.ExtendTtls: work.extend_ttls,
        **peer_performers(ports.peers, ports.journal),
        **peer_input_performers(ports.blackboard),
        **keeping_performers(ports.keep_warm),
    }


def drafts_of(agent: str, records: Sequence[m.Record], now_ms: int) -> list[RecordDraft]:
    """Return the drafts of the records of one step; they are appended together."""
    return [
        RecordDraft(
            at_ms=now_ms,
            kind=r.kind,
            agent=agent,
            service=r.service,
            subject_id=r.subject_id,
            payload=r.payload,
            fences=r.fences,
        )
        for r in records
    ]


def failure_of(effect: m.Effect, error: Exception) -> m.EffectFailed:
    """Return how a failed effect is told to the agent that asked for it."""
    # An unexpected exception may have come after the command left: its outcome counts as unknown.
    expected = isinstance(error, CachewardenError)
    details = {k: v for k, v in vars(error).items() if isinstance(v, (str, int, float, type(None)))} if expected else {}
    return m.EffectFailed(
        ref=effect.ref,
        effect=type(effect).__name__,
        kind=type(error).__name__,
        reason=str(error),
        outcome_unknown=bool(getattr(error, "outcome_unknown", not expected)),
        details=details,
    )


class _Work:
    def __init__(self, agent: m.Agent, ports: Ports) -> None:
        self._agent = agent
        self._ports = ports

    def _target(self, service: str) -> TargetCache:
        target = self._ports.targets.get(service)
        if target is None:
            raise OperatingError(f"`{self._agent.name}` has no access to the cache of `{service}`")
        return target

    def _lease_store(self) -> LeaseStore:
        if self._ports.leases is None:
            raise OperatingError(f"`{self._agent.name}` has no access to the leases")
        return self._ports.leases

    async def read_journal(self, e: m.ReadJournal) -> m.JournalRead:
        if self._ports.journal is None:
            raise JournalUnavailable("this agent has no journal")
        if e.kinds:
            records = await self._ports.journal.read_back(e.kinds, e.limit)
        else:
            records = await self._ports.journal.read(e.after_seq, e.limit, skimmed=e.skimmed)
        return m.JournalRead(ref=e.ref, records=tuple(records))

    async def observe(self, e: m.Observe) -> m.Observed:
        seen = await self._target(e.service).observe(
            sample_keys=e.sample_keys,
            capture_ms=e.capture_ms,
            capture_lines=e.capture_lines,
            capture_rate=e.capture_rate,
            value_keys=e.value_keys,
        )
        return m.Observed(ref=e.ref, service=e.service, observation=seen)

    async def read_counters(self, e: m.ReadCounters) -> m.Observed:
        return m.Observed(ref=e.ref, service=e.service, observation=await self._target(e.service).counters())

    async def acquire_lease(self, e: m.AcquireLease) -> m.LeaseGranted | m.LeaseDenied:
        store = self._lease_store()
        lease = await store.acquire(e.service, getattr(self._agent, "holder", self._agent.name), e.ttl_ms)
        if lease is None:
            current = await store.holder(e.service)
            holder = current.holder if current else None
            return m.LeaseDenied(ref=e.ref, service=e.service, holder=holder, reason=f"held by `{holder}`")
        if not e.fenced:
            return m.LeaseGranted(ref=e.ref, lease=lease)
        try:
            await self._target(e.service).raise_fence(lease)
        except StaleFencingToken as error:
            current = await store.holder(e.service)
            if current is not None and current.holder != lease.holder:
                return m.LeaseDenied(ref=e.ref, service=e.service, holder=current.holder, reason=str(error))
            # The cache was fenced by a writer that this store knows nothing of. A lease that is renewed keeps its
            # epoch, and would never be let in again.
            await store.release(lease)
            return m.LeaseDenied(ref=e.ref, service=e.service, holder=None, reason=str(error))
        return m.LeaseGranted(ref=e.ref, lease=lease)

    async def release_lease(self, e: m.ReleaseLease) -> None:
        await self._lease_store().release(e.lease)

    async def read_knobs(self, e: m.ReadKnobs) -> m.KnobsRead:
        return m.KnobsRead(ref=e.ref, service=e.service, values=await self._target(e.service).read_knobs(e.knobs))

    async def write_knobs(self, e: m.WriteKnobs) -> m.KnobsWritten:
        values = await self._target(e.service).write_knobs(e.lease, e.changes)
        return m.KnobsWritten(ref=e.ref, service=e.service, values=values)

    async def collect_hot_keys(self, e: m.CollectHotKeys) -> m.HotKeysCollected:
        return m.HotKeysCollected(
            ref=e.ref, service=e.service, keys=await self._target(e.service).collect_hot_keys(e.limit)
        )

    async def touch_hot_keys(self, e: m.TouchHotKeys) -> m.HotKeysCollected:
        kept = await self._target(e.service).touch_hot_keys(e.lease, e.times, e.keys_per_s)
        return m.HotKeysCollected(ref=e.ref, service=e.service, keys=kept)

    async def measure_spread(self, e: m.MeasureSpread) -> m.SpreadMeasured:
        found = await self._target(e.service).measure_spread(e.limit)
        return m.SpreadMeasured(ref=e.ref, service=e.service, examined=found.examined, above=found.above)

    async def reencode_keys(self, e: m.ReencodeKeys) -> m.KeysReencoded:
        done = await self._target(e.service).reencode_keys(e.lease, e.cursor, e.max_keys, e.keys_per_s)
        return m.KeysReencoded(
            ref=e.ref,
            service=e.service,
            cursor=done.cursor,
            examined=done.examined,
            reencoded=done.reencoded,
            bytes_moved=done.bytes_moved,
        )

    async def rewrite_config(self, e: m.RewriteConfig) -> m.ConfigRewritten:
        why_not = await self._target(e.service).rewrite_config(e.lease)
        return m.ConfigRewritten(ref=e.ref, service=e.service, rewritten=why_not is None, reason=why_not or "")

    async def extend_ttls(self, e: m.ExtendTtls) -> m.TtlsExtended:
        done = await self._target(e.service).extend_ttls(
            e.lease, e.rule, e.cursor, e.max_keys, e.restore, e.idle_known_ms
        )
        return m.TtlsExtended(
            ref=e.ref,
            service=e.service,
            cursor=done.cursor,
            examined=done.examined,
            extended=done.extended,
            commands=done.commands,
            peak_found=done.peak_found,
            peak_left=done.peak_left,
        )
