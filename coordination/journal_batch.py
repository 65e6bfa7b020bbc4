"""The parts of a journal on Redis that need no server: heads, batches, and what a server must be to keep a journal.

Pure values and functions; the adapter is `redis_journal.py`. INVARIANT: a batch knows the head on which it was sealed
and which of its records belong to which append.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cachewarden import chain
from cachewarden.errors import InvariantViolation, JournalUnavailable
from cachewarden.ports import RecordDraft

__all__ = [
    "APPEND",
    "Batch",
    "Head",
    "ServerCheck",
    "parse_head",
    "pause_s",
    "require_fsync",
    "require_size",
    "server_check",
]

_RECORD_BYTES_MAX: Final = 1 << 20

# KEYS: stream, head, last epoch of each lease that a record is fenced by. ARGV: head that the writer expects, new head,
# seq of the first record, number of fences, epoch of each, record, record, ...
# Answers {1 done | 0 the head is another | 2 a fence is stale, head | number of the fence from 1, last id}.
APPEND: Final = """
local fences = tonumber(ARGV[4])
for i = 1, fences do
  local epoch = redis.call('GET', KEYS[2 + i])
  if epoch and tonumber(epoch) > tonumber(ARGV[4 + i]) then return {2, tostring(i), ''} end
end
local head = redis.call('GET', KEYS[2])
if not head then
  local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
  if #last > 0 then return {0, '', last[1][1]} end
  head = ''
end
if head ~= ARGV[1] then return {0, head, ''} end
local seq = tonumber(ARGV[3])
local first = 5 + fences
for i = first, #ARGV do
  redis.call('XADD', KEYS[1], string.format('%d-0', seq + i - first), 'data', ARGV[i])
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


def server_check(info: Mapping[str, Any], durability: str) -> ServerCheck:
    """Return what is wrong with a server, by its answer to INFO; `durability` as `RedisJournal` has it."""
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
        (errors if durability == "fsync" else warnings).append(text)
    elif str(info.get("aof_last_write_status", "ok")) != "ok":
        errors.append("the server could not write its append-only file: free its disk")
    if str(info.get("role", "master")) != "master":
        errors.append("the server is a replica: give the address of its master")
    return ServerCheck(warnings=tuple(warnings), errors=tuple(errors))


@dataclass(frozen=True, slots=True)
class Head:
    seq: int
    hash: str

    @property
    def text(self) -> str:
        return f"{self.seq} {self.hash}" if self.seq else ""


@dataclass(frozen=True, slots=True)
class Batch:
    """Records as they were sent, and the drafts of each append that they were made of."""

    groups: tuple[tuple[RecordDraft, ...], ...]
    before: Head
    records: tuple[chain.Sealed, ...]

    @property
    def after(self) -> Head:
        return Head(self.records[-1].seq, self.records[-1].hash)

    @property
    def fences(self) -> tuple[tuple[str, int], ...]:
        """What the records are fenced by: each once."""
        return tuple(dict.fromkeys(fence for drafts in self.groups for draft in drafts for fence in draft.fences))

    def parts(self) -> list[list[chain.Sealed]]:
        """Return the records of each append."""
        parts: list[list[chain.Sealed]] = []
        at = 0
        for drafts in self.groups:
            parts.append(list(self.records[at : at + len(drafts)]))
            at += len(drafts)
        return parts


def require_size(record: chain.Sealed) -> None:
    # No character takes more than four bytes.
    if 4 * len(record.text) <= _RECORD_BYTES_MAX:
        return
    size = len(record.text.encode())
    if size > _RECORD_BYTES_MAX:
        raise InvariantViolation(f"a `{record.draft.kind}` record of {size} bytes is larger than {_RECORD_BYTES_MAX}")


def pause_s(batch: Batch, attempt: int) -> float:
    share = int(batch.after.hash[:8], 16) / 2**32
    return share * min(0.05, 0.001 * (attempt + 1))


def parse_head(text: str) -> Head:
    if not text:
        return Head(0, chain.GENESIS_HASH)
    number, _, head_hash = text.partition(" ")
    if not number.isdigit() or len(head_hash) != 64:
        raise JournalUnavailable(f"its head is `{text[:100]}`, which no journal writes: verify it, then delete the key")
    return Head(int(number), head_hash)


def require_fsync(synced: Any) -> None:
    if isinstance(synced, Exception):
        way_out = "use durability `reply`, or Redis or Valkey from 7.2 with `appendonly yes`"
        raise JournalUnavailable(f"the server cannot confirm its disk ({synced}): {way_out}")
    if not isinstance(synced, list) or not synced or int(synced[0]) < 1:
        raise JournalUnavailable("the server's disk did not confirm the records in time")
