"""The shape of the code as tests: sizes, banned clock and dice, who owns the package names, what imports what."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("cachewarden", "agents", "coordination", "simulation", "serve", "cluster")
SOURCES = sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))
LINES_MAX = 450
FUNCTION_LINES_MAX = 70

# Shells, adapters and composition: the only modules that may touch the world. Adding one is an architecture change.
IMPURE = {
    "cachewarden/shell.py",
    "cachewarden/host.py",
    "cachewarden/recorder.py",
    "agents/actors.py",
    "coordination/http_wire.py",
    "coordination/warm_cache.py",
    "coordination/warm_origins.py",
    "coordination/warmer.py",
    "simulation/ray_spread.py",
    "simulation/worker.py",
}
IMPURE_PREFIXES = ("coordination/redis_", "serve/", "cluster/")
BANNED_CALLS = {
    ("time", "time"),
    ("time", "time_ns"),
    ("time", "monotonic"),
    ("time", "perf_counter"),
    ("time", "sleep"),
    ("datetime", "now"),
    ("datetime", "utcnow"),
    ("date", "today"),
    ("os", "urandom"),
    ("uuid", "uuid4"),
    ("uuid", "uuid1"),
    ("random", "random"),
    ("random", "choice"),
    ("random", "randint"),
    ("random", "shuffle"),
    ("random", "uniform"),
    ("secrets", "token_hex"),
    ("secrets", "token_urlsafe"),
}
BANNED_MODULES = {
    "ray",
    "redis",
    "asyncio",
    "threading",
    "socket",
    "time",
    "random",
    "uuid",
    "secrets",
    "httpx",
    "fastapi",
}


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _cores() -> list[Path]:
    return [p for p in SOURCES if _name(p) not in IMPURE and not _name(p).startswith(IMPURE_PREFIXES)]


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_a_module_fits_on_a_few_screens(path: Path):
    lines = path.read_text().count("\n")
    assert lines <= LINES_MAX, f"{_name(path)} has {lines} lines, split it"


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_a_function_fits_on_one_screen(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= FUNCTION_LINES_MAX, f"{_name(path)}:{node.lineno} `{node.name}` has {length} lines"


@pytest.mark.parametrize("path", [p for p in SOURCES if p.stat().st_size > 1], ids=_name)
def test_a_module_says_what_it_is_for(path: Path):
    assert ast.get_docstring(ast.parse(path.read_text())), f"{_name(path)} has no docstring"


@pytest.mark.parametrize("path", _cores(), ids=_name)
def test_a_core_has_no_clock_no_dice_and_no_wire(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found = {alias.name.split(".")[0] for alias in node.names} & BANNED_MODULES
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found = {(node.module or "").split(".")[0]} & BANNED_MODULES
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value
            owner_name = (
                owner.id if isinstance(owner, ast.Name) else owner.attr if isinstance(owner, ast.Attribute) else ""
            )
            found = {f"{owner_name}.{node.func.attr}"} if (owner_name, node.func.attr) in BANNED_CALLS else set()
        else:
            continue
        assert not found, f"{_name(path)}:{node.lineno} uses {', '.join(found)}; take it as an argument"


def test_imports_point_one_way():
    result = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("package", PACKAGES)
def test_our_package_names_are_ours(package: str):
    module = importlib.import_module(package)
    assert Path(module.__file__ or "").resolve().is_relative_to(ROOT)
    owners = importlib.metadata.packages_distributions().get(package, [])
    assert set(owners) <= {"cachewarden"}, f"`{package}` is also owned by {owners}"


def test_no_loose_module_lies_at_the_root_where_workers_would_find_it_before_the_standard_library():
    assert [p.name for p in ROOT.glob("*.py")] == []


def test_nothing_is_left_to_be_done_later_in_the_code():
    for path in SOURCES:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            assert not any(word in line for word in ("TODO", "FIXME", "XXX", "HACK")), f"{_name(path)}:{number}"
