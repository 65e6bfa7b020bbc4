"""What `python -m cluster whatif` was asked: texts of the command line turned into configurations.

It reads no file and asks nobody. INVARIANT: a text that cannot be meant is refused with the way to write it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cachewarden.errors import SettingsError
from cachewarden.knobs import EVICTION_POLICIES, EvictionPolicy, parse_bytes

__all__ = ["LiveQuestion", "Memory", "SearchOptions", "Setting", "memories", "settings_of", "share_of"]

_CONFIGURATIONS_MAX = 200


@dataclass(frozen=True, slots=True)
class Memory:
    """An amount in bytes (or keys), or as a share of a whole that is known later; exactly one is given."""

    bytes: int | None = None
    share: float | None = None

    def of(self, whole: int) -> int:
        """Return the amount; shares are of `whole`."""
        return self.bytes if self.bytes is not None else max(1, round((self.share or 0.0) * whole))


@dataclass(frozen=True, slots=True)
class Setting:
    """Everything but the memory; None = as it is now, or as the trace has it."""

    eviction_policy: EvictionPolicy | None
    lfu: tuple[int, int] | None
    ttl_ms: int | None


@dataclass(frozen=True, slots=True)
class LiveQuestion:
    """What is asked of a running deployment about one service; `target` a hit ratio 0..1."""

    url: str
    service: str | None
    token_file: Path | None
    memories: list[Memory]
    settings: list[Setting]
    target: float | None
    ttl_report: bool

    @property
    def kind(self) -> Literal["curve", "ttl", "candidates"]:
        """Return which answer it wants; raises SettingsError where it asks for several at once."""
        candidates = bool(self.memories) or any(s != Setting(None, None, None) for s in self.settings)
        if self.ttl_report + candidates > 1 or (self.target is not None and (self.ttl_report or candidates)):
            raise SettingsError("ask one thing at a time: configurations, `--target` with the curve, or `--ttl-report`")
        return "ttl" if self.ttl_report else "candidates" if candidates else "curve"


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """`budget_accesses` to be replayed in all, `minimum_gain` 0..1. `ray`: None = in this process, `local` = tasks on
    a Ray of our own, else the address of a Ray cluster.
    """

    budget_accesses: int
    minimum_gain: float
    ray: str | None


def _parts(texts: Iterable[str]) -> list[str]:
    return [part.strip() for text in texts for part in text.split(",") if part.strip()]


def memories(texts: Iterable[str]) -> list[Memory]:
    """Read amounts such as `64mb`, `5000` or `25%`; several may stand in one text, separated by commas."""
    found: list[Memory] = []
    for text in _parts(texts):
        if text.endswith("%"):
            number = text[:-1].strip()
            if re.fullmatch(r"\d+(\.\d+)?", number) is None or float(number) <= 0:
                raise SettingsError(f"`{text}` is no share, write for example `25%`")
            found.append(Memory(share=float(number) / 100))
            continue
        value = parse_bytes(text)
        if value <= 0:
            raise SettingsError(f"memory of `{text}` holds nothing, write for example `64mb` or `25%`")
        found.append(Memory(bytes=value))
    return found


def share_of(text: str) -> float:
    """Read a hit ratio such as `0.95` or `95%`, between 0 and 1."""
    number = text.removesuffix("%").strip()
    if re.fullmatch(r"\d+(\.\d+)?|\.\d+", number) is not None:
        value = float(number) / (100.0 if text.endswith("%") else 1.0)
        if 0.0 < value < 1.0:
            return value
    raise SettingsError(f"`{text}` is no hit ratio, write for example `0.95` or `95%`")


def settings_of(policies: Iterable[str], lfu: Iterable[str], ttls: Iterable[str]) -> list[Setting]:
    """Return every combination: LFU parameters (`LOG:DECAY`) count for LFU policies only, TTLs are seconds, 0 = none,
    `keep` = as they are."""
    names: list[EvictionPolicy | None] = []
    for name in _parts(policies):
        if name not in EVICTION_POLICIES:
            raise SettingsError(f"unknown eviction policy `{name}`, use one of {', '.join(EVICTION_POLICIES)}")
        names.append(name)
    parameters: list[tuple[int, int] | None] = [_lfu(text) for text in _parts(lfu)]
    lifetimes: list[int | None] = [_ttl_ms(text) for text in _parts(ttls)]
    found = [
        Setting(name, pair, ttl_ms)
        for name in names or [None]
        for pair in (parameters or [None] if name is None or name.endswith("lfu") else [None])
        for ttl_ms in lifetimes or [None]
    ]
    if len(found) > _CONFIGURATIONS_MAX:
        raise SettingsError(f"{len(found)} combinations are too many, ask for at most {_CONFIGURATIONS_MAX}")
    return found


def _lfu(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,6}):(\d{1,6})", text)
    if match is None:
        raise SettingsError(f"`{text}` are no LFU parameters, write `LOG_FACTOR:DECAY_MINUTES`, for example `10:1`")
    return int(match.group(1)), int(match.group(2))


def _ttl_ms(text: str) -> int | None:
    if text == "keep":
        return None
    if re.fullmatch(r"\d{1,9}(\.\d+)?", text) is None:
        raise SettingsError(f"`{text}` is no TTL, write seconds, `0` for none, or `keep`")
    return round(float(text) * 1000)
