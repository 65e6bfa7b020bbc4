"""Who may pass: token, scope, content type, JSON and constitutional hash, checked before a handler or a model sees
anything.

In this order: token and scope first, so that a stranger can neither write audit records nor learn what a valid body
is; then the hash header; then the body's form; then the hash in the body. INVARIANT: a request with a wrong hash does
nothing but be refused, counted and audited.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

import structlog
from fastapi import Request, Response
from fastapi.routing import APIRoute

from cachewarden.errors import ConfigurationError, ConstitutionalComplianceError, OperatingError
from cachewarden.messages import CONSTITUTIONAL_HASH, RecordKind
from cachewarden.ports import RecordDraft
from serve.admission import Admission
from serve.backend import Backend
from serve.errors import ApiError, clip
from serve.security import SCOPES, Caller, Scope, TokenStore
from serve.telemetry import Telemetry

__all__ = ["ANONYMOUS", "Gate", "GovernedRoute", "caller_of", "gate_of", "needs", "strict_json"]

ANONYMOUS: Final = Caller("anonymous", frozenset())
_SCOPE_KEY: Final = "x-required-scope"
_PUBLIC: Final = "none"
# A stranger, or a recorder, may have one refusal in so many milliseconds written down, with the number of the others:
# the journal is not his to fill.
_ANONYMOUS_RECORD_EVERY_MS: Final = 10_000

log = structlog.get_logger("serve.gate")


def needs(scope: Scope | None) -> dict[str, Any]:
    """Return the `openapi_extra` of a route that needs a token with this scope; None for a public route.

    The same value documents and enforces: `GovernedRoute` reads it, and refuses to be made without it.
    """
    if scope is None:
        return {_SCOPE_KEY: _PUBLIC, "security": []}
    return {_SCOPE_KEY: scope, "security": [{"bearer": []}]}


def _refuse_constant(name: str) -> Any:
    raise ApiError(400, f"`{name}` is no JSON, numbers must be finite")


def _without_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ApiError(400, f"`{clip(twice, 50)}` stands twice in one JSON object")
    return found


_DECODER: Final = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_without_duplicates)


def strict_json(raw: bytes) -> Any:
    """Parse a body: UTF-8, no NaN or infinities, no name twice in one object; raises ApiError 400 that says where it
    went wrong."""
    try:
        return _DECODER.decode(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ApiError(400, f"the body is not UTF-8, at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise ApiError(
            400, f"the body is not JSON: {error.msg.lower()}, line {error.lineno} column {error.colno}"
        ) from None
    except (ValueError, RecursionError):
        raise ApiError(
            400, "the body is not JSON that can be read: a number is too long or the nesting too deep"
        ) from None


class _ParsedRequest(Request):
    """A request whose JSON was parsed already."""

    parsed: Any = None

    async def json(self) -> Any:
        return self.parsed


class Gate:
    """The checks and what they share; one per application."""

    def __init__(self, backend: Backend, tokens: TokenStore, telemetry: Telemetry, admission: Admission) -> None:
        self.admission = admission
        self._backend = backend
        self._tokens = tokens
        self._telemetry = telemetry
        self._anonymous_due_ms = 0
        self._anonymous_suppressed = 0

    def caller_with(self, authorization: str | None, scope: Scope) -> Caller | None:
        """Return the caller of a valid token with this scope, else None: `admit` says what is wrong."""
        try:
            caller = self._tokens.authenticate(authorization)
        except ConfigurationError:
            return None
        return caller if caller is not None and caller.may(scope) else None

    def admit(self, request: Request, scope: str) -> Caller:
        """Return the caller; raises ApiError 401 without a valid token, 403 without the scope, 429 where the token has
        asked too often, 503 where tokens cannot be read."""
        if scope == _PUBLIC:
            return ANONYMOUS
        try:
            caller = self._tokens.authenticate(request.headers.get("authorization"))
        except ConfigurationError as error:
            log.error("tokens cannot be read", reason=str(error))
            raise ApiError(503, "tokens cannot be checked now, the operator has to look at the token file") from None
        if caller is None:
            message = (
                "a valid token is needed: `Authorization: Bearer <token>`; the first one lies in the state directory"
            )
            raise ApiError(401, message, headers={"WWW-Authenticate": 'Bearer realm="cachewarden"'})
        wanted = next(s for s in SCOPES if s == scope)
        if not caller.may(wanted):
            raise ApiError(
                403,
                f"the token `{caller.name}` lacks the scope `{scope}`",
                details={"required_scope": scope},
                headers={
                    "WWW-Authenticate": f'Bearer realm="cachewarden", error="insufficient_scope", scope="{scope}"'
                },
            )
        self.admission.charge(caller.name, time.monotonic())
        return caller

    async def check_hash(self, request: Request, caller: Caller, received: object, where: str, endpoint: str) -> None:
        """Raise ConstitutionalComplianceError for a wrong hash, after it was counted and, if the journal takes it,
        audited."""
        if received == CONSTITUTIONAL_HASH:
            return
        self._telemetry.hash_refused(endpoint, request.method, where)
        await self._audit_refusal(request, caller, received, where, endpoint)
        raise ConstitutionalComplianceError(clip(received, 64), where)

    async def _audit_refusal(
        self, request: Request, caller: Caller, received: object, where: str, endpoint: str
    ) -> None:
        now_ms = self._backend.now_ms()
        suppressed = 0
        # A recorder's token is spread over application servers, so the journal is not its holder's to fill either.
        if caller is ANONYMOUS or caller.only_feeds:
            if now_ms < self._anonymous_due_ms:
                self._anonymous_suppressed += 1
                return
            self._anonymous_due_ms = now_ms + _ANONYMOUS_RECORD_EVERY_MS
            suppressed, self._anonymous_suppressed = self._anonymous_suppressed, 0
        draft = RecordDraft(
            at_ms=now_ms,
            kind=RecordKind.REQUEST_REFUSED.value,
            agent="api",
            service=None,
            subject_id=str(request.state.request_id),
            payload={
                "constitutional_hash": CONSTITUTIONAL_HASH,
                "why": "wrong constitutional hash",
                "where": where,
                "received": clip(received, 64),
                "endpoint": endpoint,
                "method": request.method,
                "caller": caller.name,
                "suppressed_before": suppressed,
            },
        )
        try:
            await self._backend.record([draft])
        except OperatingError as error:
            # Refusing is safe without the journal; that it went unrecorded must be seen.
            self._telemetry.unaudited()
            log.error("a refusal could not be audited", endpoint=endpoint, where=where, reason=str(error))

    def passed(self, request: Request, endpoint: str) -> None:
        """Count a request that passed."""
        self.hash_passed(endpoint, request.method)

    def hash_passed(self, endpoint: str, method: str) -> None:
        """Count a request whose hash was right or absent."""
        self._telemetry.hash_checked(endpoint, method)


def gate_of(request: Request) -> Gate:
    """Return the application's gate."""
    gate = request.app.state.gate
    assert isinstance(gate, Gate)
    return gate


def caller_of(request: Request) -> Caller:
    """Return who asks; every governed route has set it."""
    caller = request.state.caller
    assert isinstance(caller, Caller)
    return caller


class GovernedRoute(APIRoute):
    """A route that lets nothing through but what the gate lets through."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler with the gate before it; raises KeyError at start-up for a route that declares no
        scope."""
        handle = super().get_route_handler()
        scope = str((self.openapi_extra or {})[_SCOPE_KEY])
        has_body = self.body_field is not None
        endpoint = self.path

        async def governed(request: Request) -> Response:
            gate = gate_of(request)
            caller = gate.admit(request, scope)
            request.state.caller = caller
            for header in request.headers.getlist("x-constitutional-hash"):
                await gate.check_hash(request, caller, header, "header", endpoint)
            if has_body:
                request = parsed = await _with_json(request)
                body = parsed.parsed
                if isinstance(body, dict) and "constitutional_hash" in body:
                    await gate.check_hash(request, caller, body["constitutional_hash"], "body", endpoint)
            gate.passed(request, endpoint)
            return await handle(request)

        return governed


async def _with_json(request: Request) -> _ParsedRequest:
    parsed = _ParsedRequest(request.scope, request.receive)
    raw = await parsed.body()
    if not raw:
        return parsed
    media_type = request.headers.get("content-type", "").split(";", 1)[0].strip().lower()
    if media_type != "application/json" and not (
        media_type.startswith("application/") and media_type.endswith("+json")
    ):
        raise ApiError(
            415, f"the body must be JSON with `Content-Type: application/json`, got `{clip(media_type, 60) or 'none'}`"
        )
    parsed.parsed = strict_json(raw)
    return parsed
