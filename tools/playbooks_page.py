"""Writes docs/PLAYBOOKS.md from the tables in `agents/playbook_tables/`.

`python tools/playbooks_page.py` writes it, `--check` only says whether it is current (exit code 1 if not). What a stage
means is said once, in its row; here it is only laid out.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from agents.playbook_tables.book import PLAYBOOKS  # noqa: E402 - the tree is not installed, its path comes first
from agents.playbook_tables.table import COMMON, Playbook, Stage  # noqa: E402

PAGE = ROOT / "docs" / "PLAYBOOKS.md"
HEAD = """# Playbooks

How a kind of change is carried out so that its known hazard does not happen. This page is written by
`python tools/playbooks_page.py` from the tables in `agents/playbook_tables/`, one file each; the plan of every change
has to be a walk through its table, and is refused otherwise. Words: [GLOSSARY](GLOSSARY.md); what a person does when
something goes wrong: [OPERATIONS](OPERATIONS.md#when-something-happens).

Every walk begins with `check`, ends with `observe` and `persist`, and leads to `kept`, `rolled_back`, `abandoned`, or
(where a value could not be put back, which calls a person) `failed`. A server that restarts, a lost lease, a value that
somebody else has set, and a crash of the actuator are met in each stage alike; ARCHITECTURE says how.
"""


def _row(stage: Stage) -> str:
    cells = (
        f"`{stage.name}`",
        stage.does,
        stage.requires,
        stage.observes,
        stage.succeeds,
        ", ".join(f"`{name}`" for name in stage.then),
        f"{stage.fails.value}: {stage.rollback}",
        stage.lost,
    )
    return f"| {' | '.join(cells)} |"


def _table(stages: tuple[Stage, ...]) -> list[str]:
    titles = ("stage", "does", "needs", "looks at", "succeeds when", "then", "fails to", "cannot be undone")
    return [f"| {' | '.join(titles)} |", f"|{' --- |' * len(titles)}", *map(_row, stages)]


def _section(playbook: Playbook) -> list[str]:
    first = ", ".join(f"`{name}`" for name in playbook.first)
    return [
        f"## `{playbook.name}`: {playbook.title}",
        "",
        f"Hazard: {playbook.hazard}. Begins with: {first}.",
        "",
        *_table(playbook.stages),
        "",
    ]


def page() -> str:
    """Return the whole page."""
    lines = [HEAD, "## What all have in common", "", *_table(COMMON), ""]
    for name in sorted(PLAYBOOKS):
        lines += _section(PLAYBOOKS[name])
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    """Write the page, or say whether it is current."""
    if "--check" in sys.argv[1:]:
        current = PAGE.exists() and PAGE.read_text(encoding="utf-8") == page()
        print("docs/PLAYBOOKS.md is current" if current else "docs/PLAYBOOKS.md is old, run tools/playbooks_page.py")
        return 0 if current else 1
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
