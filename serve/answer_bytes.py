"""Answers of the decision route as JSON, where what many answers have in common is written once.

A plan and the findings of a verdict are nine tenths of an answer and the same for all requests on one state, as the
same objects (`docket.py`); written out for each request they would be a third of the decision's time. It decides
nothing. INVARIANT: what is read from the bytes is what would be read from those
that the model itself writes; a test holds the two equal.
"""

from __future__ import annotations

from typing import Any, Final

from pydantic_core import to_json

from cachewarden.models import CacheOptimizationResponse

__all__ = ["AnswerWriter"]

_KEPT_MAX: Final = 64
_PLAN, _COMPLIANCE, _FINDINGS = "optimization_plan", "constitutional_compliance", "checks"


class AnswerWriter:
    """Remembers the text of shared objects, which nobody may change once they were told. One per application."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[Any, bytes]] = {}
        """By the object's own address; the object is held, so that no other can take its place."""

    def write(self, response: CacheOptimizationResponse) -> bytes:
        """Return the answer, its long parts last."""
        said = response.__dict__.copy()
        plan = self._text(said.pop(_PLAN))
        compliance = said.pop(_COMPLIANCE).copy()
        findings = self._text(compliance.pop(_FINDINGS))
        return b'%b,"%b":%b,"%b":%b,"%b":%b}}' % (
            *(_json(said)[:-1], _PLAN_NAME, plan),
            *(_COMPLIANCE_NAME, _json(compliance)[:-1], _FINDINGS_NAME, findings),
        )

    def _text(self, value: Any) -> bytes:
        kept = self._kept.get(id(value))
        if kept is None:
            if len(self._kept) >= _KEPT_MAX:
                self._kept.clear()
            kept = self._kept[id(value)] = (value, _json(value))
        return kept[1]


_PLAN_NAME, _COMPLIANCE_NAME, _FINDINGS_NAME = _PLAN.encode(), _COMPLIANCE.encode(), _FINDINGS.encode()


def _json(value: Any) -> bytes:
    return to_json(value, inf_nan_mode="null")
