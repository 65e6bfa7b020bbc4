"""The constitution as a person writes it: principles in YAML with CEL expressions over facts, checked when it is
loaded.

Whatever could make a principle silently powerless is an error with file and line here: a syntax error, a word that is
no fact, an expression that gives no yes or no, a scope that nothing falls into, a check of the specification without
any principle. Nothing is judged here (`engine.py` does that) and nothing is read but the one file.

INVARIANT: a `Constitution` has at least one principle of each of the four checks, and every expression compiled.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from string import Formatter
from typing import Any, Final, Literal

import cel
from pydantic import BaseModel, ConfigDict, Field, field_validator

from cachewarden.codec import digest
from cachewarden.errors import ConstitutionError
from cachewarden.messages import CONSTITUTIONAL_HASH, Decision, Finding
from cachewarden.policy.vocabulary import EXAMPLE, KINDS, PLAYBOOKS
from cachewarden.yaml_lines import load_yaml, validate_yaml

__all__ = [
    "EVALUATION_ERRORS",
    "REQUIRED_CHECKS",
    "Check",
    "Constitution",
    "Principle",
    "load_constitution",
    "parse_constitution",
]

EVALUATION_ERRORS: Final = (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError)
"""Everything that the CEL library raises for an expression that cannot be evaluated on given facts."""

_SCOPES: Final = frozenset((*KINDS, *PLAYBOOKS))
_FUNCTIONS: Final = frozenset(
    {"bool", "contains", "double", "endsWith", "int", "matches", "size", "startsWith", "string", "uint"}
)
# The library counts a macro's own variable among the variables of the expression; these are bound, not looked up.
_BOUND_BY_MACRO: Final = re.compile(r"\.\s*(?:all|exists|exists_one|filter|map)\s*\(\s*([A-Za-z_]\w*)\s*,")


class Check(StrEnum):
    """What a principle guards; the first four are the checks that the specification demands."""

    DATA_SOVEREIGNTY = "data_sovereignty"
    PERFORMANCE_IMPACT = "performance_impact"
    RESOURCE_FAIRNESS = "resource_fairness"
    TRANSPARENCY = "transparency"
    SAFETY = "safety"


REQUIRED_CHECKS: Final = (
    Check.DATA_SOVEREIGNTY,
    Check.PERFORMANCE_IMPACT,
    Check.RESOURCE_FAIRNESS,
    Check.TRANSPARENCY,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Principle:
    """One rule: `expression` must hold, or `message` says why not. `applies_to` empty means everything."""

    id: str
    title: str
    rationale: str
    severity: str
    check: Check
    applies_to: tuple[str, ...]
    expression: str
    message: str

    def applies(self, kinds: tuple[str, ...], playbook: str) -> bool:
        """Say whether a proposal of these kinds and this playbook falls into the scope."""
        return not self.applies_to or playbook in self.applies_to or any(kind in self.applies_to for kind in kinds)

    def finding(self, decision: Decision, reason: str, *, evaluated: bool = True) -> Finding:
        """Return what this principle says of a proposal."""
        return Finding(
            principle_id=self.id,
            title=self.title,
            severity=self.severity,
            decision=decision,
            reason=reason,
            evaluated=evaluated,
        )

    def denial(self, facts: Mapping[str, Any]) -> str:
        """Return the message with the facts filled in; the bare message where a fact is missing or unknown."""
        try:
            return self.message.format_map(_InWords(facts))
        except EVALUATION_ERRORS:
            return self.message


@dataclass(frozen=True, slots=True, kw_only=True)
class Constitution:
    """All principles, compiled; `digest` names exactly this content and stands in every verdict.

    Compiled expressions cannot be pickled, so unpickling compiles again.
    """

    version: str
    title: str
    principles: tuple[Principle, ...]
    digest: str
    programs: tuple[Any, ...] = field(init=False, repr=False, compare=False)
    """Compiled expressions, in the order of `principles`."""
    words: frozenset[str] = field(init=False, repr=False, compare=False)
    """Facts that any expression looks at: all that an evaluation context needs."""
    words_of: tuple[frozenset[str], ...] = field(init=False, repr=False, compare=False)
    """Facts that the expression or the message of each principle names, in the order of `principles`."""
    holding: tuple[Finding, ...] = field(init=False, repr=False, compare=False)
    """The finding of each principle where it holds: always the same, so it is made once."""

    def __post_init__(self) -> None:
        programs = tuple(cel.compile(p.expression) for p in self.principles)
        words = tuple(_words(program, p.expression) for p, program in zip(self.principles, programs, strict=True))
        object.__setattr__(self, "programs", programs)
        object.__setattr__(self, "words", frozenset().union(*words))
        told = (_placeholders(p.message) for p in self.principles)
        object.__setattr__(self, "words_of", tuple(own | named for own, named in zip(words, told, strict=True)))
        object.__setattr__(self, "holding", tuple(p.finding(Decision.ALLOW, "holds") for p in self.principles))

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self.version, self.title, self.principles, self.digest)

    @property
    def checks(self) -> tuple[str, ...]:
        """The checks that have a principle, sorted."""
        return tuple(sorted({p.check.value for p in self.principles}))


class _InWords:
    """Facts by name as a message words them; only those that it names are worded."""

    def __init__(self, facts: Mapping[str, Any]) -> None:
        self._facts = facts

    def __getitem__(self, name: str) -> Any:
        return _in_words(self._facts[name])


def _in_words(value: Any) -> Any:
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(str(v) for v in value if v != "") or "none"
    return value


def _restored(version: str, title: str, principles: tuple[Principle, ...], content_digest: str) -> Constitution:
    return Constitution(version=version, title=title, principles=principles, digest=content_digest)


class _PrincipleDocument(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern=r"^[a-z][a-z0-9-]{1,62}$")
    title: str = Field(min_length=1, max_length=200)
    rationale: str = Field(min_length=1, max_length=2_000)
    severity: Literal["low", "medium", "high", "critical"]
    check: Check
    applies_to: tuple[str, ...] = ()
    expression: str = Field(min_length=1, max_length=4_000)
    message: str = Field(min_length=1, max_length=1_000)

    @field_validator("applies_to")
    @classmethod
    def _known_scope(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        unknown = sorted(set(value) - _SCOPES)
        if unknown:
            raise ValueError(f"no playbook or kind is called `{unknown[0]}`, known are: {', '.join(sorted(_SCOPES))}")
        return value


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    constitutional_hash: str
    version: str = Field(min_length=1, max_length=50)
    title: str = Field(min_length=1, max_length=200)
    principles: tuple[_PrincipleDocument, ...] = Field(min_length=1, max_length=200)

    @field_validator("constitutional_hash")
    @classmethod
    def _ours(cls, value: str) -> str:
        if value != CONSTITUTIONAL_HASH:
            raise ValueError(f"must be `{CONSTITUTIONAL_HASH}`")
        return value


def _words(program: Any, expression: str) -> frozenset[str]:
    bound = set(_BOUND_BY_MACRO.findall(expression))
    return frozenset(name for name in program.variables() if name in EXAMPLE or name not in bound)


def _placeholders(message: str) -> frozenset[str]:
    try:
        return frozenset(
            name.partition(".")[0].partition("[")[0] for _, name, _, _ in Formatter().parse(message) if name
        )
    except ValueError:
        # It can never be filled in, so it says the same at any time.
        return frozenset()


def _problem_of_expression(expression: str) -> str | None:
    """Return why an expression cannot serve as a principle, or None."""
    try:
        program = cel.compile(expression)
    except ValueError as error:
        # The library repeats the whole expression before and a drawing after the one line that helps.
        said = re.search(r"ERROR: <input>:(\d+):(\d+): ([^\n]*)", str(error))
        detail = str(error).splitlines()[0] if said is None else f"line {said[1]} column {said[2]} of it: {said[3]}"
        return f"is not valid CEL, {detail}"
    unknown = sorted(_words(program, expression) - EXAMPLE.keys())
    if unknown:
        return f"`{unknown[0]}` is not a fact, `docs/CONSTITUTION.md` lists them all"
    functions = sorted(f for f in program.functions() if f[0].isalpha() and f not in _FUNCTIONS)
    if functions:
        return f"`{functions[0]}` is not a function here, there are: {', '.join(sorted(_FUNCTIONS))}"
    if not program.variables():
        return "looks at no fact, so it could never judge anything"
    try:
        result = program.execute(dict(EXAMPLE))
    except EVALUATION_ERRORS as error:
        return f"cannot be evaluated on the example facts: {str(error).splitlines()[0]}"
    if not isinstance(result, bool):
        return f"must give true or false, on the example facts it gives `{result!r}`"
    return None


def _problem_of_message(message: str) -> str | None:
    """Return why the text of a denial cannot be filled in, or None."""
    try:
        fields = [name for _, name, _, _ in Formatter().parse(message) if name is not None]
        unknown = [name for name in fields if name not in EXAMPLE]
        if unknown:
            return f"`{{{unknown[0]}}}` is not a fact, write plain names of facts in braces"
        message.format_map({name: _in_words(value) for name, value in EXAMPLE.items()})
    except EVALUATION_ERRORS as error:
        return f"cannot be filled in: {error}"
    return None


def parse_constitution(text: str, source: str = "constitution.yaml") -> Constitution:
    """Return the constitution that a YAML text describes; raises ConstitutionError with file and line for the first
    problem."""
    document = validate_yaml(_Document, text, source, ConstitutionError)
    _, lines = load_yaml(text, source, ConstitutionError)
    first_line: dict[str, int] = {}
    for index, principle in enumerate(document.principles):
        here = lines[("principles", index)]
        if principle.id in first_line:
            raise ConstitutionError(
                f"principle `{principle.id}` stands twice, first in line {first_line[principle.id]}",
                path=source,
                line=here,
            )
        first_line[principle.id] = here
        for name, problem in (
            ("expression", _problem_of_expression(principle.expression)),
            ("message", _problem_of_message(principle.message)),
        ):
            if problem is not None:
                line = lines.get(("principles", index, name), here)
                raise ConstitutionError(f"{name} of principle `{principle.id}`: {problem}", path=source, line=line)
    missing = [check.value for check in REQUIRED_CHECKS if check not in {p.check for p in document.principles}]
    if missing:
        raise ConstitutionError(
            f"no principle has the check {', '.join(f'`{m}`' for m in missing)}, each of the four needs one",
            path=source,
            line=lines[("principles",)],
        )
    return Constitution(
        version=document.version,
        title=document.title,
        principles=tuple(Principle(**dict(p)) for p in document.principles),
        digest=digest(document.model_dump(mode="json")),
    )


def load_constitution(path: Path) -> Constitution:
    """Read a constitution; raises ConstitutionError with file and line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConstitutionError(f"cannot be read: {error}", path=str(path)) from None
    return parse_constitution(text, str(path))
