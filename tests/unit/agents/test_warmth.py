"""The agent that keeps caches warm: when it remembers, when it loads, and when it must not."""

from __future__ import annotations

from typing import Any

import pytest

from agents.warmth import Warmth, kept_warm
from cachewarden.fleet import parse_fleet
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
    due_early,
)
from cachewarden.machine import (
    EffectFailed,
    JournalRead,
    ReadJournal,
    Record,
    Recorded,
    SetTimer,
    Started,
    TimerFired,
)
from cachewarden.messages import AuditRecord

FLEET = parse_fleet(
    """
services:
  - name: pages
    url: redis://localhost:1
    mode: auto
    patterns: [{prefix: "p:", max_staleness_s: 60}]
    origin: {kind: http, url: "http://origin/{key}", keep_warm: true, refresh_ahead: true, background_share: 0.5}
  - {name: other, url: "redis://localhost:2", mode: auto}
"""
)


def record(seq: int, kind: str, **payload: Any) -> AuditRecord:
    service = "pages" if kind == "mode_changed" else None
    return AuditRecord(seq=seq, at_ms=0, kind=kind, agent="x", service=service, subject_id="x", payload=payload)


class World:
    """Answers every effect at once; the cache is what the test makes of it."""

    def __init__(self) -> None:
        self.agent = Warmth(FLEET)
        self.now_ms = 0
        self.life = CacheLife(run_id="a", role="master", keys=1_000, evicted_keys=0)
        self.journal: list[AuditRecord] = []
        self.asked: list[Any] = []
        self.journal_down = False
        self.warm_counts: dict[str, int] = {"warmed": 10}
        self.take(self.agent.step(Started(), 0))

    def take(self, effects: tuple[Any, ...]) -> None:
        for effect in effects:
            answer = self.answer(effect)
            if answer is not None:
                self.take(self.agent.step(answer, self.now_ms))

    def answer(self, effect: Any) -> Any:
        self.asked.append(effect)
        if isinstance(effect, SetTimer):
            return None
        if self.journal_down and isinstance(effect, (Record, ReadJournal)):
            return EffectFailed(ref=effect.ref, effect="Record", kind="JournalUnavailable", reason="gone")
        if isinstance(effect, ReadJournal):
            return JournalRead(ref=effect.ref, records=tuple(r for r in self.journal if r.seq > effect.after_seq))
        if isinstance(effect, Record):
            return Recorded(ref=effect.ref, record=record(999, "keys_warmed"))
        return {
            ReadLife: lambda e: LifeRead(ref=e.ref, service=e.service, life=self.life),
            RememberHot: lambda e: HotRemembered(ref=e.ref, service=e.service, keys=10),
            WarmHot: lambda e: HotWarmed(ref=e.ref, service=e.service, counts=self.warm_counts if e.start == 0 else {}),
            RefreshHot: lambda e: HotRefreshed(ref=e.ref, service=e.service, counts={"refreshed": 1}),
        }[type(effect)](effect)

    def looks(self, times: int = 1) -> None:
        for _ in range(times):
            self.now_ms += 2_000
            self.take(self.agent.step(TimerFired(ref="journal"), self.now_ms))
            self.take(self.agent.step(TimerFired(ref="look"), self.now_ms))

    def of(self, kind: type) -> list[Any]:
        return [e for e in self.asked if isinstance(e, kind)]

    def loadings(self) -> list[WarmHot]:
        """Return the first part of each loading."""
        return [e for e in self.of(WarmHot) if e.start == 0]


def phases(world: World) -> list[str]:
    return [e.payload["phase"] for e in world.of(Record)]


def restarted(world: World) -> None:
    world.life = CacheLife(run_id="b", role="master", keys=0, evicted_keys=0)


def test_only_what_the_fleet_file_permits_is_kept_warm():
    assert kept_warm(FLEET) == ("pages",)


def test_hot_keys_are_remembered_and_loaded_again_after_a_restart():
    world = World()
    world.looks(4)
    assert world.loadings() == []
    restarted(world)
    world.looks()
    (warm,) = world.loadings()
    assert (warm.service, warm.rate_share) == ("pages", 0.5)
    assert phases(world)[-2:] == ["intended", "finished"]
    world.looks(5)
    assert len(world.loadings()) == 1


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (CacheLife(run_id="a", role="slave", keys=10, evicted_keys=0), CacheLife(run_id="a", role="master", keys=10, evicted_keys=0)),
        (CacheLife(run_id="a", role="master", keys=1_000, evicted_keys=0), CacheLife(run_id="a", role="master", keys=800, evicted_keys=200)),
    ],
)  # fmt: skip
def test_a_failover_and_a_burst_of_evictions_are_losses_too(before: CacheLife, after: CacheLife):
    world = World()
    world.life = before
    world.looks(4)
    world.life = after
    world.looks()
    assert len(world.loadings()) == 1


def test_a_loading_goes_on_in_parts_that_fit_the_origins_share_and_heeds_a_pause_in_between():
    world = World()
    world.looks(4)
    asked = world.agent.step(
        LifeRead(ref="life:pages", service="pages", life=CacheLife(run_id="b", role="master", keys=0, evicted_keys=0)),
        9_000,
    )
    (intent,) = asked
    (first,) = world.agent.step(Recorded(ref=intent.ref, record=record(5, "keys_warmed")), 9_000)
    assert (first.start, first.count) == (0, 200)
    (second,) = world.agent.step(HotWarmed(ref=first.ref, service="pages", counts={"warmed": 200}), 11_000)
    assert second.start == 200
    world.agent.step(JournalRead(ref="journal", records=(record(6, "paused"),)), 12_000)
    (end,) = world.agent.step(HotWarmed(ref=second.ref, service="pages", counts={"warmed": 200}), 13_000)
    assert (end.payload["phase"], end.payload["counts"]) == ("finished", {"warmed": 400})


def test_steady_eviction_is_no_loss():
    world = World()
    for number in range(10):
        world.life = CacheLife(run_id="a", role="master", keys=1_000, evicted_keys=50 * number)
        world.looks()
    assert world.loadings() == []


def test_a_server_that_loads_its_own_data_is_waited_for():
    world = World()
    world.looks(4)
    world.life = CacheLife(run_id="b", role="master", keys=0, evicted_keys=0, loading=True)
    world.looks(3)
    assert world.loadings() == []
    restarted(world)
    world.looks()
    assert len(world.loadings()) == 1


def test_nothing_is_loaded_without_the_journals_word():
    world = World()
    world.looks(4)
    restarted(world)
    world.journal_down = True
    world.looks(3)
    assert world.loadings() == []


@pytest.mark.parametrize(
    "said",
    [record(1, "paused", by="ann"), record(1, "mode_changed", mode="advise", file_mode="auto")],
)
def test_a_pause_and_another_mode_stop_everything_and_are_read_from_the_journal(said: AuditRecord):
    world = World()
    world.looks(4)
    world.journal = [said]
    world.looks()
    world.asked.clear()
    restarted(world)
    world.looks(5)
    assert [e for e in world.asked if not isinstance(e, (SetTimer, ReadJournal))] == []


def test_what_happened_during_a_pause_is_not_made_up_for():
    world = World()
    world.looks(4)
    world.journal = [record(1, "paused")]
    world.looks()
    restarted(world)
    world.journal.append(record(2, "resumed"))
    world.looks(3)
    assert world.loadings() == []


def test_a_load_that_mostly_failed_is_tried_again_a_few_times_with_pauses():
    world = World()
    world.warm_counts = {"failed": 9, "warmed": 1}
    world.looks(4)
    restarted(world)
    world.looks(200)
    assert len(world.loadings()) == 3


def test_refreshing_begins_once_the_journal_has_it_and_is_summed_up():
    world = World()
    world.looks(4)
    assert phases(world)[0] == "refreshing"
    assert world.of(RefreshHot)
    world.looks(200)
    assert "refreshed" in phases(world)
    assert phases(world).count("refreshing") == 1


@pytest.mark.parametrize(
    ("remaining_ms", "draw", "due"),
    [
        (-1, 0.5, False),
        (-2, 0.5, False),
        (0, 0.5, False),
        (1_500, 1.0, True),
        (60_000, 0.5, False),
        (2_250, 0.05, True),
    ],
)
def test_a_key_is_due_before_its_end_and_earlier_the_longer_its_load_takes(remaining_ms: int, draw: float, due: bool):
    assert due_early(remaining_ms, load_ms=100, period_ms=2_000, draw=draw) is due


def test_keys_with_one_deadline_are_not_due_in_one_moment():
    draws = [(i + 0.5) / 100 for i in range(100)]
    early = [sum(due_early(left, 500, 0, draw) for draw in draws) for left in (2_000, 1_000, 500, 100, 1)]
    assert early == sorted(early)
    assert 0 < early[0] < early[1] < early[2] < 100
