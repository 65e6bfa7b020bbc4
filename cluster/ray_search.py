"""A search whose evaluations run as Ray tasks, one CPU each, on whatever nodes there are.

The sample of a rung goes into the object store once; a task gets a reference to it and one evaluation. It decides
nothing: `cachemodel.search` says what to evaluate and what follows. Findings are those of the same evaluation in this
process, bit for bit, since an evaluation draws no numbers but from its own seed.

INVARIANT: no more than `in_flight` tasks at once; after the deadline no task of the search is left running.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from time import monotonic
from typing import Any, TypeVar

import ray

from cachewarden.cachemodel.search import Evaluation, Evaluator, Finding, Search, SearchOutcome

__all__ = ["run_search_on_ray"]

C = TypeVar("C", bound=Hashable)

_log = logging.getLogger("cluster.ray_search")


def run_search_on_ray(
    search: Search[C],
    evaluator_at: Callable[[float, C], Evaluator[C]],
    *,
    deadline_s: float,
    in_flight: int | None = None,
) -> SearchOutcome[C]:
    """Run a search to its end or to the deadline, on the Ray that this process has joined.

    `in_flight` None: as many tasks as the Ray cluster has CPUs. A task whose process died is done again twice by Ray;
    then, or when it raises, its candidate is left out of the search with the reason.
    """
    ends = monotonic() + deadline_s
    limit = in_flight or max(1, int(ray.cluster_resources().get("CPU", 1)))
    task = ray.remote(num_cpus=1, max_retries=2)(_evaluate)
    while batch := search.next_batch():
        if monotonic() >= ends:
            search.stop(f"the deadline of {deadline_s:g} s has passed")
            break
        evaluator = ray.put(evaluator_at(batch[0].share, batch[0].baseline))
        if not _run_batch(search, task, evaluator, batch, limit, ends):
            search.stop(f"the deadline of {deadline_s:g} s has passed")
    return search.outcome()


def _run_batch(
    search: Search[C], task: Any, evaluator: Any, batch: Sequence[Evaluation[C]], limit: int, ends: float
) -> bool:
    """Evaluate a batch and tell the search all of it together; False if the deadline came first, then what is known is
    told.
    """
    waiting = list(batch)
    running: dict[Any, Evaluation[C]] = {}
    findings: list[Finding[C]] = []
    try:
        while waiting or running:
            while waiting and len(running) < limit:
                evaluation = waiting.pop(0)
                running[task.remote(evaluator, evaluation)] = evaluation
            done, _ = ray.wait(list(running), num_returns=1, timeout=max(0.0, ends - monotonic()))
            if not done:
                return False
            findings += [_finding(reference, running.pop(reference)) for reference in done]
        return True
    finally:
        for reference in running:
            # A replay does not look up from its work, so its process has to go.
            ray.cancel(reference, force=True)
        search.told(findings)


def _finding(reference: Any, evaluation: Evaluation[C]) -> Finding[C]:
    try:
        found: Finding[C] = ray.get(reference)
    except ray.exceptions.RayError as error:
        _log.warning("evaluation of %s failed: %s", evaluation.candidate, error)
        return Finding(evaluation, None, f"the task that should evaluate it failed: {type(error).__name__}")
    return found


def _evaluate(evaluator: Evaluator[C], evaluation: Evaluation[C]) -> Finding[C]:
    return evaluator(evaluation)
