"""What one cache could be: its evidence, the configurations worth asking about, and the best of them at any size.

It asks the cache models and compares; it proposes nothing. A switch of eviction policy must promise more than the
models' own error, since a wrong one is expensive; a TTL is lengthened no further than is needed for nearly all of its
gain, since freshness is worth something too.

INVARIANT: no choice has a TTL above the staleness that the owner declared, or a size above what was asked.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from agents.choice import Choice, change_in_words
from agents.evidence import evidence_of
from agents.ttl_review import TTL_GAIN_SHARE
from cachewarden.cachemodel.candidates import SearchSpace, candidates_around
from cachewarden.cachemodel.search import Evaluation, Evaluator, Finding, Search, SearchOutcome, run_search
from cachewarden.cachemodel.ttl_model import (
    TtlGain,
    gains_by_prefix,
    gains_of_longer_ttls,
    share_kept_by_use,
    shortest_with_most_of_the_gain,
)
from cachewarden.cachemodel.whatif import Answer, CacheConfiguration, Evidence, Inquiry, Insufficient
from cachewarden.estimate import Estimate
from cachewarden.fleet import Service
from cachewarden.messages import TtlRule
from cachewarden.observation import PatternStats, Snapshot
from cachewarden.settings import CacheOptimizerSettings

__all__ = ["Appraisal", "appraise"]

_SEED = 1
_SWITCH_GAIN = 0.001
"""Keep the eviction policy unless the whole interval of another's gain lies above this; what a change must promise at
least is asked of the whole proposal."""
_LFU_HANDICAP = 0.003
"""LFU must beat LRU by more than this (`docs/adr/0006`): a capture of minutes does not show whether the hot set will
move tomorrow."""
_SPACE = SearchSpace(eviction_policies=("allkeys-lru", "allkeys-lfu"), lfu_log_factors=(1,))
_DECAY_STEPS_SEEN = 2
_SEARCH_ACCESSES = 10_000_000
"""To be replayed for the choice of one eviction policy: about a second. A capture of 400,000 accesses is far below it,
so all candidates are evaluated on all of it."""
_USE_TOLD_MS = 20_000
"""Idle times are told to two seconds: in shorter lives too many uses would not be seen, so all keys get the rule."""
_CAUTION = 0.25
"""Share of the lower half of the interval that is taken off the hit ratio of sizes below the present one."""
_CURVE_TIMES = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.6, 2.0)
"""The sizes at which a cache is imagined, over its present one: close together as far as one round may move it."""


def appraise(
    snapshot: Snapshot,
    service: Service,
    settings: CacheOptimizerSettings,
    in_force: tuple[TtlRule, ...] = (),
    interval_factor: float = 1.0,
) -> Appraisal | str:
    """Return the appraisal of a cache, or in words why the evidence cannot carry one.

    `in_force` are its TTL rules; by `interval_factor` (> 0) intervals are stretched, since past outcomes ask so.
    """
    evidence = evidence_of(snapshot, in_force)
    if isinstance(evidence, str):
        return evidence
    rules = _ttl_rules(snapshot, service, in_force)
    appraisal = Appraisal(snapshot, service, settings, evidence, rules, interval_factor, in_force)
    here = appraisal.chosen
    if isinstance(here, str):
        return f"not enough evidence: {here}"
    return appraisal


@dataclass(frozen=True)
class Appraisal:
    """One cache under examination. Answers are worked out when first asked for."""

    snapshot: Snapshot
    service: Service
    settings: CacheOptimizerSettings
    evidence: Evidence
    rules: tuple[TtlRule, ...]
    interval_factor: float = 1.0
    in_force: tuple[TtlRule, ...] = ()

    @cached_property
    def _inquiry(self) -> Inquiry:
        return Inquiry(self.evidence, _SEED)

    @cached_property
    def chosen(self) -> CacheConfiguration | str:
        """The best eviction policy and TTL at the present size, or why nothing can be said."""
        answer = self._inquiry.ask([self.evidence.current])[0]
        found = self._policy_search
        if isinstance(answer, Insufficient) and all(trail.gain is None for trail in found.trail):
            return "; ".join(sorted({answer.reason, *(trail.fate for trail in found.trail)}))
        policy = found.best
        ttl_ms = self._ttl_ms(policy)
        return replace(policy, ttl_ms=ttl_ms if ttl_ms is not None else policy.ttl_ms)

    @cached_property
    def _policy_search(self) -> SearchOutcome[CacheConfiguration]:
        """The search over eviction policies at the present size; none are tried where memory does not bind, since none
        would act."""
        candidates = self._candidates if self.evidence.full else (self.evidence.current,)
        accesses = 1 if self.evidence.trace is None else max(1, len(self.evidence.trace))
        search = Search(
            candidates,
            accesses=accesses,
            budget_accesses=_SEARCH_ACCESSES,
            minimum_gain=_SWITCH_GAIN,
            handicap=lambda candidate: _LFU_HANDICAP if candidate.family == "lfu" else 0.0,
            name=lambda candidate: change_in_words(self.evidence.current, candidate, ()),
        )
        return run_search(search, self._evaluator_at)

    @property
    def _candidates(self) -> tuple[CacheConfiguration, ...]:
        """Return what to try, without decays so slow that the captured past holds not two of their steps: it would show
        what LFU gives while nothing is forgotten, and not what that costs once the hot set has moved."""
        found = candidates_around(self.evidence.current, _SPACE, self._turnover_ms)
        if self.evidence.trace is None:
            return found
        past_ms = self.evidence.trace.duration_ms
        least_min = min((c.lfu_decay_time_min for c in found if c.family == "lfu"), default=0)
        longest_min = max(past_ms / (60_000 * _DECAY_STEPS_SEEN), least_min)
        now = self.evidence.current
        return tuple(c for c in found if c == now or c.family != "lfu" or c.lfu_decay_time_min <= longest_min)

    def _evaluator_at(self, share: float, _baseline: CacheConfiguration) -> Evaluator[CacheConfiguration]:
        inquiry = self._inquiry if share >= 1.0 else Inquiry(self.evidence.thinned(share), _SEED)

        def evaluate(evaluation: Evaluation[CacheConfiguration]) -> Finding[CacheConfiguration]:
            answer = inquiry.ask([evaluation.candidate])[0]
            if isinstance(answer, Insufficient):
                return Finding(evaluation, None, answer.reason)
            return Finding(evaluation, answer.change.stretched(self.interval_factor, -1.0, 1.0))

        return evaluate

    @property
    def _turnover_ms(self) -> float | None:
        """Time in which evictions exchange the whole content; None where nothing is evicted."""
        evicted_per_s = self.snapshot.evicted_per_s
        return 1000.0 * self.snapshot.resident_keys / evicted_per_s if evicted_per_s > 0 else None

    @cached_property
    def curve_bytes(self) -> tuple[int, ...]:
        """Sizes at which the cache was imagined, ascending; empty where its memory is unlimited or cannot be
        imagined."""
        return tuple(size for size, _, _ in self._curve)

    @cached_property
    def curve_hit_ratio(self) -> tuple[float, ...]:
        """Predicted hit ratio at each of `curve_bytes`, under the chosen eviction policy and TTL."""
        return tuple(ratio for _, ratio, _ in self._curve)

    @cached_property
    def curve_low(self) -> tuple[float, ...]:
        """Low ends of the 90 % intervals of `curve_hit_ratio`; what is observed where nothing would change."""
        return tuple(low for _, _, low in self._curve)

    @cached_property
    def sizes_as_is(self) -> tuple[tuple[int, Estimate], ...]:
        """Predicted hit ratio at other sizes, ascending, with everything else as it is in force and nothing taken off
        for caution; without the sizes that cannot be told, empty where the memory is unlimited."""
        now = self.evidence.current
        if now.maxmemory_bytes <= 0:
            return ()
        sizes = sorted({round(now.maxmemory_bytes * times) for times in _CURVE_TIMES})
        found = [(size, self.choice_of(replace(now, maxmemory_bytes=size), ())) for size in sizes]
        return tuple((size, choice.after) for size, choice in found if isinstance(choice, Choice))

    @cached_property
    def above_usual(self) -> float:
        """By how much the hit ratio observed now lies above what it was over the captured past, -1..1; 0 where the
        capture does not tell. A good minute is no reason to take memory from a service with a floor; a bad one stops
        nobody as far as the traffic makes such minutes by itself, and what has fallen further is no bad minute."""
        usual = self._inquiry.usual_hit_ratio
        if usual is None:
            return 0.0
        allowed = min(self.snapshot.hit_ratio_step or 0.0, self.settings.guardrail_hit_ratio_drop)
        return max(self.evidence.hit_ratio - usual, -allowed)

    def best_at(self, maxmemory_bytes: int) -> Choice:
        """Return the best configuration found for a size, with its prediction."""
        chosen = self._chosen_at(maxmemory_bytes)
        if isinstance(chosen, str):
            return self._unchanged(chosen)
        if chosen == self.evidence.current:
            return self._unchanged("nothing is to be gained by another configuration")
        found = self.choice_of(chosen, self._rules_for(chosen.ttl_ms))
        return self._unchanged(found) if isinstance(found, str) else found

    def _chosen_at(self, maxmemory_bytes: int) -> CacheConfiguration | str:
        """Return the configuration to have at a size: the one chosen at the present size, unless the capture itself
        shows that another eviction policy surely gives more there. Policies change places with the size: what is
        right for a cache that holds nearly all that is asked for may be wrong for one half as large.
        """
        chosen = self.chosen
        if isinstance(chosen, str):
            return chosen
        best = replace(chosen, maxmemory_bytes=maxmemory_bytes)
        if maxmemory_bytes == self.evidence.current.maxmemory_bytes:
            return best
        for other in self._rivals:
            rival = replace(other, maxmemory_bytes=maxmemory_bytes, ttl_ms=best.ttl_ms)
            lead = self._inquiry.replayed(rival, best)
            lead = None if lead is None else lead.stretched(self.interval_factor, -1.0, 1.0)
            handicap = _LFU_HANDICAP if rival.family == "lfu" else 0.0
            if lead is not None and lead.low > _SWITCH_GAIN and lead.value > _SWITCH_GAIN + handicap:
                best = rival
        return best

    @cached_property
    def _rivals(self) -> tuple[CacheConfiguration, ...]:
        """Return the best candidate of each other family of eviction, as it did at the present size."""
        chosen = self.chosen
        if isinstance(chosen, str):
            return ()
        best: dict[str, tuple[float, CacheConfiguration]] = {}
        for trail in self._policy_search.trail:
            family, gain = trail.candidate.family, trail.gain
            if gain is not None and family != chosen.family and gain.value > best.get(family, (-1.0, None))[0]:
                best[family] = gain.value, trail.candidate
        current = self.evidence.current
        if current.family != chosen.family and best.get(current.family, (-1.0, None))[0] < 0.0:
            best[current.family] = 0.0, current
        return tuple(candidate for _, candidate in best.values())

    def choice_of(self, wanted: CacheConfiguration, rules: tuple[TtlRule, ...]) -> Choice | str:
        """Return a configuration that somebody else has chosen, with its prediction, or why nothing can be said of it.

        `rules` are the TTL rules that go with it; without any, TTLs stay as they are.
        """
        ttl_ms = min((r.extended_ttl_ms for r in rules), default=None)
        asked = replace(wanted, ttl_ms=self.evidence.current.ttl_ms if ttl_ms is None else ttl_ms)
        answer = self._inquiry.ask([self._under(asked, rules)])[0]
        if isinstance(answer, Insufficient):
            return answer.reason
        after = self._predicted(answer, rules)
        if replace(asked, maxmemory_bytes=self.evidence.current.maxmemory_bytes) == self.evidence.current:
            after = self._no_miracle(after, asked.maxmemory_bytes)
        return Choice(
            configuration=asked,
            ttl_rules=rules,
            before=self._observed,
            after=after,
            words=change_in_words(self.evidence.current, asked, rules),
            method=answer.method,
            interval_factor=self.interval_factor,
        )

    def _under(self, wanted: CacheConfiguration, rules: tuple[TtlRule, ...]) -> CacheConfiguration:
        """Return the configuration as it is asked about: where prefixes live by different TTLs, rules change theirs."""
        if self._inquiry.by_prefix is None:
            return wanted
        given = tuple((rule.pattern, rule.extended_ttl_ms) for rule in rules)
        return replace(wanted, ttl_ms=self.evidence.current.ttl_ms, prefix_ttls_ms=given)

    def _predicted(self, answer: Answer, rules: tuple[TtlRule, ...]) -> Estimate:
        """Return an answer for the whole service, as wide as past outcomes have shown it must be."""
        found = answer.hit_ratio
        if rules and self._inquiry.by_prefix is None:
            found = self._covered(found)
        if any(rule.only_read for rule in rules):
            found = self._for_keys_in_use(found, rules)
        return found.stretched(self.interval_factor, 0.0, 1.0)

    def _no_miracle(self, after: Estimate, maxmemory_bytes: int) -> Estimate:
        """Return the estimate of a mere change of size, cut where it would say that less memory gives more hits."""
        if maxmemory_bytes >= self.evidence.current.maxmemory_bytes:
            return after
        ceiling = self.evidence.hit_ratio
        return Estimate(min(after.value, ceiling), min(after.low, ceiling), min(after.high, ceiling))

    def content(self, settings: CacheOptimizerSettings) -> str:
        """Return in words why this cache is best left as it is."""
        ratio = self.evidence.hit_ratio
        goal = "above" if ratio >= settings.target_cache_hit_rate else "below"
        split = self.snapshot.miss_split
        why = "" if split is None or ratio >= 1 else f", most misses are {split.binding}"
        return (
            f"nothing to change: hit ratio {ratio:.3f} is {goal} the goal of {settings.target_cache_hit_rate:.2f}"
            f"{why}, "
            "and no other configuration is predicted to give more"
        )

    @property
    def _observed(self) -> Estimate:
        return Estimate(self.evidence.hit_ratio, self.evidence.hit_ratio, self.evidence.hit_ratio)

    def _unchanged(self, why: str) -> Choice:
        return Choice(
            configuration=self.evidence.current,
            ttl_rules=(),
            before=self._observed,
            after=self._observed,
            words="no change",
            method=why,
        )

    @cached_property
    def _curve(self) -> tuple[tuple[int, float, float], ...]:
        chosen, now = self.chosen, self.snapshot.maxmemory_bytes
        if isinstance(chosen, str) or now <= 0:
            return ()
        low = max(self.service.minimum_memory_bytes, self.evidence.fixed_overhead_bytes + 1024 * 1024)
        grid = {max(int(now * times), min(low, now)) for times in _CURVE_TIMES}
        # Where memory does not bind and nothing changes that, more of it gives nothing: do not let noise ask for it.
        idle = not self.evidence.full and chosen == self.evidence.current
        points, held = [], (now, self.evidence.current)
        for size in sorted(s for s in grid if s <= now or not idle):
            found = self._imagined(chosen, size)
            if found is not None:
                # Whoever gives memory bears the risk: weigh what may be lost more than what is expected.
                caution = _CAUTION * (found.value - found.low) if size < now else 0.0
                points.append(
                    (size, max(found.value - caution, 0.0), found.value if (size, chosen) == held else found.low)
                )
            elif size == now:
                points.append((size, self.evidence.hit_ratio, self.evidence.hit_ratio))
        return tuple(points) if len(points) > 1 else ()

    def _imagined(self, chosen: CacheConfiguration, size: int) -> Estimate | None:
        """Return the hit ratio to count on at a size, None where nothing tells."""
        wanted = self._chosen_at(size)
        rules = self._rules_for(chosen.ttl_ms)
        if isinstance(wanted, str):
            return None
        modelled_lfu = wanted.family == "lfu" and self._inquiry.replayed(wanted, self.evidence.current) is None
        # Where no capture shows LFU itself, replaying it after a drawn past at every size would cost more than it
        # tells: the shape is LRU's, the level is ours.
        shape = replace(wanted, eviction_policy="allkeys-lru") if modelled_lfu else wanted
        (answer,) = self._inquiry.ask([self._under(shape, rules)])
        if not isinstance(answer, Answer):
            return None
        found = self._predicted(answer, rules)
        lift = self._lift(chosen, replace(chosen, eviction_policy="allkeys-lru")) if modelled_lfu else 0.0
        return Estimate(*(min(part + lift * (1.0 - part), 1.0) for part in (found.value, found.low, found.high)))

    def _lift(self, chosen: CacheConfiguration, shape: CacheConfiguration) -> float:
        """Return which share of the misses of `shape` the chosen configuration avoids at the present size."""
        rules = self._rules_for(chosen.ttl_ms)
        ours, theirs = self._inquiry.ask([self._under(chosen, rules), self._under(shape, rules)])
        if not isinstance(ours, Answer) or not isinstance(theirs, Answer) or theirs.hit_ratio.value >= 1.0:
            return 0.0
        return (ours.hit_ratio.value - theirs.hit_ratio.value) / (1.0 - theirs.hit_ratio.value)

    def _ttl_ms(self, policy: CacheConfiguration) -> int | None:
        """Return the shortest TTL with nearly all of the gain that the owner's staleness permits, None to leave TTLs
        alone."""
        if not self.rules:
            return None
        gains: tuple[TtlGain, ...] | str
        covered = 1.0
        if self._inquiry.by_prefix is not None:
            staleness = {rule.pattern: rule.max_staleness_ms for rule in self.rules}
            gains = gains_by_prefix(self._inquiry, policy, staleness)
        else:
            gains = gains_of_longer_ttls(self._inquiry, policy, min(r.max_staleness_ms for r in self.rules))
            covered = self._coverage
        if isinstance(gains, str) or gains[-1].gain.value * covered < self.settings.minimum_gain:
            return None
        return shortest_with_most_of_the_gain(gains, TTL_GAIN_SHARE).ttl_ms

    def _rules_for(self, ttl_ms: int | None) -> tuple[TtlRule, ...]:
        """Return the rules for a TTL; only for keys in use, where it can be told what that leaves of the gain."""
        if ttl_ms is None or ttl_ms == self.evidence.current.ttl_ms:
            return ()
        told = not isinstance(self._inquiry.workload, str)
        return tuple(
            replace(
                rule,
                extended_ttl_ms=min(ttl_ms, rule.max_staleness_ms),
                # A rule that also spreads has to reach every key.
                only_read=told and rule.jitter_ms == 0 and rule.written_ttl_ms >= _USE_TOLD_MS,
            )
            for rule in self.rules
            if min(ttl_ms, rule.max_staleness_ms) - rule.jitter_ms > rule.written_ttl_ms
        )

    def _for_keys_in_use(self, estimate: Estimate, rules: tuple[TtlRule, ...]) -> Estimate:
        """Return the estimate where keys that are not used between their load and their TTL gain nothing."""
        fitted, ratio = self._inquiry.workload, self.evidence.hit_ratio
        if isinstance(fitted, str):
            return estimate
        kept = min(share_kept_by_use(fitted.mixture, r.written_ttl_ms, r.extended_ttl_ms) for r in rules if r.only_read)
        value, low = ratio + kept * (estimate.value - ratio), ratio + kept * (estimate.low - ratio)
        return Estimate(value, min(low, value), max(estimate.high, value))

    @cached_property
    def _coverage(self) -> float:
        """Share of the lookups that go to patterns whose TTL may be lengthened."""
        touched = {r.pattern for r in self.rules}
        stats = [p for p in self.snapshot.patterns if p.pattern in touched]
        return min(1.0, sum(_lookups_share(p) for p in stats))

    def _covered(self, estimate: Estimate) -> Estimate:
        """Return the estimate for the whole service where only part of its lookups can gain."""
        share, ratio = self._coverage, self.evidence.hit_ratio

        def part(value: float) -> float:
            return ratio + share * (value - ratio)

        return Estimate(part(estimate.value), part(estimate.low), part(estimate.high))


def _lookups_share(stats: PatternStats) -> float:
    return stats.lookups_share if stats.lookups_share is not None else stats.resident_share


def _ttl_rules(snapshot: Snapshot, service: Service, in_force: tuple[TtlRule, ...]) -> tuple[TtlRule, ...]:
    """Return a rule for each declared pattern whose keys expire well before their owner's staleness.

    Under a rule in force the sampled TTLs are partly ours: what the application writes is what that rule says.
    """
    known = {rule.pattern: rule for rule in in_force if not rule.unread_ms}
    permitted = {p.prefix: p.max_staleness_s for p in service.patterns if p.max_staleness_s is not None}
    rules = []
    for stats in sorted(snapshot.patterns, key=lambda p: p.pattern):
        staleness_s = permitted.get(stats.pattern)
        rule = known.get(stats.pattern)
        written = stats.written_ttl_ms if rule is None else rule.written_ttl_ms
        if staleness_s is None or written is None or written <= 0 or stats.keys_with_ttl_share < 0.5:
            continue
        longest_ms = int(staleness_s * 1000)
        if 2 * (written if rule is None else rule.extended_ttl_ms) <= longest_ms:
            rules.append(
                TtlRule(
                    pattern=stats.pattern,
                    written_ttl_ms=written,
                    extended_ttl_ms=longest_ms,
                    max_staleness_ms=longest_ms,
                    jitter_ms=0 if rule is None or rule.unread_ms else rule.jitter_ms,
                )
            )
    return tuple(rules)
