"""The search over configurations for a trace: candidates around one of now, judged by replay of a sample of its keys.

It applies nothing. The sample on a lower rung is a spatial sample of the sample, so rungs nest. INVARIANT: the same
trace, configuration of now and options give the same outcome, wherever the evaluations ran.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from cachewarden.cachemodel.candidates import SearchSpace, candidates_around
from cachewarden.cachemodel.replay_study import Outcome, ReplayCandidate, ReplayStudy
from cachewarden.cachemodel.search import Evaluation, Evaluator, Finding, Search
from cachewarden.cachemodel.trace_files import TraceFile

__all__ = ["StudyEvaluator", "TraceSearch"]

KEYS_LEAST = 500
"""Sampled keys below which a rung says too little: the error of a hit ratio is then 2.5 points and that of a difference
about one."""

_KEYS_MIN = 200
"""Sampled keys below which not even the intervals are to be trusted."""


@dataclass(frozen=True, slots=True, eq=False)
class StudyEvaluator:
    """Judges candidates on one rung. Goes to other processes as it is; the baseline is replayed before, not in each."""

    study: ReplayStudy

    def __call__(self, evaluation: Evaluation[ReplayCandidate]) -> Finding[ReplayCandidate]:
        """Return the paired difference to the baseline, or that too few keys were sampled for any."""
        keys = self.study.sampled_keys
        if self.study.rate < 1.0 and keys < _KEYS_MIN:
            return Finding(evaluation, None, f"the sample holds only {keys} keys, at least {_KEYS_MIN} are needed")
        return Finding(evaluation, self.study.difference(evaluation.candidate, evaluation.baseline))


class TraceSearch:
    """One trace under search: the study of all that was kept of it, what is tried, and the evaluator of each rung."""

    def __init__(
        self,
        file: TraceFile,
        now: ReplayCandidate,
        space: SearchSpace,
        *,
        at: Callable[[int], int] | None = None,
        sizes: Sequence[Callable[[int], int]] = (),
        entry_bytes: int | None = None,
        warm_up: float = 0.0,
        seed: int = 1,
        budget_accesses: int,
        minimum_gain: float = 0.005,
    ) -> None:
        """`at` gives the memory now and `sizes` further ones to try, each from what all keys take; without `at` that of
        `now`. Other arguments as in `ReplayStudy` and `Search`, which raise ValueError for what is out of range.
        """
        self.study = ReplayStudy(file, entry_bytes=entry_bytes, warm_up=warm_up, seed=seed)
        whole = self.study.footprint_bytes
        now = now if at is None else replace(now, capacity_bytes=at(whole))
        self._file = file
        self._warm_up = warm_up
        self._seed = seed
        self._studies: dict[float, ReplayStudy] = {1.0: self.study}
        self.now: Outcome = self.study.outcome(now)
        """What the configuration of now gives."""
        self.turnover_ms = self._turnover_ms()
        """Time in which the whole content is exchanged; None where nothing is evicted."""
        sized = [now, *(replace(now, capacity_bytes=size(whole)) for size in sizes)]
        found = [c for one in sized for c in candidates_around(one, space, self.turnover_ms)]
        self.search = Search(
            tuple(dict.fromkeys(found)),
            accesses=len(file.trace),
            budget_accesses=budget_accesses,
            minimum_gain=minimum_gain,
            least_share=min(1.0, KEYS_LEAST / self.study.sampled_keys),
            name=lambda candidate: candidate.name,
        )

    def evaluator_at(self, share: float, baseline: ReplayCandidate) -> Evaluator[ReplayCandidate]:
        """Return what judges on a share (0..1] of the sample; the baseline is replayed here."""
        study = self._studies.get(share)
        if study is None:
            rate = self._file.sampling_rate * share
            thinned = replace(self._file, trace=self._file.trace.thin(rate), sampling_rate=rate)
            entry_bytes = None if self.study.in_keys else self.study.entry_bytes
            study = ReplayStudy(thinned, entry_bytes=entry_bytes, warm_up=self._warm_up, seed=self._seed)
            # Another rung never comes back to an earlier share; each holds a copy of its sample.
            self._studies = {1.0: self.study, share: study}
        study.outcome(baseline)
        return StudyEvaluator(study)

    def _turnover_ms(self) -> float | None:
        """Return how long it takes until misses have pushed out as many keys as are resident."""
        outcome = self.now
        evicts = outcome.evicted > 0.0
        seconds = self._file.trace.duration_ms * (1.0 - self._warm_up) / 1000.0
        loads_per_s = self._file.reads_from(self._from_ms()) * outcome.miss_ratio / max(seconds, 1e-9)
        return 1000.0 * outcome.resident_keys / loads_per_s if evicts and loads_per_s > 0 else None

    def _from_ms(self) -> int:
        trace = self._file.trace
        return int(trace.time_ms[0]) + round(trace.duration_ms * self._warm_up)
