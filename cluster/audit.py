"""The audit for people: verify, export and show the journal; the functions behind the command line.

Verification goes over the whole chain and compares it with the checkpoint file, which lies where no writer of the
journal can reach it, and with the journal's own head. Only a journal that verifies moves the checkpoint.

It never changes the journal. INVARIANT: exit code 0 means that every record was read and proven; 1 that the chain is
broken; 2 that it could not be checked, which is never taken for success.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO, Final

from pydantic import ValidationError

from cachewarden import codec
from cachewarden.chain import ChainReport, ChainVerifier, Checkpoint, parse_record
from cachewarden.errors import JournalUnavailable, SettingsError
from cachewarden.messages import CONSTITUTIONAL_HASH, AuditRecord
from cachewarden.ports import Clock, Journal, Mailbox
from cachewarden.protocol import ChainChecked

__all__ = [
    "EXIT_BROKEN",
    "EXIT_INTACT",
    "EXIT_UNKNOWN",
    "AuditResult",
    "CheckpointMailbox",
    "export_journal",
    "load_checkpoint",
    "save_checkpoint",
    "show_journal",
    "show_lines",
    "verify_export",
    "verify_journal",
]

_log = logging.getLogger("cachewarden.audit")

EXIT_INTACT: Final = 0
EXIT_BROKEN: Final = 1
EXIT_UNKNOWN: Final = 2

_PAGE: Final = 1_000
_PROBLEMS_SHOWN: Final = 20
_LINE_BYTES_MAX: Final = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditResult:
    """Outcome of a verification; `report` is None where it could not be made, `reason` then says why."""

    source: str
    report: ChainReport | None = None
    reason: str = ""
    notes: tuple[str, ...] = field(default=())

    @property
    def exit_code(self) -> int:
        if self.report is None:
            return EXIT_UNKNOWN
        return EXIT_INTACT if self.report.ok else EXIT_BROKEN

    @property
    def ok(self) -> bool:
        return self.exit_code == EXIT_INTACT

    def text(self) -> str:
        """Return the outcome for a person."""
        if self.report is None:
            return "\n".join((f"the journal in {self.source} could not be checked: {self.reason}", *self.notes))
        report = self.report
        if report.ok:
            first = f"the journal in {self.source} is intact: {report.checked} records, newest {report.height}"
            return "\n".join((first, f"head {report.head_hash}", *self.notes))
        what = f"{report.problems_total} problems in {report.checked} records"
        lines = [f"the journal in {self.source} is BROKEN: {what}"]
        lines += [f"  record {p.seq}: {p.kind}: {p.detail}" for p in report.problems[:_PROBLEMS_SHOWN]]
        more = report.problems_total - min(len(report.problems), _PROBLEMS_SHOWN)
        return "\n".join((*lines, *([f"  and {more} more"] if more else []), *self.notes))

    def as_json(self) -> dict[str, Any]:
        """Return the outcome for a program."""
        report = None if self.report is None else codec.to_jsonable(self.report)
        return {
            "source": self.source,
            "ok": self.ok,
            "exit_code": self.exit_code,
            "reason": self.reason,
            "report": report,
            "notes": list(self.notes),
            "constitutional_hash": CONSTITUTIONAL_HASH,
        }


def load_checkpoint(path: Path) -> Checkpoint | None:
    """Return the checkpoint of the file, None where there is no file; raises SettingsError for one that is spoilt."""
    try:
        return codec.decode(Checkpoint, json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise SettingsError(
            f"the checkpoint file `{path}` cannot be used ({reason}): restore it; without it a cut-off tail goes unseen"
        ) from None


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Replace the file in one step, readable by its owner only. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The auditor, the API and the command line may all do so at once: each writes a part of its own.
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(codec.canonical_json(checkpoint) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


class CheckpointMailbox:
    """A mailbox that keeps each new checkpoint of the auditor in a file before it passes the message on.

    This is how a running deployment moves its checkpoint; the auditor itself touches no file.
    """

    def __init__(self, inner: Mailbox, path: Path) -> None:
        self._inner, self._path = inner, path
        self._kept_seq = 0

    async def send(self, sender: str, to: str, message: Any) -> None:
        """Deliver; see the port. A checkpoint that cannot be written is logged, the message still goes out."""
        if isinstance(message, ChainChecked) and message.ok and message.checkpoint_seq > self._kept_seq:
            mark = Checkpoint(seq=message.checkpoint_seq, hash=message.checkpoint_hash, at_ms=message.checked_at_ms)
            try:
                save_checkpoint(self._path, mark)
                self._kept_seq = mark.seq
            except OSError as error:
                _log.error("the checkpoint cannot be kept in %s: %s", self._path, error)
        await self._inner.send(sender, to, message)


async def verify_journal(
    journal: Journal,
    checkpoint_path: Path | None = None,
    *,
    clock: Clock | None = None,
    anchors: Sequence[Checkpoint] = (),
    source: str = "the server",
) -> AuditResult:
    """Verify the whole journal against the checkpoint file, further `anchors` and its own head.

    With a `clock` the file is moved to the newest record if all is well.
    """
    try:
        checkpoint = None if checkpoint_path is None else load_checkpoint(checkpoint_path)
        # The head is read before the records, so a record that is written meanwhile is never missing.
        head_seq, head_hash = await journal.head()
        trusted = [*anchors, *([checkpoint] if checkpoint else [])]
        verifier = ChainVerifier(anchors=[*trusted, Checkpoint(seq=head_seq, hash=head_hash, at_ms=0)])
        after_seq = 0
        while True:
            records = await journal.read(after_seq, _PAGE)
            for record in records:
                verifier.take(record)
            if len(records) < _PAGE or records[-1].seq <= after_seq:
                break
            after_seq = records[-1].seq
    except (JournalUnavailable, SettingsError) as error:
        return AuditResult(source=source, reason=str(error))
    report = verifier.report()
    notes = [] if trusted else ["there was no checkpoint, so a tail that was cut off before would not be seen"]
    if report.ok and report.height and checkpoint_path is not None and clock is not None:
        mark = Checkpoint(seq=report.height, hash=report.head_hash, at_ms=clock.now_ms())
        try:
            save_checkpoint(checkpoint_path, mark)
            notes.append(f"checkpoint {report.height} written to {checkpoint_path}")
        except OSError as error:
            notes.append(f"the checkpoint cannot be kept in {checkpoint_path}: {error}")
    return AuditResult(source=source, report=report, notes=tuple(notes))


async def export_journal(journal: Journal, out: BinaryIO, fmt: str = "jsonl", after_seq: int = 0) -> int:
    """Write every record behind `after_seq` to `out`, oldest first, one canonical JSON a line; return how many.

    Raises SettingsError for a format that is not known and JournalUnavailable.
    """
    if fmt != "jsonl":
        raise SettingsError(f"the journal cannot be exported as `{fmt[:40]}`, use `jsonl`")
    written = 0
    while True:
        records = await journal.read(after_seq, _PAGE)
        out.writelines(codec.canonical_json(record) + b"\n" for record in records)
        written += len(records)
        if len(records) < _PAGE or records[-1].seq <= after_seq:
            return written
        after_seq = records[-1].seq


def verify_export(path: Path, checkpoint_path: Path | None = None) -> AuditResult:
    """Verify an exported file, in constant memory; with a checkpoint file a shortened export is noticed too."""
    try:
        checkpoint = None if checkpoint_path is None else load_checkpoint(checkpoint_path)
        verifier = ChainVerifier(anchors=[checkpoint] if checkpoint else [])
        with path.open("rb") as file:
            for record in _records_of(file):
                verifier.take(record)
    except (OSError, SettingsError) as error:
        return AuditResult(source=str(path), reason=str(error))
    if not verifier.report().checked:
        return AuditResult(source=str(path), reason="the file holds no record")
    notes = () if checkpoint else ("there was no checkpoint, so a tail that was cut off would not be seen",)
    return AuditResult(source=str(path), report=verifier.report(), notes=notes)


def _records_of(file: BinaryIO) -> Iterator[AuditRecord]:
    number = 0
    while line := file.readline(_LINE_BYTES_MAX):
        number += 1
        text = line.removesuffix(b"\n").decode("utf-8", errors="replace")
        record = parse_record(text)
        # A line that names no number of its own is damaged; its place in the file is the best that can be said.
        yield record if record.seq else parse_record(text, number)


async def show_journal(
    journal: Journal,
    *,
    after_seq: int | None = None,
    limit: int = 50,
    kinds: Sequence[str] = (),
    service: str | None = None,
) -> list[AuditRecord]:
    """Return records to look at: the newest `limit`, or those behind `after_seq`, of the kinds and service if given.

    Looks at no more than 10,000 records.
    """
    if after_seq is None:
        records = await journal.read_back(kinds, max(limit, _PAGE * 10))
    else:
        records = [r for r in await journal.read(after_seq, _PAGE * 10) if not kinds or r.kind in kinds]
    wanted = [r for r in records if service is None or r.service == service]
    return wanted[-limit:] if after_seq is None else wanted[:limit]


def show_lines(records: Iterable[AuditRecord]) -> list[str]:
    """Return one line for each record: number, time, kind, agent, service, subject, beginning of the hash."""
    lines = []
    for record in records:
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=record.at_ms)
        at, service = moment.isoformat(timespec="milliseconds"), record.service or "-"
        where = f"{record.agent:<12} {service:<24} {record.subject_id}"
        lines.append(f"{record.seq:>8}  {at}  {record.kind:<20} {where}  {record.hash[:12]}")
    return lines
