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


class PatientEye(Eye):
    """One that may take its time."""

    def __init__(self, idle_factor=4):
        super().__init__()
        self.watch = PeerWatch(5_000, 1_000, idle_factor=idle_factor)
        self.watch.step(Started(), NOW)

    def pauses(self, looks):
        """Return the pauses after so many looks that find nothing."""
        found = []
        for _ in range(looks):
            self.look()
            found.append(due(self.see())[0] - NOW)
        return found


def test_where_nobody_writes_looks_come_more_rarely_step_by_step_up_to_the_bound():
    assert PatientEye().pauses(9) == [5_000] * 5 + [10_000, 20_000, 20_000, 20_000]
    assert PatientEye(idle_factor=3).pauses(9)[-2:] == [15_000, 15_000]


def test_with_a_factor_of_one_each_look_comes_after_the_interval():
    assert set(PatientEye(idle_factor=1).pauses(20)) == {5_000}


def test_a_record_a_failed_look_or_a_hint_brings_the_pace_back():
    for wake in (lambda e: e.see("a"), lambda e: e.fail()):
        eye = PatientEye()
        eye.pauses(9)
        eye.look()
        assert due(wake(eye)) == [NOW + 5_000]
    eye = PatientEye()
    eye.pauses(9)
    hint = eye.watch.step(Hinted(ref="peers:hint"), NOW)
    assert due(hint)[0] <= NOW + 500
    assert eye.pauses(6) == [5_000] * 5 + [10_000]


def test_a_subscription_that_breaks_in_a_long_pause_ends_it():
    eye = PatientEye()
    eye.pauses(9)
    broken = EffectFailed(ref="peers:hint", effect="AwaitHint", kind="BlackboardUnavailable", reason="gone")
    assert due(eye.watch.step(broken, NOW + 1_000)) == [NOW + 6_000]
    # A second one changes nothing: the look is near enough.
    assert due(eye.watch.step(broken, NOW + 1_000)) == []


def test_without_a_hint_to_wait_for_nobody_is_patient():
    eye = PatientEye()
    eye.pauses(9)
    lost = EffectFailed(ref="peers:hint", effect="AwaitHint", kind="BlackboardUnavailable", reason="r")
    eye.look()
    eye.watch.step(lost, NOW)
    # The look that is under way waits for hints again.
    assert [type(e) for e in eye.see()] == [AwaitHint, SetTimer]


def test_what_begins_brings_the_next_look_forward_and_while_it_lasts_none_is_left_out():
    eye = PatientEye()
    eye.pauses(9)
    assert due(eye.watch.heed(NOW, engaged=True)) == [NOW + 5_000]
    assert eye.watch.heed(NOW, engaged=True) == ()
    assert set(eye.pauses(9)) == {5_000}
    assert eye.watch.heed(NOW, engaged=False) == ()
    assert eye.pauses(1) == [20_000]


def test_what_begins_just_before_a_look_does_not_put_it_off():
    eye = PatientEye()
    eye.pauses(9)
    assert eye.watch.heed(NOW + 16_000, engaged=True) == ()


def test_a_look_that_comes_later_on_purpose_is_no_outage_and_one_that_does_not_come_is():
    eye = PatientEye()
    eye.look()
    eye.watch.step(PeersRead(ref="peers:look:1", pages={a: page() for a in BOARD_AREAS}), NOW)
    for _ in range(8):
        eye.look()
        eye.watch.step(PeersRead(ref=f"peers:look:{eye.looks}", pages={a: page() for a in BOARD_AREAS}), NOW)
    longest_ms = 20_000 + 2 * 5_000 + 1_000
    assert eye.watch.readable(NOW + longest_ms)
    assert not eye.watch.readable(NOW + longest_ms + 1)


def test_what_was_found_and_is_gone_is_no_longer_held():
    eye = PatientEye()
    eye.look()
    eye.see("a")
    assert not eye.watch.holds_nothing
    eye.look()
    eye.see()
    assert not eye.watch.holds_nothing
    eye.look()
    eye.see()
    assert eye.watch.holds_nothing
    eye.look()
    eye.fail()
    assert not eye.watch.holds_nothing
