"""Whether two processes mean the same by a message: a digest of what its classes are made of.

Messages travel between processes as the values of their fields, in order. One who has another version of a class would
read one value as another and never notice, so what replicas of the API are told carries this digest outside, and is
only read by those who have the same (`state_parcel.py`). It decides nothing. INVARIANT: two processes with the same
digest have the same fields, in the same order and of the same declared types, in every class that is named by the given
ones or by the fields of those.
"""

from __future__ import annotations

import hashlib
from dataclasses import fields, is_dataclass
from enum import Enum
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np

__all__ = ["shape_of"]

_DIGITS = 16


def _named(found: type) -> str:
    return f"{found.__module__}.{found.__qualname__}"


def _words(hint: Any) -> str:
    """Return a type in words of ours: how Python and numpy write one differs from version to version."""
    origin = get_origin(hint)
    if origin is np.ndarray or hint is np.ndarray:
        return "ndarray"
    inner = ", ".join(_words(argument) for argument in get_args(hint))
    if origin is Union or origin is UnionType:
        return f"any of [{inner}]"
    if isinstance(origin, type):
        return f"{_named(origin)}[{inner}]"
    return _named(hint) if isinstance(hint, type) else str(hint)


def shape_of(*roots: type) -> str:
    """Return 16 hexadecimal digits for the given data classes and all that they are made of."""
    told: dict[type, str] = {}
    waiting: list[Any] = list(roots)
    while waiting:
        found = waiting.pop()
        waiting += get_args(found)
        if not isinstance(found, type) or found in told:
            continue
        if is_dataclass(found):
            hints = get_type_hints(found)
            waiting += hints.values()
            told[found] = f"{_named(found)}({', '.join(f'{f.name}: {_words(hints[f.name])}' for f in fields(found))})"
        elif issubclass(found, Enum):
            told[found] = f"{_named(found)}({', '.join(f'{member.name}={member.value!r}' for member in found)})"
    return hashlib.sha256("\n".join(sorted(told.values())).encode()).hexdigest()[:_DIGITS]
