"""What tests of the specification derive from: the hash, a sample request, and the promises that every answer must keep.

It has no `__init__`, since pytest collects no class that has one. It asserts and never builds what it asserts on.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import httpx

from cachewarden.messages import CONSTITUTIONAL_HASH, AuditRecord
from cachewarden.models import CacheOptimizationRequest, CacheOptimizationResponse

__all__ = ["ConstitutionalTestCase"]

SPECIFIED_HASH = "cdd01ef066bc6cf2"
"""Written out once more on purpose: a test that compared the constant with itself could not fail."""


class ConstitutionalTestCase:
    """Derive test classes from it; `service_name` is the service that `sample_request` is about."""

    constitutional_hash = SPECIFIED_HASH
    service_name = "constitutional_ai"

    @property
    def sample_request(self) -> CacheOptimizationRequest:
        return CacheOptimizationRequest(service_name=self.service_name, constitutional_hash=self.constitutional_hash)

    def assert_carries_hash(self, message: Any) -> None:
        """Fail unless a message, a model, a record or a JSON object carries the hash of the specification."""
        found = (
            message.get("constitutional_hash")
            if isinstance(message, Mapping)
            else getattr(message, "constitutional_hash", None)
        )
        assert found == SPECIFIED_HASH, f"{type(message).__name__} carries {found!r}"

    def assert_decided_constitutionally(self, response: CacheOptimizationResponse) -> None:
        """Fail unless the answer has the hash, a reason, and findings that allow the plan.

        A change that is under way or in force was judged before it began; its verdict is in the journal.
        """
        self.assert_carries_hash(response)
        self.assert_carries_hash(response.constitutional_compliance)
        assert response.reason
        compliance = response.constitutional_compliance
        assert compliance["compliant"] is True
        assert compliance["constitution_digest"] not in ("", SPECIFIED_HASH)
        if compliance["judged"]:
            assert all(check["details"] and check["compliant"] for check in compliance["checks"])
        else:
            assert response.optimization_plan.opportunities == [] or response.state in ("in_flight", "in_force")

    def assert_verified(self, response: httpx.Response) -> None:
        """Fail unless an HTTP answer has both headers and, where its body is a JSON object, the hash in there."""
        assert response.headers["X-Constitutional-Hash"] == SPECIFIED_HASH
        assert response.headers["X-Constitutional-Compliance"] == "verified"
        if response.headers["content-type"].startswith("application/json") and isinstance(response.json(), dict):
            self.assert_carries_hash(response.json())

    def assert_audited(self, records: Iterable[AuditRecord], kind: str, subject_id: str | None = None) -> AuditRecord:
        """Return the newest record of that kind (and subject); fail where there is none or it lacks the hash."""
        found = [r for r in records if r.kind == kind and subject_id in (None, r.subject_id)]
        assert found, f"no `{kind}` was recorded"
        self.assert_carries_hash(found[-1])
        return found[-1]

    async def latencies_ms(self, ask: Callable[[], Awaitable[object]], times: int) -> list[float]:
        """Return how long each of `times` calls took, one after the other."""
        found = []
        for _ in range(times):
            started_s = time.perf_counter()
            await ask()
            found.append((time.perf_counter() - started_s) * 1000)
        return found


assert SPECIFIED_HASH == CONSTITUTIONAL_HASH, "the constant is not the hash of the specification"
