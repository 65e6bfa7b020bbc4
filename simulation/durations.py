"""Times and sizes as people write them in scenarios: `90s`, `3m`, `500ms`, `2h`; `12mb` as in the fleet file.

It decides nothing. INVARIANT: what cannot be read is refused with the way out, never guessed.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator

__all__ = ["DurationMs", "parse_duration_ms", "words_of_ms"]

_UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000}


def parse_duration_ms(value: Any) -> Any:
    """Return milliseconds for `90s`, `1.5m`, `500ms` or `2h`; raises ValueError for anything else."""
    text = str(value).strip().lower()
    for unit in ("ms", "s", "m", "h"):
        number = text.removesuffix(unit)
        if number != text:
            try:
                return int(float(number) * _UNITS_MS[unit])
            except ValueError:
                break
    raise ValueError("write a time as `500ms`, `90s`, `3m` or `2h`")


DurationMs = Annotated[int, BeforeValidator(parse_duration_ms)]


def words_of_ms(duration_ms: int) -> str:
    """Return a time as people read it: `1:02:03.456`, hours only where there are some."""
    seconds, left_ms = divmod(max(0, duration_ms), 1_000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}.{left_ms:03d}" if hours else f"{minutes}:{seconds:02d}.{left_ms:03d}"
