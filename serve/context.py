"""What every handler of one application shares, and how handlers answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from fastapi import Request, Response
from pydantic import BaseModel

from cachewarden.policy.surroundings import Surroundings
from cachewarden.protocol import FleetState
from serve.backend import Backend
from serve.decision import Grounds, fresh_state, max_age_ms_of, others_of
from serve.feed import FeedDesk
from serve.schemas import ErrorResponse
from serve.telemetry import Telemetry
from serve.whatif import WhatifDesk

__all__ = ["ERRORS", "Context", "Rounds", "context_of", "json_answer", "known_state"]

_TEXTS: Final = {
    400: "not readable as JSON",
    401: "no valid token",
    403: "the token lacks the scope, or the constitutional hash is wrong",
    404: "unknown service, plan or route",
    409: "not now: changes are paused",
    413: "body too large",
    415: "not JSON",
    422: "a field does not fit",
    500: "a bug of ours",
    503: "nothing may be decided now: journal, state or coordinator missing; see Retry-After",
}
ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    status: {"model": ErrorResponse, "description": text} for status, text in _TEXTS.items()
}
"""The errors of every endpoint, for OpenAPI."""


class Rounds:
    """The surroundings of one state, worked out once for all requests on it."""

    def __init__(self) -> None:
        self._state: FleetState | None = None
        self._others: Surroundings | None = None

    def others(self, state: FleetState | None, grounds: Grounds) -> Surroundings | None:
        """Return what all proposals of this state have in common; None without a state."""
        if state is None:
            return None
        if self._others is None or self._state is not state:
            self._state, self._others = state, others_of(state, grounds)
        return self._others


@dataclass(slots=True, kw_only=True)
class Context:
    """`wait_s` bounds how long a request waits for a confirmation or a forced cycle."""

    backend: Backend
    grounds: Grounds
    telemetry: Telemetry
    started_s: float
    wait_s: float = 5.0
    rounds: Rounds = field(default_factory=Rounds)
    whatif: WhatifDesk = field(default_factory=WhatifDesk)
    feed: FeedDesk = field(default_factory=FeedDesk)


def context_of(request: Request) -> Context:
    """Return the application's context."""
    context = request.app.state.context
    assert isinstance(context, Context)
    return context


async def known_state(context: Context) -> FleetState:
    """Return the newest state; raises StateTooOld where it is missing or older than three cycles."""
    state = await context.backend.state()
    return fresh_state(state, context.backend.now_ms(), max_age_ms_of(context.backend.settings))


def json_answer(model: BaseModel, status_code: int = 200) -> Response:
    """Return a model as JSON without validating it a second time."""
    return Response(model.model_dump_json(), status_code=status_code, media_type="application/json")
