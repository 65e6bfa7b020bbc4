"""The client feed over HTTP: shapes of a batch and of the answer, and how much of it one replica lets in.

Nothing is kept here: batches go on to the collector. INVARIANT: at most `IN_FLIGHT_MAX` batches of one replica are
between here and the collector, and no service gets more rows or batches a second than the bounds say.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, StrictInt

from cachewarden.fed_accesses import FeedBatch
from cachewarden.feed import FLUSH_MS, ROWS_MAX, Instruction, patterns_id, rate_for
from cachewarden.fleet import Service
from cachewarden.messages import CONSTITUTIONAL_HASH
from cachewarden.observation import Snapshot

__all__ = [
    "IN_FLIGHT_MAX",
    "FeedAnswer",
    "FeedBatchRequest",
    "FeedDesk",
    "FeedFull",
    "FeedInstruction",
    "FeedReportView",
    "batch_of",
    "instruction_for",
]

IN_FLIGHT_MAX: Final = 8
_ROWS_PER_S: Final = 5_000.0
_BATCHES_PER_S: Final = 200.0
"""As many recorders of one service as one collector remembers, at the usual pace, and some to spare."""
_BURST_S: Final = 4.0
_UNSEEN_RATE: Final = 1.0 / 64
"""Until the first look at a cache tells how busy it is."""

# Values and lengths of the columns are checked by `FeedBatch`, once for all of a column.
_Column = Annotated[list[StrictInt], Field(max_length=ROWS_MAX)]


class FeedBatchRequest(BaseModel):
    """What one recorder saw of one service; `cachewarden.recorder` writes it. Columns have one value per row."""

    model_config = ConfigDict(extra="forbid")

    service_name: str = Field(min_length=1, max_length=200)
    recorder: str = Field(pattern=r"^[A-Za-z0-9_.:-]{1,64}$", description="one life of one process")
    seq: StrictInt = Field(ge=0, le=1 << 52, description="counts batches; one that comes twice counts once")
    secret_fingerprint: str = Field(max_length=64)
    patterns_id: str = Field(max_length=64)
    spatial_rate: float = Field(ge=2.0**-24, le=1.0)
    from_ms: StrictInt = Field(description="the recorder's clock, of any origin, as all times here")
    to_ms: StrictInt
    sent_ms: StrictInt
    lookups: StrictInt = Field(description="of all keys, sampled or not")
    hits: StrictInt
    misses: StrictInt
    at_ms: _Column
    key: _Column = Field(description="keyed 64-bit hashes that pass the spatial filter")
    op: _Column = Field(description="0 read, 1 write, 2 delete")
    size_bytes: _Column = Field(description="of the whole entry, 0 unknown")
    ttl_ms: _Column = Field(description="given by a write, 0 none")
    pattern: _Column = Field(description="index into the instruction's patterns, -1 none")
    missed: _Column = Field(description="1 missed, 0 hit, -1 unknown or no read")
    constitutional_hash: str = Field(CONSTITUTIONAL_HASH, max_length=200)


class FeedInstruction(BaseModel):
    """What a recorder is to keep; see `cachewarden/feed.py`."""

    service_name: str
    spatial_rate: float
    patterns: list[str]
    secret_fingerprint: str = Field(description="tells whether both sides hash with the same secret")
    patterns_id: str
    flush_ms: int
    rows_max: int


class FeedReportView(BaseModel):
    """What the collector makes of the feed; counts since it started."""

    recorders: int
    batches: int
    rows_held: int
    dropped: dict[str, int]
    coverage: float | None = Field(description="reported lookups over those that the server counted")
    used: bool
    reason: str


class FeedAnswer(BaseModel):
    """The instruction from now on, and how the feed stands."""

    instruction: FeedInstruction
    report: FeedReportView | None
    constitutional_hash: str = CONSTITUTIONAL_HASH


def instruction_for(service: Service, snapshot: Snapshot | None, fingerprint: str, history_ms: int) -> Instruction:
    """Return what recorders of a service are to do now; the busier the cache, the fewer keys."""
    patterns = tuple(pattern.prefix for pattern in service.patterns)
    rate = _UNSEEN_RATE
    if snapshot is not None and snapshot.window_ms > 0:
        # Each miss is followed by a load, which makes a row as well.
        rate = rate_for(snapshot.lookups_per_s * (1.0 + (snapshot.miss_ratio or 0.0)), history_ms)
    return Instruction(
        service=service.name,
        spatial_rate=rate,
        patterns=patterns,
        secret_fingerprint=fingerprint,
        patterns_id=patterns_id(patterns),
        flush_ms=FLUSH_MS,
    )


def batch_of(body: FeedBatchRequest, service: Service) -> FeedBatch:
    """Return the batch that goes to the collector; raises ValueError for one that cannot be."""
    return FeedBatch.of(
        columns={
            "at_ms": body.at_ms,
            "key": body.key,
            "op": body.op,
            "size_bytes": body.size_bytes,
            "ttl_ms": body.ttl_ms,
            "pattern": body.pattern,
            "missed": body.missed,
        },
        patterns=len(service.patterns),
        service=service.name,
        recorder=body.recorder,
        seq=body.seq,
        spatial_rate=body.spatial_rate,
        from_ms=body.from_ms,
        to_ms=body.to_ms,
        sent_ms=body.sent_ms,
        lookups=body.lookups,
        hits=body.hits,
        misses=body.misses,
    )


class FeedFull(Exception):
    """More than this replica lets in; `retry_after_s` says when to try again."""

    def __init__(self, reason: str, retry_after_s: int) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(reason)


class _Bucket:
    """Tokens that fill up with time."""

    def __init__(self, per_s: float, now_s: float) -> None:
        self._per_s, self._full = per_s, per_s * _BURST_S
        self._tokens, self._at_s = self._full, now_s

    def missing_s(self, amount: float, now_s: float) -> float:
        """Return how long it takes until `amount` is there; 0 where it is."""
        self._tokens = min(self._full, self._tokens + max(0.0, now_s - self._at_s) * self._per_s)
        self._at_s = now_s
        return max(0.0, amount - self._tokens) / self._per_s

    def take(self, amount: float) -> None:
        self._tokens -= amount


class FeedDesk:
    """What one replica lets in; one per application."""

    def __init__(self) -> None:
        self._in_flight = 0
        self._buckets: dict[str, tuple[_Bucket, _Bucket]] = {}

    @asynccontextmanager
    async def admit(self, service: str, rows: int, now_s: float) -> AsyncIterator[None]:
        """Hold a place for one batch of a known service; raises FeedFull where there is none."""
        batches, row_tokens = self._buckets.setdefault(
            service, (_Bucket(_BATCHES_PER_S, now_s), _Bucket(_ROWS_PER_S, now_s))
        )
        wait_s = max(batches.missing_s(1, now_s), row_tokens.missing_s(rows, now_s))
        if wait_s > 0:
            raise FeedFull(f"more than {_ROWS_PER_S:g} rows or {_BATCHES_PER_S:g} batches a second", 1 + int(wait_s))
        if self._in_flight >= IN_FLIGHT_MAX:
            raise FeedFull(f"{IN_FLIGHT_MAX} batches are on their way to the collector already", 1)
        batches.take(1)
        row_tokens.take(rows)
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1


def report_view(report: Any) -> FeedReportView:
    """Return a report as the API shows it."""
    return FeedReportView(
        recorders=report.recorders,
        batches=report.batches,
        rows_held=report.rows_held,
        dropped=dict(report.dropped),
        coverage=report.coverage,
        used=report.used,
        reason=report.reason,
    )
