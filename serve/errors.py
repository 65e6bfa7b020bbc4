"""The one shape of all errors, and which failure gets which status.

A caller learns what was wrong and the way out; never a stack trace, an internal text or more than 100 characters of
his own input. INVARIANT: every error of the API, also those of the framework, is made by `error_response`.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final
from uuid import uuid4

from starlette.requests import Request
from starlette.responses import Response

from cachewarden.errors import (
    BlackboardUnavailable,
    ConstitutionalComplianceError,
    JournalUnavailable,
    OperatingError,
    RequestError,
    UnknownService,
)
from cachewarden.messages import CONSTITUTIONAL_HASH
from serve.timestamps import now_iso

__all__ = [
    "RETRY_AFTER_S",
    "SECURITY_HEADERS",
    "SERVICE_NAME",
    "ApiError",
    "api_error_of",
    "clip",
    "error_response",
    "near_miss",
    "validation_problems",
]

SERVICE_NAME: Final = "cache_performance_optimizer"
RETRY_AFTER_S: Final = 5

SECURITY_HEADERS: Final[Mapping[str, str]] = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "X-XSS-Protection": "1; mode=block",
    "Cache-Control": "no-store",
    "X-Service": SERVICE_NAME,
}

CODES: Final[Mapping[int, str]] = {
    401: "AUTHENTICATION_FAILED",
    403: "AUTHORIZATION_FAILED",
    422: "VALIDATION_ERROR",
    500: "INTERNAL_SERVER_ERROR",
    503: "SERVICE_UNAVAILABLE",
}


class ApiError(Exception):
    """An answer that is an error: status, ACGS's code, a message for the caller, and details that he may see."""

    def __init__(
        self,
        status_code: int,
        message: str,
        *,
        code: str | None = None,
        details: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status_code = status_code
        self.code = code or CODES.get(status_code, f"HTTP_{status_code}")
        self.message = message
        self.details = dict(details or {})
        self.headers = dict(headers or {})
        super().__init__(message)


def clip(text: object, limit: int = 100) -> str:
    """Return at most `limit` characters of a caller's input, with everything unprintable made visible."""
    shown = str(text)[: limit + 1]
    shown = "".join(
        c if c.isprintable() and not 0xD800 <= ord(c) <= 0xDFFF else "\N{REPLACEMENT CHARACTER}" for c in shown
    )
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def near_miss(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that `name` was probably meant to be, if there is one."""
    found = difflib.get_close_matches(name[:100], sorted(known), n=1, cutoff=0.6)
    return found[0] if found else None


def api_error_of(error: RequestError | OperatingError) -> ApiError:
    """Map our own errors to answers: the one table of class to status."""
    if isinstance(error, ConstitutionalComplianceError):
        given = clip(error.received, 64)
        message = f"invalid constitutional hash `{given}` in the {error.where}, send `{CONSTITUTIONAL_HASH}` or none"
        return ApiError(403, message, code="CONSTITUTIONAL_VIOLATION", details={"where": error.where})
    if isinstance(error, UnknownService):
        shown = error.known[:100]
        message = f"unknown service `{clip(error.service)}`, the fleet has: {', '.join(shown) or 'none'}"
        return ApiError(
            404,
            message,
            details={"known_services": list(shown), "did_you_mean": near_miss(error.service, error.known)},
        )
    if isinstance(error, RequestError):
        return ApiError(400, str(error))
    retry = {"Retry-After": str(RETRY_AFTER_S)}
    if isinstance(error, JournalUnavailable):
        return ApiError(503, "the journal cannot be written, so nothing may be decided, ask again later", headers=retry)
    if isinstance(error, BlackboardUnavailable):
        return ApiError(503, "the blackboard does not answer, ask again later", headers=retry)
    public = getattr(error, "public_reason", None)
    message = public if isinstance(public, str) else "a part of the service does not answer, ask again later"
    return ApiError(503, message, headers=retry)


def validation_problems(problems: Sequence[Any], known_fields: Iterable[str]) -> tuple[str, list[dict[str, Any]]]:
    """Return one sentence and the list of problems of a request that does not fit its model; input is not echoed."""
    shown: list[dict[str, Any]] = []
    for problem in list(problems)[:20]:
        path = [clip(part, 60) for part in problem.get("loc", ())]
        field = ".".join(path[1:]) or (path[0] if path else "request")
        message = clip(str(problem.get("msg", "")).removeprefix("Value error, "), 300)
        message = f"{message[:1].lower()}{message[1:]}"
        if problem.get("type") == "extra_forbidden":
            meant = near_miss(path[-1], known_fields)
            message = (
                f"unknown field, did you mean `{meant}`?"
                if meant
                else f"unknown field, known are: {', '.join(sorted(known_fields))}"
            )
        elif problem.get("type") == "missing" and len(path) == 1:
            field, message = "body", "a JSON object is needed"
        shown.append(
            {"field": field, "in": path[0] if path else "request", "message": message, "type": problem.get("type", "")}
        )
    first = shown[0] if shown else {"field": "request", "message": "does not fit"}
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"`{first['field']}`: {first['message']}{more}", shown


def _request_id(request: Request, error_id: str) -> dict[str, str]:
    """Return the header with the request's id; none where the server before the application adds it."""
    app = request.scope.get("app")
    if app is not None and getattr(app.state, "ids_by_server", False):
        return {}
    return {"X-Request-ID": str(request.scope.get("state", {}).get("request_id", error_id))}


def error_response(request: Request, error: ApiError) -> Response:
    """Return the answer in ACGS's shape, complete with every header, so that it is right outside of any middleware
    too."""
    error_id = str(uuid4())
    body = {
        "error": {
            "id": error_id,
            "timestamp": now_iso(),
            "constitutional_hash": CONSTITUTIONAL_HASH,
            "request": {
                "method": clip(request.method, 20),
                "path": clip(request.url.path, 100),
                "query_params": {clip(k, 50): clip(v, 100) for k, v in list(request.query_params.items())[:20]},
            },
            "code": error.code,
            "message": error.message,
            "status_code": error.status_code,
            "details": error.details,
        }
    }
    headers = {
        **SECURITY_HEADERS,
        "X-Constitutional-Hash": CONSTITUTIONAL_HASH,
        "X-Error-ID": error_id,
        **_request_id(request, error_id),
        **error.headers,
    }
    return Response(json.dumps(body), status_code=error.status_code, headers=headers, media_type="application/json")
