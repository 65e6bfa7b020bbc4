"""What Ray ships to its workers: the tree as it stands, without what only developers need.

The application is never a wheel: the tree on disk is the import tree on every node
(`docs/adr/0004-flat-application.md`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["ROOT", "runtime_env"]

ROOT = Path(__file__).resolve().parent.parent

_EXCLUDES = [
    ".git",
    ".venv",
    "var",
    "docs",
    "tests",
    "benchmarks",
    "dist",
    "*.gz",
    "*.xz",
    "*.zst",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    ".hypothesis",
    ".import_linter_cache",
    "**/__pycache__",
]


def runtime_env(environment: dict[str, str] | None = None, *, ship: bool) -> dict[str, Any]:
    """Return the runtime environment of the job; `environment` is added to the variables of every worker.

    `ship` sends the tree to the nodes of a cluster. On this machine alone the workers read it where it stands, ahead
    of whatever else is
    installed, which starts faster and keeps what numba compiled.
    """
    variables = dict(environment or {})
    if ship:
        return {"working_dir": str(ROOT), "excludes": _EXCLUDES, "env_vars": variables}
    return {"env_vars": {"PYTHONPATH": str(ROOT), **variables}}
