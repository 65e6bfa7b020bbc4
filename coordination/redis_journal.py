"""The journal on Redis: a stream with one entry per audit record, and beside it the head of the hash chain.

Keys: `{prefix}:journal` (stream; record n is entry `n-0`, its field `data` the canonical JSON) and
`{prefix}:journal:head` (text `n hash`). Several writers share one order: each seals its records on the head that it
knows and sends one script that appends them only if the head is still that one; the loser seals anew. The script is
atomic and a head never comes back, so a batch is in the journal completely or not at all, and at most once.

It decides nothing and never repairs an entry. INVARIANT: an append returns only records that the server has confirmed,
and a batch whose outcome is unknown is looked up by its hash before anything else is written.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError, ResponseError

from cachewarden import chain, codec
from cachewarden.errors import InvariantViolation, JournalUnavailable
from cachewarden.messages import AuditRecord
from cachewarden.ports import RecordDraft

__all__ = ["RedisJournal", "ServerCheck"]

T = TypeVar("T")

_log = logging.getLogger("cachewarden.journal")

_PAGE: Final = 500
_BATCH_MAX: Final = 1_000
_RECORD_BYTES_MAX: Final = 1 << 20
_OPEN_MAX: Final = 64

# KEYS: stream, head. ARGV: head that the writer expects, new head, seq of the first record, record, record, ...
_APPEND: Final = """
local head = redis.call('GET', KEYS[2])
if not head then
  local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
  if #last > 0 then return {0, '', last[1][1]} end
  head = ''
end
if head ~= ARGV[1] then return {0, head, ''} end
local seq = tonumber(ARGV[3])
for i = 4, #ARGV do
  redis.call('XADD', KEYS[1], string.format('%d-0', seq + i - 4), 'data', ARGV[i])
end
redis.call('SET', KEYS[2], ARGV[2])
return {1, ARGV[2], ''}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerCheck:
    """What is wrong with the journal's server. With errors nothing is appended, unless the operator permits it."""

    warnings: tuple[str, ...]
    errors: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.errors


@dataclass(frozen=True, slots=True)
class _Head:
    seq: int
    hash: str

    @property
    def text(self) -> str:
        return f"{self.seq} {self.hash}" if self.seq else ""


@dataclass(frozen=True, slots=True)
class _Batch:
    """Records as they were sent, and the drafts that they were made of."""

    drafts: tuple[RecordDraft, ...]
    before: _Head
    records: tuple[AuditRecord, ...]

    @property
    def after(self) -> _Head:
        return _Head(self.records[-1].seq, self.records[-1].hash)


class RedisJournal:
    """The Journal port on one server.

    `durability`: `reply` waits for the server's answer, `fsync` also for its disk (WAITAOF; Redis, Valkey from 7.2).
    `jitter_s(attempt)` gives the pause after a lost race in seconds; by default it follows from the hash of the batch,
    which differs between writers and tries. `allow_unsafe_server` appends although `check_server` has errors.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "cachewarden",
        durability: Literal["reply", "fsync"] = "reply",
        timeout_s: float = 5.0,
        attempts_max: int = 100,
        jitter_s: Callable[[int], float] | None = None,
        allow_unsafe_server: bool = False,
        max_connections: int = 8,
    ) -> None:
        self._stream, self._head_key = f"{prefix}:journal", f"{prefix}:journal:head"
        self._barrier_key = f"{prefix}:journal:barrier"
        # A client that repeats by itself would hide that the outcome of the first try is unknown.
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=max_connections,
            timeout=timeout_s,
            decode_responses=True,
            encoding_errors="surrogateescape",
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            client_name="cachewarden-journal",
        )
        # redis-py's types do not tell its asynchronous answers from its synchronous ones, hence Any.
        self._redis: Any = Redis.from_pool(pool)
        self._durability, self._timeout_s = durability, timeout_s
        self._attempts_max, self._jitter_s = attempts_max, jitter_s
        self._server_approved = allow_unsafe_server
        self._allow_unsafe_server = allow_unsafe_server
        self._sha: str | None = None
        self._known_head: _Head | None = None
        self._pending: list[_Batch] = []
        """Sent, outcome unknown."""
        self._late: list[_Batch] = []
        """Found to be in after their append had failed; the next append of the same drafts takes them from here."""
        self._lock = asyncio.Lock()
        self.unreadable = 0
        """Entries met that could not be read, since the start."""

    async def append(self, drafts: Sequence[RecordDraft]) -> list[AuditRecord]:
        """Append all or none; see the port. Drafts that an earlier call with unknown outcome did write are not doubled.

        Raises JournalUnavailable, and InvariantViolation for records that can never be written.
        """
        if not drafts:
            return []
        if len(drafts) > _BATCH_MAX:
            raise InvariantViolation(f"a batch of {len(drafts)} records is larger than {_BATCH_MAX}")
        async with self._lock:
            return await self._guarded(self._append(tuple(drafts)))

    async def read(self, after_seq: int = 0, limit: int = 1_000) -> list[AuditRecord]:
        """Return up to `limit` records with seq > `after_seq`, oldest first; damaged ones as `DAMAGED` stand-ins."""
        return await self._guarded(self._read(after_seq, limit, ()))

    async def read_back(self, kinds: Sequence[str] = (), limit: int | None = None) -> list[AuditRecord]:
        """Return the records of the given kinds among the newest `limit` (without it: of all), oldest first."""

        async def newest() -> list[AuditRecord]:
            last = await self._redis.xrevrange(self._stream, count=1)
            if not last:
                return []
            height = int(str(last[0][0]).partition("-")[0])
            count = height if limit is None else limit
            return await self._read(max(0, height - count), count, tuple(str(k) for k in kinds))

        return await self._guarded(newest())

    async def head(self) -> tuple[int, str]:
        """Return (seq, hash) of the newest record, (0, genesis hash) when there is none."""
        head = await self._guarded(self._read_head())
        return head.seq, head.hash

    async def check_server(self) -> ServerCheck:
        """Say whether this server may lose the journal: by eviction, without an AOF, as a replica, with a full disk."""
        info: dict[str, Any] = await self._guarded(self._redis.info())
        warnings: list[str] = []
        errors: list[str] = []
        policy = str(info.get("maxmemory_policy", "unknown"))
        bounded = int(info.get("maxmemory", 0)) > 0
        if policy.startswith("allkeys-") and bounded:
            way_out = "use a server of its own with `maxmemory-policy noeviction`"
            errors.append(f"eviction policy `{policy}` may evict the journal: {way_out}")
        elif policy != "noeviction":
            warnings.append(f"eviction policy is `{policy}`: set `maxmemory-policy noeviction` on the journal's server")
        if not int(info.get("aof_enabled", 0)):
            text = "the append-only file is off, a restart of the server loses records: set `appendonly yes`"
            (errors if self._durability == "fsync" else warnings).append(text)
        elif str(info.get("aof_last_write_status", "ok")) != "ok":
            errors.append("the server could not write its append-only file: free its disk")
        if str(info.get("role", "master")) != "master":
            errors.append("the server is a replica: give the address of its master")
        return ServerCheck(warnings=tuple(warnings), errors=tuple(errors))

    async def close(self) -> None:
        """Give the connections back."""
        await self._redis.aclose()

    # --- Inside -----------------------------------------------------------------------------------------------------

    async def _guarded(self, work: Awaitable[T]) -> T:
        try:
            return await work
        except JournalUnavailable:
            self._known_head = None
            raise
        except (RedisError, OSError, TimeoutError) as error:
            # Another server may answer under this address next time, so it has to be looked at again.
            self._known_head, self._server_approved = None, self._allow_unsafe_server
            raise JournalUnavailable(str(error) or type(error).__name__) from error

    async def _append(self, drafts: tuple[RecordDraft, ...]) -> list[AuditRecord]:
        await self._approve_server()
        for attempt in range(self._attempts_max):
            await self._settle_pending()
            for late in self._late:
                if late.drafts == drafts:
                    self._late.remove(late)
                    return list(late.records)
            if self._known_head is None:
                self._known_head = await self._read_head()
            head = self._known_head
            batch = _Batch(drafts, head, tuple(chain.seal_all(drafts, head.seq + 1, head.hash)))
            texts = [_text(record) for record in batch.records]
            self._pending.append(batch)
            if await self._send(batch, texts):
                # Whatever else was sent on the same head can never be appended any more.
                self._pending.clear()
                self._known_head = batch.after
                return list(batch.records)
            # Writers that try again in step would lose to the same one each time.
            pause_s = _pause_s(batch, attempt) if self._jitter_s is None else self._jitter_s(attempt)
            await asyncio.sleep(pause_s)
        raise JournalUnavailable(f"other writers came first {self._attempts_max} times in a row")

    async def _settle_pending(self) -> None:
        """Find out which batches of unknown outcome are in: by the hash of the record that stands in their place.

        A batch whose place is still empty stays open, since a slow server may yet execute it.
        """
        still_open: list[_Batch] = []
        for batch in self._pending:
            first = batch.records[0]
            found = await self._read(first.seq - 1, 1, ())
            self._known_head = None
            if not found or found[0].seq != first.seq:
                still_open.append(batch)
            elif found[0].hash == first.hash and batch not in self._late:
                if self._durability == "fsync":
                    await self._fsync()
                self._late.append(batch)
        self._pending = still_open[-_OPEN_MAX:]
        del self._late[:-_OPEN_MAX]

    async def _send(self, batch: _Batch, texts: Sequence[str]) -> bool:
        """Run the script; False where the head has moved: `_known_head` is then the new one, None to be read."""
        arguments = (2, self._stream, self._head_key, batch.before.text, batch.after.text, batch.records[0].seq, *texts)
        if self._sha is None:
            self._sha = str(await self._redis.script_load(_APPEND))
        try:
            answer = await self._evaluate(arguments)
        except NoScriptError:
            self._sha = str(await self._redis.script_load(_APPEND))
            answer = await self._evaluate(arguments)
        except ResponseError:
            # The script fails at its first write or not at all, so this outcome is known: nothing was written.
            self._pending.remove(batch)
            raise
        done, head, last_id = answer
        if int(done):
            return True
        self._known_head = None
        if last_id:
            await self._restore_head()
        elif len(self._pending) == 1:
            # Only this try was open, and it has been refused: no need to look it up.
            self._pending.clear()
            self._known_head = _parse_head(str(head))
        return False

    async def _evaluate(self, arguments: tuple[Any, ...]) -> Any:
        if self._durability == "reply":
            return await self._redis.execute_command("EVALSHA", self._sha, *arguments)
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.execute_command("EVALSHA", self._sha, *arguments)
            pipe.execute_command("WAITAOF", 1, 0, self._wait_ms)
            answer, synced = await pipe.execute(raise_on_error=False)
        if isinstance(answer, Exception):
            raise answer
        if int(answer[0]):
            _require_fsync(synced)
        return answer

    async def _fsync(self) -> None:
        # WAITAOF waits for the writes of its own connection only, so this connection has to write something.
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.set(self._barrier_key, "")
            pipe.execute_command("WAITAOF", 1, 0, self._wait_ms)
            _, synced = await pipe.execute(raise_on_error=False)
        _require_fsync(synced)

    @property
    def _wait_ms(self) -> int:
        return max(1, int(self._timeout_s * 800))

    async def _read_head(self) -> _Head:
        text = await self._redis.get(self._head_key)
        if text is not None:
            return _parse_head(str(text))
        return await self._last_entry()

    async def _last_entry(self) -> _Head:
        last = await self._redis.xrevrange(self._stream, count=1)
        if not last:
            return _Head(0, chain.GENESIS_HASH)
        record = self._parse(last[0])
        if record.kind == chain.DAMAGED:
            raise JournalUnavailable(f"its newest entry `{last[0][0]}` is damaged: {record.payload['reason']}")
        return _Head(record.seq, record.hash)

    async def _restore_head(self) -> None:
        """Write the head key again where it is gone (evicted, deleted): the stream itself says what it was."""
        head = await self._last_entry()
        _log.warning("the head of the journal was gone, it is record %d", head.seq)
        await self._redis.set(self._head_key, head.text, nx=True)

    async def _read(self, after_seq: int, limit: int, kinds: tuple[str, ...]) -> list[AuditRecord]:
        records: list[AuditRecord] = []
        markers = [f'"kind":{json.dumps(kind)}' for kind in kinds]
        seen, start = 0, f"{max(0, after_seq) + 1}-0"
        while seen < limit:
            page = await self._redis.xrange(self._stream, min=start, max="+", count=min(_PAGE, limit - seen))
            for entry in page:
                # In canonical JSON a record of the kind always holds this text, so the others need no parsing.
                if kinds and not any(marker in str(entry[1].get("data")) for marker in markers):
                    continue
                record = self._parse(entry)
                if not kinds or record.kind in kinds:
                    records.append(record)
            seen += len(page)
            if not page or len(page) < _PAGE:
                break
            start = f"({page[-1][0]}"
        return records

    def _parse(self, entry: tuple[str, dict[str, str]]) -> AuditRecord:
        entry_id, fields = entry
        number, _, part = str(entry_id).partition("-")
        if part != "0" or set(fields) != {"data"}:
            reason = f"entry `{entry_id}` is not one that a journal writes"
            record = chain.damaged(int(number), chain.ProblemKind.UNREADABLE, reason, str(fields))
        else:
            record = chain.parse_record(fields["data"], int(number))
        if record.kind == chain.DAMAGED:
            self.unreadable += 1
            _log.error("entry %s of the journal: %s", entry_id, record.payload.get("reason"))
        return record

    async def _approve_server(self) -> None:
        if self._server_approved:
            return
        check = await self.check_server()
        if not check.ok:
            raise JournalUnavailable("; ".join(check.errors))
        for warning in check.warnings:
            _log.warning("journal: %s", warning)
        self._server_approved = True


def _text(record: AuditRecord) -> str:
    data = codec.canonical_json(record)
    if len(data) > _RECORD_BYTES_MAX:
        raise InvariantViolation(f"a `{record.kind}` record of {len(data)} bytes is larger than {_RECORD_BYTES_MAX}")
    return data.decode()


def _pause_s(batch: _Batch, attempt: int) -> float:
    share = int(batch.after.hash[:8], 16) / 2**32
    return share * min(0.05, 0.001 * (attempt + 1))


def _parse_head(text: str) -> _Head:
    if not text:
        return _Head(0, chain.GENESIS_HASH)
    number, _, head_hash = text.partition(" ")
    if not number.isdigit() or len(head_hash) != 64:
        raise JournalUnavailable(f"its head is `{text[:100]}`, which no journal writes: verify it, then delete the key")
    return _Head(int(number), head_hash)


def _require_fsync(synced: Any) -> None:
    if isinstance(synced, Exception):
        way_out = "use durability `reply`, or Redis or Valkey from 7.2 with `appendonly yes`"
        raise JournalUnavailable(f"the server cannot confirm its disk ({synced}): {way_out}")
    if not isinstance(synced, list) or not synced or int(synced[0]) < 1:
        raise JournalUnavailable("the server's disk did not confirm the records in time")
