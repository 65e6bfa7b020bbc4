"""The hash chain of the journal: what makes an edit, a deletion, a swap or a cut-off tail visible.

Record n holds the hash of record n-1, and its own hash covers everything else in it. The first one is chained to the
genesis hash, SHA-256 of `cachewarden:` and the constitutional hash, so a chain of another constitution never fits. A
chain alone cannot show that its newest records are gone or that all of it was computed anew; a `Checkpoint` kept
outside does.

Nothing here reads or writes a journal. INVARIANT: `ChainVerifier` takes bounded memory, however long the chain.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, NamedTuple

from cachewarden import codec
from cachewarden.errors import InvariantViolation
from cachewarden.messages import CONSTITUTIONAL_HASH, SCHEMA_VERSION, AuditRecord, Message
from cachewarden.ports import RecordDraft

__all__ = [
    "DAMAGED",
    "GENESIS_HASH",
    "ChainReport",
    "ChainVerifier",
    "Checkpoint",
    "Problem",
    "ProblemKind",
    "Sealed",
    "bare",
    "damaged",
    "hash_of",
    "parse_record",
    "seal",
    "seal_all",
    "seal_texts",
    "skim",
    "verify",
]

GENESIS_HASH: Final = hashlib.sha256(f"cachewarden:{CONSTITUTIONAL_HASH}".encode()).hexdigest()

_quoted: Final = json.encoder.encode_basestring

DAMAGED: Final = "damaged_entry"
"""Kind of the stand-in that a journal returns for an entry that cannot be read; no record of ours has this kind."""

_BEGINNING: Final = re.compile(
    r'\{"agent":"(?P<agent>[^"\\]*)","at_ms":(?P<at_ms>[0-9]{1,18}),"constitutional_hash":"[^"\\]*",'
    r'"hash":"(?P<hash>[0-9a-f]{64})","kind":"(?P<kind>[^"\\]*)",'
)
"""How every record begins in canonical JSON, up to its payload."""
_GAPS_MAX: Final = 1_000
_PROBLEMS_MAX: Final = 1_000
_RAW_CHARS_MAX: Final = 4_096


class ProblemKind(StrEnum):
    """EDITED: content or link does not match a hash; MISSING: a number is skipped; REORDERED: one comes too late."""

    EDITED = "edited"
    MISSING = "missing"
    REORDERED = "reordered"
    DUPLICATED = "duplicated"
    TRUNCATED = "truncated"
    WRONG_CONSTITUTIONAL_HASH = "wrong_constitutional_hash"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem(Message):
    """One thing that is wrong with the chain, at or from record `seq`."""

    seq: int
    kind: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint(Message):
    """Record `seq` had `hash` at `at_ms`. Worth something only where a writer of the journal cannot reach it."""

    seq: int
    hash: str
    at_ms: int

    def __post_init__(self) -> None:
        if self.seq < 0 or len(self.hash) != 64:
            raise ValueError(f"a checkpoint needs seq >= 0 and 64 hex digits, got `{self.seq}` and `{self.hash[:80]}`")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainReport(Message):
    """What a verification found. `problems` holds the first 1,000 of `problems_total`."""

    height: int
    """Highest seq that was seen, that of the starting point when there was no record."""
    head_hash: str
    checked: int
    """Records that were looked at."""
    problems: tuple[Problem, ...]
    problems_total: int

    @property
    def ok(self) -> bool:
        """True exactly if nothing is wrong."""
        return self.problems_total == 0


def _around_hash(record: AuditRecord, payload: str) -> tuple[str, str]:
    """Return the canonical text of a record before and after the place of its hash; `payload` is its payload's."""
    return _around(record, record.seq, record.prev_hash, payload, record.constitutional_hash, record.schema_version)


def _around(
    said: AuditRecord | RecordDraft, seq: int, prev_hash: str, payload: str, constitutional_hash: str, version: int
) -> tuple[str, str]:
    """Return the text around the hash of a record that is written, or of one that is about to be.

    The form is that of `codec.canonical_json`: keys sorted, no spaces, text as it is. Sealing is what a decision waits
    for and verifying reads everything, so the payload is written once and the few other fields are put around it; a
    test holds the two forms equal.
    """
    service = "null" if said.service is None else _quoted(said.service)
    before = f'{{"agent":{_quoted(said.agent)},"at_ms":{said.at_ms:d},"constitutional_hash":'
    after = (
        f'"kind":{_quoted(str(said.kind))},"payload":{payload},"prev_hash":{_quoted(prev_hash)},'
        f'"schema_version":{version:d},"seq":{seq:d},"service":{service},'
        f'"subject_id":{_quoted(said.subject_id)}}}'
    )
    return before + _quoted(constitutional_hash), after


def _payload_text(record: AuditRecord) -> str:
    return codec.canonical_json(record.payload).decode()


def hash_of(record: AuditRecord) -> str:
    """Return SHA-256 over the canonical JSON of every field but `hash`."""
    before, after = _around_hash(record, _payload_text(record))
    return hashlib.sha256(f"{before},{after}".encode()).hexdigest()


class Sealed(NamedTuple):
    """A record that is ready to be written: `text` is its canonical JSON, `payload` that of its payload."""

    draft: RecordDraft
    seq: int
    prev_hash: str
    hash: str
    payload: str
    text: str

    def record(self) -> AuditRecord:
        """Return the record as it will be read back; not worked out before somebody wants it."""
        draft = self.draft
        payload: dict[str, Any] = json.loads(self.payload)
        return AuditRecord(
            seq=self.seq,
            at_ms=draft.at_ms,
            kind=str(draft.kind),
            agent=draft.agent,
            service=draft.service,
            subject_id=draft.subject_id,
            payload=payload,
            prev_hash=self.prev_hash,
            hash=self.hash,
        )


def _sealed(draft: RecordDraft, seq: int, prev_hash: str) -> Sealed:
    try:
        payload = codec.canonical_json(draft.payload).decode()
        before, after = _around(draft, seq, prev_hash, payload, CONSTITUTIONAL_HASH, SCHEMA_VERSION)
        record_hash = hashlib.sha256(f"{before},{after}".encode()).hexdigest()
    except (TypeError, ValueError) as error:
        what = f"a `{draft.kind}` record of `{draft.agent}`"
        raise InvariantViolation(f"{what} cannot be written as JSON: {error}") from error
    return Sealed(draft, seq, prev_hash, record_hash, payload, f'{before},"hash":"{record_hash}",{after}')


def seal(draft: RecordDraft, seq: int, prev_hash: str) -> AuditRecord:
    """Return `draft` as record `seq`, chained to `prev_hash`.

    The payload is taken through JSON, so that the sealed record equals the one that is read back. Raises
    InvariantViolation for a payload that JSON cannot hold (NaN, unknown types, broken text).
    """
    return _sealed(draft, seq, prev_hash).record()


def seal_texts(drafts: Iterable[RecordDraft], seq: int, prev_hash: str) -> list[Sealed]:
    """Return the drafts as records `seq`, `seq + 1`, ..., each chained to the one before, ready to be written."""
    sealed: list[Sealed] = []
    for draft in drafts:
        sealed.append(_sealed(draft, seq + len(sealed), prev_hash))
        prev_hash = sealed[-1].hash
    return sealed


def seal_all(drafts: Iterable[RecordDraft], seq: int, prev_hash: str) -> list[AuditRecord]:
    """Return the drafts as records `seq`, `seq + 1`, ..., each chained to the one before."""
    return [sealed.record() for sealed in seal_texts(drafts, seq, prev_hash)]


def damaged(seq: int, kind: ProblemKind, reason: str, raw: str = "") -> AuditRecord:
    """Return the stand-in for an entry that cannot be read: whoever reads the journal sees that something was there."""
    shown = raw[:_RAW_CHARS_MAX].encode("utf-8", errors="replace").decode()
    payload = {"problem": kind.value, "reason": reason, "raw": shown}
    return AuditRecord(seq=seq, at_ms=0, kind=DAMAGED, agent="journal", service=None, subject_id="", payload=payload)


def parse_record(text: str, seq: int | None = None) -> AuditRecord:
    """Return the record that `text` holds, or a stand-in of kind `DAMAGED` that says why there is none.

    `seq` is the place at which the text was found; a record that belongs to another place is a damage too. So is a text
    that is not byte for byte what we would write (spaces, unknown or doubled fields): the hash does not cover what is
    not read.
    """
    place = 0 if seq is None else seq
    try:
        fields = json.loads(text)
        if not isinstance(fields, dict):
            return damaged(place, ProblemKind.UNREADABLE, "the entry is no JSON object", text)
        version = fields.get("schema_version")
        if isinstance(version, int) and version > SCHEMA_VERSION:
            reason = f"the entry has schema version {version}, this program reads {SCHEMA_VERSION}: use a newer program"
            return damaged(place, ProblemKind.UNREADABLE, reason, text)
        record = codec.decode(AuditRecord, fields)
        before, after = _around_hash(record, _payload_text(record))
        written = f'{before},"hash":{_quoted(record.hash)},{after}'
    except (ValueError, TypeError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return damaged(place, ProblemKind.UNREADABLE, f"the entry is no audit record: {reason}", text)
    if written != text:
        return damaged(place or record.seq, ProblemKind.EDITED, "the entry is not in the form in which we write", text)
    if seq is not None and record.seq != seq:
        return damaged(seq, ProblemKind.REORDERED, f"the place of record {seq} holds record {record.seq}", text)
    return record


def skim(text: str, seq: int, kinds: frozenset[str]) -> AuditRecord | None:
    """Return number, time, kind, agent and hash of the record that `text` holds, and nothing else of it; None where it
    is of no kind in `kinds`, or looks unusual in any way: then it has to be parsed. Nothing is proven by it."""
    found = _BEGINNING.match(text) if kinds else None
    if found is None or found["kind"] not in kinds:
        return None
    return AuditRecord(
        seq=seq,
        at_ms=int(found["at_ms"]),
        kind=found["kind"],
        agent=found["agent"],
        service=None,
        subject_id="",
        hash=found["hash"],
    )


def bare(record: AuditRecord) -> AuditRecord:
    """Return of a record what `skim` takes."""
    return dataclasses.replace(record, service=None, subject_id="", payload={}, prev_hash="")


class ChainVerifier:
    """Takes records one by one, in the order in which the journal holds them; `report()` may be asked at any time.

    `start` is a trusted point: the next record is expected to be `start.seq + 1`. Each of `anchors` is a trusted point
    too, which the chain must contain (an anchor before the start says nothing).
    """

    def __init__(self, *, start: Checkpoint | None = None, anchors: Sequence[Checkpoint] = ()) -> None:
        self._seq = start.seq if start else 0
        self._hash: str | None = start.hash if start else GENESIS_HASH
        self._height = self._seq
        self._head_hash: str | None = self._hash
        self._checked = 0
        self._gaps: list[tuple[int, int]] = []
        self._problems: list[Problem] = []
        self._problems_total = 0
        self._anchors = {(a.seq, a.hash): a for a in anchors}
        for anchor in anchors:
            if anchor.seq == self._seq and anchor.hash != self._hash:
                self._note(anchor.seq, ProblemKind.EDITED, "the starting point is not what the checkpoint names")

    @classmethod
    def resuming(cls, checkpoint: Checkpoint) -> ChainVerifier:
        """Return a verifier that expects the record of `checkpoint` itself next, so that a cut-off tail is noticed."""
        verifier = cls(anchors=[checkpoint])
        verifier._seq = verifier._height = checkpoint.seq - 1
        verifier._hash = verifier._head_hash = None
        return verifier

    def take(self, record: AuditRecord) -> None:
        """Check one record against itself, its predecessor and the anchors."""
        self._checked += 1
        follows = self._place(record.seq)
        if record.kind == DAMAGED:
            problem = str(record.payload.get("problem", ""))
            kind = problem if problem in set(ProblemKind) else ProblemKind.UNREADABLE.value
            self._note(record.seq, kind, str(record.payload.get("reason", "the entry cannot be read")))
            self._advance(record.seq, None)
            return
        if record.constitutional_hash != CONSTITUTIONAL_HASH:
            reason = f"the record carries the constitutional hash `{record.constitutional_hash[:64]}`"
            self._note(record.seq, ProblemKind.WRONG_CONSTITUTIONAL_HASH, reason)
        if hash_of(record) != record.hash:
            self._note(record.seq, ProblemKind.EDITED, "the content does not have the hash that the record states")
        elif follows and self._hash is not None and record.prev_hash != self._hash:
            before = "the genesis hash" if record.seq == 1 else f"record {record.seq - 1}"
            self._note(record.seq, ProblemKind.EDITED, f"the record is not chained to {before}: one was rewritten")
        for seq, expected in self._anchors:
            if seq == record.seq and expected != record.hash:
                self._note(seq, ProblemKind.EDITED, "the record is not the one that a checkpoint names")
        self._advance(record.seq, record.hash)

    def report(self) -> ChainReport:
        """Return what was found so far, counting everything that is still missing as missing."""
        problems, total = list(self._problems), self._problems_total
        for low, high in self._gaps:
            problems.append(_gap(low, high))
            total += 1
        beyond = [a for a in self._anchors.values() if a.seq > self._height]
        if beyond:
            last = max(a.seq for a in beyond)
            detail = f"the journal ends at record {self._height}, a checkpoint outside of it names record {last}"
            problems.append(Problem(seq=self._height + 1, kind=ProblemKind.TRUNCATED.value, detail=detail))
            total += 1
        problems.sort(key=lambda p: (p.seq, p.kind, p.detail))
        return ChainReport(
            height=self._height,
            head_hash=self._head_hash or "",
            checked=self._checked,
            problems=tuple(problems[:_PROBLEMS_MAX]),
            problems_total=total,
        )

    def _place(self, seq: int) -> bool:
        """Compare a number with those seen before; True where the record directly follows the one taken last."""
        if seq > self._height:
            if seq > self._height + 1:
                self._open_gap(self._height + 1, seq - 1)
            return seq == self._seq + 1
        for index, (low, high) in enumerate(self._gaps):
            if low <= seq <= high:
                self._gaps[index : index + 1] = [(a, b) for a, b in ((low, seq - 1), (seq + 1, high)) if a <= b]
                self._note(seq, ProblemKind.REORDERED, f"the record comes after record {self._height}")
                return False
        self._note(seq, ProblemKind.DUPLICATED, f"a record of this number comes again after record {self._height}")
        return False

    def _open_gap(self, low: int, high: int) -> None:
        # Gaps wait for records that come too late; more of them than we remember are reported at once.
        if len(self._gaps) < _GAPS_MAX:
            self._gaps.append((low, high))
        else:
            self._note(low, ProblemKind.MISSING, _gap(low, high).detail)

    def _advance(self, seq: int, record_hash: str | None) -> None:
        self._seq, self._hash = seq, record_hash
        if seq >= self._height:
            self._height, self._head_hash = seq, record_hash

    def _note(self, seq: int, kind: str, detail: str) -> None:
        self._problems_total += 1
        if len(self._problems) < _PROBLEMS_MAX:
            self._problems.append(Problem(seq=seq, kind=str(kind), detail=detail))


def _gap(low: int, high: int) -> Problem:
    what = f"record {low} is missing" if low == high else f"records {low} to {high} are missing"
    return Problem(seq=low, kind=ProblemKind.MISSING.value, detail=what)


def verify(
    records: Iterable[AuditRecord],
    checkpoint: Checkpoint | None = None,
    expected_head: tuple[int, str] | None = None,
    *,
    start: Checkpoint | None = None,
) -> ChainReport:
    """Check a chain in constant memory, from its first record or from just behind `start`.

    `checkpoint` and `expected_head` (seq, hash; read before the records) are points that the chain must contain.
    """
    anchors = [a for a in (checkpoint,) if a is not None]
    if expected_head is not None:
        anchors.append(Checkpoint(seq=expected_head[0], hash=expected_head[1], at_ms=0))
    verifier = ChainVerifier(start=start, anchors=anchors)
    for record in records:
        verifier.take(record)
    return verifier.report()
