"""Freeze windows: what is understood, and when it holds."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from cachewarden.errors import SettingsError
from cachewarden.fleet import parse_fleet
from cachewarden.freeze import frozen_until, parse_freeze, parse_freezes
from cachewarden.settings import load_settings


def at(text):
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


@pytest.mark.parametrize(
    ("window", "inside", "outside"),
    [
        ("daily 08:00 - 18:00", ["2026-11-26 08:00", "2026-11-26 17:59"], ["2026-11-26 07:59", "2026-11-26 18:00"]),
        ("daily 22:00 - 06:00", ["2026-11-26 23:00", "2026-11-26 05:59"], ["2026-11-26 06:00", "2026-11-26 21:59"]),
        ("fri 16:00 - mon 08:00", ["2026-11-27 16:00", "2026-11-29 12:00", "2026-11-30 07:59"], ["2026-11-30 08:00"]),
        ("mon 00:00 - sun 24:00", ["2026-11-26 12:00", "2026-11-29 23:59"], []),
        ("2026-12-20 00:00 - 2027-01-02 06:00", ["2026-12-31 23:59"], ["2026-12-19 23:59", "2027-01-02 06:00"]),
    ],
)
def test_a_window_holds_from_its_beginning_to_just_before_its_end(window, inside, outside):
    freeze = parse_freeze(window)
    for moment in inside:
        assert freeze.until_ms(at(moment)) is not None, moment
    for moment in outside:
        assert freeze.until_ms(at(moment)) is None, moment


def test_the_end_that_is_told_is_the_end_of_the_window():
    assert parse_freeze("fri 16:00 - mon 08:00").until_ms(at("2026-11-28 12:00")) == at("2026-11-30 08:00")
    assert parse_freeze("daily 22:00 - 06:00").until_ms(at("2026-11-26 05:00")) == at("2026-11-26 06:00")


def test_of_several_windows_the_one_that_lasts_longest_is_told():
    windows = parse_freezes("daily 08:00 - 18:00; 2026-11-20 00:00 - 2026-12-01 00:00")
    assert frozen_until(windows, at("2026-11-26 12:00")) == (at("2026-12-01 00:00"), windows[1].text)
    assert frozen_until(windows, at("2026-12-02 07:00")) is None


@pytest.mark.parametrize(
    "nonsense",
    ["always", "daily 8 - 18", "fri - mon", "daily 25:00 - 26:00", "daily 24:30 - 06:00", "daily 08:00 - 08:00",
     "2027-01-02 00:00 - 2026-12-20 00:00", "2026-13-01 00:00 - 2026-13-02 00:00", "* * * * *"],
)  # fmt: skip
def test_what_is_not_understood_is_refused_and_never_silently_no_freeze(nonsense):
    with pytest.raises(ValueError, match=r"freeze|time of day|month"):
        parse_freeze(nonsense)
    with pytest.raises(SettingsError):
        load_settings(_env_file=None, freeze=nonsense)


def test_the_fleet_file_has_windows_of_its_own():
    fleet = parse_fleet(
        'services: [{name: shop, url: "redis://localhost:1", freeze: ["fri 16:00 - mon 08:00", "daily 00:00 - 06:00"]}]'
    )
    assert len(fleet.services[0].freeze) == 2
