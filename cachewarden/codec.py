"""Messages to canonical JSON and back, and the digest over it.

Canonical: keys sorted, no spaces, UTF-8, floats as Python's shortest repr, NaN and infinities refused. Two equal
messages have equal
bytes on every machine, so a digest names exactly one content. Never reads a clock, never guesses a type.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from enum import Enum
from functools import cache, lru_cache, wraps
from typing import Any, Final, TypeVar, cast

from pydantic import TypeAdapter

__all__ = ["canonical_json", "decode", "digest", "kept", "kept_digest", "record_id", "to_jsonable"]

T = TypeVar("T")
_DIGESTS_KEPT: Final = 256


@cache
def _field_names(cls: type) -> tuple[str, ...]:
    return tuple(f.name for f in dataclasses.fields(cls))


def _plain(value: Any) -> Any:
    """Return one level of what the encoder does not know as JSON types; it asks again for what is inside."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: getattr(value, name) for name in _field_names(type(value))}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(k): v for k, v in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(to_jsonable(v) for v in value)
    raise TypeError(f"cannot write a `{type(value).__name__}` as JSON")


_ENCODE: Final = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=_plain
).encode


def to_jsonable(value: Any) -> Any:
    """Return `value` as JSON types; dataclasses become objects, enums their values, tuples lists. Raises TypeError
    otherwise."""
    if value is None or isinstance(value, (bool, str)):
        return value.value if isinstance(value, Enum) else value
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (int, float)):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: to_jsonable(getattr(value, name)) for name in _field_names(type(value))}
    if isinstance(value, Mapping):
        return {str(k): to_jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_jsonable(v) for v in value]
    if isinstance(value, (set, frozenset)):
        return sorted(to_jsonable(v) for v in value)
    raise TypeError(f"cannot write a `{type(value).__name__}` as JSON")


def canonical_json(value: Any) -> bytes:
    """Return the canonical bytes of a message; raises ValueError for NaN and infinities."""
    try:
        return _ENCODE(value).encode()
    except TypeError:
        # Keys that are no text, or a type that is none of ours: the slow way has the rule for both.
        return _ENCODE(to_jsonable(value)).encode()


def digest(value: Any) -> str:
    """Return the SHA-256 of the canonical bytes as 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


class _Same:
    """A key that is equal only to one of the very same object, which it holds, so that no other can take its place."""

    __slots__ = ("_value",)

    def __init__(self, value: Any) -> None:
        self._value = value

    def __hash__(self) -> int:
        return id(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other._value is self._value

    def value(self) -> Any:
        return self._value


def kept(maxsize: int) -> Callable[[Callable[[Any], T]], Callable[[Any], T]]:
    """Return a decorator that remembers what a pure function gave for the newest `maxsize` objects that it was asked
    about.

    For frozen objects only: they are asked about again on their way through a process, and nobody changes them.
    """

    def decorate(work: Callable[[Any], T]) -> Callable[[Any], T]:
        remembered = lru_cache(maxsize=maxsize)(lambda same: work(same.value()))

        @wraps(work)
        def look_up(value: Any) -> T:
            return remembered(_Same(value))

        return look_up

    return decorate


@kept(_DIGESTS_KEPT)
def kept_digest(value: Any) -> str:
    """Return the digest of a message, remembered for the newest objects that were asked about."""
    return digest(value)


def record_id(*parts: str) -> str:
    """Return an id in the form of a version 5 UUID, the same for the same parts on every machine.

    A projection that is rebuilt after a crash thus meets its own records again instead of doubling them.
    """
    found = hashlib.sha256("\x1f".join(("cachewarden", *parts)).encode()).hexdigest()
    variant = "89ab"[int(found[16], 16) % 4]
    return f"{found[:8]}-{found[8:12]}-5{found[13:16]}-{variant}{found[17:20]}-{found[20:32]}"


@cache
def _adapter(cls: Any) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


def decode(cls: type[T], data: Any) -> T:
    """Return a message of type `cls` from JSON types; raises pydantic.ValidationError where the data does not fit.

    Unknown fields are ignored, so a newer writer's records stay readable.
    """
    if dataclasses.is_dataclass(cls) and isinstance(data, Mapping):
        names = {f.name for f in dataclasses.fields(cls)}
        data = {k: v for k, v in data.items() if k in names}
    adapter: TypeAdapter[T] = _adapter(cast(Any, cls))
    message: T = adapter.validate_python(data)
    return message
