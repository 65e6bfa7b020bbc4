"""Two versions of a message are told apart whatever has changed in them, however deep."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, make_dataclass
from enum import Enum
from typing import Any

import numpy as np
import pytest

from cachewarden.errors import OperatingError
from cachewarden.protocol import FleetBeat, FleetDelta, FleetState
from cachewarden.protocol_shape import shape_of
from cachewarden.state_parcel import FLEET_SHAPE, OtherVersion, packed, unpacked

COLOUR = [("RED", "red"), ("BLUE", "blue")]
INNER = [("low", float), ("high", float)]


@dataclass
class Written:
    a: np.ndarray[Any, np.dtype[np.int64]]
    b: int | None
    c: tuple[str, ...]


def message(
    outer: list[tuple[str, Any]] | None = None,
    inner: list[tuple[str, Any]] = INNER,
    colour: list[tuple[str, str]] = COLOUR,
) -> type:
    """Return a class as one version has it: what it holds, what lies within that, and the words of an enumeration."""
    named = Enum("Colour", colour, module=__name__)  # type: ignore[misc]
    held = make_dataclass("Held", inner)
    given = [("version", int), ("parts", Mapping[str, tuple[held, ...]]), ("colour", named | None)]
    return make_dataclass("Told", given if outer is None else [*given, *outer])


def test_the_same_classes_have_the_same_shape_in_whatever_order_they_are_named():
    assert shape_of(FleetState, FleetDelta, FleetBeat) == shape_of(FleetBeat, FleetState, FleetDelta)
    assert shape_of(message()) == shape_of(message())


def test_what_is_no_part_of_a_message_changes_nothing():
    assert shape_of(message([("more", int)])) == shape_of(message([("more", int, field(default=3))]))


@pytest.mark.parametrize(
    "other",
    [
        message([("more", int)]),
        message(inner=[*INNER, ("value", float)]),
        message(inner=[("high", float), ("low", float)]),
        message(inner=[("low", float), ("most", float)]),
        message(inner=[("low", float), ("high", int)]),
        message(colour=[("RED", "red"), ("BLUE", "navy")]),
        message(colour=[*COLOUR, ("GREEN", "green")]),
    ],
    ids=["a field more", "more within", "another order", "another name", "another type", "another word", "a word more"],
)
def test_every_change_of_a_message_changes_its_shape(other: type):
    assert shape_of(other) != shape_of(message())


def test_the_shape_is_written_in_words_that_no_version_of_a_library_changes():
    name = f"{Written.__module__}.Written"
    words = "a: ndarray, b: any of [builtins.int, builtins.NoneType], c: builtins.tuple[builtins.str, Ellipsis]"
    assert shape_of(Written) == hashlib.sha256(f"{name}({words})".encode()).hexdigest()[:16]


def test_a_parcel_gives_back_what_was_put_in():
    beat = FleetBeat(life_ms=1, version=2, at_ms=3, cycle=4, phase="idle", agents={}, journal_seq=5)
    back = unpacked(packed(beat))
    assert (back.life_ms, back.version, back.phase) == (1, 2, "idle")
    assert unpacked(packed(None)) is None


@pytest.mark.constitutional
@pytest.mark.parametrize(
    "parcel",
    [("0123456789abcdef", packed(3)[1]), ("0123456789abcdef", b"no such thing as this"), (FLEET_SHAPE,), None, "state"],
    ids=["of another shape", "that nobody here can load", "without content", "nothing", "no parcel"],
)
def test_what_another_version_says_is_not_even_looked_into(parcel: object):
    with pytest.raises(OtherVersion, match="bring agents and API to the same") as refused:
        unpacked(parcel)
    assert isinstance(refused.value, OperatingError)
