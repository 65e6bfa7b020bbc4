"""Verify, export and show, on a journal in memory."""

from __future__ import annotations

import dataclasses
import io
import json
import stat

import pytest

from cachewarden import chain
from cachewarden.chain import Checkpoint
from cachewarden.errors import SettingsError
from cachewarden.ports import RecordDraft
from cachewarden.protocol import ChainChecked
from cluster import audit
from simulation.fake_journal import FakeJournal


class FixedClock:
    def now_ms(self) -> int:
        return 1_800_000_000_000


async def journal_of(count: int) -> FakeJournal:
    journal = FakeJournal()
    await journal.append(
        [
            RecordDraft(
                at_ms=1_800_000_000_000 + n,
                kind="cycle" if n % 2 else "paused",
                agent="coordinator",
                service="shop" if n % 3 else None,
                subject_id=f"s{n}",
                payload={"n": n},
            )
            for n in range(count)
        ]
    )
    return journal


async def test_an_intact_journal_moves_the_checkpoint_and_exits_with_0(tmp_path):
    journal, path = await journal_of(2_500), tmp_path / "state" / "checkpoint.json"
    result = await audit.verify_journal(journal, path, clock=FixedClock())
    assert (result.exit_code, result.report.height) == (0, 2_500)
    assert audit.load_checkpoint(path) == Checkpoint(seq=2_500, hash=journal.records[-1].hash, at_ms=1_800_000_000_000)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(json.dumps(result.as_json()))["ok"] is True
    assert "intact: 2500 records" in result.text()


async def test_a_first_verification_says_what_it_cannot_see(tmp_path):
    result = await audit.verify_journal(await journal_of(3), tmp_path / "none.json")
    assert result.ok
    assert "there was no checkpoint" in result.text()
    assert not (tmp_path / "none.json").exists(), "without a clock nothing is written"


async def test_a_broken_journal_exits_with_1_names_the_record_and_keeps_the_checkpoint(tmp_path):
    journal, path = await journal_of(10), tmp_path / "checkpoint.json"
    await audit.verify_journal(journal, path, clock=FixedClock())
    before = path.read_bytes()
    journal.records[4] = dataclasses.replace(journal.records[4], payload={"n": 99})
    result = await audit.verify_journal(journal, path, clock=FixedClock())
    assert result.exit_code == 1
    assert "record 5: edited" in result.text()
    assert path.read_bytes() == before


async def test_a_tail_cut_off_after_the_checkpoint_is_found(tmp_path):
    journal, path = await journal_of(10), tmp_path / "checkpoint.json"
    await audit.verify_journal(journal, path, clock=FixedClock())
    del journal.records[7:]
    result = await audit.verify_journal(journal, path)
    assert [(p.seq, p.kind) for p in result.report.problems] == [(8, "truncated")]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"seq": -1, "hash": "x", "at_ms": 0}', '{"seq": 1}'])
async def test_a_spoilt_checkpoint_file_is_not_taken_for_none(tmp_path, text):
    path = tmp_path / "checkpoint.json"
    path.write_text(text)
    result = await audit.verify_journal(await journal_of(3), path, clock=FixedClock())
    assert result.exit_code == 2
    assert "restore it" in result.text()
    assert path.read_text() == text


async def test_a_journal_that_does_not_answer_exits_with_2(tmp_path):
    journal = await journal_of(3)
    journal.available = False
    assert (await audit.verify_journal(journal, tmp_path / "c.json")).exit_code == 2


async def test_an_export_verifies_and_any_changed_byte_in_it_is_found(tmp_path):
    journal, path, mark = await journal_of(6), tmp_path / "audit.jsonl", tmp_path / "checkpoint.json"
    await audit.verify_journal(journal, mark, clock=FixedClock())
    out = io.BytesIO()
    assert await audit.export_journal(journal, out) == 6
    data = out.getvalue()
    path.write_bytes(data)
    assert audit.verify_export(path, mark).exit_code == 0
    for spot in range(0, len(data) - 1, 7):
        path.write_bytes(data[:spot] + bytes([data[spot] ^ 1]) + data[spot + 1 :])
        assert audit.verify_export(path, mark).exit_code == 1, spot


async def test_a_shortened_export_is_found_with_the_checkpoint(tmp_path):
    journal, path, mark = await journal_of(6), tmp_path / "audit.jsonl", tmp_path / "checkpoint.json"
    await audit.verify_journal(journal, mark, clock=FixedClock())
    with path.open("wb") as file:
        await audit.export_journal(journal, file)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:4]))
    assert audit.verify_export(path, mark).exit_code == 1
    assert audit.verify_export(path).ok, "nobody can know without one, and the note says so"
    assert audit.verify_export(tmp_path / "none").exit_code == 2


async def test_the_checkpoint_of_a_running_auditor_is_kept_before_its_message_goes_on(tmp_path):
    path, sent = tmp_path / "checkpoint.json", []

    class Inner:
        async def send(self, sender, to, message):
            sent.append((to, message, audit.load_checkpoint(path)))

    def checked(ok: bool, seq: int) -> ChainChecked:
        return ChainChecked(ok=ok, checked_at_ms=5, height=seq, checkpoint_seq=seq, checkpoint_hash="a" * 64, checked=1)

    mailbox = audit.CheckpointMailbox(Inner(), path)
    for message in (checked(True, 0), checked(True, 3), checked(False, 4), "anything else"):
        await mailbox.send("auditor", "coordinator", message)
    assert [None if mark is None else mark.seq for _, _, mark in sent] == [None, 3, 3, 3]
    await audit.CheckpointMailbox(Inner(), tmp_path).send("auditor", "coordinator", checked(True, 9))
    assert len(sent) == 5, "a checkpoint that cannot be kept holds up no message"


async def test_an_unknown_format_is_refused_with_the_known_one():
    with pytest.raises(SettingsError, match="jsonl"):
        await audit.export_journal(await journal_of(1), io.BytesIO(), "xml")


async def test_showing_gives_the_newest_records_or_those_behind_a_number():
    journal = await journal_of(30)
    assert [r.seq for r in await audit.show_journal(journal, limit=3)] == [28, 29, 30]
    assert [r.seq for r in await audit.show_journal(journal, after_seq=5, limit=2, kinds=["cycle"])] == [6, 8]
    assert {r.service for r in await audit.show_journal(journal, service="shop")} == {"shop"}
    [line] = audit.show_lines(await audit.show_journal(journal, limit=1))
    assert "2027-01-15T08:00:00.029+00:00" in line
    assert journal.records[-1].hash[:12] in line
    assert chain.GENESIS_HASH not in line


async def test_a_checkpoint_is_written_whole_and_leaves_no_part_behind(tmp_path):
    path = tmp_path / "checkpoint.json"
    for seq in (1, 2):
        audit.save_checkpoint(path, Checkpoint(seq=seq, hash="ab" * 32, at_ms=0))
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint.json"]
    assert audit.load_checkpoint(path).seq == 2


async def test_a_verification_whose_checkpoint_cannot_be_written_says_so(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(audit.os, "fsync", full)
    outcome = await audit.verify_journal(await journal_of(3), tmp_path / "checkpoint.json", clock=FixedClock())
    assert outcome.ok
    assert "cannot be kept" in outcome.text()
    assert list(tmp_path.iterdir()) == []
