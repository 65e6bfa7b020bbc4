"""The short way of the decision route: bytes to decision to bytes, for a request that is right in every respect.

The framework's own work on a request takes as long as the decision, so a request whose token, headers and body are
beyond doubt goes past all of it; whatever else comes takes the whole way, which words every refusal. What the decision
itself raises is raised once more inside the framework, by `Raised`, so there is one place where errors are made, and
the published schema is that of the whole way. INVARIANT: the short way admits nothing that the whole way would refuse:
same parser, same model, same gate, and any doubt means the whole way.
"""

from __future__ import annotations

import time
from typing import Any, Final, get_args

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.datastructures import URLPath
from starlette.requests import Request
from starlette.routing import BaseRoute, Match, NoMatchFound
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cachewarden.messages import CONSTITUTIONAL_HASH
from cachewarden.models import CacheOptimizationRequest
from serve.answer_bytes import AnswerWriter
from serve.context import Context
from serve.courses import Apply, Asked
from serve.decide_request import Stopwatch, optimize_request
from serve.envelope import MAX_BODY_BYTES, OUT_OF_TIME, TooSlow, body_part, given_id, in_envelope, in_good_envelope
from serve.errors import ApiError, error_response
from serve.gate import Gate, strict_json
from serve.ids import new_id

__all__ = ["CacheApi", "HotPath", "Raised"]

_HASH: Final = CONSTITUTIONAL_HASH.encode()
_QUERIES: Final[dict[bytes, Apply]] = {b"": "auto", **{f"apply={how}".encode(): how for how in get_args(Apply)}}
_JSON: Final = frozenset((b"application/json", b"application/json; charset=utf-8", b"application/json;charset=utf-8"))
_VALIDATE: Final = CacheOptimizationRequest.__pydantic_validator__.validate_python
_KNOWN_MAX: Final = 256
_KNOWN_BODY_BYTES_MAX: Final = 4_096
_RAISED: Final = "cachewarden.raised"


class HotPath:
    """Stands before the whole application and takes what is for `route`: by the short way, or by `whole`, the rest of
    the application. One per application; `context` and `gate` are the application's."""

    def __init__(
        self, route: APIRoute, whole: ASGIApp, context: Context, gate: Gate, *, ids_by_server: bool = False
    ) -> None:
        self.path = route.path
        self._whole = whole
        self._context, self._gate = context, gate
        self._body_timeout_s = context.backend.settings.body_timeout_s
        self._ids_by_server = ids_by_server
        self._writer = AnswerWriter()
        self._known: dict[bytes, CacheOptimizationRequest] = {}
        """Bodies that were read before: clients ask the same again and again, and the same bytes say the same."""

    def takes(self, scope: Scope) -> bool:
        """Whether this is exactly the path and the method; every other request looks for its route."""
        return bool(scope["type"] == "http" and scope["path"] == self.path and scope["method"] == "POST")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, by one way or the other; raises what the whole way raises."""
        watch = Stopwatch()
        try:
            message = await _whole_body(receive, self._body_timeout_s)
        except TooSlow:
            await self._whole({**scope, OUT_OF_TIME: True}, receive, send)
            return
        if message["type"] != "http.request":
            # The client has gone; nobody is there to be answered.
            return
        asked, given = self._asked(scope, message)
        if asked is None:
            await self._whole(scope, _again(message, receive), send)
            return
        gate, answer = self._gate, _Answer(scope, send, watch.began_s, given, self._ids_by_server)
        try:
            gate.admission.charge(asked.caller, time.monotonic())
            gate.hash_passed(self.path, "POST")
            watch.lap("reading_ms")
            response = await optimize_request(self._context, asked, watch)
        except ApiError as error:
            # No rate or no room left: there are most of these when there is least time for them.
            refused = error_response(Request(answer.scope), error)
            await answer.give(error.status_code, refused.raw_headers, bytes(refused.body))
        except Exception as error:  # noqa: BLE001 - whatever it is, the framework has the answer to it
            await self._whole({**scope, _RAISED: error}, _again(message, receive), send)
            return
        else:
            await answer.give_good(self._writer.write(response))
        took_s = time.perf_counter() - watch.began_s
        self._context.telemetry.request("POST", self.path, answer.status_code, took_s)

    def _asked(self, scope: Scope, message: Message) -> tuple[Asked | None, str]:
        """Return what is asked, None where anything is missing, wrong or only unusual; and the request's own id."""
        apply = _QUERIES.get(scope["query_string"])
        authorization: str | None = None
        media_type = b""
        given = ""
        for name, value in scope["headers"]:
            if name == b"authorization":
                if authorization is not None:
                    return None, ""
                authorization = value.decode("latin-1")
            elif name == b"content-type":
                media_type = value
            elif name == b"x-request-id":
                given = given or value.decode("latin-1")
            elif name == b"x-constitutional-hash" and value != _HASH:
                return None, ""
        body = message.get("body", b"")
        if apply is None or media_type not in _JSON or message.get("more_body") or len(body) > MAX_BODY_BYTES:
            return None, ""
        caller = self._gate.caller_with(authorization, "operate")
        if caller is None:
            return None, ""
        request = self._known.get(body)
        if request is None:
            request = self._read(body)
            if request is None:
                return None, ""
        return Asked(request=request, decision_id=new_id(), caller=caller.name, apply=apply), given

    def _read(self, body: bytes) -> CacheOptimizationRequest | None:
        """Return what a body asks for, None where anything is wrong with it."""
        try:
            parsed = strict_json(body)
            if (
                not isinstance(parsed, dict)
                or parsed.get("constitutional_hash", CONSTITUTIONAL_HASH) != CONSTITUTIONAL_HASH
            ):
                return None
            request: CacheOptimizationRequest = _VALIDATE(parsed)
        except (ApiError, ValidationError):
            return None
        if len(body) <= _KNOWN_BODY_BYTES_MAX:
            if len(self._known) >= _KNOWN_MAX:
                self._known.clear()
            self._known[body] = request
        return request


class _Answer:
    """One answer in the envelope of all answers; `scope` has the id that its error may name."""

    def __init__(self, scope: Scope, send: Send, began_s: float, given: str, ids_by_server: bool) -> None:
        self.status_code = 500
        self._send, self._began_s = send, began_s
        self.scope = scope
        request_id = scope.setdefault("state", {})["request_id"] = given_id(given)
        self._id = None if ids_by_server else request_id

    async def give(self, status_code: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        await self._give(status_code, in_envelope(headers, status_code, self._id, self._began_s), body)

    async def give_good(self, body: bytes) -> None:
        await self._give(200, in_good_envelope(body, self._id, self._began_s), body)

    async def _give(self, status_code: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        self.status_code = status_code
        await self._send({"type": "http.response.start", "status": status_code, "headers": headers})
        await self._send({"type": "http.response.body", "body": body, "more_body": False})


class Raised(BaseRoute):
    """Raises inside the framework what the short way met, for the framework's handlers; stands before all routes."""

    def __init__(self, route: APIRoute) -> None:
        self.path = route.path
        """For whoever lists the routes, as Serve does."""
        self._child: dict[str, Any] = {"endpoint": route.endpoint, "path_params": {}, "route": route}

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match a request that the short way has given up, and no other."""
        return (Match.FULL, self._child) if _RAISED in scope else (Match.NONE, {})

    def url_path_for(self, name: str, /, **path_params: Any) -> URLPath:
        """Nothing is found by the name of this route: the whole way has the name."""
        raise NoMatchFound(name, path_params)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Raise it."""
        raise scope[_RAISED]


class CacheApi(FastAPI):
    """The application, with the short way before it once `hot` is set."""

    hot: HotPath | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if self.hot is not None and self.hot.takes(scope):
            await self.hot(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    async def whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer by the framework's whole way."""
        await super().__call__(scope, receive, send)


async def _whole_body(receive: Receive, timeout_s: float) -> Message:
    """Return one message with all of the body, or with more than may come; raises TooSlow."""
    message = await body_part(receive, timeout_s)
    if message["type"] != "http.request" or not message.get("more_body"):
        return message
    body = bytearray(message.get("body", b""))
    end_s = time.perf_counter() + timeout_s
    while message.get("more_body") and len(body) <= MAX_BODY_BYTES:
        message = await body_part(receive, end_s - time.perf_counter())
        if message["type"] != "http.request":
            return message
        body += message.get("body", b"")
    return {**message, "body": bytes(body)}


def _again(first: Message, receive: Receive) -> Receive:
    waiting = [first]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again
