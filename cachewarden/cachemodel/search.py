"""Which of many configurations is worth a change: what to evaluate next, whom to drop, when to stop, and why.

It evaluates nothing itself. `next_batch` says what to evaluate, on which share of the sample; whoever runs it (a loop,
tasks on many machines, a simulator) hands the findings to `told`. Where all of it fits into the budget every candidate
is evaluated on the whole sample; else by successive halving (Jamieson and Talwalkar, AISTATS'16): all of them on a
small share, the better half on twice as much, and so on. Whoever lies below the best by its whole interval is dropped
at once, and the search ends when that holds for all others. A gain is that over the first candidate, which is the
configuration of now, so no change is one of the candidates and wins wherever the gain may be smaller than wanted.

INVARIANT: the same candidates, budget and findings give the same outcome, in whatever order the findings of a batch
come; a change is only concluded where the whole interval of its gain lies above the minimum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from cachewarden.estimate import Estimate

__all__ = ["Conclusion", "Evaluation", "Evaluator", "Finding", "Search", "SearchOutcome", "Trail", "run_search"]

C = TypeVar("C", bound=Hashable)

_KEPT_SHARE = 2
"""One in so many goes on to the next rung."""
_INDIFFERENCE = 0.001
"""Hit ratio by which candidates must differ to be told apart at all: less than the dice of a server's eviction make."""
_GROWTH_MIN = 1.25
"""A rung on hardly more of the sample than the one before would tell nothing new."""


class Conclusion(StrEnum):
    """What a search has found."""

    CHANGE = "change"
    NO_CHANGE = "no change"
    NOT_ENOUGH_EVIDENCE = "not enough evidence"


@dataclass(frozen=True, slots=True)
class Evaluation(Generic[C]):
    """Evaluate `candidate` against `baseline` on a spatial share (0..1] of the sample; `number` its place in the
    order of the candidates.
    """

    number: int
    candidate: C
    baseline: C
    share: float


@dataclass(frozen=True, slots=True)
class Finding(Generic[C]):
    """The hit ratio gained over the baseline (-1..1) with its 90 % interval, or None and the reason."""

    evaluation: Evaluation[C]
    gain: Estimate | None
    reason: str = ""


Evaluator = Callable[[Evaluation[C]], Finding[C]]
"""A pure function of one rung: any process that has it gives the same finding."""


@dataclass(frozen=True, slots=True)
class Trail(Generic[C]):
    """What became of one candidate: the share of the sample that it was last evaluated on (0 = never), what was found
    there, and in words why it was dropped or taken.
    """

    candidate: C
    share: float
    gain: Estimate | None
    fate: str


@dataclass(frozen=True, slots=True)
class SearchOutcome(Generic[C]):
    """`best` is the configuration to have, which is the one of now unless `conclusion` is CHANGE; `gain` what `best`
    gives over it. `trail` in the order of the candidates; `accesses` asked to be replayed in all.
    """

    conclusion: Conclusion
    best: C
    gain: Estimate
    reason: str
    trail: tuple[Trail[C], ...]
    exhaustive: bool
    accesses: int


@dataclass(slots=True)
class _Standing(Generic[C]):
    """One candidate under way."""

    number: int
    candidate: C
    handicap: float
    share: float = 0.0
    gain: Estimate | None = None
    fate: str = ""

    @property
    def worth(self) -> float:
        return -math.inf if self.gain is None else self.gain.value - self.handicap


class Search(Generic[C]):
    """One search, to be asked and told in turn until `next_batch` is empty."""

    def __init__(
        self,
        candidates: Sequence[C],
        *,
        accesses: int,
        budget_accesses: int,
        minimum_gain: float = 0.005,
        least_share: float = 0.0,
        handicap: Callable[[C], float] | None = None,
        name: Callable[[C], str] = str,
    ) -> None:
        """The first candidate is the configuration of now; later ones come in the order of preference.

        `accesses` in the whole sample, of which `budget_accesses` may be replayed in all. `minimum_gain` 0..1: what
        a change must surely give. `least_share` (0..1]: below it a share of the sample says too little. `handicap`
        0..1: by how much a candidate must beat others to be taken. `name` says a candidate in words. Raises ValueError
        for values out of range, no candidates, or one that comes twice.
        """
        if not candidates or len(set(candidates)) != len(candidates):
            raise ValueError("candidates must be given, each once, the configuration of now first")
        if accesses < 1 or budget_accesses < 1:
            raise ValueError(f"a sample of `{accesses}` and a budget of `{budget_accesses}` accesses evaluate nothing")
        if not 0.0 <= minimum_gain <= 1.0 or not 0.0 <= least_share <= 1.0:
            raise ValueError("the minimum gain and the least share must lie within 0 to 1")
        self._now = candidates[0]
        self._accesses = accesses
        self._minimum_gain = minimum_gain
        self._name = name
        others = enumerate(candidates[1:], 1)
        self._all = [_Standing(i, c, 0.0 if handicap is None else handicap(c)) for i, c in others]
        self._left = list(self._all)
        self._budget = budget_accesses
        self._least_share = least_share
        self.exhaustive = (len(self._all) + 1) * accesses <= budget_accesses
        """Whether every candidate is evaluated on the whole sample."""
        self._asked: dict[int, Evaluation[C]] = {}
        self._replayed = 0
        self._ended = "" if self._all else "there is no other configuration to try"

    def next_batch(self) -> tuple[Evaluation[C], ...]:
        """Return what to evaluate now, in any order and side by side; empty when the search has ended."""
        if self._asked:
            return tuple(self._asked.values())
        if self._ended:
            return ()
        share = self._next_share()
        self._asked = {one.number: Evaluation(one.number, one.candidate, self._now, share) for one in self._left}
        # The configuration of now is replayed once a rung, for all.
        self._replayed += round((len(self._left) + 1) * self._accesses * share)
        return tuple(self._asked.values())

    def _next_share(self) -> float:
        """Return the share of the sample for the next rung: all of it if the budget allows, else so much that every
        halving still to come costs about the same.
        """
        whole = (len(self._left) + 1) * self._accesses
        left = self._budget - self._replayed
        if whole <= left:
            return 1.0
        rungs = max(1, math.ceil(math.log2(len(self._left))))
        return min(1.0, max(self._least_share, left / (rungs * whole)))

    def told(self, findings: Iterable[Finding[C]]) -> None:
        """Take findings of the last batch, all or some of them. Raises ValueError for one that was not asked for."""
        known = {one.number: one for one in self._left}
        for finding in sorted(findings, key=lambda f: f.evaluation.number):
            number = finding.evaluation.number
            if self._asked.get(number) != finding.evaluation:
                raise ValueError(f"a finding about `{finding.evaluation.candidate}` was not asked for, or came twice")
            del self._asked[number]
            standing = known[number]
            standing.share = finding.evaluation.share
            if finding.gain is None:
                standing.gain, standing.fate = None, finding.reason or "could not be evaluated, without a reason"
                self._left.remove(standing)
            else:
                standing.gain = finding.gain
        if not self._asked:
            self._drop()

    def stop(self, reason: str) -> None:
        """End the search where it stands, for example at a deadline; what was found so far decides."""
        for number in self._asked:
            standing = self._all[number - 1]
            standing.fate = (
                f"not evaluated{f' further than on {standing.share:.3g}' if standing.share else ''}: {reason}"
            )
            if standing.gain is None:
                self._left.remove(standing)
        self._asked = {}
        self._ended = self._ended or reason

    def outcome(self) -> SearchOutcome[C]:
        """Return what follows from all that was told; raises ValueError while findings are owed."""
        if self._asked or not self._ended:
            raise ValueError("the search goes on, ask for the next batch or stop it")
        best = self._preferred()
        conclusion, reason = self._conclude(best)
        taken = best if conclusion is Conclusion.CHANGE else None
        trail = tuple(Trail(s.candidate, s.share, s.gain, self._fate(s, taken)) for s in self._all)
        return SearchOutcome(
            conclusion=conclusion,
            best=self._now if taken is None else taken.candidate,
            gain=taken.gain if taken is not None and taken.gain is not None else Estimate(0.0, 0.0, 0.0),
            reason=reason,
            trail=trail,
            exhaustive=self.exhaustive,
            accesses=self._replayed,
        )

    def _preferred(self) -> _Standing[C] | None:
        """Return the best of who is left; of those that cannot be told from it, the first that was given."""
        most = max((one.worth for one in self._left), default=0.0)
        equals = [one for one in self._left if one.worth >= most - _INDIFFERENCE]
        return min(equals, key=lambda one: one.number, default=None)

    def _drop(self) -> None:
        """Drop whoever the intervals exclude and, if there is another rung, the worse half of the rest."""
        if not self._left:
            self._ended = self._ended or "no configuration could be evaluated"
            return
        best = max(self._left, key=lambda one: (one.worth, -one.number))
        assert best.gain is not None
        for one in list(self._left):
            assert one.gain is not None
            if one is not best and one.gain.high < best.gain.low and one.worth < best.worth:
                one.fate = f"surely below {self._name(best.candidate)}: {_points(one.gain)}"
                self._left.remove(one)
        if all(one.gain is not None and one.gain.high < self._minimum_gain for one in self._left):
            self._ended = "nothing that was tried can gain enough"
        elif len(self._left) == 1 and best.gain.low > self._minimum_gain:
            self._ended = "its interval lies above all others" if len(self._all) > 1 else "its interval is decisive"
        elif best.share >= 1.0:
            self._ended = "the whole sample was evaluated"
        else:
            self._halve()

    def _halve(self) -> None:
        """Drop the worse half, so that the others can be evaluated on more; end if the budget allows no more."""
        kept = max(1, math.ceil(len(self._left) / _KEPT_SHARE))
        ranked = sorted(self._left, key=lambda one: (-one.worth, one.number))
        last = ranked[0].share
        self._left = sorted(ranked[:kept], key=lambda one: one.number)
        affordable = self._next_share()
        cost = (kept + 1) * self._accesses * affordable
        if affordable < _GROWTH_MIN * last or cost > 1.001 * (self._budget - self._replayed):
            self._left = sorted(ranked, key=lambda one: one.number)
            self._ended = "the budget allows no larger share of the sample"
            return
        for one in ranked[kept:]:
            assert one.gain is not None
            one.fate = f"in the worse half of its rung: {_points(one.gain)}"

    def _conclude(self, best: _Standing[C] | None) -> tuple[Conclusion, str]:
        if best is None or best.gain is None:
            fates = "; ".join(sorted({one.fate for one in self._all if one.fate}))
            if not self._all:
                return Conclusion.NO_CHANGE, self._ended
            return Conclusion.NOT_ENOUGH_EVIDENCE, fates or self._ended
        gain, least = best.gain, self._minimum_gain
        said = f"{self._name(best.candidate)} gives {_points(gain)}"
        if gain.low > least and best.worth > least:
            return Conclusion.CHANGE, f"{said}, surely more than {100 * least:.2f}: {self._ended}"
        if gain.high < least:
            return Conclusion.NO_CHANGE, f"{said}, less than the {100 * least:.2f} that a change must give"
        if gain.low > least:
            return Conclusion.NO_CHANGE, f"{said}, but must lead by {100 * (least + best.handicap):.2f} to be taken"
        if gain.high - gain.low > 2 * max(self._minimum_gain, 1e-9):
            return (
                Conclusion.NOT_ENOUGH_EVIDENCE,
                f"{said}, which cannot be told from {100 * least:.2f}; a larger sample would tell",
            )
        return Conclusion.NO_CHANGE, f"{said}, not surely more than the {100 * least:.2f} that a change must give"

    def _fate(self, one: _Standing[C], taken: _Standing[C] | None) -> str:
        if one is taken:
            return "taken"
        if one.fate:
            return one.fate
        if one.gain is None:
            return f"not evaluated: {self._ended}"
        if taken is None:
            return f"not worth a change: {_points(one.gain)}"
        return f"predicted to give less: {_points(one.gain)}"


def run_search(search: Search[C], evaluator_at: Callable[[float, C], Evaluator[C]]) -> SearchOutcome[C]:
    """Evaluate one after the other in this process until the search ends.

    `evaluator_at(share, baseline)` returns what evaluates on that share of the sample; it is asked once a rung.
    """
    while batch := search.next_batch():
        evaluate = evaluator_at(batch[0].share, batch[0].baseline)
        search.told([evaluate(evaluation) for evaluation in batch])
    return search.outcome()


def _points(gain: Estimate) -> str:
    return f"{100 * gain.value:+.2f} points ({100 * gain.low:+.2f} to {100 * gain.high:+.2f})"
