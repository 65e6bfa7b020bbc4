"""Whatever is done to the journal's stream behind our back after a checkpoint, the verification finds it."""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachewarden import chain, codec
from cachewarden.ports import RecordDraft
from cluster.audit import EXIT_BROKEN, EXIT_INTACT, EXIT_UNKNOWN, verify_journal
from coordination.redis_journal import RedisJournal
from tests.contract.real_servers import ENGINES, RealServer

STREAM, HEAD = "cachewarden:journal", "cachewarden:journal:head"
COUNT = 8


class FixedClock:
    def now_ms(self) -> int:
        return 1_800_000_000_000


@pytest.fixture(scope="module", params=[pytest.param(e, marks=pytest.mark.integration) for e in ENGINES])
def running(request, tmp_path_factory):
    server = RealServer(request.param, tmp_path_factory.mktemp("tampering"))
    server.start()
    yield server
    server.kill()


async def with_journal(server, work):
    journal = RedisJournal(server.url, timeout_s=5.0)
    try:
        return await work(journal)
    finally:
        await journal.close()


async def fill(journal: RedisJournal) -> None:
    drafts = [
        RecordDraft(
            at_ms=n, kind="cycle", agent="coordinator", service=None, subject_id=f"s{n}", payload={"n": n, "t": "ä"}
        )
        for n in range(COUNT)
    ]
    await journal.append(drafts)


def entries(server) -> list[tuple[bytes, dict]]:
    return [(f"{n}-0".encode(), f) for n, f in ((int(i.partition(b"-")[0]), f) for i, f in server.admin.xrange(STREAM))]


def rebuild(server, texts: list[bytes]) -> None:
    """Write the stream anew, as somebody with full access to the server would."""
    server.admin.delete(STREAM)
    for number, text in enumerate(texts, 1):
        server.admin.xadd(STREAM, {"data": text}, id=f"{number}-0")


def forged(text: bytes, number: int, previous: str | None) -> bytes:
    fields = json.loads(text)
    record = codec.decode(chain.AuditRecord, fields | {"payload": {"forged": number}, "hash": ""})
    if previous is not None:
        record = codec.decode(chain.AuditRecord, codec.to_jsonable(record) | {"prev_hash": previous})
    sealed = codec.to_jsonable(record) | {"hash": chain.hash_of(record)}
    return codec.canonical_json(sealed)


def tamper(server, how: str, a: int, b: int) -> None:
    texts = [fields[b"data"] for _, fields in entries(server)]
    a, b = a % len(texts), b % len(texts)
    if how == "delete":
        server.admin.xdel(STREAM, f"{a + 1}-0")
    elif how == "cut":
        server.admin.xtrim(STREAM, maxlen=a, approximate=False)
    elif how == "cut_tail_and_move_head":
        for number in range(a + 1, COUNT + 1):
            server.admin.xdel(STREAM, f"{number}-0")
        last = json.loads(texts[a - 1])["hash"] if a else ""
        if a:
            server.admin.set(HEAD, f"{a} {last}")
        else:
            server.admin.delete(HEAD)
    elif how == "edit_text":
        spot = b % len(texts[a])
        texts[a] = texts[a][:spot] + bytes([texts[a][spot] ^ 1]) + texts[a][spot + 1 :]
        rebuild(server, texts)
    elif how == "forge_one":
        texts[a] = forged(texts[a], a, None)
        rebuild(server, texts)
    elif how == "forge_all_behind":
        previous = json.loads(texts[a])["prev_hash"]
        for index in range(a, len(texts)):
            texts[index] = forged(texts[index], index, previous)
            previous = json.loads(texts[index])["hash"]
        rebuild(server, texts)
        server.admin.set(HEAD, f"{len(texts)} {previous}")
    elif how == "swap":
        texts[a], texts[(a + 1) % len(texts)] = texts[(a + 1) % len(texts)], texts[a]
        rebuild(server, texts)
    elif how == "insert":
        texts.insert(a, texts[b])
        rebuild(server, texts)
    elif how == "garbage":
        server.admin.xadd(STREAM, {"data": b"\xff\xfe{"}, id=f"{COUNT}-1")
    else:
        server.admin.delete(STREAM, HEAD)


HOW = st.sampled_from(
    [
        "delete",
        "cut",
        "cut_tail_and_move_head",
        "edit_text",
        "forge_one",
        "forge_all_behind",
        "swap",
        "insert",
        "garbage",
        "delete_everything",
    ]
)


def test_any_tampering_after_a_checkpoint_is_found(running, tmp_path_factory):
    @settings(max_examples=60, deadline=None)
    @given(HOW, st.integers(0, 1_000), st.integers(0, 1_000))
    def check(how, a, b):
        running.admin.flushall()
        path = tmp_path_factory.mktemp("state") / "checkpoint.json"

        async def scenario(journal):
            await fill(journal)
            before = await verify_journal(journal, path, clock=FixedClock())
            tamper(running, how, a, b)
            kept = path.read_bytes()
            return before, await verify_journal(journal, path, clock=FixedClock()), kept == path.read_bytes()

        before, after, kept = asyncio.run(with_journal(running, scenario))
        assert before.exit_code == EXIT_INTACT
        assert after.exit_code == EXIT_BROKEN, (how, a, b, after.text())
        assert kept, "a broken journal must not move the checkpoint"

    check()


def test_a_shortened_tail_is_found_by_the_head_even_without_a_checkpoint(running):
    running.admin.flushall()

    async def scenario(journal):
        await fill(journal)
        running.admin.xdel(STREAM, f"{COUNT}-0")
        return await verify_journal(journal)

    result = asyncio.run(with_journal(running, scenario))
    assert result.exit_code == EXIT_BROKEN
    assert "truncated" in result.text()


def test_a_server_that_is_gone_is_not_taken_for_an_intact_journal(tmp_path):
    async def scenario(journal):
        return await verify_journal(journal, tmp_path / "checkpoint.json")

    class Nowhere:
        url = "redis://127.0.0.1:1"

    result = asyncio.run(with_journal(Nowhere(), scenario))
    assert result.exit_code == EXIT_UNKNOWN
    assert "could not be checked" in result.text()
