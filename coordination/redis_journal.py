"""The journal on Redis: a stream with one entry per audit record, and beside it the head of the hash chain.

Keys: `{prefix}:journal` (stream; record n is entry `n-0`, its field `data` the canonical JSON) and
`{prefix}:journal:head` (text `n hash`). Several writers share one order: each seals its records on the head that it
knows and sends one script that appends them only if the head is still that one; the loser seals anew. The script is
atomic and a head never comes back, so a batch is in the journal completely or not at all, and at most once. Appends of
one process that come while a batch is on its way go out together with the next (`redis_group_commit.py`). The same
script compares the epochs by which records are fenced with those of the leases on this server (`redis_leases.py`).

It decides nothing and never repairs an entry. INVARIANT: an append returns only records that the server has confirmed,
and a batch whose outcome is unknown is looked up by its hash before anything else is written.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Literal, TypeVar

from hiredis import pack_command
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from cachewarden import chain
from cachewarden.errors import InvariantViolation, JournalUnavailable, LeaseLost
from cachewarden.messages import AuditRecord
from cachewarden.ports import RecordDraft
from coordination.journal_batch import (
    APPEND,
    Batch,
    Head,
    ServerCheck,
    parse_head,
    pause_s,
    require_fsync,
    require_size,
    server_check,
)
from coordination.redis_group_commit import Group, GroupCommit

__all__ = ["RedisJournal", "ServerCheck"]

T = TypeVar("T")

_log = logging.getLogger("cachewarden.journal")

_ESCAPED: Final = "surrogateescape"
_PAGE: Final = 500
_BATCH_MAX: Final = 1_000
_OPEN_MAX: Final = 64


class RedisJournal:
    """The Journal port on one server.

    `durability`: `reply` waits for the server's answer, `fsync` also for its disk (WAITAOF; Redis, Valkey from 7.2).
    `jitter_s(attempt)` gives the pause after a lost race in seconds; by default it follows from the hash of the batch,
    which differs between writers and tries. `allow_unsafe_server` appends although `check_server` has errors.
    `waiting_max` bounds the records that may wait for their turn; an append beyond it is refused at once.
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
        waiting_max: int = 10_000,
    ) -> None:
        self._stream, self._head_key = f"{prefix}:journal", f"{prefix}:journal:head"
        self._barrier_key, self._epoch_key = f"{prefix}:journal:barrier", f"{prefix}:epoch:"
        # A client that repeats by itself would hide that the outcome of the first try is unknown.
        options: dict[str, Any] = {
            "decode_responses": True,
            "encoding_errors": _ESCAPED,
            "socket_connect_timeout": timeout_s,
            "retry": Retry(NoBackoff(), 0),
            "client_name": "cachewarden-journal",
        }
        pool = BlockingConnectionPool.from_url(
            url, max_connections=max_connections, timeout=timeout_s, socket_timeout=timeout_s, **options
        )
        # With a timeout of its own each write to a socket costs redis-py a task. The appends have one connection, and a
        # deadline for asking and answer together.
        self._line: Any = BlockingConnectionPool(
            max_connections=1,
            timeout=timeout_s,
            connection_class=pool.connection_class,
            **{**pool.connection_kwargs, "socket_timeout": None},
        )
        # redis-py's types do not tell its asynchronous answers from its synchronous ones, hence Any.
        self._redis: Any = Redis.from_pool(pool)
        self._durability, self._timeout_s = durability, timeout_s
        self._attempts_max, self._jitter_s = attempts_max, jitter_s
        self._server_approved = allow_unsafe_server
        self._allow_unsafe_server = allow_unsafe_server
        self._sha: str | None = None
        self._known_head: Head | None = None
        self._pending: list[Batch] = []
        """Sent, outcome unknown."""
        self._late: list[tuple[tuple[RecordDraft, ...], list[chain.Sealed]]] = []
        """Found to be in after their append had failed; the next append of the same drafts takes them from here."""
        self._commit = GroupCommit(self._write_groups, waiting_max=waiting_max)
        self._connection: Any = None
        """The appends' own: a batch at a time needs no pool."""
        self.unreadable = 0
        """Entries met that could not be read, since the start."""

    async def append(self, drafts: Sequence[RecordDraft]) -> list[AuditRecord]:
        """Append all or none; see the port. Drafts that an earlier call with unknown outcome did write are not doubled.

        Raises JournalUnavailable (JournalBusy where too many wait already), LeaseLost where a fence is stale, and
        InvariantViolation for records that can never be written.
        """
        return [sealed.record() for sealed in await self.begin(drafts)] if drafts else []

    def begin(self, drafts: Sequence[RecordDraft]) -> asyncio.Future[Any]:
        """Append as `append` does, for those who have something to do meanwhile and need not see what they have
        written: awaiting what is returned raises what `append` raises, but JournalBusy and InvariantViolation for
        drafts that are too many or none, which are raised at once."""
        if not 0 < len(drafts) <= _BATCH_MAX:
            raise InvariantViolation(f"a batch of {len(drafts)} records cannot be written, 1 to {_BATCH_MAX} can")
        return self._commit.begin(tuple(drafts))

    @property
    def waiting(self) -> int:
        """Records that wait for their turn to be sent."""
        return self._commit.waiting

    async def read(self, after_seq: int = 0, limit: int = 1_000, *, skimmed: Sequence[str] = ()) -> list[AuditRecord]:
        """Return up to `limit` records with seq > `after_seq`, oldest first; damaged ones as `DAMAGED` stand-ins."""
        return await self._guarded(self._read(after_seq, limit, (), frozenset(skimmed)))

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
        return server_check(await self._guarded(self._redis.info()), self._durability)

    async def close(self) -> None:
        """Fail what waits, and give the connections back."""
        await self._commit.close()
        await self._hang_up()
        await self._line.aclose()
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

    async def _write_groups(self, groups: list[Group]) -> None:
        """Append all groups in one batch and tell each its outcome."""
        await self._guarded(self._append(groups))

    async def _append(self, groups: list[Group]) -> None:
        await self._approve_server()
        lost = 0
        for attempt in range(self._attempts_max):
            await self._settle_pending()
            groups = [group for group in groups if not self._was_late(group)]
            if self._known_head is None:
                self._known_head = await self._read_head()
            batch = self._seal(groups, self._known_head)
            if batch is None:
                return
            self._pending.append(batch)
            try:
                done = await self._send(batch)
            except LeaseLost as error:
                # Only the appends under that lease fail; the others are sealed anew without them.
                groups = self._without(groups, error)
                continue
            except (RedisConnectionError, RedisTimeoutError, OSError, TimeoutError):
                # Unknown whether it is in. It is looked up once before anybody is told that it may have failed, and
                # may be sent again: the head lets only one of the two in.
                lost += 1
                self._known_head = None
                if lost > 1:
                    raise
                continue
            if done:
                # Whatever else was sent on the same head can never be appended any more.
                self._pending.clear()
                self._known_head = batch.after
                self._tell(groups, batch)
                return
            # Writers that try again in step would lose to the same one each time.
            wait_s = pause_s(batch, attempt) if self._jitter_s is None else self._jitter_s(attempt)
            await asyncio.sleep(wait_s)
        raise JournalUnavailable(f"other writers came first {self._attempts_max} times in a row")

    def _seal(self, groups: list[Group], head: Head) -> Batch | None:
        """Chain all groups to the head; one that can never be written fails alone. None where nothing is left."""
        fit: list[Group] = []
        records: list[chain.Sealed] = []
        seq, last_hash = head.seq, head.hash
        for group in groups:
            try:
                sealed = chain.seal_texts(group.drafts, seq + 1, last_hash)
                for record in sealed:
                    require_size(record)
            except InvariantViolation as error:
                group.fail(error)
                continue
            fit.append(group)
            records += sealed
            seq, last_hash = records[-1].seq, records[-1].hash
        groups[:] = fit
        return Batch(tuple(g.drafts for g in fit), head, tuple(records)) if fit else None

    @staticmethod
    def _without(groups: list[Group], lost: LeaseLost) -> list[Group]:
        left: list[Group] = []
        for group in groups:
            if any(name == lost.service and epoch == lost.epoch for d in group.drafts for name, epoch in d.fences):
                group.fail(lost)
            else:
                left.append(group)
        return left

    def _tell(self, groups: list[Group], batch: Batch) -> None:
        for group, records in zip(groups, batch.parts(), strict=True):
            if not group.succeed(records):
                # Whoever asked has given up meanwhile; the same drafts must not be written a second time.
                self._remember_late(group.drafts, records)

    def _remember_late(self, drafts: tuple[RecordDraft, ...], records: list[chain.Sealed]) -> None:
        self._late.append((drafts, records))
        del self._late[:-_OPEN_MAX]

    def _was_late(self, group: Group) -> bool:
        for late in self._late:
            if late[0] == group.drafts:
                self._late.remove(late)
                group.succeed(late[1])
                return True
        return False

    async def _settle_pending(self) -> None:
        """Find out which batches of unknown outcome are in: by the hash of the record that stands in their place.

        A batch whose place is still empty stays open, since a slow server may yet execute it.
        """
        still_open: list[Batch] = []
        settled: set[str] = set()
        for batch in self._pending:
            first = batch.records[0]
            found = await self._read(first.seq - 1, 1, ())
            self._known_head = None
            if not found or found[0].seq != first.seq:
                still_open.append(batch)
            elif found[0].hash == first.hash and batch.after.hash not in settled:
                # The same batch may have been sent twice; a longer one with the same beginning is another batch.
                settled.add(batch.after.hash)
                if await self._is_in(batch):
                    if self._durability == "fsync":
                        await self._fsync()
                    for drafts, records in zip(batch.groups, batch.parts(), strict=True):
                        self._remember_late(drafts, records)
        self._pending = still_open[-_OPEN_MAX:]

    async def _is_in(self, batch: Batch) -> bool:
        last = batch.records[-1]
        found = await self._read(last.seq - 1, 1, ())
        return bool(found) and found[0].hash == last.hash

    async def _send(self, batch: Batch) -> bool:
        """Run the script; False where the head has moved: `_known_head` is then the new one, None to be read. Raises
        LeaseLost for a stale fence."""
        fences = batch.fences
        arguments = (
            *(2 + len(fences), self._stream, self._head_key, *(f"{self._epoch_key}{name}" for name, _ in fences)),
            *(batch.before.text, batch.after.text, batch.records[0].seq, len(fences), *(epoch for _, epoch in fences)),
            *(record.text.encode("utf-8", _ESCAPED) for record in batch.records),
        )
        if self._sha is None:
            self._sha = str(await self._redis.script_load(APPEND))
        try:
            answer = await self._evaluate(arguments)
        except NoScriptError:
            self._sha = str(await self._redis.script_load(APPEND))
            answer = await self._evaluate(arguments)
        except ResponseError:
            # The script fails at its first write or not at all, so this outcome is known: nothing was written.
            self._pending.remove(batch)
            raise
        done, head, last_id = answer
        if int(done) == 1:
            return True
        if int(done):
            # It is known that this try did not write, and that no other of the same records ever will.
            self._pending.remove(batch)
            name, epoch = fences[int(head) - 1]
            raise LeaseLost(name, None, epoch)
        self._known_head = None
        if last_id:
            await self._restore_head()
        elif len(self._pending) == 1:
            # Only this try was open, and it has been refused: no need to look it up.
            self._pending.clear()
            self._known_head = parse_head(str(head))
        return False

    async def _evaluate(self, arguments: tuple[Any, ...]) -> Any:
        if self._durability == "reply":
            try:
                async with asyncio.timeout(self._timeout_s):
                    if self._connection is None:
                        self._connection = await self._line.get_connection()
                    await self._connection.send_packed_command(pack_command(("EVALSHA", self._sha, *arguments)))
                    return await self._connection.read_response()
            except ResponseError:
                raise
            except BaseException:
                # An answer may still come, and must never be taken for that to another question.
                await self._hang_up()
                raise
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.execute_command("EVALSHA", self._sha, *arguments)
            pipe.execute_command("WAITAOF", 1, 0, self._wait_ms)
            answer, synced = await pipe.execute(raise_on_error=False)
        if isinstance(answer, Exception):
            raise answer
        if int(answer[0]) == 1:
            require_fsync(synced)
        return answer

    async def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                await connection.disconnect(nowait=True)
            finally:
                await self._line.release(connection)

    async def _fsync(self) -> None:
        # WAITAOF waits for the writes of its own connection only, so this connection has to write something.
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.set(self._barrier_key, "")
            pipe.execute_command("WAITAOF", 1, 0, self._wait_ms)
            _, synced = await pipe.execute(raise_on_error=False)
        require_fsync(synced)

    @property
    def _wait_ms(self) -> int:
        return max(1, int(self._timeout_s * 800))

    async def _read_head(self) -> Head:
        text = await self._redis.get(self._head_key)
        if text is not None:
            return parse_head(str(text))
        return await self._last_entry()

    async def _last_entry(self) -> Head:
        last = await self._redis.xrevrange(self._stream, count=1)
        if not last:
            return Head(0, chain.GENESIS_HASH)
        record = self._parse(last[0])
        if record.kind == chain.DAMAGED:
            raise JournalUnavailable(f"its newest entry `{last[0][0]}` is damaged: {record.payload['reason']}")
        return Head(record.seq, record.hash)

    async def _restore_head(self) -> None:
        """Write the head key again where it is gone (evicted, deleted): the stream itself says what it was."""
        head = await self._last_entry()
        _log.warning("the head of the journal was gone, it is record %d", head.seq)
        await self._redis.set(self._head_key, head.text, nx=True)

    async def _read(
        self, after_seq: int, limit: int, kinds: tuple[str, ...], skimmed: frozenset[str] = frozenset()
    ) -> list[AuditRecord]:
        records: list[AuditRecord] = []
        markers = [f'"kind":{json.dumps(kind)}' for kind in kinds]
        seen, start = 0, f"{max(0, after_seq) + 1}-0"
        while seen < limit:
            page = await self._redis.xrange(self._stream, min=start, max="+", count=min(_PAGE, limit - seen))
            for entry in page:
                # In canonical JSON a record of the kind always holds this text, so the others need no parsing.
                if kinds and not any(marker in str(entry[1].get("data")) for marker in markers):
                    continue
                record = self._parse(entry, skimmed)
                if not kinds or record.kind in kinds:
                    records.append(record)
            seen += len(page)
            if not page or len(page) < _PAGE:
                break
            start = f"({page[-1][0]}"
        return records

    def _parse(self, entry: tuple[str, dict[str, str]], skimmed: frozenset[str] = frozenset()) -> AuditRecord:
        entry_id, fields = entry
        number, _, part = str(entry_id).partition("-")
        if part != "0" or set(fields) != {"data"}:
            reason = f"entry `{entry_id}` is not one that a journal writes"
            record = chain.damaged(int(number), chain.ProblemKind.UNREADABLE, reason, str(fields))
        else:
            record = chain.skim(fields["data"], int(number), skimmed) or chain.parse_record(fields["data"], int(number))
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
