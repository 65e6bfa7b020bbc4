"""Memory that was promised: measured, not measurable, and taken back where nothing came of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agents.execution_promises import freed_bytes, judge_promises, promises_seen
from agents.execution_run import Run
from agents.guardrails import Judgement, Ruling, promise_of
from agents.info_facts import facts_of_info
from cachewarden.baseline import Baseline
from cachewarden.estimate import Estimate
from cachewarden.observation import Capabilities, Observation, ProbeCost
from tests.unit.agents.actuator_world import RULE, SETTINGS, T0, proposal

MIB = 1024 * 1024
KEEP = Judgement(Ruling.KEEP, "as promised")


def info(used_mib, evicted=0, limit_mib=100):
    told = {"used_memory": used_mib * MIB, "evicted_keys": evicted, "maxmemory": limit_mib * MIB}
    return {"run_id": "a", **{name: str(value) for name, value in told.items()}}


def run_of(before, now, low_mib=10.0):
    wanted = proposal(rules=(RULE,), playbook="ttl_rule")
    promised = Estimate(20.0 * MIB, low_mib * MIB, 30.0 * MIB)
    wanted = replace(wanted, prediction=replace(wanted.prediction, freed_bytes=promised))
    run = Run(wanted, SETTINGS, promise_of(wanted, 0.5, None, SETTINGS, Baseline(), None), T0)
    run.seen = facts_of_info(before)
    run.last_look = Observation(
        service=wanted.service, at_ms=T0, info=now, latency_us={}, knobs={}, capabilities=Capabilities(),
        own_hits_total=0, own_misses_total=0, round_trip_us=None, cost=ProbeCost(),
    )  # fmt: skip
    return run


def ruled(run):
    return judge_promises(run, KEEP, more=False).ruling


def test_memory_that_came_back_is_measured_and_kept():
    run = run_of(info(80), info(68))
    assert freed_bytes(run) == 12 * MIB
    assert "not_measured" not in promises_seen(run)["memory"]
    assert ruled(run) is Ruling.KEEP


def test_less_than_half_of_the_promise_is_taken_back():
    assert ruled(run_of(info(80), info(76))) is Ruling.ROLL_BACK


@pytest.mark.parametrize("now", [info(80, evicted=5), info(100), info(96)])
def test_a_cache_that_evicts_or_is_full_is_not_measured_says_so_and_is_not_taken_back_for_it(now):
    run = run_of(info(80), now)
    assert freed_bytes(run) is None
    assert "taken up again" in promises_seen(run)["memory"]["not_measured"]
    assert ruled(run) is Ruling.KEEP


def test_a_cache_without_a_limit_is_never_full():
    assert freed_bytes(run_of(info(80, limit_mib=0), info(68, limit_mib=0))) == 12 * MIB


@pytest.mark.parametrize(("now_mib", "ruling"), [(79, Ruling.KEEP), (80, Ruling.ROLL_BACK), (82, Ruling.ROLL_BACK)])
def test_what_promised_no_certain_amount_is_taken_back_where_nothing_was_freed(now_mib, ruling):
    assert ruled(run_of(info(80), info(now_mib), low_mib=0.0)) is ruling
