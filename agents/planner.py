"""The planner: which change of which cache is worth it, and what it is expected to give.

It appraises each service (what would other eviction policies, TTLs and sizes give), divides the fleet's memory by
marginal hits, and turns
what is worth it into proposals with evidence, prediction, cost and rollback. It never talks to a server, never
judges, and prefers no
change when the gain may be noise. For every service without a proposal it says why.

INVARIANT: the same snapshots, history and time give the same proposals; the sizes proposed never add up to more than
the budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

import numpy as np

from agents.appraisal import appraise
from agents.choice import Choice
from agents.drafting import draft
from agents.guardrails import LOOKUPS_MIN
from agents.lever_drafting import lever_proposal
from agents.reapplying import reapplied
from agents.recent_appraisals import RecentAppraisals
from agents.unchanged import counterfactual_of
from cachewarden.cachemodel.arbitration import Curve, Infeasible, allocate
from cachewarden.counterfactual import Counterfactual, knobs_before
from cachewarden.estimate import Estimate
from cachewarden.fleet import Fleet, Service
from cachewarden.machine import Effect, Received, Send
from cachewarden.messages import Mode, Proposal, TtlRule
from cachewarden.modes import acts, with_modes
from cachewarden.observation import Snapshot
from cachewarden.protocol import FleetPlanned, History, ModesChanged, PlanFleet, Sizing
from cachewarden.settings import CacheOptimizerSettings

__all__ = ["Appraise", "Planner", "Prospects", "curve_of", "plan_fleet"]

MEMORY_STEP_BYTES = 256 * 1024
"""Sizes are multiples of this: finer steps than the models can tell apart would only churn."""
_WORTH_MOVING = 0.04
"""Share of a service's memory below which a move is not worth its disturbance."""

_FLEET_GAIN_SHARE = 0.4
"""Share of the minimum gain that a new split must give over all lookups of the services that may change."""
_ROUND_STEP_SHARE = 0.6
"""Share of its memory by which a service may shrink or grow in one round: beyond it curves are extrapolated, and the
next round sees what this one did."""


class Prospects(Protocol):
    """What is asked of one cache under examination; `agents.appraisal.Appraisal` answers from replays and closed
    forms, the simulator from the model of its loads."""

    @property
    def snapshot(self) -> Snapshot: ...

    @property
    def curve_bytes(self) -> tuple[int, ...]: ...

    @property
    def curve_hit_ratio(self) -> tuple[float, ...]: ...

    @property
    def curve_low(self) -> tuple[float, ...]: ...

    @property
    def sizes_as_is(self) -> tuple[tuple[int, Estimate], ...]: ...

    @property
    def above_usual(self) -> float: ...

    def best_at(self, maxmemory_bytes: int) -> Choice: ...

    def content(self, settings: CacheOptimizerSettings) -> str: ...


Appraise = Callable[[Snapshot, Service, CacheOptimizerSettings, tuple[TtlRule, ...], float], Prospects | str]
"""`agents.appraisal.appraise`, or another that keeps its word."""


class Planner:
    """Answers PlanFleet with FleetPlanned; holds no state between two questions but the modes and, where nothing else
    appraises, the appraisals of the last minute."""

    name = "planner"
    heavy_step = True
    """One answer may take seconds of arithmetic: a shell that shares its loop takes the step to a thread."""

    def __init__(self, fleet: Fleet, settings: CacheOptimizerSettings, appraise_cache: Appraise | None = None) -> None:
        self._filed = self._fleet = fleet
        self._settings = settings
        self._appraise = RecentAppraisals() if appraise_cache is None else appraise_cache

    def step(self, event: Any, now_ms: int) -> tuple[Effect, ...]:
        """Take one event; everything but a PlanFleet and other modes is ignored."""
        if isinstance(event, Received) and isinstance(event.message, ModesChanged):
            self._fleet = with_modes(self._filed, event.message.modes)
        if not isinstance(event, Received) or not isinstance(event.message, PlanFleet):
            return ()
        return (
            Send(
                to=event.sender, message=plan_fleet(event.message, self._fleet, self._settings, now_ms, self._appraise)
            ),
        )


@dataclass(frozen=True, slots=True)
class _Division:
    """Bytes wanted per service, and the words for it."""

    wanted: Mapping[str, int]
    why: Mapping[str, str]
    free_bytes: int
    """Memory of the budget that nobody holds now."""


def plan_fleet(
    question: PlanFleet,
    fleet: Fleet,
    settings: CacheOptimizerSettings,
    now_ms: int,
    appraise_cache: Appraise = appraise,
) -> FleetPlanned:
    """Return the proposals of one cycle, and a reason for each observed service that gets none."""
    idle: dict[str, str] = {}
    appraisals: dict[str, Prospects] = {}
    proposals: list[Proposal] = []
    for snapshot in sorted(question.snapshots, key=lambda s: s.service):
        service = fleet.service(snapshot.service)
        history = question.history.get(service.name)
        obstacle = _obstacle(snapshot, history, settings)
        again = None if history is None else reapplied(history.lost, snapshot, service, settings, now_ms)
        if again is not None and _can_be_changed(snapshot, history):
            # What was agreed comes before what might be better, and needs no models: the cache is cold.
            proposals.append(again)
            continue
        rules = () if history is None else history.ttl_rules
        result = obstacle or appraise_cache(snapshot, service, settings, rules, question.interval_factor)
        if isinstance(result, str):
            idle[service.name] = result
        else:
            appraisals[service.name] = result
    division = _divide(appraisals, question, fleet, settings, now_ms)
    for name in sorted(appraisals):
        forced = name in question.force
        outcome = _propose(appraisals[name], fleet.service(name), division, settings, forced, now_ms)
        if isinstance(outcome, str):
            idle[name] = outcome
        else:
            proposals.append(outcome)
    for snapshot in sorted(question.snapshots, key=lambda s: s.service):
        # Where nothing is to be gained in hits there may be something in memory, or an onrush to be spread.
        service, history = fleet.service(snapshot.service), question.history.get(snapshot.service)
        rules = () if history is None else history.ttl_rules
        if service.name not in idle or service.mode is Mode.OFF or _obstacle(snapshot, history, settings) is not None:
            continue
        if service.capture and snapshot.capabilities.monitor and snapshot.access is None:
            # What is to be gained in hits shows with the first capture; a lever pulled before would only be in its way.
            continue
        lever = lever_proposal(snapshot, service, settings, rules, now_ms)
        if lever is not None:
            del idle[service.name]
            proposals.append(lever)
    return FleetPlanned(
        cycle=question.cycle,
        proposals=_order(proposals, division),
        idle_reasons=idle,
        sizings={
            name: sizing
            for name, appraisal in appraisals.items()
            # After a change the evidence is that of before until the cache has shown what it does now.
            if not _cools_down(question.history.get(name), settings, now_ms)
            and (sizing := _sizing(appraisal, now_ms)) is not None
        },
        counterfactuals=_counterfactuals(question, proposals, fleet, settings),
    )


def _counterfactuals(
    question: PlanFleet, proposals: Sequence[Proposal], fleet: Fleet, settings: CacheOptimizerSettings
) -> tuple[Counterfactual, ...]:
    """Return what every change that is under way, or may be carried out, will be measured against."""
    changes = {s: (h.in_flight, h.in_flight_before) for s, h in question.history.items() if h.in_flight is not None}
    changes |= {p.service: (p.proposal_id, knobs_before(p)) for p in proposals if acts(fleet, p.service)}
    found = (counterfactual_of(s, *changes[s.service], settings) for s in question.snapshots if s.service in changes)
    return tuple(told for told in found if told is not None)


def _sizing(appraisal: Prospects, now_ms: int) -> Sizing | None:
    told = appraisal.sizes_as_is
    if len(told) < 2:
        return None
    # More memory alone takes no hits away: a dip is noise.
    expected = np.maximum.accumulate([estimate.value for _, estimate in told])
    low = np.maximum.accumulate([estimate.low for _, estimate in told])
    return Sizing(
        at_ms=now_ms,
        maxmemory_bytes=tuple(size for size, _ in told),
        hit_ratio=tuple(expected.tolist()),
        low=tuple(np.minimum(low, expected).tolist()),
    )


def _obstacle(snapshot: Snapshot, history: History | None, settings: CacheOptimizerSettings) -> str | None:
    """Return why nothing can be proposed for a service whatever the models say, or None."""
    core = sorted({"info", "knobs"} & set(snapshot.incomplete))
    if core:
        return f"not enough evidence: {', '.join(f'{part} is missing ({snapshot.incomplete[part]})' for part in core)}"
    if history is not None and history.in_flight is not None:
        return f"change {history.in_flight} is being carried out and observed"
    if snapshot.role != "master":
        return f"the server is a {snapshot.role}; changes go to its primary"
    if "own_lookups" in snapshot.incomplete:
        return f"not enough evidence: {snapshot.incomplete['own_lookups']}, so hits cannot be told from our own probes"
    if snapshot.hit_ratio is None:
        return "no lookups in the window, so there is no hit ratio to improve"
    lookups = snapshot.lookups_per_s * settings.observation_window_ms / 1000.0
    if lookups < LOOKUPS_MIN:
        return (
            f"{lookups:.0f} lookups come in an observation window, {LOOKUPS_MIN} are needed to see what a change does: "
            "set a longer `OBSERVATION_WINDOW_MS`"
        )
    if snapshot.window_ms < settings.cycle_interval_ms // 2:
        return f"the window is only {snapshot.window_ms / 1000:.0f} s long yet"
    return None


def _can_be_changed(snapshot: Snapshot, history: History | None) -> bool:
    """Say whether a setting that was agreed may be set again: the server tells its knobs, is a primary, and idle."""
    busy = history is not None and history.in_flight is not None
    return not busy and not {"info", "knobs", "loading"} & set(snapshot.incomplete) and snapshot.role == "master"


def _divide(
    appraisals: Mapping[str, Prospects],
    question: PlanFleet,
    fleet: Fleet,
    settings: CacheOptimizerSettings,
    now_ms: int,
) -> _Division:
    """Divide the memory of the services that may change; the others keep what they have.

    Who cools down after a change may not change either: what others gave for it now would lie idle until then, and by
    then something else may be right.

    What a service that was not seen holds, or one in the middle of a change may need back, is nobody's to give.
    """
    held = {s.service: s.maxmemory_bytes for s in question.snapshots} | dict(question.memory_bytes)
    # Without a declared total nobody is to shrink only because somebody has raised a limit by hand.
    budget = fleet.total_memory_bytes or max(question.budget_bytes or 0, sum(held.values()))
    rested = {
        n for n in appraisals if n in question.force or not _cools_down(question.history.get(n), settings, now_ms)
    }
    movable = {n: a for n, a in appraisals.items() if a.curve_bytes and held[n] > 0 and n in rested}
    free = budget - sum(held.values())
    if not movable or (len(movable) == 1 and free <= 0):
        return _Division({}, {}, max(free, 0))
    curves = [curve_of(a, fleet.service(n)) for n, a in sorted(movable.items())]
    share = max(sum(held[n] for n in movable) + free, 0)
    allocation = allocate(curves, share, MEMORY_STEP_BYTES, _ROUND_STEP_SHARE)
    if isinstance(allocation, Infeasible):
        return _Division({}, dict.fromkeys(movable, allocation.reason), max(free, 0))
    lookups_per_s = sum(curve.worth for curve in curves)
    gives = any(s.bytes < s.current_bytes for s in allocation.shares)
    if free >= 0 and gives and allocation.gain_hits_per_s < _FLEET_GAIN_SHARE * settings.minimum_gain * lookups_per_s:
        # Less than the curves can tell: moving memory for it would be undone in the next round.
        return _Division({}, {}, max(free, 0))
    return _Division(
        {s.service: s.bytes for s in allocation.shares}, {s.service: s.reason for s in allocation.shares}, max(free, 0)
    )


def _cools_down(history: History | None, settings: CacheOptimizerSettings, now_ms: int) -> bool:
    last_ms = None if history is None else history.last_change_ms
    return last_ms is not None and now_ms < last_ms + settings.cool_down_ms


def curve_of(appraisal: Prospects, service: Service) -> Curve:
    """Return what arbitration is told of a service: its curve, worth, minimum and floor.

    The curve stands at the level of the last window. Where that lies above what is usual, the floor is lifted with it:
    what is taken in a good minute is missing in the bad one that follows. And whoever has a floor keeps what holds it
    at the low end of the prediction, so that the less is known of a service the more it keeps.
    """
    floor = service.hit_ratio_floor
    # A curve has a dozen points, for which arrays cost more than they save.
    expected = _risen(appraisal.curve_hit_ratio)
    sure = [min(low, most) for low, most in zip(_risen(appraisal.curve_low), expected, strict=True)]
    return Curve(
        service=service.name,
        bytes=np.asarray(appraisal.curve_bytes, dtype=np.int64),
        hit_ratio=np.array(expected, dtype=np.float64),
        lookups_per_s=appraisal.snapshot.lookups_per_s,
        weight=service.weight,
        minimum_bytes=service.minimum_memory_bytes,
        floor_hit_ratio=min(max(floor + appraisal.above_usual, floor / 2.0), 1.0) if floor > 0.0 else 0.0,
        current_bytes=appraisal.snapshot.maxmemory_bytes,
        sure_hit_ratio=np.array(sure, dtype=np.float64),
    )


def _risen(hit_ratios: Sequence[float]) -> list[float]:
    """Return hit ratios by size as arbitration takes them: more memory never costs hits, a dip is noise of the
    replay. Raises ValueError for what is no number."""
    if any(map(math.isnan, hit_ratios)):
        raise ValueError("a curve holds what is no number")
    return [min(max(ratio, 0.0), 1.0) for ratio in accumulate(hit_ratios, max)]


def _propose(
    appraisal: Prospects,
    service: Service,
    division: _Division,
    settings: CacheOptimizerSettings,
    forced: bool,
    now_ms: int,
) -> Proposal | str:
    """Return the proposal for one service, or why there is none."""
    if service.mode is Mode.OFF:
        return "the service is switched off in the fleet file"
    now_bytes = appraisal.snapshot.maxmemory_bytes
    wanted = division.wanted.get(service.name, now_bytes)
    if abs(wanted - now_bytes) < max(MEMORY_STEP_BYTES, _WORTH_MOVING * now_bytes):
        wanted = now_bytes
    why = division.why.get(service.name, "")
    grows = wanted > now_bytes
    if grows and wanted - now_bytes > division.free_bytes and appraisal.best_at(now_bytes).worth(settings.minimum_gain):
        # What helps without memory need not wait for those who give memory.
        wanted, why = now_bytes, ""
    choice = appraisal.best_at(wanted)
    if wanted < now_bytes:
        # Giving memory away costs the giver something; the fleet's gain was weighed by the division.
        return draft(appraisal.snapshot, choice, service, why, settings, now_ms)
    if choice.changes_nothing(appraisal.snapshot):
        return appraisal.content(settings)
    harmless = grows and choice.only_grows(appraisal.snapshot)
    if harmless and choice.gain.value >= _FLEET_GAIN_SHARE * settings.minimum_gain:
        # More memory alone cannot cost hits, so what it gives need not be sure: the division weighed it against what
        # others lose, and memory that nobody holds gives nothing at all.
        return draft(appraisal.snapshot, choice, service, why, settings, now_ms)
    if not (choice.gain.value > 0 if forced else choice.worth(settings.minimum_gain)):
        gain = choice.gain
        return (
            f"the best other configuration found ({choice.words}) is predicted to give {gain.value * 100:+.1f} points "
            f"({gain.low * 100:+.1f} to {gain.high * 100:+.1f}), but a change must promise "
            f"{settings.minimum_gain * 100:.1f} and be no noise"
        )
    return draft(appraisal.snapshot, choice, service, why, settings, now_ms)


def _order(proposals: list[Proposal], division: _Division) -> tuple[Proposal, ...]:
    """Let whoever grows beyond the free memory wait for those who shrink."""
    givers = tuple(p.proposal_id for p in proposals if p.memory_delta_bytes < 0)
    free = division.free_bytes
    ordered: list[Proposal] = []
    for proposal in sorted(proposals, key=lambda p: (p.memory_delta_bytes > 0, -p.prediction.gain.value, p.service)):
        growth = max(proposal.memory_delta_bytes, 0)
        if growth > free and givers:
            ordered.append(proposal.waiting_for(givers))
            continue
        free -= growth
        ordered.append(proposal)
    return tuple(ordered)
