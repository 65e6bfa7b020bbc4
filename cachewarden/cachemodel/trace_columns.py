"""Text with separated columns: which column means what, and lines turned into arrays.

INVARIANT: what cannot be read is an error that names the line, never a row that is left out; only blank lines are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cachewarden.cachemodel.trace_stream import TraceFileError
from cachewarden.errors import SettingsError

__all__ = ["ColumnSpec", "Columns"]

_COLUMNS: Final = {"time-col": "time", "obj-id-col": "key", "obj-size-col": "size", "op-col": "op", "ttl-col": "ttl"}
_UNITS_MS: Final = {"s": 1000.0, "ms": 1.0, "us": 0.001, "ns": 0.000001}
_YES: Final = ("true", "1", "yes")
_NO: Final = ("false", "0", "no")
_DELIMITERS: Final = {"tab": "\t", "\\t": "\t", "space": " ", "comma": ",", "": ","}
# The value of `delimiter` may be the comma that separates the others.
_PAIR: Final = re.compile(r"\s*([a-z-]+)\s*=(,|[^,]*)(?:,|$)")


@dataclass(frozen=True, slots=True)
class ColumnSpec:
    """Which column, counted from 0, holds what; None = the file does not have it.

    `time_unit_ms` milliseconds per unit of the time column; TTLs are seconds. `has_header` None = as the first line
    looks. `key_is_number` only says that ids are decimal numbers, so that `7` and `007` are the same.
    """

    key: int
    time: int | None = None
    size: int | None = None
    op: int | None = None
    ttl: int | None = None
    delimiter: bytes = b","
    has_header: bool | None = None
    key_is_number: bool = False
    time_unit_ms: float = 1000.0

    @classmethod
    def parse(cls, text: str) -> ColumnSpec:
        """Read libCacheSim's notation, columns counted from 1, e.g. `time-col=1,obj-id-col=2,obj-size-col=3,
        delimiter=;,has-header=true,obj-id-is-num=true`; beyond it `ttl-col` (s) and `time-unit` (s, ms, us, ns).

        Raises SettingsError with what is wrong and what is known.
        """
        given: dict[str, Any] = {}
        position = 0
        while position < len(text):
            pair = _PAIR.match(text, position)
            if pair is None:
                raise SettingsError(
                    f"`{text[position:][:60]}` is no column, write for example `time-col=1,obj-id-col=2`"
                )
            name, value = pair.groups()
            given.update(_option(name, value))
            position = pair.end()
        if "key" not in given:
            raise SettingsError("`obj-id-col` is missing: say which column holds the key, e.g. `obj-id-col=2`")
        return cls(**given)

    @property
    def last(self) -> int:
        """Return how many columns a row needs at least."""
        return 1 + max(c for c in (self.key, self.time, self.size, self.op, self.ttl) if c is not None)

    def is_header(self, line: bytes) -> bool:
        """Say whether a first line names columns: a column that must be a number is none."""
        fields = line.split(self.delimiter)
        numbers = [c for c in (self.time, self.size, self.ttl) if c is not None and c < len(fields)]
        return any(re.fullmatch(rb"\s*[+-]?[\d.]+(e[+-]?\d+)?\s*", fields[c]) is None for c in numbers)


def _option(name: str, value: str) -> dict[str, Any]:
    word = value.strip()
    if name in _COLUMNS:
        if not word.isdigit() or int(word) < 1:
            raise SettingsError(f"`{name}` needs the number of a column, counted from 1, not `{word}`")
        return {_COLUMNS[name]: int(word) - 1}
    if name == "delimiter":
        delimiter = _DELIMITERS.get(word, word) if word or not value else value[0]
        if len(delimiter) != 1 or not delimiter.isascii():
            raise SettingsError(f"`delimiter` needs one character, `tab` or `space`, not `{word}`")
        return {"delimiter": delimiter.encode("ascii")}
    if name in ("has-header", "obj-id-is-num"):
        if word.lower() not in _YES + _NO:
            raise SettingsError(f"`{name}` needs `true` or `false`, not `{word}`")
        return {"has_header" if name == "has-header" else "key_is_number": word.lower() in _YES}
    if name == "time-unit":
        if word not in _UNITS_MS:
            raise SettingsError(f"`time-unit` needs one of {', '.join(_UNITS_MS)}, not `{word}`")
        return {"time_unit_ms": _UNITS_MS[word]}
    known = ", ".join([*_COLUMNS, "delimiter", "has-header", "obj-id-is-num", "time-unit"])
    raise SettingsError(f"unknown column option `{name[:60]}`, known are {known}")


class Columns:
    """Some lines split into fields; `joined_field` is one that may hold the delimiter itself.

    Raises TraceFileError for a line with too few or too many fields.
    """

    def __init__(
        self,
        path: Path,
        first_line: int,
        lines: Sequence[bytes],
        delimiter: bytes,
        *,
        fields_min: int,
        fields_max: int | None = None,
        joined_field: int | None = None,
    ) -> None:
        self._path = path
        self._first_line = first_line
        self._lines = lines
        kept = [line.rstrip(b"\r") for line in lines if line and not line.isspace()]
        if delimiter == b" ":
            rows = [line.split() for line in kept]
        elif joined_field is None:
            rows = [line.split(delimiter) for line in kept]
        else:
            behind = fields_min - joined_field - 1
            rows = [_split_around(line, delimiter, joined_field, behind) for line in kept]
        for row, fields in enumerate(rows):
            if len(fields) < fields_min or (fields_max is not None and len(fields) > fields_max):
                wanted = f"{fields_min}" if fields_min == fields_max else f"at least {fields_min}"
                raise self.error(row, f"{len(fields)} fields, expected {wanted}")
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def error(self, row: int, message: str) -> TraceFileError:
        """Return an error about a row, with its line."""
        numbers = [n for n, line in enumerate(self._lines, self._first_line) if line and not line.isspace()]
        return TraceFileError(message, path=self._path.name, line=numbers[row])

    def raw(self, field: int) -> list[bytes]:
        """Return one field of each row."""
        return [fields[field] for fields in self._rows]

    def texts(self, field: int) -> npt.NDArray[np.bytes_]:
        """Return one field of each row as an array."""
        return np.array(self.raw(field))

    def shown(self, field: int, row: int) -> str:
        """Return a field as it may stand in a message."""
        return self._rows[row][field][:40].decode("ascii", "replace")

    def integers(
        self, field: int, meaning: str, at_least: int | None = None, at_most: int | None = None
    ) -> npt.NDArray[np.int64]:
        """Return one field of each row as whole numbers; raises TraceFileError for one that is none or out of range."""
        try:
            numbers = np.fromiter(map(int, self.raw(field)), np.int64, len(self))
        except (ValueError, OverflowError):
            raise self._not_a_number(field, meaning, int) from None
        low = np.zeros(len(self), np.bool_) if at_least is None else numbers < at_least
        wrong = low if at_most is None else low | (numbers > at_most)
        if np.any(wrong):
            row = int(np.argmax(wrong))
            raise self.error(row, f"{meaning} `{self.shown(field, row)}` is out of range, another format or damaged")
        return numbers

    def times_ms(self, field: int, unit_ms: float) -> npt.NDArray[np.int64]:
        """Return one field of each row, in units of `unit_ms`, as milliseconds rounded down."""
        raw = self.raw(field)
        try:
            # Whole numbers stay exact; times since 1970 in nanoseconds do not fit into a float.
            whole = np.fromiter(map(int, raw), np.int64, len(self))
        except (ValueError, OverflowError):
            try:
                parts = np.fromiter(map(float, raw), np.float64, len(self)) * unit_ms
            except ValueError:
                raise self._not_a_number(field, "time", float) from None
            if not np.all(np.abs(parts) < 2.0**62):
                raise self._not_a_number(field, "time", float) from None
            return np.floor(parts).astype(np.int64)
        if unit_ms >= 1.0:
            return whole * round(unit_ms)
        return whole // round(1.0 / unit_ms)

    def _not_a_number(self, field: int, meaning: str, kind: type[int] | type[float]) -> TraceFileError:
        for row, text in enumerate(self.raw(field)):
            try:
                number = kind(text)
                if abs(number) < 2**62:
                    continue
            except ValueError:
                pass
            return self.error(row, f"{meaning} `{self.shown(field, row)}` is no number that can be read")
        return self.error(0, f"the {meaning} cannot be read")


def _split_around(line: bytes, delimiter: bytes, before: int, behind: int) -> list[bytes]:
    """Split off `before` fields in front and `behind` fields at the end; what lies between is one field."""
    tail = line.rsplit(delimiter, behind)
    return [*tail[0].split(delimiter, before), *tail[1:]]
