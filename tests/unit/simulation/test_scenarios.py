"""Scenario files: what loads, and what is said of what does not."""

from __future__ import annotations

import pytest

from simulation.durations import parse_duration_ms, words_of_ms
from simulation.fault_words import WORDS
from simulation.faults import ACTS
from simulation.mixes import MIXES, draw_faults
from simulation.run import checkers_of
from simulation.scenario import ScenarioError, load_scenario, parse_scenario, scenario_files

SMALL = """name: small
services:
  - {name: pages}
faults:
"""


@pytest.mark.parametrize("name", scenario_files())
def test_each_scenario_that_comes_with_the_project_loads_and_bears_the_name_of_its_file(name):
    scenario = load_scenario(name)
    assert scenario.name == name
    assert scenario.about
    assert checkers_of(scenario)


def test_every_word_of_the_vocabulary_does_something():
    assert set(ACTS) == set(WORDS)


@pytest.mark.parametrize("mix", MIXES)
def test_a_mix_draws_the_same_faults_from_the_same_seed_and_others_from_another(mix):
    scenario = load_scenario("default")
    drawn = draw_faults(scenario, 5, mix)
    assert drawn == draw_faults(scenario, 5, mix)
    assert mix == "none" or drawn != draw_faults(scenario, 6, mix)
    assert [f.at_ms for f in drawn] == sorted(f.at_ms for f in drawn)
    for fault in drawn:
        fault.check_names(("pages", "sessions", "search"), 1, 2)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{at: 1m, fault: meteor}", "there is no such fault, known are"),
        ("{at: 1m, fault: crash_node, on: a-1}", "needs `for`"),
        ("{at: 1m, fault: evict_fence, on: pages, for: 2s}", "leave out `for`"),
        ("{at: 1m, fault: evict_fence}", "needs `on` (a service)"),
        ("{at: 1m, fault: evict_fence, on: carts}", "is on `carts`, known here are: pages"),
        ("{at: 1m, fault: pause_node, on: b-1, for: 1s}", "is on `b-1`, known here are: a-1, a-2"),
        ("{at: 1m, fault: cut, on: a-1, for: 1s}", "as `from>to`"),
        ("{at: 1m, fault: clock_jump, on: a-1, value: soon}", "must be a number, got `soon`"),
        ("{at: 90, fault: evict_fence, on: pages}", "write a time as"),
        ("{at: 3h, fault: evict_fence, on: pages}", "after the `minutes` of the scenario are over"),
    ],
)
def test_a_fault_that_cannot_be_is_refused_with_its_line_and_the_way_out(line, said):
    with pytest.raises(ScenarioError) as refused:
        parse_scenario(f"{SMALL}  - {line}\n")
    assert said in str(refused.value)
    assert "scenario.yaml:" in str(refused.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: x\nservices:\n  - {name: pages, maxmemry: 3mb}\n", "scenario.yaml:3: `services.0.maxmemry`"),
        ("name: x\nservices:\n  - {name: pages, eviction_policy: lru}\n", "eviction"),
        ("name: x\nsettings: {cycle: 1}\nservices: [{name: pages}]\n", "`cycle` is no setting"),
        ("name: x\nsettings: {lease_ttl_ms: 1}\nservices: [{name: pages}]\n", "setting `lease_ttl_ms`"),
        ("name: x\nknown_broken: {budget: so}\nservices: [{name: pages}]\n", "needs a reason"),
        ("name: x\ntotal_memory: 1mb\nservices: [{name: pages}]\n", "minimum sizes"),
    ],
)
def test_a_scenario_that_cannot_be_run_is_refused(text, said):
    with pytest.raises(ScenarioError, match=r"scenario\.yaml") as refused:
        parse_scenario(text)
    assert said in str(refused.value)


def test_a_promise_that_does_not_exist_cannot_be_known_to_be_broken():
    scenario = parse_scenario(
        SMALL.removesuffix("faults:\n") + "known_broken: {luck: there was never such a promise}\n"
    )
    with pytest.raises(ScenarioError, match="no promise `luck`"):
        checkers_of(scenario)


def test_a_scenario_that_is_not_there_names_those_that_are():
    with pytest.raises(ScenarioError, match=r"known are: .*default"):
        load_scenario("nowhere")


@pytest.mark.parametrize(("text", "ms"), [("500ms", 500), ("1.5s", 1_500), ("3m", 180_000), ("2h", 7_200_000)])
def test_times_are_read_as_people_write_them(text, ms):
    assert parse_duration_ms(text) == ms


def test_times_are_told_as_people_read_them():
    assert words_of_ms(3_723_456) == "1:02:03.456"
