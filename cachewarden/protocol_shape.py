"""Whether two processes mean the same by a message: a digest of what its classes are made of.

Messages travel between processes as the values of their fields, in order. One who has another version of a class would
read one value as another and never notice, so who takes decisions on a message compares this digest first. It decides
nothing. INVARIANT: two processes with the same digest have the same fields, in the same order and of the same declared
types, in every class that is reachable from the given ones.
"""

from __future__ import annotations

import hashlib
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, get_args, get_type_hints

__all__ = ["shape_of"]

_DIGITS = 16


@cache
def shape_of(*roots: type) -> str:
    """Return 16 hexadecimal digits for the given data classes and all that they are made of."""
    told: dict[type, str] = {}
    waiting: list[Any] = list(roots)
    while waiting:
        found = waiting.pop()
        waiting += get_args(found)
        if not isinstance(found, type) or found in told:
            continue
        name = f"{found.__module__}.{found.__qualname__}"
        if is_dataclass(found):
            hints = get_type_hints(found)
            waiting += hints.values()
            told[found] = f"{name}({', '.join(f'{f.name}: {hints[f.name]}' for f in fields(found))})"
        elif issubclass(found, Enum):
            told[found] = f"{name}({', '.join(f'{member.name}={member.value!r}' for member in found)})"
    return hashlib.sha256("\n".join(sorted(told.values())).encode()).hexdigest()[:_DIGITS]
