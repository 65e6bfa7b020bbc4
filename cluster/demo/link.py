"""One connection to one cache: writes batches of commands without ever waiting, hands the answers back in order.

It decides nothing about keys; it only keeps count of what is on the way, so that the driver can drop arrivals for a
server that is too far behind instead of slowing down. A lost connection is made again with a growing pause, and what
was on the way is reported as lost.

INVARIANT: every batch that was accepted is finished exactly once, with all its answers or as lost.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from urllib.parse import unquote, urlsplit

import hiredis

__all__ = ["Answer", "Link", "encode"]

Answer = object
"""As hiredis gives it: bytes, int, None, or an exception instance for an error reply."""

_PAUSE_FIRST_S = 0.1
_PAUSE_MAX_S = 2.0
_CONNECT_S = 5.0


def encode(*words: bytes) -> bytes:
    """Return one command in RESP."""
    return b"".join([b"*%d\r\n" % len(words), *[b"$%d\r\n%b\r\n" % (len(word), word) for word in words]])


_PING = encode(b"PING")


class _Batch:
    __slots__ = ("answers", "done", "expected", "sent_s")

    def __init__(self, expected: int, sent_s: float, done: Callable[[list[Answer] | None, float], None]) -> None:
        self.expected = expected
        self.sent_s = sent_s
        self.done = done
        self.answers: list[Answer] = []


class Link(asyncio.Protocol):
    """A self-healing pipelined connection; create inside a running event loop, then `open`."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme != "redis" or parts.hostname is None:
            raise ValueError("the demo driver needs URLs like `redis://:password@host:port/0`")
        self._host, self._port = parts.hostname, parts.port or 6379
        database = parts.path.lstrip("/")
        hello: list[bytes] = []
        if parts.password:
            user = [unquote(parts.username).encode()] if parts.username else []
            hello.append(encode(b"AUTH", *user, unquote(parts.password).encode()))
        if database not in ("", "0"):
            hello.append(encode(b"SELECT", database.encode()))
        hello.append(encode(b"CLIENT", b"SETNAME", b"demo-driver"))
        self._hello = b"".join(hello)
        self._hello_answers = len(hello)
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader()
        self._batches: deque[_Batch] = deque()
        self._transport: asyncio.Transport | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._lost = asyncio.Event()
        self._closing = False
        self._ready = False
        self._greeting: asyncio.Future[str] = self._loop.create_future()
        self.pending = 0
        """Commands that were written and not answered yet."""

    @property
    def connected(self) -> bool:
        """Whether the server has let us in and takes commands."""
        return self._ready

    @property
    def oldest_wait_s(self) -> float:
        """How long the oldest unanswered batch has been on its way; 0 if none is."""
        return self._loop.time() - self._batches[0].sent_s if self._batches else 0.0

    async def open(self) -> None:
        """Connect, and keep connected until `close`; raises OSError if the first attempt fails."""
        await self._connect()
        self._keeper = asyncio.create_task(self._keep())

    async def close(self) -> None:
        """Close for good; batches on the way are lost."""
        self._closing = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        self._ready = False
        if self._transport is not None:
            self._transport.close()
        self._abandon()

    def send(self, commands: Sequence[bytes], done: Callable[[list[Answer] | None, float], None]) -> bool:
        """Write encoded commands as one pipeline; `done(answers, seconds)` follows, answers None if they were lost.

        Returns False, and never calls `done`, while there is no connection.
        """
        if not self._ready or self._transport is None:
            return False
        self.pending += len(commands)
        self._batches.append(_Batch(len(commands), self._loop.time(), done))
        self._transport.write(b"".join(commands))
        return True

    async def barrier(self) -> None:
        """Return once everything that was written so far is answered or lost."""
        passed = self._loop.create_future()

        def done(_answers: list[Answer] | None, _seconds: float) -> None:
            if not passed.done():
                passed.set_result(None)

        if self.send([_PING], done):
            await passed

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._reader = hiredis.Reader()
        self._transport = transport
        self.pending += self._hello_answers
        self._batches.append(_Batch(self._hello_answers, self._loop.time(), self._greeted))
        transport.write(self._hello)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while self._batches:
            batch = self._batches[0]
            while len(batch.answers) < batch.expected:
                answer = self._reader.gets()
                if answer is False:
                    return
                batch.answers.append(answer)
            self._batches.popleft()
            self.pending -= batch.expected
            batch.done(batch.answers, self._loop.time() - batch.sent_s)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the base class names it
        self._transport = None
        self._ready = False
        self._abandon()
        self._lost.set()

    def _greeted(self, answers: list[Answer] | None, _seconds: float) -> None:
        # A server that is still loading, or that has another password, must not be asked for keys like a cache.
        refusal = next((answer for answer in answers or () if isinstance(answer, Exception)), None)
        self._ready = answers is not None and refusal is None
        if not self._greeting.done():
            self._greeting.set_result("" if self._ready else str(refusal or "the connection was lost"))
        if refusal is not None and self._transport is not None:
            self._transport.abort()

    def _abandon(self) -> None:
        lost, self._batches = self._batches, deque()
        self.pending = 0
        for batch in lost:
            batch.done(None, 0.0)

    async def _connect(self) -> None:
        self._lost.clear()
        self._greeting = self._loop.create_future()
        try:
            async with asyncio.timeout(_CONNECT_S):
                await self._loop.create_connection(lambda: self, self._host, self._port)
                refusal = await self._greeting
        except TimeoutError:
            refusal = f"no answer within {_CONNECT_S:g} s"
            if self._transport is not None:
                self._transport.abort()
        if refusal:
            raise ConnectionError(f"server at {self._host}:{self._port} does not let the driver in: {refusal}")

    async def _keep(self) -> None:
        pause_s = _PAUSE_FIRST_S
        while not self._closing:
            await self._lost.wait()
            await asyncio.sleep(pause_s)
            try:
                await self._connect()
                pause_s = _PAUSE_FIRST_S
            except OSError:
                pause_s = min(_PAUSE_MAX_S, pause_s * 2)
                self._lost.set()
