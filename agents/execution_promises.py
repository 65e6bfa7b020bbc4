"""What a change promised beside hits, and what became of it: memory that the same keys need less, expiries apart.

Memory is compared between the look before the change and the newest one; the share of deadlines in the busiest second
is what the passes of its TTL rules met first and left last. It asks nothing and writes nothing.

INVARIANT: what was not measured is None and is never held against a change.
"""

from __future__ import annotations

from typing import Any

from agents.execution_run import Run
from agents.guardrails import Judgement, Ruling
from agents.info_facts import InfoFacts, facts_of_info
from agents.playbook_tables.encoding import ENCODING, ENCODING_KNOBS
from cachewarden.codec import to_jsonable

__all__ = ["freed_bytes", "judge_promises", "peaks", "promises_seen"]

_FULL_FROM = 0.95
"""Share of maxmemory from which on a cache takes up again what is freed."""
_WORTH_KEEPING = 0.5
"""Share of what was promised from which on a change is kept, as for hits (`guardrails`)."""


def freed_bytes(run: Run) -> float | None:
    """Return by how much less memory the same keys need now; negative for more, None where nobody can tell.

    Compact encodings by bytes per key, since keys come and go; fragments by the resident memory of the process; all
    else by `used_memory`, unless the cache fills up again what is freed. Across a restart nothing is compared.
    """
    if run.proposal.prediction.freed_bytes is None or run.seen is None or run.last_look is None:
        return None
    before, now = run.seen, facts_of_info(run.last_look.info)
    if before.run_id != now.run_id:
        return None
    knobs = {c.knob for c in run.proposal.knob_changes}
    if knobs and knobs <= set(ENCODING_KNOBS):
        per_key, per_key_now = _per_key(before), _per_key(now)
        if per_key is None or per_key_now is None or not now.resident_keys:
            return None
        return (per_key - per_key_now) * now.resident_keys
    if "activedefrag" in knobs:
        return None if before.rss_bytes is None or now.rss_bytes is None else float(before.rss_bytes - now.rss_bytes)
    if before.used_memory_bytes is None or now.used_memory_bytes is None or _refilled(before, now):
        return None
    return float(before.used_memory_bytes - now.used_memory_bytes)


def _refilled(before: InfoFacts, now: InfoFacts) -> bool:
    """Say whether the memory in use is set by eviction: other keys have taken what was freed."""
    if before.evicted is not None and now.evicted is not None and now.evicted > before.evicted:
        return True
    return bool(now.maxmemory_bytes) and (now.used_memory_bytes or 0) >= _FULL_FROM * (now.maxmemory_bytes or 0)


def _unmeasured(run: Run) -> dict[str, str]:
    if run.seen is None or run.last_look is None or freed_bytes(run) is not None:
        return {}
    if _refilled(run.seen, facts_of_info(run.last_look.info)):
        return {"not_measured": "the cache is full or evicts, so what is freed is taken up again"}
    return {"not_measured": "the server restarted or does not tell"}


def _per_key(facts: InfoFacts) -> float | None:
    if not facts.resident_keys or facts.used_memory_bytes is None:
        return None
    return (facts.used_memory_bytes - (facts.fixed_overhead_bytes or 0)) / facts.resident_keys


def peaks(run: Run) -> tuple[float | None, float | None]:
    """Return the shares of deadlines in the busiest second before the TTL rules acted and now, the worst pattern's."""
    before = [r.peak_before for r in run.rules if r.peak_before is not None and r.rule.jitter_ms]
    now = [r.peak_now for r in run.rules if r.peak_now is not None and r.rule.jitter_ms]
    return max(before, default=None), max(now, default=None)


def promises_seen(run: Run) -> dict[str, Any]:
    """Return predicted and measured side by side, for the journal; empty where hits were all that was promised."""
    found: dict[str, Any] = {}
    prediction = run.proposal.prediction
    if prediction.freed_bytes is not None:
        freed = {"predicted": to_jsonable(prediction.freed_bytes), "freed_bytes": freed_bytes(run)}
        found["memory"] = {**freed, **_unmeasured(run)}
    if prediction.peak_share is not None:
        before, now = peaks(run)
        found["expiries"] = {"predicted": prediction.peak_share, "peak_before": before, "peak_now": now}
    return found


def judge_promises(run: Run, judgement: Judgement, *, more: bool) -> Judgement:
    """Rule on a change that would be kept for its hits: on, or back, where it has not given what it was made for.

    `more`: whether another window may be waited for.
    """
    if judgement.ruling is not Ruling.KEEP:
        return judgement
    unkept = _memory_unkept(run) or _expiries_unkept(run)
    if unkept is None:
        return judgement
    return Judgement(Ruling.CONTINUE if more else Ruling.ROLL_BACK, f"less than promised: {unkept}")


def _memory_unkept(run: Run) -> str | None:
    promised, freed = run.proposal.prediction.freed_bytes, freed_bytes(run)
    # Without storing keys again a threshold acts as the application writes them anew, which may take days.
    if promised is None or freed is None or run.proposal.playbook == ENCODING.name:
        return None
    if promised.low <= 0:
        # Nobody knew how much it would be, so anything will do.
        return None if freed > 0 else f"no memory was freed, {-freed:.0f} bytes more are in use"
    if freed >= _WORTH_KEEPING * promised.low:
        return None
    return f"{freed:.0f} bytes were freed of at least {promised.low:.0f}"


def _expiries_unkept(run: Run) -> str | None:
    promised, (before, now) = run.proposal.prediction.peak_share, peaks(run)
    if promised is None or before is None or now is None:
        return None
    if now <= before - _WORTH_KEEPING * max(before - promised, 0.0):
        return None
    return f"{now:.1%} of the deadlines lie in one second, it was {before:.1%} and should be {promised:.1%}"
