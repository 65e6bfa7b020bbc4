"""What all tests share: the options of the specification, and the rule that unit tests start no Ray."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import settings

# A test must not fail because the machine was busy.
settings.register_profile("no_clock", deadline=None)
settings.load_profile("no_clock")

OPTIONS = {"--constitutional-compliance": "constitutional", "--performance": "performance"}


def pytest_addoption(parser: pytest.Parser) -> None:
    for option, marker in OPTIONS.items():
        parser.addoption(option, action="store_true", default=False, help=f"run only tests that are marked `{marker}`")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = {marker for option, marker in OPTIONS.items() if config.getoption(option)}
    if wanted:
        chosen = [item for item in items if any(item.get_closest_marker(m) for m in wanted)]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen


@pytest.fixture(autouse=True)
def _unit_tests_start_no_ray(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if Path(str(request.node.fspath)).is_relative_to(Path(__file__).parent / "unit"):
        ray = pytest.importorskip("ray") if "ray" in sys.modules else None

        def refuse(*_: object, **__: object) -> None:
            raise AssertionError("a unit test must not start Ray")

        if ray is not None:
            monkeypatch.setattr(ray, "init", refuse)
