"""The agent that keeps caches warm: it remembers what is hot, loads it again when the cache has lost it, and refreshes
it before it expires.

It acts only for services in mode `auto` whose fleet file permits it (`keep_warm`, `refresh_ahead` of the origin), never
while changes are paused, and never beyond the share of the origin's rate that the file gives it. It follows the journal
for modes and pauses, of whichever deployment. It never sees a name of a key and never replaces what the application
wrote.

Per service: watching -> intending -> warming -> watching. INVARIANT: no load begins before its intention is durable in
the journal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cachewarden.fleet import Fleet, Origin
from cachewarden.keeping import (
    CacheLife,
    HotRefreshed,
    HotRemembered,
    HotWarmed,
    LifeRead,
    ReadLife,
    RefreshHot,
    RememberHot,
    WarmHot,
)
from cachewarden.machine import (
    Effect,
    EffectFailed,
    JournalRead,
    ReadJournal,
    Record,
    Recorded,
    SetTimer,
    Started,
    TimerFired,
)
from cachewarden.messages import CONSTITUTIONAL_HASH, AuditRecord, Mode, RecordKind
from cachewarden.modes import modes_of, with_modes

__all__ = ["WARMTH", "Warmth", "kept_warm"]

WARMTH: Final = "warmer"

_LOOK_MS: Final = 2_000
_REMEMBER_MS: Final = 60_000
_FIRST_REMEMBER_MS: Final = 2_000
_JOURNAL_MS: Final = 2_000
_PAGE: Final = 1_000
_AGAIN_MS: Final = 30_000
_BURST_SHARE: Final = 0.10
"""Of the resident keys, evicted between two looks: as many as no steady cache loses in two seconds."""
_BURST_KEYS: Final = 100
_TRIES_MAX: Final = 3
_PART_MAX: Final = 500
_SUMMARY_MS: Final = 300_000
_KINDS: Final = (RecordKind.PAUSED.value, RecordKind.RESUMED.value, RecordKind.MODE_CHANGED.value)


def kept_warm(fleet: Fleet) -> tuple[str, ...]:
    """Return the services whose fleet file permits that they are kept warm in any way."""
    return tuple(
        s.name for s in fleet.services if s.origin is not None and (s.origin.keep_warm or s.origin.refresh_ahead)
    )


@dataclass(slots=True)
class _Cache:
    origin: Origin
    life: CacheLife | None = None
    remembered: int = 0
    next_remember_ms: int = 0
    busy: str = ""
    """`intending` or `warming`; empty while watching."""
    why: str = ""
    tries: int = 0
    not_before_ms: int = 0
    waiting: set[str] = field(default_factory=set)
    """Effects whose answer is awaited: at most one of each kind."""
    permitted: bool = False
    """The journal has it that refreshing begins."""
    warmed: Counter[str] = field(default_factory=Counter)
    """Outcomes of the loading under way."""
    refreshed: Counter[str] = field(default_factory=Counter)
    next_summary_ms: int = 0


class Warmth:
    """The machine; see the module."""

    replay_kinds = _KINDS

    def __init__(self, fleet: Fleet, name: str = WARMTH) -> None:
        self.name = name
        self._filed = self._fleet = fleet
        self._caches = {s: _Cache(origin) for s in kept_warm(fleet) if (origin := fleet.service(s).origin) is not None}
        self._modes: list[AuditRecord] = []
        self._paused = True
        """Until the journal has been read."""
        self._caught_up = False
        self._seq = 0
        self._operations = 0
        self._began_ms = 0
        self._handlers: Mapping[type, Callable[[Any, int], tuple[Effect, ...]]] = {
            Started: self._on_started,
            TimerFired: self._on_timer,
            JournalRead: self._on_journal,
            Recorded: lambda event, now_ms: self._on_recorded(event.ref, now_ms),
            LifeRead: self._on_life,
            HotRemembered: self._on_remembered,
            HotWarmed: self._on_warmed,
            HotRefreshed: self._on_refreshed,
            EffectFailed: self._on_failed,
        }

    def step(self, event: Any, now_ms: int) -> tuple[Effect, ...]:
        """Take one event; others change nothing."""
        handler = self._handlers.get(type(event))
        return () if handler is None else handler(event, now_ms)

    def _acts(self, service: str) -> bool:
        return self._caught_up and not self._paused and self._fleet.service(service).mode is Mode.AUTO

    # --- Modes and pauses -------------------------------------------------------------------------------------------

    def _on_started(self, event: Started, now_ms: int) -> tuple[Effect, ...]:
        self._began_ms = now_ms
        self._paused = False
        self._follow(event.records)
        return (self._read(), SetTimer(ref="look", due_ms=now_ms + _LOOK_MS))

    def _read(self) -> Effect:
        return ReadJournal(ref="journal", after_seq=self._seq, limit=_PAGE)

    def _follow(self, records: Iterable[AuditRecord]) -> None:
        for record in records:
            self._seq = max(self._seq, record.seq)
            if record.kind == RecordKind.MODE_CHANGED:
                self._modes.append(record)
            elif record.kind in (RecordKind.PAUSED, RecordKind.RESUMED):
                self._paused = record.kind == RecordKind.PAUSED
        # Of each service the newest counts.
        self._modes = list({record.service: record for record in self._modes}.values())
        self._fleet = with_modes(self._filed, modes_of(self._modes, self._filed))

    def _on_journal(self, event: JournalRead, now_ms: int) -> tuple[Effect, ...]:
        self._follow(event.records)
        if len(event.records) >= _PAGE:
            return (self._read(),)
        self._caught_up = True
        return (SetTimer(ref="journal", due_ms=now_ms + _JOURNAL_MS),)

    # --- Time -------------------------------------------------------------------------------------------------------

    def _on_timer(self, event: TimerFired, now_ms: int) -> tuple[Effect, ...]:
        if event.ref == "journal":
            return (self._read(),)
        if event.ref != "look":
            return ()
        effects: list[Effect] = [SetTimer(ref="look", due_ms=now_ms + _LOOK_MS)]
        for service, cache in self._caches.items():
            if self._acts(service):
                effects += self._look(service, cache, now_ms)
            else:
                # Whoever was away does not know what happened meanwhile.
                cache.life, cache.permitted = None, False
        return tuple(effects)

    def _look(self, service: str, cache: _Cache, now_ms: int) -> tuple[Effect, ...]:
        effects: list[Effect] = []
        effects += self._once(cache, ReadLife(ref=f"life:{service}", service=service))
        if now_ms >= cache.next_remember_ms and not cache.busy and cache.life is not None:
            cache.next_remember_ms = now_ms + (_REMEMBER_MS if cache.remembered else _FIRST_REMEMBER_MS)
            limit = cache.origin.hot_keys
            effects += self._once(cache, RememberHot(ref=f"remember:{service}", service=service, limit=limit))
        if cache.origin.refresh_ahead and cache.remembered and not cache.busy:
            effects += self._refresh(service, cache, now_ms)
        return tuple(effects)

    def _once(self, cache: _Cache, effect: Effect) -> tuple[Effect, ...]:
        if effect.ref in cache.waiting:
            return ()
        cache.waiting.add(effect.ref)
        return (effect,)

    def _refresh(self, service: str, cache: _Cache, now_ms: int) -> tuple[Effect, ...]:
        if not cache.permitted:
            payload = {"phase": "refreshing", "hot_keys": cache.remembered}
            return self._once(cache, self._record(f"permit:{service}", service, payload))
        effects: tuple[Effect, ...] = ()
        if now_ms >= cache.next_summary_ms:
            cache.next_summary_ms = now_ms + _SUMMARY_MS
            if cache.refreshed:
                effects = (
                    self._record(
                        f"summary:{service}", service, {"phase": "refreshed", "counts": dict(cache.refreshed)}
                    ),
                )
                cache.refreshed.clear()
        share = cache.origin.background_share
        asked = RefreshHot(ref=f"refresh:{service}", service=service, period_ms=_LOOK_MS, rate_share=share)
        return (*effects, *self._once(cache, asked))

    def _record(self, ref: str, service: str, payload: dict[str, Any]) -> Record:
        return Record(
            ref=ref,
            kind=RecordKind.KEYS_WARMED.value,
            service=service,
            subject_id=f"{self.name}-{service}-{self._began_ms}-{self._operations}",
            payload={"constitutional_hash": CONSTITUTIONAL_HASH, "caller": self.name, **payload},
        )

    # --- What was lost ----------------------------------------------------------------------------------------------

    def _on_life(self, event: LifeRead, now_ms: int) -> tuple[Effect, ...]:
        cache = self._caches[event.service]
        cache.waiting.discard(event.ref)
        before, now = cache.life, event.life
        if now.loading:
            # What it loads by itself need not be loaded from the origin.
            return ()
        cache.life = now
        if not cache.origin.keep_warm or before is None or not self._acts(event.service):
            return ()
        why = _lost(before, now)
        if why is not None:
            cache.why, cache.tries = why, 0
        if not cache.why or cache.busy or not cache.remembered or now_ms < cache.not_before_ms:
            return ()
        cache.busy = "intending"
        self._operations += 1
        payload = {"phase": "intended", "why": cache.why, "hot_keys": cache.remembered}
        return (self._record(f"intend:{event.service}", event.service, payload),)

    def _on_recorded(self, ref: str, _now_ms: int) -> tuple[Effect, ...]:
        step, _, service = ref.partition(":")
        cache = self._caches.get(service)
        if cache is None:
            return ()
        cache.waiting.discard(ref)
        if step == "permit":
            cache.permitted = self._acts(service)
        if step != "intend" or cache.busy != "intending":
            return ()
        if not self._acts(service):
            cache.busy = ""
            return (self._record(f"end:{service}", service, {"phase": "failed", "reason": "paused, or another mode"}),)
        cache.busy = "warming"
        cache.warmed.clear()
        return (self._next_part(service, cache),)

    def _next_part(self, service: str, cache: _Cache) -> Effect:
        """Return the loading of as many keys as about two seconds permit, so that a pause is heeded in between."""
        share = cache.origin.background_share
        count = max(1, min(_PART_MAX, int(cache.origin.rate_per_s * share * _LOOK_MS / 1000)))
        start = sum(cache.warmed.values())
        return WarmHot(ref=f"warm:{service}", service=service, rate_share=share, start=start, count=count)

    def _on_warmed(self, event: HotWarmed, now_ms: int) -> tuple[Effect, ...]:
        cache = self._caches[event.service]
        cache.warmed.update(event.counts)
        if event.counts and self._acts(event.service):
            return (self._next_part(event.service, cache),)
        counts = dict(cache.warmed)
        failed = counts.get("failed", 0)
        cache.busy, cache.tries = "", cache.tries + 1
        cache.not_before_ms = now_ms + _AGAIN_MS * cache.tries
        if failed * 2 <= sum(counts.values()) or cache.tries >= _TRIES_MAX:
            cache.why = ""
        return (self._record(f"end:{event.service}", event.service, {"phase": "finished", "counts": counts}),)

    def _on_remembered(self, event: HotRemembered, _now_ms: int) -> tuple[Effect, ...]:
        cache = self._caches[event.service]
        cache.waiting.discard(event.ref)
        cache.remembered = event.keys
        return ()

    def _on_refreshed(self, event: HotRefreshed, _now_ms: int) -> tuple[Effect, ...]:
        cache = self._caches[event.service]
        cache.waiting.discard(event.ref)
        cache.refreshed.update({name: number for name, number in event.counts.items() if number})
        return ()

    def _on_failed(self, event: EffectFailed, now_ms: int) -> tuple[Effect, ...]:
        if event.ref == "journal":
            # Without the journal nobody knows of a pause or a mode.
            self._caught_up = False
            return (SetTimer(ref="journal", due_ms=now_ms + _JOURNAL_MS),)
        step, _, service = event.ref.partition(":")
        cache = self._caches.get(service)
        if cache is None:
            return ()
        cache.waiting.discard(event.ref)
        if step == "intend":
            cache.busy, cache.not_before_ms = "", now_ms + _LOOK_MS
        if step == "warm":
            cache.busy, cache.tries = "", cache.tries + 1
            cache.not_before_ms = now_ms + _AGAIN_MS * cache.tries
            cache.why = "" if cache.tries >= _TRIES_MAX else cache.why
            return (self._record(f"end:{service}", service, {"phase": "failed", "reason": event.kind}),)
        return ()


def _lost(before: CacheLife, now: CacheLife) -> str | None:
    """Return in words why the hot set may be gone, or None."""
    if before.run_id != now.run_id:
        return "the server was restarted, or another one answers"
    if now.role == "master" and before.role != "master":
        return "the server became the primary"
    evicted = now.evicted_keys - before.evicted_keys
    if evicted >= max(_BURST_KEYS, _BURST_SHARE * max(before.keys, 1)):
        return f"{evicted} keys were evicted between two looks"
    return None
