"""`python -m cluster whatif --search`: the best configuration of a trace or of a running service, and how it was found.

It asks, shows and applies nothing. INVARIANT: table and JSON show the same outcome; the configuration of now is kept
wherever the gain of another may be smaller than was asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any
from urllib.parse import quote

import httpx
from rich.table import Table

from cachewarden.cachemodel.candidates import SearchSpace, candidates_around
from cachewarden.cachemodel.evidence import CacheConfiguration
from cachewarden.cachemodel.replay_study import ReplayCandidate
from cachewarden.cachemodel.search import Conclusion, Evaluation, Finding, Search, SearchOutcome, run_search
from cachewarden.cachemodel.trace_files import read_trace
from cachewarden.cachemodel.trace_search import TraceSearch
from cachewarden.errors import CachewardenError, OperatingError, SettingsError
from cachewarden.estimate import Estimate
from cachewarden.knobs import EVICTION_POLICIES, EvictionPolicy
from cluster import whatif_live
from cluster.whatif_chart import amount
from cluster.whatif_options import LiveQuestion, Memory, SearchOptions, Setting
from cluster.whatif_trace import TraceQuestion

__all__ = ["SearchAnswer", "search_live", "search_service", "search_trace"]

_POLICIES: tuple[EvictionPolicy, ...] = ("allkeys-lru", "allkeys-lfu", "allkeys-random")
_LIVE_POLICIES: tuple[EvictionPolicy, ...] = ("allkeys-lru", "allkeys-lfu")
_API_CANDIDATES_MAX = 32
_RAY_DEADLINE_S = 3_600.0


@dataclass(frozen=True, slots=True)
class SearchAnswer:
    """What was found, `title` of whom, and where it comes from in one line."""

    title: str
    source: str
    now: str
    now_hit_ratio: float | None
    outcome: SearchOutcome[Any]
    in_keys: bool = False

    @property
    def verdict(self) -> str:
        """Return the conclusion in a sentence."""
        outcome = self.outcome
        if outcome.conclusion is not Conclusion.CHANGE:
            return f"{outcome.conclusion.value}: keep {self.now}; {outcome.reason}"
        return f"change to {self._name(outcome.best)}: {_points(outcome.gain)}"

    def table(self) -> Table:
        """Return the trail as a table, best first."""
        how = "every candidate on the whole sample" if self.outcome.exhaustive else "successive halving"
        caption = f"{self.source}; {how}, {self.outcome.accesses} accesses replayed; {self.verdict}"
        table = Table(title=self.title, caption=caption, title_justify="left")
        table.add_column("configuration")
        for name in ("memory", "share", "gain", "90 % interval"):
            table.add_column(name, justify="right")
        table.add_column("what became of it")
        level = "" if self.now_hit_ratio is None else f"hit ratio {self.now_hit_ratio:.2%}"
        table.add_row(self.now, "as now", "", "", "", f"now, {level}".removesuffix(", "))
        ranked = sorted(self.outcome.trail, key=lambda t: -2.0 if t.gain is None else -t.gain.value)
        for one in ranked:
            gain = one.gain
            table.add_row(
                self._name(one.candidate),
                self._memory(one.candidate),
                f"{one.share:.3g}",
                "-" if gain is None else f"{100 * gain.value:+.2f}",
                "-" if gain is None else f"{100 * gain.low:+.2f} … {100 * gain.high:+.2f}",
                # The figures stand beside it.
                one.fate.partition(": ")[0] if gain is not None else one.fate,
            )
        return table

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain data; ratios and gains are 0..1."""
        outcome = self.outcome
        return {
            "of": self.title,
            "source": self.source,
            "conclusion": outcome.conclusion.value,
            "reason": outcome.reason,
            "now": {"configuration": self.now, "hit_ratio": self.now_hit_ratio},
            "best": {"configuration": self._name(outcome.best), **_plain(outcome.best), **_gain(outcome.gain)},
            "exhaustive": outcome.exhaustive,
            "accesses": outcome.accesses,
            "memory_unit": "keys" if self.in_keys else "bytes",
            "trail": [
                {
                    "configuration": self._name(one.candidate),
                    **_plain(one.candidate),
                    "share": one.share,
                    **_gain(one.gain),
                    "fate": one.fate,
                }
                for one in outcome.trail
            ],
        }

    def _name(self, candidate: ReplayCandidate | CacheConfiguration) -> str:
        samples = "" if candidate.maxmemory_samples == 5 else f", {candidate.maxmemory_samples} samples"
        return _name(candidate) + samples

    def _memory(self, candidate: ReplayCandidate | CacheConfiguration) -> str:
        if isinstance(candidate, ReplayCandidate):
            return amount(candidate.capacity_bytes, in_keys=self.in_keys)
        return amount(candidate.maxmemory_bytes)


def search_trace(question: TraceQuestion, options: SearchOptions) -> SearchAnswer:
    """Search a trace. `question.at` is the memory now, the first setting the configuration now; further settings and
    memories say what to try, without them the eviction policies and LFU parameters that are worth it.

    Raises TraceFileError for the file, SettingsError for what is asked of it.
    """
    if question.at is None:
        raise SettingsError("`--search` needs the memory now: `--at 64mb`, or `--at 25%` of what the whole trace takes")
    try:
        file = read_trace(
            question.path,
            trace_format=question.trace_format,
            columns=question.columns,
            rate_per_s=question.rate_per_s,
            limit=question.limit,
            sampling_rate=question.sampling_rate,
        )
        searched = TraceSearch(
            file,
            _candidate(question.settings[0], question.maxmemory_samples),
            space_of(question.settings, _POLICIES),
            at=question.at.of,
            sizes=[memory.of for memory in question.memories],
            entry_bytes=question.entry_bytes,
            warm_up=question.warm_up,
            seed=question.seed,
            budget_accesses=options.budget_accesses,
            minimum_gain=options.minimum_gain,
        )
    except CachewardenError:
        raise
    except ValueError as error:
        raise SettingsError(str(error)) from None
    outcome = _run(searched, options.ray)
    study = searched.study
    where = "" if options.ray is None else ", on Ray"
    return SearchAnswer(
        title=question.path.name,
        source=f"{len(file.trace)} accesses to {study.sampled_keys} keys{where}",
        now=_name(searched.now.candidate),
        now_hit_ratio=searched.now.hit_ratio.value,
        outcome=outcome,
        in_keys=study.in_keys,
    )


def space_of(settings: Sequence[Setting], default: Sequence[EvictionPolicy]) -> SearchSpace:
    """Return what to try: what was named where anything was, else `default`, and LFU decays by the turnover."""
    named = list(dict.fromkeys(s.eviction_policy for s in settings if s.eviction_policy is not None))
    pairs = [s.lfu for s in settings if s.lfu is not None]
    ttls = list(dict.fromkeys(s.ttl_ms for s in settings))
    space = SearchSpace(
        eviction_policies=tuple(named if len(named) > 1 else default),
        maxmemory_samples=(10,),
        ttls_ms=tuple(ttls) if len(ttls) > 1 else (),
    )
    if not pairs:
        return space
    logs, decays = zip(*pairs, strict=True)
    return replace(space, lfu_log_factors=tuple(dict.fromkeys(logs)), decays_min=tuple(dict.fromkeys(decays)))


def _run(searched: TraceSearch, ray_address: str | None) -> SearchOutcome[ReplayCandidate]:
    if ray_address is None:
        return run_search(searched.search, searched.evaluator_at)
    # Ray takes seconds to import and to start.
    from cluster.ray_runtime import start_ray, stop_ray
    from cluster.ray_search import run_search_on_ray

    start_ray(address=None if ray_address == "local" else ray_address, object_store_mib=512)
    try:
        return run_search_on_ray(searched.search, searched.evaluator_at, deadline_s=_RAY_DEADLINE_S)
    finally:
        stop_ray()


def _candidate(setting: Setting, samples: int) -> ReplayCandidate:
    log_factor, decay_min = setting.lfu or (10, 1)
    return ReplayCandidate(1, setting.eviction_policy or "allkeys-lru", samples, log_factor, decay_min, setting.ttl_ms)


async def search_live(asked: LiveQuestion, options: SearchOptions, token: str) -> SearchAnswer:
    """Search around what a running deployment has now; `asked` names the service and what to try."""
    async with whatif_live.client_of(asked.url, token) as client:
        return await search_service(client, asked.service or "", asked.memories, asked.settings, options)


async def search_service(
    client: httpx.AsyncClient,
    service: str,
    memories: Sequence[Memory],
    settings: Sequence[Setting],
    options: SearchOptions,
) -> SearchAnswer:
    """Search around a service's present configuration; every candidate is answered by the API, from its newest look.

    Raises OperatingError with the API's message, SettingsError where the service's configuration was not seen.
    """
    seen = (await whatif_live.call(client, "GET", f"/api/v1/cache/services/{quote(service, safe='')}"))["service"]
    now = _configuration(seen)
    evicted_per_s = seen.get("eviction_rate") or 0.0
    turnover_ms = 1000.0 * (seen.get("resident_keys") or 0) / evicted_per_s if evicted_per_s > 0 else None
    space = replace(space_of(settings, _LIVE_POLICIES), maxmemory_samples=())
    sizes = [now.maxmemory_bytes, *(memory.of(now.maxmemory_bytes) for memory in memories)]
    found = [
        candidate
        for size in sizes
        for candidate in candidates_around(replace(now, maxmemory_bytes=size), space, turnover_ms)
    ]
    search = Search(
        tuple(dict.fromkeys(found)),
        accesses=1,
        budget_accesses=len(found) + 1,
        minimum_gain=options.minimum_gain,
        name=_name,
    )
    answer: dict[str, Any] = {}
    while batch := search.next_batch():
        for first in range(0, len(batch), _API_CANDIDATES_MAX):
            part = batch[first : first + _API_CANDIDATES_MAX]
            body = {"service_name": service, "candidates": [_asked(e.candidate) for e in part]}
            answer = await whatif_live.call(client, "POST", "/api/v1/cache/whatif", body)
            search.told([_told(e, result) for e, result in zip(part, answer["results"], strict=True)])
    observed = answer.get("observed") or {"captured_accesses": 0, "sampled_keys": 0}
    return SearchAnswer(
        title=service,
        source="{captured_accesses} captured accesses, {sampled_keys} sampled keys".format_map(observed),
        now=_name(now),
        now_hit_ratio=observed.get("hit_ratio"),
        outcome=search.outcome(),
    )


def _configuration(seen: dict[str, Any]) -> CacheConfiguration:
    knobs = seen.get("knobs") or {}
    policy = knobs.get("maxmemory-policy")
    if policy not in EVICTION_POLICIES:
        raise OperatingError(f"the configuration of `{seen.get('name', 'the service')}` was not seen yet, ask again")
    return CacheConfiguration(
        maxmemory_bytes=seen.get("maxmemory_bytes") or 0,
        eviction_policy=policy,
        maxmemory_samples=int(knobs.get("maxmemory-samples", 5)),
        lfu_log_factor=int(knobs.get("lfu-log-factor", 10)),
        lfu_decay_time_min=int(knobs.get("lfu-decay-time", 1)),
    )


def _asked(candidate: CacheConfiguration) -> dict[str, Any]:
    asked: dict[str, Any] = {
        "maxmemory_bytes": candidate.maxmemory_bytes,
        "eviction_policy": candidate.eviction_policy,
        "maxmemory_samples": candidate.maxmemory_samples,
        "lfu_log_factor": candidate.lfu_log_factor,
        "lfu_decay_time": candidate.lfu_decay_time_min,
    }
    if candidate.ttl_ms is not None:
        asked["ttl_ms"] = candidate.ttl_ms
    return asked


def _told(evaluation: Evaluation[CacheConfiguration], result: dict[str, Any]) -> Finding[CacheConfiguration]:
    if not result["answered"]:
        return Finding(evaluation, None, result["reason"])
    return Finding(evaluation, Estimate(result["change"], result["change_low"], result["change_high"]))


def _name(candidate: ReplayCandidate | CacheConfiguration) -> str:
    policy = candidate.eviction_policy
    lfu = f" {candidate.lfu_log_factor}:{candidate.lfu_decay_time_min}" if policy.endswith("lfu") else ""
    ttl = (
        ""
        if candidate.ttl_ms is None
        else ", no TTL"
        if candidate.ttl_ms == 0
        else f", TTL {candidate.ttl_ms / 1000:g} s"
    )
    return f"{policy}{lfu}{ttl}"


def _plain(candidate: ReplayCandidate | CacheConfiguration) -> dict[str, Any]:
    plain = asdict(candidate)
    return {("memory" if name in ("capacity_bytes", "maxmemory_bytes") else name): v for name, v in plain.items()}


def _gain(gain: Estimate | None) -> dict[str, float | None]:
    if gain is None:
        return {"gain": None, "gain_low": None, "gain_high": None}
    return {"gain": gain.value, "gain_low": gain.low, "gain_high": gain.high}


def _points(gain: Estimate) -> str:
    return f"{100 * gain.value:+.2f} points ({100 * gain.low:+.2f} to {100 * gain.high:+.2f})"
