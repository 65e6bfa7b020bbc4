"""What every handler of one application shares, and how handlers answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from fastapi import Request, Response
from pydantic import BaseModel

from cachewarden.protocol import FleetState
from serve.admission import Admission
from serve.backend import Backend
from serve.decision import StateTooOld, fresh_state, max_age_ms_of
from serve.docket import Docket, Grounds
from serve.feed import FeedDesk
from serve.schemas import ErrorResponse
from serve.telemetry import Telemetry
from serve.warm_jobs import WarmDesk
from serve.whatif import WhatifDesk

__all__ = ["ERRORS", "Context", "context_of", "json_answer", "known_state", "require_contact", "require_understood"]

_TEXTS: Final = {
    400: "not readable as JSON",
    401: "no valid token",
    403: "the token lacks the scope, or the constitutional hash is wrong",
    404: "unknown service, plan or route",
    409: "not now: changes are paused",
    408: "the body did not come in time",
    413: "body too large",
    415: "not JSON",
    422: "a field does not fit",
    429: "too many requests, of this token or of this kind; see Retry-After",
    500: "a bug of ours",
    503: "nothing may be decided now: journal, state, coordinator or room missing; see Retry-After",
}
ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    status: {"model": ErrorResponse, "description": text} for status, text in _TEXTS.items()
}
"""The errors of every endpoint, for OpenAPI."""


@dataclass(slots=True, kw_only=True)
class Context:
    """`wait_s` bounds how long a request waits for a confirmation or a forced cycle."""

    backend: Backend
    telemetry: Telemetry
    started_s: float
    admission: Admission
    wait_s: float = 5.0
    docket: Docket | None = None
    whatif: WhatifDesk = field(default_factory=WhatifDesk)
    feed: FeedDesk = field(default_factory=FeedDesk)
    warming: WarmDesk = field(default_factory=WarmDesk)
    streams: int = 0
    """Open streams of server-sent events."""

    _grounds: Grounds | None = None

    @property
    def grounds(self) -> Grounds:
        """What decisions stand on; another object once a mode has changed."""
        backend = self.backend
        if self._grounds is None or self._grounds.fleet is not backend.fleet:
            self._grounds = Grounds(
                fleet=backend.fleet,
                constitution=backend.constitution,
                settings=backend.settings,
                budget_bytes=backend.budget_bytes,
            )
        return self._grounds

    def docket_of(self, state: FleetState | None) -> Docket | None:
        """Return what is worked out of this state already, or begin it anew; None without a state."""
        if state is None:
            return None
        if self.docket is None or not self.docket.holds(state, self.grounds):
            self.docket = Docket(state, self.grounds)
        return self.docket


def context_of(request: Request) -> Context:
    """Return the application's context."""
    context = request.app.state.context
    assert isinstance(context, Context)
    return context


def require_understood(context: Context) -> None:
    """Raise StateTooOld where what the coordinator says cannot be used here."""
    problem = context.backend.contact_problem()
    if problem is not None:
        raise StateTooOld(problem)


def require_contact(context: Context) -> None:
    """Raise StateTooOld where the coordinator has not confirmed the state for longer than may be decided on."""
    age_s = context.backend.state_age_s()
    bound_s = context.backend.settings.state_age_max_ms / 1000
    if age_s is None:
        raise StateTooOld("the coordinator has not been heard of yet, ask again later")
    if age_s > bound_s:
        raise StateTooOld(
            f"the coordinator has not been heard of for {age_s:.1f} s, after {bound_s:g} s nothing is decided"
        )


async def known_state(context: Context) -> FleetState:
    """Return the newest state; raises StateTooOld where it is missing, too old, or unconfirmed."""
    state = await context.backend.state()
    require_understood(context)
    known = fresh_state(state, context.backend.now_ms(), max_age_ms_of(context.backend.settings))
    require_contact(context)
    return known


def json_answer(model: BaseModel, status_code: int = 200) -> Response:
    """Return a model as JSON without validating it a second time."""
    return Response(model.model_dump_json(), status_code=status_code, media_type="application/json")
