"""Load on one HTTP route, from a process of its own: closed loop, or open loop at a constant rate.

In the open loop each request has a time at which it is due, and its latency counts from that time, so that a server
that stalls is charged for everything that had to wait (no coordinated omission). Used by `decision_latency`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import time
from collections import Counter, deque
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import uvloop

__all__ = ["Outcome", "main"]

_METRICS = b'"performance_metrics":'
_LATE_S = 10.0
_AGAIN_S = 0.1
_REFUSALS_MAX = 8
_MESSAGE = re.compile(rb'"message":\s*"([^"]{1,200})')


@dataclass
class Outcome:
    """`latencies_ms` of answered requests in the order of their ends; `statuses` counts what came, `error` included."""

    wanted_per_s: float
    took_s: float = 0.0
    cpu_s: float = 0.0
    latencies_ms: list[float] = field(default_factory=list)
    statuses: dict[str, int] = field(default_factory=dict)
    steps_ms: dict[str, list[float]] = field(default_factory=dict)
    decision_ids: list[str] = field(default_factory=list)
    refusals: dict[str, int] = field(default_factory=dict)
    """Answers other than 200, by their words; at most a few different ones."""


class _Connection(asyncio.Protocol):
    """One keep-alive connection with one request at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._buffer = bytearray()
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head_end = self._buffer.find(b"\r\n\r\n")
        if head_end < 0:
            return
        head = bytes(self._buffer[:head_end]).lower()
        at = head.find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(self._buffer) < head_end + 4 + length:
            return
        body = bytes(self._buffer[head_end + 4 : head_end + 4 + length])
        self._buffer.clear()
        if b"connection: close" in head:
            self.closed = True
        if self.answer is not None and not self.answer.done():
            self.answer.set_result((int(head[9:12]), body))

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(exc or ConnectionResetError("closed without an answer"))

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        assert self.transport is not None
        self.answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await asyncio.wait_for(self.answer, _LATE_S)


class _Load:
    def __init__(self, url: str, request: bytes, outcome: Outcome, retries: int = 0) -> None:
        self._retries = retries
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._request = request
        self._idle: deque[_Connection] = deque()
        self._outcome = outcome
        self._counted: Counter[str] = Counter()
        self._bodies: list[bytes] = []

    async def one(self, due_s: float) -> None:
        """Send one request that was due at `due_s`, again where it met a server that was going, as clients do."""
        for left in range(self._retries, -1, -1):
            if await self._sent(due_s, last=left == 0):
                return
            self._counted["asked again"] += 1
            await asyncio.sleep(_AGAIN_S)

    async def _sent(self, due_s: float, *, last: bool) -> bool:
        """Send it on an idle connection or a new one; False where it should be sent again."""
        connection: _Connection | None = None
        try:
            while self._idle and connection is None:
                connection = self._idle.pop()
                if connection.closed:
                    connection = None
            if connection is None:
                _, connection = await asyncio.get_running_loop().create_connection(_Connection, self._host, self._port)
            status, body = await connection.ask(self._request)
        except (OSError, TimeoutError) as error:
            if connection is not None and connection.transport is not None:
                connection.transport.abort()
            if last:
                self._counted[f"error {type(error).__name__}"] += 1
            return last
        if not connection.closed:
            self._idle.append(connection)
        if status != 200:
            self._refused(status, body)
        if status in (502, 503, 504) and not last:
            return False
        self._outcome.latencies_ms.append((time.perf_counter() - due_s) * 1000)
        self._counted[str(status)] += 1
        if status == 200:
            self._bodies.append(body)
        return True

    def _refused(self, status: int, body: bytes) -> None:
        found = _MESSAGE.search(body)
        said = re.sub(r"\d+", "N", (found[1] if found else body[:100]).decode(errors="replace"))
        refusals = self._outcome.refusals
        words = f"{status} {said}"
        if words in refusals or len(refusals) < _REFUSALS_MAX:
            refusals[words] = refusals.get(words, 0) + 1

    async def open_loop(self, per_s: float, seconds: float) -> None:
        begun_s = time.perf_counter() + 0.05
        tasks: set[asyncio.Task[None]] = set()
        for number in range(int(per_s * seconds)):
            due_s = begun_s + number / per_s
            wait_s = due_s - time.perf_counter()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            # The loop's timers wake a little late; the request counts from when it was due all the same.
            task = asyncio.create_task(self.one(due_s))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        if tasks:
            await asyncio.wait(tasks)
        self._finish(time.perf_counter() - begun_s)

    async def closed_loop(self, connections: int, seconds: float) -> None:
        begun_s = time.perf_counter()

        async def client() -> None:
            while time.perf_counter() < begun_s + seconds:
                await self.one(time.perf_counter())

        await asyncio.gather(*(client() for _ in range(connections)))
        self._finish(time.perf_counter() - begun_s)

    def _finish(self, took_s: float) -> None:
        outcome = self._outcome
        outcome.took_s = took_s
        outcome.statuses = dict(self._counted)
        for body in self._bodies:
            if _METRICS not in body:
                continue
            answer = json.loads(body)
            outcome.decision_ids.append(answer["decision_id"])
            for step, took_ms in answer["performance_metrics"].items():
                outcome.steps_ms.setdefault(step, []).append(took_ms)
        for connection in self._idle:
            if connection.transport is not None:
                connection.transport.close()


def main() -> int:
    parser = argparse.ArgumentParser(description="put load on one route and print the outcome as JSON")
    parser.add_argument("url")
    parser.add_argument("--token-file", type=Path)
    parser.add_argument("--body", default="")
    parser.add_argument("--per-s", type=float, default=0.0, help="open loop at this rate; 0: closed loop")
    parser.add_argument("--connections", type=int, default=1, help="of the closed loop")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--retries", type=int, default=0, help="of one request, after an error, 502, 503 or 504")
    arguments = parser.parse_args()
    parts = urlsplit(arguments.url)
    body = arguments.body.encode()
    head = [
        f"POST {parts.path}{'?' + parts.query if parts.query else ''} HTTP/1.1",
        f"Host: {parts.netloc}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    ]
    if arguments.token_file:
        head.append(f"Authorization: Bearer {arguments.token_file.read_text().strip()}")
    request = ("\r\n".join(head) + "\r\n\r\n").encode() + body
    outcome = Outcome(wanted_per_s=arguments.per_s)
    load = _Load(arguments.url, request, outcome, arguments.retries)
    cpu_s = time.process_time()
    # The generator shares the cores with what it measures: the cheaper loop leaves more to the server.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if arguments.per_s > 0:
            runner.run(load.open_loop(arguments.per_s, arguments.seconds))
        else:
            runner.run(load.closed_loop(arguments.connections, arguments.seconds))
    outcome.cpu_s = time.process_time() - cpu_s
    json.dump(asdict(outcome), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
