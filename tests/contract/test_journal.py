"""The Journal port: what every implementation promises, and what only a real server can show."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace

import pytest

from cachewarden import chain, codec
from cachewarden.errors import InvariantViolation, JournalUnavailable, LeaseLost
from cachewarden.ports import RecordDraft
from coordination.redis_group_commit import JournalBusy
from coordination.redis_journal import RedisJournal
from coordination.redis_leases import RedisLeaseStore
from simulation.fake_journal import FakeJournal
from simulation.fake_leases import FakeLeaseStore
from tests.contract.real_servers import ENGINES, RealServer

REAL = [pytest.param(engine, marks=pytest.mark.integration) for engine in ENGINES]


def draft(number: int, kind: str = "cycle") -> RecordDraft:
    return RecordDraft(
        at_ms=1_800_000_000_000 + number,
        kind=kind,
        agent="coordinator",
        service="shop",
        subject_id=f"s{number}",
        payload={"number": number, "text": 'ä\n"', "ratio": 0.95, "nothing": None},
    )


def drafts(count: int, start: int = 0) -> list[RecordDraft]:
    return [draft(start + n) for n in range(count)]


@pytest.fixture(scope="module", params=REAL)
def running(request, tmp_path_factory):
    server = RealServer(request.param, tmp_path_factory.mktemp("journal"))
    server.start("--appendonly", "yes", "--appendfsync", "everysec", "--maxmemory-policy", "noeviction")
    yield server
    server.kill()


@pytest.fixture
def server(running):
    running.admin.flushall()
    running.admin.config_set("maxmemory", 0)
    running.admin.config_set("maxmemory-policy", "noeviction")
    return running


@pytest.fixture
async def connect():
    """Make journals that are closed in the end."""
    made: list[RedisJournal] = []

    def make(server: RealServer, **options) -> RedisJournal:
        made.append(RedisJournal(server.url, **({"timeout_s": 2.0} | options)))
        return made[-1]

    yield make
    for journal in made:
        await journal.close()


class SystemClock:
    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000


@pytest.fixture(params=["fake", *REAL])
async def journal_and_leases(request, tmp_path, connect):
    """A journal and the lease store on the same server."""
    if request.param == "fake":
        leases = FakeLeaseStore(SystemClock())
        yield FakeJournal(leases), leases
        return
    server = RealServer(request.param, tmp_path)
    server.start()
    leases = RedisLeaseStore(server.url)
    yield connect(server), leases
    await leases.close()
    server.kill()


@pytest.fixture
def journal(journal_and_leases):
    return journal_and_leases[0]


# --- What every implementation promises -------------------------------------------------------------------------------


async def test_an_empty_journal_begins_at_the_genesis_hash(journal):
    assert await journal.head() == (0, chain.GENESIS_HASH)
    assert await journal.read() == []
    assert await journal.read_back() == []
    assert await journal.append([]) == []


async def test_records_are_read_as_they_were_confirmed_and_form_a_chain(journal):
    first = await journal.append(drafts(3))
    second = await journal.append(drafts(2, 3))
    assert [r.seq for r in (*first, *second)] == [1, 2, 3, 4, 5]
    assert await journal.read() == [*first, *second]
    assert await journal.head() == (5, second[-1].hash)
    assert chain.verify(await journal.read(), expected_head=await journal.head()).ok


async def test_a_record_under_a_lease_is_refused_once_somebody_else_had_it(journal_and_leases):
    journal, leases = journal_and_leases
    old = await leases.acquire("shop", "first", 60_000)
    fenced = replace(draft(1), fences=(("shop", old.epoch),))
    await journal.append([fenced])
    await leases.release(old)
    # Given back, but nobody has come: it is still the last word.
    await journal.append([replace(fenced, subject_id="s2")])
    new = await leases.acquire("shop", "second", 60_000)
    with pytest.raises(LeaseLost, match="was somebody else's meanwhile"):
        await journal.append([draft(3), replace(fenced, subject_id="s3")])
    await journal.append([replace(fenced, subject_id="s4", fences=(("shop", new.epoch), ("elsewhere", 1)))])
    assert [r.subject_id for r in await journal.read()] == ["s1", "s2", "s4"]
    assert chain.verify(await journal.read()).ok


async def test_a_stale_fence_fails_its_own_append_and_no_other_of_the_same_batch(journal_and_leases):
    journal, leases = journal_and_leases
    for holder in ("first", "second"):
        lease = await leases.acquire("shop", holder, 60_000)
        if holder == "first":
            stale = lease.epoch
            await leases.release(lease)
    told = await asyncio.gather(
        *(
            journal.append([replace(draft(n), fences=(("shop", stale if n % 3 == 0 else lease.epoch),))])
            for n in range(9)
        ),
        return_exceptions=True,
    )
    assert [isinstance(answer, LeaseLost) for answer in told] == [n % 3 == 0 for n in range(9)]
    assert sorted(r.subject_id for r in await journal.read()) == [f"s{n}" for n in range(9) if n % 3]


async def test_reading_goes_on_behind_a_number_and_stops_at_a_limit(journal):
    await journal.append(drafts(10))
    assert [r.seq for r in await journal.read(4, 3)] == [5, 6, 7]
    assert await journal.read(10) == []
    assert await journal.read(0, 0) == []


async def test_of_skimmed_kinds_only_the_place_in_the_journal_is_read(journal):
    stored = await journal.append([draft(n, "request_decided" if n % 2 else "paused") for n in range(4)])
    assert await journal.read(skimmed=("request_decided",)) == [
        chain.bare(r) if r.kind == "request_decided" else r for r in stored
    ]
    assert await journal.read(1, 1, skimmed=("request_decided",)) == [chain.bare(stored[1])]
    assert await journal.read(skimmed=("nothing",)) == stored


async def test_reading_back_gives_the_newest_of_some_kinds_oldest_first(journal):
    await journal.append([draft(n, "cycle" if n % 2 else "paused") for n in range(10)])
    assert [r.seq for r in await journal.read_back(["paused"])] == [1, 3, 5, 7, 9]
    assert [r.seq for r in await journal.read_back(["paused"], 4)] == [7, 9]
    assert [r.seq for r in await journal.read_back((), 3)] == [8, 9, 10]


async def test_reading_back_without_a_limit_finds_what_is_old(journal):
    await journal.append([draft(0, "paused")])
    await journal.append([draft(n, "cycle") for n in range(1, 700)])
    assert [r.seq for r in await journal.read_back(["paused"])] == [1]
    assert await journal.read_back(["paused"], 600) == []


async def test_a_payload_that_json_cannot_hold_is_refused_and_nothing_is_written(journal):
    bad = RecordDraft(at_ms=1, kind="cycle", agent="a", service=None, subject_id="s", payload={"ratio": float("nan")})
    with pytest.raises(InvariantViolation):
        await journal.append([draft(1), bad])
    assert await journal.head() == (0, chain.GENESIS_HASH)
    assert [r.seq for r in await journal.append([draft(2)])] == [1]


async def test_a_bad_record_among_many_that_come_at_once_harms_nobody_else(journal):
    bad = RecordDraft(at_ms=1, kind="cycle", agent="a", service=None, subject_id="bad", payload={"ratio": float("inf")})
    outcomes = await asyncio.gather(
        *(journal.append(drafts(2, n * 10)) for n in range(5)),
        journal.append([draft(90), bad]),
        *(journal.append(drafts(2, n * 10)) for n in range(5, 9)),
        return_exceptions=True,
    )
    assert [type(o) for o in outcomes if not isinstance(o, list)] == [InvariantViolation]
    stored = await journal.read()
    assert len(stored) == 18
    assert [r for o in outcomes if isinstance(o, list) for r in o] == stored
    assert chain.verify(stored, expected_head=await journal.head()).ok


# --- What only a real server can show ---------------------------------------------------------------------------------


async def test_ten_writers_leave_one_gapless_chain_without_a_doubled_record(server, connect):
    writers = [connect(server) for _ in range(10)]

    async def write(number: int) -> list[int]:
        seqs = []
        for turn in range(20):
            batch = drafts(1 + turn % 3, number * 1000 + turn * 10)
            seqs += [r.seq for r in await writers[number].append(batch)]
        return seqs

    written = [seq for seqs in await asyncio.gather(*(write(n) for n in range(10))) for seq in seqs]
    records = await writers[0].read(limit=10_000)
    assert sorted(written) == [r.seq for r in records]
    assert len({r.subject_id for r in records}) == len(records)
    assert chain.verify(records, expected_head=await writers[0].head()).ok


async def test_concurrent_appends_of_one_writer_keep_batches_together(server, connect):
    journal = connect(server)
    batches = await asyncio.gather(*(journal.append(drafts(3, n * 10)) for n in range(30)))
    for batch in batches:
        assert [r.seq for r in batch] == list(range(batch[0].seq, batch[0].seq + 3))
    assert chain.verify(await journal.read()).ok


async def test_many_at_once_share_a_script_and_keep_their_order(server, connect):
    journal = connect(server)
    await journal.append(drafts(1, 10_000))
    before = server.admin.info("commandstats")["cmdstat_evalsha"]["calls"]
    outcomes = await asyncio.gather(*(journal.append(drafts(1, n)) for n in range(200)))
    scripts = server.admin.info("commandstats")["cmdstat_evalsha"]["calls"] - before
    assert scripts < 20
    assert [records[0].seq for records in outcomes] == list(range(2, 202))
    assert chain.verify(await journal.read(), expected_head=await journal.head()).ok


async def test_several_writers_with_many_at_once_leave_one_chain_in_which_each_keeps_its_order(server, connect):
    writers = [connect(server) for _ in range(4)]
    outcomes = await asyncio.gather(
        *(writer.append(drafts(1, n * 1_000 + turn)) for turn in range(100) for n, writer in enumerate(writers))
    )
    stored = await writers[0].read(limit=10_000)
    assert len(stored) == len({r.subject_id for r in stored}) == len(outcomes) == 400
    for n in range(4):
        mine = [int(r.subject_id[1:]) for r in stored if int(r.subject_id[1:]) // 1_000 == n]
        assert mine == sorted(mine)
    assert chain.verify(stored, expected_head=await writers[0].head()).ok


async def test_a_writer_that_falls_behind_refuses_at_once_instead_of_queueing_without_end(server, connect):
    journal = connect(server, waiting_max=10)
    await journal.append(drafts(1))
    server.freeze()
    try:
        sent = [asyncio.create_task(journal.append(drafts(1, 100 + n))) for n in range(50)]
        refused = await asyncio.gather(*sent[20:], return_exceptions=True)
        assert all(isinstance(error, JournalBusy) for error in refused)
    finally:
        server.thaw()
    outcomes = await asyncio.gather(*sent, return_exceptions=True)
    written = [o[0].subject_id for o in outcomes if isinstance(o, list)]
    assert written
    assert sorted(["s0", *written]) == sorted(r.subject_id for r in await journal.read())


async def test_options_in_the_url_of_the_server_are_followed_where_they_can_be(server):
    journal = RedisJournal(f"{server.url}?timeout=3&socket_timeout=3&client_name=mine", timeout_s=2.0)
    try:
        assert [r.seq for r in await journal.append(drafts(2))] == [1, 2]
        # A deadline of the connection's own would be a task for each record.
        assert (journal._connection.socket_timeout, journal._connection.client_name) == (None, "mine")
    finally:
        await journal.close()


async def test_an_append_that_is_broken_off_on_its_way_leaves_a_place_for_the_next(server, connect):
    journal = connect(server, timeout_s=0.3)
    await journal.append(drafts(1))
    for round_ in range(3):
        server.freeze()
        try:
            with pytest.raises(JournalUnavailable):
                await journal.append(drafts(1, 100 + round_))
        finally:
            server.thaw()
    assert [r.subject_id for r in await journal.append(drafts(1, 200))] == ["s200"]
    stored = [r.subject_id for r in await journal.read()]
    assert stored[0] == "s0"
    assert stored[-1] == "s200"
    assert len(stored) == len(set(stored))


async def test_an_answer_that_was_lost_on_the_way_is_looked_up_before_anybody_is_told_that_it_failed(server, connect):
    journal = connect(server)
    await journal.append(drafts(1))
    connection = journal._connection
    read = connection.read_response

    async def lost(*args, **options):
        connection.read_response = read
        await read(*args, **options)
        raise ConnectionResetError("the answer was lost")

    connection.read_response = lost
    assert [r.subject_id for r in await journal.append(drafts(2, 100))] == ["s100", "s101"]
    assert [r.subject_id for r in await journal.read()] == ["s0", "s100", "s101"]
    assert [r.seq for r in await journal.append(drafts(1, 200))] == [4]


async def test_a_batch_with_a_lost_answer_is_found_again_and_not_doubled(server, connect):
    journal, other = connect(server, timeout_s=0.3), connect(server)
    await journal.append(drafts(1))
    server.freeze()
    try:
        with pytest.raises(JournalUnavailable):
            await journal.append(drafts(2, 100))
    finally:
        server.thaw()
    assert [r.subject_id for r in await other.append(drafts(1, 200))] == ["s200"]
    again = await journal.append(drafts(2, 100))
    assert [r.subject_id for r in again] == ["s100", "s101"]
    stored = await journal.read()
    assert sorted(r.subject_id for r in stored) == ["s0", "s100", "s101", "s200"]
    assert [r for r in stored if r.subject_id in ("s100", "s101")] == again
    assert chain.verify(stored, expected_head=await journal.head()).ok


async def test_another_batch_after_a_lost_answer_goes_behind_the_first(server, connect):
    journal = connect(server, timeout_s=0.3)
    await journal.append(drafts(1))
    server.freeze()
    try:
        with pytest.raises(JournalUnavailable):
            await journal.append(drafts(1, 100))
    finally:
        server.thaw()
    assert [r.subject_id for r in await journal.append(drafts(1, 200))] == ["s200"]
    await journal.append(drafts(1, 100))
    subjects = [r.subject_id for r in await journal.read()]
    assert sorted(subjects) == ["s0", "s100", "s200"]


async def test_an_append_that_was_cancelled_half_way_is_not_doubled(server, connect):
    journal = connect(server)
    await journal.append(drafts(1))
    server.freeze()
    task = asyncio.create_task(journal.append(drafts(2, 100)))
    await asyncio.sleep(0.05)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    server.thaw()
    await journal.append(drafts(2, 100))
    assert sorted(r.subject_id for r in await journal.read()) == ["s0", "s100", "s101"]


async def test_a_head_that_was_deleted_is_found_in_the_stream(server, connect):
    journal = connect(server)
    await journal.append(drafts(3))
    server.admin.delete("cachewarden:journal:head")
    assert (await journal.head())[0] == 3
    assert [r.seq for r in await journal.append(drafts(1, 3))] == [4]
    fresh = connect(server)
    server.admin.delete("cachewarden:journal:head")
    assert [r.seq for r in await fresh.append(drafts(1, 4))] == [5]
    assert chain.verify(await journal.read(), expected_head=await journal.head()).ok


async def test_a_head_that_was_moved_back_stops_the_writers(server, connect):
    journal = connect(server)
    written = await journal.append(drafts(3))
    server.admin.set("cachewarden:journal:head", f"1 {written[0].hash}")
    with pytest.raises(JournalUnavailable):
        await connect(server).append(drafts(1, 9))
    server.admin.set("cachewarden:journal:head", "nonsense")
    with pytest.raises(JournalUnavailable, match="no journal writes"):
        await connect(server).append(drafts(1, 9))
    assert len(await journal.read()) == 3


async def test_an_entry_that_cannot_be_read_is_reported_in_its_place(server, connect):
    journal = connect(server)
    await journal.append(drafts(3))
    server.admin.xadd("cachewarden:journal", {"data": "{}"}, id="4-0")
    server.admin.xadd("cachewarden:journal", {"other": "x"}, id="5-0")
    found = await journal.read()
    assert [r.kind for r in found] == ["cycle"] * 3 + [chain.DAMAGED] * 2
    assert journal.unreadable == 2
    assert {p.seq for p in chain.verify(found).problems} == {4, 5}


async def test_a_full_server_refuses_and_nothing_is_doubled_when_there_is_room_again(server, connect):
    journal = connect(server)
    await journal.append(drafts(1))
    server.admin.config_set("maxmemory", 1)
    with pytest.raises(JournalUnavailable, match=r"(?i)memory"):
        await journal.append(drafts(1, 1))
    server.admin.config_set("maxmemory", 0)
    assert [r.seq for r in await journal.append(drafts(1, 1))] == [2]
    assert len(await journal.read()) == 2


async def test_a_server_that_may_evict_the_journal_is_refused_unless_permitted(server, connect):
    server.admin.config_set("maxmemory", 100_000_000)
    server.admin.config_set("maxmemory-policy", "allkeys-lru")
    check = await connect(server).check_server()
    assert not check.ok
    with pytest.raises(JournalUnavailable, match="noeviction"):
        await connect(server).append(drafts(1))
    assert len(await connect(server, allow_unsafe_server=True).append(drafts(1))) == 1


async def test_a_healthy_server_raises_no_complaint(server, connect):
    check = await connect(server).check_server()
    assert (check.errors, check.warnings) == ((), ())


async def test_no_append_is_confirmed_before_the_disk_where_fsync_is_asked_for(server, connect):
    journal = connect(server, durability="fsync", timeout_s=5.0)
    if server.engine == "redis":
        with pytest.raises(JournalUnavailable, match=r"7\.2"):
            await journal.append(drafts(1))
        return
    assert [r.seq for r in await journal.append(drafts(2))] == [1, 2]
    server.admin.config_set("appendonly", "no")
    try:
        with pytest.raises(JournalUnavailable, match="append"):
            await connect(server, durability="fsync").append(drafts(1, 5))
    finally:
        server.admin.config_set("appendonly", "yes")


@pytest.mark.integration
@pytest.mark.parametrize("engine", ENGINES)
async def test_a_killed_server_brings_back_every_confirmed_record(engine, tmp_path, connect):
    server = RealServer(engine, tmp_path)
    options = ("--appendonly", "yes", "--appendfsync", "always")
    server.start(*options)
    journal = connect(server)
    written = await journal.append(drafts(5))
    server.kill()
    with pytest.raises(JournalUnavailable):
        await journal.append(drafts(1, 5))
    restarted = RealServer(engine, tmp_path)
    restarted.start(*options)
    try:
        after = connect(restarted)
        assert await after.read() == written
        assert [r.seq for r in await after.append(drafts(1, 5))] == [6]
    finally:
        restarted.kill()


async def test_the_stream_holds_the_canonical_text_under_the_number_of_the_record(server, connect):
    [record] = await connect(server).append(drafts(1))
    [(entry_id, fields)] = server.admin.xrange("cachewarden:journal")
    assert entry_id == b"1-0"
    assert fields == {b"data": codec.canonical_json(record)}
