"""Writes the table of all settings into docs/OPERATIONS.md, and .env.example, from `cachewarden/settings.py`.

`python tools/settings_table.py` writes both, `--check` only says whether they are current (exit code 1 if not). What a
setting means is said once, in its field; here it is only laid out.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pydantic.fields import FieldInfo  # noqa: E402 - the tree is not installed, so its path has to be there first

from cachewarden.settings import CacheOptimizerSettings  # noqa: E402

OPERATIONS = ROOT / "docs" / "OPERATIONS.md"
ENV_EXAMPLE = ROOT / ".env.example"
BEGIN, END = "<!-- settings: begin, written by tools/settings_table.py -->", "<!-- settings: end -->"

MEANINGS = {
    "constitutional_hash": "constant of ACGS; any other value is refused",
    "redis_max_connections": "per server; not used yet, each adapter has a small pool of its own",
    "target_memory_efficiency": "goal of each service, 0..1; shown, not acted upon",
    "fleet_path": "fleet file of the embedded `CachePerformanceOptimizer`; the command line takes `--fleet`",
    "state_dir": "tokens, checkpoint, hash secret, embedded blackboard",
    "constitution_path": "the constitution; relative to the working directory, else to the tree",
    "http_host": "interface of the API; `0.0.0.0` opens it to the network",
    "http_port": "port of the API",
}
"""For fields whose own description is missing or would promise more than is there."""


def meaning_of(name: str, field: FieldInfo) -> str:
    return MEANINGS.get(name) or field.description or ""


def default_of(field: FieldInfo) -> str:
    return "" if field.default is None else str(field.default)


def range_of(field: FieldInfo) -> str:
    """Return the bounds of a field in words, e.g. `1..10000`, `> 0, <= 60`."""
    bounds: dict[str, Any] = {}
    for part in field.metadata:
        for name in ("ge", "gt", "le", "lt"):
            if getattr(part, name, None) is not None:
                bounds[name] = getattr(part, name)
        if getattr(part, "pattern", None):
            return f"`{part.pattern}`"
    if set(bounds) == {"ge", "le"}:
        return f"{bounds['ge']}..{bounds['le']}"
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    return ", ".join(f"{signs[name]} {value}" for name, value in bounds.items())


def table() -> str:
    """Return the table as Markdown."""
    rows = ["| environment variable | default | range | meaning |", "| --- | --- | --- | --- |"]
    for name, field in CacheOptimizerSettings.model_fields.items():
        default = f"`{default_of(field)}`" if default_of(field) else "–"
        rows.append(f"| `{name.upper()}` | {default} | {range_of(field)} | {meaning_of(name, field)} |")
    return "\n".join(rows)


def env_example() -> str:
    """Return an .env file in which every setting stands with its default, commented out."""
    lines = ["# Copy to .env and uncomment what you change. All settings: docs/OPERATIONS.md.", ""]
    for name, field in CacheOptimizerSettings.model_fields.items():
        explained = "; ".join(part for part in (meaning_of(name, field), range_of(field).strip("`")) if part)
        lines += [f"# {explained}" if explained else "#", f"#{name.upper()}={default_of(field)}", ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def operations(text: str) -> str:
    """Return the text of OPERATIONS.md with the table of today between its marks; raises ValueError without marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{OPERATIONS.name} lacks the marks `{BEGIN}` and `{END}`")
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def main(arguments: list[str]) -> int:
    wanted = {
        OPERATIONS: operations(OPERATIONS.read_text(encoding="utf-8")),
        ENV_EXAMPLE: env_example(),
    }
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        print(f"{path.relative_to(ROOT)} {'is not current' if '--check' in arguments else 'written'}")
        if "--check" not in arguments:
            path.write_text(wanted[path], encoding="utf-8")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
