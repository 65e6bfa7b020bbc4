"""The look at the blackboard: when it is made, where each part of it goes on, and what all looks together have shown.

A look is bounded, so a full round over a part may take several; they follow each other quickly until the round is over.
What was seen in a round counts at once, what is gone counts as gone when the round is complete. Hints bring the next
look forward, no closer than `_GAP_MS`. Where nobody else writes and nothing of ours is in flight (`heed`), looks come
step by step more rarely. Whoever has to know what stands there from now on asks for a fresh round (`ask_fresh`), and is
told by `seen_since`. It decides nothing about what it has seen.

INVARIANT: what peers hold counts as known only after a whole round, and while looks succeed (`readable`). At most one
look and one wait for a hint are under way; while something is in flight, and where a look has failed or found anything,
the next one comes after the usual interval at most; what is kept is bounded whatever peers write.
"""

from __future__ import annotations

from typing import Any, Final, cast

from cachewarden.board_records import BoardRecord, ConflictRecord, KnowledgeRecord
from cachewarden.machine import Effect, EffectFailed, SetTimer, Started, TimerFired
from cachewarden.pauses import longest_pause_ms
from cachewarden.peer_input import AwaitHint, Hinted, PeersRead, ReadPeers
from cachewarden.ports import BOARD_AREAS

__all__ = ["LOOK_REF", "PeerWatch"]

LOOK_REF: Final = "peers:"
"""How the refs of its effects and timers begin."""
_LOOK: Final = f"{LOOK_REF}look"
_HINT: Final = f"{LOOK_REF}hint"
_POLL: Final = f"{LOOK_REF}poll"
_GAP_MS: Final = 500
_DOUBLINGS_MAX: Final = 10
_NEXT_PAGE_MS: Final = 50
_FULL_PAGE: Final = 200
"""Records in one look from which on the next one takes its time: reading them is work, passing dead ids is not."""
_KEPT_MAX: Final = 2_000
"""Records per area; beyond it the later ones of the index, which are less urgent, are left out and counted."""
_HOLDING: Final = ("knowledge:performance", "conflicts:open")
"""The parts in which peers say what they hold."""
_MISSED_MAX: Final = 3
"""Intervals without a good look after which nobody knows any more what peers hold."""
_EMPTY_LOOKS: Final = 6
"""Looks in a row that have found nothing at all, after which pauses grow: each is twice the one before."""


class PeerWatch:
    """`interval_ms` lies between two rounds without hints; 0 means that nobody looks. A look may take `timeout_ms`.
    `idle_factor` intervals (within `pauses.longest_pause_ms`) lie between them at most, where hints are waited for,
    nobody has written anything for a while and nothing is in flight; 1 keeps the pace whatever happens."""

    def __init__(self, interval_ms: int, timeout_ms: int = 0, *, idle_factor: int = 1) -> None:
        self._idle_factor = idle_factor
        self._engaged = False
        """Whether something is in flight that a peer may be in the way of."""
        self._due_ms = 0
        """When the next look comes."""
        self._stale_ms = _MISSED_MAX * interval_ms + timeout_ms
        self._owed = set(_HOLDING)
        """Of which parts there was no whole round since the start, or since a look failed."""
        self._good_ms: int | None = None
        """When a look last left nothing owed."""
        self._left_out_ms = 0
        """How much later than usual the look after that one comes."""
        self._interval_ms = interval_ms
        self._cursors: dict[str, str] = dict.fromkeys(BOARD_AREAS, "")
        self._complete: dict[str, dict[str, BoardRecord]] = {area: {} for area in BOARD_AREAS}
        self._round: dict[str, dict[str, BoardRecord]] = {area: {} for area in BOARD_AREAS}
        self._looks = 0
        self._looking = self._awaiting = self._hinted = self._urgent = False
        self._fresh = 0
        """The look from which on somebody waits for a whole round."""
        self._looked_ms = 0
        self._empty = 0
        """Looks in a row that have found nothing."""
        self.done = self.failures = self.bad = self.left_out = 0
        """Looks that succeeded and failed, unusable records, and records beyond the bound, since the start."""
        self.trouble = ""
        self.rounds: dict[str, int] = dict.fromkeys(BOARD_AREAS, 0)
        self._began_ms: dict[str, int] = dict.fromkeys(BOARD_AREAS, 0)
        self.whole_ms: dict[str, int] = dict.fromkeys(BOARD_AREAS, 0)
        """When the last complete round over each area began; 0 before the first."""
        self._began_look: dict[str, int] = dict.fromkeys(BOARD_AREAS, 0)
        self._whole_look: dict[str, int] = dict.fromkeys(BOARD_AREAS, 0)
        """The look with which the last complete round over each area began."""

    def knowledge(self, space: str) -> tuple[KnowledgeRecord, ...]:
        """Return what others have written into a space, as far as it is known."""
        # Which records an area holds is the adapter's promise (`BOARD_AREAS`).
        return cast(tuple[KnowledgeRecord, ...], self._records(f"knowledge:{space}"))

    def open_conflicts(self) -> tuple[ConflictRecord, ...]:
        """Return the open conflicts, as far as they are known."""
        return cast(tuple[ConflictRecord, ...], self._records("conflicts:open"))

    def _records(self, area: str) -> tuple[BoardRecord, ...]:
        return tuple({**self._complete[area], **self._round[area]}.values())

    @property
    def looks_at_all(self) -> bool:
        return self._interval_ms > 0

    def whole(self, area: str) -> bool:
        """Whether the last look has completed a round over the area, so that what is not there is gone."""
        return self.rounds[area] > 0 and not self._cursors[area]

    def readable(self, now_ms: int) -> bool:
        """Whether it is known what peers hold; true where nobody looks, as then nobody is asked."""
        if not self._interval_ms:
            return True
        return self._good_ms is not None and now_ms - self._good_ms <= self._stale_ms + self._left_out_ms

    @property
    def holds_nothing(self) -> bool:
        """Whether the last look has found nothing of anybody else, and nothing is left of the looks before."""
        return self._empty > 0

    @property
    def _pause_ms(self) -> int:
        """Return how long to wait without hints. Whoever begins a change looks first, so this is about no promise."""
        if self._engaged or not self._awaiting or self._empty < _EMPTY_LOOKS:
            return self._interval_ms
        doublings = min(self._empty - _EMPTY_LOOKS + 1, _DOUBLINGS_MAX)
        return longest_pause_ms(self._interval_ms, min(1 << doublings, self._idle_factor))

    def heed(self, now_ms: int, *, engaged: bool) -> tuple[Effect, ...]:
        """Take note whether something is in flight. From the moment that it is, looks come at the usual pace."""
        began, self._engaged = engaged and not self._engaged, engaged
        late = self._due_ms > now_ms + self._interval_ms
        return self._look_at(now_ms + self._interval_ms) if began and late and not self._looking else ()

    def _look_at(self, due_ms: int) -> tuple[Effect, ...]:
        self._due_ms = due_ms
        return (SetTimer(ref=_POLL, due_ms=due_ms),)

    def ask_fresh(self, now_ms: int) -> tuple[int, tuple[Effect, ...]]:
        """Ask for a whole round of what peers hold that begins after this moment; returns what `seen_since` is asked
        with, and what is to be done."""
        self._fresh = self._looks + 1
        if self._looking:
            # What is under way may have passed by already what matters.
            self._urgent = True
            return self._fresh, ()
        return self._fresh, self._look_at(now_ms)

    def seen_since(self, fresh: int) -> bool:
        """Whether such a round is complete."""
        return all(self._whole_look[area] >= fresh for area in _HOLDING)

    def step(
        self, event: Any, now_ms: int, tasks: tuple[str, ...] = (), conflicts: tuple[str, ...] = ()
    ) -> tuple[Effect, ...]:
        """Take one event; `tasks` and `conflicts` are the ids that the next look has to read by name."""
        if not self._interval_ms:
            return ()
        if isinstance(event, Started):
            return (*self._await_hint(), *self._look_at(now_ms))
        if isinstance(event, TimerFired) and event.ref == _POLL:
            return self._look(tasks, conflicts, now_ms)
        if isinstance(event, Hinted):
            self._awaiting, self._hinted, self._empty = False, True, 0
            due_ms = max(now_ms, self._looked_ms + _GAP_MS)
            return () if self._looking else self._look_at(due_ms)
        if isinstance(event, PeersRead) and event.ref == self._ref:
            return self._on_read(event, now_ms)
        if isinstance(event, EffectFailed):
            return self._on_failed(event, now_ms)
        return ()

    @property
    def _ref(self) -> str:
        return f"{_LOOK}:{self._looks}"

    def _await_hint(self) -> tuple[Effect, ...]:
        if self._awaiting:
            return ()
        self._awaiting = True
        return (AwaitHint(ref=_HINT),)

    def _look(self, tasks: tuple[str, ...], conflicts: tuple[str, ...], now_ms: int) -> tuple[Effect, ...]:
        if self._looking:
            return ()
        self._looking, self._hinted, self._urgent = True, False, False
        self._looks += 1
        self._began_ms |= {area: now_ms for area, cursor in self._cursors.items() if not cursor}
        self._began_look |= {area: self._looks for area, cursor in self._cursors.items() if not cursor}
        return (ReadPeers(ref=self._ref, cursors=dict(self._cursors), tasks=tasks, conflicts=conflicts),)

    def _on_read(self, event: PeersRead, now_ms: int) -> tuple[Effect, ...]:
        self._looking, self._looked_ms, self.trouble = False, now_ms, ""
        self.done += 1
        self._empty += 1
        for area, page in event.pages.items():
            self.bad += page.bad
            if page.records or page.cursor or page.bad or self._cursors[area] or self._complete[area]:
                self._empty = 0
            seen = self._round[area]
            for record in page.records:
                if len(seen) < _KEPT_MAX or record["id"] in seen:
                    seen[record["id"]] = record
                else:
                    self.left_out += 1
            self._cursors[area] = page.cursor
            if not page.cursor:
                self._complete[area], self._round[area] = seen, {}
                self.rounds[area] += 1
                self.whole_ms[area] = self._began_ms[area]
                self._whole_look[area] = self._began_look[area]
                self._owed.discard(area)
        if event.tasks or event.conflicts or self._hinted:
            # Somebody writes, or something of ours is followed up.
            self._empty = 0
        if not self._owed:
            self._good_ms, self._left_out_ms = now_ms, self._pause_ms - self._interval_ms
        # What was hinted at while the look was under way may lie in a part that it had passed already.
        pause_ms = _GAP_MS if self._hinted else self._pause_ms
        if any(self._cursors.values()):
            pause_ms = _NEXT_PAGE_MS if sum(len(p.records) for p in event.pages.values()) < _FULL_PAGE else _GAP_MS
        pause_ms = min(pause_ms, self._pause_ms)
        if self._urgent:
            pause_ms = 0
        elif self._fresh > min(self._whole_look[area] for area in _HOLDING):
            pause_ms = min(pause_ms, _NEXT_PAGE_MS)
        return (*self._await_hint(), *self._look_at(now_ms + pause_ms))

    def _on_failed(self, event: EffectFailed, now_ms: int) -> tuple[Effect, ...]:
        if event.ref == _HINT:
            # The next look waits for hints again, and without hints no pause is a long one.
            self._awaiting, self._empty = False, 0
            late = self._due_ms > now_ms + self._interval_ms
            return self._look_at(now_ms + self._interval_ms) if late and not self._looking else ()
        if event.ref != self._ref:
            return ()
        self._looking, self._looked_ms = False, now_ms
        self._empty = 0
        self.failures += 1
        self.trouble = "does not answer"
        # A round that was interrupted begins anew: the server may have come back with other content.
        self._cursors = dict.fromkeys(BOARD_AREAS, "")
        self._round = {area: {} for area in BOARD_AREAS}
        self._owed = set(_HOLDING)
        return self._look_at(now_ms + self._interval_ms)
