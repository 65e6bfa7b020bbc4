"""POST /api/v1/cache/optimize: how the route is published, and its whole way through the framework.

What is done is in `decide_request.py`; almost every request goes the short way of `hot_route.py` past what is here.
"""

from __future__ import annotations

from typing import Annotated
from uuid import uuid4

from fastapi import APIRouter, Query, Request, Response

from cachewarden.models import CacheOptimizationRequest, CacheOptimizationResponse
from serve.context import ERRORS, context_of, json_answer
from serve.courses import Apply, Asked
from serve.decide_request import optimize_request
from serve.front import DECISION_PATH
from serve.gate import GovernedRoute, caller_of, needs

__all__ = ["decision_route", "router"]

router = APIRouter(route_class=GovernedRoute, tags=["optimisation"])


@router.post(
    DECISION_PATH,
    response_model=CacheOptimizationResponse,
    responses=ERRORS,
    openapi_extra=needs("operate"),
    summary="Decide on one service, and carry the plan out if everything permits it",
)
async def optimize(
    request: Request,
    body: CacheOptimizationRequest,
    apply: Annotated[
        Apply, Query(description="auto: wait for the confirmation; async: do not wait; never: dry run")
    ] = "auto",
) -> Response:
    """Decide on the standing plan of a service.

    The constitution is evaluated on exactly this plan now; the decision is in the journal before it is answered.
    Nothing to do is a successful answer with the reason. `force_optimization` runs a cycle without cool-down and
    minimum gain for this service.
    """
    asked = Asked(request=body, decision_id=str(uuid4()), caller=caller_of(request).name, apply=apply)
    return json_answer(await optimize_request(context_of(request), asked))


def decision_route() -> GovernedRoute:
    """Return the route above, which has a short way before it."""
    return next(r for r in router.routes if isinstance(r, GovernedRoute))
