"""A dictionary of texts that tells whether it was changed: who derives something from all of them asks for its version.

It decides nothing. INVARIANT: no change, by whichever method of a dictionary, leaves the version as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import TypeVar

__all__ = ["VersionedTexts"]

K = TypeVar("K")


class VersionedTexts(MutableMapping[K, str]):
    """Records as texts; `version` says whether any was changed since somebody has looked. All changes pass through
    the two that are written here."""

    def __init__(self) -> None:
        self.version = 0
        self._texts: dict[K, str] = {}
        # Reading is the dictionary's own.
        self.get = self._texts.get  # type: ignore[method-assign]
        self.items = self._texts.items  # type: ignore[method-assign]
        self.values = self._texts.values  # type: ignore[method-assign]

    def __getitem__(self, key: K) -> str:
        return self._texts[key]

    def __contains__(self, key: object) -> bool:
        return key in self._texts

    def __iter__(self) -> Iterator[K]:
        return iter(self._texts)

    def __len__(self) -> int:
        return len(self._texts)

    def __setitem__(self, key: K, text: str) -> None:
        self.version += 1
        self._texts[key] = text

    def __delitem__(self, key: K) -> None:
        self.version += 1
        del self._texts[key]
