"""Canonical bytes, digests, and the way back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachewarden.codec import canonical_json, decode, digest, kept, to_jsonable
from cachewarden.messages import KnobChange, TtlRule

CHANGE = KnobChange(knob="maxmemory", before="1048576", after="2097152")


def test_a_message_comes_back_equal():
    assert decode(KnobChange, to_jsonable(CHANGE)) == CHANGE


def test_a_field_of_a_newer_writer_is_ignored():
    assert decode(KnobChange, {**to_jsonable(CHANGE), "colour": "red"}) == CHANGE


def test_the_order_of_keys_changes_nothing():
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})


def test_another_content_has_another_digest():
    assert digest(CHANGE) != digest(CHANGE.reversed())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_json_does_not_have_are_refused(value: float):
    with pytest.raises(ValueError):
        canonical_json({"x": value})


def test_what_is_no_data_is_refused():
    with pytest.raises(TypeError, match="cannot write a `object` as JSON"):
        canonical_json(object())


@pytest.mark.slow
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_equal_values_have_equal_bytes(value: object):
    assert canonical_json(value) == canonical_json(to_jsonable(value))


def test_a_ttl_rule_beyond_the_declared_staleness_cannot_even_be_made():
    with pytest.raises(ValueError, match="max staleness"):
        TtlRule(pattern="a:", written_ttl_ms=10, extended_ttl_ms=1000, max_staleness_ms=999)


def test_what_is_kept_is_worked_out_once_per_object_and_still_goes_by_its_name():
    asked = []

    @kept(2)
    def length(value: object) -> int:
        """Return the length."""
        asked.append(value)
        return len(str(value))

    one, other = [1], [1]
    assert [length(one), length(one), length(other)] == [3, 3, 3]
    assert asked == [one, other]
    assert asked[1] is other
    assert (length.__name__, length.__doc__) == ("length", "Return the length.")
    length([2])
    length(one)
    assert len(asked) == 4
