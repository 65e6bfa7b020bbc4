"""Warming of long lists: one job per service at a time, with progress that any replica can tell, and an end by request.

A job goes through its list part by part (`serve.warming`), each recorded before and after. How it stands is kept on the
journal's server, without names of keys: outcomes are told by the place of a key in the list. A job ends early when
somebody cancels it, changes are paused, the service's mode forbids it, or the journal is gone.

INVARIANT: a replica holds the names of at most `JOBS_MAX` lists; what was not reached has no outcome.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import structlog

from cachewarden.errors import OperatingError
from cachewarden.messages import Mode
from coordination.warm_rules import KeyOutcome, WarmCourse, WarmOutcome
from serve.backend import Backend
from serve.telemetry import Telemetry
from serve.warming import PART_KEYS, Operation, warm_part

__all__ = ["JOBS_MAX", "LOST_MS", "WarmDesk", "WarmDeskFull", "WarmJob", "outcome_of"]

JOBS_MAX: Final = 4
LOST_MS: Final = 30_000
"""Without a sign of life for so long, the replica that ran it is gone."""
_TELL_S: Final = 0.5
_REASONS_MAX: Final = 250

log = structlog.get_logger("serve.warm_jobs")


class WarmDeskFull(Exception):
    """This replica runs as many jobs as it may."""


@dataclass(slots=True, kw_only=True)
class WarmJob:
    """State of one job; `state` is running, finished, cancelled or stopped. `codes`: (outcome, reason) by number."""

    operation: Operation
    total: int
    began_ms: int
    state: str = "running"
    reason: str = ""
    done: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    codes: dict[tuple[str, str], int] = field(default_factory=dict)
    cancelled: bool = False
    reached: int = 0
    """Keys whose outcome is written down, in the order asked."""

    def note(self, outcome: KeyOutcome) -> None:
        """Count one key."""
        self.done += 1
        self.counts[outcome.outcome.value] += 1

    def code(self, outcome: KeyOutcome) -> int:
        """Return the number of an outcome with its reason, 1..255; rare reasons beyond the bound share one."""
        key = (outcome.outcome.value, outcome.reason)
        if key not in self.codes and len(self.codes) >= _REASONS_MAX:
            key = (outcome.outcome.value, "one of many reasons")
        # 0 is what a part that could not be written down reads as.
        return self.codes.setdefault(key, len(self.codes) + 1)

    def status(self, now_ms: int) -> str:
        """Return what is told of it, as JSON."""
        shown = {
            "job_id": self.operation.operation_id,
            "service": self.operation.service,
            "caller": self.operation.caller,
            "state": self.state,
            "reason": self.reason,
            "total": self.total,
            "done": self.done,
            "reached": self.reached,
            "counts": dict(self.counts),
            "codes": list(self.codes),
            "began_ms": self.began_ms,
            "updated_ms": now_ms,
        }
        return json.dumps(shown)


def outcome_of(status: dict[str, Any], code: int) -> tuple[str, str]:
    """Return (outcome, reason) that a byte of the outcomes stands for."""
    codes = status.get("codes", [])
    return tuple(codes[code - 1]) if 0 < code <= len(codes) else (WarmOutcome.FAILED.value, "its outcome was not kept")


class WarmDesk:
    """The jobs of one replica; one per application, in one event loop."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def begin(
        self, backend: Backend, telemetry: Telemetry, operation: Operation, keys: Sequence[str]
    ) -> str | None:
        """Start a job; returns None, or the id of the one that the service has already.

        Raises WarmDeskFull, and an OperatingError where its state cannot be kept.
        """
        if len(self._tasks) >= JOBS_MAX:
            raise WarmDeskFull
        job = WarmJob(operation=operation, total=len(keys), began_ms=backend.now_ms())
        # Holds its place from here on, before anything is awaited.
        begun: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._run(backend, telemetry, job, list(keys), begun))
        self._tasks[operation.operation_id] = task
        task.add_done_callback(lambda _: self._tasks.pop(operation.operation_id, None))
        try:
            holder = await backend.warm_jobs.begin(
                operation.operation_id, operation.service, job.status(backend.now_ms())
            )
        except BaseException:
            begun.set_result(False)
            raise
        begun.set_result(holder == operation.operation_id)
        return None if holder == operation.operation_id else holder

    async def close(self) -> None:
        """End all jobs where they stand."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(
        self, backend: Backend, telemetry: Telemetry, job: WarmJob, keys: list[str], begun: asyncio.Future[bool]
    ) -> None:
        if not await begun:
            return
        telling = asyncio.create_task(self._tell_on(backend, job))
        try:
            await self._all_parts(backend, telemetry, job, keys)
            job.state = "finished" if not job.reason else "cancelled" if job.cancelled else "stopped"
        except OperatingError as error:
            job.state, job.reason = (
                "stopped",
                f"{type(error).__name__}: {getattr(error, 'public_reason', 'see the log')}",
            )
            log.warning("a warming job stopped", job=job.operation.operation_id, reason=str(error))
        except Exception as error:
            job.state, job.reason = "stopped", f"a bug of ours ({type(error).__name__}), the log has it"
            log.exception("a warming job failed", job=job.operation.operation_id)
        except asyncio.CancelledError:
            job.state, job.reason = "stopped", "this replica of the API ended"
            raise
        finally:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)
            await asyncio.shield(self._tell(backend, job, b""))

    async def _all_parts(self, backend: Backend, telemetry: Telemetry, job: WarmJob, keys: list[str]) -> None:
        def stop() -> bool:
            job.reason = job.reason or self._why_stop(backend, job)
            return bool(job.reason)

        course = WarmCourse(patient=True, stop=stop, noted=job.note)
        for part, start in enumerate(range(0, len(keys), PART_KEYS)):
            await backend.state()
            if stop():
                return
            report = await warm_part(backend, job.operation, keys[start : start + PART_KEYS], course, part)
            telemetry.warmed(report.counts())
            outcomes = bytes(job.code(outcome) for outcome in report.keys)
            place, job.reached = job.reached, job.reached + len(outcomes)
            await self._tell(backend, job, outcomes, place)

    def _why_stop(self, backend: Backend, job: WarmJob) -> str:
        if job.cancelled:
            return "cancelled"
        problem = backend.contact_problem()
        if problem is not None:
            return problem
        state = backend.newest_state()
        if state is not None and state.paused:
            return f"changes are paused: {state.pause_reason}"
        mode = backend.fleet.service(job.operation.service).mode
        if mode in (Mode.OFF, Mode.ADVISE):
            return f"`{job.operation.service}` is in mode `{mode.value}` now"
        return ""

    async def _tell_on(self, backend: Backend, job: WarmJob) -> None:
        while True:
            await asyncio.sleep(_TELL_S)
            await self._tell(backend, job, b"")

    async def _tell(self, backend: Backend, job: WarmJob, outcomes: bytes, place: int = 0) -> None:
        ended = job.state != "running"
        operation = job.operation
        try:
            status = job.status(backend.now_ms())
            wanted = await backend.warm_jobs.tell(
                operation.operation_id, operation.service, status, outcomes, place=place, ended=ended
            )
        except OperatingError as error:
            # Its progress cannot be told for the moment; the journal has the outcomes, and stops the job if it is gone.
            log.warning("a warming job cannot tell how it stands", job=operation.operation_id, reason=str(error))
            return
        job.cancelled = job.cancelled or wanted
