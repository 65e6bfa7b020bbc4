"""The fleet file: what is understood, and what is refused with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from cachewarden.errors import FleetFileError, UnknownService
from cachewarden.fleet import load_fleet, parse_fleet
from cachewarden.messages import Mode

GOOD = """\
name: shop
total_memory_bytes: 2gb
services:
  - name: api
    url: redis://localhost:6379/0
    mode: auto
    patterns:
      - prefix: "session:"
        max_staleness_s: 600
  - name: search
    url: rediss://cache.internal:6380
"""


def test_a_fleet_is_read_with_its_units_and_its_careful_defaults():
    fleet = parse_fleet(GOOD)
    assert fleet.total_memory_bytes == 2 * 1024**3
    assert fleet.service("api").mode is Mode.AUTO
    assert fleet.service("search").mode is Mode.ADVISE
    assert not fleet.service("search").capture
    assert not fleet.service("search").feed


def test_an_unknown_service_is_answered_with_the_known_names():
    with pytest.raises(UnknownService, match="unknown service `cart`, the fleet has: api, search"):
        parse_fleet(GOOD).service("cart")


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("services: [}", 1, "not readable as YAML"),
        ("- api", 1, "must be a mapping"),
        (GOOD.replace("mode: auto", "mode: autopilot"), 6, "`services.0.mode`: input should be 'off'"),
        (GOOD.replace("    mode: auto", "    mod: auto"), 6, "`services.0.mod`: is not a known name here"),
        (GOOD.replace("redis://localhost:6379/0", "localhost:6379"), 5, "must begin with `redis://`"),
        (GOOD.replace("mode: auto", "feed: maybe"), 6, "`services.0.feed`"),
        (GOOD.replace("mode: auto", "feeds: true"), 6, "`services.0.feeds`: is not a known name here"),
        (GOOD.replace("600", "-1"), 9, "greater than 0"),
        (GOOD.replace('"session:"', '"session:*"'), 8, "without `\\*`"),
        (GOOD.replace("search", "api"), None, "twice: api"),
        (GOOD.replace("2gb", "2mb"), None, "the minimum sizes add up to"),
        (GOOD.replace("2gb", "much"), 2, "`much` is no amount of memory"),
        ("name: shop\nname: shop\nservices: []", 2, "`name` stands twice"),
        ("name: shop\nservices: []", 2, "at least 1 item"),
    ],
)
def test_a_mistake_is_refused_with_its_line(text: str, line: int | None, words: str):
    with pytest.raises(FleetFileError, match=words) as caught:
        parse_fleet(text, "fleet.yaml")
    if line is not None:
        assert str(caught.value).startswith(f"fleet.yaml:{line}: ")


def test_a_file_that_is_not_there_is_said_to_be_so(tmp_path: Path):
    with pytest.raises(FleetFileError, match="cannot be read"):
        load_fleet(tmp_path / "none.yaml")


def test_a_binary_file_is_no_fleet(tmp_path: Path):
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FleetFileError, match="cannot be read"):
        load_fleet(tmp_path / "x.yaml")
