"""Where values for warming come from: an HTTP service, another Redis, or a file.

An origin fetches one value by key, within a time and a size, and says plainly when there is none. It never follows a
redirect, never writes, and never puts a key or a value into a message. INVARIANT: a key can change the path or query
of an HTTP request only, never the server that is asked.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import quote, urlsplit

import httpx
import redis.asyncio as redis_async
from redis.exceptions import RedisError, ResponseError

from cachewarden.errors import ConfigurationError
from cachewarden.fleet import Origin
from coordination.redis_batches import CommandBatches

__all__ = [
    "MAX_VALUE_BYTES",
    "FileOrigin",
    "HttpOrigin",
    "OriginClient",
    "OriginFailed",
    "RedisOrigin",
    "Value",
    "make_origin",
]

MAX_VALUE_BYTES: Final = 1 << 20
MAX_FILE_BYTES: Final = 64 << 20


class OriginFailed(Exception):
    """A value could not be fetched; the text may be told to the caller.

    `outage`: the origin itself is in trouble (no answer, 5xx, 429), not only this key.
    """

    def __init__(self, reason: str, *, outage: bool = False) -> None:
        super().__init__(reason)
        self.outage = outage


@dataclass(frozen=True, slots=True)
class Value:
    """One value; `ttl_ms` where the origin knows how long it may live."""

    data: bytes
    ttl_ms: int | None = None


class OriginClient(Protocol):
    async def fetch(self, key: str) -> Value | None:
        """Return the value, None where the origin has none; raises OriginFailed."""
        ...

    async def close(self) -> None: ...


def _sized(data: bytes | bytearray, limit: int) -> bytes:
    if len(data) > limit:
        raise OriginFailed(f"the value is larger than {limit} bytes")
    return bytes(data)


def _as_bytes(data: bytes | str) -> bytes:
    return data.encode() if isinstance(data, str) else data


class HttpOrigin:
    """GET of a URL template; `{key}` is replaced by the percent-encoded key. 200 is a value; 204, 404 and 410 mean that
    there is none."""

    def __init__(self, origin: Origin, max_value_bytes: int, transport: httpx.AsyncBaseTransport | None = None) -> None:
        server = urlsplit(origin.url.replace("{key}", ""))
        template = urlsplit(origin.url)
        if server.scheme not in ("http", "https") or not server.hostname:
            raise ConfigurationError("an http origin needs a URL that begins with `http://` or `https://`")
        if "{key}" not in origin.url or "{key}" in template.netloc + template.scheme:
            raise ConfigurationError("the URL of an http origin needs `{key}` in its path or query")
        self._template = origin.url
        self._limit = max_value_bytes
        self._client = httpx.AsyncClient(
            timeout=origin.timeout_s,
            follow_redirects=False,
            transport=transport,
            trust_env=False,
            # A compressed body may be a thousand times larger than what was received of it.
            headers={"Accept-Encoding": "identity"},
            limits=httpx.Limits(max_connections=origin.concurrency),
        )
        self._timeout_s = origin.timeout_s

    async def fetch(self, key: str) -> Value | None:
        # A dot segment would be resolved away by the client or a proxy, and so reach another path than the template's.
        if not key.strip("."):
            raise OriginFailed("a key of dots alone cannot be put into a URL")
        url = self._template.replace("{key}", quote(key, safe=""))
        try:
            async with asyncio.timeout(self._timeout_s), self._client.stream("GET", url) as response:
                if response.status_code in (204, 404, 410):
                    return None
                if response.status_code != 200:
                    code = response.status_code
                    raise OriginFailed(f"the origin answered {code}", outage=code >= 500 or code == 429)
                self._check_headers(response.headers)
                data = bytearray()
                async for part in response.aiter_bytes():
                    data += part
                    _sized(data, self._limit)
                return Value(bytes(data))
        except TimeoutError:
            raise OriginFailed(f"the origin gave no answer within {self._timeout_s:g} s", outage=True) from None
        except httpx.InvalidURL as error:
            raise OriginFailed(f"the key cannot be asked for: {type(error).__name__}") from None
        except httpx.HTTPError as error:
            raise OriginFailed(f"the origin cannot be asked: {type(error).__name__}", outage=True) from None

    def _check_headers(self, headers: httpx.Headers) -> None:
        declared = headers.get("content-length", "")
        if declared.isdecimal() and (len(declared) > 12 or int(declared) > self._limit):
            raise OriginFailed(f"the value is larger than {self._limit} bytes")
        coding = headers.get("content-encoding", "identity").strip().lower()
        if coding not in ("", "identity"):
            raise OriginFailed("the origin answered in an encoding that was not asked for")

    async def close(self) -> None:
        await self._client.aclose()


class RedisOrigin:
    """GETRANGE on another Redis; strings only, since another type cannot be stored as one value."""

    def __init__(self, origin: Origin, max_value_bytes: int) -> None:
        self._limit = max_value_bytes
        self._client = redis_async.Redis.from_url(
            origin.url,
            socket_timeout=origin.timeout_s,
            socket_connect_timeout=origin.timeout_s,
            max_connections=origin.concurrency + 1,
            client_name="cachewarden-warmer",
        )
        self._batches = CommandBatches(self._client)

    async def fetch(self, key: str) -> Value | None:
        try:
            # One byte more than may be: so an endless value costs no more than the bound, and is seen to be larger.
            ttl_ms, data = await asyncio.gather(
                self._batches.call("PTTL", key), self._batches.call("GETRANGE", key, 0, self._limit)
            )
        except ResponseError as error:
            if str(error).startswith("WRONGTYPE") or "WRONGTYPE" in str(error):
                raise OriginFailed("the origin holds another type than a string there") from None
            raise OriginFailed("the origin refused the read") from None
        except (RedisError, OSError) as error:
            raise OriginFailed(f"the origin cannot be asked: {type(error).__name__}", outage=True) from None
        if int(ttl_ms) == -2:
            return None
        return Value(_sized(_as_bytes(data), self._limit), int(ttl_ms) if int(ttl_ms) > 0 else None)

    async def close(self) -> None:
        await self._client.aclose()


def _text_of(value: Any) -> bytes:
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass")


def read_values(path: Path) -> dict[str, Value]:
    """Return the values of a file: a JSON object of key to value, or JSON lines of {key, value, ttl_s?}; raises
    OriginFailed.

    A value that is not a string is stored as compact JSON. Of a key that stands twice, the later line counts.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise OriginFailed(f"the origin's file is larger than {MAX_FILE_BYTES} bytes")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OriginFailed(f"the origin's file cannot be read: {type(error).__name__}") from None
    whole: Any = None
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        whole = None
    if isinstance(whole, dict) and not {"key", "value"} <= set(whole):
        return {str(key): Value(_text_of(value)) for key, value in whole.items()}
    values: dict[str, Value] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            ttl_s = entry.get("ttl_s")
            ttl_ms = None if ttl_s is None else int(float(ttl_s) * 1000)
            values[str(entry["key"])] = Value(_text_of(entry["value"]), ttl_ms)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            raise OriginFailed(
                f'line {number} of the origin\'s file is not {{"key": ..., "value": ..., "ttl_s": ...}}'
            ) from None
    return values


class FileOrigin:
    """Values of a file, read again when the file changes."""

    def __init__(self, origin: Origin, max_value_bytes: int) -> None:
        self._path = Path(origin.url.removeprefix("file://"))
        self._limit = max_value_bytes
        self._stamp: tuple[int, int] | None = None
        self._values: dict[str, Value] = {}
        self._lock = asyncio.Lock()

    async def fetch(self, key: str) -> Value | None:
        async with self._lock:
            try:
                stat = await asyncio.to_thread(self._path.stat)
            except OSError as error:
                raise OriginFailed(f"the origin's file cannot be read: {type(error).__name__}") from None
            stamp = (stat.st_mtime_ns, stat.st_size)
            if stamp != self._stamp:
                self._values = await asyncio.to_thread(read_values, self._path)
                self._stamp = stamp
        value = self._values.get(key)
        if value is not None:
            _sized(value.data, self._limit)
        return value

    async def close(self) -> None:
        self._values = {}


def make_origin(origin: Origin, max_value_bytes: int = MAX_VALUE_BYTES) -> OriginClient:
    """Return the client of an origin; raises ConfigurationError for a URL that cannot be used."""
    if origin.kind == "http":
        return HttpOrigin(origin, max_value_bytes)
    if origin.kind == "redis":
        return RedisOrigin(origin, max_value_bytes)
    return FileOrigin(origin, max_value_bytes)
