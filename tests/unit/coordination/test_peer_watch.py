"""When the blackboard is looked at, and what all looks together have shown."""

from __future__ import annotations

from cachewarden.machine import EffectFailed, SetTimer, Started, TimerFired
from cachewarden.peer_input import AwaitHint, Hinted, PeersRead, ReadPeers, is_hint
from cachewarden.ports import BOARD_AREAS, BoardPage
from coordination.peer_watch import PeerWatch

NOW = 1_000_000
AREA = "knowledge:performance"
POLL = TimerFired(ref="peers:poll")


def page(*ids, cursor="", bad=0):
    return BoardPage(records=tuple({"id": i} for i in ids), cursor=cursor, bad=bad)


def answer(watch_ref, *ids, **more):
    return PeersRead(ref=watch_ref, pages={AREA: page(*ids, **more)})


def due(effects):
    return [e.due_ms for e in effects if isinstance(e, SetTimer)]


class Eye:
    """A watch, the number of its looks, and its time."""

    def __init__(self, interval_ms=5_000):
        self.watch = PeerWatch(interval_ms)
        self.first = self.watch.step(Started(), NOW)
        self.looks = 0

    def look(self):
        effects = self.watch.step(POLL, NOW)
        self.looks += bool(effects)
        return effects

    def see(self, *ids, **more):
        return self.watch.step(answer(f"peers:look:{self.looks}", *ids, **more), NOW)

    def fail(self):
        failed = EffectFailed(
            ref=f"peers:look:{self.looks}", effect="ReadPeers", kind="BlackboardUnavailable", reason="r"
        )
        return self.watch.step(failed, NOW)

    @property
    def ids(self):
        return [r["id"] for r in self.watch.knowledge(AREA.partition(":")[2])]


def test_the_first_look_comes_at_once_and_a_hint_is_waited_for():
    eye = Eye()
    assert [type(e) for e in eye.first] == [AwaitHint, SetTimer]
    assert due(eye.first) == [NOW]


def test_nobody_looks_where_the_interval_is_zero():
    eye = Eye(0)
    assert eye.first == eye.look() == ()


def test_one_look_at_a_time_and_the_next_after_the_interval():
    eye = Eye()
    [read] = eye.look()
    assert isinstance(read, ReadPeers)
    assert set(read.cursors) == set(BOARD_AREAS)
    assert eye.look() == ()
    assert due(eye.see()) == [NOW + 5_000]


def test_an_answer_to_an_earlier_look_changes_nothing():
    eye = Eye()
    eye.look()
    assert eye.watch.step(answer("peers:look:7", "a"), NOW) == ()
    assert eye.ids == []


def test_a_round_goes_on_where_the_last_look_ended_and_quickly():
    eye = Eye()
    eye.look()
    assert due(eye.see("a", cursor="5000")) == [NOW + 50]
    assert (eye.ids, eye.watch.whole(AREA)) == (["a"], False)
    [read] = eye.look()
    assert read.cursors[AREA] == "5000"
    assert due(eye.see("b")) == [NOW + 5_000]
    assert (eye.ids, eye.watch.whole(AREA)) == (["a", "b"], True)


def test_what_is_gone_counts_as_gone_once_a_round_is_complete():
    eye = Eye()
    eye.look()
    eye.see("a", "b")
    eye.look()
    eye.see("b", cursor="7")
    assert eye.ids == ["a", "b"]
    eye.look()
    eye.see("c")
    assert eye.ids == ["b", "c"]


def test_a_hint_brings_the_next_look_forward_but_not_closer_than_half_a_second():
    eye = Eye()
    eye.look()
    assert [type(e) for e in eye.see("a")] == [SetTimer]
    assert due(eye.watch.step(Hinted(ref="peers:hint"), NOW + 100)) == [NOW + 500]
    assert due(eye.watch.step(Hinted(ref="peers:hint"), NOW + 900)) == [NOW + 900]


def test_a_hint_during_a_look_brings_another_look():
    eye = Eye()
    eye.look()
    assert eye.watch.step(Hinted(ref="peers:hint"), NOW) == ()
    effects = eye.see("a")
    assert due(effects) == [NOW + 500]
    assert any(isinstance(e, AwaitHint) for e in effects)


def test_a_blackboard_that_does_not_answer_is_asked_again_from_the_beginning_and_nothing_is_forgotten():
    eye = Eye()
    eye.look()
    eye.see("a")
    eye.look()
    eye.see("b", cursor="9")
    eye.look()
    assert due(eye.fail()) == [NOW + 5_000]
    assert (eye.watch.trouble, eye.watch.failures, eye.ids) == ("does not answer", 1, ["a"])
    [read] = eye.look()
    assert read.cursors[AREA] == ""
    eye.see("c")
    assert (eye.watch.trouble, eye.ids) == ("", ["c"])


def test_a_subscription_that_broke_is_made_anew_with_the_next_look():
    eye = Eye()
    failed = EffectFailed(ref="peers:hint", effect="AwaitHint", kind="BlackboardUnavailable", reason="r")
    assert eye.watch.step(failed, NOW) == ()
    eye.look()
    assert any(isinstance(e, AwaitHint) for e in eye.see())


def test_a_flood_of_records_is_bounded_and_counted():
    eye = Eye()
    eye.look()
    eye.see(*(f"r{n}" for n in range(2_500)), bad=3)
    assert (len(eye.ids), eye.watch.left_out, eye.watch.bad) == (2_000, 500, 3)


def test_only_what_may_concern_us_is_a_hint():
    def event(kind, **data):
        return {"event_type": kind, "timestamp": None, "data": data}

    assert is_hint(event("knowledge_added", space="performance", agent_id="peer"))
    assert is_hint(event("task_created", task_type="cache_optimization"))
    assert is_hint(event("conflict_detected"))
    assert not is_hint(event("knowledge_added", space="performance", agent_id="cache_performance_optimizer"))
    assert not is_hint(event("knowledge_added", space="governance", agent_id="peer"))
    assert not is_hint(event("task_created", task_type="ethics_review"))
    assert not is_hint({"event_type": "task_created", "data": []})


def test_a_round_over_several_looks_is_as_old_as_its_first_look():
    eye = Eye()
    eye.watch.step(POLL, NOW)
    eye.watch.step(answer("peers:look:1", "a", cursor="7"), NOW + 10)
    assert eye.watch.whole_ms[AREA] == 0
    eye.watch.step(POLL, NOW + 60)
    eye.watch.step(answer("peers:look:2", "b"), NOW + 70)
    assert eye.watch.whole_ms[AREA] == NOW
    eye.watch.step(POLL, NOW + 5_000)
    eye.watch.step(answer("peers:look:3", "a", "b"), NOW + 5_010)
    assert eye.watch.whole_ms[AREA] == NOW + 5_000
