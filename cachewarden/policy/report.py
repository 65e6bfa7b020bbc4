"""A constitution explained to the person who owns it: what it forbids, in which order, or what is wrong with it and
where.

It prints nothing and judges nothing; the command line shows its lines.
"""

from __future__ import annotations

from pathlib import Path

from cachewarden.errors import ConstitutionError
from cachewarden.messages import CONSTITUTIONAL_HASH
from cachewarden.policy.constitution import Constitution, load_constitution
from cachewarden.policy.vocabulary import FACTS

__all__ = ["describe", "explain"]


def describe(constitution: Constitution) -> tuple[str, ...]:
    """Return a loaded constitution in lines of text."""
    lines = [
        f"{constitution.title}, version {constitution.version}",
        f"constitutional hash {CONSTITUTIONAL_HASH}, digest {constitution.digest}",
        f"{len(constitution.principles)} principles, checks: {', '.join(constitution.checks)}",
    ]
    for number, principle in enumerate(constitution.principles, start=1):
        scope = ", ".join(principle.applies_to) or "everything"
        lines.append(f"{number:3}. {principle.id} [{principle.check.value}, {principle.severity}, applies to {scope}]")
        lines.append(f"     {principle.title}")
    unused = sorted(FACTS.keys() - constitution.words)
    lines.append(f"{len(constitution.words)} facts decide; {len(unused)} do not: {', '.join(unused) or 'none'}")
    return tuple(lines)


def explain(path: Path) -> tuple[bool, tuple[str, ...]]:
    """Return whether the file can be used, and either what it says or the error with file and line."""
    try:
        constitution = load_constitution(path)
    except ConstitutionError as error:
        return False, (str(error),)
    return True, describe(constitution)
