"""How long each stage of a cycle is waited for."""

from __future__ import annotations

import pytest

from coordination.stages import STAGE_DEADLINE_MS, StageDeadlines

PLANNING = STAGE_DEADLINE_MS["planning"]


def test_a_stage_has_its_usual_time_as_long_as_it_is_answered():
    deadlines = StageDeadlines()
    for at_ms in range(0, 10 * PLANNING, PLANNING):
        assert deadlines.begin("planning", at_ms) == at_ms + PLANNING
        deadlines.end(at_ms + PLANNING - 1)


def late(deadlines: StageDeadlines, at_ms: int, cycle: int = 1, stage: str = "planning") -> None:
    """Ask, wait in vain, and get the answer after all."""
    deadlines.begin(stage, at_ms)
    assert deadlines.missed(cycle) == f"did not answer while {stage} in cycle {cycle}"
    assert not deadlines.note_late(stage, cycle)


@pytest.mark.parametrize("needs_ms", [PLANNING + 1, 2 * PLANNING + 1, 5 * PLANNING, 8 * PLANNING])
def test_an_agent_that_always_needs_longer_than_its_deadline_is_heard_all_the_same(needs_ms):
    deadlines, at_ms, answers = StageDeadlines(), 0, 0
    for cycle in range(20):
        in_time = deadlines.begin("planning", at_ms) - at_ms >= needs_ms
        at_ms += needs_ms
        if in_time:
            deadlines.end(at_ms)
            answers += 1
        else:
            deadlines.missed(cycle)
            deadlines.note_late("planning", cycle)
    # At most three questions until there is time enough, and none of what was learnt is forgotten again.
    assert answers >= 17


def test_an_agent_that_never_answers_is_given_no_more_time():
    deadlines = StageDeadlines()
    for cycle in range(20):
        assert deadlines.begin("planning", cycle * PLANNING) == (cycle + 1) * PLANNING
        deadlines.missed(cycle)


def test_an_answer_that_comes_twice_is_not_taken_for_a_late_one():
    deadlines = StageDeadlines()
    deadlines.begin("planning", 0)
    deadlines.begin("judging", 100)
    assert not deadlines.note_late("planning", 1)
    assert deadlines.begin("planning", PLANNING) == 2 * PLANNING


def test_nobody_is_waited_for_longer_than_eight_times_the_usual():
    deadlines = StageDeadlines()
    for cycle in range(20):
        late(deadlines, cycle * PLANNING, cycle)
    assert deadlines.begin("planning", 0) == 8 * PLANNING


def test_an_agent_that_is_quick_again_has_the_usual_time_again():
    deadlines = StageDeadlines()
    for cycle in range(3):
        late(deadlines, cycle * PLANNING, cycle)
    for at_ms in (10 * PLANNING, 11 * PLANNING, 12 * PLANNING):
        deadlines.begin("planning", at_ms)
        deadlines.end(at_ms + 100)
    assert deadlines.begin("planning", 20 * PLANNING) == 21 * PLANNING


def test_who_is_late_gives_the_others_no_more_time():
    deadlines = StageDeadlines()
    late(deadlines, 0)
    assert deadlines.begin("judging", 0) == STAGE_DEADLINE_MS["judging"]
