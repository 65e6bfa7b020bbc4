"""A checker that never fails proves nothing: each planted bug is found within its number of seeds."""

from __future__ import annotations

import pytest

from simulation.run import run_once
from simulation.scenario import load_scenario
from tests.simulation.mutants import MUTANTS


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_a_planted_bug_is_found(mutant, monkeypatch):
    mutant.patch(monkeypatch)
    scenario = load_scenario(mutant.scenario)
    broken = set()
    for seed in range(mutant.seeds):
        broken |= {v.checker for v in run_once(scenario, seed, mix=mutant.mix).violations}
        if broken & set(mutant.promises):
            return
    pytest.fail(f"{mutant.seeds} seeds have not found it; they have broken {sorted(broken) or 'nothing'}")
