"""The short way of the decision route: bytes to decision to bytes, for a request that is right in every respect.

The framework's own work on a request takes as long as the decision, so a request whose token, headers and body are
beyond doubt goes past it; whatever else comes takes the whole way, which words every refusal. So there is one place
where errors are made, and the published schema is that of the whole way. INVARIANT: the short way admits nothing that
the whole way would refuse: same parser, same model, same gate, and any doubt means the whole way.
"""

from __future__ import annotations

import time
from typing import Any, Final, get_args
from uuid import uuid4

from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.datastructures import URLPath
from starlette.routing import BaseRoute, Match, NoMatchFound
from starlette.types import Message, Receive, Scope, Send

from cachewarden.messages import CONSTITUTIONAL_HASH
from cachewarden.models import CacheOptimizationRequest, CacheOptimizationResponse
from serve.context import Context
from serve.courses import Apply, Asked
from serve.decide_request import Stopwatch, optimize_request
from serve.errors import ApiError
from serve.gate import Gate, strict_json

__all__ = ["HotRoute"]

_HASH: Final = CONSTITUTIONAL_HASH.encode()
_QUERIES: Final[dict[bytes, Apply]] = {b"": "auto", **{f"apply={how}".encode(): how for how in get_args(Apply)}}
_JSON: Final = frozenset((b"application/json", b"application/json; charset=utf-8", b"application/json;charset=utf-8"))
_VALIDATE: Final = CacheOptimizationRequest.__pydantic_validator__.validate_python
_TO_JSON: Final = CacheOptimizationResponse.__pydantic_serializer__.to_json


class HotRoute(BaseRoute):
    """Stands before all routes of the application and takes what is for `route`: by the short way, or by its own."""

    def __init__(self, route: APIRoute) -> None:
        self.path = route.path
        self._whole_way = route.app
        self._child: dict[str, Any] = {"endpoint": route.endpoint, "path_params": {}, "route": route}

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match exactly the path and the method; every other request looks further among the routes."""
        if scope["type"] == "http" and scope["path"] == self.path and scope["method"] == "POST":
            return Match.FULL, self._child
        return Match.NONE, {}

    def url_path_for(self, name: str, /, **path_params: Any) -> URLPath:
        """Nothing is found by the name of this route: the whole way has the name."""
        raise NoMatchFound(name, path_params)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; raises what the decision raises, for the application's handlers."""
        watch = Stopwatch()
        message = await receive()
        asked = self._asked(scope, message)
        if asked is None:
            await self._whole_way(scope, _again(message, receive), send)
            return
        state = scope["app"].state
        context: Context = state.context
        gate: Gate = state.gate
        gate.admission.charge(asked.caller, time.monotonic())
        gate.hash_passed(self.path, "POST")
        watch.lap("reading_ms")
        response = await optimize_request(context, asked, watch)
        body = _TO_JSON(response)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    def _asked(self, scope: Scope, message: Message) -> Asked | None:
        """Return what is asked, None where anything is missing, wrong or only unusual."""
        apply = _QUERIES.get(scope["query_string"])
        authorization: str | None = None
        media_type = b""
        for name, value in scope["headers"]:
            if name == b"authorization":
                if authorization is not None:
                    return None
                authorization = value.decode("latin-1")
            elif name == b"content-type":
                media_type = value
            elif name == b"x-constitutional-hash" and value != _HASH:
                return None
        if apply is None or media_type not in _JSON or message["type"] != "http.request" or message.get("more_body"):
            return None
        gate: Gate = scope["app"].state.gate
        caller = gate.caller_with(authorization, "operate")
        if caller is None:
            return None
        try:
            body = strict_json(message.get("body", b""))
            if (
                not isinstance(body, dict)
                or body.get("constitutional_hash", CONSTITUTIONAL_HASH) != CONSTITUTIONAL_HASH
            ):
                return None
            request: CacheOptimizationRequest = _VALIDATE(body)
        except (ApiError, ValidationError):
            return None
        return Asked(request=request, decision_id=str(uuid4()), caller=caller.name, apply=apply)


def _again(first: Message, receive: Receive) -> Receive:
    waiting = [first]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again
