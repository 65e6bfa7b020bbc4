"""What is drawn of a run, and what the checkers say of a journal that was really written."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

import pytest

from simulation.faults import schedule
from simulation.html_report import page_of
from simulation.judging import judge_journal
from simulation.mixes import draw_faults
from simulation.run import run_once
from simulation.scenario import parse_scenario
from simulation.world import World, default_constitution

SHORT = """
name: short
minutes: 6
quiet_minutes: 4
services:
  - {name: pages, maxmemory: 12mb, eviction_policy: noeviction}
  - {name: a, maxmemory: 6mb, eviction_policy: allkeys-lru}
faults:
  - {at: 2m, fault: kill_agent, on: planner, for: 1s}
"""


@pytest.fixture(scope="module")
def world() -> World:
    scenario = parse_scenario(SHORT)
    made = World(scenario, 3, constitution=default_constitution())
    schedule(made, draw_faults(scenario, 3))
    made.run()
    return made


def test_a_run_that_is_recorded_has_the_same_trace_and_a_page_that_is_well_formed():
    scenario = parse_scenario(SHORT)
    plain, recorded = run_once(scenario, 3), run_once(scenario, 3, record=True)
    assert plain.trace == recorded.trace
    seen = recorded.recording
    assert seen is not None
    assert len(seen.at_ms) == len(seen.messages) == len(seen.hit_ratio["pages"]) == 60
    assert {what for _, _, what in seen.decisions} >= {"begun", "kept"}
    assert [fault for _, fault in seen.faults] == ["kill agent planner for 0:01.000"]
    page = page_of([recorded, plain])
    body = page.partition("<h1>")[2]
    drawn = [part.partition("</svg>")[0] for part in body.split("<svg")[1:]]
    assert len(drawn) == 4
    for part in drawn:
        ElementTree.fromstring(f"<svg{part}</svg>")
    assert "http" not in page


def test_the_checkers_find_nothing_in_a_journal_that_is_sound(world):
    assert judge_journal(world.servers.journal.records, world.fleet, world.settings) == ()


def test_the_checkers_find_what_is_wrong_with_a_journal(world):
    records = world.servers.journal.records

    def broken(changed) -> set[str]:
        return {v.checker for v in judge_journal(changed, world.fleet, world.settings)}

    assert "lawful" in broken([r for r in records if r.kind != "judged"])
    assert "chain" in broken([*records[:5], *records[6:]])
    assert "endings" in broken([r for r in records if r.kind not in ("change_kept", "change_rolled_back")])
    assert "measured" in broken([r for r in records if r.kind != "observed"])
    first = next(n for n, r in enumerate(records) if r.kind == "change_kept")
    twice = [*records, replace(records[first], kind="change_abandoned", seq=records[-1].seq + 1)]
    assert "endings" in broken(twice)
