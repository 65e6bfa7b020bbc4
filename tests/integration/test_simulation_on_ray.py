"""Seeds spread over a Ray of our own: the same outcomes as in this process, and nothing left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from simulation.run import run_once
from simulation.scenario import load_scenario
from tests.integration.world import ROOT

pytestmark = [pytest.mark.ray, pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(300)]

OWN = "name: own\nminutes: 4\nquiet_minutes: 1\nservices:\n  - {name: pages}\n  - {name: sessions}\nmix: network\n"


def simulate(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "simulation", *options],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_a_run_on_ray_has_the_trace_that_it_has_here(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text(OWN)
    ran = simulate("--scenario", str(own), "--seeds", "2", "--ray", "local", "--json")
    assert ran.returncode == 0, ran.stderr
    told = {found["seed"]: found["trace"] for found in map(json.loads, ran.stdout.splitlines())}
    assert told == {seed: run_once(load_scenario(str(own)), seed).trace for seed in range(2)}


def test_a_ray_that_is_not_there_is_told_in_words():
    ran = simulate("--seeds", "2", "--ray", "127.0.0.1:1")
    assert ran.returncode == 2, ran.stderr
    assert "`127.0.0.1:1`" in ran.stderr + ran.stdout
    assert "Traceback" not in ran.stderr
