"""The Auditor: what it has proven stays proven, what is broken is told."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.auditor import Auditor
from cachewarden import chain
from cachewarden.chain import Checkpoint
from cachewarden.errors import JournalUnavailable
from cachewarden.machine import (
    EffectFailed,
    JournalRead,
    ReadJournal,
    Record,
    Recorded,
    Send,
    SetTimer,
    Started,
    TimerFired,
)
from cachewarden.ports import RecordDraft
from cachewarden.protocol import ChainChecked
from simulation.fake_journal import FakeJournal

START_MS = 1_800_000_000_000


class World:
    """Performs the auditor's effects on a journal in memory, at a clock that the test moves."""

    def __init__(self, **options) -> None:
        self.journal = FakeJournal()
        self.auditor = Auditor(**({"page_records": 10} | options))
        self.now_ms = START_MS
        self.told: list[ChainChecked] = []
        self.asked: list[ReadJournal] = []
        self.due_ms: int | None = None

    def write(self, count: int, kind: str = "cycle") -> None:
        drafts = [
            RecordDraft(at_ms=n, kind=kind, agent="a", service=None, subject_id=str(n), payload={})
            for n in range(count)
        ]
        asyncio.run(self.journal.append(drafts))

    def start(self) -> None:
        self.give(Started())

    def tick(self) -> None:
        assert self.due_ms is not None
        self.now_ms = max(self.now_ms, self.due_ms)
        self.give(TimerFired(ref="audit"))

    def give(self, event) -> None:
        events = [event]
        while events:
            for effect in self.auditor.step(events.pop(0), self.now_ms):
                events += self.perform(effect)

    def perform(self, effect) -> list:
        if isinstance(effect, SetTimer):
            self.due_ms = effect.due_ms
        elif isinstance(effect, Send):
            assert effect.to == "coordinator"
            self.told.append(effect.message)
        elif isinstance(effect, ReadJournal):
            self.asked.append(effect)
            return [
                self.answer(
                    effect,
                    lambda: JournalRead(
                        ref=effect.ref, records=tuple(asyncio.run(self.journal.read(effect.after_seq, effect.limit)))
                    ),
                )
            ]
        elif isinstance(effect, Record):
            draft = RecordDraft(
                at_ms=self.now_ms,
                kind=effect.kind,
                agent="auditor",
                service=None,
                subject_id=effect.subject_id,
                payload=effect.payload,
            )
            return [
                self.answer(
                    effect, lambda: Recorded(ref=effect.ref, record=asyncio.run(self.journal.append([draft]))[0])
                )
            ]
        return []

    @staticmethod
    def answer(effect, work):
        try:
            return work()
        except JournalUnavailable as error:
            return EffectFailed(
                ref=effect.ref, effect=type(effect).__name__, kind="JournalUnavailable", reason=str(error)
            )


def test_an_intact_journal_is_proven_page_by_page_and_told():
    world = World()
    world.write(35)
    world.start()
    assert [a.after_seq for a in world.asked] == [0, 10, 20, 30]
    [told] = world.told
    assert (told.ok, told.height, told.checked, told.checkpoint_seq) == (True, 35, 35, 35)
    assert told.checkpoint_hash == world.journal.records[34].hash
    assert world.auditor.checkpoint == Checkpoint(seq=35, hash=told.checkpoint_hash, at_ms=START_MS)


def test_an_empty_journal_is_in_order_and_leaves_no_record():
    world = World()
    world.start()
    world.tick()
    assert [(t.ok, t.height) for t in world.told] == [(True, 0), (True, 0)]
    assert world.journal.records == []


def test_only_what_is_new_is_read_again_and_the_checkpoint_itself():
    world = World()
    world.write(5)
    world.start()
    world.write(3)
    world.asked.clear()
    world.tick()
    assert [a.after_seq for a in world.asked] == [4]
    assert world.told[-1].checkpoint_seq == len(world.journal.records)


def test_a_checkpoint_is_recorded_once_and_an_idle_journal_does_not_grow():
    world = World()
    world.write(5)
    world.start()
    for _ in range(50):
        world.tick()
    marks = [r for r in world.journal.records if r.kind == "checkpoint"]
    assert [m.payload["seq"] for m in marks] == [5]
    world.write(1)
    for _ in range(10):
        world.tick()
    assert [r.payload["seq"] for r in world.journal.records if r.kind == "checkpoint"] == [5, 7]


def test_now_and_then_everything_is_verified_from_the_first_record_on():
    world = World(interval_ms=10_000, full_interval_ms=60_000)
    world.write(5)
    world.start()
    world.asked.clear()
    for _ in range(7):
        world.tick()
    assert [a.after_seq for a in world.asked].count(0) == 1


def test_an_old_record_that_was_edited_is_found_by_the_full_pass():
    world = World(interval_ms=10_000, full_interval_ms=60_000)
    world.write(5)
    world.start()
    world.journal.records[1] = dataclasses.replace(world.journal.records[1], payload={"edited": True})
    for _ in range(7):
        world.tick()
    assert not world.told[-1].ok
    assert "record 2 edited" in world.told[-1].problems[0]
    assert world.told[-1].checkpoint_seq >= 5


def test_a_cut_off_tail_is_an_alarm():
    world = World()
    world.write(20)
    world.start()
    del world.journal.records[12:]
    world.tick()
    assert not world.told[-1].ok
    assert "truncated" in world.told[-1].problems[0]


def test_a_checkpoint_from_outside_shows_what_happened_while_we_were_away():
    before = World()
    before.write(20)
    before.start()
    mark = before.auditor.checkpoint
    world = World(checkpoint=mark)
    world.journal.records = before.journal.records[:10]
    world.start()
    assert not world.told[-1].ok


def test_an_alarm_is_told_once_is_never_taken_back_and_nothing_is_recorded_any_more():
    world = World(interval_ms=10_000, full_interval_ms=60_000)
    world.write(10)
    good = list(world.journal.records)
    world.journal.records[3] = dataclasses.replace(good[3], agent="x")
    world.start()
    told = len(world.told)
    world.tick()
    assert len(world.told) == told == 1
    world.journal.records = good
    for _ in range(7):
        world.tick()
    assert world.auditor.broken
    assert all(not t.ok for t in world.told)
    assert all(r.kind != "checkpoint" for r in world.journal.records)


def test_a_journal_that_does_not_answer_is_neither_intact_nor_broken():
    world = World()
    world.write(5)
    world.journal.available = False
    world.start()
    world.tick()
    assert world.told == []
    world.journal.available = True
    world.tick()
    assert world.told[-1].ok


def test_a_damaged_entry_in_a_page_is_an_alarm():
    world = World()
    world.write(5)
    world.journal.records[2] = chain.damaged(3, chain.ProblemKind.UNREADABLE, "no JSON")
    world.start()
    assert "record 3 unreadable: no JSON" in world.told[-1].problems[0]


def test_an_answer_that_never_comes_does_not_hold_up_the_next_pass():
    auditor = Auditor(interval_ms=1_000)
    effects = auditor.step(Started(), START_MS)
    assert any(isinstance(e, ReadJournal) for e in effects)
    assert not any(isinstance(e, ReadJournal) for e in auditor.step(TimerFired(ref="audit"), START_MS + 1_000))
    late = auditor.step(TimerFired(ref="audit"), START_MS + 60_000)
    [again] = [e for e in late if isinstance(e, ReadJournal)]
    assert auditor.step(JournalRead(ref="audit:1:0", records=()), START_MS + 60_001) == ()
    assert auditor.step(JournalRead(ref=again.ref, records=()), START_MS + 60_002)


@pytest.mark.parametrize(
    "event",
    [
        TimerFired(ref="other"),
        Recorded(ref="x", record=None),
        EffectFailed(ref="", effect="Send", kind="x", reason=""),
        object(),
        None,
    ],
)  # type: ignore[arg-type]
def test_events_that_answer_nothing_are_ignored(event):
    assert Auditor().step(event, START_MS) == ()


EVENTS = st.lists(st.sampled_from(["tick", "write", "down", "up", "jump_back", "jump_ahead"]), max_size=30)


@settings(max_examples=60, deadline=None)
@given(EVENTS)
def test_whatever_happens_an_untouched_journal_never_alarms(events):
    world = World(full_interval_ms=60_000)
    world.start()
    for event in events:
        if event == "tick":
            world.tick()
        elif event == "write" and world.journal.available:
            world.write(7)
        elif event in ("down", "up"):
            world.journal.available = event == "up"
        elif event.startswith("jump"):
            world.now_ms += 3_600_000 if event == "jump_ahead" else -3_600_000
    world.journal.available = True
    world.tick()
    assert all(t.ok for t in world.told)


def pauses(world, passes):
    found = []
    for _ in range(passes):
        world.tick()
        found.append((world.due_ms - world.now_ms) // 10_000)
    return found


def test_a_journal_that_nobody_writes_to_is_read_more_rarely_step_by_step_up_to_the_bound():
    world = World(idle_factor=4)
    world.write(5)
    world.start()
    found = pauses(world, 20)
    assert found[:6] == [1] * 6
    assert found[-3:] == [4, 4, 4]
    assert sorted(found) == found


def test_a_new_record_brings_the_pace_of_the_auditor_back():
    world = World(idle_factor=4)
    world.write(5)
    world.start()
    pauses(world, 20)
    world.write(1)
    # The pass that finds it was planned before; the ones after it come after the usual interval.
    assert pauses(world, 3)[1:] == [1, 1]


def test_a_journal_that_is_broken_or_gone_is_read_at_the_usual_pace():
    world = World(idle_factor=4)
    world.write(5)
    world.start()
    pauses(world, 20)
    del world.journal.records[3:]
    assert pauses(world, 3)[1:] == [1, 1]
