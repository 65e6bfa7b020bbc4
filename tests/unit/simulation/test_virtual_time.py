"""Virtual time, dice and the network: the ground on which every simulated hour stands."""

from __future__ import annotations

import pytest

from cachewarden.errors import JournalUnavailable
from simulation.dice import Dice
from simulation.network import Host, Network, NoAnswer, Unreachable
from simulation.virtual_time import Pending, Task, VirtualTime, drive


def run(time: VirtualTime, ms: int = 60_000) -> None:
    time.run_until(time.now_ms() + ms)


def call(time, network, host, work=lambda: "done", timeout_ms=1_000):
    """Start a call; returns a list that will hold its result or its error."""
    ended = []

    async def carried_out():
        return work()

    async def ask():
        try:
            ended.append(await network.call("a-1", host, carried_out, timeout_ms))
        except (JournalUnavailable, NoAnswer, Unreachable) as error:
            ended.append(type(error))

    Task(ask(), lambda action: action(), lambda task: None).start()
    return ended


@pytest.fixture
def time():
    return VirtualTime(1_000)


@pytest.fixture
def network(time):
    return Network(time, Dice(1))


def test_events_run_by_their_due_time_and_then_in_the_order_in_which_they_were_entered(time):
    seen = []
    for name, due_ms in (("late", 1_500), ("first", 1_200), ("second", 1_200), ("past", 5)):
        time.at(due_ms, lambda n=name: seen.append((n, time.now_ms())))
    run(time)
    assert seen == [("past", 1_000), ("first", 1_200), ("second", 1_200), ("late", 1_500)]


def test_what_was_cancelled_does_not_run(time):
    time.after(10, lambda: pytest.fail("it ran")).cancel()
    run(time)


def test_a_task_that_is_closed_while_it_waits_goes_on_no_more(time):
    async def work():
        await time.wait(100)
        pytest.fail("it went on")

    task = Task(work(), lambda action: action(), lambda _: None)
    task.start()
    task.close()
    run(time)


def test_only_the_first_result_counts():
    pending = Pending()
    pending.resolve(1)
    pending.fail(ValueError("too late"))

    async def ask():
        return await pending

    assert drive(ask()) == 1


def test_dice_of_another_name_roll_otherwise_and_those_of_the_same_name_alike():
    first, again, other = Dice(7).fork("network"), Dice(7).fork("network"), Dice(7).fork("faults")
    rolls = [first.between(0, 10**6) for _ in range(50)]
    assert rolls == [again.between(0, 10**6) for _ in range(50)]
    assert rolls != [other.between(0, 10**6) for _ in range(50)]


def test_rolls_spread_over_the_whole_range():
    dice = Dice(3)
    rolls = [dice.unit() for _ in range(10_000)]
    assert 0.0 <= min(rolls) < 0.01
    assert 0.99 < max(rolls) < 1.0
    assert abs(sum(rolls) / len(rolls) - 0.5) < 0.02


def test_a_call_is_carried_out_once_and_answered(time, network):
    done = []
    ended = call(time, network, Host("cache"), lambda: done.append(1) or "done")
    run(time)
    assert ended == ["done"]
    assert done == [1]


def test_a_server_that_is_down_refuses_at_once_and_does_nothing(time, network):
    done = []
    ended = call(time, network, Host("cache", up=False), lambda: done.append(1))
    run(time, 100)
    assert ended == [Unreachable]
    assert done == []


def test_an_answer_that_is_cut_off_leaves_the_caller_in_doubt_about_what_was_done(time, network):
    network.cut("cache", "a-1")
    done = []
    ended = call(time, network, Host("cache"), lambda: done.append(1))
    run(time)
    assert ended == [NoAnswer]
    assert done == [1]


def test_a_cut_has_a_direction_and_is_mended_as_often_as_it_was_made(network):
    network.cut("a-1", "cache")
    network.cut("a-1", "cache")
    network.mend("a-1", "cache")
    assert network.is_cut("a-1", "cache")
    assert not network.is_cut("cache", "a-1")
    network.mend("a-1", "cache")
    assert not network.is_cut("a-1", "cache")


def test_a_server_that_stalls_carries_out_what_nobody_waits_for_any_more(time, network):
    done = []
    ended = call(time, network, Host("cache", busy_until_ms=9_000), lambda: done.append(time.now_ms()))
    run(time)
    assert ended == [NoAnswer]
    assert done == [9_000]


def test_an_error_of_the_server_comes_back_as_it_was_raised(time, network):
    def refuse():
        raise JournalUnavailable("full")

    ended = call(time, network, Host("journal"), refuse)
    run(time)
    assert ended == [JournalUnavailable]
