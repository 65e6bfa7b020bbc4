"""One bounded look at an index of the blackboard and at the records behind it, wherever dead ids and huge records lie.

How long each record is gets asked first, so an id whose record is gone costs no reading and a record beyond all measure
is never fetched. A cursor names the score and the id that were seen last, not a rank: ids that vanish or come between
two looks shift every rank behind them. Of an index that is a set (ACGS's core keeps such ones) it is SSCAN's cursor.

It decides nothing. INVARIANT: a look reads at most `IDS_MAX` ids and `BYTES_MAX` bytes; an id that stands in the index
from the first look of a round to the last is read in that round, whatever else comes or goes; a record that cannot be
used is counted once, not in each look.
"""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, cast

from cachewarden.board_records import BoardRecord
from cachewarden.ports import BoardPage
from coordination import blackboard_records as records
from coordination.blackboard_records import BadRecord
from coordination.redis_records import Parser

__all__ = ["BYTES_MAX", "IDS_MAX", "RECORD_BYTES_MAX", "RedisPages"]

IDS_MAX: Final = 5_000
BYTES_MAX: Final = 1 << 20
RECORD_BYTES_MAX: Final = 64 << 10
"""Far above what any of ACGS's programs writes; a longer one is counted as unusable."""
_STEP: Final = 500
_BAD_REMEMBERED: Final = 10_000

# KEYS: the sorted set; ARGV: score and id seen last, how many to pass over behind them, how many to give. The rank of
# that place is found between the ranks of its score by halves, since the id itself may be gone. Ids are compared byte
# by byte, as the server orders them; Lua's own comparison depends on the server's locale.
_BEHIND: Final = """
local key, score, last = KEYS[1], ARGV[1], ARGV[2]
local function beyond(a, b)
  for i = 1, math.min(#a, #b) do
    local x, y = string.byte(a, i), string.byte(b, i)
    if x ~= y then return x > y end
  end
  return #a > #b
end
local low = redis.call('ZCOUNT', key, '-inf', '(' .. score)
local high = redis.call('ZCOUNT', key, '-inf', score)
while low < high do
  local middle = math.floor((low + high) / 2)
  if beyond(redis.call('ZRANGE', key, middle, middle)[1], last) then high = middle else low = middle + 1 end
end
local start = low + tonumber(ARGV[3])
return redis.call('ZRANGE', key, start, start + tonumber(ARGV[4]) - 1, 'WITHSCORES')
"""
_SORTED: Final = "z"
_SET: Final = "s"
_SPOILT: Final = "\ufffd"
"""What stands for bytes that are no text: such an id is not known exactly, so no cursor may rest on it."""

_log = logging.getLogger("cachewarden.blackboard")


class RedisPages:
    """Reads pages through one client and remembers which records were bad."""

    def __init__(self, redis: Any) -> None:
        self._redis = redis
        self._bad: OrderedDict[str, None] = OrderedDict()

    async def read(
        self,
        index: str,
        key_of: Callable[[str], str],
        parse: Parser,
        cursor: str,
        own: str | None = None,
        more: str | None = None,
    ) -> BoardPage:
        """Return the records behind `cursor` ("": from the beginning) of the sorted set `index`, until it ends or a
        bound is met; then those of the set `more`, if there is one.

        Items that have expired count as gone. What stands in the set `own` is passed over: it is ours, and may be far
        more than what all peers write. Raises BlackboardUnavailable by way of its caller.
        """
        now_ms = await self._server_ms()
        found: list[Mapping[str, Any]] = []
        scanned = dangling = bad = room = 0
        place = cursor or f"{_SORTED} -inf 0 "
        while place and scanned < IDS_MAX and room < BYTES_MAX:
            entries, after = await self._step(index if place.startswith(_SORTED) else str(more), place)
            ids = [entry for entry, _ in entries]
            ours = await self._redis.smismember(own, ids) if own is not None and ids else [0] * len(ids)
            others = [i for i, is_ours in zip(ids, ours, strict=True) if not is_ours]
            # A step of a set cannot be cut: SSCAN knows no place in the middle of it.
            whole = place.startswith(_SET)
            measured = await self._lengths([key_of(i) for i in others])
            fitting, lengths = (len(others), measured) if whole else _fitting(measured, BYTES_MAX - room)
            taken = len(ids) if fitting == len(others) else ids.index(others[fitting])
            present = [i for i, length in zip(others[:fitting], lengths, strict=True) if 0 < length <= RECORD_BYTES_MAX]
            texts = dict(zip(present, await self._texts([key_of(i) for i in present]), strict=True))
            room += sum(length for length in lengths if 0 < length <= RECORD_BYTES_MAX)
            for record_id, length in zip(others[:fitting], lengths, strict=True):
                record = self._parsed(parse, record_id, key_of(record_id), texts.get(record_id), length)
                if isinstance(record, dict) and _alive(record, now_ms):
                    found.append(record)
                elif isinstance(record, int):
                    bad += record
                else:
                    dangling += 1
            scanned += taken
            if taken < len(ids):
                place = _place_behind(entries[:taken], place)
                break
            place = after or (f"{_SET} 0" if more is not None and not whole else "")
        page = cast(list[BoardRecord], found)
        return BoardPage(records=tuple(page), cursor=place, scanned=scanned, dangling=dangling, bad=bad)

    async def _step(self, index: str, place: str) -> tuple[list[tuple[str, str]], str]:
        """Return the next entries of an index (id, and the score if it has one) and the place behind them; "" at the
        end."""
        if place.startswith(_SET):
            at, ids = await self._redis.sscan(index, int(place.removeprefix(f"{_SET} ")), count=_STEP)
            return [(str(i), "") for i in dict.fromkeys(ids)], f"{_SET} {at}" if int(at) else ""
        _, score, skip, last = place.split(" ", 3)
        flat = await self._redis.eval(_BEHIND, 1, index, score, last, skip, _STEP)
        entries = [(str(i), str(s)) for i, s in zip(flat[::2], flat[1::2], strict=True)]
        return entries, _place_behind(entries, place) if len(entries) == _STEP else ""

    async def _server_ms(self) -> int:
        seconds, microseconds = await self._redis.time()
        return int(seconds) * 1000 + int(microseconds) // 1000

    async def _lengths(self, keys: Sequence[str]) -> list[int]:
        """Return the bytes of each record; 0 where there is none, -1 where its key holds something else."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.hstrlen(key, "data")
            answers = await pipe.execute(raise_on_error=False)
        return [answer if isinstance(answer, int) else -1 for answer in answers]

    async def _texts(self, keys: Sequence[str]) -> list[Any]:
        async with self._redis.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.hget(key, "data")
            return list(await pipe.execute(raise_on_error=False))

    def _parsed(self, parse: Parser, record_id: str, key: str, text: Any, length: int) -> dict[str, Any] | int | None:
        """Return the record, None where it is gone, or how many bad ones this adds to those that were known: 0 or 1."""
        if length == 0 or (text is None and 0 < length <= RECORD_BYTES_MAX):
            return None
        record = BadRecord(f"the record has {length} bytes, more than {RECORD_BYTES_MAX}")
        if length <= RECORD_BYTES_MAX:
            parsed = parse(text)
            if not isinstance(parsed, BadRecord) and parsed["id"] == record_id:
                return parsed
            record = parsed if isinstance(parsed, BadRecord) else BadRecord("`id` is not the one under which it lies")
        mark = hashlib.sha256(f"{key}\0{length}\0{text}".encode(errors="replace")).hexdigest()
        if mark in self._bad:
            self._bad.move_to_end(mark)
            return 0
        self._bad[mark] = None
        while len(self._bad) > _BAD_REMEMBERED:
            self._bad.popitem(last=False)
        _log.warning("a record on the blackboard cannot be used: %s", record.reason)
        return 1


def _place_behind(entries: Sequence[tuple[str, str]], place: str) -> str:
    """Return the cursor behind entries of a sorted set that were read from `place` on."""
    for passed, (record_id, score) in enumerate(reversed(entries)):
        if _SPOILT not in record_id:
            return f"{_SORTED} {score} {passed} {record_id}"
    _, score, skip, last = place.split(" ", 3)
    return f"{_SORTED} {score} {int(skip) + len(entries)} {last}"


def _alive(record: Mapping[str, Any], now_ms: int) -> bool:
    expires_ms = records.time_ms(record.get("expires_at"))
    return expires_ms is None or expires_ms > now_ms


def _fitting(lengths: Sequence[int], room: int) -> tuple[int, list[int]]:
    """Return how many of the records fit into `room` bytes, at least one, and their lengths."""
    taken = 0
    for length in lengths:
        room -= length if 0 < length <= RECORD_BYTES_MAX else 0
        if room < 0 and taken:
            break
        taken += 1
    return taken, list(lengths[:taken])
