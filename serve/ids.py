"""New ids of requests and decisions: random version 4 UUIDs, from a supply of the operating system's randomness.

Each call to the operating system gives the interpreter's lock away, and on a busy machine it is milliseconds until it
comes back; one call fetches enough for hundreds of ids. INVARIANT: no bytes are used twice, a forked process included.
"""

from __future__ import annotations

import os
from typing import Final

__all__ = ["new_id"]

_IDS_AT_ONCE: Final = 256


class _Supply:
    def __init__(self) -> None:
        self._digits = ""
        self._used = 0

    def next(self) -> str:
        if self._used >= len(self._digits):
            self._digits, self._used = os.urandom(16 * _IDS_AT_ONCE).hex(), 0
        start = self._used
        self._used = end = start + 32
        digits = self._digits
        variant = "89ab"[int(digits[start + 16], 16) % 4]
        return (
            f"{digits[start : start + 8]}-{digits[start + 8 : start + 12]}-4{digits[start + 13 : start + 16]}"
            f"-{variant}{digits[start + 17 : start + 20]}-{digits[start + 20 : end]}"
        )

    def forget(self) -> None:
        """Throw the rest away: it is in the parent's hands too."""
        self._digits, self._used = "", 0


_supply = _Supply()
os.register_at_fork(after_in_child=_supply.forget)


def new_id() -> str:
    """Return a new random UUID as text. For one thread: the event loop's."""
    return _supply.next()
