"""One pooled HTTP client per ACGS service: headers, timeouts, bounded answers, and the check of the hash.

It decides nothing and repeats nothing: whether to try again is its caller's business. It follows no redirect, takes no
proxy from the environment, and reads at most 256 KiB of an answer. Token, tenant and address are in no error text.

INVARIANT: an answer that carries another constitutional hash than ours, in its header or its body, is a PeerViolation,
whatever its status; errors (5xx) excepted, since whatever answers them may stand in front of the service.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import httpx

from cachewarden.errors import PeerRefused, PeerUnavailable, PeerViolation, SettingsError
from cachewarden.messages import AGENT_ID, CONSTITUTIONAL_HASH

__all__ = ["Answer", "Credentials", "HttpWire", "refused", "require_http_url"]

_ANSWER_BYTES_MAX: Final = 256 * 1024
_HASH_HEADER: Final = "X-Constitutional-Hash"


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What a peer may want to see of us; both may be absent. Never shown."""

    token: str | None = None
    tenant_id: str | None = None

    def __repr__(self) -> str:
        return "Credentials(...)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Status and body of an answer; `body` is None where it is no JSON."""

    status: int
    body: Any


def require_http_url(name: str, url: str) -> str:
    """Return `url` without a trailing slash; raises SettingsError for one that no HTTP client can use."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    else:
        if parts.username or parts.password:
            raise SettingsError(f"`{name}` must hold no user and no password, use `acgs_token`")
        if parts.query or parts.fragment:
            raise SettingsError(f"`{name}` must be the address of a service, without query and fragment")
    if not usable:
        raise SettingsError(f"`{name}` must begin with `http://` or `https://` and name a host")
    return url.rstrip("/")


class HttpWire:
    """The client of one service under one address. `close` must be awaited in the loop that used it."""

    def __init__(
        self,
        peer: str,
        url: str,
        *,
        credentials: Credentials | None = None,
        timeout_s: float = 5.0,
        max_connections: int = 4,
    ) -> None:
        self.peer = peer
        self._timeout_s = timeout_s
        given = credentials or Credentials()
        headers = {
            _HASH_HEADER: CONSTITUTIONAL_HASH,
            "X-Constitutional-Compliance": "verified",
            "User-Agent": f"cachewarden ({AGENT_ID})",
        }
        if given.token:
            headers["Authorization"] = f"Bearer {given.token}"
        if given.tenant_id:
            headers["X-Tenant-ID"] = given.tenant_id
        self._client = httpx.AsyncClient(
            base_url=require_http_url(peer, url),
            headers=headers,
            timeout=timeout_s,
            follow_redirects=False,
            trust_env=False,
            limits=httpx.Limits(max_connections=max_connections, max_keepalive_connections=max_connections),
        )

    async def call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, request_id: str = "", query: str = ""
    ) -> Answer:
        """Send one request and return its answer, of any status below 500 but redirects.

        Raises PeerUnavailable (no answer in time, cut off, 5xx, or nothing that can be read), PeerRefused (redirect),
        PeerViolation.
        """
        headers = {"X-Request-ID": request_id} if request_id else {}
        try:
            # One bound over everything: a peer that sends a byte a second would keep each single timeout.
            async with asyncio.timeout(self._timeout_s):
                url = path if not query else f"{path}?{query}"
                request = self._client.build_request(method, url, json=body, headers=headers)
                response = await self._client.send(request, stream=True)
                try:
                    data = await self._read(response)
                finally:
                    await response.aclose()
        except TimeoutError:
            raise PeerUnavailable(self.peer, f"gave no answer within {self._timeout_s:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            raise PeerUnavailable(self.peer, f"cannot be reached ({type(error).__name__})") from None
        return self._checked(response, data)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def _read(self, response: httpx.Response) -> bytes:
        data = bytearray()
        async for part in response.aiter_bytes():
            data += part
            if len(data) > _ANSWER_BYTES_MAX:
                raise PeerUnavailable(self.peer, f"sent more than {_ANSWER_BYTES_MAX} bytes")
        return bytes(data)

    def _checked(self, response: httpx.Response, data: bytes) -> Answer:
        status = response.status_code
        if status >= 500:
            raise PeerUnavailable(self.peer, f"answered {status}")
        if 300 <= status < 400:
            raise PeerRefused(self.peer, f"answered {status}, redirects are not followed", status)
        try:
            body = json.loads(data)
        except (ValueError, RecursionError):
            body = None
        header = response.headers.get(_HASH_HEADER)
        if header is not None and header != CONSTITUTIONAL_HASH:
            raise PeerViolation(self.peer, header, "header")
        named = body.get("constitutional_hash") if isinstance(body, dict) else None
        if named is not None and named != CONSTITUTIONAL_HASH:
            raise PeerViolation(self.peer, named, "body")
        return Answer(status=status, body=body)


def refused(peer: str, answer: Answer) -> PeerRefused:
    """Return the error for an answer below 500 that is not the wanted one; a peer's own words stay out of it."""
    hints = {
        401: "answered 401, it wants another bearer token",
        403: "answered 403, it wants another token or tenant",
        404: "answered 404, another program answers there",
        422: "answered 422, it does not take this request",
        429: "answered 429, it is asked too often",
    }
    return PeerRefused(peer, hints.get(answer.status, f"answered {answer.status}"), answer.status)
