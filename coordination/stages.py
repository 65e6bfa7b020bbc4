"""The stages of one cycle: which agent is asked in each, and for how long its answer is waited for.

Plain data. INVARIANT: every stage has an agent and a deadline.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = ["AGENT_OF_STAGE", "STAGE_DEADLINE_MS"]

AGENT_OF_STAGE: Final[Mapping[str, str]] = {
    "observing": "collector",
    "planning": "planner",
    "judging": "validator",
    "settling": "consensus",
}
STAGE_DEADLINE_MS: Final[Mapping[str, int]] = {
    "observing": 20_000,
    "planning": 60_000,
    "judging": 10_000,
    "settling": 10_000,
}
