"""What surrounds every answer: request id, the prescribed headers, the bound on the body, and the count.

A plain ASGI wrapper, so that it costs little and misses nothing, the framework's own answers included. It reads the
body of a request up to the bound before anything else sees it, whatever Content-Length says. INVARIANT: no more than
the bound is ever held in memory.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterable, Mapping
from typing import Final

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cachewarden.messages import CONSTITUTIONAL_HASH
from serve.errors import SECURITY_HEADERS, ApiError, error_response
from serve.ids import new_id
from serve.telemetry import Telemetry

__all__ = [
    "MAX_BODY_BYTES",
    "OUT_OF_TIME",
    "Envelope",
    "TooSlow",
    "body_part",
    "given_id",
    "in_envelope",
    "in_good_envelope",
]

MAX_BODY_BYTES: Final = 64 * 1024
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")


OUT_OF_TIME: Final = "cachewarden.out_of_time"
"""Set in the scope of a request whose body was waited for already, in vain."""


class TooSlow(Exception):
    """The next part of a body did not come in time."""


_OURS: Final = {
    **{name.lower().encode(): value.encode() for name, value in SECURITY_HEADERS.items()},
    b"x-constitutional-hash": CONSTITUTIONAL_HASH.encode(),
}

_GOOD: Final = (*_OURS.items(), (b"x-constitutional-compliance", b"verified"))
_JSON_TYPE: Final = (b"content-type", b"application/json")

_NEVER_TWICE: Final = frozenset((b"x-constitutional-hash", b"x-request-id", b"x-processing-time-ms"))
"""What a handler may have set is replaced by ours; all others it may choose for itself."""


class _TooLarge(Exception):
    pass


def given_id(value: str) -> str:
    """Return the id that a request gave itself if it can be one, else a new one."""
    return value if _REQUEST_ID.fullmatch(value) else new_id()


def in_envelope(
    headers: Iterable[tuple[bytes, bytes]], status_code: int, request_id: str | None, began_s: float
) -> list[tuple[bytes, bytes]]:
    """Return the headers of an answer with what every answer carries; `began_s` of the performance counter, no
    `request_id` where the server adds it."""
    ours = {**_OURS, b"x-processing-time-ms": _took(began_s)}
    if request_id is not None:
        ours[b"x-request-id"] = request_id.encode()
    if status_code < 400:
        ours[b"x-constitutional-compliance"] = b"verified"
    given = [pair for pair in headers if pair[0].lower() not in _NEVER_TWICE]
    present = {pair[0].lower() for pair in given}
    return [*given, *(pair for pair in ours.items() if pair[0] not in present)]


def in_good_envelope(body: bytes, request_id: str | None, began_s: float) -> list[tuple[bytes, bytes]]:
    """Return the headers of a JSON answer with status 200: what `in_envelope` would return, in a fraction of the
    time."""
    named = [] if request_id is None else [(b"x-request-id", request_id.encode())]
    length = (b"content-length", b"%d" % len(body))
    return [_JSON_TYPE, length, *_GOOD, (b"x-processing-time-ms", _took(began_s)), *named]


def _took(began_s: float) -> bytes:
    return b"%.3f" % ((time.perf_counter() - began_s) * 1000)


async def body_part(receive: Receive, timeout_s: float) -> Message:
    """Return the next message of a request; raises TooSlow."""
    try:
        async with asyncio.timeout(max(0.0, timeout_s)):
            return await receive()
    except TimeoutError:
        raise TooSlow from None


class Envelope:
    """Wraps the application; `limits` gives single paths another bound than MAX_BODY_BYTES. `ids_by_server`: the
    server before it puts `X-Request-ID` into answers."""

    def __init__(
        self,
        app: ASGIApp,
        telemetry: Telemetry,
        limits: Mapping[str, int],
        body_timeout_s: float,
        *,
        ids_by_server: bool = False,
    ) -> None:
        self._app = app
        self._telemetry = telemetry
        self._limits = dict(limits)
        self._body_timeout_s = body_timeout_s
        self._ids_by_server = ids_by_server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s = time.perf_counter()
        request_id = given_id(Headers(scope=scope).get("x-request-id", ""))
        scope.setdefault("state", {})["request_id"] = request_id
        status_code = 500

        async def send_with_headers(message: Message) -> None:
            nonlocal status_code
            if message["type"] == "http.response.start":
                status_code = message["status"]
                told = None if self._ids_by_server else request_id
                headers = in_envelope(message.get("headers", ()), status_code, told, started_s)
                message = {**message, "headers": headers}
            await send(message)

        try:
            replay = await self._buffered(scope, receive)
            if replay is None:
                status_code = 499
                return
            await self._app(scope, replay, send_with_headers)
        except _TooLarge:
            limit = self._limit(scope)
            error = ApiError(
                413,
                f"the body may have at most {limit} bytes",
                details={"limit_bytes": limit},
                headers={"Connection": "close"},
            )
            await error_response(Request(scope), error)(scope, receive, send_with_headers)
        except TooSlow:
            error = ApiError(
                408, f"the body must come within {self._body_timeout_s:g} s", headers={"Connection": "close"}
            )
            await error_response(Request(scope), error)(scope, receive, send_with_headers)
        finally:
            route = scope.get("route")
            endpoint = getattr(route, "path", "unmatched")
            method = (
                scope["method"]
                if scope["method"] in ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS")
                else "other"
            )
            self._telemetry.request(method, endpoint, status_code, time.perf_counter() - started_s)

    def _limit(self, scope: Scope) -> int:
        return self._limits.get(scope["path"], MAX_BODY_BYTES)

    async def _buffered(self, scope: Scope, receive: Receive) -> Receive | None:
        """Read the body up to the bound and return a `receive` that gives it again; a GET has none that anybody
        reads. None where the client has gone meanwhile: nobody is there to be answered."""
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return receive
        limit = self._limit(scope)
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and (len(declared) > 12 or int(declared) > limit):
            raise _TooLarge
        if OUT_OF_TIME in scope:
            raise TooSlow
        first = await body_part(receive, self._body_timeout_s)
        if first["type"] != "http.request":
            return None
        if not first.get("more_body", False):
            if len(first.get("body", b"")) > limit:
                raise _TooLarge
            return _replaying([first], receive)
        body = bytearray(first.get("body", b""))
        end_s = time.perf_counter() + self._body_timeout_s
        while True:
            if len(body) > limit:
                raise _TooLarge
            message = await body_part(receive, end_s - time.perf_counter())
            if message["type"] != "http.request":
                return None
            body += message.get("body", b"")
            if not message.get("more_body", False):
                break
        if len(body) > limit:
            raise _TooLarge
        return _replaying([{"type": "http.request", "body": bytes(body), "more_body": False}], receive)


def _replaying(first: list[Message], receive: Receive) -> Receive:
    async def replay() -> Message:
        return first.pop(0) if first else await receive()

    return replay
