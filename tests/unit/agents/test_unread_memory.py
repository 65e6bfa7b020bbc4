"""Memory that nobody reads is only told by idle times that are known to be true for long enough."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agents.ttl_review import memory_held_for_nothing
from cachewarden.cachemodel.dead_memory import DeadMemory
from tests.unit.agents.test_lever_drafting import FOR_EVER, IDLE, ROOM, seen


def unread(known_ms):
    found = seen(FOR_EVER, IDLE, **ROOM)
    return memory_held_for_nothing(replace(found, access=None, sample=replace(found.sample, idle_known_ms=known_ms)))[0]


@pytest.mark.parametrize(("known_ms", "words"), [(0, "in 600 s"), (420_000, "for 420 s, it can be told in 180 s")])
def test_after_a_restart_it_is_said_why_not_and_when(known_ms, words):
    assert words in unread(known_ms)


def test_once_idle_times_are_known_for_long_enough_it_is_told():
    assert isinstance(unread(600_000), DeadMemory)
