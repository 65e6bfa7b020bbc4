"""Whole runs: every scenario keeps every promise, the same seed gives the same trace, a failure is explained."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from simulation.__main__ import app
from simulation.report import as_json, failure_text
from simulation.run import run_once
from simulation.scenario import load_scenario, parse_scenario, scenario_files
from simulation.shrink import shrink
from tests.simulation.mutants import rollback_writes_nothing

ROOT = Path(__file__).resolve().parent.parent.parent
CALM = "two-caches-on-a-calm-day"
RUN = (
    "from simulation.run import run_once; from simulation.scenario import load_scenario; "
    "print(run_once(load_scenario('default'), 11).trace)"
)
FOUND = (5, 19, 151)
"""Seeds of the default scenario that have found a bug once."""


@pytest.mark.parametrize("name", [name for name in scenario_files() if name != "default"])
def test_every_promise_holds_in_every_scenario(name):
    outcome = run_once(load_scenario(name), 0)
    assert outcome.ok, failure_text(outcome)


@pytest.mark.parametrize("seed", [*range(4), *FOUND])
def test_every_promise_holds_in_bad_hours(seed):
    outcome = run_once(load_scenario("default"), seed)
    assert outcome.ok, failure_text(outcome)


def test_the_same_seed_gives_the_same_trace_in_another_process_with_another_hash_seed():
    traces = [
        subprocess.run(
            [sys.executable, "-c", RUN],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for hash_seed in ("1", "4711")
    ]
    assert traces[0] == traces[1] == run_once(load_scenario("default"), 11).trace


def test_another_seed_gives_another_trace():
    scenario = load_scenario(CALM)
    assert run_once(scenario, 1).trace != run_once(scenario, 2).trace


def test_a_failure_is_shrunk_to_the_faults_that_it_needs_and_told_so_that_it_can_be_repeated(monkeypatch):
    rollback_writes_nothing(monkeypatch)
    scenario = load_scenario("default")
    failed = next(o for seed in range(10) if not (o := run_once(scenario, seed, mix="people")).ok)
    shortest = shrink(scenario, failed, runs_max=25)
    assert len(shortest.faults) < len(failed.faults)
    assert not shortest.ok
    told = failure_text(shortest, before=len(failed.faults))
    assert "outcomes" in told
    assert f"--seed {failed.seed}" in told
    assert run_once(scenario, failed.seed, faults=shortest.faults).violations == shortest.violations


def test_a_scenario_of_ones_own_runs_from_its_file_and_the_exit_code_says_how(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("name: own\nminutes: 5\nquiet_minutes: 1\nservices:\n  - {name: pages}\nexpect: {kept_min: 1}\n")
    ran = CliRunner().invoke(app, ["--scenario", str(own), "--json"])
    assert ran.exit_code == 0, ran.output
    own.write_text("name: own\nminutes: 5\nquiet_minutes: 1\nservices:\n  - {name: pages}\nexpect: {kept_max: 0}\n")
    failed = CliRunner().invoke(app, ["--scenario", str(own), "--no-shrink"])
    assert failed.exit_code == 1
    assert "expected at most 0" in failed.output
    own.write_text("name: own\nservices:\n  - {name: pages, size: 3}\n")
    wrong = CliRunner().invoke(app, ["--scenario", str(own)])
    assert wrong.exit_code == 2
    assert "own.yaml:3" in wrong.output.replace("\n", "")


def test_a_report_is_written_and_a_failure_does_not_end_a_run_that_is_to_keep_going(tmp_path):
    own, page = tmp_path / "own.yaml", tmp_path / "out.html"
    own.write_text("name: own\nminutes: 2\nquiet_minutes: 1\nservices:\n  - {name: pages}\nexpect: {kept_min: 99}\n")
    options = ["--scenario", str(own), "--seeds", "3", "--jobs", "1", "--no-shrink", "--json", "--report", str(page)]
    ran = CliRunner().invoke(app, [*options, "--keep-going"])
    assert ran.exit_code == 1, ran.output
    assert sum(line.startswith("{") for line in ran.output.splitlines()) == 3
    assert page.read_text().count("<svg") == 12
    assert "expectations broken" in page.read_text()
    nowhere = CliRunner().invoke(app, ["--scenario", str(own), "--report", str(tmp_path / "no" / "where.html")])
    assert nowhere.exit_code == 2


def test_an_outcome_is_plain_data_for_programs():
    outcome = run_once(parse_scenario("name: own\nminutes: 2\nquiet_minutes: 0\nservices: [{name: pages}]\n"), 3)
    told = as_json(outcome)
    assert told["ok"]
    assert told["trace"] == outcome.trace
    assert told["counts"]["events"] > 0


def test_what_is_to_be_run_again_is_what_was_asked_for(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("name: own\nminutes: 5\nquiet_minutes: 1\nservices:\n  - {name: pages}\nexpect: {kept_max: 0}\n")
    asked = ["--scenario", str(own), "--faults", "none", "--minutes", "3"]
    failed = CliRunner().invoke(app, [*asked, "--seed", "2", "--no-shrink"])
    assert failed.exit_code == 1
    assert f"python -m simulation {' '.join(asked[:2])} --minutes 3 --faults none --seed 2" in failed.output


def test_when_garbage_is_collected_changes_nothing():
    kept = gc.get_threshold()
    try:
        gc.disable()
        without = run_once(load_scenario("peers-of-every-kind"), 4, mix="crashes").trace
        gc.enable()
        gc.set_threshold(50, 2, 2)
        assert run_once(load_scenario("peers-of-every-kind"), 4, mix="crashes").trace == without
    finally:
        gc.set_threshold(*kept)
        gc.enable()
