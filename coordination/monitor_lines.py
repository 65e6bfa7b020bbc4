"""Reads the lines of MONITOR into an access sample: exact format, cheap for the many lines that the spatial filter
drops.

Pure: bytes in, arrays out. It never keeps a key name, a value or a client address longer than `result` takes. A line
looks like

    +1339518083.107412 [0 127.0.0.1:60866] "set" "key" "va\\"l\\x00ue" "EX" "60"

with arguments escaped as by `sdscatrepr` (sds.c): a quote inside an argument always follows a backslash, so `" "` only
ever stands between two arguments, and splitting there needs no state.

INVARIANT: accesses of a key are all kept or all dropped; feeding the same bytes in other pieces gives the same sample.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from enum import IntEnum
from typing import Final

import numpy as np

from cachewarden.cachemodel.fixed_size_sample import FixedSizeSample
from cachewarden.cachemodel.memory_accounting import entry_bytes
from cachewarden.cachemodel.trace import AccessTrace, Op
from cachewarden.keys import PatternIndex, hash_key
from cachewarden.observation import AccessSample

__all__ = ["KEYS_MAX", "MonitorParser", "PatternIndex", "argument_length", "unescape"]


class _Form(IntEnum):
    """Where a command keeps its keys, its value and its TTL."""

    READ = 0
    READ_ALL = 1
    WRITE = 2
    SET = 3
    VALUE = 4
    SETEX = 5
    PAIRS = 6
    DELETE_ALL = 7
    EXPIRE = 8


def _table() -> dict[bytes, _Form]:
    forms: dict[_Form, str] = {
        _Form.READ: "GET GETEX GETRANGE SUBSTR STRLEN GETBIT BITCOUNT HGET HMGET HGETALL HKEYS HVALS HLEN HEXISTS "
        "HSTRLEN HRANDFIELD HSCAN LRANGE LINDEX LLEN LPOS SMEMBERS SISMEMBER SMISMEMBER SCARD SRANDMEMBER SSCAN "
        "ZRANGE ZRANGEBYSCORE ZREVRANGE ZREVRANGEBYSCORE ZRANGEBYLEX ZSCORE ZMSCORE ZRANK ZREVRANK ZCARD ZCOUNT "
        "ZSCAN XRANGE XREVRANGE XLEN GEOPOS GEODIST GEOSEARCH",
        _Form.READ_ALL: "MGET SINTER SUNION SDIFF",
        _Form.WRITE: "APPEND INCR DECR INCRBY DECRBY INCRBYFLOAT SETRANGE SETBIT HSET HMSET HSETNX HINCRBY "
        "HINCRBYFLOAT HDEL LPUSH RPUSH LPUSHX RPUSHX LPOP RPOP LSET LTRIM LREM LINSERT SADD SREM SPOP ZADD ZINCRBY "
        "ZREM ZPOPMIN ZPOPMAX ZREMRANGEBYSCORE ZREMRANGEBYRANK XADD XTRIM XDEL PFADD GEOADD",
        _Form.SET: "SET",
        _Form.VALUE: "SETNX GETSET",
        _Form.SETEX: "SETEX PSETEX",
        _Form.PAIRS: "MSET MSETNX",
        _Form.DELETE_ALL: "DEL UNLINK GETDEL",
        _Form.EXPIRE: "EXPIRE PEXPIRE EXPIREAT PEXPIREAT",
    }
    names = {name.encode(): form for form, text in forms.items() for name in text.split()}
    # Clients write either case; mixed case is found by `_form_of`.
    return names | {name.lower(): form for name, form in names.items()}


_FORMS: Final = _table()
_SEPARATOR: Final = b'" "'
_ESCAPE: Final = re.compile(rb"\\(x[0-9a-fA-F]{2}|.)", re.DOTALL)
_PLAIN: Final = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"a": b"\a", b"b": b"\b"}
_MILLISECONDS: Final = {b"EX": 1000, b"PX": 1, b"EXAT": 1000, b"PXAT": 1, b"SETEX": 1000, b"PSETEX": 1,
                        b"EXPIRE": 1000, b"PEXPIRE": 1, b"EXPIREAT": 1000, b"PEXPIREAT": 1}  # fmt: skip
_SIZE_MAX: Final = 2**31 - 1
KEYS_MAX: Final = 100_000
"""Keys that one capture keeps: enough for an error of 0.002 in the hit ratio (`shards.KEYS_BASIS`)."""


def unescape(argument: bytes) -> bytes:
    """Return the bytes that `sdscatrepr` wrote as `argument` (without the quotes around it)."""
    if b"\\" not in argument:
        return argument

    def one(match: re.Match[bytes]) -> bytes:
        code = match.group(1)
        return bytes([int(code[1:], 16)]) if len(code) == 3 else _PLAIN.get(code, code)

    return _ESCAPE.sub(one, argument)


def argument_length(argument: bytes) -> int:
    """Return the length of the original argument without building it: values may be large and all escapes."""
    if b"\\" not in argument:
        return len(argument)
    # Backslashes pair up from the left within a run, so after this every one that is left begins another escape.
    rest = argument.replace(b"\\\\", b".")
    return len(rest) - rest.count(b"\\") - 2 * rest.count(b"\\x")


class MonitorParser:
    """Feed it what MONITOR sends; ask `result` at the end. Keys of other dbs than `db`, lines of scripts and of `own`
    are left out. With more than `keys_max` keys the spatial rate falls until that many are left.
    """

    def __init__(
        self,
        *,
        hash_secret: bytes,
        spatial_rate: float,
        patterns: Sequence[str],
        db: int,
        own: Callable[[], Collection[str]],
        keys_max: int = KEYS_MAX,
    ) -> None:
        self._secret = hash_secret
        self._filter = FixedSizeSample(keys_max, spatial_rate)
        self._pattern_index = PatternIndex(patterns)
        self._db = f"{db} ".encode()
        self._own = own
        self._pieces: list[bytes] = []
        self._rows: list[tuple[int, int, int, int, int, int]] = []
        self._clients: list[bytes] = []
        self._written: dict[int, int] = {}
        self._now_us = 0
        self.lines_seen = 0
        """All lines, ours and other databases' too: what the server had to write."""
        self.unreadable = 0
        self.unfilled_expires = 0
        """EXPIRE of keys whose write the capture has not seen; they have no place in a trace."""

    @property
    def now_us(self) -> int:
        """Server's time of the last line, microseconds since the epoch; 0 before the first."""
        return self._now_us

    def feed(self, data: bytes) -> None:
        """Take the next bytes, cut anywhere."""
        self._pieces.append(data)
        if b"\n" not in data:
            return
        lines = b"".join(self._pieces).split(b"\n")
        self._pieces = [lines.pop()]
        self.lines_seen += len(lines)
        if lines:
            self._note_time(lines[-1])
        own = {self._db + address.encode() for address in self._own()}
        script = self._db + b"lua"
        for line in lines:
            head, found, rest = line.partition(b'] "')
            client = head[head.find(b"[") + 1 :]
            if not found:
                self.unreadable += line != b"+OK\r"
                continue
            if not client.startswith(self._db) or client in own or client == script:
                continue
            name, _, rest = rest[:-2].partition(_SEPARATOR)
            form = _FORMS.get(name)
            if form is None:
                form = _FORMS.get(name.upper())
            if form is not None and rest:
                self._access(form, name, rest, head, client)

    def _note_time(self, line: bytes) -> None:
        seconds, _, micros = line[1 : line.find(b" ")].partition(b".")
        if seconds.isdigit() and micros.isdigit():
            self._now_us = int(seconds) * 1_000_000 + int(micros)

    def _access(self, form: _Form, name: bytes, rest: bytes, head: bytes, client: bytes) -> None:
        if form in (_Form.READ_ALL, _Form.DELETE_ALL):
            op = Op.READ if form is _Form.READ_ALL else Op.DELETE
            for argument in rest.split(_SEPARATOR):
                self._keep(argument, op, head, client)
            return
        if form is _Form.PAIRS:
            arguments = rest.split(_SEPARATOR)
            for key, value in zip(arguments[::2], arguments[1::2], strict=False):
                self._keep(key, Op.WRITE, head, client, value)
            return
        key, _, tail = rest.partition(_SEPARATOR)
        if form is _Form.READ:
            self._keep(key, Op.READ, head, client)
        elif form is _Form.WRITE:
            self._keep(key, Op.WRITE, head, client)
        else:
            self._timed(form, name, key, tail, head, client)

    def _timed(self, form: _Form, name: bytes, key: bytes, tail: bytes, head: bytes, client: bytes) -> None:
        hashed = self._hash(key)
        if not self._filter.keeps(hashed):
            return
        arguments = tail.split(_SEPARATOR)
        at_ms = _milliseconds_of(head)
        if form is _Form.EXPIRE:
            self._expire(hashed, _ttl_ms(name.upper(), arguments[0], at_ms))
            return
        if form is _Form.SETEX:
            if len(arguments) != 2:
                return
            ttl_ms, value = _ttl_ms(name.upper(), arguments[0], at_ms), arguments[1]
        else:
            value, ttl_ms = arguments[0], self._set_ttl_ms(hashed, arguments[1:], at_ms)
        if ttl_ms is not None:
            self._add(at_ms, hashed, Op.WRITE, key, value, ttl_ms, client)

    def _set_ttl_ms(self, hashed: int, options: Sequence[bytes], at_ms: int) -> int | None:
        """Return the TTL of a SET: 0 none, None where the server will have refused it."""
        for position, option in enumerate(options):
            word = option.upper()
            if word == b"KEEPTTL":
                row = self._written.get(hashed)
                return 0 if row is None else self._rows[row][4]
            if word in (b"EX", b"PX", b"EXAT", b"PXAT"):
                return _ttl_ms(word, options[position + 1], at_ms) if position + 1 < len(options) else None
        return 0

    def _expire(self, hashed: int, ttl_ms: int | None) -> None:
        # Many clients write first and give the TTL in a second command; together they are one write.
        row = self._written.get(hashed)
        if row is None or ttl_ms is None:
            self.unfilled_expires += 1
            return
        at_ms, key, op, size, _, pattern = self._rows[row]
        self._rows[row] = (at_ms, key, op, size, ttl_ms, pattern)

    def _hash(self, argument: bytes) -> int:
        return hash_key(self._secret, unescape(argument))

    def _keep(self, argument: bytes, op: Op, head: bytes, client: bytes, value: bytes | None = None) -> None:
        hashed = self._hash(argument)
        if self._filter.keeps(hashed):
            self._add(_milliseconds_of(head), hashed, op, argument, value, 0, client)

    def _add(
        self, at_ms: int, hashed: int, op: Op, argument: bytes, value: bytes | None, ttl_ms: int, client: bytes
    ) -> None:
        if not self._filter.admits(hashed):
            return
        key = unescape(argument)
        size = 0 if value is None else min(_SIZE_MAX, entry_bytes(len(key), argument_length(value), ttl_ms > 0))
        if op is Op.WRITE:
            self._written[hashed] = len(self._rows)
        elif op is Op.DELETE:
            self._written.pop(hashed, None)
        self._rows.append((at_ms, hashed, int(op), size, ttl_ms, self._pattern_index.of(key)))
        self._clients.append(client)

    def result(self, aborted: str | None, bytes_seen: int = 0) -> AccessSample:
        """Return what was kept, in time order; connections that turned out to be ours in the meantime are taken out."""
        own = {self._db + address.encode() for address in self._own()}
        pairs = zip(self._rows, self._clients, strict=True)
        # Rows of keys that were thinned out meanwhile stand for nothing: the rate is that of those that are left.
        rows = [row for row, client in pairs if client not in own and self._filter.keeps(row[1])]
        times = np.array([row[0] for row in rows], dtype=np.int64)
        # The server's clock may be set back by a few milliseconds while it writes; the order of the lines is the truth.
        times = np.maximum.accumulate(times) if len(times) else times
        trace = AccessTrace.of(
            times,
            np.array([row[1] for row in rows], dtype=np.uint64),
            np.array([row[2] for row in rows], dtype=np.uint8),
            np.array([row[3] for row in rows], dtype=np.int32),
            np.array([row[4] for row in rows], dtype=np.int64),
        )
        return AccessSample(
            trace=trace,
            pattern=np.array([row[5] for row in rows], dtype=np.int32),
            patterns=self._pattern_index.patterns,
            spatial_rate=self._filter.rate,
            lines_seen=self.lines_seen,
            bytes_seen=bytes_seen,
            aborted=aborted,
        )


def _milliseconds_of(head: bytes) -> int:
    # The time is always written with six decimals.
    space = head.find(b" ")
    return int(head[1 : space - 7] + head[space - 6 : space - 3])


def _ttl_ms(word: bytes, argument: bytes, at_ms: int) -> int | None:
    """Return the TTL in milliseconds that a command gives, None for a bad number or a time that has passed."""
    try:
        amount = int(argument) * _MILLISECONDS[word]
    except ValueError:
        return None
    if word.endswith(b"AT"):
        amount -= at_ms
    return amount if amount > 0 else None
