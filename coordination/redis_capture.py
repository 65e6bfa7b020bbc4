"""A bounded MONITOR capture that ends itself before it hurts.

MONITOR costs a busy server up to a third of its throughput, so it runs only where the fleet file permits it, for a
bounded time and a bounded number of lines, beside a watchdog that cuts it off: too many lines a second, PING on
another connection slower than at the start, or a reader (us) that falls behind and lets the server's output buffer
grow. It never keeps a key name or a value; `monitor_lines` hashes.

INVARIANT: the connection is gone when the function returns or raises.
"""

from __future__ import annotations

import asyncio
import ssl
import statistics
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, cast

from redis.asyncio.connection import parse_url

from cachewarden.errors import TargetRefused, TargetUnavailable
from cachewarden.observation import AccessSample
from cachewarden.shell import end_tasks
from coordination.monitor_lines import MonitorParser
from coordination.redis_wire import CLIENT_NAME, RedisWire, Refusal, Session

__all__ = ["CaptureLimits", "capture_accesses"]

_BUFFER_BYTES: Final = 64 * 1024
_CHUNK_BYTES: Final = 8 * 1024
"""Parsed in one go: below a millisecond, so that our own parsing does not make the watchdog's pings look slow."""
_GATHER_S: Final = 0.02
_WATCH_EVERY_S: Final = 0.1
_PINGS_AT_START: Final = 7
_PINGS_COMPARED: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureLimits:
    """When the watchdog ends a capture."""

    lines_per_s: float = 40_000.0
    bytes_per_s: float = 64 * 1024 * 1024
    ping_factor: float = 5.0
    """Median round trip of the last pings over the one before the capture ..."""
    ping_margin_ms: float = 20.0
    """... plus this, since a busy event loop of our own delays a ping as well."""
    output_buffer_bytes: int = 8 * 1024 * 1024
    lag_ms: float = 1_000.0
    """Age of a line when we get it."""


@asynccontextmanager
async def _raw_connection(
    wire: RedisWire, url: str, username: str | None, password: str | None, timeout_s: float
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.Transport, int]]:
    """Open a connection of its own, authenticate, start MONITOR; yields reader, transport and
    the client id that the server gave.

    Plain streams, since a client library parses every line into objects before the spatial filter can drop it.
    """
    reader, writer = await asyncio.wait_for(_open(url), timeout_s)
    try:

        async def ask(*command: str) -> bytes:
            parts = [part.encode() for part in command]
            writer.write(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts))
            await writer.drain()
            answer = (await asyncio.wait_for(reader.readline(), timeout_s)).rstrip(b"\r\n")
            if not answer or answer.startswith(b"-"):
                reason = answer[1:].decode("utf-8", "replace") or "connection closed"
                raise TargetRefused(wire.service, command[0], reason.rstrip("."))
            return answer

        given = parse_url(url)
        user, secret = username or given.get("username"), password or given.get("password")
        if secret is not None:
            await ask("AUTH", *((user, secret) if user else (secret,)))
        await ask("CLIENT", "SETNAME", CLIENT_NAME)
        client_id = int((await ask("CLIENT", "ID")).lstrip(b":"))
        await ask("MONITOR")
        wire.ledger.commands["monitor"] += 1
        # A connection's transport does both, though the writer's type only promises one half.
        yield reader, cast("asyncio.Transport", writer.transport), client_id
    finally:
        writer.transport.abort()


async def _open(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    given: dict[str, Any] = dict(parse_url(url))
    if "path" in given:
        return await asyncio.open_unix_connection(given["path"], limit=_BUFFER_BYTES)
    context: ssl.SSLContext | None = None
    if url.startswith("rediss://"):
        context = ssl.create_default_context(cafile=given.get("ssl_ca_certs"))
        if given.get("ssl_check_hostname") is False or str(given.get("ssl_cert_reqs", "required")) == "none":
            context.check_hostname = False
        if str(given.get("ssl_cert_reqs", "required")) == "none":
            context.verify_mode = ssl.CERT_NONE
        if given.get("ssl_certfile"):
            context.load_cert_chain(given["ssl_certfile"], given.get("ssl_keyfile"))
    return await asyncio.open_connection(
        given.get("host", "localhost"), given.get("port", 6379), limit=_BUFFER_BYTES, ssl=context
    )


class _Watchdog:
    """Watches one capture from the side; `run` returns the reason why it has to end."""

    def __init__(self, wire: RedisWire, parser: MonitorParser, limits: CaptureLimits) -> None:
        self._wire = wire
        self._parser = parser
        self._limits = limits
        self._ping_bound_s = 0.0
        self._clock_offset_us = 0
        self.received_bytes = 0
        self.lag_ms = 0.0

    async def prepare(self) -> None:
        """Measure the round trip before the capture begins and how the server's clock stands to our own."""
        async with self._wire.session() as session:
            trips = [await _ping_s(session) for _ in range(_PINGS_AT_START)]
        self._ping_bound_s = statistics.median(trips) * self._limits.ping_factor + self._limits.ping_margin_ms / 1000
        seconds, micros = await self._wire.call("TIME")
        self._clock_offset_us = int(seconds) * 1_000_000 + int(micros) - int(asyncio.get_running_loop().time() * 1e6)

    def note(self, received: int) -> None:
        """Take note of a chunk that was just parsed."""
        self.received_bytes += received
        if self._parser.now_us:
            server_now_us = asyncio.get_running_loop().time() * 1e6 + self._clock_offset_us
            self.lag_ms = (server_now_us - self._parser.now_us) / 1000

    async def run(self, client_id: int) -> str:
        """Return the first reason to stop; never returns while all is well."""
        limits, loop = self._limits, asyncio.get_running_loop()
        trips: deque[float] = deque(maxlen=_PINGS_COMPARED)
        # Counts of the last second: a pipeline of the application is a burst, which is not yet a rate.
        counts: deque[tuple[float, int, int]] = deque([(loop.time(), self._parser.lines_seen, self.received_bytes)])
        while True:
            await asyncio.sleep(_WATCH_EVERY_S)
            async with self._wire.session() as session:
                trips.append(await _ping_s(session))
                (client,) = await session.exchange([("CLIENT", "LIST", "ID", client_id)])
            counts.append((loop.time(), self._parser.lines_seen, self.received_bytes))
            while len(counts) > 2 and counts[1][0] <= counts[-1][0] - 1.0:
                counts.popleft()
            lines, received = (counts[-1][part] - counts[0][part] for part in (1, 2))
            if lines > limits.lines_per_s:
                return f"too many lines, {lines} within a second"
            if received > limits.bytes_per_s:
                return f"too much data, {received / 1e6:.0f} MB within a second"
            if len(trips) == _PINGS_COMPARED and statistics.median(trips) > self._ping_bound_s:
                return f"server slowed, round trip {statistics.median(trips) * 1000:.1f} ms"
            if self.lag_ms > limits.lag_ms:
                return f"reader behind by {self.lag_ms:.0f} ms"
            waiting = 0 if isinstance(client, Refusal) else _output_bytes(client)
            if waiting > limits.output_buffer_bytes:
                return f"reader behind, {waiting} bytes wait in the server"


async def _ping_s(session: Session) -> float:
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    await session.exchange([("PING",)])
    return loop.time() - started_s


def _output_bytes(client: bytes) -> int:
    fields = dict(part.split(b"=", 1) for part in client.split() if b"=" in part)
    return int(fields.get(b"omem", b"0"))


async def own_addresses(wire: RedisWire) -> set[str]:
    """Return the addresses of all connections that carry our name, this process's and others', as the server sees
    them.
    """
    (clients,) = await wire.ask([("CLIENT", "LIST")])
    found = set(wire.addresses)
    if isinstance(clients, bytes):
        for line in clients.decode("utf-8", "replace").splitlines():
            fields = dict(part.split("=", 1) for part in line.split(" ") if "=" in part)
            if fields.get("name", "").startswith(CLIENT_NAME):
                found.add(fields.get("addr", ""))
    return found


async def capture_accesses(
    wire: RedisWire,
    url: str,
    *,
    username: str | None,
    password: str | None,
    timeout_s: float,
    capture_ms: int,
    capture_lines: int,
    capture_rate: float,
    patterns: Sequence[str],
    hash_secret: bytes,
    limits: CaptureLimits,
) -> AccessSample:
    """Capture at most `capture_ms` and about `capture_lines` lines (one chunk of 8 KiB more); keys are kept with
    probability `capture_rate`.

    Raises TargetRefused where MONITOR is denied, TargetUnavailable where the server goes away.
    """
    own = await own_addresses(wire)
    db = int(parse_url(url).get("db", 0) or 0)
    parser = MonitorParser(
        hash_secret=hash_secret, spatial_rate=capture_rate, patterns=patterns, db=db, own=lambda: own | wire.addresses
    )
    watchdog = _Watchdog(wire, parser, limits)
    await watchdog.prepare()
    try:
        async with _raw_connection(wire, url, username, password, timeout_s) as (reader, transport, client_id):
            watching = asyncio.create_task(watchdog.run(client_id))
            try:
                aborted = await _read_lines(reader, transport, parser, watchdog, watching, capture_ms, capture_lines)
            finally:
                await _end(watching)
    except (OSError, TimeoutError) as error:
        raise TargetUnavailable(wire.service, f"capture: {error or type(error).__name__}") from None
    own |= await own_addresses(wire)
    return parser.result(aborted, watchdog.received_bytes)


async def _read_lines(
    reader: asyncio.StreamReader,
    transport: asyncio.Transport,
    parser: MonitorParser,
    watchdog: _Watchdog,
    watching: asyncio.Task[str],
    capture_ms: int,
    capture_lines: int,
) -> str | None:
    """Feed the parser until a bound is reached; returns why the capture ended before its time, None if it did not."""
    loop = asyncio.get_running_loop()
    ends_at_s = loop.time() + capture_ms / 1000
    reading: asyncio.Task[bytes] | None = None
    try:
        while (left_s := ends_at_s - loop.time()) > 0:
            reading = reading or asyncio.create_task(reader.read(_CHUNK_BYTES))
            done, _ = await asyncio.wait({reading, watching}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            if watching in done:
                return watching.result()
            if reading not in done:
                return None
            data = reading.result()
            reading = None
            if not data:
                return "connection closed by the server"
            parser.feed(data)
            watchdog.note(len(data))
            if len(data) < _CHUNK_BYTES // 2:
                # Lines trickle in by the handful; a rest lets them gather, since waking up costs more than parsing.
                transport.pause_reading()
                await asyncio.sleep(_GATHER_S)
                transport.resume_reading()
            if parser.lines_seen >= capture_lines:
                return f"bound of {capture_lines} lines reached"
        return None
    finally:
        if reading is not None:
            await _end(reading)


async def _end(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait until it is gone; what it still had to say no longer matters.

    A watchdog that lived on would keep an unread MONITOR open, whose output buffer pushes keys out of the cache.
    """
    await end_tasks([task])
    if not task.cancelled():
        task.exception()
