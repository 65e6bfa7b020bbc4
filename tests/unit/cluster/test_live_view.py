"""The live view shows words of other agents as they are."""

from __future__ import annotations

from rich.console import Console

from cachewarden.messages import Execution, ExecutionState
from cluster.live import scoreboard
from tests.unit.policy.builders import NOW_MS, proposal


def test_words_of_a_peer_that_look_like_markup_are_shown_and_break_nothing():
    execution = Execution(
        execution_id="x",
        proposal=proposal("cart"),
        state=ExecutionState.ROLLED_BACK,
        started_at_ms=NOW_MS,
        updated_at_ms=NOW_MS,
        reason="`[/red]` goes first",
    )
    console = Console(width=200)
    with console.capture() as shown:
        console.print(scoreboard([execution]))
    assert "`[/red]` goes first" in shown.get()
