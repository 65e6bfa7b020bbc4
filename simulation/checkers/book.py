"""All checkers, fresh ones for each run."""

from __future__ import annotations

from simulation.checkers.ballots import Ballots
from simulation.checkers.budget import Budget
from simulation.checkers.chains import Chains
from simulation.checkers.checker import Checker
from simulation.checkers.convergence import Convergence
from simulation.checkers.endings import Endings
from simulation.checkers.expectations import Expectations
from simulation.checkers.flapping import Flapping
from simulation.checkers.floors import Floors
from simulation.checkers.lawful import Lawful
from simulation.checkers.liveness import Liveness
from simulation.checkers.measured import Measured
from simulation.checkers.outcomes import Outcomes
from simulation.checkers.pauses import Pauses
from simulation.checkers.single_writer import SingleWriter
from simulation.checkers.soundness import Soundness
from simulation.checkers.write_ahead import WriteAhead

__all__ = ["all_checkers"]


def all_checkers() -> tuple[Checker, ...]:
    """Return one of each, for one run."""
    return (
        SingleWriter(),
        WriteAhead(),
        Lawful(),
        Ballots(),
        Outcomes(),
        Measured(),
        Pauses(),
        Budget(),
        Floors(),
        Flapping(),
        Chains(),
        Soundness(),
        Endings(),
        Convergence(),
        Liveness(),
        Expectations(),
    )
