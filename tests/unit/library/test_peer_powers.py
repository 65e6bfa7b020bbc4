"""What a peer may do by the blackboard alone: named, and nothing else."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from cachewarden.peer_powers import PeerPower, parse_powers
from cachewarden.settings import CacheOptimizerSettings


def test_powers_are_named_by_commas_in_any_case_and_none_is_possible():
    assert parse_powers(" Hold,answer ,") == {PeerPower.HOLD, PeerPower.ANSWER}
    assert parse_powers("") == frozenset()


def test_a_word_that_is_no_power_is_refused_at_the_start_with_those_that_there_are():
    with pytest.raises(ValidationError, match="`rule` is no power, there are: answer, ask, force, hold, object"):
        CacheOptimizerSettings(_env_file=None, blackboard_peer_powers="hold,rule")


def test_by_default_a_peer_may_do_everything_but_force():
    given = CacheOptimizerSettings(_env_file=None).blackboard_peer_powers
    assert parse_powers(given) == set(PeerPower) - {PeerPower.FORCE}
