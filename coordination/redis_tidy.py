"""Keeps our part of the blackboard bounded: what is over expires, and the indexes forget what has expired.

Which records are ours stands in sets of our agent (`agents:{us}:knowledge`, `:created` and `:tasks`, `:conflicts`;
`:tasks` are those that it claimed, as in ACGS). Each call looks at one batch of each, goes on where the last one
stopped, and so comes round. What we have ended has a time to live from that moment on; finished tasks and settled
conflicts that somebody else has ended get one here; ids whose record is gone leave every index that they stand in. What
has been open for longer than that is given back to the caller, who ends it properly.

It touches no record of a peer that we have not claimed. INVARIANT: a call sends a bounded number of commands, and an id
leaves an index only if its record was gone at that very moment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from coordination import blackboard_records as records
from coordination.blackboard_records import SPACES, BadRecord
from coordination.redis_indexes import CONFLICT_SETS, CONFLICT_SORTED_SETS, TASK_SETS, TASK_SORTED_SETS

__all__ = ["BATCH", "BATCH_MAX", "ROUND_CALLS", "RedisTidier", "Tidied"]

BATCH: Final = 200
"""Least number of ids of each kind in one call, about: SSCAN may give some more."""
BATCH_MAX: Final = 5_000
ROUND_CALLS: Final = 60
"""A round over all ids of a kind takes about so many calls, up to `BATCH_MAX * ROUND_CALLS` ids: an hour at one
call a minute. So an index holds no more than what lives and what has died within that hour."""

_TTL_MS_MIN: Final = 1_000

# KEYS: our set, the sorted sets, the sets, the keys of each id's record; ARGV: how many sorted sets, how many sets, how
# many keys per id, the ids. A script, since a full server (`noeviction`) takes nothing into MULTI, but lets a script
# remove; and since another deployment of ours may write the same record again at this very moment.
_FORGET: Final = """
local sorted, sets, each, forgotten = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), 0
for i = 4, #ARGV do
  local there = 0
  for k = 1, each do
    there = there + redis.call('EXISTS', KEYS[1 + sorted + sets + (i - 4) * each + k])
  end
  if there == 0 then
    for k = 1, sorted do redis.call('ZREM', KEYS[1 + k], ARGV[i]) end
    for k = 1, sets do redis.call('SREM', KEYS[1 + sorted + k], ARGV[i]) end
    forgotten = forgotten + redis.call('SREM', KEYS[1], ARGV[i])
  end
end
return forgotten
"""

Key = Callable[..., str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tidied:
    """What one call did: ids looked at, ids taken out of the indexes, records that will expire now; and the ids of
    tasks and conflicts of ours that are open for too long."""

    looked_at: int
    forgotten: int
    expiring: int
    stale_tasks: tuple[str, ...] = ()
    stale_conflicts: tuple[str, ...] = ()


@dataclass(slots=True)
class _Tally:
    looked_at: int = 0
    forgotten: int = 0
    expiring: int = 0


class RedisTidier:
    """Remembers where it stopped in each of the sets."""

    def __init__(self, redis: Any, key: Key, agent_id: str) -> None:
        self._redis, self._key, self._agent_id = redis, key, agent_id
        self._cursors: dict[str, int] = {}

    async def tidy(self, now_ms: int, kept_ms: int) -> Tidied:
        """Look at one batch of each kind. Times of records are compared with `now_ms`, which is the clock that wrote
        them."""
        tally = _Tally()
        for part in _parts(await self._batch("knowledge")):
            await self._knowledge(part, tally)
        stale_tasks: set[str] = set()
        for kind in ("created", "tasks"):
            for part in _parts(await self._batch(kind)):
                stale_tasks.update(await self._aged(kind, part, now_ms, kept_ms, tally))
        stale_conflicts: list[str] = []
        for part in _parts(await self._batch("conflicts")):
            stale_conflicts += await self._aged("conflicts", part, now_ms, kept_ms, tally)
        return Tidied(
            looked_at=tally.looked_at,
            forgotten=tally.forgotten,
            expiring=tally.expiring,
            stale_tasks=tuple(sorted(stale_tasks)),
            stale_conflicts=tuple(stale_conflicts),
        )

    def _keys_of(self, *parts: str) -> Callable[[str], tuple[str, ...]]:
        return lambda record_id: (self._key(*parts, record_id),)

    async def _batch(self, kind: str) -> list[str]:
        place = self._key("agents", self._agent_id, kind)
        count = min(BATCH_MAX, max(BATCH, -(-int(await self._redis.scard(place)) // ROUND_CALLS)))
        self._cursors[kind], ids = await self._redis.sscan(place, self._cursors.get(kind, 0), count=count)
        return sorted({str(i) for i in ids})

    async def _knowledge(self, ids: Sequence[str], tally: _Tally) -> None:
        tally.looked_at += len(ids)
        indexes = tuple((space, "priority") for space in SPACES)

        def keys_of(record_id: str) -> tuple[str, ...]:
            return tuple(self._key(space, "knowledge", record_id) for space in SPACES)

        tally.forgotten += await self._forget("knowledge", ids, (indexes, ()), keys_of)

    async def _aged(self, kind: str, ids: Sequence[str], now_ms: int, kept_ms: int, tally: _Tally) -> list[str]:
        """Let what is over expire, forget what is gone, return what is open for too long."""
        keys_of = self._keys_of("conflicts" if kind == "conflicts" else "tasks")
        tasks, conflicts = (TASK_SORTED_SETS, TASK_SETS), (CONFLICT_SORTED_SETS, CONFLICT_SETS)
        indexes = conflicts if kind == "conflicts" else tasks
        age_of = _age_of_conflict if kind == "conflicts" else _age_of_task
        tally.looked_at += len(ids)
        async with self._redis.pipeline(transaction=False) as pipe:
            for record_id in ids:
                pipe.hget(keys_of(record_id)[0], "data")
                pipe.pttl(keys_of(record_id)[0])
            answers = await pipe.execute(raise_on_error=False)
        gone: list[str] = []
        stale: list[str] = []
        expire: dict[str, int] = {}
        for number, record_id in enumerate(ids):
            text, ttl_ms = answers[2 * number : 2 * number + 2]
            if text is None:
                gone.append(record_id)
                continue
            record = _parsed(kind, text)
            if record is None:
                # Spoilt by somebody: nobody can read it, so it may go after the same time.
                expire |= {} if ttl_ms != -1 else {record_id: kept_ms}
                continue
            over, since_ms = age_of(record)
            if over and ttl_ms == -1:
                expire[record_id] = max(_TTL_MS_MIN, kept_ms - (now_ms - since_ms))
            elif not over and now_ms - since_ms > kept_ms:
                stale.append(record_id)
        async with self._redis.pipeline(transaction=False) as pipe:
            for record_id, ttl_ms in expire.items():
                pipe.pexpire(keys_of(record_id)[0], ttl_ms)
            await pipe.execute()
        tally.expiring += len(expire)
        tally.forgotten += await self._forget(kind, gone, indexes, keys_of)
        return stale

    async def _forget(
        self,
        kind: str,
        ids: Sequence[str],
        indexes: tuple[Sequence[tuple[str, ...]], Sequence[tuple[str, ...]]],
        keys_of: Callable[[str], tuple[str, ...]],
    ) -> int:
        """Take those of `ids` out of all indexes (sorted sets, sets) that have no record; return how many."""
        if not ids:
            return 0
        sorted_sets, sets = ([self._key(*name) for name in names] for names in indexes)
        record_keys = [key for record_id in ids for key in keys_of(record_id)]
        keys = [self._key("agents", self._agent_id, kind), *sorted_sets, *sets, *record_keys]
        counts = (len(sorted_sets), len(sets), len(record_keys) // len(ids))
        return int(await self._redis.eval(_FORGET, len(keys), *keys, *counts, *ids))


def _parts(ids: Sequence[str]) -> list[Sequence[str]]:
    """Return the ids in parts, so that no script holds the server up for long and no answer is large."""
    return [ids[start : start + BATCH] for start in range(0, len(ids), BATCH)]


def _parsed(kind: str, text: Any) -> dict[str, Any] | None:
    record = records.parse_conflict(text) if kind == "conflicts" else records.parse_task(text)
    return None if isinstance(record, BadRecord) else record


def _age_of_task(task: Mapping[str, Any]) -> tuple[bool, int]:
    """Return whether a task is over, and since when it is what it is."""
    over = task["status"] in ("completed", "failed")
    since = (task["completed_at"] if over else task["claimed_at"]) or task["created_at"]
    return over, records.time_ms(since) or 0


def _age_of_conflict(conflict: Mapping[str, Any]) -> tuple[bool, int]:
    over = conflict["status"] not in records.OPEN_CONFLICT_STATES
    return over, records.time_ms((conflict["resolved_at"] if over else None) or conflict["created_at"]) or 0
