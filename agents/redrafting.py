"""A person's own plan: a plan at hand with other values, or the old values of a kept change, predicted like any other.

It asks the same models as the planner and drafts the same kind of proposal, with the person as its author. It never
guesses: what the models cannot tell of is refused with the reason, and where a rollback is beyond them, what was
measured before the change stands for it. It sends nothing and judges nothing.

INVARIANT: the proposal changes exactly what was asked for, from the values that the cache has now.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from agents.appraisal import appraise
from agents.choice import Choice
from agents.drafting import draft
from cachewarden.cachemodel.whatif import CacheConfiguration
from cachewarden.errors import SettingsError
from cachewarden.estimate import Estimate
from cachewarden.fleet import Service
from cachewarden.knobs import check_value, supported
from cachewarden.messages import Execution, KnobChange, Proposal, TtlRule
from cachewarden.observation import Snapshot
from cachewarden.settings import CacheOptimizerSettings

__all__ = ["PREDICTABLE", "counter_of", "edited"]

PREDICTABLE: Final = ("lfu-decay-time", "lfu-log-factor", "maxmemory", "maxmemory-policy", "maxmemory-samples")
"""Knobs whose effect on the hit ratio the models predict; no plan may set others, since nobody could judge it."""


def edited(
    original: Proposal,
    values: Mapping[str, str | None],
    ttls_ms: Mapping[str, int | None],
    snapshot: Snapshot,
    service: Service,
    in_force: tuple[TtlRule, ...],
    settings: CacheOptimizerSettings,
    *,
    author: str,
    now_ms: int,
    interval_factor: float = 1.0,
) -> Proposal | str:
    """Return the plan with other values, or why there is none.

    `values` and `ttls_ms` (by pattern) take the place of the plan's own; None leaves that part as the cache has it.
    """
    wanted = {c.knob: c.after for c in original.knob_changes}
    try:
        for knob, value in values.items():
            if value is None:
                wanted.pop(knob, None)
            else:
                wanted[knob] = check_value(knob, value)
    except SettingsError as error:
        return str(error)
    if not wanted.get("maxmemory-policy", snapshot.knobs.get("maxmemory-policy", "")).endswith("-lfu"):
        # The plan's LFU parameters went with its LFU; only those that were asked for are worth a refusal.
        wanted = {knob: value for knob, value in wanted.items() if not knob.startswith("lfu-") or values.get(knob)}
    rules = _rules(original, ttls_ms)
    if isinstance(rules, str):
        return rules
    configuration = _configuration(wanted, snapshot)
    if isinstance(configuration, str):
        return configuration
    changes = _changes(wanted, snapshot)
    if isinstance(changes, str):
        return changes
    if not changes and not rules:
        return "the cache is like that already, nothing would be changed"
    appraisal = appraise(snapshot, service, settings, in_force, interval_factor)
    choice = appraisal if isinstance(appraisal, str) else appraisal.choice_of(configuration, rules)
    if isinstance(choice, str):
        return f"its effect cannot be predicted: {choice}"
    why = f"edited by {author} from {original.proposal_id}"
    return draft(snapshot, choice, service, why, settings, now_ms, author=author, exactly=changes)


def counter_of(
    execution: Execution,
    snapshot: Snapshot,
    service: Service,
    in_force: tuple[TtlRule, ...],
    settings: CacheOptimizerSettings,
    *,
    author: str,
    now_ms: int,
    interval_factor: float = 1.0,
) -> Proposal | str:
    """Return the plan that sets the old knob values of a kept change again, or why there is none."""
    kept = execution.proposal
    for change in kept.knob_changes:
        now = snapshot.knobs.get(change.knob)
        if now != change.after:
            return (
                f"`{change.knob}` is `{now}` now, not the `{change.after}` that the plan had set: it was changed since"
            )
    wanted = {c.knob: c.before for c in kept.knob_changes}
    # Knobs that no model speaks of leave what the models see as it is.
    configuration = _configuration({k: v for k, v in wanted.items() if k in PREDICTABLE}, snapshot)
    if isinstance(configuration, str):
        return configuration
    changes = _changes(wanted, snapshot)
    if isinstance(changes, str):
        return changes
    appraisal = appraise(snapshot, service, settings, in_force, interval_factor)
    choice: Choice | str = appraisal if isinstance(appraisal, str) else appraisal.choice_of(configuration, ())
    if not set(wanted) <= set(PREDICTABLE):
        choice = "it sets knobs that are not set for hits"
    if isinstance(choice, str):
        choice = _remembered(execution, configuration, snapshot, settings, choice)
    if isinstance(choice, str):
        return choice
    why = f"{author} wants back what {kept.proposal_id} had changed"
    return draft(
        snapshot,
        choice,
        service,
        why,
        settings,
        now_ms,
        author=author,
        takes_back=kept.proposal_id,
        exactly=changes,
    )


def _remembered(
    execution: Execution,
    configuration: CacheConfiguration,
    snapshot: Snapshot,
    settings: CacheOptimizerSettings,
    why: str,
) -> Choice | str:
    """Return a choice that rests on the hit ratio measured before the change: somewhere between then and now."""
    then = execution.hit_ratio_before
    # The first look after a change has no window yet; the one that judged the change has.
    now = execution.hit_ratio_after if snapshot.hit_ratio is None else snapshot.hit_ratio
    if then is None or now is None:
        return f"its effect can neither be predicted ({why}) nor was the hit ratio before the change measured"
    margin = settings.rollback_margin
    after = Estimate(then, max(0.0, min(then, now) - margin), min(1.0, max(then, now) + margin))
    words = ", ".join(f"{c.knob} back to {c.before}" for c in execution.proposal.knob_changes)
    return Choice(
        configuration=configuration,
        ttl_rules=(),
        before=Estimate(now, now, now),
        after=after,
        words=words,
        method=f"hit ratio measured before the change, since the models cannot tell: {why}",
    )


def _rules(original: Proposal, ttls_ms: Mapping[str, int | None]) -> tuple[TtlRule, ...] | str:
    if any(rule.jitter_ms or rule.unread_ms for rule in original.ttl_rules):
        return "what other TTLs would do to expiries or unread keys is not predicted, approve or reject it as it is"
    known = {rule.pattern: rule for rule in original.ttl_rules}
    strange = sorted(ttls_ms.keys() - known.keys())
    if strange:
        return f"the plan has no TTL rule for `{strange[0]}`, it has: {', '.join(sorted(known)) or 'none'}"
    rules: list[TtlRule] = []
    for pattern, rule in known.items():
        ttl_ms = ttls_ms.get(pattern, rule.extended_ttl_ms)
        if ttl_ms is None:
            continue
        try:
            rules.append(replace(rule, extended_ttl_ms=ttl_ms))
        except ValueError as error:
            return str(error)
    return tuple(rules)


def _configuration(wanted: Mapping[str, str], snapshot: Snapshot) -> CacheConfiguration | str:
    """Return what the cache is to become, TTLs aside, or why it cannot be said."""
    strange = sorted(wanted.keys() - set(PREDICTABLE))
    if strange:
        return f"what `{strange[0]}` does to the hit ratio is not predicted, a plan may set: {', '.join(PREDICTABLE)}"
    knobs = {**snapshot.knobs, **wanted}
    try:
        return CacheConfiguration(
            maxmemory_bytes=int(knobs.get("maxmemory", snapshot.maxmemory_bytes)),
            eviction_policy=knobs.get("maxmemory-policy", ""),  # type: ignore[arg-type]
            maxmemory_samples=int(knobs.get("maxmemory-samples", 5)),
            lfu_log_factor=int(knobs.get("lfu-log-factor", 10)),
            lfu_decay_time_min=int(knobs.get("lfu-decay-time", 1)),
        )
    except ValueError as error:
        return f"the configuration is not known to the models: {error}"


def _changes(wanted: Mapping[str, str], snapshot: Snapshot) -> tuple[KnobChange, ...] | str:
    """Return the changes from what the cache has now to exactly `wanted`, or which of them it cannot take."""
    server = snapshot.capabilities
    changes: list[KnobChange] = []
    for knob, after in sorted(wanted.items()):
        before = snapshot.knobs.get(knob)
        if before is None or not supported(knob, server.server, server.version):
            return f"`{knob}` cannot be changed: the server `{server.server} {server.version}` does not tell or take it"
        if before != after:
            changes.append(KnobChange(knob=knob, before=before, after=after))
    return tuple(changes)
