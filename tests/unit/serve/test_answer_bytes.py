"""What is written piece by piece reads as what the model itself writes."""

from __future__ import annotations

import dataclasses
import json
from math import inf, nan

import pytest
from serve_world import NOW_MS, execution, grounds, idle, proposal, standing, state

from cachewarden.messages import ExecutionState
from cachewarden.models import CacheOptimizationRequest
from serve.answer_bytes import AnswerWriter
from serve.courses import Asked
from serve.decision import decide
from serve.docket import Docket

STATES = {
    "with a plan": state(standing=standing(proposal())),
    "without a plan": state(standing=idle()),
    "nothing observed": state(snapshots={}),
    "in flight": state(standing=standing(proposal()), executions=(execution(proposal(), ExecutionState.STEPPING),)),
    "denied": state(standing=standing(dataclasses.replace(proposal(), rationale=""))),
}


def answer(name: str, docket: Docket | None = None):
    request = CacheOptimizationRequest(service_name="constitutional_ai")
    asked = Asked(request=request, decision_id="d-1", caller='é"\u2028', apply="never")
    made = decide(asked, STATES[name], grounds(), NOW_MS, docket).response
    made.performance_metrics = {"decision_ms": 0.25, "nan": nan, "inf": inf, "tiny": -0.0, "huge": 1e22}
    return made


@pytest.mark.parametrize("name", STATES)
def test_the_text_says_what_the_model_says(name: str):
    writer = AnswerWriter()
    response = answer(name)
    for _ in range(2):
        assert json.loads(writer.write(response)) == json.loads(response.model_dump_json())


def test_what_was_told_of_one_plan_is_never_told_of_another():
    writer = AnswerWriter()
    for _ in range(600):
        for name in ("with a plan", "without a plan"):
            response = answer(name)
            assert json.loads(writer.write(response)) == json.loads(response.model_dump_json())
    assert 0 < len(writer._kept) <= 64


def test_shared_parts_are_written_once():
    known = grounds()
    docket = Docket(STATES["with a plan"], known)
    request = CacheOptimizationRequest(service_name="constitutional_ai")
    writer = AnswerWriter()
    kept = []
    for _ in range(3):
        asked = Asked(request=request, decision_id="d", caller="a", apply="never")
        writer.write(decide(asked, STATES["with a plan"], known, NOW_MS, docket).response)
        kept.append(len(writer._kept))
    assert kept[0] == kept[-1] == 2
