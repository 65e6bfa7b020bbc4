"""A dictionary of texts that tells whether it was changed: who derives something from them asks for a version first.

It decides nothing. INVARIANT: no change, by whichever method of a dictionary, leaves the version of its part as it was.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, MutableMapping
from typing import TypeVar

__all__ = ["VersionedTexts"]

K = TypeVar("K")


class VersionedTexts(MutableMapping[K, str]):
    """Records as texts; `version` says of a part of them whether any was changed since somebody has looked. All
    changes pass through the two that are written here. `part_of` says to which part a key belongs; without it there is
    one, ""."""

    def __init__(self, part_of: Callable[[K], str] = lambda _: "") -> None:
        self._part_of = part_of
        self._versions: defaultdict[str, int] = defaultdict(int)
        self._texts: dict[K, str] = {}
        # Reading is the dictionary's own.
        self.get = self._texts.get  # type: ignore[method-assign]
        self.items = self._texts.items  # type: ignore[method-assign]
        self.values = self._texts.values  # type: ignore[method-assign]

    def version(self, part: str = "") -> int:
        """Return how often anything of a part was changed."""
        return self._versions[part]

    def __getitem__(self, key: K) -> str:
        return self._texts[key]

    def __contains__(self, key: object) -> bool:
        return key in self._texts

    def __iter__(self) -> Iterator[K]:
        return iter(self._texts)

    def __len__(self) -> int:
        return len(self._texts)

    def __setitem__(self, key: K, text: str) -> None:
        self._versions[self._part_of(key)] += 1
        self._texts[key] = text

    def __delitem__(self, key: K) -> None:
        self._versions[self._part_of(key)] += 1
        del self._texts[key]
