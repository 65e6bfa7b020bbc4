"""The faster `__init__` of frozen values does what the one of `dataclasses` did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import FrozenInstanceError, dataclass, field, replace

import pytest

from simulation.quickening import quicken


@dataclass(frozen=True, slots=True)
class Base:
    ref: str
    number: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Made(Base):
    names: Mapping[str, str] = field(default_factory=dict)
    checked: bool

    def __post_init__(self) -> None:
        if self.number < 0:
            raise ValueError("below 0")


@dataclass(frozen=True, slots=True)
class Derived:
    ref: str
    length: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "length", len(self.ref))


@dataclass(frozen=True)
class Open:
    ref: str


def plain(cls):
    """The same class as `dataclasses` has made it."""
    return cls("a", checked=True)


BEFORE = plain(Made)


@pytest.fixture(scope="module", autouse=True)
def quick():
    assert quicken(Base)
    assert quicken(Made)


def test_a_quickened_value_equals_one_that_was_made_before():
    assert Made("a", checked=True) == BEFORE
    assert hash(Base("a")) == hash(Base("a", 3))
    assert repr(Made(ref="a", checked=True)) == repr(BEFORE)
    assert Made.__init__.__annotations__.keys() == {"ref", "number", "names", "checked", "return"}


def test_defaults_that_are_made_anew_are_not_shared():
    assert Made("a", checked=True).names is not Made("a", checked=True).names
    assert Made("a", checked=True, names={"b": "c"}).names == {"b": "c"}


def test_it_is_still_frozen_and_can_be_replaced_and_checked():
    made = Made("a", 4, checked=False)
    with pytest.raises(FrozenInstanceError):
        made.number = 5
    assert replace(made, number=6) == Made("a", 6, checked=False)
    with pytest.raises(ValueError, match="below 0"):
        Made("a", -1, checked=True)


def test_a_call_that_does_not_fit_is_refused():
    with pytest.raises(TypeError, match="checked"):
        Made("a")
    with pytest.raises(TypeError, match="positional"):
        Made("a", 1, {}, True)
    with pytest.raises(TypeError, match="unknown"):
        Made("a", checked=True, unknown=1)


def test_what_is_not_plain_is_left_alone():
    assert not quicken(Derived)
    assert Derived("abc").length == 3
    assert not quicken(Open)


@dataclass(frozen=True, slots=True)
class ByHand:
    ref: str

    def __init__(self, ref: str) -> None:
        object.__setattr__(self, "ref", f"hand:{ref}")


@dataclass(frozen=True, slots=True, init=False)
class Unmade:
    ref: str

    def __init__(self) -> None:
        object.__setattr__(self, "ref", "unmade")


class Heir(Base):
    """Inherits its fields and its `__init__`."""


def test_an_init_that_somebody_has_written_stays():
    assert not quicken(ByHand)
    assert ByHand("a").ref == "hand:a"
    assert not quicken(Unmade)
    assert Unmade().ref == "unmade"


def test_a_class_that_inherits_its_init_gets_none_of_its_own():
    assert not quicken(Heir)
    assert "__init__" not in vars(Heir)
    assert Heir("a").ref == "a"


def test_what_was_quickened_is_not_quickened_again():
    assert not quicken(Base)
