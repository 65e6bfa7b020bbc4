"""What a person reads of a run that failed: the promise, the faults that it takes, and what happened, in order.

It decides nothing. INVARIANT: a report names everything that is needed to run the same again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from simulation.durations import words_of_ms
from simulation.run import Outcome
from simulation.world import START_MS

__all__ = ["as_json", "failure_text", "scenario_faults_text"]

_LINES_MAX = 120
_ALWAYS = ("FAULT", "over:", "all faults")


def failure_text(outcome: Outcome, *, before: int = 0, options: str = "") -> str:
    """Return a failure as text; `before` is how many faults it had before it was shrunk, 0 where it was not, `options`
    those of the command line with which it was found, by default the name of the scenario."""
    lines = [f"scenario `{outcome.scenario}`, seed {outcome.seed}: a promise was broken"]
    lines += [f"  {words_of_ms(v.at_ms - START_MS)}  {v.checker}: {v.words}" for v in outcome.violations]
    shrunk = f" (of {before})" if before else ""
    lines += ["", f"faults that are needed{shrunk}: {len(outcome.faults) or 'none'}"]
    lines += scenario_faults_text(outcome)
    lines += ["", "what happened (minutes:seconds of virtual time):"]
    lines += [f"  {words_of_ms(at_ms):>12}  {words[:200]}" for at_ms, words in _shown(outcome)]
    asked = options or f"--scenario {outcome.scenario}"
    lines += ["", f"run it again: python -m simulation {asked} --seed {outcome.seed} --timeline"]
    return "\n".join(lines)


def scenario_faults_text(outcome: Outcome) -> list[str]:
    """Return the faults as they would be written into a scenario file."""
    found = []
    for fault in outcome.faults:
        parts = [f"at: {fault.at_ms}ms", f"fault: {fault.fault}"]
        parts += [f"after_write: {fault.after_write}"] if fault.after_write else []
        parts += [f'on: "{fault.on}"'] if fault.on else []
        parts += [f"for: {fault.for_ms}ms"] if fault.for_ms else []
        parts += [f'value: "{fault.value}"'] if fault.value else []
        found.append(f"  - {{{', '.join(parts)}}}")
    return found


def _shown(outcome: Outcome) -> Iterable[tuple[int, str]]:
    """Return the lines that bear on the violation: all faults, everything that names what it names, and its end."""
    named = {w.strip("`,:;()") for v in outcome.violations for w in v.words.split() if w.startswith("`")}
    lines = list(outcome.timeline)
    chosen = [
        (at_ms, words)
        for number, (at_ms, words) in enumerate(lines)
        if words.startswith(_ALWAYS) or number >= len(lines) - 25 or any(name and name in words for name in named)
    ]
    return chosen if len(chosen) <= _LINES_MAX else [*chosen[:10], (chosen[10][0], "…"), *chosen[-_LINES_MAX + 11 :]]


def as_json(outcome: Outcome) -> dict[str, Any]:
    """Return an outcome for programs."""
    return {
        "scenario": outcome.scenario,
        "seed": outcome.seed,
        "ok": outcome.ok,
        "elapsed_ms": outcome.elapsed_ms,
        "trace": outcome.trace,
        "cpu_s": round(outcome.cpu_s, 3),
        "violations": [
            {"at_ms": v.at_ms - START_MS, "promise": v.checker, "words": v.words} for v in outcome.violations
        ],
        "faults": [f.model_dump(by_alias=True) for f in outcome.faults],
        "counts": outcome.counts,
        "hit_ratios": outcome.hit_ratios,
    }
