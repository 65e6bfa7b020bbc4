"""Appends that come while a batch is on its way go out together with the next, each with an outcome of its own."""

from __future__ import annotations

import asyncio

import pytest

from cachewarden import chain
from cachewarden.errors import InvariantViolation, JournalUnavailable
from cachewarden.ports import RecordDraft
from coordination.redis_group_commit import Group, GroupCommit, JournalBusy


def drafts(*names: str) -> tuple[RecordDraft, ...]:
    return tuple(
        RecordDraft(at_ms=1, kind="cycle", agent="api", service=None, subject_id=name, payload={}) for name in names
    )


class Server:
    """Writes a batch once it is let go; keeps what was sent together."""

    def __init__(self) -> None:
        self.batches: list[list[tuple[str, ...]]] = []
        self.free = asyncio.Event()
        self.free.set()
        self.error: Exception | None = None

    async def write(self, groups: list[Group]) -> None:
        self.batches.append([tuple(d.subject_id for d in g.drafts) for g in groups])
        await self.free.wait()
        if self.error is not None:
            raise self.error
        seq = 1
        for group in groups:
            group.succeed(chain.seal_all(group.drafts, seq, chain.GENESIS_HASH))
            seq += len(group.drafts)


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_what_comes_while_a_batch_is_on_its_way_goes_out_together_in_the_order_of_coming():
    server = Server()
    commit = GroupCommit(server.write, waiting_max=100)
    server.free.clear()
    first = asyncio.create_task(commit.append(drafts("a")))
    await turns()
    later = [asyncio.create_task(commit.append(drafts(n, n + "2"))) for n in ("b", "c", "d")]
    await turns()
    assert commit.waiting == 6
    server.free.set()
    answers = await asyncio.gather(first, *later)
    assert server.batches == [[("a",)], [("b", "b2"), ("c", "c2"), ("d", "d2")]]
    assert [[r.subject_id for r in records] for records in answers] == [["a"], ["b", "b2"], ["c", "c2"], ["d", "d2"]]
    assert commit.waiting == 0


async def test_one_who_comes_when_too_many_wait_is_refused_at_once_and_never_written():
    server = Server()
    commit = GroupCommit(server.write, waiting_max=2)
    server.free.clear()
    tasks = [asyncio.create_task(commit.append(drafts("a")))]
    await turns()
    tasks += [asyncio.create_task(commit.append(drafts(n))) for n in "bc"]
    await turns()
    with pytest.raises(JournalBusy):
        await commit.append(drafts("d"))
    server.free.set()
    await asyncio.gather(*tasks)
    assert server.batches == [[("a",)], [("b",), ("c",)]]


async def test_one_who_gave_up_before_his_batch_was_put_together_is_not_written():
    server = Server()
    commit = GroupCommit(server.write, waiting_max=100)
    server.free.clear()
    first = asyncio.create_task(commit.append(drafts("a")))
    await turns()
    gone, stays = (asyncio.create_task(commit.append(drafts(n))) for n in ("gone", "stays"))
    await turns()
    gone.cancel()
    await turns()
    server.free.set()
    await asyncio.gather(first, stays)
    assert server.batches == [[("a",)], [("stays",)]]


async def test_what_was_begun_is_on_its_way_once_its_maker_gives_way_and_its_maker_may_go_on_meanwhile():
    server = Server()
    commit = GroupCommit(server.write, waiting_max=100)
    server.free.clear()
    told = commit.begin(drafts("a"))
    assert server.batches == []
    await asyncio.sleep(0)
    assert server.batches == [[("a",)]]
    assert not told.done()
    server.free.set()
    assert [r.subject_id for r in await told] == ["a"]


async def test_what_was_begun_and_given_up_before_its_maker_gave_way_is_not_written():
    server = Server()
    commit = GroupCommit(server.write, waiting_max=100)
    commit.begin(drafts("a")).cancel()
    stays = commit.begin(drafts("b"))
    await turns()
    assert server.batches == [[("b",)]]
    assert [r.subject_id for r in await stays] == ["b"]


async def test_a_batch_that_fails_fails_for_all_in_it_and_the_next_is_tried():
    server = Server()
    commit = GroupCommit(server.write, waiting_max=100)
    server.free.clear()
    server.error = JournalUnavailable("gone")
    tasks = [asyncio.create_task(commit.append(drafts(n))) for n in "ab"]
    await turns()
    server.free.set()
    assert all(isinstance(e, JournalUnavailable) for e in await asyncio.gather(*tasks, return_exceptions=True))
    server.error = None
    assert [r.subject_id for r in await commit.append(drafts("c"))] == ["c"]


async def test_a_bug_leaves_nobody_waiting():
    server = Server()
    server.error = KeyError("bug")
    commit = GroupCommit(server.write, waiting_max=100)
    with pytest.raises(JournalUnavailable, match="broken off"):
        await commit.append(drafts("a"))
    with pytest.raises(KeyError):
        await commit._writer


async def test_closing_fails_what_waits():
    server = Server()
    commit = GroupCommit(server.write, waiting_max=100)
    server.free.clear()
    tasks = [asyncio.create_task(commit.append(drafts(n))) for n in "ab"]
    await turns()
    late = asyncio.create_task(commit.append(drafts("c")))
    await turns()
    await commit.close()
    assert all(isinstance(e, JournalUnavailable) for e in await asyncio.gather(*tasks, late, return_exceptions=True))


async def test_a_record_that_can_never_be_written_is_the_adapters_to_refuse():
    async def write(groups: list[Group]) -> None:
        groups[0].fail(InvariantViolation("no JSON"))
        groups[1].succeed([])

    commit = GroupCommit(write, waiting_max=100)
    bad, good = (asyncio.create_task(commit.append(drafts(n))) for n in ("bad", "good"))
    with pytest.raises(InvariantViolation):
        await bad
    assert await good == []
