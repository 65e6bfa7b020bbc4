"""New ids of requests and decisions: random version 4 UUIDs, from a supply of the operating system's randomness.

Each call to the operating system gives the interpreter's lock away, and on a busy machine it is milliseconds until it
comes back; one call fetches enough for hundreds of ids. INVARIANT: no bytes are used twice, a forked process included.
"""

from __future__ import annotations

import os
from typing import Final
from uuid import UUID

__all__ = ["new_id"]

_IDS_AT_ONCE: Final = 256


class _Supply:
    def __init__(self) -> None:
        self._bytes = b""
        self._used = 0

    def next(self) -> UUID:
        if self._used >= len(self._bytes):
            self._bytes, self._used = os.urandom(16 * _IDS_AT_ONCE), 0
        self._used += 16
        return UUID(bytes=self._bytes[self._used - 16 : self._used], version=4)

    def forget(self) -> None:
        """Throw the rest away: it is in the parent's hands too."""
        self._bytes, self._used = b"", 0


_supply = _Supply()
os.register_at_fork(after_in_child=_supply.forget)


def new_id() -> str:
    """Return a new random UUID as text. For one thread: the event loop's."""
    return str(_supply.next())
