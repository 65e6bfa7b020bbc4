"""Readings of the driver can be written, read, subtracted and summed without losing a count."""

from __future__ import annotations

import pytest

from cluster.demo.stats import LATENCY_BOUNDS_US, DriverStats, ServiceCounters, read_last_stats


def counters(lookups: int, hits: int, latency_us: float = 1_000.0) -> ServiceCounters:
    made = ServiceCounters(lookups=lookups, hits=hits, refused=lookups - hits)
    made.add_latency(latency_us, lookups)
    return made


def reading(at_ms: int, lookups: int, hits: int) -> DriverStats:
    fleets = {"managed": {"a": counters(lookups, hits), "b": counters(10, 5)}, "control": {"a": counters(lookups, 0)}}
    return DriverStats(at_ms=at_ms, phase="load", elapsed_ms=at_ms, fleets=fleets)


def test_a_reading_survives_its_line():
    stats = reading(5_000, 100, 80)
    assert DriverStats.from_json(stats.to_json()) == stats


@pytest.mark.parametrize("line", ["", "{}", "[]", "null", '{"at_ms":1}', '{"fleets":{"a":1}}', "{"])
def test_what_is_no_reading_is_refused(line):
    with pytest.raises(ValueError):
        DriverStats.from_json(line)


def test_the_difference_of_two_readings_is_a_window():
    window = reading(6_000, 300, 250).since(reading(5_000, 100, 80))
    assert window.fleets["managed"]["a"].lookups == 200
    assert window.fleets["managed"]["a"].hit_ratio == pytest.approx(0.85)
    assert sum(window.fleets["managed"]["a"].latency_counts) == 200


def test_a_service_that_is_new_in_the_later_reading_counts_from_zero():
    empty = DriverStats(at_ms=0, phase="prefill")
    assert reading(1_000, 7, 7).since(empty).fleets["managed"]["a"].lookups == 7


def test_a_fleet_is_the_sum_of_its_services():
    assert reading(1, 100, 80).fleet("managed").lookups == 110
    assert reading(1, 100, 80).fleet("managed").hits == 85
    assert reading(1, 100, 80).fleet("unknown").hit_ratio is None


def test_a_hit_ratio_without_lookups_is_not_zero():
    assert ServiceCounters().hit_ratio is None
    assert ServiceCounters().latency_us(0.99) is None


def test_quantiles_are_upper_bounds_of_their_buckets():
    made = ServiceCounters()
    made.add_latency(100.0, 99)
    made.add_latency(1e9, 1)
    assert made.latency_us(0.5) == 100
    assert made.latency_us(1.0) == LATENCY_BOUNDS_US[-1] * 2


def test_the_newest_complete_line_counts(tmp_path):
    path = tmp_path / "stats.jsonl"
    assert read_last_stats(path) is None
    path.write_text(reading(1, 1, 1).to_json() + "\n" + reading(2, 2, 2).to_json() + "\n" + '{"half')
    found = read_last_stats(path)
    assert found is not None
    assert found.at_ms == 2
