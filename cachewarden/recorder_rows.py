"""From a command and its answer to rows of a sample: what a recorder keeps, and what it sends.

Pure: clocks are arguments, nothing waits, no wire. A key name is hashed at once and kept nowhere; of a value only the
length is looked at. Every lookup is counted, so that the server can tell how much of its traffic the recorders see;
rows are kept only of keys that pass the spatial filter. When they outgrow their bound the rate is halved, so that the
sample shrinks by keys and never by moments.

INVARIANT: within one batch the accesses of a key are all kept or all dropped, and no more than `rows_max` rows are
held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from hashlib import blake2b
from typing import Any, Final

from cachewarden.cachemodel.memory_accounting import entry_bytes
from cachewarden.feed import DELETE, HIT, MISS, READ, SIZE_BYTES_MAX, TTL_MS_MAX, UNKNOWN, WRITE, Instruction
from cachewarden.keys import HASH_BYTES, REMAINDERS, PatternIndex

__all__ = ["COMMANDS", "CommandRows"]

_TAIL: Final = HASH_BYTES - 3
"""The last three bytes of the hash are its remainder modulo 2**24."""
_ALL: Final = b"\xff\xff\xff\xff"
"""Greater than every remainder."""
_WAKE_SHARE: Final = 0.75

_VALUE = "GET GETEX"
# An empty answer of these means that there is no key.
_WHOLE = "HGETALL HKEYS HVALS HLEN SMEMBERS SCARD LLEN ZCARD"
# An empty answer of these may mean that only the part is missing.
_PART = (
    "GETRANGE SUBSTR STRLEN GETBIT BITCOUNT HGET HMGET HEXISTS HSTRLEN HRANDFIELD HSCAN LRANGE LINDEX LPOS SISMEMBER "
    "SMISMEMBER SRANDMEMBER SSCAN ZRANGE ZRANGEBYSCORE ZREVRANGE ZREVRANGEBYSCORE ZRANGEBYLEX ZSCORE ZMSCORE ZRANK "
    "ZREVRANK ZCOUNT ZSCAN XRANGE XREVRANGE XLEN GEOPOS GEODIST GEOSEARCH"
)
_SEVERAL = "SINTER SUNION SDIFF"
# Lookups for the server's counters that ask for no value.
_ASKING = "EXISTS TOUCH TTL PTTL EXPIRETIME PEXPIRETIME TYPE"
_CHANGE = (
    "APPEND INCR DECR INCRBY DECRBY INCRBYFLOAT SETRANGE SETBIT HSET HMSET HSETNX HINCRBY HINCRBYFLOAT HDEL LPUSH "
    "RPUSH LPUSHX RPUSHX LPOP RPOP LSET LTRIM LREM LINSERT SADD SREM SPOP ZADD ZINCRBY ZREM ZPOPMIN ZPOPMAX "
    "ZREMRANGEBYSCORE ZREMRANGEBYRANK XADD XTRIM XDEL PFADD GEOADD"
)
_REMOVE = "DEL UNLINK"
_DEADLINES: Final = {"EXPIRE": 1000, "PEXPIRE": 1, "EXPIREAT": 1000, "PEXPIREAT": 1}
_SET_TTLS: Final = {"EX": 1000, "PX": 1, "EXAT": 1000, "PXAT": 1}
_OTHERS = "MGET MSET MSETNX SET SETEX PSETEX SETNX GETSET GETDEL"

COMMANDS: Final = frozenset(
    " ".join((_VALUE, _WHOLE, _PART, _SEVERAL, _ASKING, _CHANGE, _REMOVE, _OTHERS, *_DEADLINES)).split()
)
"""What a recorder understands; every other command passes by."""

_Row = tuple[int, int, int, int, int, int, int]
"""Recorder's time in ms, hash, op, entry size in bytes, TTL in ms, pattern, missed."""
_Handler = Callable[[tuple[Any, ...], Any], None]


def _bytes_of(key: Any) -> bytes:
    """Return a key as redis-py sends it."""
    if isinstance(key, str):
        return key.encode()
    return bytes(key) if isinstance(key, (bytes, bytearray, memoryview)) else repr(key).encode()


def _length(value: Any) -> int:
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode("utf-8", "surrogateescape"))
    if isinstance(value, memoryview):
        return value.nbytes
    if isinstance(value, (bytes, bytearray)):
        return len(value)
    return len(repr(value)) if isinstance(value, (int, float)) else 0


def _word(option: Any) -> str:
    return option.upper() if isinstance(option, str) else _bytes_of(option).decode("latin-1").upper()


class CommandRows:
    """Give each command to `see`, take a batch now and then. Sees nothing before the first `follow`.

    `clock_ms` never runs back and has any origin; `wall_ms` is the time of day, for deadlines that are given as such.
    `on_full` is called when a batch should be taken soon. `see` may be called from several threads where `new_lock`
    makes real locks.
    """

    def __init__(
        self,
        secret: bytes,
        *,
        clock_ms: Callable[[], int],
        wall_ms: Callable[[], int],
        on_full: Callable[[], None] = lambda: None,
        new_lock: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        # Copying a keyed state is twice as fast as keying anew.
        self._new_state = blake2b(digest_size=HASH_BYTES, key=secret).copy
        self._clock_ms, self._wall_ms, self._on_full = clock_ms, wall_ms, on_full
        self._new_lock = new_lock
        self._known = self._table()
        self.handlers: dict[Any, _Handler] = {}
        """What to call for a command's name with the command and its answer; `see` does that."""
        self._instruction: Instruction | None = None
        self._patterns = PatternIndex(())
        self._threshold = b""
        self._remainders = 0
        # Plain additions without a lock: one in some 100,000 is lost where threads switch within one, a lock would
        # cost each lookup more than all the rest.
        self.hits = self.misses = self.unknown = 0
        self.thinned = 0
        """Rows that were seen and given up to stay within the bound."""
        self.forget()

    def _table(self) -> dict[Any, _Handler]:
        forms: dict[_Handler, str] = {
            self._value: _VALUE, self._whole: _WHOLE, self._part: _PART, self._several: _SEVERAL, self._asking: _ASKING,
            self._change: _CHANGE, self._remove: _REMOVE, self._deadline: " ".join(_DEADLINES), self._mget: "MGET",
            self._mset: "MSET MSETNX", self._set: "SET", self._setex: "SETEX PSETEX", self._setnx: "SETNX",
            self._getset: "GETSET", self._getdel: "GETDEL",
        }  # fmt: skip
        table: dict[Any, _Handler] = {}
        for handler, names in forms.items():
            for name in names.split():
                table |= dict.fromkeys((name, name.lower(), name.encode(), name.lower().encode()), handler)
        return table

    # --- What is kept, and taken ---

    @property
    def lookups(self) -> int:
        """Return how many keys were looked up so far, sampled or not."""
        return self.hits + self.misses + self.unknown

    @property
    def following(self) -> Instruction | None:
        return self._instruction

    def follow(self, instruction: Instruction | None) -> None:
        """Keep from now on what the instruction says; None: nothing."""
        before, self._instruction = self._instruction, instruction
        if instruction is None:
            self.handlers = {}
            return
        if before is None or before.patterns != instruction.patterns:
            # Rows that name patterns of the old list cannot be sent with the new one. Else the batch at hand goes on,
            # and the next one has the new rate.
            self._patterns = PatternIndex(instruction.patterns)
            self.forget()
        self.handlers = self._known

    def forget(self) -> None:
        """Drop all rows and begin a batch; also what a forked child does, whose parent sends the rows. The lock is a
        new one, since at a fork another thread may have held the old one."""
        self._lock = self._new_lock()
        with self._lock:
            self._begin(self._clock_ms())

    def _begin(self, now_ms: int) -> None:
        self._rows: list[_Row] = []
        self._written: dict[int, int] = {}
        self._from_ms = now_ms
        self._counted = (self.lookups, self.hits, self.misses)
        self._set_rate(1.0 if self._instruction is None else self._instruction.spatial_rate)

    def _set_rate(self, rate: float) -> None:
        self._remainders = max(1, round(rate * REMAINDERS))
        self._threshold = _ALL if self._remainders >= REMAINDERS else self._remainders.to_bytes(3, "big")

    def take(self) -> dict[str, Any] | None:
        """Return what was seen since the last time, as the fields of a batch, and begin the next; None while there is
        no instruction."""
        instruction = self._instruction
        if instruction is None:
            return None
        with self._lock:
            now_ms = self._clock_ms()
            rows, from_ms, counted, remainders = self._rows, self._from_ms, self._counted, self._remainders
            self._begin(now_ms)
            seen = tuple(now - before for now, before in zip(self._counted, counted, strict=True))
        columns = list(zip(*rows, strict=True)) or [()] * 7
        names = ("at_ms", "key", "op", "size_bytes", "ttl_ms", "pattern", "missed")
        return {
            "secret_fingerprint": instruction.secret_fingerprint,
            "patterns_id": instruction.patterns_id,
            "spatial_rate": remainders / REMAINDERS,
            "from_ms": from_ms,
            "to_ms": now_ms,
            "lookups": seen[0],
            "hits": seen[1],
            "misses": seen[2],
            **{name: list(column) for name, column in zip(names, columns, strict=True)},
        }

    # --- What is seen ---

    def see(self, args: tuple[Any, ...], answer: Any) -> None:
        """Take one command, as redis-py's `execute_command` got it, and its parsed answer. May raise on nonsense."""
        handler = self.handlers.get(args[0])
        if handler is not None:
            handler(args, answer)

    def see_each(self, commands: Iterable[tuple[Any, ...]], answers: Iterable[Any]) -> None:
        """Take the commands of a pipeline; those that failed have an exception as their answer and are passed over."""
        for args, answer in zip(commands, answers, strict=True):
            if not isinstance(answer, Exception):
                self.see(args, answer)

    def _read(self, key: Any, length: int, missed: int) -> None:
        if missed == MISS:
            self.misses += 1
        elif missed == HIT:
            self.hits += 1
        else:
            self.unknown += 1
        name = key if type(key) is bytes else _bytes_of(key)
        state = self._new_state()
        state.update(name)
        digest = state.digest()
        if digest[_TAIL:] < self._threshold:
            self._add(name, digest, READ, entry_bytes(len(name), length, has_ttl=False) if length else 0, 0, missed)

    def _write(self, key: Any, op: int, length: int | None = None, ttl_ms: int = 0) -> None:
        name = key if type(key) is bytes else _bytes_of(key)
        state = self._new_state()
        state.update(name)
        digest = state.digest()
        if digest[_TAIL:] < self._threshold:
            size = 0 if length is None else entry_bytes(len(name), length, ttl_ms > 0)
            self._add(name, digest, op, size, ttl_ms, UNKNOWN)

    def _add(self, name: bytes, digest: bytes, op: int, size: int, ttl_ms: int, missed: int) -> None:
        hashed = int.from_bytes(digest, "big")
        pattern = self._patterns.of(name)
        size, ttl_ms = min(size, SIZE_BYTES_MAX), min(ttl_ms, TTL_MS_MAX)
        rows_max = 1 if self._instruction is None else self._instruction.rows_max
        with self._lock:
            if digest[_TAIL:] >= self._threshold:
                return
            if op == WRITE:
                self._written[hashed] = len(self._rows)
            elif op == DELETE:
                self._written.pop(hashed, None)
            # The clock is read under the lock, so that rows stand in its order.
            self._rows.append((self._clock_ms(), hashed, op, size, ttl_ms, pattern, missed))
            if len(self._rows) > rows_max:
                self._thin(rows_max)
            full = len(self._rows) >= _WAKE_SHARE * rows_max
        if full:
            self._on_full()

    def _thin(self, rows_max: int) -> None:
        before = len(self._rows)
        while len(self._rows) > rows_max and self._remainders > 1:
            self._set_rate(self._remainders / 2 / REMAINDERS)
            self._rows = [row for row in self._rows if row[1] % REMAINDERS < self._remainders]
        # Keys of the very lowest remainder cannot be told apart; then the newest row has to go.
        del self._rows[rows_max:]
        self.thinned += before - len(self._rows)
        self._written = {row[1]: number for number, row in enumerate(self._rows) if row[2] == WRITE}

    # --- One method per form of command ---

    def _value(self, args: tuple[Any, ...], answer: Any) -> None:
        # What `_read` does, written out: most commands of most applications come by here, and each call counts.
        if answer is None:
            self.misses += 1
        else:
            self.hits += 1
        name = args[1]
        if type(name) is not bytes:
            name = name.encode() if type(name) is str else _bytes_of(name)
        state = self._new_state()
        state.update(name)
        digest = state.digest()
        if digest[_TAIL:] < self._threshold:
            length = 0 if answer is None else _length(answer)
            size = entry_bytes(len(name), length, has_ttl=False) if length else 0
            self._add(name, digest, READ, size, 0, MISS if answer is None else HIT)

    def _whole(self, args: tuple[Any, ...], answer: Any) -> None:
        self._read(args[1], 0, HIT if answer else MISS)

    def _part(self, args: tuple[Any, ...], answer: Any) -> None:
        found = any(item is not None for item in answer) if isinstance(answer, (list, tuple)) else bool(answer)
        self._read(args[1], 0, HIT if found else UNKNOWN)

    def _several(self, args: tuple[Any, ...], answer: Any) -> None:  # noqa: ARG002
        for key in args[1:]:
            self._read(key, 0, UNKNOWN)

    def _mget(self, args: tuple[Any, ...], answer: Any) -> None:
        for key, value in zip(args[1:], answer, strict=True):
            self._value((None, key), value)

    def _asking(self, args: tuple[Any, ...], answer: Any) -> None:
        keys = len(args) - 1
        name = _word(args[0])
        if name in ("EXISTS", "TOUCH"):
            found = int(answer)
        elif name == "TYPE":
            keys, found = 1, int(answer not in ("none", b"none"))
        else:
            keys, found = 1, int(answer is not None and int(answer) != -2)
        self.hits += found
        self.misses += keys - found

    def _change(self, args: tuple[Any, ...], answer: Any) -> None:  # noqa: ARG002
        self._write(args[1], WRITE)

    def _remove(self, args: tuple[Any, ...], answer: Any) -> None:  # noqa: ARG002
        for key in args[1:]:
            self._write(key, DELETE)

    def _mset(self, args: tuple[Any, ...], answer: Any) -> None:
        if answer:
            for key, value in zip(args[1::2], args[2::2], strict=True):
                self._write(key, WRITE, _length(value))

    def _setnx(self, args: tuple[Any, ...], answer: Any) -> None:
        if answer:
            self._write(args[1], WRITE, _length(args[2]))

    def _setex(self, args: tuple[Any, ...], answer: Any) -> None:
        if answer:
            unit = 1000 if _word(args[0]) == "SETEX" else 1
            self._write(args[1], WRITE, _length(args[3]), int(args[2]) * unit)

    def _getset(self, args: tuple[Any, ...], answer: Any) -> None:
        self._value(args, answer)
        self._write(args[1], WRITE, _length(args[2]))

    def _getdel(self, args: tuple[Any, ...], answer: Any) -> None:
        self._value(args, answer)
        if answer is not None:
            self._write(args[1], DELETE)

    def _set(self, args: tuple[Any, ...], answer: Any) -> None:
        options = [_word(option) for option in args[3:]]
        written = bool(answer)
        if "GET" in options:
            # The answer is the old value: with NX a value means that nothing was written, with XX none means it.
            self._value(args, answer)
            written = answer is None if "NX" in options else answer is not None or "XX" not in options
        if written:
            self._write(args[1], WRITE, _length(args[2]), self._set_ttl_ms(args, options))

    def _set_ttl_ms(self, args: tuple[Any, ...], options: list[str]) -> int:
        for position, word in enumerate(options):
            if word in _SET_TTLS:
                return self._left_ms(word, int(args[4 + position]) * _SET_TTLS[word])
            if word == "KEEPTTL":
                return self._ttl_written_ms(args[1])
        return 0

    def _left_ms(self, word: str, amount_ms: int) -> int:
        return max(0, amount_ms - self._wall_ms() if word.endswith("AT") else amount_ms)

    def _hash(self, key: Any) -> int:
        state = self._new_state()
        state.update(_bytes_of(key))
        return int.from_bytes(state.digest(), "big")

    def _ttl_written_ms(self, key: Any) -> int:
        with self._lock:
            row = self._written.get(self._hash(key))
            return 0 if row is None else self._rows[row][4]

    def _deadline(self, args: tuple[Any, ...], answer: Any) -> None:
        # Many applications write first and give the TTL in a second command; together they are one write.
        word = _word(args[0])
        if not answer:
            return
        ttl_ms = min(TTL_MS_MAX, self._left_ms(word, int(args[2]) * _DEADLINES[word]))
        with self._lock:
            row = self._written.get(self._hash(args[1]))
            if row is not None:
                at_ms, hashed, op, size, _, pattern, missed = self._rows[row]
                self._rows[row] = (at_ms, hashed, op, size, ttl_ms, pattern, missed)
