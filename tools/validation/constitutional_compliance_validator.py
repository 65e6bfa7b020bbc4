"""Whether this deployment keeps the promises of its constitution: checks of the code, and of a running service.

    python tools/validation/constitutional_compliance_validator.py --service cache_performance_optimizer
    python tools/validation/constitutional_compliance_validator.py --url http://127.0.0.1:8000 --token-file FILE

Each check tries the thing itself, on data made for it, and has a counterpart that would fail if the thing said the
same to everything. It changes nothing anywhere; against a running service it sends two requests that must be refused.
Exit code 0: all kept, 1: at least one is not, 2: wrong arguments.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    # Started by its path, Python looks for modules beside the script and not at the root.
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from rich.console import Console
from rich.table import Table

from agents.actuator import Actuator
from agents.obstacles import Situation
from agents.settlement import settle
from cachewarden import messages, observation, protocol
from cachewarden.errors import ConstitutionError
from cachewarden.machine import AcquireLease, Received, Record, WriteKnobs
from cachewarden.messages import AGENT_ID, CONSTITUTIONAL_HASH, Decision, Message, Proposal, ResolutionOutcome, Verdict
from cachewarden.models import CacheOptimizationRequest, CacheOptimizationResponse
from cachewarden.policy.constitution import REQUIRED_CHECKS, Constitution, load_constitution, parse_constitution
from cachewarden.policy.engine import evaluate
from cachewarden.policy.facts import facts_of
from cachewarden.policy.surroundings import surroundings_of
from cachewarden.protocol import Execute
from cachewarden.settings import CacheOptimizerSettings
from serve import schemas
from tools.validation.live_checks import live_checks
from tools.validation.sample_case import FLEET, NOW_MS, SERVICE, SETTINGS, lawful_proposal, snapshot

__all__ = ["code_checks", "main"]

ROOT = Path(__file__).resolve().parents[2]
SPECIFIED_HASH = "cdd01ef066bc6cf2"
"""Written out once more on purpose: comparing the constant with itself could not fail."""

Outcome = tuple[bool, str]
"""Whether it was kept, and what was seen."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What became of one check."""

    check: str
    kept: bool
    seen: str


def _constitution() -> Constitution:
    return load_constitution(ROOT / SETTINGS.constitution_path)


def hash_is_the_specified_one() -> Outcome:
    """The constant, the models and the settings agree with the specification."""
    found = {
        "messages": CONSTITUTIONAL_HASH,
        "request": CacheOptimizationRequest.model_fields["constitutional_hash"].default,
        "response": CacheOptimizationResponse.model_fields["constitutional_hash"].default,
        "settings": CacheOptimizerSettings.model_fields["constitutional_hash"].default,
    }
    wrong = {name: value for name, value in found.items() if value != SPECIFIED_HASH}
    return not wrong, f"`{SPECIFIED_HASH}` in {', '.join(found)}" if not wrong else f"other values: {wrong}"


def constitution_declares_the_hash() -> Outcome:
    """The shipped document loads, and the same document with another hash does not."""
    path = ROOT / SETTINGS.constitution_path
    text = path.read_text(encoding="utf-8")
    digest = parse_constitution(text, str(path)).digest
    forged = text.replace(SPECIFIED_HASH, SPECIFIED_HASH[::-1])
    try:
        parse_constitution(forged, "forged")
    except ConstitutionError as error:
        return forged != text, f"content digest {digest[:16]}, forged: {str(error)[:60]}"
    return False, "a constitution with another hash was loaded"


def constitution_has_the_four_checks() -> Outcome:
    """Each of the four checks of the specification has principles with an expression."""
    principles = _constitution().principles
    counts = {check.value: sum(p.check is check for p in principles) for check in REQUIRED_CHECKS}
    return all(counts.values()) and len(counts) == 4, ", ".join(f"{name} {n}" for name, n in counts.items())


def _kinds(base: type[Message]) -> Iterator[type[Message]]:
    for kind in base.__subclasses__():
        yield kind
        yield from _kinds(kind)


def every_message_carries_the_hash() -> Outcome:
    """All message types between agents, and all answers of the API, have the hash as a field that is filled in."""
    modules = {module.__name__ for module in (messages, observation, protocol)}
    # A class with slots is made anew by the decorator, and the first one may still be about.
    kinds = {kind.__qualname__: kind for kind in _kinds(Message) if kind.__module__ in modules}
    bare = [
        name
        for name, kind in kinds.items()
        if {f.name: f.default for f in dataclasses.fields(kind)}.get("constitutional_hash") != SPECIFIED_HASH
    ]
    answers = [name for name in schemas.__all__ if name.endswith("Response") and name != "ErrorResponse"]
    for name in [*answers, "ErrorBody"]:
        field = getattr(schemas, name).model_fields.get("constitutional_hash")
        if field is None or not (field.is_required() or field.default == SPECIFIED_HASH):
            bare.append(name)
    seen = f"{len(kinds)} messages, {len(answers)} answers, 1 error shape"
    return bool(kinds and answers) and not bare, seen if not bare else f"without it: {', '.join(bare)}"


def _judge(proposal: Proposal, **broken: object) -> Verdict:
    around = surroundings_of([proposal], [snapshot()], FLEET, SETTINGS)
    facts = {**facts_of(proposal, snapshot(), FLEET, around), **broken}
    return evaluate(_constitution(), proposal, facts, NOW_MS)


def lawful_change_is_allowed() -> Outcome:
    """A change that nothing stands against is allowed, with one finding of each principle."""
    verdict = _judge(lawful_proposal())
    complete = len(verdict.findings) == len(_constitution().principles)
    return verdict.decision is Decision.ALLOW and complete, f"{len(verdict.findings)} findings, {verdict.decision}"


def validator_fails_closed() -> Outcome:
    """Without facts, with facts of a wrong kind, and with numbers that are none, the same change is denied."""
    proposal = lawful_proposal()
    hollow = dataclasses.replace(proposal, prediction=dataclasses.replace(proposal.prediction, lookups_per_s=math.nan))
    constitution = _constitution()
    verdicts = {
        "no facts": evaluate(constitution, proposal, {}, NOW_MS),
        "facts of a wrong kind": _judge(proposal, **dict.fromkeys(sorted(constitution.words), "broken")),
        "not a number": evaluate(constitution, hollow, {}, NOW_MS),
    }
    for word in ("changes", "hit_ratio_floor", "knobs_stale", "snapshot_role"):
        verdicts[f"`{word}` unknown"] = _judge(proposal, **{word: None})
    allowed = [name for name, verdict in verdicts.items() if verdict.decision is Decision.ALLOW]
    return not allowed, f"denied: {', '.join(verdicts)}" if not allowed else f"ALLOWED: {', '.join(allowed)}"


def denied_change_is_never_executed() -> Outcome:
    """Neither consensus nor actuator go on with a denied change; with an allowed one both do."""
    lawful = lawful_proposal()
    unlawful = dataclasses.replace(lawful, rationale="", evidence=())
    went = {}
    for name, proposal in (("lawful", lawful), ("unlawful", unlawful)):
        verdict = _judge(proposal)
        situation = Situation(
            modes={SERVICE: FLEET.service(SERVICE).mode},
            weights={SERVICE: 1.0},
            history={},
            memory_bytes={SERVICE: snapshot().maxmemory_bytes},
            intents=(),
            budget_bytes=FLEET.total_memory_bytes or 0,
            budgeted=frozenset({SERVICE}),
        )
        (resolution,) = settle([proposal], [verdict], situation, SETTINGS, NOW_MS)
        # The actuator is handed a forged resolution: it must not rely on those before it.
        forged = dataclasses.replace(resolution, outcome=ResolutionOutcome.GO)
        order = Execute(
            proposal=proposal, verdict=verdict, resolution=forged, hit_ratio_before=0.8, latency_us_p99_before=200.0
        )
        actuator = Actuator(holder="validator", settings=SETTINGS, fleet=FLEET)
        effects = actuator.step(Received(sender="coordinator", message=order), NOW_MS)
        began = any(
            isinstance(e, (AcquireLease, WriteKnobs)) or (isinstance(e, Record) and e.kind == "change_intended")
            for e in effects
        )
        went[name] = (resolution.outcome is ResolutionOutcome.GO, began)
    told = "; ".join(f"{name}: consensus goes {go}, actuator begins {began}" for name, (go, began) in went.items())
    return went == {"lawful": (True, True), "unlawful": (False, False)}, told


CODE_CHECKS: dict[str, Callable[[], Outcome]] = {
    "the hash is the specified one": hash_is_the_specified_one,
    "the constitution declares the hash": constitution_declares_the_hash,
    "the constitution has the four checks": constitution_has_the_four_checks,
    "every message carries the hash": every_message_carries_the_hash,
    "a lawful change is allowed": lawful_change_is_allowed,
    "the validator fails closed": validator_fails_closed,
    "a denied change is never executed": denied_change_is_never_executed,
}


def code_checks() -> list[Finding]:
    """Run all checks of the code; one that cannot be run is not kept."""
    findings = []
    for name, check in CODE_CHECKS.items():
        try:
            kept, seen = check()
        except Exception as error:  # noqa: BLE001 - whatever goes wrong, the promise was not shown to be kept
            kept, seen = False, f"could not be checked: {type(error).__name__}: {error}"
        findings.append(Finding(name, kept, seen))
    return findings


def main(arguments: list[str] | None = None) -> int:
    """Run the checks and print them; returns the exit code."""
    parser = argparse.ArgumentParser(description="check that the promises of the constitution are kept")
    parser.add_argument("--service", choices=[AGENT_ID], default=AGENT_ID)
    parser.add_argument("--url", help="a running service to be checked as well, e.g. http://127.0.0.1:8000")
    parser.add_argument("--token-file", type=Path, help="file with a token that has the scope `operate` or `admin`")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    if (options.url is None) != (options.token_file is None):
        parser.error("--url and --token-file belong together")
    findings = code_checks()
    if options.url is not None:
        try:
            token = options.token_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            parser.error(f"the token file cannot be read: {error}")
        findings += [Finding(*found) for found in live_checks(options.url, token, SPECIFIED_HASH)]
    kept = all(finding.kept for finding in findings)
    if options.json:
        listed = [dataclasses.asdict(finding) for finding in findings]
        answer = {"service": options.service, "constitutional_hash": SPECIFIED_HASH, "kept": kept, "checks": listed}
        print(json.dumps(answer, indent=1))
        return 0 if kept else 1
    table = Table(title=f"{options.service}: promises of the constitution")
    for column in ("check", "kept", "seen"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        table.add_row(finding.check, "yes" if finding.kept else "NO", finding.seen)
    console = Console()
    console.print(table)
    console.print(f"{sum(f.kept for f in findings)} of {len(findings)} kept")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
