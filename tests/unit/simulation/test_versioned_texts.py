"""Whatever changes a dictionary of texts changes its version."""

from __future__ import annotations

import pytest

from simulation.versioned_texts import VersionedTexts

CHANGES = {
    "set": lambda texts: texts.__setitem__("b", "2"),
    "set again": lambda texts: texts.__setitem__("a", "1"),
    "delete": lambda texts: texts.__delitem__("a"),
    "pop": lambda texts: texts.pop("a"),
    "popitem": lambda texts: texts.popitem(),
    "setdefault": lambda texts: texts.setdefault("b", "2"),
    "update": lambda texts: texts.update({"b": "2"}),
    "clear": lambda texts: texts.clear(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_every_change_counts(change):
    texts = VersionedTexts()
    texts["a"] = "1"
    before, expected = texts.version(), {"a": "1"}
    change(texts)
    change(expected)
    assert texts.version() > before
    assert (dict(texts), list(texts.items()), len(texts)) == (expected, list(expected.items()), len(expected))


def test_reading_counts_for_nothing():
    texts = VersionedTexts()
    texts["a"] = "1"
    before = texts.version()
    assert (texts.get("a"), texts.get("b"), texts.setdefault("a", "2"), texts.pop("b", None)) == ("1", None, "1", None)
    assert "a" in texts
    assert list(texts.values()) == ["1"]
    assert texts.version() == before


def test_a_change_counts_for_its_own_part_alone():
    texts = VersionedTexts(lambda key: key[0])
    texts["governance", "a"] = texts["impact", "a"] = "1"
    before = texts.version("governance"), texts.version("impact")
    del texts["impact", "a"]
    assert texts.version("governance") == before[0]
    assert texts.version("impact") > before[1]
