"""The documentation as tests: links lead somewhere, commands, routes and settings exist, examples can be read.

What is named in backticks or code blocks is taken at its word; prose is not checked. INVARIANT: no document and no
other file of the repository names a machine's own paths or the host of a package registry.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from cachewarden.fleet import Mode, parse_fleet
from cachewarden.messages import RecordKind
from cachewarden.settings import CacheOptimizerSettings
from simulation.mixes import draw_faults
from simulation.run import checkers_of
from simulation.scenario import parse_scenario

ROOT = Path(__file__).resolve().parent.parent
DOCS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
CODE = sorted(
    p
    for package in ("cachewarden", "agents", "coordination", "simulation", "serve", "cluster")
    for p in (ROOT / package).rglob("*.py")
)
ADRS = sorted((ROOT / "docs" / "adr").glob("*.md"))

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_SPAN = re.compile(r"`([^`\n]+)`")
_ENDPOINT = re.compile(r"(/api/v1/[A-Za-z0-9_/{}-]*|(?<=\$BASE)/[a-z.]+)")


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(text: str, *languages: str) -> list[str]:
    """Return the code blocks of some languages, without their indentation."""
    return [textwrap.dedent(body) for _, language, body in _FENCE.findall(text) if language in languages]


def code_of(path: Path) -> list[str]:
    """Return everything that a document shows as code: shell blocks line by line, and what stands in backticks."""
    text = path.read_text()
    lines = [line for block in blocks(text, "sh", "bash", "") for line in block.replace("\\\n", " ").splitlines()]
    return [re.sub(r"(^|\s)#.*", "", line) for line in lines] + _SPAN.findall(_FENCE.sub("", text))


def anchors(path: Path) -> set[str]:
    """Return the anchors of a document's headings, as hosts of Git repositories make them."""
    headings = re.findall(r"^#+ +(.+?) *$", _FENCE.sub("", path.read_text()), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.replace("`", "").lower()).replace(" ", "-") for h in headings}


def command_line() -> Any:
    """Return `python -m cluster` with every command that it has."""
    from cluster.__main__ import app, audit_app, plans_app, token_app
    from cluster.audit_commands import add_audit_commands
    from cluster.control_commands import add_control_commands
    from cluster.plan_commands import add_plan_commands
    from cluster.token_commands import add_token_commands
    from cluster.warm_command import add_warm_command

    if not audit_app.registered_commands:
        add_audit_commands(audit_app)
    if not token_app.registered_commands:
        add_token_commands(token_app)
    if not plans_app.registered_commands:
        add_plan_commands(plans_app)
        add_control_commands(app)
        add_warm_command(app)
    return typer.main.get_command(app)


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def routes() -> set[str]:
    """Return the paths of the API as their routers declare them."""
    from serve import (
        approval_routes,
        control_routes,
        curve_routes,
        feed_routes,
        hot_key_routes,
        memory_routes,
        mode_routes,
        optimize_routes,
        read_routes,
        warm_routes,
        whatif_routes,
    )

    modules = (
        approval_routes,
        control_routes,
        curve_routes,
        feed_routes,
        hot_key_routes,
        memory_routes,
        mode_routes,
        optimize_routes,
        read_routes,
        warm_routes,
        whatif_routes,
    )
    return {route.path for module in modules for route in module.router.routes} | {"/openapi.json"}


def repository_files() -> list[Path]:
    """Return the files that belong to the repository: tracked ones, and new ones that are not ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


# --- Links


@pytest.mark.parametrize("path", DOCS, ids=_name)
def test_links_inside_the_repository_lead_somewhere(path: Path):
    for target in _LINK.findall(_FENCE.sub("", path.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        there = (path.parent / name).resolve() if name else path
        assert there.exists(), f"{_name(path)} links to `{target}`, which does not exist"
        if anchor:
            assert anchor in anchors(there), f"{_name(path)} links to `{target}`, whose heading does not exist"


@pytest.mark.parametrize("path", DOCS, ids=_name)
def test_files_that_documents_name_exist(path: Path):
    folders = "agents|cachewarden|cluster|config|coordination|docs|serve|simulation|tests|tools"
    for span in code_of(path):
        for named in re.findall(rf"(?<![\w/.])(?:{folders})/[\w./-]+\.(?:py|yaml|md)\b", span):
            assert (ROOT / named).exists(), f"{_name(path)} names `{named}`, which does not exist"


def test_documents_that_the_code_names_exist():
    for path in [*CODE, ROOT / "config" / "constitution.yaml"]:
        for named in re.findall(r"docs/[\w./-]*\w", path.read_text()):
            found = (ROOT / named).exists() or list((ROOT / named).parent.glob(f"{Path(named).name}-*.md"))
            assert found, f"{_name(path)} names `{named}`, which does not exist"


# --- Commands, routes, records


@pytest.mark.parametrize("path", DOCS, ids=_name)
def test_make_targets_that_documents_name_exist(path: Path):
    for line in code_of(path):
        for target in re.findall(r"(?:^|[\s;&|])make ([a-z][a-z-]*)", " " + line):
            assert target in make_targets(), f"{_name(path)} names `make {target}`"


@pytest.mark.parametrize("path", DOCS, ids=_name)
def test_commands_and_their_options_that_documents_name_exist(path: Path):
    for line in code_of(path):
        found = re.search(r"python -m cluster\b(.*)", line)
        if found is None:
            continue
        command = command_line()
        words = found.group(1).split()
        while hasattr(command, "commands") and words and re.fullmatch(r"[a-z][a-z-]*", words[0]):
            name = words.pop(0)
            assert name in command.commands, f"{_name(path)} names `python -m cluster … {name}`"
            command = command.commands[name]
        options = {o for parameter in command.params for o in parameter.opts} | {"--help"}
        for word in words:
            if word.startswith("--"):
                assert word.split("=")[0] in options, f"{_name(path)} gives `{word}` to `{command.name}`"


@pytest.mark.parametrize("path", DOCS, ids=_name)
def test_routes_that_documents_name_exist(path: Path):
    patterns = [re.compile(re.sub(r"\{\w+\}", r"[^/]+", route) + r"/?") for route in routes()]
    for line in code_of(path):
        for named in _ENDPOINT.findall(line):
            shortened = re.sub(r"/\{[^}]*,.*", "", named)
            if shortened != named:
                continue
            assert any(pattern.fullmatch(named) for pattern in patterns), f"{_name(path)} names `{named}`"


def test_the_records_of_a_change_are_those_that_the_journal_knows():
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
    life = text.partition("## The life of one change")[2].partition("\n## ")[0]
    named = {word for row in re.findall(r"^\| (`.*?) \|", life, flags=re.MULTILINE) for word in _SPAN.findall(row)}
    assert named
    assert named <= {kind.value for kind in RecordKind}


# --- Examples


@pytest.mark.parametrize("path", DOCS, ids=_name)
def test_examples_in_yaml_and_json_can_be_read(path: Path):
    for block in blocks(path.read_text(), "yaml", "yml"):
        yaml.safe_load(block)
    for block in blocks(path.read_text(), "json"):
        json.loads(block)


@pytest.mark.parametrize("path", DOCS, ids=_name)
def test_bodies_of_requests_in_shell_examples_are_json(path: Path):
    for block in blocks(path.read_text(), "sh", "bash"):
        for body in re.findall(r"-d '([^']*)'", block):
            json.loads(body)


@pytest.mark.parametrize("path", DOCS, ids=_name)
def test_examples_in_python_compile(path: Path):
    for block in blocks(path.read_text(), "python", "py"):
        compile(block, _name(path), "exec")


def test_every_fleet_file_in_documents_is_one_that_can_be_loaded():
    texts = [b for path in DOCS for b in blocks(path.read_text(), "yaml") if re.search(r"^services:", b, re.MULTILINE)]
    texts = [text for text in texts if not re.search(r"^minutes:", text, re.MULTILINE)]
    texts.append((ROOT / "config" / "fleet.example.yaml").read_text())
    assert len(texts) >= 2
    for text in texts:
        assert parse_fleet(text).services


def test_every_scenario_in_documents_is_one_that_can_be_run():
    texts = [b for path in DOCS for b in blocks(path.read_text(), "yaml") if re.search(r"^minutes:", b, re.MULTILINE)]
    assert texts
    for text in texts:
        scenario = parse_scenario(text)
        assert draw_faults(scenario, 0)
        assert checkers_of(scenario)


def test_the_smallest_fleet_file_of_the_readme_only_advises():
    (text,) = [b for b in blocks((ROOT / "README.md").read_text(), "yaml") if "services:" in b]
    assert {s.mode for s in parse_fleet(text).services} == {Mode.ADVISE}


# --- Settings


def test_every_setting_is_documented_as_it_is():
    path = ROOT / "tools" / "settings_table.py"
    spec = importlib.util.spec_from_file_location("settings_table", path)
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    remedy = f"run `{Path(sys.executable).name} tools/settings_table.py`"
    text = tool.OPERATIONS.read_text()
    assert tool.operations(text) == text, remedy
    assert tool.ENV_EXAMPLE.read_text() == tool.env_example(), remedy
    for name, field in CacheOptimizerSettings.model_fields.items():
        assert tool.meaning_of(name, field), f"`{name}` needs a description"
    assert set(tool.MEANINGS) <= set(CacheOptimizerSettings.model_fields)


def test_the_example_of_an_environment_changes_nothing_when_it_is_uncommented(tmp_path):
    lines = re.findall(r"^#([A-Z_]+=.+)$", (ROOT / ".env.example").read_text(), flags=re.MULTILINE)
    file = tmp_path / ".env"
    file.write_text("\n".join(lines))
    defaults = {name: field.default for name, field in CacheOptimizerSettings.model_fields.items()}
    read = CacheOptimizerSettings(_env_file=file)
    given = [line.partition("=")[0].lower() for line in lines]
    assert {name: getattr(read, name) for name in given} == {name: defaults[name] for name in given}


@pytest.mark.parametrize("path", DOCS, ids=_name)
def test_settings_that_documents_name_exist(path: Path):
    known = {name.upper() for name in CacheOptimizerSettings.model_fields}
    families = {name.partition("_")[0] for name in known}
    codes = re.compile(r"HTTP_\d+|CONSTITUTIONAL_VIOLATION")
    for span in _SPAN.findall(_FENCE.sub("", path.read_text())):
        name = span.partition("=")[0]
        if re.fullmatch(r"[A-Z]+(_[A-Z0-9]+)+", name) and name.partition("_")[0] in families:
            assert name in known or codes.fullmatch(name), f"{_name(path)} names `{name}`"


# --- Decisions


def test_decision_records_are_numbered_without_gaps_and_say_context_decision_and_consequences():
    assert [int(p.name[:4]) for p in ADRS] == list(range(1, len(ADRS) + 1))
    for path in ADRS:
        text = path.read_text()
        assert text.startswith(f"# {int(path.name[:4])}. "), _name(path)
        for part in ("**Context.**", "**Decision.**", "**Consequences.**"):
            assert part in text, f"{_name(path)} lacks {part}"


# --- What may not be in the repository


def test_no_file_names_a_machines_own_paths_or_a_package_registry():
    # In pieces, so that this file does not name them either.
    places = ["/" + folder + "/" for folder in ("work", "root", "Users")] + ["/" + "home" + "/"]
    hosts = ["pypi" + ".org", "python" + "hosted", "npmjs" + ".", "index-url" + " http", "extra-index" + "-url"]
    banned = re.compile("|".join([rf"(?<![\w.~}}/-]){re.escape(p)}" for p in places] + [re.escape(h) for h in hosts]))
    for path in repository_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found = banned.search(text)
        assert found is None, f"{_name(path)} names `{found.group(0)}`" if found else ""


def test_the_lock_file_names_packages_and_hashes_but_no_address():
    text = (ROOT / "requirements.lock").read_text()
    assert "--hash=sha256:" in text
    assert "://" not in text


def test_the_page_of_the_playbooks_is_made_of_their_tables():
    path = ROOT / "tools" / "playbooks_page.py"
    spec = importlib.util.spec_from_file_location("playbooks_page", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    remedy = f"run `{Path(sys.executable).name} tools/playbooks_page.py`"
    assert (ROOT / "docs" / "PLAYBOOKS.md").read_text(encoding="utf-8") == module.page(), remedy
