"""What stands before Ray Serve, in its proxies and in each replica's own HTTP server: requests for decisions are never
broken off halfway by whoever asked.

Serve watches each connection and cancels the handler when the client goes away, or after a time that the client has
named. For a decision that is wrong twice: it could be cut off between its record and its execution, and the watching
takes two tasks and a wait for each request, a sixth of what a replica can do. So a decision is marked as Serve provides
for it (`x-request-disconnect-disabled`), a client's own timeout is not handed on, and the request has its id, which
Serve would make with a call to the operating system. A replica that is killed, or does not end in time when it is
replaced, still takes with it what was not recorded. It admits, refuses and answers nothing.
INVARIANT: only POST requests for decisions are touched, and an id that the client gave is kept.
"""

from __future__ import annotations

from typing import Final

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.ids import new_id

__all__ = ["DECISION_PATH", "Front", "middlewares"]

DECISION_PATH: Final = "/api/v1/cache/optimize"
_TO_THE_END: Final = (b"x-request-disconnect-disabled", b"?1")
_REPLACED: Final = frozenset((_TO_THE_END[0], b"x-request-timeout-seconds"))


class Front:
    """Wraps Serve's own application of a replica."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request on, marked where it is for a decision."""
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] == DECISION_PATH:
            headers = [pair for pair in scope["headers"] if pair[0] not in _REPLACED]
            headers.append(_TO_THE_END)
            if not any(name == b"x-request-id" and value for name, value in headers):
                headers = [pair for pair in headers if pair[0] != b"x-request-id"]
                headers.append((b"x-request-id", new_id().encode()))
            scope["headers"] = headers
        await self._app(scope, receive, send)


def middlewares() -> list[Middleware]:
    """Return what Serve puts before each replica; named to it by `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`."""
    return [Middleware(Front)]
