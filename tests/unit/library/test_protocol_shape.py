"""Two versions of a message are told apart whatever has changed in them, however deep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, make_dataclass
from enum import Enum
from typing import Any

import pytest

from cachewarden.protocol import FLEET_SHAPE, FleetBeat, FleetDelta, FleetState
from cachewarden.protocol_shape import shape_of

COLOUR = [("RED", "red"), ("BLUE", "blue")]
INNER = [("low", float), ("high", float)]


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
    assert shape_of(FleetState, FleetDelta, FleetBeat) == shape_of(FleetBeat, FleetState, FleetDelta) == FLEET_SHAPE
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
